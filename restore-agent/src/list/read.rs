//! What one repository holds of a cluster, or why that is not known.

use anyhow::anyhow;
use futures_util::future::join_all;
use walpoint_base::{
    BackupId, ClusterName, LineageId, Lsn, PgTimestamp, SegmentName, SegmentNo, SegmentSize, TimelineId,
};
use walpoint_pg::wal::{RecordKind, RecordReader};
use walpoint_repo::catalog::status::{ClusterStatus, WindowStatus};
use walpoint_repo::catalog::{Catalog, Newest};
use walpoint_repo::{Lineage, Repository, cpu};
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

/// The latest commit of a lineage that can be recovered on the path to a timeline, what was streamed of its open segment included; `None`
/// if no repository that can be read shows one.
pub(crate) async fn newest_commit(
    selection: &Selection<StoreSettings>,
    lineage: &Lineage,
    timeline: TimelineId,
) -> Option<PgTimestamp> {
    let newest = Newest { backups: 0, restore_points: 0 };
    let read = selection.repositories.iter();
    let read = read.map(|(name, settings)| Listed::of(name, settings, &selection.cluster, newest));
    let listed = join_all(read).await;
    let streamed = selection.repositories.iter().zip(&listed).map(|((name, settings), listed)| async move {
        let ends = windows(listed, lineage.id, timeline).map(|window| window.until_lsn);
        let (segment, until) = open_segment(ends.max()?, timeline, lineage.segment_size)?;
        newest_streamed((name, settings), lineage, segment, until).await
    });
    let streamed = join_all(streamed).await.into_iter().flatten().max();
    latest_time(&listed, lineage.id, timeline).max(streamed)
}

/// The latest time in what was listed of a timeline. Others have commits of their own.
pub(super) fn latest_time(
    listed: &[Listed],
    lineage: LineageId,
    timeline: TimelineId,
) -> Option<PgTimestamp> {
    let windows = listed.iter().flat_map(|one| windows(one, lineage, timeline));
    windows.filter_map(|window| window.until_time).max()
}

/// The windows of a timeline.
fn windows(
    listed: &Listed,
    lineage: LineageId,
    timeline: TimelineId,
) -> impl Iterator<Item = &WindowStatus> + '_ {
    let lineages = listed.contents.iter().flat_map(|contents| &contents.status.lineages);
    let timelines = lineages.filter(move |one| one.lineage == lineage).flat_map(|one| &one.timelines);
    timelines.filter(move |one| one.timeline == timeline).flat_map(|one| &one.windows)
}

/// The segment in which a window ends, and where, unless it ends with a whole one: the time of a window is that of whole segments.
pub(super) fn open_segment(
    until: Lsn,
    timeline: TimelineId,
    size: SegmentSize,
) -> Option<(SegmentName, Lsn)> {
    let number = SegmentNo::of(until, size);
    (until > number.start(size)).then(|| (number.name(timeline, size), until))
}

/// The latest commit in what a repository has of the open segment. Where that cannot be read, the window says what is certain.
async fn newest_streamed(
    (name, settings): (&str, &StoreSettings),
    lineage: &Lineage,
    segment: SegmentName,
    until: Lsn,
) -> Option<PgTimestamp> {
    let read = async {
        let repository = Repository::open(name, &settings.impatient()).await?;
        repository.wal_to_read(lineage).await?.get_incomplete(segment).await
    };
    let file = read.await.unwrap_or_else(|error| {
        tracing::debug!("what was streamed of {segment} to repository \"{name}\" could not be read: {error}");
        None
    })?;
    cpu::run(move || latest_in(segment, &file.content, until)).await.ok().flatten()
}

/// The latest time of a transaction's end in the beginning of a segment, as far as that can be decoded.
fn latest_in(segment: SegmentName, content: &[u8], until: Lsn) -> Option<PgTimestamp> {
    let mut reader = RecordReader::new();
    let records = reader.segment(segment, content).ok()?.map_while(Result::ok);
    let times = records.take_while(|record| record.end <= until).filter_map(|record| match record.kind {
        RecordKind::Commit(end) | RecordKind::Abort(end) => Some(end.time),
        _ => None,
    });
    times.max()
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
