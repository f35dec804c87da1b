//! Reading the segments of a range. The bytes go to the sink a frame at a time, each checked; where an object turns out to be damaged,
//! another repository's goes on at the same byte.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::join;
use futures_util::{StreamExt, stream};
use walpoint_base::{SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName};
use walpoint_plan::restore::SegmentRange;
use walpoint_storage::error::{RepoError, Result};

use super::range::bounds;
use super::{GapReason, ScanGap, ScanRange, WalSink};
use crate::wal::{WalArchive, WalReader};

/// A sink, and how far the segment that it is given has come.
struct Given<S> {
    sink: S,
    /// Bytes of the segment.
    fed: u64,
    /// What is wrong with its records.
    wrong: Option<String>,
}

struct Shared<S>(Arc<Mutex<Given<S>>>);

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: WalSink> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, Given<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes into the sink what it does not have yet.
struct Feeding<S> {
    given: Shared<S>,
    at: u64,
}

impl<S: WalSink> Write for Feeding<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut given = self.given.lock();
        let known = usize::try_from(given.fed.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let new = bytes.get(known..).unwrap_or_default();
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.at = self.at.saturating_add(length);
        if !new.is_empty() {
            given.fed = self.at;
            if let Err(what) = given.sink.bytes(new) {
                given.wrong = Some(what);
                return Err(io::Error::other("the records are wrong"));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a range into a sink. A store that does not answer is an error, what is missing or damaged is a gap.
pub async fn read<S: WalSink>(archive: &WalArchive, range: &ScanRange, sink: S) -> Result<S> {
    let size = archive.lineage().segment_size;
    let given = Shared(Arc::new(Mutex::new(Given { sink, fed: 0, wrong: None })));
    let mut before: Option<SegmentRange> = None;
    for files in &range.files {
        if let Some(before) = before.filter(|before| before.last.next() != files.first) {
            skip(&given, range, (before.last.next(), files), size);
        }
        before = Some(*files);
        let names = (files.first.0..=files.last.0).map(|number| SegmentNo(number).name(files.timeline, size));
        let opened = stream::iter(names)
            .map(|name| async move { (name, archive.read(WalFileName::Segment(name)).await) });
        // While one is decoded, the next one is fetched: two of them as they are stored are in memory.
        let mut opened = opened.buffered(1);
        let mut next = opened.next().await;
        while let Some((name, reader)) = next {
            let decoded;
            (decoded, next) = join(segment(archive, &given, name, reader), opened.next()).await;
            decoded?;
            if given.lock().sink.is_done() {
                return finish(given);
            }
        }
    }
    if let Some(name) = range.tail {
        tail(archive, &given, name).await?;
    }
    finish(given)
}

fn finish<S>(given: Shared<S>) -> Result<S> {
    let lost = || RepoError::Internal("WAL is still being read".to_owned());
    let given = Arc::try_unwrap(given.0).map_err(|_| lost())?;
    Ok(given.into_inner().unwrap_or_else(PoisonError::into_inner).sink)
}

/// Segments of which none is there.
fn skip<S: WalSink>(
    given: &Shared<S>,
    range: &ScanRange,
    (first, next): (SegmentNo, &SegmentRange),
    size: SegmentSize,
) {
    let is_lost = range.lost.iter().any(|number| *number >= first && *number < next.first);
    let why = if is_lost { GapReason::Lost } else { GapReason::Missing };
    let mut given = given.lock();
    let from = given.sink.position().max(first.start(size));
    let until = Some(bounds(next, size).0);
    given.sink.gap(ScanGap { from, until, timeline: next.timeline, why });
}

async fn segment<S: WalSink>(
    archive: &WalArchive,
    given: &Shared<S>,
    name: SegmentName,
    reader: Result<Option<WalReader>>,
) -> Result<()> {
    let size = archive.lineage().segment_size;
    let Some(number) = name.number(size) else { return Ok(()) };
    let why = match feed_any(archive, given, name, reader).await? {
        Ok(()) => return Ok(()),
        // It may be sound by itself and not continue the one before.
        Err(GapReason::Records(what)) if given.lock().sink.position() <= number.start(size) => {
            let start = number.start(size);
            gap(given, (number, Some(start)), (name.timeline, size), GapReason::Records(what));
            let again = archive.read(WalFileName::Segment(name)).await;
            match feed_any(archive, given, name, again).await? {
                Ok(()) => return Ok(()),
                Err(why) => why,
            }
        }
        Err(why) => why,
    };
    gap(given, (number, Some(number.end(size))), (name.timeline, size), why);
    Ok(())
}

fn gap<S: WalSink>(
    given: &Shared<S>,
    (number, until): (SegmentNo, Option<walpoint_base::Lsn>),
    (timeline, size): (TimelineId, SegmentSize),
    why: GapReason,
) {
    let mut given = given.lock();
    let position = given.sink.position();
    // A record that goes on from the segment before is lost with this one.
    let from = if position > walpoint_base::Lsn::INVALID { position } else { number.start(size) };
    let until = until.map(|until| until.max(from));
    given.sink.gap(ScanGap { from, until, timeline, why });
}

/// Feeds a segment from the first reader, or from any repository that has it undamaged.
async fn feed_any<S: WalSink>(
    archive: &WalArchive,
    given: &Shared<S>,
    name: SegmentName,
    first: Result<Option<WalReader>>,
) -> Result<std::result::Result<(), GapReason>> {
    {
        let mut given = given.lock();
        (given.fed, given.wrong) = (0, None);
        given.sink.begin(name, archive.lineage().segment_size.bytes());
    }
    let mut damaged = None;
    let mut next = Some(first);
    let mut others = archive.all();
    while let Some(opened) = next {
        let fed = match opened {
            Ok(Some(reader)) => feed(given, reader).await,
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        match fed {
            Ok(true) => return Ok(end(given)),
            Ok(false) => {}
            Err(error @ RepoError::Corrupt { .. }) => {
                damaged.get_or_insert(error.to_string());
            }
            Err(error) => match given.lock().wrong.take() {
                Some(what) => return Ok(Err(GapReason::Records(what))),
                None => return Err(error),
            },
        }
        next = match others.next() {
            Some(one) => Some(one.read_here(WalFileName::Segment(name)).await),
            None => None,
        };
    }
    Ok(Err(damaged.map_or(GapReason::Missing, GapReason::Damaged)))
}

async fn feed<S: WalSink>(given: &Shared<S>, reader: WalReader) -> Result<bool> {
    reader.write_to(Feeding { given: given.clone(), at: 0 }).await?;
    Ok(true)
}

fn end<S: WalSink>(given: &Shared<S>) -> std::result::Result<(), GapReason> {
    match given.lock().sink.end() {
        Ok(true) => Ok(()),
        Ok(false) => Err(GapReason::Records("its records end before it does".to_owned())),
        Err(what) => Err(GapReason::Records(what)),
    }
}

/// What is stored of the segment behind all whole ones.
async fn tail<S: WalSink>(archive: &WalArchive, given: &Shared<S>, name: SegmentName) -> Result<()> {
    let size = archive.lineage().segment_size;
    let Some(number) = name.number(size) else { return Ok(()) };
    {
        let mut given = given.lock();
        (given.fed, given.wrong) = (0, None);
    }
    let reader = match archive.read_incomplete(name).await {
        Ok(Some(reader)) => reader,
        Ok(None) => return Ok(()),
        Err(error @ RepoError::Corrupt { .. }) => {
            gap(given, (number, None), (name.timeline, size), GapReason::Damaged(error.to_string()));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    given.lock().sink.begin(name, size.bytes());
    let why = match feed(given, reader).await {
        // That it ends early is what it is.
        Ok(_) => given.lock().sink.end().err().map(GapReason::Records),
        Err(error @ RepoError::Corrupt { .. }) => Some(GapReason::Damaged(error.to_string())),
        Err(error) => match given.lock().wrong.take() {
            Some(what) => Some(GapReason::Records(what)),
            None => return Err(error),
        },
    };
    if let Some(why) = why {
        gap(given, (number, None), (name.timeline, size), why);
    }
    Ok(())
}
