//! One listing of everything a cluster has: each object is judged, counted, and announced if it is out of reach and was
//! not announced before. Holds no names but those of strangers, only numbers in runs.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use walpoint_base::{BackupId, ClusterName, LineageId, TimelineId, WalFileName};
use walpoint_plan::retention::DeletionRequest;
use walpoint_plan::runs::{Runs, SegmentRun};
use walpoint_storage::error::Result;
use walpoint_storage::layout::{ClusterObject, ClusterPaths, Key, WalEntry};

use super::ExpireOptions;
use super::announcements::{AnnouncedNames, KnownAnnouncements};
use super::report::Expired;
use crate::Repository;
use crate::backup::{AnnouncedPacks, AnnouncedRequest, AnnouncedWal, Announcement, AnnouncementReason};
use crate::reach::{Class, Judgement, Roots};

/// Packs of a backup that nothing else is known of are only announced when they are older: it may have begun just now.
const UNKNOWN: SignedDuration = SignedDuration::from_hours(1);

/// Strangers that are named.
const NAMED: usize = 20;

/// Progress objects of finished backups that one run deletes.
const SPENT: usize = 100_000;

/// Ranges of packs and segments in one announcement.
pub(super) const RANGES: usize = 30_000;

/// Objects and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Tally {
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

/// Of one class.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Tallies {
    /// What stays.
    pub(super) kept: Tally,
    /// What this run announces.
    pub(super) announced: Tally,
    /// What was announced and has to wait.
    pub(super) waiting: Tally,
    /// What was announced long enough ago.
    pub(super) eligible: Tally,
}

/// What a listing showed.
#[derive(Debug)]
pub(super) struct ListingScan {
    tallies: BTreeMap<Class, Tallies>,
    strangers: Vec<String>,
    more_strangers: u64,
    /// Announcements of damage of which a pack or segment was seen.
    damage_seen: BTreeSet<u64>,
    damage: Vec<(u64, AnnouncedNames)>,
    backups: BTreeSet<BackupId>,
    packs: BTreeMap<BackupId, BTreeSet<u32>>,
    wal: BTreeMap<(LineageId, TimelineId), Runs>,
    /// Progress objects of finished backups that stay.
    spent: Vec<Key>,
}

/// What a scan judges by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standards<'a> {
    /// What is needed.
    pub(super) roots: &'a Roots,
    /// What else is left alone unless it was announced before: where only backups that were named are expired, what was not
    /// needed before that.
    pub(super) spared: Option<&'a Roots>,
    pub(super) announced: &'a KnownAnnouncements,
    /// Finished backups.
    pub(super) finished: &'a BTreeSet<BackupId>,
    /// What was announced before then has waited long enough.
    pub(super) eligible_until: Timestamp,
}

impl Tally {
    pub(super) fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl ListingScan {
    /// Lists and judges.
    pub(super) async fn of(
        repository: &Repository,
        cluster: &ClusterName,
        standards: Standards<'_>,
        now: Timestamp,
    ) -> Result<Self> {
        let Standards { roots, spared, announced, finished, eligible_until } = standards;
        let eligible = match spared {
            Some(_) => announced.eligible_by_name(eligible_until),
            None => announced.eligible(eligible_until),
        };
        let (paths, all) = (ClusterPaths::new(cluster), announced.all());
        let mut scan = Self {
            tallies: Class::ALL.into_iter().map(|class| (class, Tallies::default())).collect(),
            strangers: Vec::new(),
            more_strangers: 0,
            damage_seen: BTreeSet::new(),
            damage: announced.each_damaged().collect(),
            backups: BTreeSet::new(),
            packs: BTreeMap::new(),
            wal: BTreeMap::new(),
            spent: Vec::new(),
        };
        let mut listing = repository.store().list(&paths.all(), None);
        while let Some(entry) = listing.try_next().await? {
            let Some(object) = paths.parse(&entry.key) else {
                scan.stranger(entry.key.to_string());
                continue;
            };
            if can_be_damaged(&object) {
                let naming = scan.damage.iter().filter(|(_, named)| named.names(&object, roots));
                scan.damage_seen.extend(naming.map(|(n, _)| *n));
            }
            if let ClusterObject::Progress(id) = object
                && finished.contains(&id)
                && roots.needs_backup(id)
                && scan.spent.len() < SPENT
            {
                scan.spent.push(entry.key.clone());
            }
            let young = now.duration_since(entry.modified) < UNKNOWN;
            let spared = spared.is_some_and(|before| matches!(before.judge(&object), Judgement::Unneeded(_)));
            let left_alone = spared || (young && !roots.knows(&object));
            scan.count(&object, entry.size, roots, (&all, &eligible), left_alone);
        }
        Ok(scan)
    }

    fn count(
        &mut self,
        object: &ClusterObject,
        bytes: u64,
        roots: &Roots,
        (all, eligible): (&AnnouncedNames, &AnnouncedNames),
        left_alone: bool,
    ) {
        match roots.judge(object) {
            Judgement::Kept => {}
            Judgement::Needed(class) => self.tallies.entry(class).or_default().kept.add(bytes),
            Judgement::Unneeded(class) => {
                let tallies = self.tallies.entry(class).or_default();
                if eligible.names(object, roots) {
                    tallies.eligible.add(bytes);
                } else if all.names(object, roots) {
                    tallies.waiting.add(bytes);
                } else if left_alone {
                    tallies.kept.add(bytes);
                } else {
                    tallies.announced.add(bytes);
                    self.announce(object, roots);
                }
            }
        }
    }

    fn announce(&mut self, object: &ClusterObject, roots: &Roots) {
        match *object {
            ClusterObject::Intent(id)
            | ClusterObject::Progress(id)
            | ClusterObject::Published(id)
            | ClusterObject::Manifest(id) => {
                self.backups.insert(id);
            }
            ClusterObject::Pack(id, n) => {
                self.packs.entry(id).or_default().insert(n);
            }
            _ => {
                if let Some(segments) = roots.lineage_segments(object) {
                    let runs = self.wal.entry((segments.lineage, segments.timeline)).or_default();
                    runs.add(SegmentRun { first: segments.first, last: segments.last, stored: 0 });
                }
            }
        }
    }

    fn stranger(&mut self, name: String) {
        if self.strangers.len() < NAMED {
            self.strangers.push(name);
        } else {
            self.more_strangers += 1;
        }
    }

    /// Progress objects of finished backups that stay: nothing reads them any more.
    pub(super) fn take_spent(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.spent)
    }

    /// Announcements of damage of whose packs and segments none is there.
    pub(super) fn unseen_damage(&self) -> impl Iterator<Item = u64> {
        self.damage.iter().map(|(n, _)| *n).filter(|n| !self.damage_seen.contains(n))
    }

    /// What is to be announced counts as announced long enough ago: without a grace period the same run deletes it.
    pub(super) fn mark_eligible(&mut self) {
        for tallies in self.tallies.values_mut() {
            tallies.eligible.objects += tallies.announced.objects;
            tallies.eligible.bytes = tallies.eligible.bytes.saturating_add(tallies.announced.bytes);
        }
    }

    /// Puts it into the report.
    pub(super) fn tell(&self, report: &mut Expired) {
        report.counted(&self.tallies);
        report.unknown_objects.clone_from(&self.strangers);
        if self.more_strangers > 0 {
            report.notes.push(format!("{} more unknown objects were left unchanged", self.more_strangers));
        }
    }

    /// What is to be announced.
    pub(super) fn into_announced(
        self,
        options: &ExpireOptions,
        request: Option<&DeletionRequest>,
        now: Timestamp,
    ) -> Vec<Announcement> {
        let empty = || Announcement {
            written: now,
            host: options.host.clone(),
            agent: options.agent.clone(),
            reason: AnnouncementReason::Expired,
            backups: Vec::new(),
            packs: Vec::new(),
            wal: Vec::new(),
            requests: Vec::new(),
        };
        // Everything that is announced here is announced because of it.
        let requests: Vec<AnnouncedRequest> = request.into_iter().map(AnnouncedRequest::from).collect();
        let empty = || Announcement { requests: requests.clone(), ..empty() };
        let mut all = vec![empty()];
        let mut ranges = 0;
        let mut next = |all: &mut Vec<Announcement>| {
            ranges += 1;
            if ranges % RANGES == 0 {
                all.push(empty());
            }
        };
        let mut put = |all: &mut Vec<Announcement>, act: &dyn Fn(&mut Announcement)| {
            if let Some(last) = all.last_mut() {
                act(last);
            }
            next(all);
        };
        for id in self.backups {
            put(&mut all, &|one| one.backups.push(id));
        }
        for (backup, numbers) in self.packs {
            for packs in runs_of(backup, &numbers) {
                put(&mut all, &|one| one.packs.push(packs));
            }
        }
        for ((lineage, timeline), runs) in self.wal {
            for run in runs.iter() {
                let wal = AnnouncedWal { lineage, timeline, first: run.first.0, last: run.last.0 };
                put(&mut all, &|one| one.wal.push(wal));
            }
        }
        let says_nothing =
            |one: &Announcement| one.backups.is_empty() && one.packs.is_empty() && one.wal.is_empty();
        all.retain(|one| !(says_nothing(one) && one.requests.is_empty()));
        all
    }
}

/// Whether an object is of those that announcements of damage are about, and none that only goes with one. A manifest counts with its
/// backup.
fn can_be_damaged(object: &ClusterObject) -> bool {
    matches!(object, ClusterObject::Pack(..) | ClusterObject::Wal(_, WalEntry::File(WalFileName::Segment(_))))
}

/// Numbers as ranges.
pub(super) fn runs_of(backup: BackupId, numbers: &BTreeSet<u32>) -> Vec<AnnouncedPacks> {
    let mut runs: Vec<AnnouncedPacks> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some(last) if last.first.checked_add(last.count) == Some(n) => last.count += 1,
            _ => runs.push(AnnouncedPacks { backup, first: n, count: 1 }),
        }
    }
    runs
}
