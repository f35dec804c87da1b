//! The open segment of a timeline that is still being streamed, for a recovery to the latest moment that comes further than planned:
//! more was streamed of the segment in which the plan ends, or that was completed since, and another one was begun.
//!
//! Always holds: only archive recovery gets it, when PostgreSQL requests it, on the timeline on which the restore planned to end; and, as
//! for a segment that was planned, only if nothing that follows it is in the archive ([`super::build`]).

use std::sync::Arc;

use walpoint_base::{Lsn, Recovery, SegmentName, WalFileName};
use walpoint_plan::restore::{ForkSegment, ForkSource, SegmentDecoder};
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;

use crate::decoder::WalDecoder;
use crate::wal::archive::{ArchiveAnswer, ClusterArchive, Missing, Proof};
use crate::wal::note::Built;

impl ClusterArchive {
    /// How a file that was `asked` for and not had is built from what was streamed of it; `None` if it is not, or as `planned`.
    pub(super) async fn streamed(
        &self,
        name: WalFileName,
        proof: Proof,
        (planned, asked): (Option<Built>, &ArchiveAnswer<'_>),
    ) -> Option<Built> {
        let WalFileName::Segment(segment) = name else { return None };
        let ends_there = planned.is_some_and(|built| built.segment.left || built.segment.is_of_itself());
        if proof == Proof::NotWanted || asked.there || ends_there || !self.ends_latest(segment) {
            return None;
        }
        let planned_until = planned.map_or(Lsn::INVALID, |built| built.segment.cut);
        let mut longest: Option<(Lsn, &Missing<'_>)> = None;
        let decoder: Arc<dyn SegmentDecoder> = Arc::new(WalDecoder);
        for missing in &asked.missing {
            match missing.wal.streamed_until(segment, &decoder).await {
                Ok(Some(until)) if until > longest.map_or(planned_until, |(other, _)| other) => {
                    longest = Some((until, missing));
                }
                Ok(_) => {}
                // Nothing is proven to be absent then.
                Err(error) => tracing::warn!("repository {}: {error}", missing.name),
            }
        }
        let (cut, source) = longest?;
        match continuing(source, segment, (planned, cut)).await {
            Ok(built) => built,
            Err(error) => {
                tracing::warn!("repository {}: {error}", source.name);
                None
            }
        }
    }

    /// Whether the recovery under way goes to the latest moment, on the timeline of a segment.
    fn ends_latest(&self, segment: SegmentName) -> bool {
        let alone = self.place().is_some_and(|place| Recovery::of(&place.pgdata) == Recovery::Archive);
        let note = self.note().filter(|note| alone && note.settings == self.targets());
        note.is_some_and(|note| {
            note.last.is_none() && note.until.is_none() && note.timeline == segment.timeline
        })
    }
}

/// A segment that is built up to a position further than `planned`; `None` if it begins with other bytes than were planned with.
async fn continuing(
    source: &Missing<'_>,
    name: SegmentName,
    (planned, cut): (Option<Built>, Lsn),
) -> Result<Option<Built>, RepoError> {
    if let Some(Built { segment, hash: Some(hash) }) = planned
        && hash_before(source, name, segment.cut).await? != Some(hash)
    {
        return Ok(None);
    }
    let segment = ForkSegment { name, cut, source: ForkSource::Partial(name.timeline), left: false };
    Ok(Some(Built { segment, hash: hash_before(source, name, cut).await? }))
}

/// The hash of what was streamed of a segment before a position.
async fn hash_before(
    source: &Missing<'_>,
    segment: SegmentName,
    cut: Lsn,
) -> Result<Option<ContentHash>, RepoError> {
    let size = source.wal.lineage().segment_size;
    let length = segment.number(size).map_or(0, |number| cut.since(number.start(size)));
    source.wal.beginning(WalFileName::Partial(segment), length).await
}
