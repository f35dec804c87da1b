//! Everything that is needed, and what that means for one object.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, LineageId, Lsn, SegmentNo, SegmentSize, TimelineId, WalFileName};
use walpoint_plan::reach::WalNeed;
use walpoint_plan::runs::{Runs, SegmentRun};
use walpoint_storage::layout::{ClusterObject, WalEntry};

use crate::index::{DIRECTORY_LEVEL, FANOUT, first_of, last_of};

/// A class of objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "ObjectClass")]
pub enum Class {
    /// What describes a backup: intent, progress and manifest, or tombstone.
    Backup,
    /// Packs.
    Pack,
    /// Segments, whole or not.
    Segment,
    /// PostgreSQL's backup history files.
    BackupHistory,
    /// Index objects.
    Index,
    /// Restore points.
    RestorePoint,
}

impl Class {
    /// Every class.
    pub const ALL: [Class; 6] =
        [Self::Backup, Self::Pack, Self::Segment, Self::BackupHistory, Self::Index, Self::RestorePoint];

    /// Its name for people; in JSON it is the same.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Pack => "pack",
            Self::Segment => "segment",
            Self::BackupHistory => "backup-history",
            Self::Index => "index",
            Self::RestorePoint => "restore-point",
        }
    }
}

/// What an object is to reachability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// Somebody may need it.
    Needed(Class),
    /// Nobody can.
    Unneeded(Class),
    /// It is never a matter of retention: lineages, histories, holds, evidence, leases, what is announced.
    Kept,
}

/// Consecutive segments of a timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LineageSegments {
    /// The lineage.
    pub lineage: LineageId,
    /// The timeline.
    pub timeline: TimelineId,
    /// The first one.
    pub first: SegmentNo,
    /// The last one.
    pub last: SegmentNo,
}

/// Everything that is needed of a cluster.
#[derive(Clone, Default, Debug)]
pub struct Roots {
    /// Backups whose intent, progress and manifest are.
    backups: BTreeSet<BackupId>,
    /// Backups all of whose packs are.
    whole: BTreeSet<BackupId>,
    /// Backups whose manifest, or the tombstone in its place, is.
    manifests: BTreeSet<BackupId>,
    /// Packs, by the backup that wrote them.
    packs: HashMap<BackupId, BTreeSet<u32>>,
    /// All packs of backups up to this one are, by id or by position: a manifest that may refer to them cannot be read.
    packs_until: Option<(BackupId, Lsn)>,
    lineages: BTreeMap<LineageId, (SegmentSize, WalNeed)>,
    /// Backups that were listed.
    known: BTreeSet<BackupId>,
}

impl Roots {
    /// A backup's own objects are needed, but not its packs.
    pub fn keep_backup(&mut self, id: BackupId) {
        self.backups.insert(id);
    }

    /// What stands in the manifest's place is needed: a tombstone, so that nobody can finish the backup after all.
    pub fn keep_manifest(&mut self, id: BackupId) {
        self.manifests.insert(id);
    }

    /// All packs that a backup wrote are.
    pub fn keep_all_packs(&mut self, id: BackupId) {
        self.whole.insert(id);
    }

    /// A pack is.
    pub fn keep_pack(&mut self, id: BackupId, pack: u32) {
        self.packs.entry(id).or_default().insert(pack);
    }

    /// All packs of that backup and of every older one are. An older one may have the younger id, if the server's clock was ahead: its
    /// position tells. Elsewhere positions tell nothing, and keep more than is needed.
    pub fn keep_packs_until(&mut self, id: BackupId) {
        let (until, start) = self.packs_until.unwrap_or((id, id.start()));
        self.packs_until = Some((until.max(id), start.max(id.start())));
    }

    /// WAL of a lineage is.
    pub fn keep_wal(&mut self, lineage: LineageId, size: SegmentSize, need: WalNeed) {
        self.lineages.insert(lineage, (size, need));
    }

    /// Remembers backups that are listed, whatever becomes of them.
    pub fn know(&mut self, ids: impl IntoIterator<Item = BackupId>) {
        self.known.extend(ids);
    }

    /// Whether an object is of a backup that was listed, or of none.
    pub fn knows(&self, object: &ClusterObject) -> bool {
        match object {
            ClusterObject::Intent(id)
            | ClusterObject::Progress(id)
            | ClusterObject::Published(id)
            | ClusterObject::Manifest(id)
            | ClusterObject::Pack(id, _) => self.known.contains(id),
            _ => true,
        }
    }

    /// The segments of some runs that nobody needs.
    pub fn unneeded(&self, lineage: LineageId, timeline: TimelineId, runs: &Runs) -> Runs {
        let needed = self.lineages.get(&lineage).map(|(_, need)| need.needed(timeline));
        let mut rest = Runs::default();
        // Of a lineage or timeline that is not known everything is needed.
        let Some(Some(needed)) = needed else { return rest };
        for run in runs.iter() {
            let mut cursor = run.first;
            while cursor <= run.last {
                let next = needed.from(cursor);
                let end = next.map_or(run.last, |n| SegmentNo(n.first.0.saturating_sub(1)).min(run.last));
                if next.is_none_or(|next| next.first > cursor) {
                    rest.add(SegmentRun { first: cursor, last: end, stored: 0 });
                }
                let Some(next) = next else { break };
                cursor = next.last.next();
            }
        }
        rest
    }

    /// The first segment of a timeline that is needed, if any is.
    pub fn first_needed(&self, lineage: LineageId, timeline: TimelineId) -> Option<SegmentNo> {
        self.lineages.get(&lineage)?.1.needed(timeline)?.first()
    }

    /// Whether any segment of a timeline from `first` to `last` is needed.
    pub fn needs_segments(
        &self,
        lineage: LineageId,
        timeline: TimelineId,
        first: SegmentNo,
        last: SegmentNo,
    ) -> bool {
        self.lineages.get(&lineage).is_none_or(|(_, need)| need.needs_any(timeline, first, last))
    }

    /// Whether a pack is needed.
    pub fn needs_pack(&self, id: BackupId, pack: u32) -> bool {
        self.whole.contains(&id)
            || self.packs_until.is_some_and(|(until, start)| id <= until || id.start() <= start)
            || self.packs.get(&id).is_some_and(|packs| packs.contains(&pack))
    }

    /// Whether a backup's own objects are needed.
    pub fn needs_backup(&self, id: BackupId) -> bool {
        self.backups.contains(&id)
    }

    /// The segments that an object is about; `None` for what is not about WAL, and where nobody knows.
    pub fn lineage_segments(&self, object: &ClusterObject) -> Option<LineageSegments> {
        let (lineage, timeline, first, last) = match *object {
            ClusterObject::Wal(lineage, entry) => {
                let name = entry.segment()?;
                let number = name.number(self.lineages.get(&lineage)?.0)?;
                (lineage, name.timeline, number, number)
            }
            ClusterObject::Point(lineage, timeline, lsn) => {
                let number = SegmentNo::of(lsn, self.lineages.get(&lineage)?.0);
                (lineage, timeline, number, number)
            }
            ClusterObject::Index(lineage, timeline, level, n) => {
                let (first, last) = segments_of(level, n);
                (lineage, timeline, first, last)
            }
            _ => return None,
        };
        Some(LineageSegments { lineage, timeline, first, last })
    }

    fn needs_segments_of(&self, object: &ClusterObject) -> bool {
        let Some(LineageSegments { lineage, timeline, first, last }) = self.lineage_segments(object) else {
            return true;
        };
        self.needs_segments(lineage, timeline, first, last)
    }

    /// Judges one object.
    pub fn judge(&self, object: &ClusterObject) -> Judgement {
        let (class, needed) = match *object {
            ClusterObject::Intent(id) | ClusterObject::Progress(id) | ClusterObject::Published(id) => {
                (Class::Backup, self.needs_backup(id))
            }
            ClusterObject::Manifest(id) => {
                (Class::Backup, self.needs_backup(id) || self.manifests.contains(&id))
            }
            ClusterObject::Pack(id, pack) => (Class::Pack, self.needs_pack(id, pack)),
            ClusterObject::Wal(_, entry) => {
                if entry.segment().is_none() {
                    return Judgement::Kept;
                }
                let class = match entry {
                    WalEntry::File(WalFileName::Backup(..)) => Class::BackupHistory,
                    _ => Class::Segment,
                };
                (class, self.needs_segments_of(object))
            }
            ClusterObject::Point(..) => (Class::RestorePoint, self.needs_segments_of(object)),
            ClusterObject::Index(..) => (Class::Index, self.needs_segments_of(object)),
            ClusterObject::Lineage(_)
            | ClusterObject::Acknowledging(..)
            | ClusterObject::Announcement(_)
            | ClusterObject::Hold(_)
            | ClusterObject::Summaries(_)
            | ClusterObject::Evidence(_)
            | ClusterObject::EvidenceHead
            | ClusterObject::Lease => return Judgement::Kept,
        };
        if needed { Judgement::Needed(class) } else { Judgement::Unneeded(class) }
    }
}

/// The first and the last segment that an index object is about.
fn segments_of(level: u8, n: u64) -> (SegmentNo, SegmentNo) {
    if level == DIRECTORY_LEVEL {
        let first = n.saturating_mul(FANOUT);
        return (first_of(first), last_of(first.saturating_add(FANOUT - 1)));
    }
    (first_of(n), last_of(n))
}
