//! Which backups a recovery window needs.
//!
//! A moment on a timeline is recovered from a backup that ended before it on the path to that timeline. So for every
//! timeline that was in use in the window, the newest backup that ended before the window begins it, and all that ended in
//! it belong to it. When a backup ended is taken for as late as it can be: what is taken for older than it is would push out the one
//! before it, and with it the moments in between. Backups whose label has a rule of its own follow that rule; only where no other backup reaches as far
//! back are they needed too. What a lineage wrote between the fork and its first own backup is recovered from its parent's. Where the one that begins the window is known to be damaged, the newest sound one before it begins
//! it as well; where WAL is missing behind it, the newest one before it behind which none is.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use walpoint_base::{BackupId, LineageId, TimelineId};

use super::facts::{Candidate, RetainedLineage, Soundness};

/// What the window wants.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Wanted {
    /// Backups in the window.
    pub(super) within: BTreeSet<BackupId>,
    /// Backups with which it begins on a timeline.
    pub(super) begins: BTreeMap<BackupId, TimelineId>,
    /// Backups with which it begins in lineages that were split off behind them.
    pub(super) bases: BTreeMap<BackupId, BTreeSet<LineageId>>,
}

/// Goes through the timelines in use since `begin`. `labelled` says whether a backup follows a rule of its label's.
pub(super) fn wanted(
    lives: &[RetainedLineage],
    backups: &[Candidate],
    begin: Timestamp,
    labelled: impl Fn(&Candidate) -> bool,
) -> Wanted {
    let mut wanted = Wanted::default();
    for life in lives {
        for timeline in life.in_use_after(begin) {
            let mut path: Vec<&Candidate> =
                backups.iter().filter(|backup| life.leads_from(backup, timeline)).collect();
            path.sort_by_key(|backup| (backup.complete_by, backup.id.start(), backup.id));
            let (before, within): (Vec<&Candidate>, Vec<&Candidate>) =
                path.into_iter().partition(|backup| backup.complete_by <= begin);
            let general = |backup: &&&Candidate| !labelled(backup);
            wanted.within.extend(within.iter().filter(general).map(|backup| backup.id));
            if !before.iter().any(|backup| backup.is_sound())
                && let Some(base) = base(life, backups, timeline)
            {
                wanted.bases.entry(base.id).or_default().insert(life.lineage);
            }
            let newest = || before.iter().rev();
            let base = newest().find(general);
            let better = Soundness::BEST_FIRST.into_iter().filter_map(|level| {
                let so_good = |backup: &&&Candidate| backup.soundness() >= level;
                newest().filter(so_good).find(general).or(newest().find(so_good))
            });
            for begin in base.or(before.last()).into_iter().chain(better) {
                wanted.begins.entry(begin.id).or_insert(timeline);
            }
            let reaches = |backup: &&&Candidate| !life.is_cut_off(backup, timeline);
            if !base.iter().any(reaches) {
                if let Some(begin) = newest().find(reaches) {
                    wanted.begins.entry(begin.id).or_insert(timeline);
                }
                // Whatever is older than the first general one reaches where that does not.
                let first = within.iter().find(|b| general(b) && reaches(b)).map(|backup| backup.complete_by);
                let older = within.iter().take_while(|b| first.is_none_or(|first| b.complete_by < first));
                wanted.within.extend(older.map(|backup| backup.id));
            }
        }
    }
    wanted
}

/// The backup that leads from a lineage's parent to what the lineage wrote on a timeline: the newest sound one, if there is one.
fn base<'a>(life: &RetainedLineage, backups: &'a [Candidate], timeline: TimelineId) -> Option<&'a Candidate> {
    // A timeline on which it wrote nothing is its parent's.
    life.timelines.get(&timeline)?.written?;
    let leads = backups.iter().filter(|backup| life.leads_from_parent(backup, timeline));
    newest_of(leads)
}

/// The newest, by position, of those of which most can be had.
pub(super) fn newest_of<'a>(backups: impl Iterator<Item = &'a Candidate>) -> Option<&'a Candidate> {
    backups.max_by_key(|backup| (backup.soundness(), backup.id.start(), backup.id))
}
