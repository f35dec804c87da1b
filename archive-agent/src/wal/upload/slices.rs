//! What a stream stores of the segment that its server is writing, in the repositories that have to acknowledge; one attempt each.
//!
//! What is compared before a segment is stored is compared before its first slice, but for the segment's own edges, which are not
//! there yet: the whole segment is held against its neighbors when it is complete.

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join_all};
use walpoint_base::{SegmentName, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::WalArchive;
use walpoint_repo::wal::slices::{SliceFacts, SliceName};
use walpoint_storage::RepoError;
use walpoint_storage::error::Remedy;
use walpoint_storage::layout::Key;
use walpoint_storage::object::ContentHash;

use super::{UploadError, Uploader, upload_error};
use crate::wal::presence;
use crate::wal::target::WalTarget;

/// What became of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::wal) enum PutSlice {
    Stored,
    /// A damaged object has its name, so nothing is ever stored under that; what is damaged.
    InTheWay(String),
    /// Others have stored of the segment, or all of it: what they have is to be compared first.
    Begun,
}

/// What is stored of a segment as a whole, where the stream had all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::wal) enum StoredWhole {
    /// Not each archive holds it.
    No,
    /// Each archive holds it, and one does as it was accepted although damaged: its slices may hold what recovery cannot have otherwise.
    Damaged,
    /// Each archive holds it, sound.
    Sound,
}

impl Uploader {
    fn required(&self) -> Vec<&WalTarget> {
        self.targets.iter().filter(|target| target.acknowledges).collect()
    }

    /// The archives that slices of a segment go to, in an order that stays the same; the history of its timeline is in each then.
    pub(in crate::wal) fn admit_slices(
        &self,
        name: SegmentName,
    ) -> BoxFuture<'_, Result<Vec<WalArchive>, UploadError>> {
        self.find_archives(name).boxed()
    }

    async fn find_archives(&self, name: SegmentName) -> Result<Vec<WalArchive>, UploadError> {
        let path = self.wal_directory().join(name.to_string());
        let file = self.source(WalFileName::Segment(name), path, false).await?;
        let required = self.required();
        presence::look(&required).await?;
        self.is_recorded(&file.cluster, &required).await?;
        let mut candidates = self.admit(&file, &required).await?;
        self.judge(&file, None, candidates.iter_mut().collect()).await?;
        let archive = |one: super::CandidateRepository<'_>| match one.admitted {
            Ok(admitted) => Ok(admitted.archive),
            Err(error) => Err(upload_error(one.target, &error)),
        };
        candidates.into_iter().map(archive).collect()
    }

    /// Stores a slice in each archive, unless a damaged object has its name in one. `before`: the hash of what comes before it, for each
    /// archive.
    // Boxed, as the others: the compiler cannot prove a nest of that many futures to be `Send`.
    pub(in crate::wal) fn put_slice<'a>(
        &'a self,
        facts: SliceFacts,
        before: &'a [ContentHash],
        session: u32,
        content: &'a Bytes,
    ) -> BoxFuture<'a, Result<PutSlice, UploadError>> {
        async move {
            let (required, cluster) = (self.required(), self.identity().await?);
            let puts = required.iter().zip(before).map(|(target, before)| {
                let facts = SliceFacts { before: *before, ..facts };
                put(target, &cluster, facts, session, content.clone()).boxed()
            });
            let puts: Vec<_> = puts.collect();
            let put = presence::during(&required, try_join_all(puts)).await?;
            self.are_still_there(WalFileName::Segment(facts.segment)).await?;
            let in_the_way = put.into_iter().find(|put| *put != PutSlice::Stored);
            Ok(in_the_way.unwrap_or(PutSlice::Stored))
        }
        .boxed()
    }

    /// Whether each archive holds a segment as a whole, with the content that the stream had of it. An error if one holds another.
    pub(in crate::wal) fn holds<'a>(
        &'a self,
        name: SegmentName,
        hashes: &'a [ContentHash],
    ) -> BoxFuture<'a, Result<StoredWhole, UploadError>> {
        self.compare_whole(name, hashes).boxed()
    }

    async fn compare_whole(
        &self,
        name: SegmentName,
        hashes: &[ContentHash],
    ) -> Result<StoredWhole, UploadError> {
        let (cluster, mut stored) = (self.identity().await?, StoredWhole::Sound);
        for (target, hash) in self.required().into_iter().zip(hashes) {
            let archive = target.archive_at(&cluster, name.timeline).await;
            let archive = archive.map_err(|error| upload_error(target, &error))?;
            let header = archive.header(name).await;
            match header.map_err(|error| upload_error(target, &error.into()))? {
                None => return Ok(StoredWhole::No),
                Some(header) if header.hash == *hash && header.damaged => stored = StoredWhole::Damaged,
                Some(header) if header.hash == *hash => {}
                Some(_) => {
                    return Err(UploadError::permanent(format!(
                        "split brain: segment {name} is stored in repository {} with other content than this server's: another \
                         server wrote it, or this data directory was reset to an earlier state\nHINT: \"archive-agent check\" \
                         shows more.",
                        target.name()
                    )));
                }
            }
        }
        self.are_still_there(WalFileName::Segment(name)).await?;
        Ok(stored)
    }

    /// Deletes the slices of a segment that the whole one holds: those of this session, and of earlier ones those that are named for
    /// each archive. What cannot be deleted does no harm: no reader wants slices of a segment that is whole.
    pub(in crate::wal) fn delete_slices<'a>(
        &'a self,
        name: SegmentName,
        session: u32,
        earlier: &'a [Vec<SliceName>],
    ) -> BoxFuture<'a, Result<(), UploadError>> {
        self.delete_held(name, session, earlier).boxed()
    }

    /// Deletes slices in each archive that another one holds as well, which is read back from it first. `before`: the hash of what comes
    /// before that one, for each archive. An error, and nothing deleted in an archive, if it is not there, or holds other bytes than were
    /// sent.
    pub(in crate::wal) fn replace_slices<'a>(
        &'a self,
        merged: (SegmentName, SliceName),
        sent: (&'a [ContentHash], &'a Bytes),
        replaced: &'a [SliceName],
    ) -> BoxFuture<'a, Result<(), UploadError>> {
        self.replace_held(merged, sent, replaced).boxed()
    }

    async fn replace_held(
        &self,
        (segment, merged): (SegmentName, SliceName),
        (before, content): (&[ContentHash], &Bytes),
        replaced: &[SliceName],
    ) -> Result<(), UploadError> {
        let cluster = self.identity().await?;
        for (target, before) in self.required().into_iter().zip(before) {
            let replace = async {
                target.answers()?;
                let archive = target.archive_at(&cluster, segment.timeline).await?;
                target.is_still(archive.repository()).await?;
                Ok(archive.replace_slices(segment, merged, (before, content), replaced).await?)
            };
            let holds = target.or_start_over(replace).await.map_err(|error| upload_error(target, &error))?;
            if !holds {
                return Err(UploadError::permanent(format!(
                    "repository {} does not hold the slice of {segment} that was to replace others, from {} on",
                    target.name(),
                    merged.start
                )));
            }
        }
        Ok(())
    }

    async fn delete_held(
        &self,
        name: SegmentName,
        session: u32,
        earlier: &[Vec<SliceName>],
    ) -> Result<(), UploadError> {
        let cluster = self.identity().await?;
        for (n, target) in self.required().into_iter().enumerate() {
            let archive = target.archive_at(&cluster, name.timeline).await;
            let archive = archive.map_err(|error| upload_error(target, &error))?;
            let earlier = earlier.get(n).map(Vec::as_slice).unwrap_or_default();
            let held = |slice: &SliceName| slice.session == session || earlier.contains(slice);
            let slices: Vec<SliceName> = archive.slices(name).await?.into_iter().filter(held).collect();
            archive.delete_slices(name, &slices).await?;
        }
        Ok(())
    }
}

/// Stores a slice in one repository.
async fn put(
    target: &WalTarget,
    cluster: &WalIdentity,
    facts: SliceFacts,
    session: u32,
    content: Bytes,
) -> Result<PutSlice, UploadError> {
    let store = async {
        target.answers()?;
        let archive = target.archive_at(cluster, facts.segment.timeline).await?;
        target.is_still(archive.repository()).await?;
        let end = facts.start + content.len() as u64;
        let slice = archive.paths().slice(facts.segment, facts.start, end, session);
        match archive.put_slice(&facts, session, content).await {
            Ok(_) => Ok(PutSlice::Stored),
            Err(error) => Ok(unless_in_the_way(&slice, target.name(), error)?),
        }
    };
    target.or_start_over(store).await.map_err(|error| upload_error(target, &error))
}

/// That a damaged object has a slice's own name. Any other one is an error like others: under another name it would be in the way, too.
fn unless_in_the_way(slice: &Key, repository: &str, error: RepoError) -> Result<PutSlice, RepoError> {
    match error {
        RepoError::Corrupt { key, remedy: Some(Remedy::MoveAway), .. } if key == *slice => {
            Ok(PutSlice::InTheWay(format!("repository {repository}: {key} is damaged")))
        }
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::Lsn;
    use walpoint_base::facts::HistoryHash;

    use super::*;
    use crate::wal::fixtures::{size, two};

    #[tokio::test]
    async fn only_a_damaged_object_of_its_own_name_is_in_the_way_of_a_slice() {
        let (main, ..) = two().await;
        let segment: SegmentName = "000000010000000000000005".parse().unwrap();
        let start = segment.number(size()).unwrap().start(size());
        let slice = |session| main.archive.paths().slice(segment, start, start + 8192, session);
        let stored = |key: &Key| {
            let error = RepoError::in_the_way(key, "its header is invalid");
            unless_in_the_way(&slice(1), "main", error)
        };
        assert!(matches!(stored(&slice(1)), Ok(PutSlice::InTheWay(_))));
        for other in [slice(2), main.archive.paths().segment(segment)] {
            assert!(stored(&other).is_err(), "{other}");
        }
    }

    /// Promise 1: what a create left damaged keeps the name of its slice for ever. Another session, which begins where its segment does,
    /// stores the same bytes under other names, and what is damaged hides none of them.
    #[tokio::test]
    async fn another_session_stores_what_a_damaged_slice_is_in_the_way_of() {
        let (main, _far, uploader, cluster) = two().await;
        let target = &uploader.targets()[0];
        let segment: SegmentName = "000000010000000000000005".parse().unwrap();
        let start = segment.number(size()).unwrap().start(size());
        let hash = |bytes: &[u8]| {
            let mut hasher = main.archive.content_hasher();
            hasher.update(bytes);
            ContentHash(*hasher.finalize().as_bytes())
        };
        let (first, second) = (Bytes::from(vec![1; 8192]), Bytes::from(vec![2; 8192]));
        let facts = |at: u64, before: &[u8]| SliceFacts {
            segment,
            start: start + at,
            before: hash(before),
            history: HistoryHash::NONE,
            received: jiff::Timestamp::now(),
        };
        let put_first = async |session| put(target, &cluster, facts(0, &[]), session, first.clone()).await;
        let put_second =
            async |session| put(target, &cluster, facts(8192, &first), session, second.clone()).await;
        assert_eq!(put_first(1).await.unwrap(), PutSlice::Stored);
        assert_eq!(put_second(1).await.unwrap(), PutSlice::Stored);
        let damaged = format!("{:016X}-{:016X}-00000001", start.0 + 8192, start.0 + 16384);
        main.damage(&damaged);
        assert!(matches!(put_second(1).await.unwrap(), PutSlice::InTheWay(what) if what.contains(&damaged)));
        let stored = async || main.archive.sliced_beginning(segment, Lsn(u64::MAX)).await.unwrap().unwrap().0;
        assert!(stored().await.fault.is_some(), "the next session begins where the segment does");

        for put in [put_first(2).await, put_second(2).await] {
            assert_eq!(put.unwrap(), PutSlice::Stored);
        }
        let stored = stored().await;
        assert_eq!((stored.end, stored.fault.is_none()), (start + 16384, true), "{:?}", stored.fault);
    }
}
