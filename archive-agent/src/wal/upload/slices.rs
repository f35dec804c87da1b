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
use walpoint_storage::object::ContentHash;

use super::{UploadError, Uploader, upload_error};
use crate::wal::presence;
use crate::wal::target::WalTarget;

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

    /// Stores a slice. `before`: the hash of what comes before it, for each archive.
    // Boxed, as the others: the compiler cannot prove a nest of that many futures to be `Send`.
    pub(in crate::wal) fn put_slice<'a>(
        &'a self,
        facts: SliceFacts,
        before: &'a [ContentHash],
        session: u32,
        content: &'a Bytes,
    ) -> BoxFuture<'a, Result<(), UploadError>> {
        async move {
            let (required, cluster) = (self.required(), self.identity().await?);
            let puts = required.iter().zip(before).map(|(target, before)| {
                let facts = SliceFacts { before: *before, ..facts };
                put(target, &cluster, facts, session, content.clone()).boxed()
            });
            let puts: Vec<_> = puts.collect();
            presence::during(&required, try_join_all(puts).map(|stored| stored.map(drop))).await?;
            self.are_still_there(WalFileName::Segment(facts.segment)).await
        }
        .boxed()
    }

    /// Whether each archive holds a segment as a whole, with the content that the stream had of it. An error if one holds another.
    pub(in crate::wal) fn holds<'a>(
        &'a self,
        name: SegmentName,
        hashes: &'a [ContentHash],
    ) -> BoxFuture<'a, Result<bool, UploadError>> {
        self.compare_whole(name, hashes).boxed()
    }

    async fn compare_whole(&self, name: SegmentName, hashes: &[ContentHash]) -> Result<bool, UploadError> {
        let cluster = self.identity().await?;
        for (target, hash) in self.required().into_iter().zip(hashes) {
            let archive = target.archive_at(&cluster, name.timeline).await;
            let archive = archive.map_err(|error| upload_error(target, &error))?;
            match archive.header(name).await? {
                None => return Ok(false),
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
        Ok(true)
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
) -> Result<(), UploadError> {
    let store = async {
        target.answers()?;
        let archive = target.archive_at(cluster, facts.segment.timeline).await?;
        target.is_still(archive.repository()).await?;
        archive.put_slice(&facts, session, content).await.map(drop)?;
        Ok(())
    };
    target.or_start_over(store).await.map_err(|error| upload_error(target, &error))
}
