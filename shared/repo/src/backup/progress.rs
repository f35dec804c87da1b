//! What an unfinished backup has stored, so that the next one need not store it again.
//!
//! Progress objects of a backup are numbered from 0. Each names the packs that were stored since the one before, and
//! ranges of files (each up to a leaf's) all of whose blocks are in packs named up to here, or in other backups'. They
//! mean nothing once there is a manifest.

use walpoint_base::BackupId;
use walpoint_storage::layout::Key;
use walpoint_storage::object::{ObjectKind, ObjectReader, ObjectWriter, SealedObject, Sealer};

use super::blocks::BlockList;
use super::geometry::BlockSize;
use super::location::{BackupRef, RefWriter, read_id, read_refs};
use super::manifest::{EncodeError, MAX_TABLES};
use super::pack_table::PackTable;
use super::path::TablePath;
use super::wire::{Input, Malformed, Output};

/// One progress object, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgressObject {
    /// Every backup that the ranges refer to; the first is the one that was written.
    pub backups: Vec<BackupId>,
    /// Its packs that were stored since the progress object before.
    pub packs: PackTable,
    /// What is in them, in no order. A file's ranges may be in several progress objects, and the file itself not whole.
    pub ranges: Vec<BlockRange>,
}

/// Up to 2,048 blocks of a file, as they were read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockRange {
    /// The file.
    pub path: TablePath,
    /// Which range of it: of 2,048 blocks each, counted from 0.
    pub leaf: u32,
    /// How many bytes it has.
    pub bytes: u32,
    /// Its blocks.
    pub blocks: BlockList,
}

impl BlockRange {
    pub(super) fn decode(
        input: &mut Input<'_>,
        refs: &[BackupRef],
        block_size: BlockSize,
    ) -> Result<Self, Malformed> {
        let (path, leaf, bytes) = (TablePath::decode(input)?, input.u32()?, input.u32()?);
        let count = u32::try_from(block_size.blocks(u64::from(bytes))).unwrap_or(u32::MAX);
        Ok(Self { path, leaf, bytes, blocks: BlockList::decode(input, refs, count)? })
    }

    /// How long each block is.
    pub(super) fn length(&self) -> u64 {
        u64::from(self.bytes)
    }
}

/// Writes a range: path, number of the leaf, bytes (32 bits each), then the list.
pub(super) fn encode_range(
    path: &TablePath,
    leaf: u32,
    bytes: u32,
    blocks: &BlockList,
    out: &mut Vec<u8>,
    refs: &mut RefWriter,
) {
    path.encode(out);
    out.put_u32(leaf);
    out.put_u32(bytes);
    blocks.encode(out, refs);
}

/// One progress object to be written; its ranges are encoded already, with `refs`.
#[derive(Debug)]
pub(super) struct EncodedProgress<'a> {
    pub(super) backups: &'a [BackupId],
    pub(super) packs: PackTable,
    pub(super) refs: &'a RefWriter,
    pub(super) ranges: &'a [Vec<u8>],
}

impl EncodedProgress<'_> {
    /// Number of backups (16 bits), their ids, the pack table, the table of backups that the ranges use, the number of
    /// ranges (32 bits), the ranges.
    pub(super) fn seal(&self, sealer: &Sealer, key: &Key) -> Result<SealedObject, EncodeError> {
        let mut out = Vec::new();
        let count = u16::try_from(self.backups.len());
        out.put_u16(count.map_err(|_| Malformed::new("it uses too many backups"))?);
        self.backups.iter().for_each(|id| out.put(&id.to_bytes()));
        self.packs.encode(&mut out);
        self.refs.encode(&mut out, self.backups)?;
        out.put_count(self.ranges.len());
        self.ranges.iter().for_each(|range| out.put(range));
        if out.len() > MAX_TABLES {
            return Err(Malformed(format!("{} bytes are too many", out.len())).into());
        }
        let mut writer = ObjectWriter::new(sealer, ObjectKind::Progress, key)?;
        writer.frames(&out, 1 << 20)?;
        Ok(writer.finish()?)
    }
}

impl ProgressObject {
    pub(super) fn read(reader: ObjectReader, id: BackupId, block_size: BlockSize) -> Result<Self, Malformed> {
        let mut bytes = Vec::new();
        reader.read_all(MAX_TABLES, &mut bytes).map_err(|e| Malformed(e.to_string()))?;
        let progress = Self::decode(&bytes, block_size)?;
        match progress.backups.first() {
            Some(first) if *first == id => Ok(progress),
            _ => Err(Malformed::new("it is another backup's")),
        }
    }

    fn decode(bytes: &[u8], block_size: BlockSize) -> Result<Self, Malformed> {
        /// Path, number, bytes, and an empty list.
        const SHORTEST: usize = 2 + 2 + 4 + 4 + 2;
        let mut input = Input::new(bytes);
        let count = usize::from(input.u16()?);
        let mut backups = Vec::with_capacity(count.min(input.len() / BackupId::ENCODED));
        for _ in 0..count {
            backups.push(read_id(&mut input)?);
        }
        let packs = PackTable::decode(&mut input, backups.len())?;
        let refs = read_refs(&mut input, &backups)?;
        let count = input.count(SHORTEST)?;
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            ranges.push(BlockRange::decode(&mut input, &refs, block_size)?);
        }
        input.end()?;
        Ok(Self { backups, packs, ranges })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::blocks::tests::{any_place, id};
    use super::super::location::PackNo;
    use super::super::pack_table::PackUse;
    use super::*;

    fn size() -> BlockSize {
        BlockSize::new(8192).unwrap()
    }

    proptest! {
        #[test]
        fn ranges_come_back(places in proptest::collection::vec((any_place(), any::<u64>()), 1..300), leaf: u32) {
            let mut blocks = BlockList::default();
            places.iter().for_each(|(place, hash)| blocks.push(*place, *hash));
            let path = TablePath::data("base/5/1259").unwrap();
            let bytes = u32::try_from(places.len()).unwrap() * 8192 - 5;
            let range = BlockRange { path, leaf, bytes, blocks };
            let (mut refs, mut row) = (RefWriter::default(), Vec::new());
            encode_range(&range.path, leaf, bytes, &range.blocks, &mut row, &mut refs);
            let backups = [id(0), id(1), id(2)];
            let pack = PackUse { backup: BackupRef(0), pack: PackNo(3), size: 5, units: 4, live: 4 };
            let packs = PackTable::new(vec![pack]);
            let encoded = EncodedProgress { backups: &backups, packs: packs.clone(), refs: &refs, ranges: &[row] };
            let key: Key = "clusters/main/backups/x/progress-00000000".parse().unwrap();
            for sealer in walpoint_storage::object::testing::sealers() {
                let object = encoded.seal(&sealer, &key).unwrap();
                let open = || ObjectReader::open(&sealer, &[ObjectKind::Progress], &key, object.to_bytes()).unwrap();
                let back = ProgressObject::read(open(), id(0), size()).unwrap();
                prop_assert_eq!(back.ranges, vec![range.clone()]);
                prop_assert_eq!(&back.packs, &packs);
                prop_assert!(ProgressObject::read(open(), id(1), size()).is_err());
            }
        }

        #[test]
        fn any_bytes_are_progress_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            ProgressObject::decode(&bytes, size()).ok();
            ProgressObject::decode(&[&[0; 8], &bytes[..]].concat(), size()).ok();
        }
    }
}
