//! The open segment of a timeline that is still being streamed, for a recovery to the latest moment that comes further than planned:
//! more was streamed of the segment in which the plan ends, or that was completed since, and another one was begun.
//!
//! Its server may write on meanwhile. The latest moment is the one at which PostgreSQL asks: what is there then is handed over, and noted;
//! what comes later is no reason against it, and a later answer continues it, until the whole segment is there.
//!
//! Always holds: only archive recovery gets it, when PostgreSQL requests it, on the timeline on which the restore planned to end; and, as
//! for a segment that was planned, only if nothing that follows it is in the archive ([`super::build`]).

use std::sync::Arc;

use walpoint_base::{Lsn, Recovery, SegmentName, WalFileName};
use walpoint_plan::restore::{ForkSegment, ForkSource, SegmentDecoder};
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;

use crate::decoder::WalDecoder;
use crate::wal::archive::{ArchiveAnswer, ClusterArchive, Missing, Proof, lock};
use crate::wal::note::{Built, TargetNote};
use crate::wal::spool;

impl ClusterArchive {
    /// How a file that the repositories which were `asked` do not have is built from what was streamed of it; `None` if it is not built so,
    /// or as `planned`. The second value: whether this takes in all that those which answered have of it.
    pub(super) async fn streamed(
        &self,
        name: WalFileName,
        proof: Proof,
        (planned, asked): (Option<Built>, &ArchiveAnswer<'_>),
    ) -> (Option<Built>, bool) {
        let WalFileName::Segment(segment) = name else { return (None, false) };
        let ends_there = planned.is_some_and(|built| built.segment.left || built.segment.is_of_itself());
        if proof == Proof::NotWanted || asked.there || ends_there || !self.ends_latest(segment) {
            return (None, false);
        }
        let planned_until = planned.map_or(Lsn::INVALID, |built| built.segment.cut);
        let (mut longest, mut seen): (Option<(Lsn, &Missing<'_>)>, _) = (None, true);
        let decoder: Arc<dyn SegmentDecoder> = Arc::new(WalDecoder);
        for missing in &asked.missing {
            match missing.wal.open_segment(segment, &decoder).await {
                Ok(open) => {
                    seen &= !open.others;
                    if let Some(until) = open.until
                        && until > longest.map_or(planned_until, |(other, _)| other)
                    {
                        longest = Some((until, missing));
                    }
                }
                Err(error) => {
                    // Nothing is proven to be absent then.
                    seen = false;
                    tracing::warn!("repository {}: {error}", missing.name);
                }
            }
        }
        let Some((cut, source)) = longest else { return (None, seen) };
        match continuing(source, segment, (planned, cut)).await {
            Ok(Some(built)) => (Some(built), seen),
            Ok(None) => (None, false),
            Err(error) => {
                tracing::warn!("repository {}: {error}", source.name);
                (None, false)
            }
        }
    }

    /// Notes what is handed over of the open segment. Where that fails, a later answer continues what was planned.
    pub(super) fn note_handed(&self, built: Built) {
        let before = lock(&self.built).replace(built);
        let (Some(place), Some(note)) = (self.place(), self.note()) else { return };
        if before == Some(built) {
            return;
        }
        let noted = TargetNote { fork: Some(built), ..note }.write(&place.wal.join(spool::DIRECTORY));
        if let Err(error) = noted {
            tracing::warn!("{}", walpoint_words::format_chain(&error));
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
