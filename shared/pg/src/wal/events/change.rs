//! What the body of one record says that a transaction changed.
//!
//! Sources: `src/include/access/heapam_xlog.h`, `src/include/access/xact.h`, `src/include/catalog/storage_xlog.h`, `src/include/commands/dbcommands_xlog.h`,
//! `src/include/commands/tablespace.h`, `src/include/utils/relmapper.h`, `src/include/storage/standbydefs.h`. Layouts are those of 13 to
//! 19; where they differ the code says so.

use walpoint_base::PgMajor;

use super::super::blocks::{BlockRef, Headers};
use super::super::record::{RecordHeader, Rmgr};
use super::event::{ObjectChange, RelationFile, RowCounts};
use crate::bytes;

/// The part of `xl_info` that belongs to the resource manager.
const OPERATION: u8 = 0xF0;

/// `XLOG_HEAP_OPMASK`: what is left is that the page was initialized.
const HEAP_OPERATION: u8 = 0x70;
const HEAP_INSERT: u8 = 0x00;
const HEAP_DELETE: u8 = 0x10;
const HEAP_UPDATE: u8 = 0x20;
const HEAP_HOT_UPDATE: u8 = 0x40;
/// The same in all versions, unlike its neighbors.
const HEAP2_MULTI_INSERT: u8 = 0x50;
const SMGR_CREATE: u8 = 0x10;
const RELMAP_UPDATE: u8 = 0x00;
const RUNNING_XACTS: u8 = 0x10;
const TABLESPACE_CREATE: u8 = 0x00;
const TABLESPACE_DROP: u8 = 0x10;

/// Headers, an image of the largest block, and what is said of the tuples in it.
const LONGEST: u32 = (64 << 10) + 4096;

/// `pg_class`, as an entry of the map of its database names it: `RelationRelationId`.
pub(super) const PG_CLASS: u32 = 1259;

/// Where a row lies: the block and the item in it.
pub(super) type RowPlace = (u32, u16);

/// Of one row that is changed, where it was and where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct RowPlaces {
    pub(super) old: Option<RowPlace>,
    pub(super) new: Option<RowPlace>,
}

/// What a record says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Rows(RelationFile, RowCounts, RowPlaces),
    /// A row that another transaction had inserted first was taken back (`INSERT … ON CONFLICT`).
    InsertUndone(RelationFile),
    FileCreated(RelationFile),
    Object(ObjectChange),
    /// The files of a database were removed; whether it was dropped depends on the rest of the transaction.
    DatabaseFilesRemoved(u32),
    /// Which file `pg_class` is from now on.
    ClassFile {
        database: u32,
        number: u32,
    },
    Running {
        next_xid: u32,
        oldest: u32,
    },
}

impl Change {
    /// What happened to a database or a tablespace, if no transaction did it: the old files of a database that was moved are removed so.
    pub(super) fn without_transaction(self, xid: u32) -> Result<ObjectChange, Self> {
        match self {
            Self::Object(object) if xid == 0 => Ok(object),
            Self::DatabaseFilesRemoved(database) if xid == 0 => {
                Ok(ObjectChange::DatabaseFilesRemoved(database))
            }
            change => Err(change),
        }
    }
}

/// Whether the body of such a record is needed, beside those that are decoded anyway.
pub(super) fn is_decoded(header: &RecordHeader) -> bool {
    let operation = header.info & OPERATION;
    let wanted = match header.rmgr {
        Rmgr::HEAP => {
            matches!(header.info & HEAP_OPERATION, HEAP_INSERT | HEAP_DELETE | HEAP_UPDATE | HEAP_HOT_UPDATE)
        }
        Rmgr::HEAP2 => header.info & HEAP_OPERATION == HEAP2_MULTI_INSERT,
        Rmgr::SMGR => operation == SMGR_CREATE,
        Rmgr::RELMAP => operation == RELMAP_UPDATE,
        Rmgr::STANDBY => operation == RUNNING_XACTS,
        Rmgr::TBLSPC => true,
        _ => false,
    };
    wanted && header.total <= LONGEST
}

/// Reads the body of a record of that kind. `None` if it says nothing that counts, or makes no sense.
pub(super) fn decode(rmgr: Rmgr, info: u8, body: &[u8], major: PgMajor) -> Option<Change> {
    let operation = info & OPERATION;
    match rmgr {
        Rmgr::HEAP => heap(info & HEAP_OPERATION, body, major),
        Rmgr::HEAP2 if info & HEAP_OPERATION == HEAP2_MULTI_INSERT => {
            let HeapBlocks { relation, data, .. } = HeapBlocks::read(body, major)?;
            // xl_heap_multi_insert: flags, padding, how many.
            let rows = RowCounts { inserted: u64::from(bytes::u16(data, 2)?), ..RowCounts::default() };
            Some(Change::Rows(relation, rows, RowPlaces::default()))
        }
        Rmgr::SMGR if operation == SMGR_CREATE => {
            let data = main_data(body)?;
            // xl_smgr_create: the file, then the fork: 0 is that of the rows.
            let relation = relation(data, 0)?;
            (bytes::u32(data, 12)? == 0).then_some(Change::FileCreated(relation))
        }
        Rmgr::DBASE => database(operation, main_data(body)?, major),
        Rmgr::TBLSPC => {
            let oid = bytes::u32(main_data(body)?, 0)?;
            match operation {
                TABLESPACE_CREATE => Some(Change::Object(ObjectChange::TablespaceCreated(oid))),
                TABLESPACE_DROP => Some(Change::Object(ObjectChange::TablespaceDropped(oid))),
                _ => None,
            }
        }
        Rmgr::RELMAP if operation == RELMAP_UPDATE => class_file(main_data(body)?),
        Rmgr::STANDBY if operation == RUNNING_XACTS => {
            let data = main_data(body)?;
            // xl_running_xacts: two counts, a flag, the next transaction, the oldest one that is running.
            Some(Change::Running { next_xid: bytes::u32(data, 12)?, oldest: bytes::u32(data, 16)? })
        }
        _ => None,
    }
}

fn heap(operation: u8, body: &[u8], major: PgMajor) -> Option<Change> {
    /// `XLH_DELETE_IS_SUPER`.
    const SUPER: u8 = 1 << 3;
    let one = |inserted, updated, deleted| RowCounts { inserted, updated, deleted };
    let rows = match operation {
        HEAP_INSERT => one(1, 0, 0),
        HEAP_UPDATE | HEAP_HOT_UPDATE => one(0, 1, 0),
        HEAP_DELETE => one(0, 0, 1),
        _ => return None,
    };
    let HeapBlocks { relation, block, old_block, data } = HeapBlocks::read(body, major)?;
    // xl_heap_delete: transaction, offset, state, flags.
    if operation == HEAP_DELETE && *data.get(7)? & SUPER != 0 {
        return Some(Change::InsertUndone(relation));
    }
    let at = |block, offset| bytes::u16(data, offset).map(|item| (block, item));
    let places = match operation {
        // xl_heap_insert: offset, flags.
        HEAP_INSERT => RowPlaces { old: None, new: at(block, 0) },
        HEAP_DELETE => RowPlaces { old: at(block, 4), new: None },
        // xl_heap_update: of the old one transaction, offset, state, then flags; of the new one transaction, offset.
        _ => RowPlaces { old: at(old_block.unwrap_or(block), 4), new: at(block, 12) },
    };
    Some(Change::Rows(relation, rows, places))
}

fn database(operation: u8, data: &[u8], major: PgMajor) -> Option<Change> {
    /// `XLOG_DBASE_CREATE_FILE_COPY`; before 15 `XLOG_DBASE_CREATE`.
    const COPY: u8 = 0x00;
    /// `XLOG_DBASE_CREATE_WAL_LOG`, from 15 on; before that it was the number of `XLOG_DBASE_DROP`.
    const LOGGED: u8 = 0x10;
    /// `XLOG_DBASE_DROP` from 15 on.
    const DROP: u8 = 0x20;
    let database = bytes::u32(data, 0)?;
    match (operation, major.get() >= 15) {
        (COPY, _) => Some(Change::Object(match bytes::u32(data, 8)? == database {
            true => ObjectChange::DatabaseCopied(database),
            false => ObjectChange::DatabaseCreated(database),
        })),
        (LOGGED, true) => Some(Change::Object(ObjectChange::DatabaseCreated(database))),
        (LOGGED, false) | (DROP, true) => Some(Change::DatabaseFilesRemoved(database)),
        _ => None,
    }
}

/// `xl_relmap_update`: database, tablespace, length, then the map: a magic number, how many entries, and each with the OID of the
/// relation and the number of its file.
fn class_file(data: &[u8]) -> Option<Change> {
    let (database, count) = (bytes::u32(data, 0)?, usize::try_from(bytes::u32(data, 16)?).ok()?);
    let entries = data.get(20..)?.chunks_exact(8).take(count);
    let mut class = entries.filter(|entry| bytes::u32(entry, 0) == Some(PG_CLASS));
    let number = bytes::u32(class.next()?, 4)?;
    Some(Change::ClassFile { database, number })
}

/// The lists in the record of a transaction's end. They may be long, and are read where they lie.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct EndLists<'b> {
    subtransactions: &'b [u8],
    relations: &'b [u8],
}

impl<'b> EndLists<'b> {
    /// Of the body of such a record. What makes no sense is left out.
    pub(super) fn read(info: u8, body: &'b [u8]) -> Self {
        let mut lists = Self::default();
        // What was read stays, whatever follows.
        let _complete = lists.fill(info, body);
        lists
    }

    fn fill(&mut self, info: u8, body: &'b [u8]) -> Option<()> {
        const HAS_INFO: u8 = 0x80;
        const HAS_DATABASE: u32 = 1 << 0;
        const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
        const HAS_RELATIONS: u32 = 1 << 2;
        if info & HAS_INFO == 0 {
            return Some(());
        }
        let data = main_data(body)?;
        let flags = bytes::u32(data, 8)?;
        let mut at: usize = if flags & HAS_DATABASE != 0 { 20 } else { 12 };
        let mut list = |element: usize| {
            let count = usize::try_from(bytes::u32(data, at)?).ok()?;
            let begin = at.checked_add(4)?;
            at = begin.checked_add(count.checked_mul(element)?)?;
            data.get(begin..at)
        };
        if flags & HAS_SUBTRANSACTIONS != 0 {
            self.subtransactions = list(4)?;
        }
        if flags & HAS_RELATIONS != 0 {
            self.relations = list(12)?;
        }
        Some(())
    }

    /// The transactions within it that end with it.
    pub(super) fn subtransactions(self) -> impl Iterator<Item = u32> {
        self.subtransactions.chunks_exact(4).filter_map(|xid| bytes::u32(xid, 0))
    }

    /// The relations whose files it removes.
    pub(super) fn relations(self) -> impl Iterator<Item = RelationFile> {
        self.relations.chunks_exact(12).filter_map(|file| relation(file, 0))
    }
}

fn main_data(body: &[u8]) -> Option<&[u8]> {
    super::super::record::main_data(body)
}

/// `RelFileLocator`.
fn relation(data: &[u8], at: usize) -> Option<RelationFile> {
    let (tablespace, database) = (bytes::u32(data, at)?, bytes::u32(data, at + 4)?);
    Some(RelationFile { tablespace, database, number: bytes::u32(data, at + 8)? })
}

/// The blocks that a record of a heap names.
struct HeapBlocks<'b> {
    /// The relation of the first one.
    relation: RelationFile,
    /// Its number.
    block: u32,
    /// That of the next one, if that is of the rows of the same relation: of an update, where the row was.
    old_block: Option<u32>,
    /// The main data, which is the last thing in the body and announced behind the headers of all blocks.
    data: &'b [u8],
}

impl<'b> HeapBlocks<'b> {
    fn read(body: &'b [u8], major: PgMajor) -> Option<Self> {
        let (mut first, mut old_block) = (None, None);
        let headers = Headers::read(body, body.len(), major, &mut |block| {
            let BlockRef { tablespace, database, relation: number, .. } = block;
            let named = RelationFile { tablespace, database, number };
            let (relation, _) = *first.get_or_insert((named, block.block));
            if block.id == 1 && block.fork == 0 && named == relation {
                old_block = Some(block.block);
            }
        })?;
        let (relation, block) = first?;
        Some(Self { relation, block, old_block, data: headers.main_data(body)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::fixtures::{with_prefix, words};
    use super::*;

    const FILE: RelationFile = RelationFile { tablespace: 1663, database: 5, number: 16384 };

    fn major(major: u32) -> PgMajor {
        PgMajor::new(major).unwrap()
    }

    /// A record of one block, with an image of it or without.
    fn heap_body(image: Option<&[u8]>, main: &[u8]) -> Vec<u8> {
        let mut body = vec![0, if image.is_some() { 0x10 } else { 0x20 }, 3, 0];
        body.extend(image.into_iter().flatten());
        body.extend(words(&[1663, 5, 16384, 7]));
        // The block of the visibility map that newer minor releases name too.
        body.extend([1, 0x02, 0, 0]);
        body.extend(words(&[1663, 5, 16999, 0]));
        body.extend([255, u8::try_from(main.len()).unwrap()]);
        body.extend([7; 40]);
        body.extend(main);
        body
    }

    #[test]
    fn rows_are_counted_for_the_relation_of_the_first_block() {
        let rows = |inserted, updated, deleted| {
            let old = if updated == 1 { Some((7, 0)) } else { Some((7, 5)).filter(|_| deleted == 1) };
            let new = if updated == 1 { Some((7, 0)) } else { Some((7, 1)).filter(|_| inserted == 1) };
            Some(Change::Rows(FILE, RowCounts { inserted, updated, deleted }, RowPlaces { old, new }))
        };
        let delete = [1, 0, 0, 0, 5, 0, 0, 0];
        for (at, hole) in [(13, 0x01 | 0x02), (14, 0x01 | 0x02), (15, 0x01 | 0x04), (19, 0x01 | 0x10)] {
            let image = [40, 0, 24, 0, hole, 9, 0];
            for image in [None, Some(&image[..]), Some(&[40, 0, 24, 0, 0x01][..])] {
                let heap = |info, main: &[u8]| decode(Rmgr::HEAP, info, &heap_body(image, main), major(at));
                assert_eq!(heap(0x00, &[1, 0, 0]), rows(1, 0, 0));
                assert_eq!(heap(0x80, &[1, 0, 0]), rows(1, 0, 0), "into a new page");
                assert_eq!(heap(0x20, &[0; 14]), rows(0, 1, 0));
                assert_eq!(heap(0x40, &[0; 14]), rows(0, 1, 0), "within its page");
                assert_eq!(heap(0x10, &delete), rows(0, 0, 1));
                let undone = [1, 0, 0, 0, 5, 0, 0, 0x08];
                assert_eq!(heap(0x10, &undone), Some(Change::InsertUndone(FILE)));
                for other in [0x30, 0x50, 0x60, 0x70] {
                    assert_eq!(heap(other, &delete), None, "{other:#X}");
                }
                let many = [0, 0, 41, 1, 1, 0];
                let multi = decode(Rmgr::HEAP2, 0x50, &heap_body(image, &many), major(at));
                assert_eq!(multi, rows(297, 0, 0));
            }
        }
        assert_eq!(decode(Rmgr::HEAP2, 0x20, &heap_body(None, &[0; 8]), major(16)), None);
    }

    #[test]
    fn an_update_says_where_the_row_was() {
        let mut body = vec![0, 0x20, 3, 0];
        body.extend(words(&[1663, 5, 16384, 7]));
        body.extend([1, 0x80, 0, 0, 3, 0, 0, 0, 255, 14]);
        body.extend([0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        let rows = RowCounts { updated: 1, ..RowCounts::default() };
        let places = RowPlaces { old: Some((3, 9)), new: Some((7, 2)) };
        assert_eq!(decode(Rmgr::HEAP, 0x20, &body, major(17)), Some(Change::Rows(FILE, rows, places)));
    }

    #[test]
    fn files_databases_and_tablespaces_are_read_by_version() {
        let of = |rmgr, info, data: &[u32], at| decode(rmgr, info, &with_prefix(&words(data)), major(at));
        assert_eq!(of(Rmgr::SMGR, 0x10, &[1663, 5, 16384, 0], 13), Some(Change::FileCreated(FILE)));
        assert_eq!(of(Rmgr::SMGR, 0x10, &[1663, 5, 16384, 2], 13), None, "a visibility map");
        let database = |info, data: &[u32], at| of(Rmgr::DBASE, info, data, at);
        let created = Some(Change::Object(ObjectChange::DatabaseCreated(16500)));
        for at in [13, 14, 15, 19] {
            assert_eq!(database(0x00, &[16500, 1663, 1, 1663], at), created);
            let moved = Some(Change::Object(ObjectChange::DatabaseCopied(16500)));
            assert_eq!(database(0x00, &[16500, 1664, 16500, 1663], at), moved);
            let removed = Some(Change::DatabaseFilesRemoved(16500));
            assert_eq!(database(if at < 15 { 0x10 } else { 0x20 }, &[16500, 1, 1663], at), removed);
        }
        assert_eq!(database(0x10, &[16500, 1663], 15), created);
        let tablespace = |info| of(Rmgr::TBLSPC, info, &[16600, 0], 17);
        assert_eq!(tablespace(0x00), Some(Change::Object(ObjectChange::TablespaceCreated(16600))));
        assert_eq!(tablespace(0x10), Some(Change::Object(ObjectChange::TablespaceDropped(16600))));
        let map = [5, 1663, 512, 0x0059_2717, 2, 1249, 1249, 1259, 16700, 1255, 9];
        let class = Some(Change::ClassFile { database: 5, number: 16700 });
        assert_eq!(of(Rmgr::RELMAP, 0x00, &map, 17), class);
        assert_eq!(
            of(Rmgr::STANDBY, 0x10, &[0, 0, 0, 800, 790, 799], 17),
            Some(Change::Running { next_xid: 800, oldest: 790 })
        );
    }

    #[test]
    fn the_lists_of_an_end_may_be_cut() {
        let all = words(&[0, 0, 7, 5, 1663, 2, 50, 51, 1, 1663, 5, 16384]);
        let body = with_prefix(&all);
        let lists = EndLists::read(0x80, &body);
        assert_eq!(lists.subtransactions().collect::<Vec<_>>(), [50, 51]);
        assert_eq!(lists.relations().collect::<Vec<_>>(), [FILE]);
        assert_eq!(EndLists::read(0x00, &body).relations().count(), 0, "the record says that it has none");
        let body = with_prefix(&all[..40]);
        let cut = EndLists::read(0x80, &body);
        assert_eq!((cut.subtransactions().count(), cut.relations().count()), (2, 0));
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(rmgr: u8, info: u8, body: Vec<u8>, at in 13u32..=19) {
            let _change = decode(Rmgr(rmgr), info, &body, major(at));
            let lists = EndLists::read(info, &body);
            let _all = lists.subtransactions().count() + lists.relations().count();
        }
    }
}
