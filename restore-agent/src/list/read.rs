//! What one repository holds of a cluster, or why that is not known.

use anyhow::anyhow;
use futures_util::future::join_all;
use walpoint_base::{BackupId, ClusterName, LineageId, PgTimestamp, TimelineId};
use walpoint_repo::Repository;
use walpoint_repo::catalog::status::ClusterStatus;
use walpoint_repo::catalog::{Catalog, Newest};
use walpoint_runtime::args::Selection;
use walpoint_runtime::exit::Failure;
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
    /// What it holds, or why nothing of it is listed.
    pub(super) contents: Result<Contents, Unlisted>,
}

/// Why nothing of a repository is listed. Says so.
#[derive(Debug)]
pub(super) enum Unlisted {
    /// It was read, and does not have the cluster.
    NoCluster(String),
    /// It could not be read, because the configuration is wrong.
    WrongSettings(String),
    /// It could not be read.
    Unread(String),
}

impl Unlisted {
    /// In words.
    pub(super) fn why(&self) -> &str {
        let (Self::NoCluster(why) | Self::WrongSettings(why) | Self::Unread(why)) = self;
        why
    }
}

impl From<RepoError> for Unlisted {
    fn from(error: RepoError) -> Self {
        let why = walpoint_words::error(&error).into();
        if matches!(error, RepoError::Settings { .. }) { Self::WrongSettings(why) } else { Self::Unread(why) }
    }
}

/// The failure of a command that could list no repository. The first one that could not be read gives the status, as in a plan.
pub(super) fn nothing_listed(cluster: &ClusterName, listed: &[Listed]) -> Failure {
    let why = || listed.iter().filter_map(|one| one.contents.as_ref().err());
    let is_read = |why: &&Unlisted| matches!(why, Unlisted::NoCluster(_));
    let error = match (why().any(|why| is_read(&why)), why().all(|why| is_read(&why))) {
        (_, true) => anyhow!("no repository has cluster \"{cluster}\""),
        (true, false) => anyhow!("no repository that could be read has cluster \"{cluster}\""),
        (false, false) => anyhow!("no repository of cluster \"{cluster}\" could be read"),
    };
    match why().find(|why| !is_read(why)) {
        Some(Unlisted::WrongSettings(_)) => Failure::usage(error),
        _ => error.into(),
    }
}

/// The latest commit of a lineage that can be recovered on the path to a timeline; `None` if no repository that can be read shows one.
pub(crate) async fn newest_commit(
    selection: &Selection<StoreSettings>,
    lineage: LineageId,
    timeline: TimelineId,
) -> Option<PgTimestamp> {
    let newest = Newest { backups: 0, restore_points: 0 };
    let read = selection.repositories.iter();
    let read = read.map(|(name, settings)| Listed::of(name, settings, &selection.cluster, newest));
    let listed = join_all(read).await;
    latest_time(&listed, lineage, timeline)
}

/// The latest time in what was listed of a timeline. Others have commits of their own.
pub(super) fn latest_time(
    listed: &[Listed],
    lineage: LineageId,
    timeline: TimelineId,
) -> Option<PgTimestamp> {
    let contents = listed.iter().filter_map(|one| one.contents.as_ref().ok());
    let lineages = contents.flat_map(|contents| &contents.status.lineages);
    let timelines = lineages.filter(|one| one.lineage == lineage).flat_map(|one| &one.timelines);
    let windows = timelines.filter(|one| one.timeline == timeline).flat_map(|one| &one.windows);
    windows.filter_map(|window| window.until_time).max()
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
            contents: read.unwrap_or_else(|error| Err(error.into())),
        }
    }
}

async fn read(
    name: &str,
    settings: &StoreSettings,
    cluster: &ClusterName,
    newest: Newest,
) -> Result<Result<Contents, Unlisted>, RepoError> {
    let repository = Repository::open(name, settings).await?;
    let mut catalog = Catalog::load(&repository, cluster).await?;
    if catalog.lineages().is_empty() && catalog.damaged_lineages().is_empty() {
        let known: Vec<String> = repository.clusters().await?.iter().map(ClusterName::to_string).collect();
        if !known.is_empty() {
            let known = known.join(", ");
            let why = format!("the repository has no cluster {cluster}\nDETAIL: It has: {known}.");
            return Ok(Err(Unlisted::NoCluster(why)));
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
