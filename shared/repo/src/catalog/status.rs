//! What a cluster has, as data.

mod document;

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::{BackupId, SegmentNo, SegmentSize, TimelineId};
use walpoint_plan::restore::windows::{self, Window};
use walpoint_plan::restore::{BackupState, Consistency, Facts, SegmentRange, Unusable};
use walpoint_plan::retention::Damage;
use walpoint_storage::error::{RepoError, Result};

pub use self::document::{
    BackupDetails, BackupStatus, BreakStatus, ClusterStatus, DamagedLineageStatus, ForkStatus, LineageStatus,
    ParentStatus, SegmentsDocument, TimelineStatus, WindowStatus,
};
use super::points::Newest;
use super::{BrokenChain, Catalog, LineageCatalog};
use crate::backup::{
    AnnouncementReason, BackupStage, BackupSummary, Backups, ListedBackup, ListedState, ManifestState,
    NumberedAnnouncement, backups_to_delete,
};
use crate::lineage::DamagedLineage;

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
            lineage.look_at_damaged_manifests().await?;
            lineages.push(lineage.status(newest).await?);
        }
        let mut backups: Vec<BackupStatus> = self.backups().iter().map(BackupStatus::of).collect();
        let announced = Backups::of(self.repository(), self.cluster()).announcements().await?.read;
        let (mut details, damaged) = self.details(newest, &announced).await?;
        for (backup, listed) in backups.iter_mut().zip(self.backups()) {
            backup.details = details.remove(&listed.id);
            backup.manifest_damage = match listed.lost_its_manifest() {
                true => self.is_lost(listed.id).then(|| "its manifest is lost".to_owned()),
                false if backup.details.is_some() => None,
                false => (backup.state == BackupStage::Finished && damaged.contains(&listed.id))
                    .then(|| "its manifest is damaged".to_owned()),
            };
            if listed.lost_its_manifest() && backup.manifest_damage.is_some() {
                backup.state = BackupStage::Finished;
            }
            backup.damaged_page_count = backup.details.as_ref().map(|details| details.damaged_pages);
        }
        let going = backups_to_delete(&announced);
        backups.retain(|one| one.state != BackupStage::Unfinished || !going.contains(&one.id));
        Ok(ClusterStatus {
            cluster: self.cluster().clone(),
            repository: self.repository().name().to_owned(),
            url: self.repository().store().name().to_owned(),
            time: self.loaded(),
            lineages,
            damaged_lineages: self.damaged_lineages().iter().map(DamagedLineageStatus::from).collect(),
            backups,
        })
    }

    /// Whether a backup that was finished is not being deleted, and has lost its manifest.
    fn is_lost(&self, id: BackupId) -> bool {
        let lost = Ok(&BackupState::Unusable(Unusable::LostManifest));
        self.lineages().iter().any(|lineage| lineage.facts().backup(id) == lost)
    }

    /// What the summaries of finished backups say; of those that are in no summary object, of the newest ones only. And those whose
    /// manifests are damaged.
    async fn details(
        &mut self,
        newest: Newest,
        announced: &[NumberedAnnouncement],
    ) -> Result<(BTreeMap<BackupId, BackupDetails>, BTreeSet<BackupId>)> {
        let reader = Backups::of(self.repository(), self.cluster());
        let finished = self.backups().iter().filter(|one| matches!(one.state, ListedState::Finished(_)));
        let finished: Vec<BackupId> = finished.map(|listed| listed.id).collect();
        let mut summaries: BTreeMap<BackupId, BackupSummary> = BTreeMap::new();
        let mut damaged = BTreeSet::new();
        for (id, standing) in reader.standings(&finished, newest.backups).await? {
            match standing {
                Ok(ManifestState::Finished(summary)) => drop(summaries.insert(id, *summary)),
                Err(RepoError::Corrupt { .. }) => drop(damaged.insert(id)),
                // Told where it is looked for.
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        let found = announced.iter().map(|one| &one.announcement);
        let found = found.filter(|one| one.reason == AnnouncementReason::Damaged);
        damaged.extend(found.flat_map(|one| one.backups.iter().copied()));
        let uses = summaries.iter().map(|(id, summary)| (*id, summary.parents.clone())).collect();
        let found = reader.found_damaged(&uses, announced).await?;
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
                let announced = lineage.announcements().unwrap_or(announced).to_vec();
                let lacking = lineage.lacks(wal, &announced).await?;
                (damage.segments, damage.history) = (lacking.segments, lacking.history);
            }
            details.insert(id, BackupDetails::of(&summary, damage));
        }
        Ok((details, damaged))
    }
}

impl From<&DamagedLineage> for DamagedLineageStatus {
    fn from(damaged: &DamagedLineage) -> Self {
        Self {
            lineage: damaged.id,
            object: damaged.key.to_string(),
            error: format!("{}\nHINT: {}", damaged.what, damaged.remedy()),
        }
    }
}

impl BackupDetails {
    fn of(summary: &BackupSummary, damage: Damage) -> Self {
        let (facts, totals) = (&summary.facts, &summary.totals);
        Self {
            label: facts.label.clone(),
            lineage: facts.lineage,
            kind: summary.kind(),
            method: facts.method,
            from_standby: facts.from_standby,
            stop_time: facts.ended,
            seconds: facts.ended.duration_since(facts.started).as_secs_f64(),
            file_bytes: totals.bytes,
            new_bytes: totals.new_bytes,
            stored_bytes: totals.stored,
            page_count: totals.blocks,
            data_checksums: facts.data_checksums,
            damaged_pages: totals.bad_pages,
            damaged_pack_count: damage.packs,
            damaged_segment_count: damage.segments,
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
            lineage: self.id(),
            parent,
            postgresql_major: self.lineage().major,
            segment_bytes: self.lineage().segment_size.bytes(),
            timelines,
            restore_points,
            older_restore_points,
            errors: self.problems(),
            settlements: self.settled().to_vec(),
        })
    }

    async fn parent_status(&mut self) -> Result<Option<ParentStatus>> {
        let Some(parent) = self.lineage().parent else { return Ok(None) };
        let has_own_backup = self.has_own_backup().await?;
        Ok(Some(ParentStatus {
            lineage: parent.lineage,
            timeline: parent.fork.map(|fork| fork.timeline),
            lsn: parent.fork.map(|fork| fork.lsn),
            has_own_backup,
        }))
    }

    fn timeline_status(&self, parts: &TimelineParts) -> TimelineStatus {
        let size = self.lineage().segment_size;
        let wal = self.wal(parts.timeline);
        let name = |number: SegmentNo| number.name(parts.timeline, size);
        let parent = self.facts().graph.history(parts.timeline).and_then(|h| h.parent());
        TimelineStatus {
            timeline: parts.timeline,
            parent: parent.map(|p| ForkStatus { timeline: p.parent, lsn: p.switch, reason: p.reason }),
            first_segment: wal.and_then(|w| w.runs().first()).map(name),
            last_segment: wal.and_then(|w| w.runs().last()).map(name),
            segment_count: wal.map_or(0, |w| w.runs().count()),
            stored_bytes: wal.map_or(0, |w| w.runs().stored()),
            windows: parts.windows.iter().map(WindowStatus::of).collect(),
            gaps: parts.gaps.iter().map(|range| SegmentsDocument::of(range, size)).collect(),
            breaks: parts.breaks.iter().map(|broken| self.break_status(broken)).collect(),
            damaged_segments: wal.map_or_else(Vec::new, |w| w.damaged().iter().map(|n| name(*n)).collect()),
        }
    }
}

impl LineageCatalog {
    fn break_status(&self, broken: &BrokenChain) -> BreakStatus {
        let mut backups = self.facts().backups.iter();
        BreakStatus {
            segment: broken.segment,
            reason: broken.fault.to_string(),
            split_brain: broken.is_split_brain(),
            has_later_backup: backups
                .any(|id| !self.facts().is_ruled_out(*id) && self.begins_behind(*id, broken.segment)),
        }
    }
}

impl WindowStatus {
    fn of(window: &Window) -> Self {
        Self {
            from_lsn: window.from,
            from_time: window.from_time,
            until_lsn: window.until,
            until_time: window.until_time,
            continues_parent: window.continued,
            oldest_backup: window.oldest,
            backup_count: window.backups,
        }
    }
}

impl BackupStatus {
    fn of(listed: &ListedBackup) -> Self {
        Self {
            id: listed.id,
            timeline: listed.id.timeline(),
            start_lsn: listed.id.start(),
            start_time: listed.id.started(),
            state: listed.state.stage(),
            damaged_page_count: None,
            details: None,
            manifest_damage: None,
        }
    }
}

impl SegmentsDocument {
    /// Of a range.
    pub fn of(range: &SegmentRange, size: SegmentSize) -> Self {
        let (first, last) = range.names(size);
        Self { first_segment: first, last_segment: last, segment_count: range.count() }
    }
}
