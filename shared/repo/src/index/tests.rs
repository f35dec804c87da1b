//! The index against a repository in a directory. Segments are objects with a real header and hardly any content: the
//! index reads nothing else.

use std::collections::BTreeSet;

use proptest::prelude::*;
use walpoint_base::chain::{ChainBegin, ChainEnd, ChainFacts, Cut, Due};
use walpoint_base::crossing::CrossingFacts;
use walpoint_base::facts::{HistoryHash, SegmentMarks, TransactionRange};
use walpoint_base::{LineageId, Lsn, PgMajor, PgTimestamp, SegmentNo, SegmentSize, SystemId, TimelineId};
use walpoint_plan::runs::{Runs, SegmentRun};
use walpoint_storage::layout::Key;
use walpoint_storage::object::{ContentHash, MasterKey, RepositoryId, Sealer};
use walpoint_storage::store::StoreSettings;

use super::page::{Directory, Group};
use super::*;
use crate::repository::NewLineage;
use crate::wal::{WalArchive, WalHeader};
use crate::{Lineage, Repository};

/// An archive of 1 MiB segments in a directory.
pub(crate) struct Bed {
    pub(crate) archive: WalArchive,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) async fn bed() -> Bed {
    bed_in(tempfile::tempdir().unwrap(), None).await
}

/// The same in that directory, encrypted if there is a key.
pub(crate) async fn bed_in(dir: tempfile::TempDir, master: Option<MasterKey>) -> Bed {
    let settings = StoreSettings::at(dir.path().to_str().unwrap());
    let repository = Repository::init("main", &settings, master).await.unwrap().repository;
    let new = NewLineage {
        system_id: SystemId(7400000000000000001),
        major: PgMajor::new(17).unwrap(),
        segment_size: SegmentSize::new(1 << 20).unwrap(),
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![],
    };
    let lineage = repository.create_lineage(&"main".parse().unwrap(), new).await.unwrap();
    Bed { archive: repository.wal(&lineage), dir }
}

/// What another lineage of the same server is registered with.
pub(crate) fn like(lineage: &Lineage) -> NewLineage {
    NewLineage {
        system_id: lineage.system_id(),
        major: lineage.major,
        segment_size: lineage.segment_size,
        wal_block_size: lineage.wal_block_size,
        block_size: lineage.block_size,
        relation_segment_blocks: lineage.relation_segment_blocks,
        ack: vec![],
    }
}

/// What a segment says: one commit for each, a second apart, xid as its number.
pub(crate) fn header(lineage: LineageId, timeline: TimelineId, number: u64) -> WalHeader {
    let size = SegmentSize::new(1 << 20).unwrap();
    let start = SegmentNo(number).start(size);
    WalHeader {
        lineage,
        major: PgMajor::new(17).unwrap(),
        timeline,
        first_page_timeline: timeline,
        segment: SegmentNo(number),
        size,
        wal_block_size: 8192,
        content_len: size.bytes(),
        hash: ContentHash([u8::try_from(number % 251).unwrap(); 32]),
        first_record: Some(start + 40),
        last_record: Some(start + size.bytes() - 48),
        end: start + size.bytes(),
        records: 2,
        transactions: Some(TransactionRange::add(None, commit_time(number), u32::try_from(number).unwrap())),
        restore_points: 0,
        whole: true,
        switched: false,
        damaged: false,
        crossing: CrossingFacts::default(),
        chain: chain_of(number, start, size),
        marks: SegmentMarks::default(),
        history: HistoryHash::NONE,
        stored: "2026-11-21T10:00:00Z".parse().unwrap(),
    }
}

/// Each segment continues the one before it.
fn chain_of(number: u64, start: Lsn, size: SegmentSize) -> ChainFacts {
    let last = Some(start + size.bytes() - 48);
    let previous = (number > 0).then(|| start - 48);
    ChainFacts {
        begin: ChainBegin { previous, ..ChainBegin::default() },
        end: ChainEnd { last, complete: last, carried: Some(0), due: None },
    }
}

/// The time of the commit in a segment.
pub(crate) fn commit_time(number: u64) -> PgTimestamp {
    PgTimestamp(i64::try_from(number).unwrap() * 1_000_000)
}

impl Bed {
    pub(crate) async fn store(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            self.store_header(header(self.archive.lineage().id, TimelineId::FIRST, number)).await;
        }
    }

    pub(crate) async fn store_header(&self, header: WalHeader) {
        fixtures::header_only(&self.archive, &header).await.unwrap();
    }

    /// Stores a segment all of which is there: zeros.
    pub(crate) async fn store_whole(&self, number: u64) {
        let header = header(self.archive.lineage().id, TimelineId::FIRST, number);
        let content = vec![0; usize::try_from(header.size.bytes()).unwrap()];
        let hash = self.archive.repository().sealer().content_hash(&content);
        fixtures::with_content(&self.archive, &WalHeader { hash, ..header }, &content).await.unwrap();
    }

    async fn index(&self) -> TimelineIndex {
        TimelineIndex::load(&self.archive, TimelineId::FIRST).await.unwrap()
    }

    fn path(&self, level: u8, n: u64, generation: u32) -> std::path::PathBuf {
        let key = self.archive.paths().index_object(TimelineId::FIRST, level, n, generation);
        self.dir.path().join(key.as_str())
    }
}

const FIRST: TimelineId = TimelineId::FIRST;

#[tokio::test]
async fn groups_are_sealed_late_arrivals_are_added_and_all_can_be_rebuilt() {
    let bed = bed().await;
    let mut writer = IndexWriter::new(bed.archive.clone());
    let stored: BTreeSet<u64> = (3..1100).filter(|&n| n != 500).collect();
    bed.store(stored.iter().copied().filter(|&n| n < 1000)).await;
    let due =
        (3..35).map(|n| writer.note(SegmentNo(n).name(FIRST, SegmentSize::new(1 << 20).unwrap()), None));
    assert_eq!(due.filter(|due| *due).count(), 1, "thirty-two make it due");
    assert_eq!(writer.write_due().await.unwrap(), write::IndexWritten { groups: 1, directories: 0 });
    assert_eq!(writer.write_due().await.unwrap(), write::IndexWritten::default(), "nothing noted since");

    // The timeline goes on; the gap is sealed in once it is far enough.
    bed.store(stored.iter().copied().filter(|&n| n >= 1000)).await;
    assert_eq!(writer.catch_up(FIRST).await.unwrap(), write::IndexWritten { groups: 2, directories: 1 });
    let mut index = bed.index().await;
    assert_eq!((index.sealed_through(), index.first_unsealed()), (Some(0), SegmentNo(1024)));
    let summary = *index.summary(0).unwrap();
    assert_eq!((summary.first, summary.last, summary.present), (SegmentNo(3), SegmentNo(1023), 1020));
    assert!(!summary.is_plain_run());
    let range = summary.transactions.unwrap();
    assert_eq!((range.earliest, range.latest, range.lowest_xid), (commit_time(3), commit_time(1023), 3));
    let group = index.group(0).await.unwrap();
    assert_eq!(group.iter().count(), 1020);
    let expected = SegmentEntry::of(
        &header(bed.archive.lineage().id, FIRST, 77),
        group.get(SegmentNo(77)).unwrap().stored,
    );
    assert_eq!(group.get(SegmentNo(77)), Some(&expected));
    assert_eq!(index.open_groups().map(|g| g.iter().count()).collect::<Vec<_>>(), [76]);
    assert_eq!(writer.catch_up(FIRST).await.unwrap(), write::IndexWritten::default(), "idempotent");

    bed.store([500]).await;
    assert_eq!(writer.catch_up(FIRST).await.unwrap(), write::IndexWritten { groups: 1, directories: 1 });
    let mut index = bed.index().await;
    let late = *index.summary(0).unwrap();
    assert!(late.is_plain_run() && late.generation == summary.generation + 1);
    assert!(index.group(0).await.unwrap().get(SegmentNo(500)).is_some());

    std::fs::remove_dir_all(bed.path(1, 0, 1).parent().unwrap().parent().unwrap()).unwrap();
    writer.catch_up(FIRST).await.unwrap();
    let rebuilt = bed.index().await;
    assert_eq!(rebuilt.summary(0), Some(&GroupSummary { generation: 1, ..late }));
}

/// Whoever stores everything itself asks the store for nothing: one create for each step, and a directory for each group.
#[tokio::test]
async fn what_is_known_is_neither_listed_nor_read_back() {
    let bed = bed().await;
    let name = |n: u64| SegmentNo(n).name(FIRST, SegmentSize::new(1 << 20).unwrap());
    let mut writer = IndexWriter::new(bed.archive.clone());
    writer.catch_up(FIRST).await.unwrap();
    bed.store(1000..1200).await;
    let store = bed.archive.repository().store();
    let before = store.requests();
    // 1010 is stored and noted much later than the others.
    for number in (1000..1200).filter(|&n| n != 1010).chain([1010]) {
        if writer.note(name(number), Some(entry(number))) {
            writer.write_due().await.unwrap();
        }
    }
    let after = store.requests();
    assert_eq!((after.get - before.get, after.list - before.list), (0, 0), "{after:?}");
    // Six steps, the first of which has segments of two groups; and the first group again with its directory when the gap
    // is far behind.
    assert_eq!(after.put - before.put, 9, "{after:?}");
    let mut index = bed.index().await;
    assert_eq!(index.summary(0).unwrap().present, 23);
    assert_eq!(index.group(1).await.unwrap().iter().count(), 169);
    // What is still noted is written with the next catch-up, which finds the same as a new writer.
    writer.catch_up(FIRST).await.unwrap();
    assert_eq!(bed.index().await.summary(0).unwrap().present, 24);
    let again = IndexWriter::new(bed.archive.clone()).catch_up(FIRST).await.unwrap();
    assert_eq!(again, write::IndexWritten::default());
}

#[tokio::test]
async fn a_writer_that_was_overtaken_reads_again() {
    let bed = bed().await;
    let name = |n: u64| SegmentNo(n).name(FIRST, SegmentSize::new(1 << 20).unwrap());
    let mut writers = [IndexWriter::new(bed.archive.clone()), IndexWriter::new(bed.archive.clone())];
    bed.store(0..256).await;
    for number in 0..256u64 {
        let writer = &mut writers[usize::try_from(number % 2).unwrap()];
        if writer.note(name(number), Some(entry(number))) {
            writer.write_due().await.unwrap();
        }
    }
    assert_eq!(bed.index().await.group(0).await.unwrap().iter().count(), 256);
}

#[tokio::test]
async fn damaged_and_unfinished_index_objects_do_no_harm() {
    let bed = bed().await;
    let mut writer = IndexWriter::new(bed.archive.clone());
    bed.store(0..1100).await;
    writer.catch_up(FIRST).await.unwrap();
    // The writer died between the group and its directory.
    std::fs::remove_file(bed.path(DIRECTORY_LEVEL, 0, 1)).unwrap();
    let index = bed.index().await;
    assert_eq!((index.sealed_through(), index.open_groups().count()), (None, 2));
    assert_eq!(writer.catch_up(FIRST).await.unwrap(), write::IndexWritten { groups: 1, directories: 1 });
    let sealed = *bed.index().await.summary(0).unwrap();
    assert_eq!((sealed.generation, sealed.present), (2, 1024));

    // The sealed group is damaged: the headers say the same.
    let damaged = bed.path(GROUP_LEVEL, 0, 2);
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&damaged).unwrap();
    std::fs::File::create_new(&damaged).and_then(|mut f| std::io::Write::write_all(&mut f, &bytes)).unwrap();
    let mut index = bed.index().await;
    assert_eq!(index.group(0).await.unwrap().iter().count(), 1024);
    assert_eq!(index.problems().len(), 1, "{:?}", index.problems());

    // Deleted before expiry: the index forgets first.
    let mut gone = Runs::default();
    gone.add(SegmentRun { first: SegmentNo(0), last: SegmentNo(1029), stored: 0 });
    gone.insert(SegmentNo(1050), 0);
    writer.forget(FIRST, &gone).await.unwrap();
    assert_eq!(writer.forget(FIRST, &gone).await.unwrap(), write::IndexWritten::default(), "nothing is left");
    let mut index = bed.index().await;
    assert_eq!(index.summary(0), None);
    let open = index.group(1).await.unwrap();
    assert_eq!(open.iter().next().map(|(n, _)| n), Some(SegmentNo(1030)));
    assert!(open.get(SegmentNo(1050)).is_none() && open.get(SegmentNo(1051)).is_some());
}

#[tokio::test]
async fn two_writers_end_with_the_same_index() {
    let bed = bed().await;
    bed.store(0..1100).await;
    let write = || async {
        let mut writer = IndexWriter::new(bed.archive.clone());
        writer.catch_up(FIRST).await
    };
    let (a, b, c) = tokio::join!(write(), write(), write());
    assert!(a.is_ok() && b.is_ok() && c.is_ok(), "{a:?} {b:?} {c:?}");
    let mut index = bed.index().await;
    assert_eq!(index.summary(0).unwrap().present, 1024);
    assert_eq!(index.group(1).await.unwrap().iter().count(), 76);
}

fn entry(number: u64) -> SegmentEntry {
    SegmentEntry::of(&header(LineageId { system_id: SystemId(7), n: 1 }, FIRST, number), 1234)
}

#[test]
fn objects_survive_their_bytes_and_lies_are_errors() {
    let sealer = Sealer::plain(RepositoryId([1; 16]));
    let size = SegmentSize::new(1 << 20).unwrap();
    let key: Key = "clusters/main/7-1/index/00000001/1/000000000003.000001".parse().unwrap();
    let mut group = Group::empty(FIRST, 3);
    group.generation = 9;
    for number in [3072, 3073, 3500, 4095] {
        assert!(group.set(SegmentNo(number), Some(entry(number))));
        assert!(!group.set(SegmentNo(number), Some(entry(number))), "no change");
    }
    assert!(!group.set(SegmentNo(4096), Some(entry(4096))), "of the next group");
    let bytes = group.seal(&sealer, &key).unwrap().to_bytes();
    let open = |at| Group::open(&sealer, &key, bytes.clone(), at, size);
    assert_eq!(open((FIRST, 3, 9)).unwrap(), group);
    for other in [(TimelineId::new(2).unwrap(), 3, 9), (FIRST, 4, 9), (FIRST, 3, 8)] {
        assert!(open(other).is_err(), "{other:?}");
    }
    assert!(Directory::open(&sealer, &key, bytes.clone(), (FIRST, 3, 9)).is_err());

    let mut directory = Directory::empty(FIRST, 0);
    directory.generation = 2;
    assert!(directory.set(3, group.summary()));
    assert!(!directory.set(1024, group.summary()));
    let bytes = directory.seal(&sealer, &key).unwrap().to_bytes();
    assert_eq!(Directory::open(&sealer, &key, bytes, (FIRST, 0, 2)).unwrap(), directory);
    // A summary under another group's place is refused.
    let mut displaced = directory.clone();
    displaced.set(4, group.summary());
    let bytes = displaced.seal(&sealer, &key).unwrap().to_bytes();
    assert!(Directory::open(&sealer, &key, bytes, (FIRST, 0, 2)).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_entries_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut fields = walpoint_storage::object::bytes::Fields::new(&bytes);
        let _entry = SegmentEntry::decode(&mut fields, SegmentNo(5), SegmentSize::DEFAULT);
        let mut fields = walpoint_storage::object::bytes::Fields::new(&bytes);
        let _summary = GroupSummary::decode(&mut fields, 5);
    }

    #[test]
    fn ranges_of_xids_join_across_the_wrap(a in 0u32..1000, b in 0u32..1000, start: u32) {
        let (a, b) = (start.wrapping_add(a), start.wrapping_add(b));
        let range = |xid| Some(TransactionRange::add(None, PgTimestamp(i64::from(xid)), xid));
        let both = entry::join(range(a), range(b)).unwrap();
        prop_assert!(both.may_hold(a) && both.may_hold(b));
        prop_assert_eq!(both.count, 2);
        prop_assert_eq!(both.highest_xid.wrapping_sub(both.lowest_xid), a.wrapping_sub(b).min(b.wrapping_sub(a)));
    }
}

/// A record that fills the first segment of a group does not end in it.
#[test]
fn a_record_that_fills_the_first_segment_of_a_group_breaks_no_chain() {
    let (mut before, mut through, mut after) = (entry(1023), entry(1024), entry(1025));
    let starts = before.chain.end.last;
    before.chain.end.carried = Some(1_500_000);
    before.chain.end.complete = None;
    before.chain.end.due = Some(Due { cut: Cut::Behind, sum: 7 });
    let begin = |carried, rest| ChainBegin { carried, rest: Some([rest; 3]), ..ChainBegin::default() };
    through.chain.begin = begin(1_500_000, 5);
    through.chain.end = ChainEnd { carried: Some(500_000), ..ChainEnd::UNKNOWN };
    after.chain.begin = ChainBegin { previous: starts, ..begin(500_000, 2) };
    let fault = |after: &SegmentEntry| {
        let entries = [(SegmentNo(1024), &through), (SegmentNo(1025), after)];
        let group = GroupSummary::of(1, entries.into_iter()).unwrap();
        let mut walk = ChainWalk::new();
        assert_eq!(walk.segment(FIRST, SegmentNo(1023), &before), None);
        (group.breaks, walk.group(FIRST, &group))
    };
    assert_eq!(fault(&after), (0, None));
    // One by one, the sum is right as well; of another length it is another record.
    let mut walk = ChainWalk::new();
    for (number, entry) in [(1023, &before), (1024, &through), (1025, &after)] {
        assert_eq!(walk.segment(FIRST, SegmentNo(number), entry), None, "{number}");
    }
    through.chain.begin.carried = 1_400_000;
    let entries = [(SegmentNo(1024), &through)];
    let group = GroupSummary::of(1, entries.into_iter()).unwrap();
    let mut walk = ChainWalk::new();
    assert_eq!(walk.segment(FIRST, SegmentNo(1023), &before), None);
    assert!(walk.group(FIRST, &group).is_some());
}
