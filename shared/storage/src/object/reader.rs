//! Reading an object that is in memory: every frame is checked, then the whole.

use bytes::Bytes;

use super::codec::{Codec, PooledCodec};
use super::frame::{FrameHeader, open_frame, parse_frame_header};
use super::header::{OBJECT_HEADER, ObjectHeader};
use super::sealer::ObjectKeys;
use super::{ObjectError, ObjectKind, Sealer};
use crate::ids::ContentHash;
use crate::layout::Key;

/// Hands out an object's frames in order. Nothing it gave is to be believed before [`Self::finish`] said so, unless a
/// frame's own check is enough for the purpose.
#[derive(Debug)]
pub struct ObjectReader {
    header: ObjectHeader,
    keys: ObjectKeys,
    codec: PooledCodec,
    bytes: Bytes,
    offset: usize,
    next: u32,
    ended: bool,
    content: blake3::Hasher,
    content_len: u64,
    meta: Vec<u8>,
}

impl ObjectReader {
    /// Checks the header, the kind and the length, and opens the meta frame if there is one.
    pub fn open(sealer: &Sealer, kinds: &[ObjectKind], key: &Key, bytes: Bytes) -> Result<Self, ObjectError> {
        let (header, keys) = ObjectHeader::parse(sealer, key, &bytes)?;
        if !kinds.contains(&header.kind) {
            return Err(ObjectError::Kind(header.kind.number()));
        }
        if header.object_len != bytes.len() as u64 {
            return Err(ObjectError::Length { says: header.object_len, is: bytes.len() as u64 });
        }
        let mut reader = Self {
            header,
            keys,
            codec: Codec::for_opening(),
            bytes,
            offset: OBJECT_HEADER,
            next: 0,
            ended: false,
            content: sealer.content_hasher(),
            content_len: 0,
            meta: Vec::new(),
        };
        if header.meta_len > 0 {
            let mut meta = Vec::new();
            let frame = reader.advance(&mut meta)?;
            if !frame.meta || frame.length as u64 != u64::from(header.meta_len) {
                return Err(ObjectError::Structure("its meta frame is not what the header says"));
            }
            reader.meta = meta;
        }
        Ok(reader)
    }

    /// The object's header.
    pub fn header(&self) -> &ObjectHeader {
        &self.header
    }

    /// The keys of its frames.
    pub fn keys(&self) -> &ObjectKeys {
        &self.keys
    }

    /// What describes the object; empty if nothing does.
    pub fn meta(&self) -> &[u8] {
        &self.meta
    }

    /// The plain length of the next frame of content, without opening it; `None` after the last one.
    pub fn peek(&self) -> Result<Option<usize>, ObjectError> {
        if self.ended {
            return Ok(None);
        }
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        Ok(Some(parse_frame_header(&self.keys, self.next, rest)?.plain as usize))
    }

    /// Appends the next frame of content to `out`; `None` after the last one. On an error nothing is appended.
    pub fn next_frame(&mut self, out: &mut Vec<u8>) -> Result<Option<FrameHeader>, ObjectError> {
        if self.ended {
            return Ok(None);
        }
        let begin = out.len();
        let frame = self.advance(out)?;
        if frame.meta {
            out.truncate(begin);
            return Err(ObjectError::Structure("it has a meta frame its header does not know"));
        }
        let plain = out.get(begin..).unwrap_or_default();
        self.content.update(plain);
        self.content_len = self.content_len.saturating_add(plain.len() as u64);
        Ok(Some(frame))
    }

    /// Appends all content to `out` and checks the whole. Fails before allocating if it would be longer than `limit`.
    pub fn read_all(mut self, limit: usize, out: &mut Vec<u8>) -> Result<ObjectHeader, ObjectError> {
        let length = usize::try_from(self.header.content_len).ok().filter(|&n| n <= limit);
        let length = length.ok_or(ObjectError::TooLong { says: self.header.content_len, limit })?;
        out.reserve(length);
        while let Some(plain) = self.peek()? {
            if self.content_len.saturating_add(plain as u64) > self.header.content_len {
                return Err(ObjectError::Structure("its frames hold more than its header says"));
            }
            self.next_frame(out)?;
        }
        self.finish()
    }

    /// Checks what only the whole shows: number of frames, length and hash of the content, nothing behind the last
    /// frame. To be called after the last frame.
    pub fn finish(self) -> Result<ObjectHeader, ObjectError> {
        if !self.ended {
            return Err(ObjectError::Structure("it has frames that were not read"));
        }
        if self.next != self.header.frames || self.content_len != self.header.content_len {
            return Err(ObjectError::Structure("its frames are not as many or as long as its header says"));
        }
        let content = ContentHash(*self.content.finalize().as_bytes());
        if content != self.header.content {
            return Err(ObjectError::Content { says: self.header.content, is: content });
        }
        Ok(self.header)
    }

    fn advance(&mut self, out: &mut Vec<u8>) -> Result<FrameHeader, ObjectError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let frame = open_frame(&self.keys, self.next, rest, &mut self.codec, out)?;
        self.offset += frame.length;
        self.next = self.next.saturating_add(1);
        self.ended = frame.last;
        if self.ended && self.offset != self.bytes.len() {
            return Err(ObjectError::Structure("bytes follow its last frame"));
        }
        Ok(frame)
    }
}
