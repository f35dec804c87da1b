//! The latest commit time in what a new backup holds.
//!
//! A backup serves a target time only if it holds nothing that was committed later, and clocks are set back. WAL tells it for as
//! long as it is there; a backup notes it for the time after that ([`crate::backup::BackupFacts::latest_commit`]), and takes over
//! what the one before it on its path notes.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use walpoint_base::{BackupId, ClusterName, LineageId, Lsn, PgTimestamp, SegmentNo, TimelineId};
use walpoint_plan::restore::{Asking, Facts, Path};
use walpoint_storage::error::{RepoError, Result};

use super::search::Search;
use super::{Catalog, LineageCatalog};
use crate::Repository;
use crate::backup::ListedState;

/// A commit time that lies further behind the moment at which the store had the backup was that of a clock far ahead. What is
/// restored to a time a day after that moment cannot hold anything later, so this is not handed on for ever.
const FAR_AHEAD: SignedDuration = SignedDuration::from_hours(24);

/// Backups that are asked for what they note, the nearest first.
const LOOKS: usize = 8;

/// The latest time at which a transaction ended before the segment in which a backup of the lineage starts, on the path to
/// `timeline`: by the WAL that is there, and by what earlier backups note of WAL that no longer is. `None`: none is known.
pub async fn latest_commit_before(
    repository: &Repository,
    cluster: &ClusterName,
    lineage: LineageId,
    timeline: TimelineId,
    start: Lsn,
) -> Result<Option<PgTimestamp>> {
    let mut catalog = Catalog::load(repository, cluster).await?;
    for damaged in catalog.damaged_lineages() {
        tracing::warn!(repository = repository.name(), "{damaged}");
    }
    let stored = catalog.backups().iter().filter_map(|listed| match listed.state {
        ListedState::Finished(stored) => Some((listed.id, stored)),
        _ => None,
    });
    let stored = stored.collect();
    let lineage = catalog.lineages_mut().iter_mut().find(|one| one.id() == lineage);
    match lineage {
        Some(lineage) => lineage.latest_commit_before(timeline, start, &stored).await,
        None => Ok(None),
    }
}

impl LineageCatalog {
    async fn latest_commit_before(
        &mut self,
        timeline: TimelineId,
        start: Lsn,
        stored: &BTreeMap<BackupId, Timestamp>,
    ) -> Result<Option<PgTimestamp>> {
        // The index tells when transactions ended in a segment that was found damaged since.
        self.believe_found_damaged();
        let present = |facts: &Facts| Path::to(facts, timeline).map(|path| path.present()).transpose();
        if self.ask(None, present).await?.is_none() {
            return Ok(None);
        }
        let segment = SegmentNo::of(start, self.facts.segment_size);
        let mut search = Search::new(&self.archive, &mut self.wal, None);
        let found = match search.latest_before(&self.facts, timeline, segment).await {
            Ok(found) => found,
            // A damaged segment prevents no backup.
            Err(error @ (RepoError::Corrupt { .. } | RepoError::NotFound { .. })) => {
                tracing::warn!("could not determine when transactions before the backup ended: {error}");
                None
            }
            Err(error) => return Err(error),
        };
        let noted = self.ask(None, |facts| noted(facts, timeline, start, stored)).await?;
        Ok(found.max(noted))
    }
}

/// What the nearest backup before a position notes, of those on the path to a timeline.
fn noted(
    facts: &Facts,
    timeline: TimelineId,
    start: Lsn,
    stored: &BTreeMap<BackupId, Timestamp>,
) -> Asking<Option<PgTimestamp>> {
    let Some(path) = Path::to(facts, timeline) else { return Ok(None) };
    let before = |id: &&BackupId| {
        id.start() <= start
            && stored.contains_key(id)
            && path.history().timeline_at(id.start()) == id.timeline()
    };
    let mut listed: Vec<BackupId> = facts.backups.iter().filter(before).copied().collect();
    listed.sort_by_key(|id| Reverse((id.start(), *id)));
    for id in listed.into_iter().take(LOOKS) {
        let backup = facts.complete_backup(id)?.filter(|backup| path.holds(backup));
        if let Some(latest) = backup.and_then(|backup| backup.latest_commit) {
            let bound = stored.get(&id).and_then(|stored| stored.checked_add(FAR_AHEAD).ok());
            return Ok(Some(bound.map_or(latest, |bound| latest.min(PgTimestamp::from_time(bound)))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use walpoint_base::{LineageId, PgMajor, SegmentSize};
    use walpoint_plan::graph::TimelineGraph;
    use walpoint_plan::restore::{Answer, BackupFacts, BackupState, Question};

    use super::*;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 + hours * 3600).unwrap()
    }

    /// A note is handed on along a path and to no other one, and one of a clock that was years ahead ends a day behind the moment
    /// at which the store had it.
    #[test]
    fn a_note_is_handed_on_along_its_path() {
        let (one, two) = (TimelineId::FIRST, TimelineId::new(2).unwrap());
        let lineage: LineageId = "7400000000000000001-1".parse().unwrap();
        let mut graph = TimelineGraph::default();
        graph.add(walpoint_base::TimelineHistory::parse(two, b"1\t0/300\tx\n").unwrap());
        // Timeline 1 goes on behind the fork, with a later note.
        let made = [(one, 0x100, None), (one, 0x200, Some(5)), (one, 0x400, Some(9)), (two, 0x500, None)];
        let mut stored = BTreeMap::new();
        let mut known: Vec<BackupFacts> = Vec::new();
        for ((timeline, start, noted), n) in made.into_iter().zip(0..) {
            let id = BackupId::new(at(n), timeline, Lsn(start), 0);
            stored.insert(id, at(n));
            known.push(BackupFacts {
                id,
                lineage,
                end: Lsn(start + 0x10),
                end_timeline: timeline,
                started: PgTimestamp::from_time(at(n)),
                ended: PgTimestamp::from_time(at(n)),
                latest_commit: noted.map(|hours| PgTimestamp::from_time(at(hours))),
                label: String::new(),
                bytes: 0,
                block_bytes: 0,
                damaged_pages: 0,
                damaged_packs: 0,
                damaged_manifest: false,
                damaged_segments: 0,
            });
        }
        let handed = |known: &[BackupFacts], timeline, start| {
            let ids = known.iter().map(|backup| backup.id).collect();
            let (major, size) = (PgMajor::new(17).unwrap(), SegmentSize::DEFAULT);
            let mut facts = Facts::new(lineage, major, size, graph.clone(), ids);
            for backup in known {
                let state = BackupState::Complete(Box::new(backup.clone()));
                facts.answer(Question::Backup(backup.id), Answer::Backup(state));
            }
            noted(&facts, timeline, Lsn(start), &stored).unwrap().map(PgTimestamp::to_time)
        };
        assert_eq!(handed(&known, one, 0x150), None);
        assert_eq!(handed(&known, one, 0x250), Some(at(5)));
        assert_eq!(handed(&known, one, 0x600), Some(at(9)));
        assert_eq!(handed(&known, two, 0x600), Some(at(5)), "not what was committed on the other branch");
        known[1].latest_commit = Some(PgTimestamp::from_time(at(100_000)));
        assert_eq!(handed(&known, two, 0x600), Some(at(1 + 24)));
    }
}
