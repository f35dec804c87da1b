//! Where blocks, leaves and index blocks are: backup, pack, frame, and place in the frame.
//!
//! In memory a backup is an index into the manifest's table of backups. On the way into a leaf or an index block, which later
//! manifests share, it becomes an index into a table that the leaf or index block carries itself ([`RefWriter`]), and back on
//! the way out ([`read_refs`]).

use walpoint_base::BackupId;
use walpoint_storage::layout::Key;

use super::wire::{Input, Malformed, Output};

/// The number of a pack among those of its backup, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PackNo(pub u32);

/// The number in a pack's key.
pub(super) fn pack_no(key: &Key) -> Option<PackNo> {
    key.file_name().strip_suffix(".pack")?.parse().ok().map(PackNo)
}

/// The place of a backup in its manifest's table of backups. The manifest's own is 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackupRef(pub u16);

impl BackupRef {
    /// The backup that the manifest itself describes.
    pub const OWN: BackupRef = BackupRef(0);
}

/// One frame of one pack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrameRef {
    /// The backup that wrote the pack.
    pub backup: BackupRef,
    /// The pack.
    pub pack: PackNo,
    /// The frame's index in the pack. 0 is its directory, so this is never 0.
    pub frame: u16,
}

/// One block in a frame. Sorts in the order in which packs are read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockRef {
    /// The frame.
    pub frame: FrameRef,
    /// The block, counted from 0.
    pub index: u8,
}

impl FrameRef {
    /// Bytes of one in a table.
    pub(super) const ENCODED: usize = 8;

    pub(super) fn encode(self, out: &mut Vec<u8>, refs: &mut RefWriter) {
        out.put_u16(refs.local(self.backup));
        out.put_u32(self.pack.0);
        out.put_u16(self.frame);
    }

    pub(super) fn decode(input: &mut Input<'_>, refs: &[BackupRef]) -> Result<Self, Malformed> {
        let local = input.u16()?;
        let Some(&backup) = refs.get(usize::from(local)) else {
            return Err(Malformed(format!("it refers to backup {local} of a table of {}", refs.len())));
        };
        Ok(Self { backup, pack: PackNo(input.u32()?), frame: input.u16()? })
    }
}

/// Collects the backups that a leaf or index block refers to.
#[derive(Clone, Default, Debug)]
pub(super) struct RefWriter {
    used: Vec<BackupRef>,
}

impl RefWriter {
    /// The local index of a backup, given one if it is new.
    fn local(&mut self, backup: BackupRef) -> u16 {
        let at = self.used.iter().position(|&b| b == backup).unwrap_or_else(|| {
            self.used.push(backup);
            self.used.len() - 1
        });
        // There are as many as there are values of a `BackupRef`, at most.
        u16::try_from(at).unwrap_or(u16::MAX)
    }

    /// What local indexes stand for, to decode within the same backup.
    pub(super) fn used(&self) -> &[BackupRef] {
        &self.used
    }

    /// Writes the table: a 16-bit count, then 24 bytes for each.
    pub(super) fn encode(&self, out: &mut Vec<u8>, backups: &[BackupId]) -> Result<(), Malformed> {
        let count = u16::try_from(self.used.len());
        out.put_u16(count.map_err(|_| Malformed::new("too many backups are referred to"))?);
        for backup in &self.used {
            let id = backups.get(usize::from(backup.0));
            let id = id.ok_or_else(|| Malformed::new("a backup is referred to that has no id"))?;
            out.put(&id.to_bytes());
        }
        Ok(())
    }
}

/// Reads such a table: for each local index the place of that backup in `known`, the manifest's table.
pub(super) fn read_refs(input: &mut Input<'_>, known: &[BackupId]) -> Result<Vec<BackupRef>, Malformed> {
    let count = usize::from(input.u16()?);
    let mut refs = Vec::with_capacity(count.min(input.len() / BackupId::ENCODED));
    for _ in 0..count {
        let id = read_id(input)?;
        let at = known.iter().position(|k| *k == id).and_then(|at| u16::try_from(at).ok());
        let at = at.ok_or_else(|| Malformed(format!("it refers to backup {id}, the manifest does not")))?;
        refs.push(BackupRef(at));
    }
    Ok(refs)
}

/// Reads a backup's id.
pub(super) fn read_id(input: &mut Input<'_>) -> Result<BackupId, Malformed> {
    let bytes = input.take(BackupId::ENCODED)?;
    let id = bytes.first_chunk().and_then(BackupId::from_bytes);
    id.ok_or_else(|| Malformed::new("a backup id is not one"))
}
