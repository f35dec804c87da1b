//! What earlier runs announced: what is named, and for how long.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use walpoint_base::{BackupId, LineageId, TimelineId};
use walpoint_plan::retention::CLOCK_LIMIT;
use walpoint_plan::runs::{Runs, SegmentRun};
use walpoint_storage::error::Result;
use walpoint_storage::layout::{ClusterObject, ClusterPaths};

use super::delete::NAMED;
use crate::backup::{AnnouncedSet, Announcement, AnnouncementReason, Backups, NumberedAnnouncement, PackNo};
use crate::reach::Roots;

/// Every announcement there is.
#[derive(Debug)]
pub(super) struct KnownAnnouncements(Vec<NumberedAnnouncement>);

/// What some of them name.
#[derive(Default, Debug)]
pub(super) struct AnnouncedNames {
    /// Their numbers.
    numbers: Vec<u64>,
    backups: BTreeSet<BackupId>,
    packs_of: BTreeSet<BackupId>,
    set: AnnouncedSet,
    wal: BTreeMap<(LineageId, TimelineId), Runs>,
}

impl KnownAnnouncements {
    pub(super) async fn read(backups: &Backups) -> Result<Self> {
        Ok(Self(backups.announcements().await?.read))
    }

    /// What is named to be deleted.
    pub(super) fn all(&self) -> AnnouncedNames {
        self.eligible(Timestamp::MAX)
    }

    /// What to know of announcements that the store got while its clock was ahead: their grace period begins in the future.
    pub(super) fn early(
        &self,
        paths: &ClusterPaths,
        now: Timestamp,
        grace: SignedDuration,
    ) -> Option<String> {
        let expired = |one: &&NumberedAnnouncement| one.announcement.reason == AnnouncementReason::Expired;
        // Clocks that differ by less are taken for right.
        let latest = now.saturating_add(CLOCK_LIMIT).unwrap_or(Timestamp::MAX);
        let early: Vec<_> = self.0.iter().filter(expired).filter(|one| one.stored > latest).collect();
        let stored = early.iter().map(|one| one.stored).max()?;
        let until = stored.saturating_add(grace).unwrap_or(Timestamp::MAX);
        let keys: Vec<String> =
            early.iter().take(NAMED).map(|one| paths.announcement(one.n).to_string()).collect();
        Some(format!(
            "marks for deletion were stored while the store's clock was ahead, and the objects that they \
             name are not deleted before {until:.0}\nDETAIL: The store has these with times up to \
             {stored:.0}: {}.\nHINT: In a directory, set their times \
             right (touch). In another store, delete them: the next expire marks the same objects again, and deletions \
             that were asked for by name have to be asked for once more.",
            keys.join(", ")
        ))
    }

    /// What is named to be deleted by announcements that the store has had since `until` or longer.
    pub(super) fn eligible(&self, until: Timestamp) -> AnnouncedNames {
        let expired = |one: &&NumberedAnnouncement| one.announcement.reason == AnnouncementReason::Expired;
        AnnouncedNames::of(self.0.iter().filter(expired).filter(|one| one.stored <= until))
    }

    /// What is named by announcements in which deletion by name was asked for, which the store has had since `until` or longer.
    pub(super) fn eligible_by_name(&self, until: Timestamp) -> AnnouncedNames {
        let by_name = |one: &&NumberedAnnouncement| !one.announcement.requests.is_empty();
        AnnouncedNames::of(self.0.iter().filter(by_name).filter(|one| one.stored <= until))
    }

    /// Whether an announcement asks for the deletion of one of these backups.
    pub(super) fn asks_for(&self, n: u64, backups: &BTreeSet<BackupId>) -> bool {
        let requests = self.0.iter().filter(|one| one.n == n).flat_map(|one| &one.announcement.requests);
        requests.into_iter().any(|request| backups.contains(&request.backup))
    }

    /// Announcements of damage: number, and what they say.
    pub(super) fn damaged(&self) -> impl Iterator<Item = (u64, &Announcement)> {
        let damaged = self.0.iter().filter(|one| one.announcement.reason == AnnouncementReason::Damaged);
        damaged.map(|one| (one.n, &one.announcement))
    }

    /// The same, one by one: number, and what is named.
    pub(super) fn each_damaged(&self) -> impl Iterator<Item = (u64, AnnouncedNames)> {
        let damaged = self.0.iter().filter(|one| one.announcement.reason == AnnouncementReason::Damaged);
        damaged.map(|one| (one.n, AnnouncedNames::of([one])))
    }

    /// The announcements with these numbers, one by one.
    pub(super) fn each<'a>(&'a self, numbers: &'a [u64]) -> impl Iterator<Item = (u64, AnnouncedNames)> + 'a {
        self.0.iter().filter(|one| numbers.contains(&one.n)).map(|one| (one.n, AnnouncedNames::of([one])))
    }
}

impl AnnouncedNames {
    fn of<'a>(all: impl IntoIterator<Item = &'a NumberedAnnouncement>) -> Self {
        let all: Vec<&NumberedAnnouncement> = all.into_iter().collect();
        let mut named =
            Self { set: AnnouncedSet::new(all.iter().map(|one| &one.announcement)), ..Self::default() };
        for one in all {
            named.numbers.push(one.n);
            named.backups.extend(&one.announcement.backups);
            named.packs_of.extend(one.announcement.packs.iter().map(|packs| packs.backup));
            for wal in &one.announcement.wal {
                let (first, last) = wal.segments();
                let runs = named.wal.entry((wal.lineage, wal.timeline)).or_default();
                runs.add(SegmentRun { first, last, stored: 0 });
            }
        }
        named
    }

    /// Whether they name nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The announcements' numbers.
    pub(super) fn numbers(&self) -> &[u64] {
        &self.numbers
    }

    /// Backups that are named.
    pub(super) fn backups(&self) -> &BTreeSet<BackupId> {
        &self.backups
    }

    /// Backups some of whose packs are named.
    pub(super) fn packs_of(&self) -> &BTreeSet<BackupId> {
        &self.packs_of
    }

    /// Segments that are named.
    pub(super) fn wal(&self) -> &BTreeMap<(LineageId, TimelineId), Runs> {
        &self.wal
    }

    /// Whether they name an object.
    pub(super) fn names(&self, object: &ClusterObject, roots: &Roots) -> bool {
        match *object {
            ClusterObject::Intent(id)
            | ClusterObject::Progress(id)
            | ClusterObject::Published(id)
            | ClusterObject::Manifest(id) => self.backups.contains(&id),
            ClusterObject::Pack(id, n) => self.packs_of.contains(&id) && self.set.has_pack(id, PackNo(n)),
            _ => roots.lineage_segments(object).is_some_and(|segments| {
                let runs = self.wal.get(&(segments.lineage, segments.timeline));
                runs.and_then(|runs| runs.from(segments.first)).is_some_and(|run| run.first <= segments.last)
            }),
        }
    }
}
