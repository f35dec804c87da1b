//! Whether a segment is the stored one although the two differ: what lies behind the switch that ends both is no WAL.

use std::io::{self, Write};

use walpoint_base::{Lsn, SegmentFacts, SegmentName, WalFileName};
use walpoint_repo::wal::{BeginningHasher, WalArchive, WalContent};
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;

use super::unreadable;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// The records of a whole segment that ends with a switch.
#[derive(Debug, Clone, Copy)]
pub(super) struct SwitchedRecords {
    segment: SegmentName,
    /// The end of the switch.
    end: Lsn,
    /// Bytes of the segment up to there.
    length: u64,
}

impl SwitchedRecords {
    /// Those of a sound segment; `None` if no switch ends it.
    pub(super) fn of(facts: &SegmentFacts) -> Option<Self> {
        let start = facts.name.number(facts.size)?.start(facts.size);
        (facts.whole && facts.switched && facts.end > start).then(|| Self {
            segment: facts.name,
            end: facts.end,
            length: facts.end.since(start),
        })
    }

    /// The hash of them in a file. Blocks.
    pub(super) fn hash(&self, content: &WalContent) -> io::Result<Option<ContentHash>> {
        let (mut hasher, mut buffer, mut offset) = (BeginningHasher::of(self.length), Vec::new(), 0);
        while offset < self.length {
            let length = usize::try_from(self.length - offset).unwrap_or(PIECE).min(PIECE);
            hasher.write_all(content.piece(offset, length, &mut buffer)?)?;
            offset += length as u64;
        }
        Ok(hasher.hash())
    }

    /// The hash of the segment that is stored, if it has the same records, of which `ours` is the hash, and no others. All of it is read and
    /// checked then.
    ///
    /// # Errors
    ///
    /// [`RepoError::Corrupt`] and [`RepoError::NotFound`] if it is damaged or gone by now.
    pub(super) async fn stored(
        &self,
        archive: &WalArchive,
        ours: ContentHash,
    ) -> Result<Option<ContentHash>, RepoError> {
        let name = self.segment;
        let Some(stored) = unreadable::header(archive, name).await? else { return Ok(None) };
        if stored.damaged || !stored.whole || !stored.switched || stored.end != self.end {
            return Ok(None);
        }
        let read = archive.beginning(WalFileName::Segment(name), self.length).await;
        if unreadable::settled(archive, read).await? != Some(ours) {
            return Ok(None);
        }
        tracing::warn!(
            file = %name,
            repository = archive.repository().name(),
            "segment {name} differs here from the stored one behind the end of its records\nDETAIL: All its records, up to the \
             segment switch at {}, are the same. What is stored stays as it is.\nHINT: Check the disk for failures: PostgreSQL \
             does not change a finished segment.",
            self.end
        );
        Ok(Some(stored.hash))
    }
}
