//! Frames: the unit of compression, encryption and checking. Sealing and opening are pure and usable from any thread.
//!
//! A frame is a header of 32 bytes, a body, and the body's check. The header has a check of its own, so the lengths in
//! it are believed only after that; even then no more than [`MAX_FRAME`] is ever allocated for one frame.

use super::bytes::Fields;
use super::codec::Codec;
use super::sealer::{ObjectKeys, SealError};

/// Length of a frame's header.
pub const FRAME_HEADER: usize = 32;

/// The most plain bytes in a frame. A body is never longer than its plain bytes.
pub const MAX_FRAME: usize = 4 << 20;

/// What every frame begins with.
const MAGIC: [u8; 4] = *b"WPfr";

const CHECKED: usize = FRAME_HEADER - 8;

/// How a body holds its plain bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Compression {
    /// As they are.
    Raw = 0,
    /// As one zstd frame.
    Zstd = 1,
    /// All are zero, and the body is empty.
    Zeros = 2,
}

/// What a frame's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// How the body holds its bytes.
    pub compression: Compression,
    /// Whether it describes the object and is no part of its content. Only frame 0 may be.
    pub meta: bool,
    /// Whether no frame follows.
    pub last: bool,
    /// Counted from 0.
    pub index: u32,
    /// Plain bytes, at most [`MAX_FRAME`].
    pub plain: u32,
    /// Bytes of the body without its check, at most `plain`.
    pub stored: u32,
    /// Bytes of the whole frame: header, body, check.
    pub length: usize,
}

/// What is wrong with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the frame has.
    #[error("frame {index} is cut short")]
    Short {
        /// Which one was expected.
        index: u32,
    },
    /// The header's magic, check, index or fields are wrong.
    #[error("the header of frame {index} is damaged")]
    Header {
        /// Which one was expected.
        index: u32,
    },
    /// The body does not match its check.
    #[error("the body of frame {index} is damaged")]
    Body {
        /// Which one.
        index: u32,
    },
    /// The body passed its check but does not decompress to what the header says.
    #[error("the body of frame {index} does not decompress to {plain} bytes")]
    Decompress {
        /// Which one.
        index: u32,
        /// What the header says.
        plain: u32,
    },
}

/// Which frame of its object is sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FramePosition {
    /// Counted from 0; each index once per object, or nonces would repeat.
    pub index: u32,
    /// Whether it describes the object.
    pub meta: bool,
    /// Whether no frame follows.
    pub last: bool,
}

/// Plain bytes and what they were compressed to: the part of sealing that needs no key and no index.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    plain: &'a [u8],
    compression: Compression,
    body: &'a [u8],
}

/// Compresses `plain` as the frame's body will hold it.
pub fn pack<'a>(plain: &'a [u8], codec: &'a mut Codec) -> Packed<'a> {
    let (compression, body) = if !plain.is_empty() && is_zero(plain) {
        (Compression::Zeros, &[][..])
    } else if codec.compress(plain) {
        (Compression::Zstd, codec.packed.as_slice())
    } else {
        (Compression::Raw, plain)
    };
    Packed { plain, compression, body }
}

impl<'a> Packed<'a> {
    /// The bytes that were compressed.
    pub fn plain(&self) -> &'a [u8] {
        self.plain
    }
}

/// Appends the frame that holds `plain` to `out`; gives its length. Fails for more than [`MAX_FRAME`] bytes.
pub fn seal_frame(
    keys: &ObjectKeys,
    at: FramePosition,
    plain: &[u8],
    codec: &mut Codec,
    out: &mut Vec<u8>,
) -> Result<usize, SealError> {
    let packed = pack(plain, codec);
    out.reserve(FRAME_HEADER + packed.body.len() + keys.check_len());
    seal_packed(keys, at, packed, &mut Vec::new(), |bytes| out.extend_from_slice(bytes))
}

/// [`seal_frame`] for bytes that are compressed already: gives the frame to `out`, part by part. Encrypts in `scratch`.
pub(super) fn seal_packed(
    keys: &ObjectKeys,
    at: FramePosition,
    packed: Packed<'_>,
    scratch: &mut Vec<u8>,
    mut out: impl FnMut(&[u8]),
) -> Result<usize, SealError> {
    let Packed { plain, compression, body } = packed;
    let plain_len = u32::try_from(plain.len()).ok().filter(|_| plain.len() <= MAX_FRAME).ok_or(SealError)?;
    let stored = u32::try_from(body.len()).map_err(|_| SealError)?;

    let mut header = [0; FRAME_HEADER];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = compression as u8;
    header[5] = u8::from(at.meta) | u8::from(at.last) << 1;
    header[8..12].copy_from_slice(&at.index.to_le_bytes());
    header[12..16].copy_from_slice(&plain_len.to_le_bytes());
    header[16..20].copy_from_slice(&stored.to_le_bytes());
    let check: [u8; 8] = keys.header_check(&header[..CHECKED]);
    header[CHECKED..].copy_from_slice(&check);

    out(&header);
    keys.seal_body(at.index, &header, body, scratch, out)?;
    Ok(FRAME_HEADER + body.len() + keys.check_len())
}

/// Reads and checks the header of frame `index`. `bytes` starts with it and may be cut anywhere behind it.
pub fn parse_frame_header(keys: &ObjectKeys, index: u32, bytes: &[u8]) -> Result<FrameHeader, FrameError> {
    let bytes = bytes.get(..FRAME_HEADER).ok_or(FrameError::Short { index })?;
    parse(keys, bytes).filter(|h| h.index == index).ok_or(FrameError::Header { index })
}

fn parse(keys: &ObjectKeys, bytes: &[u8]) -> Option<FrameHeader> {
    let check: [u8; 8] = keys.header_check(bytes.get(..CHECKED)?);
    let mut fields = Fields::new(bytes);
    let magic = fields.array::<4>()?;
    let compression = match fields.u8()? {
        0 => Compression::Raw,
        1 => Compression::Zstd,
        2 => Compression::Zeros,
        _ => return None,
    };
    let flags = fields.u8()?;
    fields.u16()?;
    let (index, plain, stored) = (fields.u32()?, fields.u32()?, fields.u32()?);
    fields.u32()?;
    let length_fits = match compression {
        Compression::Raw => stored == plain,
        Compression::Zstd => stored < plain,
        Compression::Zeros => stored == 0,
    };
    let meta = flags & 1 != 0;
    let sound = magic == MAGIC
        && fields.rest() == check
        && flags & !3 == 0
        && plain as usize <= MAX_FRAME
        && length_fits
        && (!meta || index == 0);
    let length = FRAME_HEADER + stored as usize + keys.check_len();
    sound.then_some(FrameHeader { compression, meta, last: flags & 2 != 0, index, plain, stored, length })
}

/// Opens frame `index`, which `bytes` starts with: appends its plain bytes to `out`. On an error nothing is appended.
pub fn open_frame(
    keys: &ObjectKeys,
    index: u32,
    bytes: &[u8],
    codec: &mut Codec,
    out: &mut Vec<u8>,
) -> Result<FrameHeader, FrameError> {
    let header = parse_frame_header(keys, index, bytes)?;
    let short = FrameError::Short { index };
    let mut fields = Fields::new(bytes);
    let head = fields.bytes(FRAME_HEADER).ok_or(short)?;
    let body = fields.bytes(header.stored as usize).ok_or(short)?;
    let check = fields.bytes(keys.check_len()).ok_or(short)?;

    let plain = header.plain as usize;
    let mut opened = std::mem::take(&mut codec.opened);
    let body = keys.open_body(index, head, body, check, &mut opened);
    let result = match (body, header.compression) {
        (None, _) => Err(FrameError::Body { index }),
        (Some(body), Compression::Raw) => {
            out.extend_from_slice(body);
            Ok(header)
        }
        (Some(_), Compression::Zeros) => {
            out.resize(out.len().saturating_add(plain), 0);
            Ok(header)
        }
        (Some(body), Compression::Zstd) => {
            let good = codec.decompress(body, plain, out);
            good.then_some(header).ok_or(FrameError::Decompress { index, plain: header.plain })
        }
    };
    codec.opened = opened;
    result
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // In pieces, so that most pages are decided by their first bytes and the rest is a vectorised comparison.
    bytes.chunks(1024).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::sealers;
    use super::super::{ObjectKind, Salt};
    use super::*;

    fn keys() -> Vec<ObjectKeys> {
        let key = "clusters/main/7-1/history/00000002.history".parse().unwrap();
        let keys = |s: super::super::Sealer| s.object_keys(ObjectKind::History, &key, Salt([7; 16])).unwrap();
        sealers().into_iter().map(keys).collect()
    }

    fn at(index: u32) -> FramePosition {
        FramePosition { index, meta: false, last: true }
    }

    #[test]
    fn every_compression_comes_back() {
        let noise: Vec<u8> =
            (0..100_000u32).flat_map(|i| blake3::hash(&i.to_le_bytes()).as_bytes()[..1].to_vec()).collect();
        for (content, compression) in [
            (vec![], Compression::Raw),
            (b"x".to_vec(), Compression::Raw),
            (vec![0; MAX_FRAME], Compression::Zeros),
            (b"abc".repeat(10_000), Compression::Zstd),
            (noise, Compression::Raw),
        ] {
            for keys in keys() {
                let (mut codec, mut sealed, mut opened) =
                    (Codec::new(), b"before".to_vec(), b"kept".to_vec());
                let length = seal_frame(&keys, at(3), &content, &mut codec, &mut sealed).unwrap();
                assert_eq!(sealed.len(), 6 + length);
                let header = open_frame(&keys, 3, &sealed[6..], &mut codec, &mut opened).unwrap();
                assert_eq!((header.compression, header.length), (compression, length));
                assert_eq!(&opened[..4], b"kept");
                assert!(opened[4..] == content);
            }
        }
    }

    #[test]
    fn too_much_for_a_frame_is_an_error() {
        let plain = vec![1; MAX_FRAME + 1];
        for keys in keys() {
            assert!(seal_frame(&keys, at(0), &plain, &mut Codec::new(), &mut Vec::new()).is_err());
        }
    }

    #[test]
    fn a_frame_fits_only_where_it_was_sealed() {
        for sealer in sealers() {
            let name = |text: &str| text.parse().unwrap();
            let keys =
                |kind, key: &str, salt| sealer.object_keys(kind, &name(key), Salt([salt; 16])).unwrap();
            let right = keys(ObjectKind::Pack, "a/b", 1);
            let (mut codec, mut sealed) = (Codec::new(), Vec::new());
            seal_frame(&right, at(1), b"content", &mut codec, &mut sealed).unwrap();
            let mut open =
                |keys: &ObjectKeys, index| open_frame(keys, index, &sealed, &mut codec, &mut Vec::new());
            assert!(open(&right, 1).is_ok());
            assert_eq!(open(&right, 0), Err(FrameError::Header { index: 0 }));
            assert!(open(&keys(ObjectKind::Pack, "a/c", 1), 1).is_err(), "another name");
            assert!(open(&keys(ObjectKind::Pack, "a/b", 2), 1).is_err(), "another salt");
            assert!(open(&keys(ObjectKind::Manifest, "a/b", 1), 1).is_err(), "another kind");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_flipped_bit_is_always_found(content in prop::collection::vec(any::<u8>(), 0..300), at_byte: usize, bit in 0u8..8) {
            for keys in keys() {
                let (mut codec, mut sealed) = (Codec::new(), Vec::new());
                seal_frame(&keys, at(0), &content, &mut codec, &mut sealed).unwrap();
                let at_byte = at_byte % sealed.len();
                sealed[at_byte] ^= 1 << bit;
                let mut out = Vec::new();
                prop_assert!(open_frame(&keys, 0, &sealed, &mut codec, &mut out).is_err());
                prop_assert!(out.is_empty());
            }
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), index: u32) {
            for keys in keys() {
                prop_assert!(open_frame(&keys, index, &bytes, &mut Codec::new(), &mut Vec::new()).is_err());
            }
        }

        /// Headers whose own check is right, with anything in their fields: what a hostile unencrypted repository can hold.
        #[test]
        fn hostile_headers_allocate_nothing_beyond_a_frame(
            mut header in prop::array::uniform32(any::<u8>()), body in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let keys = &keys()[0];
            header[..4].copy_from_slice(&MAGIC);
            header[4] %= 3;
            header[5] %= 4;
            header[8..12].fill(0);
            let check: [u8; 8] = keys.header_check(&header[..CHECKED]);
            header[CHECKED..].copy_from_slice(&check);
            let mut bytes = header.to_vec();
            bytes.extend_from_slice(&body);
            let mut out = Vec::new();
            if let Ok(header) = open_frame(keys, 0, &bytes, &mut Codec::new(), &mut out) {
                prop_assert_eq!(out.len(), header.plain as usize);
            }
            prop_assert!(out.capacity() <= MAX_FRAME);
        }
    }
}
