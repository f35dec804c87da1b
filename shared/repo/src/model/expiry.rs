//! Expiry, holds, and what must be there after it.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use rand::seq::IteratorRandom;
use walpoint_base::{BackupId, SegmentNo};
use walpoint_storage::error::Result;

use super::oracle::{Fates, Keep, LABEL, OracleBackup, built_on};
use super::world::{HeldOn, Made, Readable, Silences, World, segment_size};
use super::writing::HOURS;
use crate::backup::ListedState;
use crate::expire::tests::cluster;
use crate::expire::{ExpireOptions, Expired, expire};
use crate::holds::{self, Holds, Placement};

/// What an expiry that began now would have to do.
#[derive(Clone, Debug)]
pub(super) struct Expectation {
    fates: Fates,
    /// Unfinished backups that nobody will finish.
    pub(super) aborted: BTreeSet<BackupId>,
    /// Finished backups that go when they were announced for long enough.
    pub(super) may_go: BTreeSet<BackupId>,
    /// Segments that are needed, of those that are there; `None`: all of them.
    wal: Option<BTreeSet<u64>>,
}

impl Expectation {
    /// Of an expiry of which it is not known which of two it did.
    pub(super) fn or(mut self, other: Self) -> Self {
        self.may_go.extend(other.may_go);
        self.aborted.extend(other.aborted);
        self.wal = match (self.wal, other.wal) {
            (Some(one), Some(two)) => Some(&one & &two),
            (one, two) => one.or(two),
        };
        self
    }
}

impl World {
    /// A retention and a grace period.
    pub(super) fn some_keep(&mut self) -> (Keep, i64) {
        let keep = Keep::random(&mut self.rng, HOURS);
        let keep = if self.rng.random_bool(0.6) {
            // Mostly one that has something to do: the number of backups stays small.
            let count = self.rng.random_range(1..4);
            Keep { count: Some(count), age: None, window: None, ..keep }
        } else {
            keep
        };
        (keep, if self.rng.random_bool(0.5) { 0 } else { 24 })
    }

    pub(super) fn options(&self, keep: &Keep, grace: i64) -> ExpireOptions {
        ExpireOptions {
            policy: keep.policy(),
            grace: SignedDuration::from_hours(grace),
            named: None,
            dry_run: false,
            host: String::new(),
            agent: String::new(),
        }
    }

    /// What has to be true of an expiry that begins now.
    pub(super) fn expectation(&self, keep: &Keep) -> Expectation {
        self.expectation_after(keep, &self.silences())
    }

    /// The same where unfinished backups have stored nothing for so long.
    pub(super) fn expectation_after(&self, keep: &Keep, silences: &Silences) -> Expectation {
        let readable = self.made.iter().filter(|(_, made)| made.manifest.shows_needs());
        let candidates: Vec<OracleBackup> = readable
            .map(|(id, made)| OracleBackup {
                id: *id,
                ended: made.ended,
                label: made.label.clone(),
                sound: self.is_known_sound(made),
            })
            .collect();
        let all: BTreeSet<BackupId> = candidates.iter().map(|backup| backup.id).collect();
        let mut expectation = Expectation {
            fates: Fates { onward: all.clone(), alone: BTreeSet::new() },
            aborted: BTreeSet::new(),
            may_go: BTreeSet::new(),
            wal: None,
        };
        if !keep.drops() {
            return expectation;
        }
        let newest = all.last().copied();
        let is_silent = |id: &BackupId| {
            let silent = silences.get(id).map_or(0, |silent| silent.as_hours());
            silent >= 7 * 24 || (silent >= 24 && newest.is_some_and(|newest| newest > *id))
        };
        expectation.aborted = self.unfinished.keys().copied().filter(is_silent).collect();
        if candidates.is_empty() {
            return expectation;
        }
        let held = candidates.iter().filter(|backup| {
            self.holds.values().any(|on| match on {
                HeldOn::Backup(id) => *id == backup.id,
                HeldOn::Label => backup.label == LABEL,
            })
        });
        let held: BTreeSet<BackupId> = held.map(|backup| backup.id).collect();
        let fates = keep.decide(&candidates, &held, Timestamp::now());
        let mut unfinished = self.unfinished.clone();
        unfinished.retain(|id, _| !expectation.aborted.contains(id));
        let used = built_on(&unfinished);
        let spared: BTreeSet<BackupId> = all.intersection(&used).copied().collect();
        expectation.may_go = all.into_iter().filter(|id| !fates.stays(*id) && !used.contains(id)).collect();
        if self.made.values().all(|made| made.manifest.shows_needs()) {
            let needed = |n: &u64| {
                let of = |ids: &BTreeSet<BackupId>, onward: bool| {
                    ids.iter()
                        .map(|id| self.made[id].segments)
                        .any(|(a, b)| (a..=b).contains(n) || onward && *n >= a)
                };
                let running = |id: &BackupId| *n >= SegmentNo::of(id.start(), segment_size()).0;
                let listed = of(&fates.onward, true) || of(&fates.alone, false) || of(&spared, false);
                listed || unfinished.keys().any(running)
            };
            expectation.wal = Some(self.wal.iter().copied().filter(needed).collect());
        }
        expectation.fates = fates;
        expectation
    }

    /// Whether nothing is known to be wrong with a backup: none of its packs was reported, or is seen to be missing by a listing,
    /// nor was its manifest, and all WAL is there without which it is not consistent and none of that was reported.
    fn is_known_sound(&self, made: &Made) -> bool {
        let (first, last) = made.segments;
        let replayed = |n: u64| self.wal.contains(&n) && !self.reported_wal.contains(&n);
        made.packs.is_disjoint(&self.announced) && !made.reported && (first..=last).all(replayed)
    }

    /// Expires, and looks at what is left.
    pub(super) async fn expire(&mut self) {
        let (keep, grace) = self.some_keep();
        self.expire_with(&keep, grace).await;
    }

    async fn expire_with(&mut self, keep: &Keep, grace: i64) -> Expectation {
        let expected = self.expectation(keep);
        self.journal.note(format!("expire: {keep:?}, grace {grace} h"));
        let repository = self.open().await;
        let report = expire(&repository, &cluster(), &self.options(keep, grace)).boxed_local().await.unwrap();
        self.check(&expected, &report, grace).boxed_local().await;
        expected
    }

    /// Expires in a process that dies at some request.
    pub(super) async fn expire_and_crash(&mut self) {
        let (keep, grace) = self.some_keep();
        let expected = self.expectation(&keep);
        let life = self.rng.random_range(1..250);
        let (crashing, repository) = self.open_crashing(life).await;
        let done: Result<Expired> = match repository {
            Ok(repository) => {
                expire(&repository, &cluster(), &self.options(&keep, grace)).boxed_local().await
            }
            Err(error) => Err(error),
        };
        let died = crashing.has_crashed().await;
        self.journal.note(format!("expire: {keep:?}, grace {grace} h, dies before request {life}: {died}"));
        match done {
            Ok(report) if !died => self.check(&expected, &report, grace).boxed_local().await,
            Err(error) if !died => panic!("it failed: {error}"),
            _ => self.check_safety(&expected).boxed_local().await,
        }
    }

    /// Two runs with the same retention, more than a grace period apart: whatever may go is gone.
    pub(super) async fn settle(&mut self) {
        let (keep, _) = self.some_keep();
        let first = self.expire_with(&keep, 24).boxed_local().await;
        self.age(25);
        let second = self.expire_with(&keep, 24).boxed_local().await;
        for id in first.may_go.intersection(&second.may_go) {
            assert!(!self.made.contains_key(id), "{id} was announced for long enough and is still there");
        }
    }

    /// What has to hold whether a run came to its end or not.
    pub(super) async fn check_safety(&mut self, expected: &Expectation) {
        self.observe(&expected.may_go, &expected.aborted).await;
        let there = self.segments();
        let needed = expected.wal.as_ref().unwrap_or(&self.wal);
        let gone: Vec<&u64> = needed.difference(&there).collect();
        assert!(gone.is_empty(), "segments {gone:?} are gone and are needed: {:?}", expected.fates);
        self.wal = there;
        self.restore_one().boxed_local().await;
    }

    /// What has to hold after a run.
    async fn check(&mut self, expected: &Expectation, report: &Expired, grace: i64) {
        let aborted: BTreeSet<BackupId> = report.aborted_backups.iter().copied().collect();
        assert_eq!(aborted, expected.aborted, "what was aborted");
        let deletes =
            report.retention_configured && self.made.values().any(|made| made.manifest.shows_needs());
        self.check_safety(expected).boxed_local().await;
        if grace > 0 || !deletes {
            return;
        }
        // No grace period: all of it is gone at once.
        let left: Vec<&BackupId> = self.made.keys().filter(|id| expected.may_go.contains(id)).collect();
        assert!(left.is_empty(), "{left:?} should be gone: {:#?}", report.backups);
        if let Some(needed) = &expected.wal {
            assert_eq!(&self.wal, needed, "segments");
        }
        let whole = self.made.values().all(|made| made.manifest == Readable::All);
        if whole && self.unfinished.is_empty() {
            let listed = self.backups().await.list().await.unwrap();
            let known = |id: BackupId| {
                listed
                    .iter()
                    .any(|one| one.id == id && (one.begun.is_some() || one.state != ListedState::Unfinished))
            };
            let used: BTreeSet<(BackupId, u32)> =
                self.made.values().flat_map(|made| made.packs.iter().copied()).collect();
            // Packs of a backup of which nothing else is left wait for an hour more.
            let idle: Vec<_> =
                self.packs().into_iter().filter(|pack| known(pack.0) && !used.contains(pack)).collect();
            assert!(idle.is_empty(), "nobody uses {idle:?}");
        }
    }

    /// Places a hold.
    pub(super) async fn hold(&mut self) {
        let Some(id) = self.made.keys().copied().choose(&mut self.rng) else { return };
        let on = if self.rng.random_ratio(1, 4) { HeldOn::Label } else { HeldOn::Backup(id) };
        let until = match self.rng.random_range(0..4) {
            0 => Some(self.now - SignedDuration::from_hours(1)),
            1 => Some(self.now + SignedDuration::from_hours(1)),
            _ => None,
        };
        let placement = Placement {
            on: match &on {
                HeldOn::Backup(id) => holds::HeldOn::Backup(*id),
                HeldOn::Label => holds::HeldOn::Label(LABEL.to_owned()),
            },
            reason: String::new(),
            who: "dba".to_owned(),
            at: self.now,
            until,
        };
        let number = Holds::of(&self.open().await, &cluster()).add(&placement).await.unwrap();
        self.journal.note(format!("hold {number} on {on:?} until {until:?}"));
        if until.is_none_or(|until| until > self.now) {
            self.holds.insert(number, on);
        }
    }

    /// Removes one.
    pub(super) async fn release(&mut self) {
        let Some(number) = self.holds.keys().copied().choose(&mut self.rng) else { return };
        Holds::of(&self.open().await, &cluster()).remove(number, "dba", self.now).await.unwrap();
        self.holds.remove(&number);
        self.journal.note(format!("hold {number} is removed"));
    }
}
