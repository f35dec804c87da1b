//! A decision for each backup.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use walpoint_base::{BackupId, LineageId, TimelineId};

use super::facts::{Candidate, RetentionFacts, Soundness};
use super::family::families;
use super::in_use;
use super::policy::{Policy, Rule, since};
use super::reason::{Base, Period, RetentionReason};
use super::request::granted;
use super::window::wanted;
use crate::succession::{SeenServers, settle, settle_latest};

/// A greater difference is a reason to delete nothing.
pub const CLOCK_LIMIT: SignedDuration = SignedDuration::from_mins(5);

/// What becomes of a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetentionVerdict {
    /// It stays, and all WAL after it that can be replayed on it.
    Onward,
    /// It stays, and only the WAL that makes it consistent.
    Alone,
    /// It goes.
    Drop,
}

/// What becomes of a backup, and why.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The backup.
    pub backup: Candidate,
    /// What becomes of it.
    pub verdict: RetentionVerdict,
    /// Why; never empty.
    pub reasons: Vec<RetentionReason>,
    /// Whether it is older than [`Policy::max_age`], kept or not.
    pub exceeds_max_age: bool,
}

impl Decision {
    /// Whether it stays.
    pub fn stays(&self) -> bool {
        self.verdict != RetentionVerdict::Drop
    }

    /// Whether it goes because it was asked for by name.
    pub fn is_requested(&self) -> bool {
        self.reasons.iter().any(|reason| matches!(reason, RetentionReason::Requested(..)))
    }

    /// Why, in one sentence without its subject.
    pub fn because(&self) -> String {
        let reasons: Vec<String> = self.reasons.iter().map(RetentionReason::to_string).collect();
        reasons.join("; ")
    }
}

/// Decides about every backup, oldest first. Times that contradict the positions of backups are brought in line with them:
/// the newest backup is the one that lies furthest in the WAL, whatever a clock said. What has to be young to stay is as young as it
/// can be by the store's clock: a server's clock that was behind takes nothing out of a window, nor does a store's that contradicts itself.
///
/// Rules by number and date, and the minimum, are about the backups of one family of lineages: another server's make none of
/// them old. They keep so many sound ones, if there are, as if the damaged ones were not there; and of the damaged ones
/// those that they would keep if nothing were known of damage. What was asked to be deleted, and nothing protects, goes.
pub fn decide(facts: &RetentionFacts, policy: &Policy, now: Timestamp) -> Vec<Decision> {
    let mut backups = settled(facts, now);
    let order: BTreeMap<BackupId, usize> = backups.iter().map(|backup| backup.id).zip(0..).collect();
    if policy.accept_damaged_pages {
        backups.iter_mut().for_each(|backup| backup.damage.pages = 0);
    }
    let mut why: BTreeMap<BackupId, Vec<RetentionReason>> = BTreeMap::new();
    let mut keep = |id: BackupId, reason: RetentionReason| why.entry(id).or_default().push(reason);

    // What was asked to be deleted counts nowhere.
    let requested = granted(facts, now);
    let (gone, backups): (Vec<Candidate>, Vec<Candidate>) =
        backups.into_iter().partition(|backup| requested.contains_key(&backup.id));
    let gone = gone.into_iter().filter_map(|backup| {
        let request = requested.get(&backup.id)?;
        let reasons = vec![RetentionReason::Requested(request.who.clone(), request.at)];
        Some(Decision { backup, verdict: RetentionVerdict::Drop, reasons, exceeds_max_age: false })
    });
    let lines = lines(facts, &backups);
    let newest: BTreeSet<BackupId> =
        lines.iter().flat_map(|line| newest(&line.backups, policy.minimum)).collect();
    if policy.drops() {
        for line in &lines {
            by_rules(&line.backups, policy, now, &mut |id, why| keep(id, line.reason(why)));
        }
        if let Some(span) = policy.window {
            let labelled = |backup: &Candidate| policy.rule_for(&backup.label).1;
            let wanted = wanted(&facts.lives, &backups, since(now, span), labelled);
            wanted.within.iter().for_each(|id| keep(*id, RetentionReason::Window(span)));
            wanted.begins.iter().for_each(|(id, at)| keep(*id, RetentionReason::WindowBegin(span, *at)));
            let bases = wanted.bases.iter().flat_map(|(id, lineages)| lineages.iter().map(|of| (*id, *of)));
            bases.for_each(|(id, lineage)| keep(id, RetentionReason::Base(lineage, Base::Window(span))));
        }
    } else {
        backups.iter().for_each(|backup| keep(backup.id, RetentionReason::NoPolicy));
    }

    let decided = backups.into_iter().map(|backup| {
        let mut reasons = why.remove(&backup.id).unwrap_or_default();
        let exceeds = policy.max_age.filter(|span| backup.ended < since(now, *span));
        if exceeds.is_some() {
            reasons.clear();
        }
        if newest.contains(&backup.id) && policy.drops() {
            reasons.push(RetentionReason::Minimum(policy.minimum.max(1)));
        }
        let held = facts.holds.iter().filter(|hold| hold.keeps(&backup, now));
        reasons
            .extend(held.map(|h| RetentionReason::Hold(h.number, h.reason.clone(), h.who.clone(), h.until)));
        let onward = reasons.iter().any(|reason| reason.leads_onward(policy.window.is_some()));
        let verdict = match reasons.is_empty() {
            true => RetentionVerdict::Drop,
            false if onward => RetentionVerdict::Onward,
            false => RetentionVerdict::Alone,
        };
        if reasons.is_empty() {
            reasons.push(exceeds.map_or(RetentionReason::Unwanted, RetentionReason::TooOld));
        }
        Decision { backup, verdict, reasons, exceeds_max_age: exceeds.is_some() }
    });
    let mut decisions: Vec<Decision> = decided.chain(gone).collect();
    decisions.sort_by_key(|decision| order.get(&decision.backup.id).copied());
    lines.iter().for_each(|line| lead_onward(&line.backups, &mut decisions));
    facts.lives.iter().for_each(|life| in_use::keep(life, &mut decisions));
    // As it was found, whatever was made of its time and its damage for deciding.
    let found: BTreeMap<BackupId, &Candidate> = facts.backups.iter().map(|b| (b.id, b)).collect();
    for decision in &mut decisions {
        if let Some(backup) = found.get(&decision.backup.id) {
            decision.backup = Candidate::clone(backup);
        }
    }
    decisions
}

/// Whatever is decided, the newest one of a family that stays can be followed to the end of the archive; of several, one of
/// which there is no less than of the others.
fn lead_onward(line: &[Candidate], decisions: &mut [Decision]) {
    let of_it = |decision: &Decision| line.iter().any(|backup| backup.id == decision.backup.id);
    if decisions.iter().any(|decision| decision.verdict == RetentionVerdict::Onward && of_it(decision)) {
        return;
    }
    let staying = decisions.iter().enumerate().filter(|(_, d)| d.stays() && of_it(d));
    let last = staying.max_by_key(|(at, d)| (d.backup.soundness(), *at)).map(|(at, _)| at);
    if let Some(last) = last.and_then(|at| decisions.get_mut(at)) {
        last.verdict = RetentionVerdict::Onward;
    }
}

/// Backups that compete for what a rule keeps, oldest first.
struct Line {
    /// The timeline that they lead to, if that is written beside the newest one.
    beside: Option<TimelineId>,
    backups: Vec<Candidate>,
}

impl Line {
    /// Why it keeps one of them.
    fn reason(&self, why: RetentionReason) -> RetentionReason {
        match self.beside {
            Some(timeline) => RetentionReason::Beside(timeline, Box::new(why)),
            None => why,
        }
    }
}

/// The backups of each family of lineages; but those that lead to a timeline beside the newest one compete for themselves, as its
/// server may be the one in production.
fn lines(facts: &RetentionFacts, backups: &[Candidate]) -> Vec<Line> {
    let families = families(&facts.lives);
    let mut lines: BTreeMap<LineageId, Vec<Candidate>> = BTreeMap::new();
    for backup in backups {
        let mut own = facts.lives.iter().filter(|life| life.lineage == backup.lineage);
        if !own.any(|life| life.is_only_beside(backup)) {
            let family = families.get(&backup.lineage).copied().unwrap_or(backup.lineage);
            lines.entry(family).or_default().push(backup.clone());
        }
    }
    let mut lines: Vec<Line> = lines.into_values().map(|backups| Line { beside: None, backups }).collect();
    for life in &facts.lives {
        for timeline in life.in_use_beside() {
            let leads = backups.iter().filter(|backup| life.leads_from(backup, timeline));
            lines.push(Line { beside: Some(timeline), backups: leads.cloned().collect() });
        }
    }
    lines
}

/// The newest so many of a family, so many of those that can be restored, and so many sound ones.
fn newest(line: &[Candidate], minimum: u32) -> BTreeSet<BackupId> {
    let minimum = usize::try_from(minimum.max(1)).unwrap_or(usize::MAX);
    let newest = |level| line.iter().rev().filter(move |backup| backup.soundness() >= level).take(minimum);
    Soundness::BEST_FIRST.into_iter().flat_map(newest).map(|backup| backup.id).collect()
}

/// Every backup once, oldest first, with times that agree with their positions: when it was complete, and when at the latest.
fn settled(facts: &RetentionFacts, now: Timestamp) -> Vec<Candidate> {
    let mut backups: BTreeMap<BackupId, Candidate> =
        facts.backups.iter().map(|backup| (backup.id, backup.clone())).collect();
    for life in &facts.lives {
        let own = || backups.values().filter(|backup| backup.lineage == life.lineage);
        // One that ends after the store had its manifest was stamped by a clock that was ahead. Left as it is it would lift those
        // behind it to a day that has gone by meanwhile, and they would be taken for backups of one day.
        let ended = |backup: &Candidate| match backup.ended.duration_since(backup.complete_by) > CLOCK_LIMIT {
            true => backup.complete_by,
            false => backup.ended,
        };
        let mut times = own().map(|backup| (backup.id, ended(backup))).collect();
        let told = |backup: &Candidate| SeenServers {
            stored: backup.complete_by,
            latest_commit: backup.latest_commit,
            stop: backup.stop,
        };
        let told = own().map(|backup| (backup.id, told(backup))).collect();
        settle(&life.graph, &mut times, now);
        let latest = settle_latest(&life.graph, &times, &told, now);
        for (id, ended) in times {
            let complete_by = latest.get(&id).copied().unwrap_or(ended);
            backups.entry(id).and_modify(|backup| (backup.ended, backup.complete_by) = (ended, complete_by));
        }
    }
    let mut backups: Vec<Candidate> = backups.into_values().collect();
    backups.sort_by_key(|backup| (backup.ended, backup.id.start(), backup.id));
    backups
}

/// What the rules by number and date keep of a family: the general one, and those of labels.
fn by_rules(
    backups: &[Candidate],
    policy: &Policy,
    now: Timestamp,
    keep: &mut impl FnMut(BackupId, RetentionReason),
) {
    let general = backups.iter().filter(|backup| !policy.rule_for(&backup.label).1);
    let general: Vec<&Candidate> = general.collect();
    if policy.rule.is_empty() && policy.window.is_none() {
        general.iter().for_each(|backup| keep(backup.id, RetentionReason::NoRule));
    }
    by_rule(&general, &policy.rule, now, keep);
    for (label, rule) in &policy.labels {
        let own: Vec<&Candidate> = backups.iter().filter(|backup| backup.label == *label).collect();
        by_rule(&own, rule, now, &mut |id, why| {
            keep(id, RetentionReason::Label(label.clone(), Box::new(why)))
        });
    }
}

/// What one rule keeps of the backups that it is about, which come oldest first: of the sound ones, and of those of which less
/// can be had what it would keep if there was no more of them than of the others.
fn by_rule(
    backups: &[&Candidate],
    rule: &Rule,
    now: Timestamp,
    keep: &mut impl FnMut(BackupId, RetentionReason),
) {
    for level in Soundness::BEST_FIRST {
        let so_good: Vec<&Candidate> =
            backups.iter().copied().filter(|backup| backup.soundness() >= level).collect();
        let of_it: BTreeSet<BackupId> =
            so_good.iter().filter(|backup| backup.soundness() == level).map(|backup| backup.id).collect();
        by_rank(&so_good, rule, now, &mut |id, why| {
            if of_it.contains(&id) {
                keep(id, why);
            }
        });
    }
}

/// What one rule keeps of backups that come oldest first.
fn by_rank(
    backups: &[&Candidate],
    rule: &Rule,
    now: Timestamp,
    keep: &mut impl FnMut(BackupId, RetentionReason),
) {
    if let Some(count) = rule.count {
        let newest = usize::try_from(count).unwrap_or(usize::MAX);
        backups.iter().rev().take(newest).for_each(|backup| keep(backup.id, RetentionReason::Count(count)));
    }
    if let Some(span) = rule.age {
        let young = backups.iter().filter(|backup| backup.complete_by >= since(now, span));
        young.for_each(|backup| keep(backup.id, RetentionReason::Age(span)));
    }
    let calendar = [
        (Period::Day, rule.daily),
        (Period::Week, rule.weekly),
        (Period::Month, rule.monthly),
        (Period::Year, rule.yearly),
    ];
    for (period, wanted) in calendar {
        let mut seen: BTreeSet<String> = BTreeSet::new();
        for backup in backups.iter().rev() {
            let which = which(period, backup.ended.to_zoned(TimeZone::UTC).date());
            if seen.contains(&which) {
                continue;
            }
            if seen.len() >= usize::try_from(wanted).unwrap_or(usize::MAX) {
                break;
            }
            seen.insert(which.clone());
            keep(backup.id, RetentionReason::Calendar(period, wanted, which));
        }
    }
}

/// The name of the calendar period that a day belongs to.
fn which(period: Period, day: Date) -> String {
    match period {
        Period::Day => day.to_string(),
        Period::Week => {
            let week = day.iso_week_date();
            format!("{}-W{:02}", week.year(), week.week())
        }
        Period::Month => format!("{}-{:02}", day.year(), day.month()),
        Period::Year => day.year().to_string(),
    }
}
