//! The backup without which a lineage cannot be recovered on its newest timeline, or on one that is written beside that, stays,
//! whatever the rules say, unless it was asked to be deleted by name. A server that was promoted is on its timeline from then on, though
//! it has archived nothing but the history.
//!
//! Rules by number and date do not know which branch is in use: after a recovery to a point in time, the newest backups are
//! those of the branch that was left.

use std::collections::BTreeSet;

use walpoint_base::{BackupId, LineageId, TimelineId};

use super::decide::{Decision, RetentionVerdict};
use super::facts::{Candidate, RetainedLineage, RetentionFacts};
use super::reason::{Base, RetentionReason};
use super::window::newest_of;

/// Keeps the backup that a lineage is recovered from, with the WAL after it, if no other one does that stays; and every one that it
/// may have to be recovered from while that is not known.
pub(super) fn keep(life: &RetainedLineage, decisions: &mut [Decision]) {
    let doubtful = |decision: &&mut Decision| life.may_inherit.contains(&decision.backup.id);
    for decision in decisions.iter_mut().filter(doubtful).filter(|decision| !decision.is_requested()) {
        decision.stay(RetentionReason::Base(life.lineage, Base::Unknown), RetentionVerdict::Onward);
    }
    let left: Vec<&Candidate> = decisions
        .iter()
        .filter(|decision| !decision.is_requested())
        .map(|decision| &decision.backup)
        .collect();
    if !left.iter().any(|backup| backup.lineage == life.lineage) {
        let base = base(life, left.iter().copied());
        if let Some(decision) = decisions.iter_mut().find(|decision| Some(decision.backup.id) == base) {
            decision.stay(RetentionReason::Base(life.lineage, Base::NoBackup), RetentionVerdict::Onward);
        }
        return;
    }
    life.in_use().into_iter().for_each(|timeline| keep_path(life, timeline, decisions));
}

/// The lineages that were split off behind a backup, are recovered from it, and have none of their own.
pub(super) fn begin_with(facts: &RetentionFacts, id: BackupId) -> impl Iterator<Item = LineageId> {
    let asked = |backup: &&Candidate| facts.requests.iter().any(|request| request.backup == backup.id);
    let begins = move |life: &&RetainedLineage| {
        if facts.backups.iter().any(|backup| backup.lineage == life.lineage) {
            return false;
        }
        let others = facts.backups.iter().filter(|backup| !asked(backup));
        base(life, others).or_else(|| base(life, facts.backups.iter())) == Some(id)
    };
    facts.lives.iter().filter(begins).map(|life| life.lineage)
}

/// The lineages of which it is not known whether they are recovered from a backup.
pub(super) fn may_begin_with(facts: &RetentionFacts, id: BackupId) -> impl Iterator<Item = LineageId> {
    facts.lives.iter().filter(move |life| life.may_inherit.contains(&id)).map(|life| life.lineage)
}

/// The lineages in use, with backups of their own, and the timelines in use of each that can be reached from this backup and, with
/// those of `gone` deleted, from no other one of which no less can be had.
pub(super) fn reached_only_from<'a>(
    facts: &'a RetentionFacts,
    backup: &'a Candidate,
    gone: &'a BTreeSet<BackupId>,
) -> impl Iterator<Item = (LineageId, TimelineId)> + 'a {
    let stays = |other: &&Candidate| other.id != backup.id && !gone.contains(&other.id);
    let others = move || facts.backups.iter().filter(stays);
    let in_use = facts.lives.iter().flat_map(|life| life.in_use().into_iter().map(move |of| (life, of)));
    in_use.filter_map(move |(life, timeline)| {
        let leads = |backup: &Candidate| {
            life.leads_from(backup, timeline) || life.leads_from_parent(backup, timeline)
        };
        let has_own = backup.lineage == life.lineage || others().any(|other| other.lineage == life.lineage);
        let is_cut_off = life.is_cut_off(backup, timeline);
        let as_good = |other: &Candidate| {
            other.soundness() >= backup.soundness() && (is_cut_off || !life.is_cut_off(other, timeline))
        };
        let alone = has_own && leads(backup) && !others().any(|other| leads(other) && as_good(other));
        alone.then_some((life.lineage, timeline))
    })
}

/// Which of these backups a lineage without one of its own is recovered from. Before it has WAL, whatever leads to the fork.
fn base<'a>(
    life: &RetainedLineage,
    backups: impl Iterator<Item = &'a Candidate> + Clone,
) -> Option<BackupId> {
    let newest = life.newest();
    let on_path = |backup: &&Candidate| newest.is_some_and(|newest| life.leads_from_parent(backup, newest));
    let inherited = backups.filter(|backup| life.inherits.contains(&backup.id));
    newest_of(inherited.clone().filter(on_path)).or_else(|| newest_of(inherited)).map(|backup| backup.id)
}

/// The newest backup that leads to the timeline stays, so that what is dropped is never wanted again; with the WAL after it, unless
/// an older one keeps that. Where WAL is missing behind it, the newest one stays as well behind which none is.
fn keep_path(life: &RetainedLineage, timeline: TimelineId, decisions: &mut [Decision]) {
    keep_newest(life, timeline, decisions, |_| true);
    keep_newest(life, timeline, decisions, |backup| !life.is_cut_off(backup, timeline));
}

fn keep_newest(
    life: &RetainedLineage,
    timeline: TimelineId,
    decisions: &mut [Decision],
    counts: impl Fn(&Candidate) -> bool,
) {
    let leads = |backup: &Candidate| {
        (life.leads_from(backup, timeline) || life.leads_from_parent(backup, timeline)) && counts(backup)
    };
    let pool = decisions.iter().filter(|decision| leads(&decision.backup) && !decision.is_requested());
    let Some(best) = newest_of(pool.clone().map(|decision| &decision.backup)) else { return };
    let leads_on = |decision: &Decision| {
        decision.verdict == RetentionVerdict::Onward
            && decision.backup.lineage == life.lineage
            && decision.backup.soundness() == best.soundness()
    };
    let led = pool.clone().any(leads_on);
    let (best, own) = (best.id, best.lineage == life.lineage);
    let path = match life.newest() == Some(timeline) {
        true => RetentionReason::Path(timeline),
        false if life.has_only_begun(timeline) => RetentionReason::PathBegun(timeline),
        false => RetentionReason::PathBeside(timeline),
    };
    let Some(decision) = decisions.iter_mut().find(|decision| decision.backup.id == best) else { return };
    match (own, led) {
        (true, true) if decision.stays() => {}
        (true, true) => decision.stay(path, RetentionVerdict::Alone),
        (true, false) => decision.stay(path, RetentionVerdict::Onward),
        (false, _) if decision.is_base_of(life.lineage, timeline) => {}
        (false, _) => {
            decision.stay(RetentionReason::Base(life.lineage, Base::Path(timeline)), RetentionVerdict::Onward)
        }
    }
}

impl Decision {
    /// Whether it stays already as that from which a lineage is recovered on a timeline.
    fn is_base_of(&self, lineage: LineageId, timeline: TimelineId) -> bool {
        let of_it = |reason: &RetentionReason| matches!(reason, RetentionReason::Base(of, Base::Path(on)) if (*of, *on) == (lineage, timeline));
        self.reasons.iter().any(of_it)
    }

    /// It stays for one more reason.
    fn stay(&mut self, reason: RetentionReason, verdict: RetentionVerdict) {
        if !self.stays() {
            self.reasons.clear();
        }
        self.verdict = verdict;
        self.reasons.push(reason);
    }
}
