//! Sealing while reading: a file comes in pieces, each is compressed, hashed and sealed at once, and none is kept.
//!
//! What always holds: an object made here contains exactly the pieces that were given, so whoever checks each piece and
//! gives the same bytes has checked what is stored. In memory is what is sealed, and nothing of what was read.

use std::sync::Arc;

use walpoint_base::{Lsn, SegmentFacts, SegmentName, SegmentSize};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::Key;
use walpoint_storage::object::codec::PooledCodec;
use walpoint_storage::object::{
    Codec, ContentHash, MAX_CONTENT, ObjectKind, ObjectWriter, Packed, SealError, SealedObject, Sealer, pack,
};

use super::header::{WalFlags, WalHeader};
use super::parts::{PART, PartTable, PartsSurvey};
use super::{FRAME, WalArchive};

/// Length of the header of a segment's first page.
const PAGE_HEADER: u64 = 40;

/// Where a segment's content belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SealedName {
    /// Under its name.
    Whole,
    /// Beside, as a complete name whose content ends there: it is kept with zeros behind that, and named by its hash too.
    Ended(Lsn),
}

impl SealedName {
    /// Where a segment with these facts belongs.
    pub fn of(facts: &SegmentFacts, flags: WalFlags) -> Self {
        if facts.whole || flags.damaged { Self::Whole } else { Self::Ended(facts.end) }
    }

    /// Bytes of a segment of that name that count.
    pub fn valid(self, name: SegmentName, size: SegmentSize) -> u64 {
        let start = name.number(size).map(|number| number.start(size));
        match (self, start) {
            // The header of the first page says whose it is.
            (Self::Ended(end), Some(start)) => end.since(start).max(PAGE_HEADER),
            _ => u64::MAX,
        }
    }

    pub(super) fn kind(self) -> ObjectKind {
        match self {
            Self::Whole => ObjectKind::Segment,
            Self::Ended(_) => ObjectKind::Ended,
        }
    }
}

/// Seals one segment for one or more archives while it is read. CPU work: run it where blocking is allowed.
///
/// A segment too large for one object is only surveyed: its parts are sealed one by one when they are stored, from a second
/// reading, which has to find the same.
#[derive(Debug)]
pub struct SegmentSealer {
    codec: PooledCodec,
    sealing: Vec<(WalArchive, Sealing)>,
    name: SegmentName,
    place: SealedName,
    /// Bytes that came, and bytes of the segment that count.
    given: u64,
    valid: u64,
}

#[derive(Debug)]
enum Sealing {
    Object(Box<PieceSealer>),
    Parts(Box<PartsSurvey>),
}

/// A segment that is sealed, or surveyed if it is to be stored in parts, and not yet stored.
#[derive(Clone, Debug)]
pub struct SealedSegment {
    pub(super) facts: Arc<SegmentFacts>,
    pub(super) place: SealedName,
    pub(super) header: WalHeader,
    pub(super) sealed: Sealed,
    /// Whether its restore points are stored already.
    pub(super) points_stored: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Sealed {
    Object(SealedObject),
    Parts(PartTable),
}

impl SegmentSealer {
    /// Bytes of each piece but the last.
    pub const PIECE: usize = FRAME;

    /// The most plain bytes that a segment of that size keeps in memory, sealed, for each archive until it is stored.
    pub fn most_held(size: SegmentSize) -> usize {
        if fits(size) { size.as_usize() } else { PART }
    }

    /// Begins a segment of that name and size, which is expected to belong into `place`. It is compressed once, at the level of
    /// the first archive.
    pub fn new(
        archives: &[WalArchive],
        name: SegmentName,
        size: SegmentSize,
        place: SealedName,
    ) -> Result<Self> {
        let begin = |archive: &WalArchive| {
            // What ends early is named by its hash: it is sealed when that is known.
            let sealing = if fits(size) && place == SealedName::Whole {
                let key = archive.paths().segment(name);
                let sealer = PieceSealer::new(archive.sealer(), place.kind(), &key, size.bytes())?;
                Sealing::Object(Box::new(sealer))
            } else {
                Sealing::Parts(Box::new(PartsSurvey::new(archive.sealer())))
            };
            Ok((archive.clone(), sealing))
        };
        let sealing = archives.iter().map(begin).collect::<Result<_>>()?;
        // Nobody's content is compressed where there is no archive.
        let codec = archives.first().map_or_else(Codec::for_opening, |archive| archive.sealer().codec());
        let valid = place.valid(name, size);
        Ok(Self { codec, sealing, name, place, given: 0, valid })
    }

    /// Takes the next piece: [`Self::PIECE`] bytes, or what is left at the end.
    pub fn add(&mut self, piece: &[u8]) -> Result<()> {
        // Compressed once, for whoever wants it.
        let kept = usize::try_from(self.valid.saturating_sub(self.given)).unwrap_or(usize::MAX);
        self.given = self.given.saturating_add(piece.len() as u64);
        let zeroed = (kept < piece.len()).then(|| {
            let mut zeroed = piece.to_vec();
            zeroed.iter_mut().skip(kept).for_each(|byte| *byte = 0);
            zeroed
        });
        let piece = zeroed.as_deref().unwrap_or(piece);
        let wanted = self.sealing.iter().any(|(_, sealing)| matches!(sealing, Sealing::Object(_)));
        let packed = wanted.then(|| pack(piece, &mut self.codec));
        for (_, sealing) in &mut self.sealing {
            match (sealing, packed) {
                (Sealing::Object(sealer), Some(packed)) => sealer.add(packed)?,
                (Sealing::Parts(survey), _) => survey.add(piece),
                (Sealing::Object(_), None) => {}
            }
        }
        Ok(())
    }

    /// How many bytes it keeps in memory so far, for all archives together.
    pub fn held(&self) -> u64 {
        let held = |sealing: &Sealing| match sealing {
            Sealing::Object(sealer) => sealer.writer.object_len(),
            Sealing::Parts(_) => 0,
        };
        self.sealing.iter().map(|(_, sealing)| held(sealing)).sum()
    }

    /// The sealed segment for each archive, in their order, after the last piece. Facts of another cluster, or such as
    /// belong into another place than was expected, are refused.
    pub fn finish(self, facts: &Arc<SegmentFacts>, flags: WalFlags) -> Result<Vec<SealedSegment>> {
        let (name, place, valid) = (self.name, self.place, self.valid);
        let finish = |(archive, sealing): (WalArchive, Sealing)| {
            let key = archive.paths().segment(name);
            let length = match &sealing {
                Sealing::Object(sealer) => sealer.given,
                Sealing::Parts(survey) => survey.length(),
            };
            let number = archive.check_facts(&key, facts, length)?;
            if facts.name != name || SealedName::of(facts, flags) != place {
                let what = format!("its content belongs to {} and into another place than this", facts.name);
                return Err(RepoError::Refused { key, what });
            }
            let describe = |hash| {
                let mut header = WalHeader::new(archive.lineage().id, facts, number, flags, hash);
                header.content_len = header.content_len.min(valid);
                header
            };
            let (header, sealed) = match sealing {
                Sealing::Object(sealer) => {
                    let header = describe(sealer.hash());
                    let object = sealer.finish(&header.encode())?;
                    (header, Sealed::Object(object))
                }
                Sealing::Parts(survey) => {
                    let table = survey.finish();
                    (describe(table.hash), Sealed::Parts(table))
                }
            };
            Ok(SealedSegment { facts: Arc::clone(facts), place, header, sealed, points_stored: false })
        };
        self.sealing.into_iter().map(finish).collect()
    }
}

fn fits(size: SegmentSize) -> bool {
    size.as_usize() <= MAX_CONTENT
}

impl SealedSegment {
    /// What was read of it.
    pub fn facts(&self) -> &SegmentFacts {
        &self.facts
    }

    /// Of the whole segment, as the repository knows it.
    pub fn hash(&self) -> ContentHash {
        self.header.hash
    }

    /// Whether it is stored though damaged: what was read of it shows nothing.
    pub fn is_damaged(&self) -> bool {
        self.header.damaged
    }

    /// What it says about itself.
    pub(crate) fn header(&self) -> &WalHeader {
        &self.header
    }

    /// The bytes that it takes if it is stored anew; `None` for a segment in parts, of which it is not known yet.
    pub(crate) fn stored(&self) -> Option<u64> {
        match &self.sealed {
            Sealed::Object(object) => Some(object.len()),
            Sealed::Parts(_) => None,
        }
    }

    /// How many bytes it keeps in memory until it is stored; of one in parts, those of the largest part that may come.
    pub fn held(&self) -> u64 {
        match &self.sealed {
            Sealed::Object(object) => object.len(),
            Sealed::Parts(_) => PART as u64,
        }
    }
}

/// One object, sealed piece by piece; its description comes at the end, because it holds the hash.
#[derive(Debug)]
pub(super) struct PieceSealer {
    key: Key,
    writer: ObjectWriter,
    /// Bytes to come, and bytes that came.
    left: u64,
    given: u64,
}

impl PieceSealer {
    /// Begins an object for `length` bytes of content.
    pub(super) fn new(sealer: &Sealer, kind: ObjectKind, key: &Key, length: u64) -> Result<Self> {
        let begun = ObjectWriter::new(sealer, kind, key).and_then(|mut writer| {
            if matches!(kind, ObjectKind::Segment | ObjectKind::Ended) {
                writer.meta_later()?;
            }
            Ok(writer)
        });
        let writer = begun.map_err(|error| failed(key, error))?;
        Ok(Self { key: key.clone(), writer, left: length, given: 0 })
    }

    /// Adds the next piece.
    pub(super) fn add(&mut self, piece: Packed<'_>) -> Result<()> {
        let length = piece.plain().len() as u64;
        self.given += length;
        self.left = self.left.checked_sub(length).ok_or_else(|| failed(&self.key, SealError))?;
        self.writer.packed(piece, self.left == 0).map(drop).map_err(|error| failed(&self.key, error))
    }

    /// The hash of what was added.
    pub(super) fn hash(&self) -> ContentHash {
        self.writer.content_hash()
    }

    /// The object, described by `meta` if it is of a kind that is. Fails unless all of the content came.
    pub(super) fn finish(self, meta: &[u8]) -> Result<SealedObject> {
        if self.left > 0 {
            return Err(failed(&self.key, SealError));
        }
        let sealed = if meta.is_empty() { self.writer.finish() } else { self.writer.finish_with_meta(meta) };
        sealed.map_err(|error| failed(&self.key, error))
    }
}

pub(super) fn failed(key: &Key, error: SealError) -> RepoError {
    RepoError::Internal(format!("{key} could not be sealed: {error}"))
}
