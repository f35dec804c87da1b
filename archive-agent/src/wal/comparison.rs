//! How a segment of a directory compares with the one that is stored under its name, and what a file says about itself.
//!
//! What is not finished, not sound or not there proves nothing.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;

use walpoint_base::chain::{ChainEnd, ChainFacts};
use walpoint_base::{SegmentFacts, SegmentName, SegmentNo, SegmentSize, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::{BeginningHasher, WalArchive};
use walpoint_storage::RepoError;
use walpoint_storage::object::{ContentHash, Sealer};

use super::check::{SegmentVerdict, history_in};
use super::disk;
use super::read::OpenFile;
use super::unreadable;

/// How a segment of a directory compares with the one of the same name in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// It is missing on a side, or one of them proves nothing.
    Unknown,
    /// The same content.
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
        Ok(Some(header)) if !header.damaged => Ok(content(archive, cluster, wal, name, header.hash).await),
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

/// Compares the content of a segment with a stored one's hash.
pub(super) async fn content(
    archive: &WalArchive,
    cluster: &WalIdentity,
    wal: &Path,
    name: SegmentName,
    theirs: ContentHash,
) -> Comparison {
    let (sealer, path) = (archive.repository().sealer().clone(), wal.join(name.to_string()));
    let hashed = disk::run(wal, move || hash(&sealer, &path)).await;
    let Ok(Ok(ours)) = hashed else { return Comparison::Unknown };
    if ours == theirs {
        return Comparison::Same;
    }
    let (sealer, path) = (archive.repository().sealer().clone(), wal.join(name.to_string()));
    let cluster = *cluster;
    // Between the two readings a segment may have been finished.
    let as_it_is =
        move || is_sound(&path, name, &cluster) && hash(&sealer, &path).is_ok_and(|again| again == ours);
    match disk::run(wal, as_it_is).await {
        Ok(true) => Comparison::Other(format!(
            "segment {name} has content {ours} here, and other content, {theirs}, is stored"
        )),
        _ => Comparison::Unknown,
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

/// [`has_begun`] of a segment of a directory, where that may hang.
pub(super) async fn begun(wal: &Path, name: SegmentName, size: SegmentSize) -> Result<bool, RepoError> {
    let Some(number) = name.number(size) else { return Ok(false) };
    let path = wal.join(name.to_string());
    Ok(disk::look(wal, move || has_begun(&path, number, size)).await?)
}

/// Whether the first page of a file is that of a segment: one that waits to be used again has another address or none. Blocks.
pub(crate) fn has_begun(path: &Path, number: SegmentNo, size: SegmentSize) -> bool {
    // xlp_magic, xlp_info and xlp_tli, then xlp_pageaddr (src/include/access/xlog_internal.h).
    let mut header = [0; 16];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header.ends_with(&number.start(size).0.to_le_bytes())
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

/// Whether a file is a whole segment of that cluster and name.
fn is_sound(path: &Path, name: SegmentName, cluster: &WalIdentity) -> bool {
    inspect(path, name, cluster).is_some_and(|facts| facts.whole)
}

/// The edges of a finished segment in a directory; `None` if it cannot be read or is damaged.
pub(super) async fn edges(wal: &Path, name: SegmentName, cluster: &WalIdentity) -> Option<ChainFacts> {
    let (path, cluster) = (wal.join(name.to_string()), *cluster);
    let facts = disk::run(wal, move || inspect(&path, name, &cluster)).await.ok()??;
    let end = if facts.whole { facts.chain.end } else { ChainEnd::UNKNOWN };
    Some(ChainFacts { end, ..facts.chain })
}

/// What a sound segment says about itself. Blocks.
fn inspect(path: &Path, name: SegmentName, cluster: &WalIdentity) -> Option<SegmentFacts> {
    let history = path.parent().and_then(|directory| history_in(directory, name.timeline));
    let file = OpenFile::open(path, WalFileName::Segment(name), cluster.segment_size.bytes()).ok()?;
    let mut verdict =
        SegmentVerdict::new(name, file.identity.size, history.as_ref().map(|(history, _)| history));
    let read = file.read(&mut vec![0; 1 << 20], |piece| {
        verdict.add(piece);
        ControlFlow::Continue(())
    });
    read.ok()?;
    verdict.pronounce(cluster).ok()
}
