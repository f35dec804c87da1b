//! A decision for each backup.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use walpoint_base::BackupId;

use super::facts::{Candidate, RetentionFacts};
use super::policy::{Policy, Rule, since};
use super::reason::{Period, Reason};
use super::window::wanted;
use crate::catalog::settle;

/// What becomes of a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
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
    pub verdict: Verdict,
    /// Why; never empty.
    pub reasons: Vec<Reason>,
    /// Whether it is older than [`Policy::max_age`], kept or not.
    pub exceeds_max_age: bool,
}

impl Decision {
    /// Whether it stays.
    pub fn stays(&self) -> bool {
        self.verdict != Verdict::Drop
    }

    /// Why, in one sentence without its subject.
    pub fn because(&self) -> String {
        let reasons: Vec<String> = self.reasons.iter().map(Reason::to_string).collect();
        reasons.join("; ")
    }
}

/// Decides about every backup, oldest first. Times that contradict the positions of backups are brought in line with them:
/// the newest backup is the one that lies furthest in the WAL, whatever a clock said.
pub fn decide(facts: &RetentionFacts, policy: &Policy, now: Timestamp) -> Vec<Decision> {
    let said: BTreeMap<BackupId, Timestamp> = facts.backups.iter().map(|b| (b.id, b.ended)).collect();
    let backups = settled(facts, now);
    let mut why: BTreeMap<BackupId, Vec<Reason>> = BTreeMap::new();
    let mut keep = |id: BackupId, reason: Reason| why.entry(id).or_default().push(reason);

    let newest: BTreeSet<BackupId> = {
        let minimum = usize::try_from(policy.minimum.max(1)).unwrap_or(usize::MAX);
        backups.iter().rev().take(minimum).map(|backup| backup.id).collect()
    };
    if policy.drops() {
        by_rules(&backups, policy, now, &mut keep);
        if let Some(span) = policy.window {
            let labelled = |backup: &Candidate| policy.rule_for(&backup.label).1;
            let wanted = wanted(&facts.lives, &backups, since(now, span), labelled);
            wanted.within.iter().for_each(|id| keep(*id, Reason::Window(span)));
            wanted.begins.iter().for_each(|(id, at)| keep(*id, Reason::WindowBegin(span, *at)));
        }
    } else {
        backups.iter().for_each(|backup| keep(backup.id, Reason::NoPolicy));
    }

    let decided = backups.into_iter().map(|backup| {
        let mut reasons = why.remove(&backup.id).unwrap_or_default();
        let exceeds = policy.max_age.filter(|span| backup.ended < since(now, *span));
        if exceeds.is_some() {
            reasons.clear();
        }
        if newest.contains(&backup.id) && policy.drops() {
            reasons.push(Reason::Minimum(policy.minimum.max(1)));
        }
        let held = facts.holds.iter().filter(|hold| hold.keeps(&backup, now));
        reasons.extend(held.map(|h| Reason::Hold(h.number, h.reason.clone(), h.who.clone(), h.until)));
        let bases = facts.bases.get(&backup.id).into_iter().flatten();
        reasons.extend(bases.map(|lineage| Reason::Base(*lineage)));
        let onward = reasons.iter().any(|reason| reason.leads_onward(policy.window.is_some()));
        let verdict = match reasons.is_empty() {
            true => Verdict::Drop,
            false if onward => Verdict::Onward,
            false => Verdict::Alone,
        };
        if reasons.is_empty() {
            reasons.push(exceeds.map_or(Reason::Unwanted, Reason::TooOld));
        }
        let ended = said.get(&backup.id).copied().unwrap_or(backup.ended);
        let backup = Candidate { ended, ..backup };
        Decision { backup, verdict, reasons, exceeds_max_age: exceeds.is_some() }
    });
    let mut decisions: Vec<Decision> = decided.collect();
    // Whatever is decided, the newest one that stays can be followed to the end of the archive.
    if !decisions.iter().any(|decision| decision.verdict == Verdict::Onward)
        && let Some(last) = decisions.iter_mut().rev().find(|decision| decision.stays())
    {
        last.verdict = Verdict::Onward;
    }
    decisions
}

/// Every backup once, oldest first, with times that agree with their positions.
fn settled(facts: &RetentionFacts, now: Timestamp) -> Vec<Candidate> {
    let mut backups: BTreeMap<BackupId, Candidate> =
        facts.backups.iter().map(|backup| (backup.id, backup.clone())).collect();
    for life in &facts.lives {
        let own = backups.values().filter(|backup| backup.lineage == life.lineage);
        let mut times = own.map(|backup| (backup.id, backup.ended)).collect();
        settle(&life.graph, &mut times, now);
        for (id, ended) in times {
            backups.entry(id).and_modify(|backup| backup.ended = ended);
        }
    }
    let mut backups: Vec<Candidate> = backups.into_values().collect();
    backups.sort_by_key(|backup| (backup.ended, backup.id.start(), backup.id));
    backups
}

/// What the rules by number and date keep: the general one, and those of labels.
fn by_rules(backups: &[Candidate], policy: &Policy, now: Timestamp, keep: &mut impl FnMut(BackupId, Reason)) {
    let general = backups.iter().filter(|backup| !policy.rule_for(&backup.label).1);
    let general: Vec<&Candidate> = general.collect();
    if policy.rule.is_empty() && policy.window.is_none() {
        general.iter().for_each(|backup| keep(backup.id, Reason::NoRule));
    }
    by_rule(&general, &policy.rule, now, keep);
    for (label, rule) in &policy.labels {
        let own: Vec<&Candidate> = backups.iter().filter(|backup| backup.label == *label).collect();
        by_rule(&own, rule, now, &mut |id, why| keep(id, Reason::Label(label.clone(), Box::new(why))));
    }
}

/// What one rule keeps of the backups that it is about, which come oldest first.
fn by_rule(backups: &[&Candidate], rule: &Rule, now: Timestamp, keep: &mut impl FnMut(BackupId, Reason)) {
    if let Some(count) = rule.count {
        let newest = usize::try_from(count).unwrap_or(usize::MAX);
        backups.iter().rev().take(newest).for_each(|backup| keep(backup.id, Reason::Count(count)));
    }
    if let Some(span) = rule.age {
        let young = backups.iter().filter(|backup| backup.ended >= since(now, span));
        young.for_each(|backup| keep(backup.id, Reason::Age(span)));
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
            keep(backup.id, Reason::Calendar(period, wanted, which));
        }
    }
}

/// The name of the stretch of the calendar that a day belongs to.
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
