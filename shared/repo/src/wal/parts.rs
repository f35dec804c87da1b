//! Files that are too large for one object: parts, and a small object, created last, that names them.
//!
//! The parts' names hold the hash of the whole content, so two hosts that store different content write different parts,
//! and the object that names them, created once, decides. A crash before that leaves parts that nothing names; they are
//! found again by the next attempt with the same content, or deleted by `expire` as unreachable.

use std::collections::BTreeMap;

use walpoint_base::{SegmentName, WalFileName};
use walpoint_storage::error::{RepoError, Result, found};
use walpoint_storage::layout::Key;
use walpoint_storage::object::bytes::Fields;
use walpoint_storage::object::{ContentHash, MAX_CONTENT, OBJECT_HEADER, ObjectHeader, ObjectKind, Sealer};

use super::WalArchive;

/// Plain bytes of a part, but the last: half of what an object can hold, so that reading or writing one takes no more
/// memory than a segment of PostgreSQL's default size.
pub(super) const PART: usize = 16 << 20;

/// No file has more parts: the largest segment has 1 GiB.
const MAX_PARTS: usize = 1024;

/// What the data frame of an object in parts holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PartTable {
    /// The hash of the whole content.
    pub(super) hash: ContentHash,
    /// The whole content's length.
    pub(super) length: u64,
    /// Length and hash of each part, in order.
    pub(super) parts: Vec<(u32, ContentHash)>,
}

impl PartTable {
    /// What the names of the parts begin with.
    pub(super) fn stem(&self) -> String {
        let mut hex = self.hash.to_string();
        hex.truncate(32);
        hex
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(44 + self.parts.len() * 36);
        bytes.extend_from_slice(&self.hash.0);
        bytes.extend_from_slice(&self.length.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(self.parts.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (length, hash) in &self.parts {
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&hash.0);
        }
        bytes
    }

    /// `None` unless the parts make up the length.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut f = Fields::new(bytes);
        let (hash, length, count) = (ContentHash(f.array()?), f.u64()?, f.u32()? as usize);
        if count > MAX_PARTS || f.rest().len() != count * 36 {
            return None;
        }
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            parts.push((f.u32()?, ContentHash(f.array()?)));
        }
        let sum: u64 = parts.iter().map(|(length, _)| u64::from(*length)).sum();
        let sizes = parts.iter().all(|(length, _)| *length as usize <= MAX_CONTENT);
        (sum == length && sizes).then_some(Self { hash, length, parts })
    }
}

/// The first reading of a large file, piece by piece: the hashes that the names of its parts need, and by which the second
/// reading is known to have found the same.
#[derive(Debug)]
pub(super) struct PartsSurvey {
    sealer: Sealer,
    whole: blake3::Hasher,
    part: blake3::Hasher,
    part_len: usize,
    length: u64,
    parts: Vec<(u32, ContentHash)>,
}

impl PartsSurvey {
    pub(super) fn new(sealer: &Sealer) -> Self {
        let (whole, part) = (sealer.content_hasher(), sealer.content_hasher());
        Self { sealer: sealer.clone(), whole, part, part_len: 0, length: 0, parts: Vec::new() }
    }

    /// Bytes so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn add(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        self.whole.update(piece);
        let mut rest = piece;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(PART - self.part_len));
            self.part.update(now);
            self.part_len += now.len();
            if self.part_len == PART {
                self.end_part();
            }
            rest = later;
        }
    }

    fn end_part(&mut self) {
        let part = std::mem::replace(&mut self.part, self.sealer.content_hasher());
        let length = u32::try_from(std::mem::take(&mut self.part_len)).unwrap_or(u32::MAX);
        self.parts.push((length, ContentHash(*part.finalize().as_bytes())));
    }

    pub(super) fn finish(mut self) -> PartTable {
        if self.part_len > 0 {
            self.end_part();
        }
        let hash = ContentHash(*self.whole.finalize().as_bytes());
        PartTable { hash, length: self.length, parts: self.parts }
    }
}

impl WalArchive {
    /// What is wrong with the parts of a segment, by those that are `there` with their sizes; `None`: nothing, or it is in one piece.
    /// What their own headers say of their sizes is read if `sizes` are in doubt.
    pub(crate) async fn lacking_part(
        &self,
        name: SegmentName,
        there: &BTreeMap<Key, u64>,
        sizes: bool,
    ) -> Result<Option<String>> {
        let table = match self.table(&self.paths().segment(name), ObjectKind::Segment).await {
            Err(error @ RepoError::Corrupt { .. }) => return Ok(Some(error.to_string())),
            table => table?,
        };
        let Some(table) = table else { return Ok(None) };
        for n in 0..u32::try_from(table.parts.len()).unwrap_or(u32::MAX) {
            let part = self.paths().part(WalFileName::Segment(name), &table.stem(), n);
            let store = self.store();
            let Some(&size) = there.get(&part) else {
                // A listing that leaves something out would cost the segment.
                if store.head(&part).await?.is_none() {
                    return Ok(Some(format!("\"{part}\", a part of it, is not there")));
                }
                continue;
            };
            if !sizes {
                continue;
            }
            let Some(read) = found(store.get_range(&part, 0..OBJECT_HEADER as u64).await)? else { continue };
            match ObjectHeader::parse(self.sealer(), &part, &read.bytes) {
                Ok((header, _)) if header.object_len == size => {}
                Ok((header, _)) => {
                    let says = header.object_len;
                    return Ok(Some(format!(
                        "\"{part}\", a part of it, has {size} bytes, its header says {says}"
                    )));
                }
                Err(error) => return Ok(Some(format!("\"{part}\", a part of it: {error}"))),
            }
        }
        Ok(None)
    }
}

/// The longest encoded table.
pub(super) const MAX_TABLE: usize = 44 + MAX_PARTS * 36;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn survives_its_bytes_and_any_others(lengths in prop::collection::vec(0u32..1 << 24, 0..5), cut: usize) {
            let parts: Vec<_> = lengths.iter().map(|&n| (n, ContentHash([3; 32]))).collect();
            let length = lengths.iter().map(|&n| u64::from(n)).sum();
            let table = PartTable { hash: ContentHash([1; 32]), length, parts };
            let bytes = table.encode();
            prop_assert_eq!(PartTable::parse(&bytes), Some(table));
            prop_assert_eq!(PartTable::parse(&bytes[..cut % bytes.len()]), None);
        }

        #[test]
        fn any_bytes_are_a_table_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            PartTable::parse(&bytes);
        }
    }
}
