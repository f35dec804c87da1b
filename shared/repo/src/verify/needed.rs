//! Which WAL is needed: by the decisions that the run began with, and, before anything counts as lost, by those of the moment.
//! `expire` may run at the same time, and takes an announcement back in the run that deletes what it names: that a segment is
//! no longer announced does not mean that it has to be there.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use walpoint_base::{LineageId, SegmentName, SegmentNo, TimelineId};
use walpoint_plan::reach::{WalNeed, WalRoots};
use walpoint_plan::restore::{Facts, SegmentRange};
use walpoint_plan::retention::{Candidate, Decision, RetentionReason, RetentionVerdict};
use walpoint_plan::runs::{Runs, SegmentRun};
use walpoint_storage::error::Result;

use super::Run;
use crate::backup::{AnnouncementReason, NumberedAnnouncement};
use crate::catalog::LineageCatalog;
use crate::expire::outlook;
use crate::lineage::Lineage;
use crate::wal::WalArchive;

/// For so long decisions are those of the moment, unless something is announced or taken back: what is announced is deleted
/// after its grace period, and not at once. Decisions that took longer hold as long again: made anew for each of a thousand gaps,
/// they would keep a run for hours, and they are never of a more recent moment than that.
const MOMENT: Duration = Duration::from_secs(5);

/// The WAL of a lineage that is needed.
pub(super) struct Needed {
    /// By these backups with all that came after them.
    pub(super) onward: Vec<Candidate>,
    /// By these up to where they are consistent.
    pub(super) alone: Vec<Candidate>,
    pub(super) need: WalNeed,
}

/// What was decided last, and when.
pub(super) struct Latest {
    made: Instant,
    /// How long that took.
    took: Duration,
    /// What was announced before, by number.
    announced: Vec<u64>,
    decisions: Vec<Decision>,
}

impl Latest {
    /// Whether its decisions are those of the moment, in which that is announced.
    fn holds(&self, announced: &[u64]) -> bool {
        self.announced == announced && self.made.elapsed() < self.took.max(MOMENT)
    }
}

impl Run<'_> {
    /// What the backups that are looked at need of a lineage.
    pub(super) fn needed_by(&self, lineage: &Lineage, decisions: &[Decision]) -> Needed {
        let here = |decision: &&Decision| {
            let base = decision.reasons.iter().any(
                |why| matches!(why, RetentionReason::Base(of, base) if *of == lineage.id && base.is_known()),
            );
            (decision.backup.lineage == lineage.id || base) && self.ids.contains(&decision.backup.id)
        };
        let of = |verdicts: &[RetentionVerdict]| -> Vec<Candidate> {
            let some = decisions.iter().filter(here).filter(|d| verdicts.contains(&d.verdict));
            some.map(|decision| decision.backup.clone()).collect()
        };
        let (onward, alone) = match self.options.backup {
            Some(_) => {
                (Vec::new(), of(&[RetentionVerdict::Onward, RetentionVerdict::Alone, RetentionVerdict::Drop]))
            }
            None => (of(&[RetentionVerdict::Onward]), of(&[RetentionVerdict::Alone, RetentionVerdict::Drop])),
        };
        let need = match self.graphs.get(&lineage.id) {
            Some(graph) => WalNeed::of(&WalRoots {
                graph,
                size: lineage.segment_size,
                onward: &onward,
                alone: &alone,
                unfinished: &[],
                in_use: false,
                beside: &[],
            }),
            None => WalNeed::everything(),
        };
        Needed { onward, alone, need }
    }

    /// Whether a segment that is missing is needed still, so that nothing but an accident can have taken it.
    pub(super) async fn is_needed_now(&mut self, archive: &WalArchive, name: SegmentName) -> Result<bool> {
        let lineage = archive.lineage().clone();
        let Some(number) = name.number(lineage.segment_size) else { return Ok(true) };
        let one = SegmentRange { timeline: name.timeline, first: number, last: number };
        Ok(self.lost(&lineage, &one, &WalNeed::everything()).await?.is_some())
    }

    /// Whether a segment that could not be read was deleted meanwhile, and nothing needs it.
    pub(super) async fn was_deleted(&mut self, archive: &WalArchive, name: SegmentName) -> Result<bool> {
        let is_there = archive.repository().store().head(&archive.paths().segment(name)).await?.is_some();
        Ok(!is_there && !self.is_needed_now(archive, name).await?)
    }

    /// What of a lineage is needed now, if anything of these segments is that was neither announced to be deleted nor is out of
    /// reach since. `need`: what the run began with.
    pub(super) async fn lost(
        &mut self,
        lineage: &Lineage,
        gap: &SegmentRange,
        need: &WalNeed,
    ) -> Result<Option<Needed>> {
        if !need.needs_any(gap.timeline, gap.first, gap.last) {
            return Ok(None);
        }
        let announced = self.backups.announcements().await?.read;
        let going = going(&announced, lineage.id, gap.timeline);
        if !is_needed_beside(need, gap, &going) {
            return Ok(None);
        }
        let numbers = announced.iter().map(|one| one.n).collect();
        let now = self.needed_now(lineage, numbers).await?;
        Ok(is_needed_beside(&now.need, gap, &going).then_some(now))
    }

    /// What is needed of a lineage by what is there now. `announced`: what is announced, by number.
    async fn needed_now(&mut self, lineage: &Lineage, announced: Vec<u64>) -> Result<Needed> {
        let latest = match self.latest.take().filter(|latest| latest.holds(&announced)) {
            Some(latest) => latest,
            None => {
                let begun = Instant::now();
                let outlook = outlook(self.repository, self.cluster, self.policy, Timestamp::now()).await?;
                let (made, took) = (Instant::now(), begun.elapsed());
                Latest { made, took, announced, decisions: outlook.decisions }
            }
        };
        let needed = self.needed_by(lineage, &latest.decisions);
        self.latest = Some(latest);
        Ok(needed)
    }
}

/// The segments of a timeline that are announced to be deleted.
fn going(announced: &[NumberedAnnouncement], lineage: LineageId, timeline: TimelineId) -> Runs {
    let expired = announced.iter().filter(|one| one.announcement.reason == AnnouncementReason::Expired);
    let mut runs = Runs::default();
    for wal in expired.flat_map(|one| &one.announcement.wal) {
        if (wal.lineage, wal.timeline) == (lineage, timeline) {
            let (first, last) = wal.segments();
            runs.add(SegmentRun { first, last, stored: 0 });
        }
    }
    runs
}

/// Whether anything of a gap is needed beside these segments of its timeline.
fn is_needed_beside(need: &WalNeed, gap: &SegmentRange, going: &Runs) -> bool {
    let SegmentRange { timeline, first, last } = *gap;
    let mut from = first;
    for run in going.iter().filter(|run| run.last >= first && run.first <= last) {
        if run.first > from && need.needs_any(timeline, from, SegmentNo(run.first.0 - 1)) {
            return true;
        }
        from = SegmentNo(run.last.0.saturating_add(1));
    }
    from <= last && need.needs_any(timeline, from, last)
}

/// The segments of a timeline that are needed and believed to be there.
pub(super) async fn wanted(
    catalog: &mut LineageCatalog,
    need: &WalNeed,
    timeline: TimelineId,
) -> Result<Runs> {
    let runs = catalog.ask(None, |facts: &Facts| facts.wal(timeline).cloned()).await?;
    let (mut wanted, size) = (Runs::default(), catalog.lineage().segment_size);
    for run in runs.iter() {
        for n in (run.first.0..=run.last.0).map(SegmentNo) {
            // What is inherited is verified with the parent.
            if need.needs(timeline, n) && !catalog.archive().inherits(n.name(timeline, size)) {
                wanted.insert(n, 0);
            }
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decisions that are slow to make are not made anew for each gap.
    #[test]
    fn slow_decisions_hold_as_long_as_they_took() {
        let of = |took| {
            let (made, took) = (Instant::now(), Duration::from_secs(took));
            Latest { made, took, announced: vec![3], decisions: Vec::new() }
        };
        assert!(of(60).holds(&[3]) && of(0).holds(&[3]));
        assert!(!of(60).holds(&[3, 4]) && !of(60).holds(&[]), "something was announced or taken back");
        let ago = |latest: Latest, seconds| {
            let made = latest.made.checked_sub(Duration::from_secs(seconds)).unwrap();
            Latest { made, ..latest }.holds(&[3])
        };
        assert!(ago(of(60), 50) && !ago(of(60), 61) && !ago(of(1), 6));
    }
}
