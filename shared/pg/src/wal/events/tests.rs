//! Whole transactions over the records that PostgreSQL writes for them.

use proptest::prelude::*;
use walpoint_base::{Lsn, PgTimestamp};

use super::super::fixtures::{WalFixture, with_prefix, words};
use super::*;

const CLASS: u32 = 1259;

fn file(number: u32) -> RelationFile {
    RelationFile { tablespace: 1663, database: 5, number }
}

fn counts(inserted: u64, updated: u64, deleted: u64) -> RowCounts {
    RowCounts { inserted, updated, deleted }
}

/// A record of a heap: what refers to one block and has this main data, with so many bytes of data between.
fn block(number: u32, between: usize, main: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0x20];
    body.extend(u16::try_from(between).unwrap().to_le_bytes());
    body.extend(words(&[1663, 5, number, 7]));
    body.extend([255, u8::try_from(main.len()).unwrap()]);
    body.resize(body.len() + between, 9);
    body.extend(main);
    body
}

fn insert(wal: &mut WalFixture, xid: u32, number: u32, item: u8) -> Lsn {
    wal.record(10, 0x00, xid, &block(number, 40, &[item, 0, 0]))
}

fn delete(wal: &mut WalFixture, xid: u32, number: u32, item: u8) -> Lsn {
    wal.record(10, 0x10, xid, &block(number, 0, &[1, 0, 0, 0, item, 0, 0, 0]))
}

fn update(wal: &mut WalFixture, xid: u32, number: u32, (old, new): (u8, u8)) -> Lsn {
    wal.record(10, 0x40, xid, &block(number, 40, &[1, 0, 0, 0, old, 0, 0, 0, 0, 0, 0, 0, new, 0]))
}

fn copy(wal: &mut WalFixture, xid: u32, number: u32, rows: u8) -> Lsn {
    wal.record(9, 0x50, xid, &block(number, 3000, &[0, 0, rows, 0]))
}

fn create_file(wal: &mut WalFixture, xid: u32, number: u32) -> Lsn {
    wal.record(2, 0x10, xid, &with_prefix(&words(&[1663, 5, number, 0])))
}

/// The next transaction is this one, and none is running.
fn running(wal: &mut WalFixture, next: u32) -> Lsn {
    wal.record(8, 0x10, 0, &with_prefix(&words(&[0, 0, 0, next, next, next - 1])))
}

/// The end of a transaction with these within it, that removes the files of these relations.
fn end(wal: &mut WalFixture, info: u8, xid: u32, (within, removed): (&[u32], &[u32])) -> Lsn {
    let mut data = words(&[7, 0, 1 << 1 | 1 << 2, u32::try_from(within.len()).unwrap()]);
    data.extend(words(within));
    data.extend(words(&[u32::try_from(removed.len()).unwrap()]));
    for number in removed {
        data.extend(words(&[1663, 5, *number]));
    }
    wal.record(1, 0x80 | info, xid, &with_prefix(&data))
}

fn read(wal: &WalFixture, piece: usize) -> (Vec<WalEvent>, EventReader) {
    let mut reader = EventReader::new();
    let mut found = Vec::new();
    for (name, content) in wal.segments() {
        reader.begin(name, content.len() as u64);
        content.chunks(piece).for_each(|piece| reader.feed(piece).unwrap());
        reader.end().unwrap();
        found.extend(reader.take());
    }
    (found, reader)
}

fn transactions(wal: &WalFixture) -> Vec<TransactionEvent> {
    let (events, _) = read(wal, 1 << 20);
    let ended = events.into_iter().filter_map(|event| match event {
        WalEvent::Transaction(event) => Some(*event),
        _ => None,
    });
    ended.collect()
}

#[test]
fn a_transaction_has_its_rows_and_those_of_what_was_committed_within_it() {
    for major in 13..=19 {
        let mut wal = WalFixture::new(major, 1);
        running(&mut wal, 100);
        let first = insert(&mut wal, 100, 16384, 1);
        insert(&mut wal, 200, 16384, 2);
        copy(&mut wal, 101, 16390, 250);
        update(&mut wal, 102, 16384, (1, 3));
        delete(&mut wal, 103, 16390, 1);
        // To a savepoint, with what was released within that.
        end(&mut wal, 0x20, 102, (&[103], &[]));
        update(&mut wal, 100, 16384, (1, 3));
        let commit = end(&mut wal, 0x00, 100, (&[101], &[]));
        wal.abort(200, 9);
        let found = transactions(&wal);
        let of = |xid| found.iter().find(|event| event.xid == xid).unwrap();
        let whole = of(100);
        assert_eq!(whole.rows, [(file(16384), counts(1, 1, 0)), (file(16390), counts(250, 0, 0))]);
        assert!(whole.committed && !whole.at_least && !whole.prepared, "{whole:?}");
        assert_eq!((whole.first, whole.lsn, whole.time), (first, commit, PgTimestamp(7)));
        assert_eq!((whole.subtransactions, whole.total()), (1, counts(251, 1, 0)));
        let back = of(102);
        assert_eq!(back.rows, [(file(16384), counts(0, 1, 0)), (file(16390), counts(0, 0, 1))]);
        assert!(!back.committed && !of(200).committed);
        assert_eq!(of(200).rows, [(file(16384), counts(1, 0, 0))]);
    }
}

#[test]
fn a_prepared_transaction_survives_a_restart_and_others_do_not() {
    let mut wal = WalFixture::new(17, 1);
    running(&mut wal, 100);
    insert(&mut wal, 100, 16384, 1);
    insert(&mut wal, 101, 16384, 2);
    insert(&mut wal, 102, 16384, 3);
    // xl_xact_prepare: one transaction within it, a name of four bytes with its end.
    let mut prepare = words(&[0, 0, 100, 5, 7, 0, 0, 1, 0, 0, 0]);
    prepare.resize(54, 0);
    prepare.extend([4, 0]);
    prepare.resize(72, 0);
    prepare.extend(b"one\0\0\0\0\0");
    prepare.extend(words(&[101]));
    wal.record(1, 0x10, 100, &with_prefix(&prepare));
    // A checkpoint of a shutdown: redo, timelines, a flag, the next transaction.
    let mut checkpoint = words(&[0, 0, 1, 1, 1, 0, 103, 0]);
    checkpoint.resize(88, 0);
    wal.record(0, 0x00, 0, &with_prefix(&checkpoint));
    wal.commit_prepared(100, 9);
    let (found, reader) = read(&wal, 1 << 20);
    let [WalEvent::Prepared { xid: 100, gid, .. }, WalEvent::Shutdown { .. }, WalEvent::Transaction(end)] =
        &found[..]
    else {
        panic!("{found:?}")
    };
    assert_eq!(gid, "one");
    assert!(end.prepared && end.committed && !end.at_least);
    assert_eq!(end.rows, [(file(16384), counts(2, 0, 0))]);
    assert_eq!(reader.without_end(), 1, "102 is lost");
}

#[test]
fn what_may_be_more_says_so() {
    let mut wal = WalFixture::new(17, 1);
    insert(&mut wal, 99, 16384, 1);
    insert(&mut wal, 100, 16384, 1);
    wal.commit(99, 1);
    running(&mut wal, 101);
    wal.commit(100, 2);
    insert(&mut wal, 101, 16384, 1);
    wal.commit(101, 3);
    insert(&mut wal, 102, 16384, 1);
    let at_least = |found: &[WalEvent]| -> Vec<(u32, bool)> {
        let of = |event: &WalEvent| match event {
            WalEvent::Transaction(event) => Some((event.xid, event.at_least)),
            _ => None,
        };
        found.iter().filter_map(of).collect()
    };
    let (found, mut reader) = read(&wal, 1 << 20);
    assert_eq!(at_least(&found), [(99, true), (100, true), (101, false)]);
    // Behind a gap, what was open before it and what may have begun in it.
    reader.gap();
    let mut behind = WalFixture::at(17, 1, 9);
    // 102 is the oldest one that runs, and 104 the next one.
    behind.record(8, 0x10, 0, &with_prefix(&words(&[0, 0, 0, 104, 102, 103])));
    behind.commit(102, 4);
    insert(&mut behind, 103, 16384, 1);
    behind.commit(103, 5);
    insert(&mut behind, 104, 16384, 1);
    behind.commit(104, 6);
    let (name, content) = behind.segments().swap_remove(0);
    reader.begin(name, content.len() as u64);
    reader.feed(&content).unwrap();
    let found = reader.take();
    assert_eq!(at_least(&found), [(102, true), (103, true), (104, false)]);
    let WalEvent::Transaction(first) = &found[0] else { panic!("{found:?}") };
    assert_eq!(first.rows, [(file(16384), counts(1, 0, 0))], "what was read of it counts");
}

#[test]
fn a_drop_is_distinguished_from_a_truncation_and_a_rewrite() {
    let removal = |act: &dyn Fn(&mut WalFixture), removed: &[u32]| {
        let mut wal = WalFixture::new(17, 1);
        running(&mut wal, 100);
        act(&mut wal);
        end(&mut wal, 0x00, 100, (&[], removed));
        let event = transactions(&wal).swap_remove(0);
        assert_eq!(event.removed, removed.iter().map(|number| file(*number)).collect::<Vec<_>>());
        event.removal()
    };
    let truncate = |wal: &mut WalFixture| {
        create_file(wal, 100, 16400);
        update(wal, 100, CLASS, (1, 9));
    };
    let dropped = |wal: &mut WalFixture| {
        update(wal, 100, CLASS, (2, 8));
        delete(wal, 100, CLASS, 8);
    };
    // A relation is made for the new file, the two change files, and it is dropped.
    let rewrite = |wal: &mut WalFixture| {
        create_file(wal, 100, 16500);
        insert(wal, 100, CLASS, 20);
        update(wal, 100, CLASS, (20, 21));
        update(wal, 100, CLASS, (1, 22));
        delete(wal, 100, CLASS, 21);
    };
    assert_eq!(removal(&truncate, &[16384]), Some(FileRemoval::Replaced));
    assert_eq!(removal(&rewrite, &[16384]), Some(FileRemoval::Replaced));
    assert_eq!(removal(&dropped, &[16385]), Some(FileRemoval::Dropped));
    let both = |wal: &mut WalFixture| {
        truncate(wal);
        dropped(wal);
    };
    assert_eq!(removal(&both, &[16384, 16385]), Some(FileRemoval::Unclear));
    assert_eq!(removal(&|_| {}, &[16384]), Some(FileRemoval::Unclear), "pg_class may be another file");
    // What was created in the same transaction was not there before.
    let made = |wal: &mut WalFixture| {
        create_file(wal, 100, 16600);
        insert(wal, 100, CLASS, 30);
        delete(wal, 100, CLASS, 30);
    };
    assert_eq!(removal(&made, &[16600]), None);
    let made_and_dropped = |wal: &mut WalFixture| {
        made(wal);
        dropped(wal);
    };
    assert_eq!(removal(&made_and_dropped, &[16600, 16385]), Some(FileRemoval::Dropped));
    // The map of the database says which file pg_class is.
    let mapped = |wal: &mut WalFixture| {
        let mut map = words(&[5, 1663, 512, 0x0059_2717, 1, CLASS, 17000]);
        map.resize(532, 0);
        wal.record(7, 0x00, 90, &with_prefix(&map));
        delete(wal, 100, 17000, 2);
    };
    assert_eq!(removal(&mapped, &[16385]), Some(FileRemoval::Dropped));
}

#[test]
fn a_file_whose_record_names_no_transaction_is_its_that_locks_the_relation() {
    let mut wal = WalFixture::new(13, 1);
    running(&mut wal, 100);
    create_file(&mut wal, 0, 16400);
    create_file(&mut wal, 0, 16500);
    wal.lock(100, 16400);
    wal.commit(100, 1);
    let (found, reader) = read(&wal, 4096);
    let WalEvent::Transaction(event) = &found[0] else { panic!("{found:?}") };
    assert_eq!(event.created, [file(16400)]);
    assert_eq!(reader.unattributed_files(), 1);
}

#[test]
fn a_database_is_dropped_with_its_row() {
    for major in [13, 14, 15, 19] {
        let mut wal = WalFixture::new(major, 1);
        running(&mut wal, 100);
        let tuple = crate::wal::SharedTuple { relation: 1262, block: 0, offset: 4 };
        let marked = wal.change_in_place(tuple);
        wal.delete_shared(100, tuple);
        wal.remove_database(100, 16500);
        wal.commit(100, 1);
        wal.remove_database(101, 16600);
        wal.commit(101, 1);
        let moved = wal.remove_database(0, 16700);
        let found = transactions(&wal);
        assert_eq!(found[0].objects, [ObjectChange::DatabaseDropped(16500)], "{major}");
        assert_eq!(found[0].irrevocable, Some(marked), "{major}");
        assert_eq!(found[1].objects, [ObjectChange::DatabaseFilesRemoved(16600)], "{major}");
        assert_eq!(found[1].irrevocable, None);
        let change = ObjectChange::DatabaseFilesRemoved(16700);
        assert_eq!(read(&wal, 9000).0.last(), Some(&WalEvent::Object { lsn: moved, change }));
    }
}

#[test]
fn too_many_open_transactions_are_counted_at_least() {
    let mut wal = WalFixture::new(17, 16);
    running(&mut wal, 1000);
    let many = u32::try_from(ENTRIES).unwrap() / 2 + 10;
    for xid in 1000..1000 + many {
        insert(&mut wal, xid, 16384, 1);
    }
    wal.commit(1000, 1);
    wal.commit(1000 + many - 1, 1);
    // Since there is room again, later ones are exact.
    insert(&mut wal, 1000 + many, 16384, 1);
    wal.commit(1000 + many, 1);
    let found = transactions(&wal);
    let shown: Vec<_> = found.iter().map(|event| (event.at_least, event.total().inserted)).collect();
    assert_eq!(shown, [(false, 1), (true, 0), (false, 1)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Wherever pages, segments and pieces begin.
    #[test]
    fn events_do_not_depend_on_the_pieces(left in 1usize..60, piece in 1usize..70_000, rows in 1u8..200) {
        let mut wal = WalFixture::new(16, 1);
        running(&mut wal, 100);
        wal.fill_segment_but(left * 8);
        insert(&mut wal, 100, 16384, 1);
        copy(&mut wal, 101, 16390, rows);
        end(&mut wal, 0x00, 100, (&[101], &[16384]));
        wal.restore_point("there", 5);
        wal.switch();
        let (found, _) = read(&wal, piece);
        let [WalEvent::Transaction(event), WalEvent::RestorePoint { name, .. }, WalEvent::Switch { .. }] =
            &found[..] else { panic!("{found:?}") };
        prop_assert_eq!(name, "there");
        let expected = [(file(16384), counts(1, 0, 0)), (file(16390), counts(u64::from(rows), 0, 0))];
        prop_assert_eq!(&event.rows[..], &expected[..]);
        prop_assert_eq!(&event.removed[..], &[file(16384)][..]);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let mut reader = EventReader::new();
        let mut wal = WalFixture::new(16, 1);
        wal.commit(3, 3);
        let (name, _) = wal.segments().swap_remove(0);
        reader.begin(name, 1 << 20);
        let _fed = reader.feed(&bytes);
        let _ended = reader.end();
    }
}

#[test]
fn another_copy_continues_where_the_first_one_cannot_be_followed() {
    let mut wal = WalFixture::new(17, 1);
    running(&mut wal, 100);
    insert(&mut wal, 100, 16384, 1);
    wal.fill_segment_but(32);
    // Its record crosses the end of the segment.
    end(&mut wal, 0x00, 100, (&[], &[16384]));
    let [(first, content), (second, rest)] = &wal.segments()[..] else { panic!("two segments") };
    let mut reader = EventReader::new();
    reader.begin(*first, content.len() as u64);
    reader.feed(content).unwrap();
    assert_eq!(reader.end(), Ok(SegmentEnd::Whole));
    let position = reader.position();
    // The length of what the first page continues.
    let mut other = rest.clone();
    other[16] ^= 1;
    reader.begin(*second, other.len() as u64);
    reader.feed(&other).unwrap_err();
    assert!(position < reader.position() && reader.take().is_empty(), "no record of it ended");
    reader.begin(*second, rest.len() as u64);
    reader.feed(rest).unwrap();
    let found = reader.take();
    let [WalEvent::Transaction(event)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((event.at_least, &event.rows[..]), (false, &[(file(16384), counts(1, 0, 0))][..]));
}
