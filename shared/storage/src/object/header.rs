//! The header of 128 bytes that every object begins with.

use super::bytes::Fields;
use super::sealer::{ObjectKeys, Salt};
use super::{ObjectError, ObjectKind, Sealer};
use crate::ids::ContentHash;
use crate::layout::Key;

/// Length of an object's header.
pub const OBJECT_HEADER: usize = 128;

/// The format version that this code writes, and the newest that it reads.
pub const FORMAT_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"WALPOINT";
const CHECKED: usize = OBJECT_HEADER - 16;

const ENCRYPTED: u32 = 1;
const IN_PARTS: u32 = 2;

/// What an object's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectHeader {
    /// What it is.
    pub kind: ObjectKind,
    /// Whether its content is not in it but in the part objects that its data frames name.
    pub in_parts: bool,
    /// Its own random salt.
    pub salt: Salt,
    /// The hash of the concatenated plain bytes of its data frames.
    pub content: ContentHash,
    /// Plain bytes of its data frames.
    pub content_len: u64,
    /// Bytes of the whole object.
    pub object_len: u64,
    /// How many frames it has, the meta frame included.
    pub frames: u32,
    /// Bytes of the whole meta frame, 0 if it has none. It follows this header.
    pub meta_len: u32,
}

impl ObjectHeader {
    /// The header's bytes, check included.
    pub(super) fn encode(&self, keys: &ObjectKeys) -> [u8; OBJECT_HEADER] {
        let mut bytes = [0; OBJECT_HEADER];
        let encrypted = if keys.is_encrypted() { ENCRYPTED } else { 0 };
        let flags = encrypted | if self.in_parts { IN_PARTS } else { 0 };
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.kind.number().to_le_bytes());
        bytes[12..16].copy_from_slice(&flags.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.salt.0);
        bytes[32..64].copy_from_slice(&self.content.0);
        bytes[64..72].copy_from_slice(&self.content_len.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.object_len.to_le_bytes());
        bytes[80..84].copy_from_slice(&self.frames.to_le_bytes());
        bytes[84..88].copy_from_slice(&self.meta_len.to_le_bytes());
        let check: [u8; 16] = keys.header_check(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&check);
        bytes
    }

    /// Reads and checks the header of the object `key`. `bytes` may be cut anywhere behind it. Gives the keys for its
    /// frames too.
    pub fn parse(sealer: &Sealer, key: &Key, bytes: &[u8]) -> Result<(Self, ObjectKeys), ObjectError> {
        let bytes = bytes.get(..OBJECT_HEADER).ok_or(ObjectError::Short)?;
        let raw = Raw::read(bytes).ok_or(ObjectError::Short)?;
        if raw.magic != MAGIC {
            return Err(ObjectError::Stranger);
        }
        if raw.version != FORMAT_VERSION {
            return Err(ObjectError::Version(raw.version));
        }
        if (raw.flags & ENCRYPTED != 0) != sealer.is_encrypted() {
            return Err(ObjectError::Encryption { repository: sealer.is_encrypted() });
        }
        let kind = ObjectKind::from_number(raw.kind).ok_or(ObjectError::Kind(raw.kind))?;
        let salt = Salt(raw.salt);
        let keys = sealer.object_keys(kind, key, salt).map_err(ObjectError::Seal)?;
        let checked = bytes.get(..CHECKED).ok_or(ObjectError::Short)?;
        if keys.header_check::<16>(checked) != raw.check {
            return Err(ObjectError::Header { encrypted: sealer.is_encrypted() });
        }
        if raw.flags & !(ENCRYPTED | IN_PARTS) != 0 {
            return Err(ObjectError::Flags(raw.flags));
        }
        let header = Self {
            kind,
            in_parts: raw.flags & IN_PARTS != 0,
            salt,
            content: ContentHash(raw.content),
            content_len: raw.content_len,
            object_len: raw.object_len,
            frames: raw.frames,
            meta_len: raw.meta_len,
        };
        Ok((header, keys))
    }
}

struct Raw {
    magic: [u8; 8],
    version: u16,
    kind: u16,
    flags: u32,
    salt: [u8; 16],
    content: [u8; 32],
    content_len: u64,
    object_len: u64,
    frames: u32,
    meta_len: u32,
    check: [u8; 16],
}

impl Raw {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut f = Fields::new(bytes);
        let mut raw = Self {
            magic: f.array()?,
            version: f.u16()?,
            kind: f.u16()?,
            flags: f.u32()?,
            salt: f.array()?,
            content: f.array()?,
            content_len: f.u64()?,
            object_len: f.u64()?,
            frames: f.u32()?,
            meta_len: f.u32()?,
            check: [0; 16],
        };
        f.bytes(24)?;
        raw.check = f.array()?;
        Some(raw)
    }
}
