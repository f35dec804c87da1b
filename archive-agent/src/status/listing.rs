//! What an encrypted repository shows without its key: names are authenticated, not secret.
//!
//! What cannot be told from names is not guessed: no window, no gap, no content.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, ClusterName, LineageId, Lsn, SegmentName, TimelineId, WalFileName};
use walpoint_storage::descriptor::Descriptor;
use walpoint_storage::layout::{self, ClusterPaths, WalEntry, WalPaths};
use walpoint_storage::store::{Store, StoreSettings};
use walpoint_storage::{RepoError, found};

/// What the names of a cluster's objects show.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct Listing {
    /// Its lineages.
    lineages: Vec<LineageNames>,
    /// Its backups.
    backups: Vec<BackupNames>,
}

/// What names show of a lineage.
#[derive(Debug, Serialize, JsonSchema)]
struct LineageNames {
    /// The lineage.
    lineage: LineageId,
    /// Its timelines.
    timelines: Vec<TimelineNames>,
}

/// What names show of a timeline.
#[derive(Debug, Serialize, JsonSchema)]
struct TimelineNames {
    /// The timeline.
    timeline: TimelineId,
    /// Its first segment. Absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_segment: Option<SegmentName>,
    /// Its last segment. Absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_segment: Option<SegmentName>,
}

/// What names show of a backup.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct BackupNames {
    /// Its id.
    id: BackupId,
    /// When it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<jiff::Timestamp>,
    /// The timeline on which it started.
    timeline: TimelineId,
    /// The position from which recovery replays WAL.
    start_lsn: Lsn,
    /// Whether it has a manifest: it was finished, or aborted.
    has_manifest: bool,
}

impl Listing {
    /// Lists what an encrypted repository has of a cluster; `None` if it is not encrypted.
    pub(super) async fn of(
        settings: &StoreSettings,
        cluster: &ClusterName,
    ) -> Result<Option<Self>, RepoError> {
        let store = Store::open(settings).await?;
        let Some(bytes) = found(store.get(&layout::descriptor()).await)? else { return Ok(None) };
        if Descriptor::parse(store.name(), &bytes)?.encryption.is_none() {
            return Ok(None);
        }
        let paths = ClusterPaths::new(cluster);
        let mut listing = Self { lineages: Vec::new(), backups: backups(&store, &paths).await? };
        let prefix = paths.lineages();
        for entry in store.list_all(&prefix).await? {
            if let Some(id) = entry.key.below(&prefix).and_then(|name| name.parse::<LineageId>().ok()) {
                let timelines = timelines(&store, &paths.wal(id)).await?;
                listing.lineages.push(LineageNames { lineage: id, timelines });
            }
        }
        Ok(Some(listing))
    }

    /// For a person.
    pub(super) fn text(&self) -> String {
        let mut text = "  without the key only names can be read:\n".to_owned();
        // Writing to a String cannot fail.
        for lineage in &self.lineages {
            writeln!(text, "\nLineage {}", lineage.lineage).ok();
            for t in &lineage.timelines {
                match (&t.first_segment, &t.last_segment) {
                    (Some(first), Some(last)) => {
                        writeln!(text, "  Timeline {}: segments from {first} to {last}", t.timeline).ok()
                    }
                    _ => writeln!(text, "  Timeline {}: no segment", t.timeline).ok(),
                };
            }
        }
        writeln!(text, "\n{}", if self.backups.is_empty() { "No backup." } else { "Backups" }).ok();
        for backup in &self.backups {
            let started = backup.start_time.map(|t| t.to_string()).unwrap_or_default();
            let state = if backup.has_manifest { "finished, or aborted" } else { "unfinished" };
            writeln!(text, "  {}  {started}  timeline {}  {state}", backup.id, backup.timeline).ok();
        }
        text
    }
}

async fn backups(store: &Store, paths: &ClusterPaths) -> Result<Vec<BackupNames>, RepoError> {
    let prefix = paths.backups();
    let mut backups: Vec<BackupNames> = Vec::new();
    for entry in store.list_all(&prefix).await? {
        let Some((id, name)) = entry.key.below(&prefix).and_then(|name| name.split_once('/')) else {
            continue;
        };
        let Ok(id) = id.parse::<BackupId>() else { continue };
        if backups.last().is_none_or(|last| last.id != id) {
            backups.push(BackupNames {
                id,
                start_time: id.started(),
                timeline: id.timeline(),
                start_lsn: id.start(),
                has_manifest: false,
            });
        }
        if let Some(last) = backups.last_mut() {
            last.has_manifest |= name == "manifest";
        }
    }
    Ok(backups)
}

async fn timelines(store: &Store, paths: &WalPaths) -> Result<Vec<TimelineNames>, RepoError> {
    let mut timelines = Vec::new();
    for name in store.list_dirs(&paths.timelines()).await? {
        let Some(timeline) = u32::from_str_radix(&name, 16).ok().and_then(TimelineId::new) else { continue };
        let mut logs = store.list_dirs(&paths.timeline(timeline)).await?;
        logs.sort_unstable();
        let logs: Vec<u32> = logs.iter().filter_map(|log| u32::from_str_radix(log, 16).ok()).collect();
        let first = match logs.first() {
            Some(log) => segments(store, paths, timeline, *log).await?.into_iter().min(),
            None => None,
        };
        let last = match logs.last() {
            Some(log) => segments(store, paths, timeline, *log).await?.into_iter().max(),
            None => None,
        };
        timelines.push(TimelineNames { timeline, first_segment: first, last_segment: last });
    }
    Ok(timelines)
}

/// The whole segments of one log (4 GiB of WAL positions).
async fn segments(
    store: &Store,
    paths: &WalPaths,
    timeline: TimelineId,
    log: u32,
) -> Result<Vec<SegmentName>, RepoError> {
    let entries = store.list_all(&paths.log(timeline, log)).await?;
    let segment = |entry: &walpoint_storage::store::ListedObject| match paths.parse(&entry.key)? {
        WalEntry::File(WalFileName::Segment(name)) => Some(name),
        _ => None,
    };
    Ok(entries.iter().filter_map(segment).collect())
}
