//! What the server's own `pg_wal` shows of a segment that it is about to be given: whether it continues what is there.
//!
//! Recovery keeps the segment that it replayed last, and those since its last restartpoint; a standby also keeps what it was streamed,
//! which may be another server's than the archive's. A file that waits to be used again under the name of a later segment shows nothing.
//!
//! A segment that is streamed at the moment, or was left unfinished, counts up to its last complete record, and only against the archive's:
//! two servers that were promoted at one position begin a timeline with the same records, and differ behind them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use walpoint_base::chain::{ChainEnd, ChainFacts, Link};
use walpoint_base::{SegmentFacts, SegmentName, SegmentNo, SegmentSize, WalFileName};
use walpoint_pg::wal::{Inspector, PageHeader, WalIdentity};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::object::{ContentHash, Sealer};

/// So many segments back are looked for, and so many of those that are there are read.
const LOOK_BACK: u64 = 64;
const READ: usize = 3;

/// A segment is read in pieces of this length.
const PIECE: usize = 1 << 20;

/// As much of a file as the header of its first page has.
const HEADER: usize = 64;

/// What the newest segment shows.
pub(crate) enum Own {
    /// The archive has that segment with the same content.
    Same(SegmentName),
    /// It is another server's; what shows it.
    Different(String),
}

/// A segment that an archive has.
#[derive(Clone, Copy)]
pub(crate) struct Offered<'a> {
    pub(crate) name: SegmentName,
    pub(crate) hash: ContentHash,
    pub(crate) chain: &'a ChainFacts,
}

/// Compares the newest segment of a directory, on the timeline of the one that an archive offers and not behind that, with what the
/// archive has; `None` if nothing shows whose it is. `after`: what lies up to there is known to be the archive's.
pub(crate) async fn shown(
    directory: &Path,
    wal: &WalArchive,
    offered: Offered<'_>,
    after: Option<SegmentNo>,
) -> anyhow::Result<Option<Own>> {
    let (size, name) = (wal.lineage().segment_size, offered.name);
    let Some(number) = name.number(size) else { return Ok(None) };
    let from = number.0.saturating_sub(LOOK_BACK).max(after.map_or(0, |after| after.0.saturating_add(1)));
    let directory = directory.to_owned();
    let written = tokio::task::spawn_blocking(move || {
        let names = (from..=number.0).rev().map(|number| SegmentNo(number).name(name.timeline, size));
        let files = names.map(|name| (name, directory.join(name.to_string())));
        files.filter(|(name, path)| is_written(path, *name, size)).take(READ).collect::<Vec<_>>()
    });
    for (found, path) in written.await? {
        // Removed meanwhile, or never finished.
        let Some(own) = OwnSegment::read(wal, found, path).await? else { continue };
        let adjacent = found.number(size).is_some_and(|found| found.next() == number);
        if adjacent
            && own.facts.whole
            && let Link::Broken(fault) = ChainEnd::UNKNOWN.after(&own.facts.chain).link(offered.chain)
        {
            return Ok(Some(Own::Different(format!(
                "\"{name}\" does not continue \"{found}\" in pg_wal: {fault}"
            ))));
        }
        let stored = if found == name { Some(offered.hash) } else { stored(wal, found).await? };
        if let Some(stored) = stored
            && let Some(same) = own.is(wal, stored).await?
            && own.shows(same)
        {
            return Ok(Some(judged(found, same)));
        }
    }
    Ok(None)
}

/// Compares the newest whole segment of a directory, on whatever timeline, with what an archive has; `None` if nothing shows whose it
/// is.
pub(crate) async fn newest(directory: &Path, wal: &WalArchive) -> anyhow::Result<Option<Own>> {
    let size = wal.lineage().segment_size;
    let directory = directory.to_owned();
    let listed = tokio::task::spawn_blocking(move || -> io::Result<Vec<(SegmentName, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_str().and_then(|name| name.parse::<SegmentName>().ok());
            found.extend(name.map(|name| (name, entry.path())));
        }
        found.sort_unstable_by_key(|(name, _)| std::cmp::Reverse((name.timeline, name.number(size))));
        Ok(found.into_iter().filter(|(name, path)| is_written(path, *name, size)).take(READ).collect())
    });
    for (found, path) in listed.await?? {
        let own = OwnSegment::read(wal, found, path).await?.filter(|own| own.facts.whole);
        let Some(own) = own else { continue };
        if let Some(stored) = stored(wal, found).await?
            && let Some(same) = own.is(wal, stored).await?
        {
            return Ok(Some(judged(found, same)));
        }
    }
    Ok(None)
}

fn judged(found: SegmentName, same: bool) -> Own {
    match same {
        true => Own::Same(found),
        false => Own::Different(format!("\"{found}\" in pg_wal has other content")),
    }
}

/// The hash of a segment in an archive; `None` if it has none, or a damaged one.
async fn stored(wal: &WalArchive, name: SegmentName) -> Result<Option<ContentHash>, RepoError> {
    match wal.header(name).await {
        Ok(header) => Ok(header.filter(|header| !header.damaged).map(|header| header.hash)),
        Err(RepoError::Corrupt { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a file holds what its name says, from its beginning: not what it was used for before. Blocks.
fn is_written(path: &Path, name: SegmentName, size: SegmentSize) -> bool {
    let mut header = [0; HEADER];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    let begins = name.number(size).map(|number| number.start(size));
    read.is_ok()
        && PageHeader::parse(&header).is_some_and(|page| page.magic != 0 && Some(page.address) == begins)
}

/// A segment of the directory, whole or begun.
struct OwnSegment {
    name: SegmentName,
    path: PathBuf,
    facts: SegmentFacts,
    hash: ContentHash,
}

impl OwnSegment {
    /// Reads it; `None` if it is no segment of that server, or damaged.
    async fn read(wal: &WalArchive, name: SegmentName, path: PathBuf) -> anyhow::Result<Option<Self>> {
        let lineage = wal.lineage();
        let identity = WalIdentity {
            system_id: lineage.system_id(),
            major: lineage.major,
            segment_size: lineage.segment_size,
        };
        let sealer = wal.repository().sealer().clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut inspector = Inspector::new(name, fs::metadata(&path)?.len(), None);
            let hash = hash(&path, u64::MAX, &sealer, |piece| inspector.feed(piece).is_ok())?;
            let facts = inspector.finish().ok().filter(|facts| identity.check(facts).is_ok());
            io::Result::Ok(facts.zip(hash).map(|(facts, hash)| Self { name, path, facts, hash }))
        });
        Ok(read.await?.ok().flatten())
    }

    /// Whether a comparison says anything: that an unfinished segment begins like the stored one does not.
    fn shows(&self, same: bool) -> bool {
        self.facts.whole || !same
    }

    /// Whether it is the one that an archive stores with a hash, or begins like that if it is not whole; `None` if that cannot be found
    /// out. What lies behind a switch to the next segment is no WAL, and may not have been streamed before the stream broke.
    async fn is(&self, wal: &WalArchive, stored: ContentHash) -> anyhow::Result<Option<bool>> {
        if self.hash == stored || self.facts.whole && !self.facts.switched {
            return Ok(Some(self.hash == stored));
        }
        let size = wal.lineage().segment_size;
        let Some(number) = self.name.number(size) else { return Ok(None) };
        let length = self.facts.end.since(number.start(size));
        if self.facts.records == 0 || length == 0 {
            return Ok(None);
        }
        let theirs = match wal.hash_of_beginning(WalFileName::Segment(self.name), length).await {
            Err(RepoError::Corrupt { .. }) => None,
            theirs => theirs?,
        };
        let sealer = wal.repository().sealer().clone();
        let path = self.path.clone();
        let ours = tokio::task::spawn_blocking(move || hash(&path, length, &sealer, |_| true));
        Ok(ours.await?.ok().flatten().zip(theirs).map(|(ours, theirs)| ours == theirs))
    }
}

/// The hash of the first bytes of a file, as a repository hashes contents; `None` if `check` does not go on. Blocks.
fn hash(
    path: &Path,
    length: u64,
    sealer: &Sealer,
    mut check: impl FnMut(&[u8]) -> bool,
) -> io::Result<Option<ContentHash>> {
    let mut file = File::open(path)?.take(length);
    let (mut hasher, mut buffer) = (sealer.content_hasher(), vec![0; PIECE]);
    loop {
        let read = file.read(&mut buffer)?;
        let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else { break };
        if !check(piece) {
            return Ok(None);
        }
        hasher.update(piece);
    }
    Ok(Some(ContentHash(*hasher.finalize().as_bytes())))
}
