//! What this process knows of a lineage in one repository: the histories that are there, the newest segments that it stored
//! there itself, and what was refused as another server's.
//!
//! What always holds: it is all of one lineage. When the data directory is bound to another one, all of it is forgotten.
//! Nothing here survives the process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use walpoint_base::{LineageId, SegmentName, TimelineHistory, TimelineId};

use super::identity::SplitBrain;

/// Segments remembered, the newest: more than are uploaded at once.
const SEGMENTS: usize = 256;

/// A lineage, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    lineage: Option<LineageId>,
    /// With the file beside the WAL that was compared with what is stored, if there was one.
    histories: BTreeMap<TimelineId, (Option<Vec<u8>>, Arc<TimelineHistory>)>,
    stored: VecDeque<SegmentName>,
    /// Segments that are being stored now.
    under_way: Vec<SegmentName>,
    /// Timelines of which this process stored a segment, or found it stored with the same content.
    claimed: BTreeSet<TimelineId>,
    /// With the first segment that was refused, if it was one.
    refused: BTreeMap<TimelineId, (SplitBrain, Option<SegmentName>)>,
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
        self.stored.contains(&name)
            || (self.claimed.contains(&name.timeline) && self.under_way.contains(&name))
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

    /// A segment was stored. It shows whose the timeline is.
    pub(super) fn add(&mut self, name: SegmentName) {
        self.claimed.insert(name.timeline);
        self.refused.remove(&name.timeline);
        self.stored.push_back(name);
        if self.stored.len() > SEGMENTS {
            self.stored.pop_front();
        }
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

    #[test]
    fn segments_wait_for_the_one_before_until_one_is_stored() {
        let mut known = Known::default();
        known.of(LineageId { system_id: SystemId(7), n: 1 });
        assert!(known.begin(segment(2, 5), Some(segment(1, 4))));
        assert!(!known.begin(segment(2, 6), Some(segment(2, 5))), "5 may turn out to be another server's");
        assert!(!known.vouches_for(segment(2, 5)));
        known.end(segment(2, 5));
        assert!(known.begin(segment(2, 6), Some(segment(2, 5))));
        known.add(segment(2, 6));
        assert!(known.begin(segment(2, 7), Some(segment(2, 6))), "the timeline is ours");
        assert!(known.begin(segment(2, 8), Some(segment(2, 7))) && known.vouches_for(segment(2, 8)));
    }

    #[test]
    fn another_lineage_begins_with_nothing() {
        let mut known = Known::default();
        let lineage = |n| LineageId { system_id: SystemId(7), n };
        known.of(lineage(1)).add(segment(1, 4));
        assert!(known.of(lineage(1)).vouches_for(segment(1, 4)));
        known.begin(segment(1, 5), None);
        assert!(!known.of(lineage(2)).vouches_for(segment(1, 4)));
        assert!(!known.begin(segment(1, 6), Some(segment(1, 5))), "it is still being stored");
    }
}
