//! What commands put on record as evidence of what they did.
//!
//! What they did is done: a record that cannot be written is a warning, and never changes how the command ends. A repository that
//! does not answer is not waited for long.

use std::time::Duration;

use walpoint_repo::Repository;
use walpoint_repo::evidence::{Draft, Evidence};
use walpoint_runtime::args::Selection;
use walpoint_runtime::human;
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;

use crate::error;

/// How long a record is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Records in a repository that is open, if the cluster's commands are to be recorded.
pub async fn append(repository: &Repository, selection: &Selection<StoreSettings>, draft: &Draft) {
    if selection.settings.evidence {
        let written = write(repository, selection, draft);
        finish(repository.name(), draft, tokio::time::timeout(PATIENCE, written).await);
    }
}

/// The same in a repository that is not open yet. One that cannot be opened is a warning, too.
pub async fn append_in(
    (name, settings): (&str, &StoreSettings),
    selection: &Selection<StoreSettings>,
    draft: &Draft,
) {
    if selection.settings.evidence {
        let written = async {
            let repository = Repository::open(name, &settings.impatient()).await?;
            write(&repository, selection, draft).await
        };
        finish(name, draft, tokio::time::timeout(PATIENCE, written).await);
    }
}

/// Writes it, if the repository knows the cluster: a command line may have named a wrong one, and a record would leave that one behind.
async fn write(
    repository: &Repository,
    selection: &Selection<StoreSettings>,
    draft: &Draft,
) -> Result<(), RepoError> {
    let cluster = &selection.cluster;
    if repository.lineages(cluster).await?.ids().next().is_none() {
        return Ok(());
    }
    let appended = Evidence::of(repository, cluster).append(draft).await?;
    if let Some(number) = appended.unreadable {
        tracing::warn!(
            "repository {}: record {number} of the evidence cannot be read, so record {} does not continue it\nHINT: Run \
             \"archive-agent evidence verify\": it shows what is wrong.",
            repository.name(),
            appended.head.number
        );
    }
    Ok(())
}

type Waited = Result<Result<(), RepoError>, tokio::time::error::Elapsed>;

/// Warns if nothing is known to be recorded.
fn finish(name: &str, draft: &Draft, written: Waited) {
    match written {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn(name, draft, &error),
        // The store may have it all the same.
        Err(_) => tracing::warn!(
            "repository {name}: could not record this {} as evidence within {}\nDETAIL: Nothing else is affected.",
            draft.kind.name(),
            human::span(PATIENCE)
        ),
    }
}

/// Warns that something is not on record.
pub fn warn(name: &str, draft: &Draft, failure: &RepoError) {
    let mut what = error(failure);
    if matches!(failure, RepoError::Denied { .. }) {
        what = what
            .hint("If these credentials are meant to be read-only, set evidence = false in [cluster.NAME].");
    }
    tracing::warn!("repository {name}: could not record this {} as evidence: {what}", draft.kind.name());
}
