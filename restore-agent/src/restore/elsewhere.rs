//! WAL of the plan's cluster outside what the plan reads: in other repositories, in other lineages.

use std::time::Duration;

use walpoint_repo::Repository;
use walpoint_repo::wal::{WalArchive, WalCopies};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;

use crate::plan::Planned;

/// How long a repository is waited for that the plan does not need. What one that does not answer may have counts as missing.
const OTHERS: Duration = Duration::from_secs(10);

/// The WAL of the plan's lineage in every repository that can be read, the plan's first.
pub(super) async fn copies(common: &CommonArgs, planned: &Planned) -> anyhow::Result<WalCopies> {
    let own = async |repository: Repository| in_repository(&repository, planned).await;
    let others = ask(common, planned, own).await?;
    Ok(WalCopies::new(planned.repository.wal_to_read(&planned.lineage).await?, others.into_iter().flatten()))
}

/// Asks the plan's repository, and all that can be read where its WAL is damaged or the plan counts on theirs.
pub(super) async fn ask_copies<T>(
    common: &CommonArgs,
    planned: &Planned,
    question: impl AsyncFn(&WalCopies) -> Result<T, RepoError>,
) -> anyhow::Result<T> {
    if !planned.together {
        let only = WalCopies::new(planned.repository.wal_to_read(&planned.lineage).await?, []);
        match question(&only).await {
            Err(RepoError::Corrupt { .. }) => {}
            answer => return Ok(answer?),
        }
    }
    let copies = copies(common, planned).await?;
    let answer = question(&copies).await;
    warn_of_damage(&copies);
    answer.map_err(|error| nowhere_sound(&copies, error))
}

/// The WAL of the plan's lineage in every repository that can be read, the plan's first, and the WAL of the cluster's other lineages there: that of copies of its server which went their own way, and of the
/// server itself under another name.
pub(super) async fn all_lineages(
    common: &CommonArgs,
    planned: &Planned,
) -> anyhow::Result<(WalCopies, Vec<WalArchive>)> {
    let both = async |repository: Repository| -> Result<_, RepoError> {
        Ok((in_repository(&repository, planned).await?, related(&repository, planned).await))
    };
    let mut others = related(&planned.repository, planned).await;
    let mut own = Vec::new();
    for (archive, related) in ask(common, planned, both).await? {
        own.extend(archive);
        others.extend(related);
    }
    Ok((WalCopies::new(planned.repository.wal_to_read(&planned.lineage).await?, own), others))
}

/// The WAL of the plan's lineage in a repository, if that lineage is the same server's there.
async fn in_repository(repository: &Repository, planned: &Planned) -> Result<Option<WalArchive>, RepoError> {
    let lineage = repository.read_lineage(&planned.cluster, planned.lineage.id).await?;
    match lineage.filter(|lineage| planned.lineage.is_same_life(lineage)) {
        Some(lineage) => repository.wal_to_read(&lineage).await.map(Some),
        None => Ok(None),
    }
}

/// The WAL of the other lineages of the cluster in a repository, as far as it can be read.
async fn related(repository: &Repository, planned: &Planned) -> Vec<WalArchive> {
    let own = &planned.lineage;
    let read = async {
        let mut archives = Vec::new();
        let lineages = repository.lineages(&planned.cluster).await?;
        for damaged in lineages.damaged {
            tracing::warn!("repository \"{}\": {damaged}", repository.name());
        }
        for lineage in lineages.read {
            let related = lineage.system_id() == own.system_id() && lineage.segment_size == own.segment_size;
            if related && !own.is_same_life(&lineage) {
                archives.push(repository.wal_to_read(&lineage).await?);
            }
        }
        Ok::<_, RepoError>(archives)
    };
    read.await.unwrap_or_else(|error| {
        let why = walpoint_words::error(&error);
        tracing::warn!(
            "could not determine what other lineages repository \"{}\" has: {why}",
            repository.name()
        );
        Vec::new()
    })
}

/// Names what was found damaged, and that another repository served.
pub(super) fn warn_of_damage(copies: &WalCopies) {
    for damaged in copies.damaged() {
        tracing::warn!(
            "{damaged}\nDETAIL: Another repository is read instead.\nHINT: Run \"archive-agent verify\" to see what else is \
             affected."
        );
    }
}

/// Says what it means that WAL which the plan needs is sound in no repository.
fn nowhere_sound(copies: &WalCopies, error: RepoError) -> anyhow::Error {
    let RepoError::Corrupt { .. } = error else { return error.into() };
    anyhow::anyhow!(
        "{error}\nDETAIL: No repository that was read ({}) has it undamaged, so recovery would stop there; nothing was \
         touched.\nHINT: Recover to a moment before it (\"--target-lsn\", \"--target-time\"), or archive that file again from the \
         pg_wal of a server that still has it: move the damaged object away, then \"archive-agent push\".",
        read(copies)
    )
}

/// The names of the repositories that were read: what they do not have, another one may.
pub(super) fn read(copies: &WalCopies) -> String {
    let names = copies.archives().iter().map(|archive| format!("\"{}\"", archive.repository().name()));
    names.collect::<Vec<String>>().join(", ")
}

/// What each of the configured repositories answers that the plan does not read from.
pub(super) async fn ask<T>(
    common: &CommonArgs,
    planned: &Planned,
    question: impl AsyncFn(Repository) -> Result<T, RepoError>,
) -> anyhow::Result<Vec<T>> {
    let selection: Selection<StoreSettings> = common.select_to_read().map_err(|failure| failure.error)?;
    let mut answers = Vec::new();
    for (name, settings) in &selection.repositories {
        if name == planned.repository.name() {
            continue;
        }
        let answer = async { question(Repository::open(name, settings).await?).await };
        match tokio::time::timeout(OTHERS, answer).await {
            Ok(Ok(answer)) => answers.push(answer),
            Ok(Err(error)) => {
                tracing::warn!(
                    "could not determine what repository \"{name}\" has: {}",
                    walpoint_words::error(&error)
                );
            }
            Err(_) => {
                tracing::warn!("could not determine what repository \"{name}\" has: it does not answer")
            }
        }
    }
    Ok(answers)
}
