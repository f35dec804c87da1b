//! Answers to what a planner will most likely ask, read at the same time: one question after the other, a plan takes as many
//! round trips as it has questions.
//!
//! Nothing depends on it. What could not be answered is left for the planner to ask.

use futures_util::future::{join_all, join3};
use walpoint_base::{Lsn, SegmentNo, TimelineId};
use walpoint_plan::restore::{Answer, Likely, Question};

use super::LineageCatalog;
use super::inventory::{Expected, TimelineWal};
use super::search::group_may;
use crate::index::GroupSummary;

/// Timelines that are looked at at the same time: each takes some hundred kilobytes meanwhile.
const TIMELINES: usize = 8;

impl LineageCatalog {
    /// Answers at the same time what is likely to be asked.
    pub async fn look_ahead(&mut self, likely: Likely) {
        let start = likely.start.map(|start| SegmentNo::of(start, self.facts().segment_size));
        let mut timelines = likely.timelines;
        timelines.retain(|timeline| self.wal(*timeline).is_none());
        // The newest ones: of the others perhaps none is on the way.
        timelines.drain(..timelines.len().saturating_sub(TIMELINES));
        let this = &*self;
        let may_stop =
            |summary: &GroupSummary| likely.rule.as_ref().is_some_and(|rule| group_may(rule, summary));
        let wal = timelines.iter().map(|timeline| {
            let expected = Expected { start, may_stop: Some(&may_stop), ..this.expected(*timeline) };
            TimelineWal::load_near(this.archive(), *timeline, expected)
        });
        let backups = likely.backups.into_iter().filter(|id| this.facts().backup(*id).is_err());
        let standings = backups.map(|id| async move { (id, this.backups().standing(id).await) });
        let announced = async {
            match this.are_announcements_known() {
                true => None,
                false => Some(this.backups().announcements().await),
            }
        };
        let (wal, standings, announced) = join3(join_all(wal), join_all(standings), announced).await;
        if let Some(announced) = announced {
            self.take_announcements(announced).await;
        }
        for (timeline, wal) in timelines.into_iter().zip(wal) {
            if let Ok(wal) = wal {
                let answer = self.take_wal(timeline, wal);
                self.presume(Question::Wal(timeline), answer);
            }
        }
        for (id, standing) in standings {
            if let Ok(state) = self.backup(standing).await {
                self.presume(Question::Backup(id), Answer::Backup(state));
            }
        }
    }

    /// About where a timeline's WAL ends: what is known before any of it is listed.
    pub(super) fn expected(&self, timeline: TimelineId) -> Expected<'static> {
        let facts = self.facts();
        let backup = facts.backups.iter().rev().find(|id| id.timeline() == timeline).map(|id| id.start());
        let begin = facts.graph.history(timeline).and_then(|history| history.begin_of(timeline));
        let newest: Option<Lsn> = facts.graph.left_at(timeline).chain(backup).chain(begin).max();
        let newest = newest.filter(|newest| newest.is_valid());
        let newest = newest.map(|newest| SegmentNo::of(newest, facts.segment_size));
        Expected { newest, ..Expected::default() }
    }
}
