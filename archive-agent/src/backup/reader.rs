//! Reading files of a running cluster into the copies of a backup.
//!
//! A file may vanish, grow or shrink meanwhile, all three are normal: what was there when it was opened is read, up to its
//! end if that came nearer; WAL replay makes of it what it has to be. Hashes and stored bytes come from one buffer, also for
//! a page that was read twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;
use walpoint_pg::files::RelationFile;
use walpoint_repo::backup::{PageFault, Root};
use walpoint_runtime::progress::Progress;

use super::copies::{FileCopies, Lanes};
use super::directory::Seen;
use super::owners::Owners;
use super::pages::PageCheck;
use super::walk::{Found, Kind};

/// Bytes read at a time: whole pages, and long enough that the disk reads ahead.
pub(crate) const BUFFER: usize = 1 << 20;

/// What all readers share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Bytes of a block of the backup.
    pub(crate) block_size: usize,
    /// How pages are verified; `None` in a cluster without checksums.
    pub(crate) pages: Option<PageCheck>,
    /// Cancelled when there is no use in going on.
    pub(crate) stop: CancellationToken,
    /// Counts bytes.
    pub(crate) progress: Progress,
    /// Who owns what was read.
    pub(crate) owners: Mutex<Owners>,
    /// What happened on the way.
    pub(crate) counts: Counts,
}

/// What happened on the way.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Bytes read.
    pub(crate) read: AtomicU64,
    /// Files that vanished before they were opened.
    pub(crate) vanished: AtomicU64,
    /// Files that became shorter while they were read.
    pub(crate) shrunk: AtomicU64,
}

/// One thread that reads files.
#[derive(Debug)]
pub(crate) struct Reader {
    shared: Arc<Shared>,
    lanes: Lanes,
    buffer: Vec<u8>,
}

/// A piece of a file as it was read.
struct Piece {
    /// Bytes in the buffer; fewer than asked for where the file ends.
    length: usize,
    /// The blocks, counted within the piece, that the operating system could not read.
    unreadable: Vec<usize>,
}

impl Reader {
    /// A reader with a buffer of its own.
    pub(crate) fn new(shared: &Arc<Shared>, lanes: Lanes) -> Self {
        Self { shared: Arc::clone(shared), lanes, buffer: vec![0; BUFFER] }
    }

    /// Takes one thing that the walk found. Blocks.
    pub(crate) fn take(&mut self, found: &Found) -> anyhow::Result<()> {
        if self.shared.stop.is_cancelled() {
            bail!("the backup was stopped");
        }
        self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner).note(&found.attributes);
        let (path, attributes) = (&found.path, found.attributes);
        match &found.kind {
            Kind::Directory => self.lanes.each(|lane| lane.directory(path.clone(), attributes)),
            Kind::LinkedDirectory(target) => {
                self.lanes.each(|lane| lane.linked_directory(path.clone(), attributes, target))
            }
            Kind::Link(target) => self.lanes.each(|lane| lane.link(path.clone(), attributes, target)),
            Kind::File(_) => self.file(found),
        }
    }

    /// Everything was taken: stores what is still held.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.lanes.finish()
    }

    fn file(&mut self, found: &Found) -> anyhow::Result<()> {
        let cannot_read = || format!("{} cannot be read", found.place.display());
        let file = match open(&found.place, found.path.root) {
            Ok(Some(file)) => file,
            Ok(None) => {
                self.shared.counts.vanished.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Err(error) => return Err(error).with_context(cannot_read),
        };
        let seen = Seen::from(&file.metadata().with_context(cannot_read)?);
        if !seen.is_file() {
            return Ok(());
        }
        let Self { shared, lanes, buffer } = self;
        let relation = match found.path.root {
            Root::Data => shared.pages.as_ref().and_then(|pages| pages.relation(found.path.path.as_path())),
            Root::Extra(_) => None,
        };
        let length = seen.length;
        let have = match lanes.may_be_elsewhere(&found.path, length)? {
            true => shared.known_content(&file, &seen, found, lanes, buffer).with_context(cannot_read)?,
            false => Vec::new(),
        };
        if !have.is_empty() && have.iter().all(|has| *has) {
            return Ok(());
        }
        let mut copies = lanes.file_but(&found.path, &have);
        let mut holes = (seen.occupied < length).then(|| Holes::new(&file, shared.block_size));
        let mut at = 0;
        while at < length {
            if shared.stop.is_cancelled() {
                bail!("the backup was stopped");
            }
            let mut end = length;
            if let Some(holes) = &mut holes {
                let (data, data_end) = holes.data(at, length).with_context(cannot_read)?;
                if data > at {
                    copies.zeros(data - at)?;
                    at = data;
                    continue;
                }
                end = data_end;
            }
            let want = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
            let piece = buffer.get_mut(..want).unwrap_or_default();
            let there = shared.piece(&file, at, piece, relation, &mut copies).with_context(cannot_read)?;
            copies.write(piece.get(..there).unwrap_or_default())?;
            let read = u64::try_from(there).unwrap_or(0);
            at += read;
            shared.progress.add(read);
            shared.counts.read.fetch_add(read, Ordering::Relaxed);
            if there < want {
                shared.counts.shrunk.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
        // Owner and mode as they are when the content is: a file that PostgreSQL writes anew gets another name first.
        copies.finish(seen.attributes)
    }
}

impl Shared {
    /// Hashes a file that is new at its path, and adds it to the copies whose parent has the same content elsewhere: nothing
    /// of it is stored there. It has been verified there, too. Which copies have it now.
    fn known_content(
        &self,
        file: &File,
        seen: &Seen,
        found: &Found,
        lanes: &mut Lanes,
        buffer: &mut [u8],
    ) -> anyhow::Result<Vec<bool>> {
        let mut hashers: Vec<_> = (0..lanes.count()).map(|copy| lanes.hasher(copy)).collect();
        let mut at = 0;
        while at < seen.length {
            if self.stop.is_cancelled() {
                bail!("the backup was stopped");
            }
            let want = usize::try_from(seen.length - at).unwrap_or(BUFFER).min(buffer.len());
            let piece = buffer.get_mut(..want).unwrap_or_default();
            // Cut meanwhile, or unreadable: then it is not what the parent has.
            let Ok(there) = fill(file, at, piece) else { return Ok(Vec::new()) };
            if there < want {
                return Ok(Vec::new());
            }
            hashers.iter_mut().flatten().for_each(|hasher| hasher.update(piece));
            at += u64::try_from(there).unwrap_or(0);
            self.counts.read.fetch_add(u64::try_from(there).unwrap_or(0), Ordering::Relaxed);
        }
        let hashes: Vec<_> = hashers.into_iter().map(|hasher| hasher.map(|h| h.finish())).collect();
        let have = lanes.same_file(&found.path, &hashes, seen.attributes)?;
        if have.iter().all(|has| *has) {
            self.progress.add(seen.length);
        }
        Ok(have)
    }

    /// Reads a piece and verifies its pages; how many bytes of it the file has.
    fn piece(
        &self,
        file: &File,
        at: u64,
        piece: &mut [u8],
        relation: Option<RelationFile>,
        copies: &mut FileCopies<'_>,
    ) -> io::Result<usize> {
        let Piece { length, unreadable } = read(file, at, piece, self.block_size)?;
        let bytes = piece.get_mut(..length).unwrap_or_default();
        let first = at / u64::try_from(self.block_size).unwrap_or(u64::MAX);
        for block in unreadable {
            copies.bad_page(first + u64::try_from(block).unwrap_or(0), PageFault::Unreadable);
        }
        match (&self.pages, relation) {
            (Some(pages), Some(relation)) => pages.verify(relation, file, at, bytes, |bad| {
                let fault = PageFault::Checksum { stored: bad.stored, computed: bad.computed };
                copies.bad_page(bad.block, fault);
            }),
            _ => Ok(length),
        }
    }
}

/// Opens a regular file; `None` if it vanished, or is something else by now.
fn open(place: &Path, root: Root) -> io::Result<Option<File>> {
    // A FIFO put in the file's place must not stop the backup, nor a link lead out of the data directory. An extra path may
    // itself be a link.
    let mut flags = OFlags::NONBLOCK;
    if root == Root::Data {
        flags |= OFlags::NOFOLLOW;
    }
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    match OpenOptions::new().read(true).custom_flags(flags).open(place) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fills `piece` from a file. What the disk cannot read is zero, block by block.
fn read(file: &File, at: u64, piece: &mut [u8], block_size: usize) -> io::Result<Piece> {
    match fill(file, at, piece) {
        Ok(length) => return Ok(Piece { length, unreadable: Vec::new() }),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => {}
        Err(error) => return Err(error),
    }
    let (mut length, mut unreadable) = (0, Vec::new());
    for (n, block) in piece.chunks_mut(block_size).enumerate() {
        let offset = at + u64::try_from(n * block_size).unwrap_or(u64::MAX);
        let got = match fill(file, offset, block) {
            Ok(got) => got,
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => {
                block.fill(0);
                unreadable.push(n);
                block.len()
            }
            Err(error) => return Err(error),
        };
        length += got;
        if got < block.len() {
            break;
        }
    }
    Ok(Piece { length, unreadable })
}

/// Reads until `bytes` is full or the file ends.
fn fill(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + u64::try_from(length).unwrap_or(0)) {
            Ok(0) => break,
            Ok(got) => length += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The holes of a sparse file, found one after the other.
struct Holes<'a> {
    file: &'a File,
    block_size: u64,
    /// The stretch of data that was found last.
    data: (u64, u64),
}

impl<'a> Holes<'a> {
    fn new(file: &'a File, block_size: usize) -> Self {
        Self { file, block_size: u64::try_from(block_size).unwrap_or(1).max(1), data: (0, 0) }
    }

    /// The next stretch of data from `at` on, begin and end, cut at whole blocks; where there is none it begins and ends with
    /// the file.
    fn data(&mut self, at: u64, length: u64) -> io::Result<(u64, u64)> {
        if at >= self.data.0 && at < self.data.1 {
            return Ok((at, self.data.1));
        }
        let data = match rustix::fs::seek(self.file, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, length),
            Err(Errno::NXIO) => length,
            // A filesystem that knows nothing of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        let begin = (data - data % self.block_size).max(at);
        let end = match rustix::fs::seek(self.file, SeekFrom::Hole(data)) {
            Ok(end) if end > data => end.div_ceil(self.block_size).saturating_mul(self.block_size),
            // Cut meanwhile, or no answer to rely on: reading finds the end.
            _ => length,
        };
        self.data = (begin, end.min(length).max(begin));
        Ok(self.data)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_are_skipped_and_data_is_found_at_whole_blocks() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        let far = (1 << 39) + 5000;
        file.write_all_at(b"data", far).unwrap();
        let mut holes = Holes::new(&file, 8192);
        let (mut at, mut read, mut steps) = (0, 0, 0);
        while at < 1 << 40 {
            let (begin, end) = holes.data(at, 1 << 40).unwrap();
            assert!(begin >= at && begin % 8192 == 0 && (end > begin || begin == 1 << 40));
            read += end - begin;
            assert!(!(begin..end).is_empty() || end == 1 << 40);
            at = end.max(begin);
            steps += 1;
        }
        assert!(steps < 5 && read < 1 << 20, "{steps} steps, {read} bytes");
    }

    #[test]
    fn a_piece_ends_with_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 10_000], 0).unwrap();
        let mut piece = vec![0; 8192];
        let first = read(&file, 0, &mut piece, 8192).unwrap();
        assert_eq!((first.length, first.unreadable.len()), (8192, 0));
        assert_eq!(read(&file, 8192, &mut piece, 8192).unwrap().length, 10_000 - 8192);
        assert_eq!(read(&file, 16_384, &mut piece, 8192).unwrap().length, 0);
    }

    #[test]
    fn what_vanished_or_became_a_link_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&dir.path().join("gone"), Root::Data).unwrap().is_none());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert!(open(&link, Root::Data).unwrap().is_none());
        assert!(open(&link, Root::Extra(0)).unwrap().is_some());
    }
}
