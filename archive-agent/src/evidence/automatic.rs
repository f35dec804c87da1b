//! What other commands put on record of what they did.
//!
//! What they did is done: a record that cannot be written is a warning, and never changes how the command ends. A repository that
//! does not answer is not waited for long.

use std::time::Duration;

use walpoint_base::ClusterName;
use walpoint_repo::Repository;
use walpoint_repo::evidence::{Draft, Evidence, Kind, Outcome};
use walpoint_runtime::human;
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;

use crate::operator::user;

/// How long a record is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A record of this program and the person that runs it.
pub(crate) fn draft(kind: Kind, outcome: Outcome) -> Draft {
    Draft::new(kind, outcome, user(), concat!("archive-agent ", env!("WALPOINT_VERSION")).to_owned())
}

/// Records in a repository that is open.
pub(crate) async fn append(repository: &Repository, cluster: &ClusterName, draft: &Draft) {
    let recorded = write(repository, cluster, draft);
    finish(repository.name(), draft, tokio::time::timeout(PATIENCE, recorded).await);
}

/// Records in a repository that has to be opened, if it knows the cluster: a command that failed may have named a wrong one.
pub(crate) async fn append_if_known(
    (name, settings): (&str, &StoreSettings),
    cluster: &ClusterName,
    draft: &Draft,
) {
    let recorded = async {
        let repository = Repository::open(name, &settings.impatient()).await?;
        match repository.lineages(cluster).await?.ids().next() {
            None => Ok(()),
            Some(_) => write(&repository, cluster, draft).await,
        }
    };
    finish(name, draft, tokio::time::timeout(PATIENCE, recorded).await);
}

async fn write(repository: &Repository, cluster: &ClusterName, draft: &Draft) -> Result<(), RepoError> {
    let appended = Evidence::of(repository, cluster).append(draft).await?;
    if let Some(number) = appended.unreadable {
        tracing::warn!(
            "repository {}: record {number} of the evidence cannot be read, so record {} does not continue it\nHINT: See what is \
             wrong with \"archive-agent evidence verify\".",
            repository.name(),
            appended.head.number
        );
    }
    Ok(())
}

type Waited = Result<Result<(), RepoError>, tokio::time::error::Elapsed>;

/// Warns if nothing was recorded.
fn finish(name: &str, draft: &Draft, recorded: Waited) {
    match recorded {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn(name, draft, &error),
        Err(_) => {
            let error = RepoError::Internal(format!("no answer within {}", human::span(PATIENCE)));
            warn(name, draft, &error);
        }
    }
}

/// Warns that something is not on record.
pub(crate) fn warn(name: &str, draft: &Draft, error: &RepoError) {
    let (kind, error) = (draft.kind.name(), walpoint_words::error(error));
    tracing::warn!("repository {name}: no evidence was recorded ({kind}): {error}");
}
