//! The manifest: the root from which all of a backup is found. It fits into one object whatever the cluster's size,
//! because files are in index blocks of the file table and those in packs; here is one line for each index block and each pack.
//!
//! A manifest exists when a backup does. A [`super::Tombstone`] in its place means that there will never be one.

use walpoint_base::BackupId;
use walpoint_storage::error::RepoError;
use walpoint_storage::layout::Key;
use walpoint_storage::object::{ObjectKind, ObjectReader, ObjectWriter, SealError, SealedObject, Sealer};

use super::facts::BackupSummary;
use super::findings::{self, PageFinding};
use super::location::{BackupRef, FrameRef, PackNo, read_id};
use super::pack_table::PackTable;
use super::path::TablePath;
use super::wire::{Input, Malformed, Output};

/// The most plain bytes of a manifest's tables, so that the object fits the limit even if nothing compresses. At 12 bytes
/// for a pack of 32 MiB this is enough for 70 TiB of stored data.
pub(super) const MAX_TABLES: usize = 30 << 20;

/// No tombstone is longer, so a listing alone says of longer ones that they are manifests; and none of these is shorter.
pub(super) const MAX_TOMBSTONE: u64 = 2048;

/// Plain bytes of a frame of the tables.
const FRAME: usize = 1 << 20;

/// A backup, as far as it is held in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// What the backup says about itself.
    pub summary: BackupSummary,
    /// Every backup whose packs it uses; the first is itself.
    pub backups: Vec<BackupId>,
    /// The packs.
    pub packs: PackTable,
    /// The index blocks of the file table, in the order of their paths.
    pub index_blocks: Vec<IndexBlockRef>,
    /// Bad pages, the first [`findings::MAX_FINDINGS`] of them.
    pub findings: Vec<PageFinding>,
}

/// An index block of the file table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexBlockRef {
    /// Where it is.
    pub at: FrameRef,
    /// How many entries it has; never 0.
    pub entries: u32,
    /// The path of its first entry.
    pub first: TablePath,
}

impl Manifest {
    /// The plain bytes of the tables: backups, packs, index blocks, findings.
    fn encode(&self) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::new();
        let count = u16::try_from(self.backups.len());
        out.put_u16(count.map_err(|_| Malformed::new("it uses too many backups"))?);
        self.backups.iter().for_each(|id| out.put(&id.to_bytes()));
        self.packs.encode(&mut out);
        out.put_count(self.index_blocks.len());
        for index_block in &self.index_blocks {
            out.put_u16(index_block.at.backup.0);
            out.put_u32(index_block.at.pack.0);
            out.put_u16(index_block.at.frame);
            out.put_u32(index_block.entries);
            index_block.first.encode(&mut out);
        }
        findings::encode(&self.findings, &mut out);
        match out.len() {
            0..=MAX_TABLES => Ok(out),
            n => {
                Err(Malformed(format!("its tables have {n} bytes, {MAX_TABLES} fit: it uses too many packs")))
            }
        }
    }

    fn decode(summary: BackupSummary, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Input::new(bytes);
        let count = usize::from(input.u16()?);
        let mut backups = Vec::with_capacity(count.min(input.len() / BackupId::ENCODED));
        for _ in 0..count {
            backups.push(read_id(&mut input)?);
        }
        if backups.first() != Some(&summary.id) {
            return Err(Malformed::new("the first backup it names is not itself"));
        }
        let packs = PackTable::decode(&mut input, backups.len())?;
        let count = input.count(2 + 4 + 2 + 4 + 4)?;
        let mut index_blocks: Vec<IndexBlockRef> = Vec::with_capacity(count);
        for _ in 0..count {
            let (backup, pack, frame) = (BackupRef(input.u16()?), PackNo(input.u32()?), input.u16()?);
            let at = FrameRef { backup, pack, frame };
            let index_block =
                IndexBlockRef { at, entries: input.u32()?, first: TablePath::decode(&mut input)? };
            let ordered = index_blocks.last().is_none_or(|last| last.first < index_block.first);
            if packs.get(at).is_none() || index_block.entries == 0 || !ordered {
                return Err(Malformed::new("its index of the file table is wrong"));
            }
            index_blocks.push(index_block);
        }
        let findings = findings::decode(&mut input)?;
        input.end()?;
        Ok(Self { summary, backups, packs, index_blocks, findings })
    }

    /// The index block that holds the entry of that path, if any does.
    pub fn index_block_of(&self, path: &TablePath) -> Option<&IndexBlockRef> {
        let after = self.index_blocks.partition_point(|index_block| index_block.first <= *path);
        self.index_blocks.get(after.checked_sub(1)?)
    }

    /// The object to be created: never so short that a listing would take it for a tombstone.
    pub(super) fn seal(&self, sealer: &Sealer, key: &Key) -> Result<SealedObject, EncodeError> {
        let (mut summary, tables) = (self.summary.to_json()?, self.encode()?);
        let seal = |summary: &[u8]| {
            let mut writer = ObjectWriter::new(sealer, ObjectKind::Manifest, key)?;
            writer.meta(summary)?;
            writer.frames(&tables, FRAME)?;
            Ok::<_, EncodeError>(writer.finish()?)
        };
        let object = seal(&summary)?;
        if object.len() > MAX_TOMBSTONE {
            return Ok(object);
        }
        pad(&mut summary, self.summary.id);
        seal(&summary)
    }

    /// Reads the object that is the manifest of `id`.
    pub(super) fn read(reader: ObjectReader, id: BackupId) -> Result<Self, EncodeError> {
        let summary = BackupSummary::from_json(reader.meta())?;
        if summary.id != id {
            return Err(Malformed(format!("it describes backup {}", summary.id)).into());
        }
        let mut tables = Vec::new();
        reader.read_all(MAX_TABLES, &mut tables).map_err(|e| Malformed(e.to_string()))?;
        Ok(Self::decode(summary, &tables)?)
    }
}

/// Adds a member to a JSON object that has as many bytes as a tombstone can have, compressed or not.
fn pad(json: &mut Vec<u8>, id: BackupId) {
    let mut noise = [0; 2048];
    blake3::Hasher::new().update(&id.to_bytes()).finalize_xof().fill(&mut noise);
    if json.pop() == Some(b'}') {
        json.extend_from_slice(b",\"padding\":\"");
        json.extend(noise.iter().flat_map(|byte| [b'a' + (byte >> 4), b'a' + (byte & 15)]));
        json.extend_from_slice(b"\"}");
    }
}

/// Why a table does not become an object, or the reverse.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// What to say of an object that cannot be made.
pub(super) fn cannot_write(key: &Key, error: &EncodeError) -> RepoError {
    match error {
        EncodeError::Malformed(what) => RepoError::Refused { key: key.clone(), what: what.to_string() },
        EncodeError::Seal(error) => RepoError::Internal(format!("{key} cannot be sealed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walpoint_storage::object::testing::sealers;

    use super::super::blocks::tests::id;
    use super::super::facts::{Totals, tests::facts};
    use super::super::findings::PageFault;
    use super::super::pack_table::PackUse;
    use super::*;

    fn manifest(index_blocks: u32) -> Manifest {
        let pack = |backup, pack, live| PackUse {
            backup: BackupRef(backup),
            pack: PackNo(pack),
            size: 1000,
            units: 10,
            live,
        };
        let path = |n| TablePath::data(format!("f{n:05}")).unwrap();
        let at = FrameRef { backup: BackupRef(0), pack: PackNo(1), frame: 7 };
        Manifest {
            summary: BackupSummary {
                id: id(9),
                facts: facts(8192),
                totals: Totals::default(),
                parents: vec![id(3)],
            },
            backups: vec![id(9), id(3)],
            packs: PackTable::new(vec![pack(1, 4, 1), pack(0, 0, 10), pack(0, 1, 9), pack(1, 9, 0)]),
            index_blocks: (0..index_blocks)
                .map(|n| IndexBlockRef { at, entries: 5, first: path(n * 10) })
                .collect(),
            findings: vec![
                PageFinding {
                    path: path(3),
                    block: 77,
                    fault: PageFault::Checksum { stored: 1, computed: 2 },
                },
                PageFinding { path: path(4), block: 0, fault: PageFault::Reported },
            ],
        }
    }

    #[test]
    fn a_manifest_comes_back() {
        let key: Key = "clusters/main/backups/x/manifest".parse().unwrap();
        for sealer in sealers() {
            let object = manifest(100).seal(&sealer, &key).unwrap();
            let open =
                || ObjectReader::open(&sealer, &[ObjectKind::Manifest], &key, object.to_bytes()).unwrap();
            assert_eq!(Manifest::read(open(), id(9)).unwrap(), manifest(100));
            assert!(Manifest::read(open(), id(8)).is_err(), "moved to another backup's place");
        }
    }

    #[test]
    fn the_shortest_manifest_is_longer_than_any_tombstone() {
        let key: Key = "clusters/main/backups/x/manifest".parse().unwrap();
        for sealer in sealers() {
            let object = manifest(1).seal(&sealer, &key).unwrap();
            assert!(object.len() > MAX_TOMBSTONE, "{}", object.len());
            let reader =
                ObjectReader::open(&sealer, &[ObjectKind::Manifest], &key, object.to_bytes()).unwrap();
            assert_eq!(Manifest::read(reader, id(9)).unwrap(), manifest(1));
        }
    }

    #[test]
    fn pages_are_found_by_path() {
        let manifest = manifest(3);
        let first =
            |path: &str| Some(manifest.index_block_of(&TablePath::data(path).unwrap())?.first.to_string());
        assert_eq!(first("a"), None);
        assert_eq!(first("f00000").as_deref(), Some("f00000"));
        assert_eq!(first("f00009").as_deref(), Some("f00000"));
        assert_eq!(first("f00010").as_deref(), Some("f00010"));
        assert_eq!(first("z").as_deref(), Some("f00020"));
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_panics_and_never_breaks_an_invariant(at: usize, value: u8) {
            let mut bytes = manifest(3).encode().unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(other) = Manifest::decode(manifest(0).summary, &bytes) {
                prop_assert!(other.index_blocks.iter().all(|index_block| other.packs.get(index_block.at).is_some()));
                prop_assert!(other.index_blocks.is_sorted_by(|a, b| a.first < b.first));
                prop_assert!(other.packs.packs().iter().all(|p| usize::from(p.backup.0) < other.backups.len()));
            }
        }

        #[test]
        fn any_bytes_are_tables_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Manifest::decode(manifest(0).summary, &bytes).ok();
        }
    }
}
