//! What a cluster has, as data: what `archive-agent status --json` prints. Stable: members are added, never renamed or
//! removed. Times are RFC 3339 in UTC, positions and names as PostgreSQL writes them, sizes in bytes.

use std::collections::BTreeMap;

use serde::Serialize;
use walpoint_base::{BackupId, PgTimestamp, SegmentNo, SegmentSize, TimelineId};
use walpoint_plan::restore::windows::{self, Consistency, Window};
use walpoint_plan::restore::{Facts, SegmentRange};
use walpoint_plan::retention::Damage;
use walpoint_storage::error::{RepoError, Result};

use super::points::{Newest, RestorePointStatus};
use super::{BrokenChain, Catalog, LineageCatalog};
use crate::backup::{
    BackupKind, BackupStage, BackupSummary, Backups, ListedBackup, ListedState, ManifestState, Method,
};
use crate::lineage::DamagedLineage;

/// A cluster in a repository.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: String,
    /// What the configuration calls the repository.
    pub repository: String,
    /// Where it is, without secrets.
    pub store: String,
    /// When the listings were taken.
    pub taken: String,
    /// Its lineages, oldest first.
    pub lineages: Vec<LineageStatus>,
    /// Lineages whose facts are damaged: nothing else is known of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged_lineages: Vec<DamagedLineageStatus>,
    /// Every backup listed, of all lineages, oldest first.
    pub backups: Vec<BackupStatus>,
}

/// Consecutive segments.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SegmentsDocument {
    /// The name of the first one.
    pub first: String,
    /// The name of the last one.
    pub last: String,
    /// How many.
    pub count: u64,
}

/// A lineage whose facts are damaged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DamagedLineageStatus {
    /// Its id.
    pub lineage: String,
    /// The object that holds its facts.
    pub object: String,
    /// What is wrong with it, and what to do.
    pub what: String,
}

/// One life of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LineageStatus {
    /// Its id.
    pub lineage: String,
    /// The lineage that it was split off from; absent for one that was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentStatus>,
    /// PostgreSQL's major version.
    pub postgresql: u8,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// Its timelines, lowest id first.
    pub timelines: Vec<TimelineStatus>,
    /// The newest named restore points that lie in a window, oldest first.
    pub restore_points: Vec<RestorePointStatus>,
    /// How many older ones do.
    #[serde(skip)]
    pub older_restore_points: usize,
    /// What could not be read.
    pub problems: Vec<String>,
    /// Timelines that two servers claimed or that were abandoned, and what a person says about it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub settled: Vec<String>,
}

/// The lineage that another one was split off from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ParentStatus {
    /// Its id.
    pub lineage: String,
    /// The timeline of the fork; absent where no common WAL is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// All WAL before this is common to both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    /// Whether the lineage has a finished backup of its own. Until it has, it depends on one of its parent's.
    pub own_backup: bool,
}

/// A timeline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TimelineStatus {
    /// Its id.
    pub timeline: u32,
    /// Where it comes from; absent for one without a parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<ForkStatus>,
    /// The first segment in the archive; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_segment: Option<String>,
    /// The last segment in the archive; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_segment: Option<String>,
    /// How many segments can be replayed.
    pub segments: u64,
    /// Bytes that they take in the repository.
    pub stored_bytes: u64,
    /// What can be recovered, oldest first.
    pub windows: Vec<WindowStatus>,
    /// Segments missing between those that are there, or that cannot be replayed.
    pub gaps: Vec<SegmentsDocument>,
    /// Segments that do not continue the one before them: recovery cannot pass.
    pub breaks: Vec<BreakStatus>,
    /// Segments that are there and damaged; they are in `gaps` too.
    pub damaged: Vec<String>,
}

/// A segment that does not continue the one before it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BreakStatus {
    /// The segment.
    pub segment: String,
    /// What does not fit, as a sentence without its subject.
    pub what: String,
    /// Whether it says that two servers wrote the timeline's WAL.
    pub split_brain: bool,
    /// Whether a backup was taken since from which recovery begins behind it.
    pub passed: bool,
}

/// A fork.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ForkStatus {
    /// The parent.
    pub timeline: u32,
    /// Where it was left.
    pub lsn: String,
    /// PostgreSQL's reason.
    pub reason: String,
}

/// A range in which every moment can be recovered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct WindowStatus {
    /// Where it begins.
    pub from_lsn: String,
    /// The time there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_time: Option<String>,
    /// Where it ends.
    pub until_lsn: String,
    /// The latest transaction in it; target times must lie before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_time: Option<String>,
    /// Whether it goes on from the parent timeline and begins at the fork.
    pub continued: bool,
    /// The backup that it begins with.
    pub oldest_backup: String,
    /// Backups in it.
    pub backups: usize,
}

/// A backup, as far as a listing tells.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct BackupStatus {
    /// Its id.
    pub id: String,
    /// The timeline it started on.
    pub timeline: u32,
    /// Where recovery from it begins.
    pub start_lsn: String,
    /// When it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// How far it came.
    pub state: BackupStage,
    /// Pages that failed their checksum when it was taken; absent where that was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged_pages: Option<u64>,
    /// What its summary says; absent where that was not read.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub details: Option<BackupDetails>,
}

/// What the summary of a finished backup says.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct BackupDetails {
    /// Its label; may be empty.
    pub label: String,
    /// The lineage whose WAL it needs.
    pub lineage: String,
    /// Whether it uses blocks of other backups.
    pub kind: BackupKind,
    /// How the cluster was read.
    pub method: Method,
    /// Whether a standby was backed up.
    pub from_standby: bool,
    /// When it ended.
    pub ended: String,
    /// How long it took.
    pub seconds: f64,
    /// Bytes of the files that it restores.
    pub bytes: u64,
    /// Of these, bytes that it stored itself, before compression.
    pub new_bytes: u64,
    /// What it added to the repository: bytes of its packs.
    pub stored_bytes: u64,
    /// Blocks of files that are not all zero.
    pub pages: u64,
    /// Whether the cluster had page checksums.
    pub checksums: bool,
    /// As `damaged_pages`.
    #[serde(skip)]
    pub bad_pages: u64,
    /// Packs with blocks of it that `verify` found damaged or missing.
    pub damaged_packs: u64,
    /// Segments without which it does not become consistent that are missing, or that `verify` found damaged.
    pub damaged_segments: u64,
    /// All that is wrong with it, in words; `None` if nothing is known to be.
    pub damage: Option<String>,
}

/// The parts that a status is made of, and that the drawing needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimelineParts {
    /// The timeline.
    pub timeline: TimelineId,
    /// What can be recovered.
    pub windows: Vec<Window>,
    /// What is missing.
    pub gaps: Vec<SegmentRange>,
    /// Where segments do not continue each other.
    pub breaks: Vec<BrokenChain>,
}

impl Catalog {
    /// Reads the index and the tail of every timeline and draws up what can be recovered.
    pub async fn status(&mut self) -> Result<ClusterStatus> {
        self.status_of(Newest::default()).await
    }

    /// The same with another number of backups and restore points.
    pub async fn status_of(&mut self, newest: Newest) -> Result<ClusterStatus> {
        let mut lineages = Vec::new();
        for lineage in self.lineages_mut() {
            lineages.push(lineage.status(newest).await?);
        }
        let mut backups: Vec<BackupStatus> = self.backups().iter().map(BackupStatus::of).collect();
        let mut details = self.details(newest).await?;
        for (backup, listed) in backups.iter_mut().zip(self.backups()) {
            backup.details = details.remove(&listed.id);
            backup.damaged_pages = backup.details.as_ref().map(|details| details.bad_pages);
        }
        Ok(ClusterStatus {
            cluster: self.cluster().to_string(),
            repository: self.repository().name().to_owned(),
            store: self.repository().store().name().to_owned(),
            taken: self.loaded().to_string(),
            lineages,
            damaged_lineages: self.damaged_lineages().iter().map(DamagedLineageStatus::from).collect(),
            backups,
        })
    }

    /// What the summaries of finished backups say; of those that are in no summary object, of the newest ones only.
    async fn details(&mut self, newest: Newest) -> Result<BTreeMap<BackupId, BackupDetails>> {
        let reader = Backups::of(self.repository(), self.cluster());
        let finished = self.backups().iter().filter(|one| matches!(one.state, ListedState::Finished(_)));
        let finished: Vec<BackupId> = finished.map(|listed| listed.id).collect();
        let mut summaries: BTreeMap<BackupId, BackupSummary> = BTreeMap::new();
        for (id, standing) in reader.standings(&finished, newest.backups).await? {
            match standing {
                Ok(ManifestState::Finished(summary)) => drop(summaries.insert(id, *summary)),
                // Told where it is looked for.
                Ok(_) | Err(RepoError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let announced = reader.announcements().await?;
        let uses = summaries.iter().map(|(id, summary)| (*id, summary.parents.clone())).collect();
        let found = reader.found_damaged(&uses, &announced.read).await?;
        let mut details = BTreeMap::new();
        for (id, summary) in summaries {
            let facts = &summary.facts;
            let mut damage = Damage { pages: summary.totals.bad_pages, ..Damage::default() };
            if let Some(found) = found.get(&id) {
                (damage.packs, damage.manifest) = (found.packs, found.manifest);
            }
            let (end, end_timeline) = (facts.stop_lsn, facts.stop_timeline);
            let wal = Consistency { start: id.start(), end, end_timeline };
            let lineage = self.lineages_mut().iter_mut().find(|lineage| lineage.id() == facts.lineage);
            if let Some(lineage) = lineage {
                lineage.know_announcements().await;
                let announced = lineage.announcements().unwrap_or(&announced.read).to_vec();
                let lacking = lineage.lacks(wal, &announced).await?;
                (damage.segments, damage.history) = (lacking.segments, lacking.history);
            }
            details.insert(id, BackupDetails::of(&summary, damage));
        }
        Ok(details)
    }
}

impl From<&DamagedLineage> for DamagedLineageStatus {
    fn from(damaged: &DamagedLineage) -> Self {
        Self {
            lineage: damaged.id.to_string(),
            object: damaged.key.to_string(),
            what: format!("{}; {}", damaged.what, damaged.remedy()),
        }
    }
}

impl BackupDetails {
    fn of(summary: &BackupSummary, damage: Damage) -> Self {
        let (facts, totals) = (&summary.facts, &summary.totals);
        Self {
            label: facts.label.clone(),
            lineage: facts.lineage.to_string(),
            kind: summary.kind(),
            method: facts.method,
            from_standby: facts.from_standby,
            ended: facts.ended.to_string(),
            seconds: facts.ended.duration_since(facts.started).as_secs_f64(),
            bytes: totals.bytes,
            new_bytes: totals.new_bytes,
            stored_bytes: totals.stored,
            pages: totals.blocks,
            checksums: facts.data_checksums,
            bad_pages: totals.bad_pages,
            damaged_packs: damage.packs,
            damaged_segments: damage.segments,
            damage: (damage != Damage::default()).then(|| damage.to_string()),
        }
    }
}

impl LineageCatalog {
    /// The windows and gaps of every timeline, lowest id first.
    pub async fn parts(&mut self) -> Result<Vec<TimelineParts>> {
        let timelines: Vec<TimelineId> = self.facts().graph.ids().collect();
        let mut breaks = BTreeMap::new();
        for timeline in &timelines {
            breaks.insert(*timeline, self.breaks(*timeline).await?);
        }
        let mut parts = Vec::new();
        for timeline in timelines {
            let of = |facts: &Facts| {
                let windows = windows::of_timeline(facts, timeline)?;
                Ok(TimelineParts {
                    timeline,
                    windows,
                    gaps: windows::gaps(facts, timeline)?,
                    breaks: Vec::new(),
                })
            };
            let mut part = self.ask(None, of).await?;
            part.gaps.retain(|gap| self.is_promised(gap));
            part.breaks = breaks.remove(&timeline).unwrap_or_default();
            parts.push(part);
        }
        Ok(parts)
    }

    async fn status(&mut self, newest: Newest) -> Result<LineageStatus> {
        let parts = self.parts().await?;
        let (restore_points, older_restore_points) =
            self.restore_points(&parts, newest.restore_points).await?;
        let timelines = parts.iter().map(|parts| self.timeline_status(parts)).collect();
        let parent = self.parent_status().await?;
        Ok(LineageStatus {
            lineage: self.id().to_string(),
            parent,
            postgresql: self.lineage().major.get(),
            segment_size: self.lineage().segment_size.bytes(),
            timelines,
            restore_points,
            older_restore_points,
            problems: self.problems(),
            settled: self.settled().to_vec(),
        })
    }

    async fn parent_status(&mut self) -> Result<Option<ParentStatus>> {
        let Some(parent) = self.lineage().parent else { return Ok(None) };
        let own_backup = self.has_own_backup().await?;
        Ok(Some(ParentStatus {
            lineage: parent.lineage.to_string(),
            timeline: parent.fork.map(|fork| fork.timeline.get()),
            lsn: parent.fork.map(|fork| fork.lsn.to_string()),
            own_backup,
        }))
    }

    fn timeline_status(&self, parts: &TimelineParts) -> TimelineStatus {
        let size = self.lineage().segment_size;
        let wal = self.wal(parts.timeline);
        let name = |number: SegmentNo| number.name(parts.timeline, size).to_string();
        let parent = self.facts().graph.history(parts.timeline).and_then(|h| h.parent());
        TimelineStatus {
            timeline: parts.timeline.get(),
            parent: parent.map(|p| ForkStatus {
                timeline: p.parent.get(),
                lsn: p.switch.to_string(),
                reason: p.reason,
            }),
            first_segment: wal.and_then(|w| w.runs().first()).map(name),
            last_segment: wal.and_then(|w| w.runs().last()).map(name),
            segments: wal.map_or(0, |w| w.runs().count()),
            stored_bytes: wal.map_or(0, |w| w.runs().stored()),
            windows: parts.windows.iter().map(WindowStatus::of).collect(),
            gaps: parts.gaps.iter().map(|range| SegmentsDocument::of(range, size)).collect(),
            breaks: parts.breaks.iter().map(|broken| self.break_status(broken)).collect(),
            damaged: wal.map_or_else(Vec::new, |w| w.damaged().iter().map(|n| name(*n)).collect()),
        }
    }
}

impl LineageCatalog {
    fn break_status(&self, broken: &BrokenChain) -> BreakStatus {
        let mut backups = self.facts().backups.iter();
        BreakStatus {
            segment: broken.segment.to_string(),
            what: broken.fault.to_string(),
            split_brain: broken.is_split_brain(),
            passed: backups
                .any(|id| !self.facts().is_ruled_out(*id) && self.begins_behind(*id, broken.segment)),
        }
    }
}

impl WindowStatus {
    fn of(window: &Window) -> Self {
        let text = |at: Option<PgTimestamp>| at.map(time);
        Self {
            from_lsn: window.from.to_string(),
            from_time: text(window.from_time),
            until_lsn: window.until.to_string(),
            until_time: text(window.until_time),
            continued: window.continued,
            oldest_backup: window.oldest.to_string(),
            backups: window.backups,
        }
    }
}

impl BackupStatus {
    fn of(listed: &ListedBackup) -> Self {
        Self {
            id: listed.id.to_string(),
            timeline: listed.id.timeline().get(),
            start_lsn: listed.id.start().to_string(),
            started: listed.id.started().map(|t| t.to_string()),
            state: listed.state.stage(),
            damaged_pages: None,
            details: None,
        }
    }
}

impl SegmentsDocument {
    /// Of a range.
    pub fn of(range: &SegmentRange, size: SegmentSize) -> Self {
        let (first, last) = range.names(size);
        Self { first: first.to_string(), last: last.to_string(), count: range.count() }
    }
}

/// RFC 3339, UTC, to the microsecond.
pub fn time(time: PgTimestamp) -> String {
    time.to_time().to_string()
}
