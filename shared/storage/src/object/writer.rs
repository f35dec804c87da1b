//! Making an object: frames go in, bytes to be created under one key come out.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{FramePosition, Packed, pack, seal_frame, seal_packed};
use super::header::{OBJECT_HEADER, ObjectHeader};
use super::pieces::Pieces;
use super::sealer::{ObjectKeys, Salt, SealError};
use super::{MAX_OBJECT, ObjectKind, Sealer};
use crate::ids::ContentHash;
use crate::layout::Key;

/// What lives as long as the bytes of an object do, such as a share of memory: a write that hangs cannot be cancelled, and keeps
/// its bytes longer than the request that made it.
pub type Keeper = Arc<dyn Any + Send + Sync>;

/// Bytes of an object, with what has to live as long.
struct Kept {
    bytes: Bytes,
    _keeper: Keeper,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// An object that is complete and not yet stored.
#[derive(Clone)]
pub struct SealedObject {
    /// Its name.
    pub key: Key,
    /// What its header says.
    pub header: ObjectHeader,
    /// Its bytes, in order.
    pub pieces: Vec<Bytes>,
    /// To tell what is stored under its name already.
    sealer: Sealer,
}

impl SealedObject {
    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.header.object_len
    }

    /// Never: it has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The hash that decides whether two objects hold the same.
    pub fn content(&self) -> ContentHash {
        self.header.content
    }

    /// What it seals with.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// The same, with something that lives until the last of its bytes is dropped.
    #[must_use]
    pub fn kept_with(mut self, keeper: Option<&Keeper>) -> Self {
        if let Some(keeper) = keeper {
            let keep = |bytes| Bytes::from_owner(Kept { bytes, _keeper: Arc::clone(keeper) });
            self.pieces = self.pieces.into_iter().map(keep).collect();
        }
        self
    }

    /// Its bytes in one piece, copied.
    pub fn to_bytes(&self) -> Bytes {
        self.pieces.concat().into()
    }
}

impl fmt::Debug for SealedObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedObject({} {:?}, {} bytes)", self.key, self.header.kind, self.len())
    }
}

/// Seals one object, frame by frame. All of it is CPU work: run it where blocking is allowed.
///
/// Invariant: `held`, if there is one, is the plain content of the frame that will come next; it waits so that the
/// last frame can be marked as such.
#[derive(Debug)]
pub struct ObjectWriter {
    sealer: Sealer,
    keys: ObjectKeys,
    content: blake3::Hasher,
    content_len: u64,
    in_parts: bool,
    /// The last frame is sealed.
    complete: bool,
    frames: u32,
    meta_len: u32,
    object_len: u64,
    held: Option<(bool, Vec<u8>)>,
    /// Plain buffers to be used again for `held`.
    spare: Vec<u8>,
    /// Where frames are encrypted.
    scratch: Vec<u8>,
    pieces: Pieces,
}

/// Where a frame came to lie: what a ranged request needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FramePlace {
    /// Its index.
    pub index: u32,
    /// Its first byte in the object.
    pub offset: u64,
    /// Bytes of the whole frame.
    pub length: u32,
}

impl ObjectWriter {
    /// Begins an object of that kind and name, with a salt of its own.
    pub fn new(sealer: &Sealer, kind: ObjectKind, key: &Key) -> Result<Self, SealError> {
        let keys = sealer.object_keys(kind, key, Salt::random()?)?;
        Ok(Self {
            sealer: sealer.clone(),
            keys,
            content: sealer.content_hasher(),
            content_len: 0,
            in_parts: false,
            complete: false,
            frames: 0,
            meta_len: 0,
            object_len: OBJECT_HEADER as u64,
            held: None,
            spare: Vec::new(),
            scratch: Vec::new(),
            pieces: Pieces::default(),
        })
    }

    /// Marks it as one whose data frames name part objects.
    pub fn in_parts(&mut self) {
        self.in_parts = true;
    }

    /// The salt, for whoever has to remember it for ranged requests.
    pub fn salt(&self) -> Salt {
        self.keys.salt()
    }

    /// Bytes of the object so far, without the frame that waits.
    pub fn object_len(&self) -> u64 {
        self.object_len
    }

    /// The index and place of the next frame to be added. Exact only if nothing waits: see [`Self::frame_now`].
    pub fn next_frame(&self) -> u32 {
        self.frames + u32::from(self.held.is_some())
    }

    /// Describes the object; not part of its content. Only before the first frame.
    pub fn meta(&mut self, meta: &[u8]) -> Result<(), SealError> {
        if self.frames > 0 || self.held.is_some() {
            return Err(SealError);
        }
        self.held = Some((true, meta.to_vec()));
        Ok(())
    }

    /// Leaves room for a meta frame that is known only at the end: [`Self::finish_with_meta`] then completes the object.
    /// Only before the first frame.
    pub fn meta_later(&mut self) -> Result<(), SealError> {
        if self.frames > 0 || self.held.is_some() {
            return Err(SealError);
        }
        self.frames = 1;
        Ok(())
    }

    /// Adds a frame of content that is certainly not the last one and was compressed before, by any thread; tells where
    /// it lies, not counting a meta frame that comes later.
    pub fn packed_now(&mut self, packed: Packed<'_>) -> Result<FramePlace, SealError> {
        self.packed(packed, false)
    }

    /// [`Self::packed_now`] for a frame that may be the last one; then none may follow.
    pub fn packed(&mut self, packed: Packed<'_>, last: bool) -> Result<FramePlace, SealError> {
        self.add(packed.plain())?;
        self.flush(false)?;
        let at = FramePosition { index: self.frames, meta: false, last };
        let place = self.place(at, packed)?;
        self.complete = last;
        Ok(place)
    }

    /// The hash of the content so far.
    pub fn content_hash(&self) -> ContentHash {
        ContentHash(*self.content.finalize().as_bytes())
    }

    /// Adds a frame of content, at most [`super::MAX_FRAME`] bytes.
    pub fn frame(&mut self, plain: &[u8]) -> Result<(), SealError> {
        self.add(plain)?;
        self.flush(false)?;
        let mut held = std::mem::take(&mut self.spare);
        held.clear();
        held.extend_from_slice(plain);
        self.held = Some((false, held));
        Ok(())
    }

    /// Adds a frame of content that is certainly not the last one, without keeping a copy; tells where it lies.
    pub fn frame_now(&mut self, plain: &[u8]) -> Result<FramePlace, SealError> {
        self.add(plain)?;
        self.flush(false)?;
        self.seal(false, false, plain)
    }

    /// Adds content in frames of `size` bytes.
    pub fn frames(&mut self, content: &[u8], size: usize) -> Result<(), SealError> {
        let (last, head) = match content.len().checked_sub(1).map(|n| n / size.max(1) * size.max(1)) {
            Some(at) => (content.get(at..).ok_or(SealError)?, content.get(..at).ok_or(SealError)?),
            None => return Ok(()),
        };
        for plain in head.chunks(size.max(1)) {
            self.frame_now(plain)?;
        }
        self.frame(last)
    }

    /// The finished object, described by `meta`, for which [`Self::meta_later`] left room.
    pub fn finish_with_meta(mut self, meta: &[u8]) -> Result<SealedObject, SealError> {
        if self.meta_len > 0 || self.frames == 0 {
            return Err(SealError);
        }
        let mut frame = Vec::new();
        let at = FramePosition { index: 0, meta: true, last: false };
        let mut codec = self.sealer.codec();
        let length = seal_frame(&self.keys, at, meta, &mut codec, &mut frame)?;
        self.meta_len = u32::try_from(length).map_err(|_| SealError)?;
        self.object_len += length as u64;
        self.complete(Some(frame.into()))
    }

    /// The finished object. One without frames gets an empty one. Fails if it is longer than [`MAX_OBJECT`].
    pub fn finish(self) -> Result<SealedObject, SealError> {
        self.complete(None)
    }

    /// `first` is the frame that comes before all others, if it was made last.
    fn complete(mut self, first: Option<Bytes>) -> Result<SealedObject, SealError> {
        if !self.complete && self.held.as_ref().is_none_or(|(meta, _)| *meta) {
            self.frame(&[])?;
        }
        self.flush(true)?;
        if self.object_len > MAX_OBJECT {
            return Err(SealError);
        }
        let header = ObjectHeader {
            kind: self.keys.kind(),
            in_parts: self.in_parts,
            salt: self.keys.salt(),
            content: self.content_hash(),
            content_len: self.content_len,
            object_len: self.object_len,
            frames: self.frames,
            meta_len: self.meta_len,
        };
        let mut pieces = vec![Bytes::copy_from_slice(&header.encode(&self.keys))];
        pieces.extend(first);
        pieces.append(&mut self.pieces.finish());
        Ok(SealedObject { key: self.keys.key().clone(), header, pieces, sealer: self.sealer })
    }

    fn add(&mut self, plain: &[u8]) -> Result<(), SealError> {
        if self.complete {
            return Err(SealError);
        }
        self.content.update(plain);
        self.content_len = self.content_len.checked_add(plain.len() as u64).ok_or(SealError)?;
        Ok(())
    }

    fn flush(&mut self, last: bool) -> Result<(), SealError> {
        let Some((meta, plain)) = self.held.take() else { return Ok(()) };
        let place = self.seal(meta, last, &plain)?;
        if meta {
            self.meta_len = place.length;
        }
        self.spare = plain;
        Ok(())
    }

    fn seal(&mut self, meta: bool, last: bool, plain: &[u8]) -> Result<FramePlace, SealError> {
        let at = FramePosition { index: self.frames, meta, last };
        let mut codec = self.sealer.codec();
        self.place(at, pack(plain, &mut codec))
    }

    fn place(&mut self, at: FramePosition, packed: Packed<'_>) -> Result<FramePlace, SealError> {
        let offset = self.object_len;
        let pieces = &mut self.pieces;
        let length = seal_packed(&self.keys, at, packed, &mut self.scratch, |bytes| pieces.add(bytes))?;
        self.object_len += length as u64;
        self.frames = self.frames.checked_add(1).ok_or(SealError)?;
        Ok(FramePlace { index: at.index, offset, length: u32::try_from(length).map_err(|_| SealError)? })
    }
}
