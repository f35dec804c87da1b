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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use walpoint_pg::wal::{WalIdentity, inspect};
    use walpoint_repo::wal::{SealedName, SegmentSealer, Stored, WalFlags};

    use super::super::comparison::{self, Comparison};
    use super::super::fixtures::{Bed, size, switched};
    use super::super::target::TargetError;

    const NAME: &str = "000000010000000000000005";

    fn flipped(mut content: Vec<u8>, at: usize) -> Vec<u8> {
        content[at] ^= 1;
        content
    }

    /// Promise 3: what lies behind the end of the records is valid, whatever it is.
    #[tokio::test]
    async fn a_segment_that_differs_behind_its_switch_only_is_the_stored_one() {
        let bed = Bed::new().await;
        bed.put_wal(NAME, &switched(NAME, 7)).await;
        let lineage = bed.archive.lineage();
        let cluster =
            WalIdentity { system_id: lineage.system_id(), major: lineage.major, segment_size: size() };
        let wal = bed.pgdata().join("pg_wal");
        let compared = async |content: Vec<u8>| {
            walpoint_base::durable::replace(&wal.join(NAME), &content, 0o600).unwrap();
            comparison::segment(&bed.archive, &cluster, &wal, NAME.parse().unwrap()).await.unwrap()
        };
        assert_eq!(compared(switched(NAME, 7)).await, Comparison::Same);
        for at in [64, 500_000, size().as_usize() - 1] {
            assert_eq!(compared(flipped(switched(NAME, 7), at)).await, Comparison::Same, "{at}");
            let other = compared(flipped(switched(NAME, 8), at)).await;
            assert!(matches!(other, Comparison::Other(_)), "{at}: {other:?}");
        }
        assert!(matches!(compared(switched(NAME, 8)).await, Comparison::Other(_)));
        bed.damage(NAME);
        assert_eq!(compared(flipped(switched(NAME, 7), 500_000)).await, Comparison::Unknown);
    }

    /// Promises 1 and 2: it is acknowledged as the stored one, if that can be read.
    #[tokio::test]
    async fn a_segment_that_differs_behind_its_switch_only_is_acknowledged() {
        let bed = Bed::new().await;
        bed.put_wal(NAME, &switched(NAME, 7)).await;
        let (target, name) = (bed.target(true), NAME.parse().unwrap());
        let stored = bed.archive.header(name).await.unwrap().unwrap().hash;
        let store = async |content: Vec<u8>| {
            let facts = Arc::new(inspect(name, &content).unwrap());
            let archives = std::slice::from_ref(&bed.archive);
            let mut sealer = SegmentSealer::new(archives, name, size(), SealedName::Whole).unwrap();
            sealer.add(&content).unwrap();
            let sealed = sealer.finish(&facts, WalFlags::default()).unwrap().pop().unwrap();
            target.store_segment(&bed.archive, name, sealed, &content.into()).await
        };
        let again = flipped(switched(NAME, 7), 500_000);
        assert_eq!(store(again.clone()).await.unwrap(), (Stored::Same, stored));
        for content in [switched(NAME, 8), flipped(switched(NAME, 8), 500_000)] {
            let refused = store(content).await.unwrap_err();
            assert!(matches!(refused, TargetError::SplitBrain(_)), "{refused}");
        }
        bed.damage(NAME);
        let refused = store(again).await.unwrap_err().to_string();
        assert!(refused.contains("Move that object away.") && !refused.contains("split brain"), "{refused}");
    }
}
