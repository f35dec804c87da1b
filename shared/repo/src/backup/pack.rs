//! Packs: objects of up to 32 MiB full of frames, with a directory in front.
//!
//! The directory is the object's meta frame, so one ranged request of the beginning gives the header with the salt, and
//! where every frame is. It is complete: blocks can be verified, and a pack reused, without any manifest.

use std::ops::Range;

use walpoint_storage::error::Result;
use walpoint_storage::layout::Key;
use walpoint_storage::object::{
    OBJECT_HEADER, ObjectHeader, ObjectKind, ObjectWriter, Packed, SealError, SealedObject, Sealer,
};

use super::location::PackNo;
use super::wire::{Input, Malformed, Output};

/// A pack of this many bytes is closed.
pub const PACK_BYTES: u64 = 32 << 20;
/// A pack with this many frames is closed.
const PACK_FRAMES: usize = 16_384;
/// A pack whose directory has this many bytes is closed, so that reading a few frames stays cheap.
const DIRECTORY_BYTES: usize = 512 << 10;

/// What a frame of a pack holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// Blocks of files.
    Data = 1,
    /// A list of up to 2,048 blocks.
    Leaf = 2,
    /// A list of leaves.
    Node = 3,
    /// An index block: a piece of the file table.
    IndexBlock = 4,
}

impl FrameKind {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Data, Self::Leaf, Self::Node, Self::IndexBlock].into_iter().find(|kind| *kind as u8 == code)
    }
}

/// One frame in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackFrame {
    /// What it holds.
    pub kind: FrameKind,
    /// Where it begins, in bytes behind the directory's frame.
    pub offset: u32,
    /// Bytes of the whole frame.
    pub length: u32,
    /// Plain bytes in it.
    pub plain: u32,
    /// The hashes of its blocks: a range of [`PackDirectory::hashes`].
    pub blocks: Range<u32>,
}

/// What is in a pack, and where.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PackDirectory {
    frames: Vec<PackFrame>,
    hashes: Vec<u64>,
    /// Bytes in front of the first frame: the object's header and the directory itself.
    front: u64,
}

impl PackDirectory {
    /// Bytes of a frame's row, and of a block's hash.
    const ROW: usize = 10;
    const HASH: usize = 8;

    /// The frames in order; the first has index 1.
    pub fn frames(&self) -> &[PackFrame] {
        &self.frames
    }

    /// The frame with that index.
    pub fn frame(&self, index: u16) -> Option<&PackFrame> {
        self.frames.get(usize::from(index).checked_sub(1)?)
    }

    /// The hashes of the blocks of a frame.
    pub fn hashes(&self, frame: &PackFrame) -> &[u64] {
        let range = usize::try_from(frame.blocks.start).ok().zip(usize::try_from(frame.blocks.end).ok());
        range.and_then(|(start, end)| self.hashes.get(start..end)).unwrap_or_default()
    }

    /// Without the blocks' hashes: a tenth of the memory, for who knows them from elsewhere.
    pub fn without_hashes(self) -> Self {
        Self { hashes: Vec::new(), ..self }
    }

    /// Where a frame's bytes are in the object.
    pub fn range(&self, frame: &PackFrame) -> Range<u64> {
        let start = self.front + u64::from(frame.offset);
        start..start + u64::from(frame.length)
    }

    /// What a manifest's pack table says of this pack: see `units` below.
    pub fn units(&self) -> u32 {
        units(&self.frames)
    }

    fn encoded_len(&self) -> usize {
        4 + self.frames.len() * Self::ROW + self.hashes.len() * Self::HASH
    }

    fn push(&mut self, kind: FrameKind, offset: u32, length: u32, plain: u32, hashes: &[u64]) {
        let end = |hashes: &[u64]| u32::try_from(hashes.len()).unwrap_or(u32::MAX);
        let start = end(&self.hashes);
        self.hashes.extend_from_slice(hashes);
        self.frames.push(PackFrame { kind, offset, length, plain, blocks: start..end(&self.hashes) });
    }

    /// Number of frames (32 bits); for each its kind (8), length (32), plain length (32) and number of blocks (8); then
    /// the blocks' hashes. Frames lie one behind the other.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        out.put_count(self.frames.len());
        for frame in &self.frames {
            out.put_u8(frame.kind as u8);
            out.put_u32(frame.length);
            out.put_u32(frame.plain);
            out.put_u8(u8::try_from(frame.blocks.len()).unwrap_or(u8::MAX));
        }
        for hash in &self.hashes {
            out.put_u64(*hash);
        }
        out
    }

    /// Reads the directory of the pack with that header. Every range it gives lies inside the object.
    pub(super) fn decode(meta: &[u8], header: &ObjectHeader) -> Result<Self, Malformed> {
        let mut input = Input::new(meta);
        let count = input.count(Self::ROW)?;
        let front = u64::try_from(OBJECT_HEADER).unwrap_or(u64::MAX) + u64::from(header.meta_len);
        let mut directory = Self { frames: Vec::with_capacity(count), hashes: Vec::new(), front };
        let (mut offset, mut blocks) = (0u32, 0u32);
        for _ in 0..count {
            let kind = input.u8()?;
            let kind = FrameKind::from_code(kind)
                .ok_or_else(|| Malformed(format!("its directory names a frame of kind {kind}")))?;
            let (length, plain, n) = (input.u32()?, input.u32()?, u32::from(input.u8()?));
            let end = offset.checked_add(length);
            let end = end.filter(|end| front + u64::from(*end) <= header.object_len);
            let end = end.ok_or_else(|| Malformed::new("its directory names frames after its end"))?;
            directory.frames.push(PackFrame { kind, offset, length, plain, blocks: blocks..blocks + n });
            offset = end;
            blocks += n;
        }
        let stored = usize::try_from(blocks).unwrap_or(usize::MAX);
        if input.len() != stored.saturating_mul(Self::HASH) {
            return Err(Malformed::new("its directory has not as many hashes as blocks"));
        }
        directory.hashes.reserve_exact(stored);
        while !input.is_empty() {
            directory.hashes.push(input.u64()?);
        }
        Ok(directory)
    }
}

/// What is counted to say how much of a pack is in use: its blocks, and each leaf, node and index block as one.
fn units(frames: &[PackFrame]) -> u32 {
    let unit =
        |f: &PackFrame| u32::try_from(f.blocks.len()).unwrap_or(0).max(u32::from(f.kind != FrameKind::Data));
    frames.iter().map(unit).fold(0, u32::saturating_add)
}

/// A pack that is complete.
#[derive(Debug)]
pub(super) struct FinishedPack {
    /// Its number.
    pub(super) no: PackNo,
    /// What is stored.
    pub(super) object: SealedObject,
    /// How many blocks and table frames are in it.
    pub(super) units: u32,
}

/// A pack that is being filled.
#[derive(Debug)]
pub(super) struct PackBuilder {
    no: PackNo,
    writer: ObjectWriter,
    directory: PackDirectory,
    /// Closed when it would grow beyond this.
    limit: u64,
}

impl PackBuilder {
    pub(super) fn new(sealer: &Sealer, key: &Key, no: PackNo, limit: u64) -> Result<Self, SealError> {
        let mut writer = ObjectWriter::new(sealer, ObjectKind::Pack, key)?;
        writer.meta_later()?;
        Ok(Self { no, writer, directory: PackDirectory::default(), limit: limit.min(PACK_BYTES) })
    }

    /// Bytes so far, with the directory.
    pub(super) fn len(&self) -> u64 {
        self.writer.object_len() + u64::try_from(self.directory.encoded_len()).unwrap_or(u64::MAX)
    }

    /// Whether a frame of that length belongs into the next pack.
    pub(super) fn is_full_for(&self, more: usize) -> bool {
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        let frames = self.directory.frames.len();
        frames > 0
            && (self.len().saturating_add(more) > self.limit
                || frames >= PACK_FRAMES
                || self.directory.encoded_len() >= DIRECTORY_BYTES)
    }

    /// Adds a frame and says which index it has.
    pub(super) fn push(
        &mut self,
        kind: FrameKind,
        packed: Packed<'_>,
        hashes: &[u64],
    ) -> Result<(PackNo, u16), SealError> {
        let plain = u32::try_from(packed.plain().len()).map_err(|_| SealError)?;
        let place = self.writer.packed_now(packed)?;
        let front = u64::try_from(OBJECT_HEADER).map_err(|_| SealError)?;
        let offset = place.offset.checked_sub(front).and_then(|o| u32::try_from(o).ok()).ok_or(SealError)?;
        self.directory.push(kind, offset, place.length, plain, hashes);
        Ok((self.no, u16::try_from(place.index).map_err(|_| SealError)?))
    }

    /// The finished object and what counts for its use.
    pub(super) fn finish(self) -> Result<FinishedPack, SealError> {
        let units = self.directory.units();
        let object = self.writer.finish_with_meta(&self.directory.encode())?;
        Ok(FinishedPack { no: self.no, object, units })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walpoint_storage::object::testing::sealers;
    use walpoint_storage::object::{Codec, ObjectReader, open_frame, pack};

    use super::*;

    fn key() -> Key {
        "clusters/main/data/x/00000000.pack".parse().unwrap()
    }

    fn empty(sealer: &Sealer, limit: u64) -> PackBuilder {
        PackBuilder::new(sealer, &key(), PackNo(3), limit).unwrap()
    }

    #[test]
    fn frames_are_found_through_the_directory_in_front() {
        for sealer in sealers() {
            let (mut builder, mut codec) = (empty(&sealer, PACK_BYTES), Codec::new());
            let long = vec![b'x'; 100_000];
            assert_eq!(
                builder.push(FrameKind::Data, pack(&long, &mut codec), &[1, 2]).unwrap(),
                (PackNo(3), 1)
            );
            assert_eq!(
                builder.push(FrameKind::Leaf, pack(b"leaf", &mut codec), &[]).unwrap(),
                (PackNo(3), 2)
            );
            let FinishedPack { object, units, .. } = builder.finish().unwrap();
            assert_eq!(units, 3);
            let bytes = object.to_bytes();
            let reader = ObjectReader::open(&sealer, &[ObjectKind::Pack], &key(), bytes.clone()).unwrap();
            let directory = PackDirectory::decode(reader.meta(), reader.header()).unwrap();
            assert_eq!(directory.frame(0), None);
            assert_eq!(directory.frame(3), None);
            assert_eq!(directory.hashes(directory.frame(1).unwrap()), [1, 2]);
            for (index, content) in [(1, &long[..]), (2, b"leaf")] {
                let range = directory.range(directory.frame(index).unwrap());
                let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                let mut out = Vec::new();
                open_frame(reader.keys(), u32::from(index), &bytes[range], &mut codec, &mut out).unwrap();
                assert_eq!(out, content);
            }
            let mut all = Vec::new();
            reader.read_all(1 << 20, &mut all).unwrap();
        }
    }

    #[test]
    fn a_pack_closes_before_it_is_too_long() {
        let (sealer, mut codec) = (&sealers()[0], Codec::new());
        let mut builder = empty(sealer, 10_500);
        let noise: Vec<u8> = (0..100u32).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()).collect();
        while !builder.is_full_for(noise.len() + 64) {
            builder.push(FrameKind::Data, pack(&noise, &mut codec), &[0; 9]).unwrap();
        }
        let FinishedPack { object, units, .. } = builder.finish().unwrap();
        assert_eq!(units, 27);
        assert!(object.len() <= 10_500, "{}", object.len());
        let builder = empty(sealer, 10);
        assert!(!builder.is_full_for(1 << 20), "an empty pack takes any frame");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_directory_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), len in 0u64..5000) {
            let object = empty(&sealers()[0], PACK_BYTES).finish().unwrap().object;
            let header = ObjectHeader { object_len: len, ..object.header };
            if let Ok(directory) = PackDirectory::decode(&bytes, &header) {
                for frame in directory.frames() {
                    prop_assert!(directory.range(frame).end <= len);
                    prop_assert_eq!(directory.hashes(frame).len(), frame.blocks.len());
                }
            }
        }
    }
}
