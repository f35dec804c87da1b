//! What this process knows of a lineage in one repository: the histories that are there, the newest segments that it stored
//! there itself, what `pg_wal` could not be made to remember, and what was refused as another server's.
//!
//! What always holds: it is all of one lineage, and of one start of the server on one directory of WAL. When the data directory
//! is bound to another lineage, or was put back to an earlier state, all of it is forgotten. Nothing here survives the process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use walpoint_base::{LineageId, SegmentName, TimelineHistory, TimelineId};

use super::claim::SegmentClaim;
use super::fork::Forks;
use super::postmaster::{ServerStart, started};
use super::split_brain::SplitBrain;

/// Segments remembered, the newest: more than are uploaded at once.
const SEGMENTS: usize = 256;

/// Whose WAL lies in a directory, as far as names cannot tell: of which start of the server, in which directory. Both change when
/// a data directory is put back to an earlier state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Incarnation {
    server: Option<ServerStart>,
    /// Device and inode of `pg_wal`.
    directory: Option<(u64, u64)>,
}

impl Incarnation {
    /// Of a data directory, now. Blocks.
    pub(super) fn of(pgdata: &Path) -> Self {
        let directory = std::fs::metadata(pgdata.join("pg_wal")).ok();
        Self { server: started(pgdata), directory: directory.map(|meta| (meta.dev(), meta.ino())) }
    }
}

/// A lineage, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    lineage: Option<LineageId>,
    incarnation: Option<Incarnation>,
    /// With the file beside the WAL that was compared with what is stored, if there was one.
    histories: BTreeMap<TimelineId, (Option<Vec<u8>>, Arc<TimelineHistory>)>,
    stored: VecDeque<SegmentName>,
    /// Segments that are being stored now.
    under_way: Vec<SegmentName>,
    /// Timelines of which this process stored a segment that was not there.
    claimed: BTreeSet<TimelineId>,
    /// The newest segment of each timeline that `pg_wal` should remember and does not, because that could not be written.
    unnoted: BTreeMap<TimelineId, SegmentClaim>,
    /// With the first segment that was refused, if it was one.
    refused: BTreeMap<TimelineId, (SplitBrain, Option<SegmentName>)>,
    /// Histories that are stored and damaged, while this server has its own; what is wrong.
    damaged: BTreeMap<TimelineId, String>,
    /// Of the timelines that are stored.
    pub(super) forks: Forks,
}

impl Known {
    /// Forgets what is known of another lineage.
    pub(super) fn of(&mut self, lineage: LineageId) -> &mut Self {
        if self.lineage != Some(lineage) {
            // What is under way ends by itself.
            let under_way = std::mem::take(&mut self.under_way);
            *self = Self { lineage: Some(lineage), under_way, ..Self::default() };
        }
        self
    }

    /// Forgets everything.
    pub(super) fn forget(&mut self) {
        // What is under way ends by itself.
        let under_way = std::mem::take(&mut self.under_way);
        *self = Self { under_way, ..Self::default() };
    }

    /// Forgets what is known of the same server before it was started anew, or of another directory.
    pub(super) fn since(&mut self, incarnation: Incarnation) {
        if self.incarnation != Some(incarnation) {
            let (lineage, under_way) = (self.lineage, std::mem::take(&mut self.under_way));
            *self = Self { lineage, incarnation: Some(incarnation), under_way, ..Self::default() };
        }
    }

    /// A history that is stored, if the file beside the WAL is still the one that was compared with it.
    pub(super) fn history(
        &self,
        timeline: TimelineId,
        beside: Option<&[u8]>,
    ) -> Option<Arc<TimelineHistory>> {
        let (compared, history) = self.histories.get(&timeline)?;
        (compared.as_deref() == beside).then(|| Arc::clone(history))
    }

    /// Remembers a history that is stored.
    pub(super) fn add_history(&mut self, beside: Option<Vec<u8>>, history: Arc<TimelineHistory>) {
        self.histories.insert(history.timeline(), (beside, history));
    }

    /// Whether a segment is known to be this server's: this process stored it, or is about to on a timeline that is known to be.
    pub(super) fn vouches_for(&self, name: SegmentName) -> bool {
        self.has_stored(name) || (self.claimed.contains(&name.timeline) && self.under_way.contains(&name))
    }

    /// Whether this process stored a segment, or found it there and read it: one that it is about to store may be there, damaged.
    pub(super) fn has_stored(&self, name: SegmentName) -> bool {
        self.stored.contains(&name)
    }

    /// Whether a segment of the timeline is known to be this server's.
    pub(super) fn has_claimed(&self, timeline: TimelineId) -> bool {
        self.claimed.contains(&timeline)
    }

    /// A segment begins to be stored, unless it has to wait for the one before it: while nothing shows whose the timeline is,
    /// one after the other.
    pub(super) fn begin(&mut self, name: SegmentName, before: Option<SegmentName>) -> bool {
        let waits = !self.claimed.contains(&name.timeline)
            && before.is_some_and(|before| self.under_way.contains(&before));
        if !waits {
            self.under_way.push(name);
        }
        !waits
    }

    /// A segment is no longer being stored.
    pub(super) fn end(&mut self, name: SegmentName) {
        if let Some(at) = self.under_way.iter().position(|other| *other == name) {
            self.under_way.swap_remove(at);
        }
    }

    /// A segment was stored, `anew` if it was not there before: that shows whose the timeline is. What was stored before two
    /// servers parted does not. Nothing is known of a segment that another incarnation read.
    pub(super) fn add(&mut self, name: SegmentName, anew: bool, incarnation: Incarnation) {
        if self.incarnation != Some(incarnation) {
            return;
        }
        if anew {
            self.claimed.insert(name.timeline);
        }
        let first = self.refused.get(&name.timeline).map(|(_, first)| *first);
        if first.is_some_and(|first| first.is_none_or(|first| first <= name)) {
            self.refused.remove(&name.timeline);
        }
        self.stored.push_back(name);
        if self.stored.len() > SEGMENTS {
            self.stored.pop_front();
        }
    }

    /// `pg_wal` could not be made to remember a segment that is this server's. It counts as noted, which does not vouch for what follows.
    pub(super) fn add_unnoted(&mut self, claim: SegmentClaim, incarnation: Incarnation) {
        if self.incarnation != Some(incarnation) {
            return;
        }
        let newest = self.unnoted.entry(claim.segment.timeline).or_insert(claim);
        if newest.segment <= claim.segment {
            *newest = claim;
        }
    }

    /// The newest segment of a timeline that could not be noted.
    pub(super) fn unnoted(&self, timeline: TimelineId) -> Option<SegmentClaim> {
        self.unnoted.get(&timeline).copied()
    }

    /// Something was refused as another server's.
    pub(super) fn refuse(&mut self, split: SplitBrain, segment: Option<SegmentName>) {
        self.claimed.remove(&split.timeline());
        self.stored.retain(|name| name.timeline != split.timeline());
        let before = self.refused.get(&split.timeline()).and_then(|(_, first)| *first);
        let first = before.into_iter().chain(segment).min();
        self.refused.insert(split.timeline(), (split, first));
    }

    /// What was refused of a timeline before a segment: which segment, and why.
    pub(super) fn refused_before(&self, name: SegmentName) -> Option<(SegmentName, SplitBrain)> {
        let (split, first) = self.refused.get(&name.timeline)?;
        first.filter(|first| *first < name).map(|first| (first, split.clone()))
    }

    /// What was refused no longer waits.
    pub(super) fn forget_refusal(&mut self, timeline: TimelineId) {
        self.refused.remove(&timeline);
    }

    /// A stored history is damaged.
    pub(super) fn add_damaged(&mut self, timeline: TimelineId, what: String) {
        self.damaged.insert(timeline, what);
    }

    /// What is wrong with stored histories.
    pub(super) fn damaged(&self) -> Vec<String> {
        self.damaged.values().cloned().collect()
    }

    /// What was refused, and nothing of its timeline stored since.
    pub(super) fn refused(&self) -> Vec<SplitBrain> {
        self.refused.values().map(|(split, _)| split.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::SystemId;

    use super::*;

    fn segment(timeline: u32, segment: u32) -> SegmentName {
        SegmentName { timeline: TimelineId::new(timeline).unwrap(), log: 0, segment }
    }

    const INCARNATION: Incarnation = Incarnation { server: None, directory: None };

    fn known(n: u32) -> Known {
        let mut known = Known::default();
        known.of(LineageId { system_id: SystemId(7), n });
        known.since(INCARNATION);
        known
    }

    #[test]
    fn another_start_or_directory_begins_with_nothing() {
        let mut known = known(1);
        known.add(segment(1, 4), true, INCARNATION);
        known.since(INCARNATION);
        assert!(known.vouches_for(segment(1, 4)) && known.has_claimed(TimelineId::FIRST));
        for next in [
            Incarnation { server: Some(ServerStart { pid: 1, start: 2 }), directory: None },
            Incarnation { server: None, directory: Some((1, 2)) },
        ] {
            known.since(INCARNATION);
            known.add(segment(1, 4), true, INCARNATION);
            known.since(next);
            assert!(!known.vouches_for(segment(1, 4)) && !known.has_claimed(TimelineId::FIRST));
            known.add(segment(1, 5), true, INCARNATION);
            assert!(!known.vouches_for(segment(1, 5)), "it was read before");
        }
    }

    #[test]
    fn segments_wait_for_the_one_before_until_one_is_stored() {
        let mut known = known(1);
        assert!(known.begin(segment(2, 5), Some(segment(1, 4))));
        assert!(!known.begin(segment(2, 6), Some(segment(2, 5))), "5 may turn out to be another server's");
        assert!(!known.vouches_for(segment(2, 5)));
        known.end(segment(2, 5));
        known.add(segment(2, 5), false, INCARNATION);
        assert!(known.vouches_for(segment(2, 5)) && !known.has_claimed(segment(2, 5).timeline));
        assert!(known.begin(segment(2, 6), Some(segment(2, 5))));
        known.add(segment(2, 6), true, INCARNATION);
        assert!(known.begin(segment(2, 7), Some(segment(2, 6))), "the timeline is ours");
        assert!(known.begin(segment(2, 8), Some(segment(2, 7))) && known.vouches_for(segment(2, 8)));
        assert!(!known.has_stored(segment(2, 8)), "what is there under that name was not read yet");
    }

    #[test]
    fn another_lineage_begins_with_nothing() {
        let mut known = Known::default();
        let lineage = |n| LineageId { system_id: SystemId(7), n };
        known.of(lineage(1)).since(INCARNATION);
        known.of(lineage(1)).add(segment(1, 4), true, INCARNATION);
        assert!(known.of(lineage(1)).vouches_for(segment(1, 4)));
        known.begin(segment(1, 5), None);
        assert!(!known.of(lineage(2)).vouches_for(segment(1, 4)));
        assert!(!known.begin(segment(1, 6), Some(segment(1, 5))), "it is still being stored");
    }
}
