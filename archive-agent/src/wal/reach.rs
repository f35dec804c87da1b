//! Whether what is archived can be recovered: WAL that a dead primary never archived, or that was dropped without a record here,
//! makes all behind it useless until the next backup.

use std::fmt;
use std::path::Path;

use walpoint_base::{LineageId, SegmentName, TimelineId};
use walpoint_repo::Repository;
use walpoint_repo::catalog::{Catalog, Unreached};
use walpoint_storage::RepoError;

use super::disk;
use super::target::WalTarget;
use super::upload::Uploader;

/// Why the newest WAL of a timeline cannot be recovered from a repository, if it cannot: not while what is missing waits in this
/// `pg_wal` to be archived.
pub(crate) async fn unreached(
    repository: &Repository,
    lineage: (&walpoint_base::ClusterName, LineageId),
    timeline: TimelineId,
    wal: &Path,
) -> anyhow::Result<Option<Unreached>> {
    let (cluster, id) = lineage;
    let mut catalog = Catalog::load(repository, cluster).await?;
    let Some(lineage) = catalog.lineages_mut().iter_mut().find(|lineage| lineage.id() == id) else {
        return Ok(None);
    };
    let Some(found) = lineage.unreached(timeline).await? else { return Ok(None) };
    if let Some(missing) = found.missing
        && waits(wal, missing).await?
    {
        return Ok(None);
    }
    Ok(Some(found))
}

/// Whether a segment waits in a `pg_wal` to be archived.
async fn waits(wal: &Path, name: SegmentName) -> anyhow::Result<bool> {
    let mark = wal.join("archive_status").join(format!("{name}.ready"));
    Ok(disk::run(wal, move || mark.exists()).await?)
}

/// That the newest WAL of this server cannot be recovered from a repository that has to acknowledge.
#[derive(Debug, Clone)]
pub(crate) struct UnreachedIn {
    repository: String,
    found: Unreached,
}

impl UnreachedIn {
    /// Whether it is the same that is missing in the same repository, however far that reaches meanwhile.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.repository == other.repository && self.found.missing == other.found.missing
    }
}

impl fmt::Display for UnreachedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repository, found } = self;
        write!(
            f,
            "repository {repository}: {found}\nHINT: Take a new backup now (archive-agent backup): \
             nothing after that can be recovered until then."
        )
    }
}

impl std::error::Error for UnreachedIn {}

/// What became of a look.
#[derive(Debug)]
pub(crate) enum Looked {
    /// Something cannot be recovered.
    Found(UnreachedIn),
    /// There is no such thing, or the server archives nothing of its own.
    Nothing,
    /// None is known, and not everything could be looked at.
    Unknown,
}

/// Looks for the first repository that has to acknowledge and from which the newest WAL of this server cannot be recovered. An error
/// about one is reported if it does not pass by itself and there is no such repository.
pub(crate) async fn look(uploader: &Uploader) -> anyhow::Result<Looked> {
    let cluster = uploader.identity().await?;
    let Some(timeline) = uploader.written_timeline().await? else { return Ok(Looked::Nothing) };
    let wal = uploader.wal_directory();
    let required = |target: &&WalTarget| target.acknowledges;
    let (mut looked, mut failed) = (Looked::Nothing, None);
    for target in uploader.targets().iter().filter(required) {
        let Ok(archive) = target.archive(&cluster).await else {
            looked = Looked::Unknown;
            continue;
        };
        let lineage = (&archive.lineage().cluster, archive.lineage().id);
        match unreached(archive.repository(), lineage, timeline, &wal).await {
            Ok(Some(found)) => {
                return Ok(Looked::Found(UnreachedIn { repository: target.name().to_owned(), found }));
            }
            Ok(None) => {}
            Err(error) if lasts(&error) => {
                let what = format!("repository {}: could not determine what can be recovered", target.name());
                failed.get_or_insert(error.context(what));
            }
            Err(error) => {
                tracing::debug!(
                    repository = target.name(),
                    "could not determine what can be recovered: {}",
                    walpoint_words::format_chain(&error)
                );
                looked = Looked::Unknown;
            }
        }
    }
    failed.map_or(Ok(looked), Err)
}

/// Whether an error says more than that a repository is away, or that an object expired meanwhile.
fn lasts(error: &anyhow::Error) -> bool {
    let passes = |error: &RepoError| error.is_transient() || error.is_not_found();
    !error.chain().filter_map(|cause| cause.downcast_ref()).any(passes)
}

#[cfg(test)]
impl UnreachedIn {
    /// Of a segment that is missing, with all up to another one stored behind it.
    pub(crate) fn of(missing: &str, last: &str) -> Self {
        let found = Unreached { last: last.parse().unwrap(), missing: Some(missing.parse().unwrap()) };
        Self { repository: "main".to_owned(), found }
    }
}

/// The first lineage of the cluster whose facts are damaged in a repository: another one than this server's, whose WAL is archived all
/// the same. What cannot be looked at now is not known to be so.
pub(crate) async fn damaged(uploader: &Uploader) -> anyhow::Result<Option<String>> {
    let cluster = uploader.identity().await?;
    for target in uploader.targets() {
        let Ok(archive) = target.archive(&cluster).await else { continue };
        match archive.repository().lineages(&archive.lineage().cluster).await {
            Ok(lineages) => {
                if let Some(damaged) = lineages.damaged.first() {
                    return Ok(Some(format!("repository {}: {damaged}", target.name())));
                }
            }
            Err(error) => tracing::debug!(repository = target.name(), "its lineages are not known: {error}"),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::Bed;
    use super::*;

    #[tokio::test]
    async fn an_error_that_does_not_pass_by_itself_is_reported() {
        let bed = Bed::new().await;
        let key = bed.archive.paths().segment("000000010000000000000005".parse().unwrap());
        let corrupt = anyhow::Error::new(RepoError::corrupt(&key, "its header is invalid"));
        assert!(lasts(&corrupt.context("could not determine what can be recovered")));
        assert!(!lasts(&anyhow::Error::new(bed.unavailable()).context("could not be determined")));
    }
}
