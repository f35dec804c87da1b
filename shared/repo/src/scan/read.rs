//! Reading the segments of a range. The bytes go to the sink a frame at a time, each checked; where an object turns out to be damaged,
//! another repository's continues at the same byte.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, join};
use futures_util::{FutureExt, StreamExt, stream};
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName};
use walpoint_plan::restore::SegmentRange;
use walpoint_storage::error::{RepoError, Result};

use super::{GapReason, IncompletePart, ScanGap, ScanPart, ScanRange, WalSink};
use crate::wal::{WalArchive, WalReader};

/// A sink, and how far the segment that it is given has come.
struct Given<S> {
    sink: S,
    /// Bytes of the segment.
    fed: u64,
    /// What is wrong with its records.
    wrong: Option<String>,
    /// Up to where everything was read, or reported as a gap, before the segment began.
    before: Lsn,
    /// The end of the last gap.
    gap_end: Lsn,
}

impl<S: WalSink> Given<S> {
    /// Up to where everything was read or reported. Nothing is missing before the segment at `start` if it is the first one.
    fn reached(&self, start: Lsn) -> Lsn {
        let position = self.sink.position();
        let read = if position > Lsn::INVALID { position.align() } else { start };
        read.max(self.gap_end)
    }

    /// Whether no record of the segment that begins at `start` ended yet.
    fn is_unread(&self, start: Lsn) -> bool {
        self.sink.position() <= start
    }

    /// Reports that the segment at `start` is not read, from what was read last up to `until`. A record that crosses into it is lost
    /// with it.
    fn gap(&mut self, (timeline, start): (TimelineId, Lsn), until: Option<Lsn>, why: GapReason) {
        let from = if self.is_unread(start) { self.before.max(self.gap_end) } else { self.reached(start) };
        let until = until.map(|until| until.max(from));
        self.gap_end = until.unwrap_or(from);
        self.sink.gap(ScanGap { from, until, timeline, why });
    }
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
    /// Up to where the file is read. Behind that come zeros.
    limit: u64,
}

impl<S: WalSink> Write for Feeding<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut given = self.given.lock();
        let from = given.fed.max(self.at);
        let known = usize::try_from(from - self.at).unwrap_or(usize::MAX);
        let new = bytes.get(known..).unwrap_or_default();
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.at = self.at.saturating_add(length);
        if !new.is_empty() {
            given.fed = self.at;
            let wanted = usize::try_from(self.limit.saturating_sub(from)).unwrap_or(usize::MAX);
            let (wanted, left) = new.split_at(wanted.min(new.len()));
            let fed = match left {
                [] => given.sink.bytes(wanted),
                _ => given.sink.bytes(&[wanted, &vec![0; left.len()]].concat()),
            };
            if let Err(what) = fed {
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
    let given = Given { sink, fed: 0, wrong: None, before: Lsn::INVALID, gap_end: Lsn::INVALID };
    let given = Shared(Arc::new(Mutex::new(given)));
    let size = archive.lineage().segment_size;
    for part in &range.parts {
        match part {
            ScanPart::Whole(files) => whole(archive, &given, files, size).await?,
            ScanPart::Incomplete(part) => incomplete(archive, &given, part, size).await?,
            ScanPart::Missing(files, why) => {
                let (start, until) = (files.first.start(size), files.last.end(size));
                let mut given = given.lock();
                given.before = given.reached(start);
                given.gap((files.timeline, start), Some(until), why.clone());
            }
        }
        if given.lock().sink.is_done() {
            break;
        }
    }
    let lost = || RepoError::Internal("WAL is still being read".to_owned());
    let given = Arc::try_unwrap(given.0).map_err(|_| lost())?;
    Ok(given.into_inner().unwrap_or_else(PoisonError::into_inner).sink)
}

/// Segments that are there. While one is decoded, the next one is fetched: two of them as they are stored are in memory.
async fn whole<S: WalSink>(
    archive: &WalArchive,
    given: &Shared<S>,
    files: &SegmentRange,
    size: SegmentSize,
) -> Result<()> {
    let numbers = (files.first.0..=files.last.0).map(SegmentNo);
    let opened = stream::iter(numbers).map(|number| async move {
        let copy = Copies::whole(number, files.timeline, size);
        (copy, copy.open(archive).await)
    });
    let mut opened = opened.buffered(1);
    let mut next = opened.next().await;
    while let Some((copy, reader)) = next {
        let decoded;
        (decoded, next) = join(segment(archive, given, copy, reader), opened.next()).await;
        decoded?;
        if given.lock().sink.is_done() {
            break;
        }
    }
    Ok(())
}

/// The copies of a segment of which one is read.
#[derive(Clone, Copy)]
struct Copies {
    name: SegmentName,
    /// Incomplete ones. Otherwise the segment itself.
    incomplete: bool,
    /// Its first byte, the one behind its last, and up to where it is read.
    start: Lsn,
    end: Lsn,
    limit: Lsn,
}

impl Copies {
    fn whole(number: SegmentNo, timeline: TimelineId, size: SegmentSize) -> Self {
        let (start, end) = (number.start(size), number.end(size));
        Self { name: number.name(timeline, size), incomplete: false, start, end, limit: end }
    }

    /// Opens the one that is read.
    fn open(self, archive: &WalArchive) -> BoxFuture<'_, Result<Option<WalReader>>> {
        match self.incomplete {
            true => archive.read_incomplete(self.name),
            false => archive.read(WalFileName::Segment(self.name)),
        }
    }

    /// Opens the one of one repository.
    fn open_here(self, archive: &WalArchive) -> BoxFuture<'_, Result<Option<WalReader>>> {
        match self.incomplete {
            true => archive.read_incomplete_here(self.name).boxed(),
            false => archive.read_here(WalFileName::Segment(self.name)).boxed(),
        }
    }
}

/// A segment that is there.
async fn segment<S: WalSink>(
    archive: &WalArchive,
    given: &Shared<S>,
    copy: Copies,
    reader: Result<Option<WalReader>>,
) -> Result<()> {
    let why = match feed_or_restart(archive, given, copy, reader).await? {
        Ok(true) => return Ok(()),
        Ok(false) => GapReason::Records("its records end before it does".to_owned()),
        Err(why) => why,
    };
    given.lock().gap((copy.name.timeline, copy.start), Some(copy.end), why);
    Ok(())
}

/// A segment of which at most a beginning is there, or was when the archive was listed.
async fn incomplete<S: WalSink>(
    archive: &WalArchive,
    given: &Shared<S>,
    part: &IncompletePart,
    size: SegmentSize,
) -> Result<()> {
    let start = part.number.start(size);
    let place = (part.timeline, start);
    {
        let mut given = given.lock();
        given.before = given.reached(start);
    }
    for &(name, limit) in &part.files {
        let whole = Copies { limit, ..Copies::whole(part.number, name.timeline, size) };
        let mut copy = Copies { incomplete: true, ..whole };
        let opened = copy.open(archive).await;
        let mut fed = match contradiction(archive, name, &opened).await? {
            Some(why) => Err(why),
            None => feed_or_restart(archive, given, copy, opened).await?,
        };
        // Once the segment is stored as a whole its slices are deleted.
        if fed == Err(GapReason::Missing) {
            copy = whole;
            fed = feed_or_restart(archive, given, copy, copy.open(archive).await).await?;
        }
        let reached = given.lock().reached(start);
        let why = match fed {
            Ok(true) => return Ok(()),
            Err(GapReason::Missing) => continue,
            Err(why) => why,
            Ok(false) if copy.incomplete && reached < limit => {
                archive.damaged_copy_beyond(name, None).await?.map_or(GapReason::Missing, GapReason::Damaged)
            }
            Ok(false) => GapReason::Missing,
        };
        let is_gap = match part.written {
            Some(written) => reached < written,
            // That it ends early is what it is.
            None => why != GapReason::Missing,
        };
        if is_gap {
            given.lock().gap(place, part.written, why);
        }
        return Ok(());
    }
    if part.listed || part.written.is_some() {
        given.lock().gap(place, part.written, GapReason::Missing);
    }
    Ok(())
}

/// Feeds a segment. One whose records do not continue what was read may be sound by itself: then what lies between is a gap.
async fn feed_or_restart<S: WalSink>(
    archive: &WalArchive,
    given: &Shared<S>,
    copy: Copies,
    reader: Result<Option<WalReader>>,
) -> Result<Fed> {
    let fed = feed_any(archive, given, copy, reader).await?;
    match fed {
        Err(GapReason::Records(what)) if given.lock().is_unread(copy.start) => {
            given.lock().gap((copy.name.timeline, copy.start), Some(copy.start), GapReason::Records(what));
        }
        fed => return Ok(fed),
    }
    feed_any(archive, given, copy, copy.open(archive).await).await
}

/// Whether the records reach the end of the segment, or why they could not be read.
type Fed = std::result::Result<bool, GapReason>;

/// Feeds a segment from the first reader, or from any repository that has it undamaged and whose records can be followed.
async fn feed_any<S: WalSink>(
    archive: &WalArchive,
    given: &Shared<S>,
    copy: Copies,
    first: Result<Option<WalReader>>,
) -> Result<Fed> {
    {
        let mut given = given.lock();
        given.before = given.reached(copy.start);
        (given.fed, given.wrong) = (0, None);
    }
    let (mut begun, mut damaged, mut records, mut unanswered) = (false, None, None, None);
    let mut next = Some(first);
    let mut others = archive.all();
    while let Some(opened) = next {
        let fed = match opened {
            Ok(Some(reader)) => {
                if !std::mem::replace(&mut begun, true) {
                    given.lock().sink.begin(copy.name, copy.end.since(copy.start));
                }
                feed(given, reader, copy).await
            }
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        match fed {
            Ok(true) => return Ok(given.lock().sink.end().map_err(GapReason::Records)),
            Ok(false) => {}
            Err(error @ RepoError::Corrupt { .. }) => {
                damaged.get_or_insert(error.to_string());
            }
            Err(error) => {
                let mut given = given.lock();
                if let Some(what) = given.wrong.take() {
                    // What was read of it is counted: another copy would be counted once more.
                    if !given.is_unread(copy.start) || archive.beside().is_empty() {
                        return Ok(Err(GapReason::Records(what)));
                    }
                    records.get_or_insert(what);
                    (given.fed, begun) = (0, false);
                } else {
                    unanswered.get_or_insert(error);
                }
            }
        }
        next = match others.next() {
            Some(one) => Some(copy.open_here(one).await),
            None => None,
        };
    }
    match (unanswered, records) {
        (Some(error), _) => Err(error),
        (None, Some(what)) => Ok(Err(GapReason::Records(what))),
        (None, None) => Ok(Err(damaged.map_or(GapReason::Missing, GapReason::Damaged))),
    }
}

/// Why no copy of several archives is read where one archive alone may have one that can be: they contradict each other.
async fn contradiction(
    archive: &WalArchive,
    name: SegmentName,
    opened: &Result<Option<WalReader>>,
) -> Result<Option<GapReason>> {
    let Err(error @ RepoError::Corrupt { .. }) = opened else { return Ok(None) };
    let why = GapReason::Damaged(error.to_string());
    if archive.beside().is_empty() || archive.contradicting_copies(name).await?.is_empty() {
        return Ok(None);
    }
    Ok(Some(why))
}

async fn feed<S: WalSink>(given: &Shared<S>, reader: WalReader, copy: Copies) -> Result<bool> {
    let limit = copy.limit.since(copy.start);
    reader.write_to(Feeding { given: given.clone(), at: 0, limit }).await?;
    Ok(true)
}
