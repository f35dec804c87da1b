//! How a segment of a directory compares with the one that is stored under its name, and what a file says about itself.
//!
//! What is not finished, not sound or not there proves nothing, and neither does what lies behind the switch that ends a segment.

use std::io::{self, ErrorKind, Read};
use std::ops::ControlFlow;
use std::path::Path;

use walpoint_base::chain::{ChainEnd, ChainFacts};
use walpoint_base::{SegmentFacts, SegmentName, SegmentNo, SegmentSize, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::{BeginningHasher, WalArchive, WalContent};
use walpoint_storage::RepoError;
use walpoint_storage::object::{ContentHash, Sealer};

use super::check::{SegmentVerdict, history_in};
use super::disk;
use super::read::{OpenFile, ReadError};
use super::switched::SwitchedRecords;
use super::unreadable;

/// How often a segment that its server writes to is read.
const READINGS: usize = 4;

/// How a segment of a directory compares with the one of the same name in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// It is missing on a side, or one of them proves nothing.
    Unknown,
    /// The same content, but for what is no WAL.
    Same,
    /// Another content; what shows it.
    Other(String),
}

/// Compares a segment with the one that is stored.
pub(crate) async fn segment(
    archive: &WalArchive,
    cluster: &WalIdentity,
    wal: &Path,
    name: SegmentName,
) -> Result<Comparison, RepoError> {
    match unreadable::header(archive, name).await {
        Ok(Some(header)) if !header.damaged => content(archive, cluster, wal, name, header.hash).await,
        // What is damaged proves nothing, and verify tells of it.
        Ok(_) | Err(RepoError::Corrupt { .. }) => Ok(Comparison::Unknown),
        Err(error) => Err(error),
    }
}

/// What shows that a finished segment of a directory is not the one that is stored under its name, if anything does.
pub(crate) async fn another(
    archive: &WalArchive,
    wal: &Path,
    name: SegmentName,
) -> Result<Option<String>, RepoError> {
    let lineage = archive.lineage();
    let (system_id, major) = (lineage.system_id(), lineage.major);
    let cluster = WalIdentity { system_id, major, segment_size: lineage.segment_size };
    match segment(archive, &cluster, wal, name).await? {
        Comparison::Other(what) => Ok(Some(what)),
        Comparison::Same | Comparison::Unknown => Ok(None),
    }
}

/// Compares what a segment of a directory holds before a position with the stored one: the first `length` bytes.
pub(super) async fn beginning(
    archive: &WalArchive,
    wal: &Path,
    name: SegmentName,
    length: u64,
) -> Result<Comparison, RepoError> {
    let read = archive.beginning(WalFileName::Segment(name), length).await;
    let theirs = match unreadable::settled(archive, read).await {
        Ok(theirs) => theirs,
        Err(RepoError::Corrupt { .. } | RepoError::NotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let path = wal.join(name.to_string());
    let hashed = disk::run(wal, move || {
        let mut beginning = BeginningHasher::of(length);
        io::copy(&mut std::fs::File::open(path)?.take(length), &mut beginning)?;
        io::Result::Ok(beginning.hash())
    });
    let (Some(theirs), Ok(Ok(Some(ours)))) = (theirs, hashed.await) else { return Ok(Comparison::Unknown) };
    Ok(match ours == theirs {
        true => Comparison::Same,
        false => Comparison::Other(format!(
            "the first {length} bytes of segment {name} are others here than in the one that is stored"
        )),
    })
}

/// Compares the content of a segment with a stored one's hash. Where these differ and a switch ends the segment, the stored one is read.
pub(super) async fn content(
    archive: &WalArchive,
    cluster: &WalIdentity,
    wal: &Path,
    name: SegmentName,
    theirs: ContentHash,
) -> Result<Comparison, RepoError> {
    let (sealer, path) = (archive.repository().sealer().clone(), wal.join(name.to_string()));
    let hashed = disk::run(wal, move || hash(&sealer, &path)).await;
    let Ok(Ok(ours)) = hashed else { return Ok(Comparison::Unknown) };
    if ours == theirs {
        return Ok(Comparison::Same);
    }
    let (sealer, path) = (archive.repository().sealer().clone(), wal.join(name.to_string()));
    let cluster = *cluster;
    // Between the two readings a segment may have been finished.
    let as_it_is = move || {
        let facts = sound(&path, name, &cluster)?;
        let records = match SwitchedRecords::of(&facts) {
            Some(records) => {
                let content = WalContent::file(std::fs::File::open(&path).ok()?).ok()?;
                Some((records, records.hash(&content).ok()??))
            }
            None => None,
        };
        hash(&sealer, &path).is_ok_and(|again| again == ours).then_some(records)
    };
    let Ok(Some(records)) = disk::run(wal, as_it_is).await else { return Ok(Comparison::Unknown) };
    let other = Comparison::Other(format!(
        "segment {name} has content {ours} here, and other content, {theirs}, is stored"
    ));
    let Some((records, ours)) = records else { return Ok(other) };
    match records.stored(archive, ours).await {
        Ok(Some(_)) => Ok(Comparison::Same),
        Ok(None) => Ok(other),
        Err(RepoError::Corrupt { .. } | RepoError::NotFound { .. }) => Ok(Comparison::Unknown),
        Err(error) => Err(error),
    }
}

/// Whether a directory has a segment with that content under a later name: PostgreSQL renames those that it needs no more, and writes to
/// them when it comes to their new names (`RemoveXlogFile` in src/backend/access/transam/xlog.c).
pub(super) async fn is_recycled(
    archive: &WalArchive,
    wal: &Path,
    name: SegmentName,
    theirs: ContentHash,
) -> bool {
    let size = archive.lineage().segment_size;
    let Some(number) = name.number(size) else { return false };
    let (sealer, directory) = (archive.repository().sealer().clone(), wal.to_owned());
    let look = move || {
        let files = std::fs::read_dir(&directory)?.filter_map(Result::ok).filter(|file| {
            let later = file.file_name().to_str().and_then(|name| name.parse::<SegmentName>().ok());
            later.and_then(|later| later.number(size)) > Some(number)
        });
        let mut held = files.map(|file| file.path()).filter(|path| has_begun(path, number, size));
        io::Result::Ok(held.any(|path| hash(&sealer, &path).is_ok_and(|ours| ours == theirs)))
    };
    matches!(disk::run(wal, look).await, Ok(Ok(true)))
}

/// Whether PostgreSQL marked a segment of a directory as finished. In a directory that is not its own all are.
/// Blocks.
pub(crate) fn is_finished(wal: &Path, name: SegmentName) -> bool {
    let status = wal.join("archive_status");
    let marked = |mark: &str| status.join(format!("{name}.{mark}")).exists();
    wal.join(name.to_string()).exists() && (marked("done") || marked("ready") || !status.exists())
}

/// [`is_finished`], where a data directory may hang.
pub(super) async fn finished(wal: &Path, name: SegmentName) -> Result<bool, RepoError> {
    let directory = wal.to_owned();
    Ok(disk::look(wal, move || is_finished(&directory, name)).await?)
}

/// [`begins`] of a segment of a directory, where that may hang.
pub(super) async fn begun(wal: &Path, name: SegmentName, size: SegmentSize) -> Result<bool, RepoError> {
    let Some(number) = name.number(size) else { return Ok(false) };
    let path = wal.join(name.to_string());
    let file = path.clone();
    let begun = disk::look(wal, move || begins(&file, number, size)).await?;
    begun.map_err(|source| unread(&path, source))
}

/// [`begins`], where a file that cannot be read shows nothing. Blocks.
pub(crate) fn has_begun(path: &Path, number: SegmentNo, size: SegmentSize) -> bool {
    matches!(begins(path, number, size), Ok(true))
}

/// Whether the first page of a file is that of a segment: one that waits to be used again has another address or none. An error if it is
/// there and cannot be read. Blocks.
pub(super) fn begins(path: &Path, number: SegmentNo, size: SegmentSize) -> io::Result<bool> {
    // xlp_magic, xlp_info and xlp_tli, then xlp_pageaddr (src/include/access/xlog_internal.h).
    let mut header = [0; 16];
    match std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut header)) {
        Ok(()) => Ok(header.ends_with(&number.start(size).0.to_le_bytes())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => Ok(false),
        Err(error) => Err(error),
    }
}

fn unread(path: &Path, source: io::Error) -> RepoError {
    RepoError::Io { what: format!("{} cannot be read", path.display()), source }
}

fn hash(sealer: &Sealer, path: &Path) -> io::Result<ContentHash> {
    let (mut file, mut hasher) = (std::fs::File::open(path)?, sealer.content_hasher());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(ContentHash(*hasher.finalize().as_bytes())),
            read => drop(hasher.update(buffer.get(..read).unwrap_or_default())),
        }
    }
}

/// What a file says about itself if it is a whole segment of that cluster and name.
fn sound(path: &Path, name: SegmentName, cluster: &WalIdentity) -> Option<SegmentFacts> {
    match inspect(path, name, cluster) {
        Ok((facts, false)) => facts.filter(|facts| facts.whole),
        _ => None,
    }
}

/// The edges of a finished segment in a directory; `None` if it cannot be read or is damaged.
pub(super) async fn edges(wal: &Path, name: SegmentName, cluster: &WalIdentity) -> Option<ChainFacts> {
    edges_if_read(wal, name, cluster).await.ok()?
}

/// The edges of a segment in a directory, though its server may be writing it; `None` if it is damaged or not there. An error if it cannot be
/// read, or changes all the time.
pub(super) async fn edges_if_read(
    wal: &Path,
    name: SegmentName,
    cluster: &WalIdentity,
) -> Result<Option<ChainFacts>, RepoError> {
    let (path, cluster) = (wal.join(name.to_string()), *cluster);
    let mut before: Option<ChainFacts> = None;
    for _ in 0..READINGS {
        let file = path.clone();
        let (facts, changed) = match disk::run(wal, move || inspect(&file, name, &cluster)).await? {
            Ok(inspected) => inspected,
            Err(ReadError::Length { .. }) => return Ok(None),
            Err(ReadError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
            Err(ReadError::Io { source, .. }) => return Err(unread(&path, source)),
            Err(ReadError::Changed { .. }) => continue,
        };
        let chain = facts.map(|facts| {
            let end = if facts.whole && !changed { facts.chain.end } else { ChainEnd::UNKNOWN };
            ChainFacts { end, ..facts.chain }
        });
        // What is written stays as it is: a beginning that two readings found holds.
        let holds = chain.zip(before).is_some_and(|(chain, before)| chain.begin == before.begin);
        if !changed || holds {
            return Ok(chain);
        }
        before = chain;
    }
    Err(unread(&path, io::Error::other("it changed while it was read")))
}

/// What a segment says about itself, `None` if it is damaged, and whether it changed while it was read. Blocks.
fn inspect(
    path: &Path,
    name: SegmentName,
    cluster: &WalIdentity,
) -> Result<(Option<SegmentFacts>, bool), ReadError> {
    let history = path.parent().and_then(|directory| history_in(directory, name.timeline));
    let file = OpenFile::open(path, WalFileName::Segment(name), cluster.segment_size.bytes())?;
    let mut verdict =
        SegmentVerdict::new(name, file.identity.size, history.as_ref().map(|(history, _)| history));
    let read = file.read(&mut vec![0; 1 << 20], |piece| {
        verdict.add(piece);
        ControlFlow::Continue(())
    });
    let changed = matches!(read, Err(ReadError::Changed { .. }));
    if !changed {
        read?;
    }
    Ok((verdict.pronounce(cluster).ok(), changed))
}
