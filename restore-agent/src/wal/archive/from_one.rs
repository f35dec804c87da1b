//! A file from one repository: read, held against what the recovery has already, checked to its end, and only then given its
//! name. What the repository was seen to hold by that is noted.

use std::sync::atomic::Ordering;

use anyhow::anyhow;
use futures_util::{StreamExt, TryStreamExt};
use walpoint_base::{CreatedTablespace, SegmentName, SegmentNo, WalFileName};
use walpoint_plan::restore::ForkSegment;
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::layout::WalEntry;
use walpoint_words::told;

use super::{Archive, Wanted};
use crate::wal::asking::Began;
use crate::wal::creates;
use crate::wal::cut::CutFile;
use crate::wal::landing::{self, Landing};
use crate::wal::refusal::Refusal;
use crate::wal::source::Source;

/// Objects that a store lists at once.
const PAGE: usize = 1000;

pub(super) enum Found {
    /// Its length, and the tablespaces that replay of it creates.
    Landed(u64, Vec<CreatedTablespace>),
    Missing(WalArchive),
    /// It was archived though damaged.
    Flagged(WalArchive),
    /// It is there and cannot be handed over.
    Unusable(anyhow::Error),
}

impl Archive {
    pub(super) async fn fetch_from(
        &self,
        source: &Source,
        wanted: Wanted<'_>,
        began: Began,
    ) -> anyhow::Result<Found> {
        let Wanted { name, path, durability, built, flagged } = wanted;
        let wal = self.open(source).await?;
        let fork = built.map(|built| built.segment);
        let stored = fork.map_or(name, |fork| fork.source_name());
        let read = match stored {
            WalFileName::Partial(copy) if fork.is_some() => wal.read_incomplete(copy).await,
            _ => wal.read(stored).await,
        };
        let reader = match read {
            Ok(Some(reader)) => reader,
            Ok(None) => match fork {
                None => return Ok(Found::Missing(wal)),
                Some(_) => {
                    return Ok(Found::Unusable(anyhow!(
                        "\"{name}\" is built from \"{stored}\", which is not in it"
                    )));
                }
            },
            Err(error @ RepoError::Corrupt { .. }) => return Ok(Found::Unusable(error.into())),
            Err(error) => return Err(error.into()),
        };
        began.store(true, Ordering::Relaxed);
        if reader.header().is_some_and(|header| header.damaged) && !flagged {
            if self.damaged_too {
                return Ok(Found::Flagged(wal));
            }
            let why = format!(
                "\"{name}\" was archived though damaged (push --accept-damaged), and PostgreSQL would end recovery in it; HINT: \
                 choose a target before it, or set fetch_damaged = true to recover up to the damage"
            );
            return Ok(Found::Unusable(Refusal(why).into()));
        }
        let given = match (stored, reader.header()) {
            (WalFileName::Segment(segment), Some(header)) => Some((segment, header.clone())),
            _ => None,
        };
        if let Some((segment, header)) = &given
            && let Err(error) =
                self.served.admit(&wal, (*segment, header), self.origin.wal(), |id| self.opened(id)).await
        {
            return Ok(Found::Unusable(Refusal(told(&error)).into()));
        }
        let creates = match name {
            WalFileName::Segment(segment) => {
                creates::by_segment(self, &wal, segment, reader.header(), fork).await?
            }
            _ => Vec::new(),
        };
        let size = fork.map_or(reader.length(), |_| wal.lineage().segment_size.bytes());
        let target = path.to_owned();
        let landing = landing::blocking(move || Landing::begin(&target)).await?;
        let segment_size = wal.lineage().segment_size;
        let start =
            |fork: &ForkSegment| fork.name.number(segment_size).map(|number| number.start(segment_size));
        let keep = fork.map_or(size, |fork| fork.cut.since(start(&fork).unwrap_or(fork.cut)));
        let cut = CutFile::new(landing, keep, size).expecting(built.and_then(|built| built.hash));
        let landing = match reader.write_to(cut).await {
            Ok((cut, _)) => match landing::blocking(move || cut.finish()).await {
                Ok(landing) => landing,
                Err(error) => return Ok(Found::Unusable(error.context(format!("\"{stored}\"")))),
            },
            Err(error) => return Ok(Found::Unusable(error.into())),
        };
        landing::blocking(move || landing.finish(durability)).await?;
        if let Some((segment, header)) = &given {
            self.served.note(&wal, *segment, header, &self.origin);
        }
        // What is inherited is no sign of the lineage itself.
        if let WalFileName::Segment(segment) = stored
            && !wal.inherits(segment)
        {
            let mut newest = segment;
            if self.origin.is_new(wal.repository().id()) {
                // What cannot be listed is not known to be there.
                newest = reach(self, &wal, segment).await.unwrap_or(segment);
            }
            self.origin.seen(wal.repository().id(), newest);
        }
        Ok(Found::Landed(size, creates))
    }
}

/// The newest segment from `segment` on that one page of a listing shows, but for what the timeline went on to hold after a
/// later one left it: recovery may not go there, and `expire` removes such a branch some day.
async fn reach(archive: &Archive, wal: &WalArchive, segment: SegmentName) -> anyhow::Result<SegmentName> {
    let size = wal.lineage().segment_size;
    let mut entries = wal.list(segment.timeline, Some(segment)).take(PAGE);
    let mut newest = segment;
    while let Some((entry, _)) = entries.try_next().await? {
        if let WalEntry::File(WalFileName::Segment(found)) = entry {
            newest = newest.max(found);
        }
    }
    for timeline in wal.histories().await?.into_iter().filter(|timeline| *timeline > segment.timeline) {
        let history = archive.history_in(wal, timeline).await?;
        if let Some(left) = history.and_then(|history| history.end_of(segment.timeline)) {
            newest = newest.min(SegmentNo::of(left, size).name(segment.timeline, size));
        }
    }
    Ok(newest.max(segment))
}
