//! Which backups must stay and which WAL, in the plainest words: what expiry is held against.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Span, Timestamp};
use rand::Rng;
use rand::rngs::StdRng;
use walpoint_base::BackupId;
use walpoint_plan::retention::{Policy, Rule};

use crate::backup::Intent;

/// The label that has a rule of its own.
pub(super) const LABEL: &str = "pre-deploy";

/// A retention, in numbers and in hours.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Keep {
    pub(super) count: Option<u32>,
    pub(super) age: Option<i64>,
    pub(super) window: Option<i64>,
    pub(super) labelled: Option<u32>,
    pub(super) max_age: Option<i64>,
    pub(super) minimum: u32,
}

/// What retention looks at of a backup.
#[derive(Clone, Debug)]
pub(super) struct OracleBackup {
    pub(super) id: BackupId,
    pub(super) ended: Timestamp,
    pub(super) label: String,
    /// Whether nothing is known to be wrong with it.
    pub(super) sound: bool,
}

/// What becomes of backups.
#[derive(Clone, Default, Debug)]
pub(super) struct Fates {
    /// They stay with all WAL after them.
    pub(super) onward: BTreeSet<BackupId>,
    /// They stay with the WAL that makes them consistent.
    pub(super) alone: BTreeSet<BackupId>,
}

/// Backups end at whole hours; what is cut is cut between.
fn hours(n: i64) -> Span {
    Span::new().hours(n).minutes(30)
}

impl Keep {
    /// Any, for backups that are up to so many hours old. Nearly always one that drops something.
    pub(super) fn random(rng: &mut StdRng, oldest: i64) -> Self {
        let mut some = |share: f64| rng.random_bool(share).then(|| rng.random_range(0..=oldest));
        let (age, window, max_age) = (some(0.25), some(0.25), some(0.15));
        let count = rng.random_bool(0.6).then(|| rng.random_range(1..4));
        let labelled = rng.random_bool(0.3).then(|| rng.random_range(1..3));
        Self { count, age, window, labelled, max_age, minimum: rng.random_range(0..3) }
    }

    /// As the product has it.
    pub(super) fn policy(&self) -> Policy {
        let label = |count| (LABEL.to_owned(), Rule { count: Some(count), ..Rule::default() });
        Policy {
            rule: Rule { count: self.count, age: self.age.map(hours), ..Rule::default() },
            labels: self.labelled.map(label).into_iter().collect(),
            window: self.window.map(hours),
            minimum: self.minimum,
            max_age: self.max_age.map(hours),
            accept_damaged_pages: false,
        }
    }

    /// Whether it drops anything.
    pub(super) fn drops(&self) -> bool {
        let Self { count, labelled, age, window, max_age, .. } = self;
        count.or(*labelled).is_some() || age.or(*window).or(*max_age).is_some()
    }

    /// Decides, on one timeline. `held` are backups under a hold.
    ///
    /// What is known to be damaged takes nothing's place: so many sound ones stay as if there were no others. It goes when it would
    /// go if it were sound. And whatever else stays, the newest sound one does, and leads on to the end of the archive if no
    /// other sound one does that.
    pub(super) fn decide(&self, all: &[OracleBackup], held: &BTreeSet<BackupId>, now: Timestamp) -> Fates {
        let settled = settled(all, now);
        let latest: BTreeMap<BackupId, Timestamp> =
            settled.iter().map(|(b, latest)| (b.id, *latest)).collect();
        let mut newest_first: Vec<&OracleBackup> = settled.iter().map(|(b, _)| b).collect();
        newest_first.sort_by_key(|b| std::cmp::Reverse((b.ended, b.id.start(), b.id)));
        let cut = |span| now - SignedDuration::from_hours(span) - SignedDuration::from_mins(30);
        let after = |backup: &OracleBackup, span: i64| latest[&backup.id] > cut(span);
        let own_rule = |backup: &OracleBackup| self.labelled.is_some() && backup.label == LABEL;
        let general: Vec<&OracleBackup> = newest_first.iter().copied().filter(|b| !own_rule(b)).collect();
        // The newest `n`, where those that are damaged do not count and are only let pass.
        let newest = |of: &[&OracleBackup], n: u32| -> BTreeSet<BackupId> {
            let n = usize::try_from(n).unwrap();
            let sound = of.iter().filter(|b| b.sound).take(n);
            let damaged = of.iter().take(n).filter(|b| !b.sound);
            sound.chain(damaged).map(|b| b.id).collect()
        };

        let (mut by_rule, mut by_label, mut by_window) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        by_rule.extend(newest(&general, self.count.unwrap_or(0)));
        by_rule.extend(general.iter().filter(|b| self.age.is_some_and(|span| after(b, span))).map(|b| b.id));
        if self.count.or(self.age.map(|_| 0)).or(self.window.map(|_| 0)).is_none() {
            by_rule.extend(general.iter().map(|b| b.id));
        }
        let labelled: Vec<&OracleBackup> = newest_first.iter().copied().filter(|b| own_rule(b)).collect();
        by_label.extend(newest(&labelled, self.labelled.unwrap_or(0)));
        if let Some(span) = self.window {
            by_window.extend(general.iter().filter(|b| after(b, span)).map(|b| b.id));
            if let Some(base) = general.iter().find(|b| !after(b, span)) {
                by_window.insert(base.id);
            } else {
                // Nothing without a rule of its own reaches as far back: what is older than the oldest of them counts.
                let oldest = general.last().map(|b| latest[&b.id]);
                let older =
                    newest_first.iter().filter(|b| oldest.is_none_or(|oldest| latest[&b.id] < oldest));
                let (within, before): (Vec<&OracleBackup>, Vec<&OracleBackup>) =
                    older.copied().partition(|b| after(b, span));
                by_window.extend(within.iter().map(|b| b.id).chain(before.first().map(|b| b.id)));
            }
            // It begins with something sound: without a rule of its own if there is such a one.
            let before = |b: &&&OracleBackup| b.sound && !after(b, span);
            let intact = general.iter().find(before).or(newest_first.iter().find(before));
            by_window.extend(intact.map(|b| b.id));
        }
        let too_old = |id: &BackupId| {
            let of = newest_first.iter().find(|b| b.id == *id);
            self.max_age.is_some_and(|span| of.is_some_and(|b| b.ended <= cut(span)))
        };
        for ids in [&mut by_rule, &mut by_label, &mut by_window] {
            ids.retain(|id| !too_old(id));
        }
        let minimum = self.minimum.max(1);
        by_rule.extend(newest(&newest_first, minimum));

        let mut onward = if self.window.is_some() { by_window.clone() } else { by_rule.clone() };
        if !self.drops() {
            onward = all.iter().map(|b| b.id).collect();
        }
        let all: BTreeSet<BackupId> =
            [&by_rule, &by_label, &by_window, held, &onward].into_iter().flatten().copied().collect();
        let staying: Vec<&OracleBackup> =
            newest_first.iter().copied().filter(|b| all.contains(&b.id)).collect();
        if onward.is_empty() {
            onward.extend(staying.iter().find(|b| b.sound).or(staying.first()).map(|b| b.id));
        }
        if let Some(best) = staying.iter().find(|b| b.sound).or(staying.first())
            && !staying.iter().any(|b| b.sound == best.sound && onward.contains(&b.id))
        {
            onward.insert(best.id);
        }
        let alone = newest_first.iter().map(|b| b.id).filter(|id| all.contains(id) && !onward.contains(id));
        Fates { alone: alone.collect(), onward }
    }
}

impl Fates {
    /// Whether a backup stays.
    pub(super) fn stays(&self, id: BackupId) -> bool {
        self.onward.contains(&id) || self.alone.contains(&id)
    }
}

/// Backups that unfinished ones may use: their parents, and what they took over.
pub(super) fn built_on(unfinished: &BTreeMap<BackupId, Intent>) -> BTreeSet<BackupId> {
    unfinished.values().flat_map(|intent| intent.parents.iter().chain(&intent.resumed)).copied().collect()
}

/// The backups in the order of their positions, which tell which one is newer, whatever clocks say; and none is older than what came
/// before it. With each the time at which it may have ended at the latest: of one whose clock was behind that is when the next one did,
/// or `now`.
fn settled(backups: &[OracleBackup], now: Timestamp) -> Vec<(OracleBackup, Timestamp)> {
    let mut settled = backups.to_vec();
    settled.sort_by_key(|b| (b.id.start(), b.ended, b.id));
    let (mut last, mut behind) = (Timestamp::MIN, BTreeSet::new());
    for backup in &mut settled {
        if backup.ended < last {
            behind.insert(backup.id);
        }
        last = last.max(backup.ended);
        backup.ended = last;
    }
    let mut next = now;
    let mut latest: Vec<(OracleBackup, Timestamp)> = Vec::new();
    for backup in settled.into_iter().rev() {
        if !behind.contains(&backup.id) {
            next = next.min(backup.ended);
        }
        latest.push((backup, next));
    }
    latest.reverse();
    latest
}
