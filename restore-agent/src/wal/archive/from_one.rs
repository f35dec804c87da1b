//! A file from one repository: read, held against what the recovery has already, checked to its end, and only then given its
//! name. What the repository was seen to hold by that is noted.

use std::sync::atomic::Ordering;

use anyhow::anyhow;
use futures_util::{StreamExt, TryStreamExt};
use walpoint_base::{CreatedTablespace, SegmentName, SegmentNo, WalFileName};
use walpoint_plan::restore::ForkSegment;
use walpoint_repo::wal::{WalArchive, WalReader};
use walpoint_storage::RepoError;
use walpoint_storage::layout::WalEntry;

use super::{ClusterArchive, Missing, WantedFile};
use crate::wal::asking::Began;
use crate::wal::atomic_file::{self, AtomicFile, Unwritable};
use crate::wal::creates;
use crate::wal::cut::CutFile;
use crate::wal::refusal::LastingError;
use crate::wal::source::FetchSource;

/// Objects that a store lists at once.
const PAGE: usize = 1000;

pub(super) enum FetchedFrom {
    /// Its length, and the tablespaces that replay of it creates.
    Landed(u64, Vec<CreatedTablespace>),
    Missing(WalArchive),
    /// It was archived although damaged.
    Flagged(WalArchive),
    /// It is there and cannot be handed over.
    Unusable(anyhow::Error),
}

impl ClusterArchive {
    /// The repositories that answered, for another question: all but these.
    pub(in crate::wal) fn answering(&self, silent: &[&str]) -> Vec<Missing<'_>> {
        let answered = self.sources.iter().filter(|source| !silent.contains(&source.name.as_str()));
        answered.filter_map(|source| Some(Missing { name: &source.name, wal: source.opened()? })).collect()
    }

    pub(super) async fn fetch_from(
        &self,
        source: &FetchSource,
        wanted: WantedFile<'_>,
        began: Began,
    ) -> anyhow::Result<FetchedFrom> {
        let wal = self.open(source).await?;
        let reader = match read(&wal, &wanted).await {
            Ok(Some(reader)) => reader,
            Ok(None) => match wanted.built {
                None => return Ok(FetchedFrom::Missing(wal)),
                Some(_) => return Ok(FetchedFrom::Unusable(wanted.without_source())),
            },
            Err(error @ RepoError::Corrupt { .. }) => return Ok(FetchedFrom::Unusable(error.into())),
            Err(error) => return Err(error.into()),
        };
        began.store(true, Ordering::Relaxed);
        let (name, stored) = (wanted.name, wanted.stored());
        if reader.header().is_some_and(|header| header.damaged) && !wanted.flagged {
            if self.damaged_too {
                return Ok(FetchedFrom::Flagged(wal));
            }
            return Ok(FetchedFrom::Unusable(flagged(name).into()));
        }
        let given = match (stored, reader.header()) {
            (WalFileName::Segment(segment), Some(header)) => Some((segment, header.clone())),
            _ => None,
        };
        if let Some((segment, header)) = &given
            && let Err(error) =
                self.served.admit(&wal, (*segment, header), self.origin.wal(), |id| self.opened(id)).await
        {
            return match error.is::<LastingError>() {
                true => Ok(FetchedFrom::Unusable(error)),
                // What cannot be compared at the moment may be another server's.
                false => Err(error),
            };
        }
        let creates = match name {
            WalFileName::Segment(segment) => {
                creates::by_segment(self, &wal, segment, reader.header(), wanted.fork()).await?
            }
            _ => Vec::new(),
        };
        let size = match land(&wal, reader, &wanted).await? {
            Ok(size) => size,
            Err(unusable) => return Ok(FetchedFrom::Unusable(unusable)),
        };
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
        Ok(FetchedFrom::Landed(size, creates))
    }
}

impl WantedFile<'_> {
    /// The segment that is built, if one is.
    fn fork(&self) -> Option<ForkSegment> {
        self.built.map(|built| built.segment)
    }

    /// The name under which the content is stored.
    fn stored(&self) -> WalFileName {
        self.fork().map_or(self.name, |fork| fork.source_name())
    }

    fn without_source(&self) -> anyhow::Error {
        anyhow!("\"{}\" is built from \"{}\", which is not in it", self.name, self.stored())
    }
}

async fn read(wal: &WalArchive, wanted: &WantedFile<'_>) -> Result<Option<WalReader>, RepoError> {
    match wanted.stored() {
        WalFileName::Partial(copy) if wanted.built.is_some() => wal.read_incomplete(copy).await,
        stored => wal.read(stored).await,
    }
}

fn flagged(name: WalFileName) -> LastingError {
    LastingError(format!(
        "\"{name}\" was archived although damaged (push --accept-damaged), and PostgreSQL would end \
         recovery in it\nHINT: \
         Choose a target before it, or set fetch_damaged = true to recover up to the damage."
    ))
}

/// Writes the content to where it is wanted, cut where a built segment ends; its size, or why it cannot be used.
async fn land(
    wal: &WalArchive,
    reader: WalReader,
    wanted: &WantedFile<'_>,
) -> anyhow::Result<Result<u64, anyhow::Error>> {
    let segment_size = wal.lineage().segment_size;
    let fork = wanted.fork();
    let size = fork.map_or(reader.length(), |_| segment_size.bytes());
    let start = |fork: &ForkSegment| fork.name.number(segment_size).map(|number| number.start(segment_size));
    let keep = fork.map_or(size, |fork| fork.cut.since(start(&fork).unwrap_or(fork.cut)));
    let (path, durability) = (wanted.path.to_owned(), wanted.durability);
    let file = atomic_file::blocking(move || AtomicFile::begin(&path)).await?;
    let trouble = file.trouble();
    let cut = CutFile::new(file, keep, size).expecting(wanted.built.and_then(|built| built.hash));
    let file = match reader.write_to(cut).await {
        Ok((cut, _)) => match atomic_file::blocking(move || cut.finish()).await {
            Ok(file) => file,
            Err(error) => return unused(trouble.or(error.context(format!("\"{}\"", wanted.stored())))),
        },
        Err(error) => return unused(trouble.or(error)),
    };
    atomic_file::blocking(move || file.finish(durability)).await?;
    Ok(Ok(size))
}

/// What could not be used: what cannot be written is no fault of the repository's.
fn unused(error: anyhow::Error) -> anyhow::Result<Result<u64, anyhow::Error>> {
    if error.is::<Unwritable>() { Err(error) } else { Ok(Err(error)) }
}

/// The newest segment from `segment` on that one page of a listing shows, but for what the timeline went on to hold after a
/// later one left it: recovery may not go there, and `expire` removes such a branch some day.
async fn reach(
    archive: &ClusterArchive,
    wal: &WalArchive,
    segment: SegmentName,
) -> anyhow::Result<SegmentName> {
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
