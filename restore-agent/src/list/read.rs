//! What one repository holds of a cluster, or why that is not known.

use walpoint_base::{BackupId, ClusterName};
use walpoint_repo::Repository;
use walpoint_repo::catalog::status::ClusterStatus;
use walpoint_repo::catalog::{Catalog, Newest};
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;
use walpoint_words::lineage;

/// A repository.
#[derive(Debug)]
pub(super) struct Listed {
    /// What the configuration calls it.
    pub(super) repository: String,
    /// Its URL.
    pub(super) url: String,
    /// What it holds, or why it could not be read.
    pub(super) contents: Result<Contents, String>,
}

/// What a repository holds of a cluster.
#[derive(Debug)]
pub(super) struct Contents {
    /// As data.
    pub(super) status: ClusterStatus,
    /// The timelines of each lineage, drawn.
    pub(super) drawings: Vec<String>,
}

impl Listed {
    /// Reads a repository. One that does not answer is not waited for long: the others are worth showing soon.
    pub(super) async fn of(
        name: &str,
        settings: &StoreSettings,
        cluster: &ClusterName,
        newest: Newest,
    ) -> Self {
        let read = read(name, &settings.impatient(), cluster, newest).await;
        Self {
            repository: name.to_owned(),
            url: settings.url.clone(),
            contents: read.unwrap_or_else(|error| Err(walpoint_words::error(&error).into())),
        }
    }
}

async fn read(
    name: &str,
    settings: &StoreSettings,
    cluster: &ClusterName,
    newest: Newest,
) -> Result<Result<Contents, String>, RepoError> {
    let repository = Repository::open(name, settings).await?;
    let mut catalog = Catalog::load(&repository, cluster).await?;
    if catalog.lineages().is_empty() && catalog.damaged_lineages().is_empty() {
        let known: Vec<String> = repository.clusters().await?.iter().map(ClusterName::to_string).collect();
        if !known.is_empty() {
            let known = known.join(", ");
            return Ok(Err(format!("the repository has no cluster {cluster}\nDETAIL: It has: {known}.")));
        }
    }
    let status = catalog.status_of(newest).await?;
    let backups: Vec<BackupId> = catalog.backups().iter().map(|listed| listed.id).collect();
    let mut drawings = Vec::new();
    for one in catalog.lineages_mut() {
        drawings.push(lineage::drawing(one, &backups).await?);
    }
    Ok(Ok(Contents { status, drawings }))
}
