//! The open segment of a timeline that is still being streamed, for a recovery to the latest moment that comes further than planned:
//! the last segment of the plan was completed since, and another one was begun.
//!
//! Always holds: only archive recovery gets it, when PostgreSQL requests it, on the timeline on which the restore planned to end; and, as
//! for a segment that was planned, only if nothing that follows it is in the archive ([`super::build`]).

use std::sync::Arc;

use walpoint_base::{Lsn, Recovery, SegmentName, WalFileName};
use walpoint_plan::restore::{ForkSegment, ForkSource, SegmentDecoder};
use walpoint_storage::RepoError;

use crate::decoder::WalDecoder;
use crate::wal::archive::{ArchiveAnswer, ClusterArchive, Missing, Proof};
use crate::wal::note::Built;

impl ClusterArchive {
    /// How a file that was `asked` for and not had is built from what was streamed of it; `None` if it is not.
    pub(super) async fn streamed(
        &self,
        name: WalFileName,
        proof: Proof,
        asked: &ArchiveAnswer<'_>,
    ) -> Option<Built> {
        let WalFileName::Segment(segment) = name else { return None };
        if proof == Proof::NotWanted || asked.there || !self.ends_latest(segment) {
            return None;
        }
        let mut longest: Option<(Lsn, &Missing<'_>)> = None;
        let decoder: Arc<dyn SegmentDecoder> = Arc::new(WalDecoder);
        for missing in &asked.missing {
            match missing.wal.streamed_until(segment, &decoder).await {
                Ok(Some(until)) if longest.is_none_or(|(other, _)| other < until) => {
                    longest = Some((until, missing));
                }
                Ok(_) => {}
                // Nothing is proven to be absent then.
                Err(error) => tracing::warn!("repository {}: {error}", missing.name),
            }
        }
        let (cut, source) = longest?;
        match hash(source, segment, cut).await {
            Ok(hash) => {
                let from = ForkSource::Partial(segment.timeline);
                let segment = ForkSegment { name: segment, cut, source: from, left: false };
                Some(Built { segment, hash })
            }
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

/// The hash of what is built.
async fn hash(
    source: &Missing<'_>,
    segment: SegmentName,
    cut: Lsn,
) -> Result<Option<walpoint_storage::object::ContentHash>, RepoError> {
    let size = source.wal.lineage().segment_size;
    let length = segment.number(size).map_or(0, |number| cut.since(number.start(size)));
    source.wal.beginning(WalFileName::Partial(segment), length).await
}
