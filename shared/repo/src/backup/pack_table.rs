//! The packs that a backup uses: how long each is, and how much of it is in use.
//!
//! Sorted by backup and number, no pack twice. It proves before publication that everything is there, and tells the
//! next backup which packs are mostly dead.

use super::location::{BackupRef, FrameRef, PackNo};
use super::wire::{Input, Malformed, Output};

/// One pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackUse {
    /// The backup that wrote it.
    pub backup: BackupRef,
    /// Its number.
    pub pack: PackNo,
    /// Bytes of the object.
    pub size: u32,
    /// Blocks in it, and each leaf, node and index block as one.
    pub units: u32,
    /// How many of those this backup uses, each counted as often as its files share it, at most `units`: never a proof that it
    /// uses all.
    pub live: u32,
}

/// All packs of a backup.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PackTable(Vec<PackUse>);

impl PackTable {
    /// Bytes of a pack in the table, and of a run's head.
    const ROW: usize = 12;
    const HEAD: usize = 10;

    /// Sorts the packs.
    pub(super) fn new(mut packs: Vec<PackUse>) -> Self {
        packs.sort_unstable_by_key(|p| (p.backup, p.pack));
        Self(packs)
    }

    /// Every pack, in order.
    pub fn packs(&self) -> &[PackUse] {
        &self.0
    }

    /// The pack that holds a frame; `None` if the backup has no such pack.
    pub fn get(&self, at: FrameRef) -> Option<&PackUse> {
        let found = self.0.binary_search_by_key(&(at.backup, at.pack), |p| (p.backup, p.pack)).ok()?;
        self.0.get(found)
    }

    /// Number of runs (32 bits); for each the backup (16 bits), first pack and number of packs (32 bits each), then size,
    /// units and live units of each pack (32 bits each).
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let follows =
            |a: &PackUse, b: &PackUse| a.backup == b.backup && a.pack.0.checked_add(1) == Some(b.pack.0);
        let runs: Vec<&[PackUse]> = self.0.chunk_by(follows).collect();
        out.put_count(runs.len());
        for run in runs {
            let Some(first) = run.first() else { continue };
            out.put_u16(first.backup.0);
            out.put_u32(first.pack.0);
            out.put_count(run.len());
            for pack in run {
                out.put_u32(pack.size);
                out.put_u32(pack.units);
                out.put_u32(pack.live);
            }
        }
    }

    /// Reads a table of packs of `backups` backups.
    pub(super) fn decode(input: &mut Input<'_>, backups: usize) -> Result<Self, Malformed> {
        let runs = input.count(Self::HEAD)?;
        let mut packs: Vec<PackUse> = Vec::new();
        for _ in 0..runs {
            let (backup, first) = (BackupRef(input.u16()?), input.u32()?);
            let count = input.count(Self::ROW)?;
            if usize::from(backup.0) >= backups {
                return Err(Malformed::new("its pack table names a backup that it does not list"));
            }
            packs.reserve(count);
            let mut pack = first;
            for n in 0..count {
                if n > 0 {
                    pack = pack.checked_add(1).ok_or_else(|| Malformed::new("its pack numbers overflow"))?;
                }
                let (size, units, live) = (input.u32()?, input.u32()?, input.u32()?);
                if live > units {
                    return Err(Malformed::new("its pack table says more is in use than there is"));
                }
                packs.push(PackUse { backup, pack: PackNo(pack), size, units, live });
            }
        }
        if !packs.is_sorted_by(|a, b| (a.backup, a.pack) < (b.backup, b.pack)) {
            return Err(Malformed::new("its pack table is out of order"));
        }
        Ok(Self(packs))
    }
}
