//! What an object of a cluster is, by its name alone.

use walpoint_base::{BackupId, LineageId, Lsn, TimelineId};

use super::{ClusterPaths, Key, WalEntry};

/// An object below `clusters/<name>`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClusterObject {
    /// The facts of a lineage.
    Lineage(LineageId),
    /// Which repositories acknowledge a lineage's WAL, since one was made anew.
    Acknowledging(LineageId, u64),
    /// What PostgreSQL archived, and slices of it.
    Wal(LineageId, WalEntry),
    /// A generation of an index object: timeline, level, number.
    Index(LineageId, TimelineId, u8, u64),
    /// A restore point: timeline and start of its record.
    Point(LineageId, TimelineId, Lsn),
    /// The beginning of a backup.
    Intent(BackupId),
    /// What an unfinished backup stored.
    Progress(BackupId),
    /// A manifest, or a tombstone in its place.
    Manifest(BackupId),
    /// What says that a backup was finished.
    Published(BackupId),
    /// A pack, and its number.
    Pack(BackupId, u32),
    /// What must not be built on.
    Announcement(u64),
    /// An entry of the sequence of holds.
    Hold(u64),
    /// Summaries of finished backups.
    Summaries(u64),
    /// An entry of the chain of evidence.
    Evidence(u64),
    /// A copy of where that chain ends.
    EvidenceHead,
    /// A lease.
    Lease,
}

impl ClusterPaths {
    /// What an object is; `None` for a stranger, and for what is not below this cluster.
    pub fn parse(&self, key: &Key) -> Option<ClusterObject> {
        let name = key.as_str().strip_prefix(&self.root)?.strip_prefix('/')?;
        let (first, rest) = name.split_once('/')?;
        let number = |made: Key| rest.parse::<u64>().ok().filter(|_| made == *key);
        let numbered = || rest.parse::<u64>().unwrap_or_default();
        match first {
            "lineages" => rest.parse().ok().map(ClusterObject::Lineage),
            "announcements" => number(self.announcement(numbered())).map(ClusterObject::Announcement),
            "holds" => match rest.strip_suffix(".given").and_then(|n| n.parse().ok()) {
                Some(n) => (self.hold_given(n) == *key).then_some(ClusterObject::Hold(n)),
                None => number(self.hold(numbered())).map(ClusterObject::Hold),
            },
            "summaries" => number(self.summaries(numbered())).map(ClusterObject::Summaries),
            "evidence" if rest == "head" => Some(ClusterObject::EvidenceHead),
            "evidence" => number(self.evidence(numbered())).map(ClusterObject::Evidence),
            "leases" => Some(ClusterObject::Lease),
            "backups" => self.parse_backup(key, rest),
            "data" => {
                let (id, file) = rest.split_once('/')?;
                let (id, n) = (id.parse().ok()?, file.strip_suffix(".pack")?.parse().ok()?);
                (self.pack(id, n) == *key).then_some(ClusterObject::Pack(id, n))
            }
            lineage => self.parse_lineage(key, lineage.parse().ok()?, rest),
        }
    }

    fn parse_backup(&self, key: &Key, rest: &str) -> Option<ClusterObject> {
        let (id, file) = rest.split_once('/')?;
        let id: BackupId = id.parse().ok()?;
        match file {
            "intent" => Some(ClusterObject::Intent(id)),
            "manifest" => Some(ClusterObject::Manifest(id)),
            "published" => Some(ClusterObject::Published(id)),
            _ => {
                let n = file.strip_prefix("progress-")?.parse().ok()?;
                (self.progress(id, n) == *key).then_some(ClusterObject::Progress(id))
            }
        }
    }

    fn parse_lineage(&self, key: &Key, lineage: LineageId, rest: &str) -> Option<ClusterObject> {
        let paths = self.wal(lineage);
        if let Some(n) = rest.strip_prefix("ack/") {
            let n = n.parse().ok()?;
            let same = self.acknowledging(lineage, n) == *key;
            return same.then_some(ClusterObject::Acknowledging(lineage, n));
        }
        if rest.starts_with("points/") {
            let one = paths.parse_point(key).map(|(_, timeline, lsn)| (timeline, lsn));
            let (timeline, lsn) = one.or_else(|| paths.parse_point_batch(key))?;
            return Some(ClusterObject::Point(lineage, timeline, lsn));
        }
        let Some(index) = rest.strip_prefix("index/") else {
            return paths.parse(key).map(|entry| ClusterObject::Wal(lineage, entry));
        };
        let (timeline, rest) = index.split_once('/')?;
        let (level, rest) = rest.split_once('/')?;
        let (n, generation) = rest.split_once('.')?;
        let timeline = TimelineId::new(u32::from_str_radix(timeline, 16).ok()?)?;
        let (level, n, generation) = (level.parse().ok()?, n.parse().ok()?, generation.parse().ok()?);
        let same = paths.index_object(timeline, level, n, generation) == *key;
        same.then_some(ClusterObject::Index(lineage, timeline, level, n))
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::{SegmentName, WalFileName};

    use super::*;

    #[test]
    fn every_name_is_told_and_strangers_are_not() {
        let paths = ClusterPaths::new(&"main".parse().unwrap());
        let lineage: LineageId = "7400000000000000001-1".parse().unwrap();
        let id: BackupId = "20261121T101500Z-00000001-0000000002000028-9f3a0c11".parse().unwrap();
        let (wal, timeline) = (paths.wal(lineage), TimelineId::new(0x1A).unwrap());
        let segment = SegmentName { timeline, log: 1, segment: 2 };
        for (key, object) in [
            (paths.lineage(lineage), ClusterObject::Lineage(lineage)),
            (paths.intent(id), ClusterObject::Intent(id)),
            (paths.progress(id, 7), ClusterObject::Progress(id)),
            (paths.manifest(id), ClusterObject::Manifest(id)),
            (paths.published(id), ClusterObject::Published(id)),
            (paths.pack(id, 12), ClusterObject::Pack(id, 12)),
            (paths.announcement(0), ClusterObject::Announcement(0)),
            (paths.hold(3), ClusterObject::Hold(3)),
            (paths.hold_given(3), ClusterObject::Hold(3)),
            (paths.evidence(4), ClusterObject::Evidence(4)),
            (paths.evidence_head(), ClusterObject::EvidenceHead),
            (paths.lease("backup", 1).unwrap(), ClusterObject::Lease),
            (
                wal.segment(segment),
                ClusterObject::Wal(lineage, WalEntry::File(WalFileName::Segment(segment))),
            ),
            (
                wal.file(WalFileName::History(timeline)),
                ClusterObject::Wal(lineage, WalEntry::File(WalFileName::History(timeline))),
            ),
            (wal.index_object(timeline, 2, 5, 6), ClusterObject::Index(lineage, timeline, 2, 5)),
            (wal.point("a b", timeline, Lsn(99)), ClusterObject::Point(lineage, timeline, Lsn(99))),
        ] {
            assert_eq!(paths.parse(&key), Some(object), "{key}");
            assert_eq!(ClusterPaths::new(&"mai".parse().unwrap()).parse(&key), None);
        }
        for stranger in [
            "clusters/main/notes.txt",
            "clusters/main/holds/1",
            "clusters/main/evidence/1",
            "clusters/main/evidence/header",
            "clusters/main/announcements/00000000000x",
            "clusters/main/backups/x/intent",
            "clusters/main/data/20261121T101500Z-00000001-0000000002000028-9f3a0c11/1.pack",
            "clusters/main/7-1/index/1A/1/000000000001.000001",
            "clusters/main/7-1/else",
            "clusters/other/holds/000000000001",
            "walpoint.json",
        ] {
            assert_eq!(paths.parse(&stranger.parse().unwrap()), None, "{stranger}");
        }
    }
}
