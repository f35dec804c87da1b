//! What else is stored of a cluster and read by no one: restore points, PostgreSQL's own files, segments that nothing needs or that
//! end early, index objects, superseded generations too, and the small objects that backups and holds leave. Each is read as a whole, with every
//! check it carries, and a large file with its parts.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt};
use walpoint_base::{LineageId, Lsn, SegmentName, SegmentNo, WalFileName};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::{ClusterObject, ClusterPaths, Key, WalEntry};
use walpoint_storage::object::{ObjectHeader, ObjectKind};

use super::light::NeededWal;
use super::report::{Cure, FindingKind, VerifyFinding};
use super::{Run, Segment};
use crate::wal::WalArchive;
use crate::wal::partials::contradiction;
use crate::wal::slices::{SliceName, SlicedBeginning};
use crate::whole::whole;

/// Objects that are read at the same time.
const AT_ONCE: usize = 4;

impl Run<'_> {
    /// Reads what no backup and no window needs, or what only finds the rest.
    pub(super) async fn others(&mut self, needed: &[NeededWal]) -> Result<()> {
        let needed: BTreeMap<LineageId, &NeededWal> =
            needed.iter().map(|one| (one.lineage.id, one)).collect();
        let (store, sealer) = (self.repository.store().clone(), self.repository.sealer().clone());
        let archives: BTreeMap<LineageId, WalArchive> =
            needed.iter().map(|(id, one)| (*id, self.repository.wal(&one.lineage))).collect();
        let paths = ClusterPaths::new(self.cluster);
        let listing = store.list(&paths.all(), None).try_filter_map(|entry| {
            let chosen = paths.parse(&entry.key).and_then(|object| {
                let kind = match &object {
                    ClusterObject::Point(lineage, ..)
                        if paths.wal(*lineage).parse_point_batch(&entry.key).is_some() =>
                    {
                        ObjectKind::RestorePoints
                    }
                    // The entry itself is read with all holds.
                    ClusterObject::Hold(n) if entry.key == paths.hold_given(*n) => ObjectKind::Hold,
                    _ => kind_of(&object, &needed)?,
                };
                Some((kind, object))
            });
            std::future::ready(Ok(chosen.map(|(kind, object)| (kind, object, entry.key))))
        });
        let read = listing.map(|found| async {
            let (kind, object, key) = found?;
            let result = match store.get(&key).await {
                Ok(bytes) => {
                    let header = ObjectHeader::parse(&sealer, &key, &bytes);
                    let large = header.is_ok_and(|(header, _)| header.in_parts);
                    match whole(sealer.clone(), kind, key.clone(), bytes).await {
                        Ok(_) if large => parts(&archives, &object, &key).await,
                        read => read.map(drop),
                    }
                }
                Err(error) => Err(error),
            };
            Ok::<_, RepoError>((object, key, result))
        });
        let mut read = read.buffer_unordered(AT_ONCE);
        let mut beginnings = Beginnings::default();
        while let Some(one) = read.next().await {
            let (object, key, result) = one?;
            beginnings.note(&object);
            match result {
                Ok(()) => {
                    self.report.read_object_count += 1;
                    if let Some(segment) = segment_of(&object, &needed).filter(|one| self.was_announced(*one))
                    {
                        match self.read_announced(segment, &key, &needed).await {
                            Ok(()) => drop(self.sound_wal.insert(segment)),
                            Err(error @ RepoError::Corrupt { .. }) => {
                                self.damaged_wal.insert(segment);
                                self.report.finding(finding(&object, &key, &error, &needed));
                            }
                            Err(RepoError::NotFound { .. }) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error @ RepoError::Corrupt { .. }) => {
                    // A window may lead through it all the same, and a backup of another repository may need it.
                    self.damaged_wal.extend(segment_of(&object, &needed));
                    self.report.finding(finding(&object, &key, &error, &needed));
                }
                // Deleted since it was listed.
                Err(RepoError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.beginnings(&archives, beginnings).await
    }

    /// Whether what is stored of segments that are not whole is one server's.
    async fn beginnings(
        &mut self,
        archives: &BTreeMap<LineageId, WalArchive>,
        found: Beginnings,
    ) -> Result<()> {
        let Beginnings { sliced, copied } = found;
        for ((lineage, segment), count) in copied {
            let is_one = count == 1 && !sliced.contains_key(&(lineage, segment));
            if let Some(archive) = archives.get(&lineage).filter(|_| !is_one) {
                self.copies(archive, segment).await?;
            }
        }
        for ((lineage, segment), names) in sliced {
            if let Some(archive) = archives.get(&lineage).filter(|_| !is_one_run(names)) {
                self.slices(archive, segment).await?;
            }
        }
        Ok(())
    }

    /// Whether the slices of a segment are one server's: each by itself was read before.
    async fn slices(&mut self, archive: &WalArchive, segment: SegmentName) -> Result<()> {
        // Whole, it needs none of them.
        let whole = archive.repository().store().head(&archive.paths().segment(segment)).await?;
        let beginning = match whole {
            Some(_) => None,
            None => archive.sliced_beginning(segment, Lsn(u64::MAX)).await?,
        };
        let beginning = beginning.map(|(beginning, _)| beginning).filter(SlicedBeginning::is_contradicted);
        let Some(SlicedBeginning { end, fault, .. }) = beginning else { return Ok(()) };
        self.report.finding(VerifyFinding {
            kind: FindingKind::Chain,
            object: archive.paths().sliced(segment).to_string(),
            what: fault.map(|fault| fault.to_string()).unwrap_or_default(),
            backups: Vec::new(),
            moments: Some(format!("from {end} on, on timeline {}", segment.timeline)),
            remedy: Cure::SplitBrain,
        });
        Ok(())
    }

    /// Whether the incomplete copies of a segment are one server's: each by itself was read before.
    async fn copies(&mut self, archive: &WalArchive, segment: SegmentName) -> Result<()> {
        if archive.repository().store().head(&archive.paths().segment(segment)).await?.is_some() {
            return Ok(());
        }
        let copies = archive.contradicting_copies(segment).await?;
        if copies.is_empty() {
            return Ok(());
        }
        let size = archive.lineage().segment_size;
        let start = segment.number(size).map(|number| number.start(size)).unwrap_or_default();
        self.report.finding(VerifyFinding {
            kind: FindingKind::Chain,
            object: archive.paths().file(WalFileName::Partial(segment)).to_string(),
            what: contradiction(&copies),
            backups: Vec::new(),
            moments: Some(format!("from {start} on, on timeline {}", segment.timeline)),
            remedy: Cure::SplitBrain,
        });
        Ok(())
    }

    /// Reads a segment that was announced as damaged with its parts and its records, which may be what is damaged of it.
    async fn read_announced(
        &self,
        segment: Segment,
        key: &Key,
        needed: &BTreeMap<LineageId, &NeededWal>,
    ) -> Result<()> {
        let (lineage, timeline, number) = segment;
        let Some(NeededWal { lineage, .. }) = needed.get(&lineage) else { return Ok(()) };
        let name = SegmentNo(number).name(timeline, lineage.segment_size);
        let archive = self.repository.wal(lineage);
        super::sample::segment(&archive, name, key, self.check.wal()).await.map(drop)
    }
}

/// What was read of segments that are not whole.
#[derive(Default)]
struct Beginnings {
    sliced: BTreeMap<(LineageId, SegmentName), Vec<SliceName>>,
    /// How many other copies of each.
    copied: BTreeMap<(LineageId, SegmentName), u64>,
}

impl Beginnings {
    fn note(&mut self, object: &ClusterObject) {
        let ClusterObject::Wal(lineage, entry) = *object else { return };
        match entry {
            WalEntry::Slice(segment, start, end, session) => {
                self.sliced.entry((lineage, segment)).or_default().push(SliceName { start, end, session });
            }
            WalEntry::Partial(segment, _) | WalEntry::Ended(segment, ..) => {
                *self.copied.entry((lineage, segment)).or_default() += 1;
            }
            _ => {}
        }
    }
}

/// Whether one run of a stream stored these slices, one behind the other: what a server sent once does not contradict itself.
fn is_one_run(mut names: Vec<SliceName>) -> bool {
    names.sort_unstable();
    let follows = |pair: &[SliceName]| matches!(pair, [one, next] if one.session == next.session && one.end == next.start);
    names.windows(2).all(follows)
}

/// Reads the parts that the object of a large file names.
async fn parts(archives: &BTreeMap<LineageId, WalArchive>, object: &ClusterObject, key: &Key) -> Result<()> {
    let ClusterObject::Wal(lineage, entry) = *object else { return Ok(()) };
    let Some(archive) = archives.get(&lineage) else { return Ok(()) };
    let reader = match entry {
        WalEntry::File(name) => archive.read(name).await,
        WalEntry::Ended(name, end, hash) => archive.read_ended(name, end, hash).await,
        WalEntry::Partial(name, hash) => archive.read_partial(name, hash).await,
        _ => return Ok(()),
    };
    let Some(mut reader) = reader? else { return Ok(()) };
    let mut buffer = Vec::new();
    while !reader.is_done() {
        buffer = match reader.next_part(buffer).await {
            // Its parts are deleted with it.
            Err(RepoError::Corrupt { .. }) if archive.repository().store().head(key).await?.is_none() => {
                return Ok(());
            }
            read => read?,
        };
    }
    Ok(())
}

/// The segment of a known lineage that an object holds, if it holds one.
fn segment_of(object: &ClusterObject, needed: &BTreeMap<LineageId, &NeededWal>) -> Option<Segment> {
    let ClusterObject::Wal(lineage, WalEntry::File(WalFileName::Segment(name))) = object else { return None };
    let number = name.number(needed.get(lineage)?.lineage.segment_size)?;
    Some((*lineage, name.timeline, number.0))
}

/// What an object has to be; `None` for one that is read elsewhere.
fn kind_of(object: &ClusterObject, needed: &BTreeMap<LineageId, &NeededWal>) -> Option<ObjectKind> {
    let ClusterObject::Wal(lineage, entry) = object else {
        return match object {
            ClusterObject::Index(..) => Some(ObjectKind::Index),
            ClusterObject::Summaries(_) => Some(ObjectKind::Summaries),
            ClusterObject::Evidence(_) | ClusterObject::EvidenceHead => Some(ObjectKind::Evidence),
            ClusterObject::Lease => Some(ObjectKind::Lease),
            ClusterObject::Intent(_) => Some(ObjectKind::Intent),
            ClusterObject::Progress(_) => Some(ObjectKind::Progress),
            ClusterObject::Published(_) => Some(ObjectKind::Published),
            ClusterObject::Point(..) => Some(ObjectKind::RestorePoint),
            _ => None,
        };
    };
    let is_needed = || {
        let NeededWal { lineage, timelines } = needed.get(lineage)?;
        let name = entry.segment()?;
        let number = name.number(lineage.segment_size)?;
        Some(timelines.get(&name.timeline)?.from(number)?.first <= number)
    };
    match entry {
        WalEntry::File(WalFileName::Segment(_)) => {
            Some(ObjectKind::Segment).filter(|_| is_needed() != Some(true))
        }
        WalEntry::File(WalFileName::Backup(..)) => Some(ObjectKind::BackupHistory),
        WalEntry::File(WalFileName::History(_)) => Some(ObjectKind::History),
        WalEntry::Partial(..) => Some(ObjectKind::Partial),
        WalEntry::Ended(..) => Some(ObjectKind::Ended),
        WalEntry::Slice(..) => Some(ObjectKind::Slice),
        _ => None,
    }
}

fn finding(
    object: &ClusterObject,
    key: &Key,
    error: &RepoError,
    needed: &BTreeMap<LineageId, &NeededWal>,
) -> VerifyFinding {
    let remedy = match object {
        ClusterObject::Index(..) => {
            "Delete it: it is written again with the next segments that are archived.".into()
        }
        ClusterObject::Summaries(_) => {
            "Delete it: it only repeats what manifests say, and is written again when there are many backups."
                .into()
        }
        ClusterObject::Evidence(_) => {
            "Nothing needs to be done: no restore needs it, although what it proved is lost.".into()
        }
        ClusterObject::EvidenceHead => {
            "Nothing needs to be done: it only repeats where the evidence ends, and the next record writes it again."
                .into()
        }
        ClusterObject::Lease => Cure::WaitOrForce,
        ClusterObject::Intent(_) | ClusterObject::Progress(_) => {
            "Nothing needs to be done: a finished backup does not need it, and for an unfinished one, the \
             next backup stores again what it cannot reuse."
                .into()
        }
        ClusterObject::Published(_) => {
            "Nothing needs to be done: it only says that there was a manifest.".into()
        }
        ClusterObject::Hold(_) => {
            "Nothing needs to be done: that it is there says that a hold was placed, whatever it contains."
                .into()
        }
        ClusterObject::Point(..) => {
            "Delete the object and recover to its time or LSN: the restore point cannot be found by its name."
                .into()
        }
        ClusterObject::Wal(_, WalEntry::File(WalFileName::Backup(..))) => {
            "Delete it: no restore needs PostgreSQL's note of a backup.".into()
        }
        ClusterObject::Wal(_, WalEntry::Ended(..)) => {
            "If the whole segment is stored, delete it. Otherwise take a backup: it may be the only copy \
             of its segment."
                .into()
        }
        ClusterObject::Wal(_, WalEntry::Slice(..)) => {
            "If the whole segment is stored, delete it. Otherwise, if its server is still there, restart the daemon: it stores the \
             segment from its start on. If the server is lost, restore from another repository, or to a target before it."
                .into()
        }
        // What needs it is not known where the facts of its lineage are not.
        ClusterObject::Wal(lineage, WalEntry::File(WalFileName::Segment(_)))
            if needed.contains_key(lineage) =>
        {
            "If a backup in another repository needs it, store it again. Otherwise delete it: no backup \
             that is kept here needs it."
                .into()
        }
        _ => Cure::Resupply,
    };
    VerifyFinding {
        kind: FindingKind::Damaged,
        object: key.to_string(),
        what: error.to_string(),
        backups: Vec::new(),
        moments: None,
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_slices_of_several_runs_or_that_overlap_are_compared() {
        let slice = |start, end, session| SliceName { start: Lsn(start), end: Lsn(end), session };
        assert!(is_one_run(vec![slice(0, 5, 1)]));
        assert!(is_one_run(vec![slice(5, 7, 1), slice(0, 5, 1)]), "they are read in any order");
        assert!(!is_one_run(vec![slice(0, 5, 1), slice(5, 7, 2)]), "another run");
        assert!(!is_one_run(vec![slice(0, 5, 1), slice(3, 7, 1)]));
        assert!(!is_one_run(vec![slice(0, 5, 1), slice(6, 7, 1)]), "what lies between them may be gone");
    }
}
