//! What the server's own `pg_wal` shows of a segment that it is about to be given: whether it continues what is there.
//!
//! Recovery keeps the segment that it replayed last, and those since its last restartpoint. What is streamed at the moment, or was
//! left unfinished, shows nothing.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use walpoint_base::chain::{ChainEnd, Link};
use walpoint_base::{SegmentFacts, SegmentName, SegmentNo};
use walpoint_pg::wal::{Inspector, WalIdentity};
use walpoint_repo::wal::WalArchive;
use walpoint_repo::wal::header::WalHeader;
use walpoint_storage::RepoError;
use walpoint_storage::object::{ContentHash, Sealer};

/// So many segments back are looked for, and so many of those that are there are read.
const LOOK_BACK: u64 = 64;
const READ: usize = 3;

/// A segment is read in pieces of this length.
const PIECE: usize = 1 << 20;

/// What the newest segment before one shows.
pub(crate) enum Own {
    /// The archive has that segment with the same content.
    Same(SegmentName),
    /// It is another server's; what shows it.
    Different(String),
}

/// Compares the newest whole segment of a directory before one, on its timeline, with what an archive has; `None` if nothing shows
/// whose it is.
pub(crate) async fn before(
    directory: &Path,
    wal: &WalArchive,
    name: SegmentName,
    header: &WalHeader,
) -> anyhow::Result<Option<Own>> {
    let size = wal.lineage().segment_size;
    let Some(number) = name.number(size) else { return Ok(None) };
    let identity =
        WalIdentity { system_id: wal.lineage().system_id(), major: wal.lineage().major, segment_size: size };
    let earlier = (number.0.saturating_sub(LOOK_BACK)..number.0).rev().map(SegmentNo);
    let found = earlier.map(|number| number.name(name.timeline, size));
    let found = found.map(|name| (name, directory.join(name.to_string()))).filter(|(_, path)| path.is_file());
    for (found, path) in found.take(READ).collect::<Vec<_>>() {
        let sealer = wal.repository().sealer().clone();
        let read = tokio::task::spawn_blocking(move || whole(found, &path, &identity, &sealer)).await?;
        // Removed meanwhile, or never finished.
        let Ok(Some((facts, hash))) = read else { continue };
        let adjacent = found.number(size).is_some_and(|found| found.next() == number);
        if adjacent && let Link::Broken(fault) = ChainEnd::UNKNOWN.after(&facts.chain).link(&header.chain) {
            return Ok(Some(Own::Different(format!(
                "\"{name}\" does not continue \"{found}\" in pg_wal: {fault}"
            ))));
        }
        match wal.header(found).await {
            Ok(Some(header)) if !header.damaged => {
                return Ok(Some(if header.hash == hash {
                    Own::Same(found)
                } else {
                    Own::Different(format!("\"{found}\" in pg_wal has other content"))
                }));
            }
            Ok(_) | Err(RepoError::Corrupt { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// What a segment says about itself, and the hash of its content; `None` if it is not a whole segment of that server. Blocks.
fn whole(
    name: SegmentName,
    path: &Path,
    identity: &WalIdentity,
    sealer: &Sealer,
) -> io::Result<Option<(SegmentFacts, ContentHash)>> {
    let mut file = File::open(path)?;
    let mut inspector = Inspector::new(name, file.metadata()?.len(), None);
    let (mut hasher, mut buffer) = (sealer.content_hasher(), vec![0; PIECE]);
    loop {
        let read = file.read(&mut buffer)?;
        let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else { break };
        if inspector.feed(piece).is_err() {
            return Ok(None);
        }
        hasher.update(piece);
    }
    let facts = inspector.finish().ok().filter(|facts| facts.whole && identity.check(facts).is_ok());
    Ok(facts.map(|facts| (facts, ContentHash(*hasher.finalize().as_bytes()))))
}
