//! Reading files of a running cluster into the replicas of a backup.
//!
//! A file may vanish, grow or shrink meanwhile, all three are normal: what was there when it was opened is read, up to its
//! end if that came nearer; WAL replay makes of it what it has to be. Hashes and stored bytes come from one buffer, also for
//! a page that was read twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use anyhow::{Context, bail};
use rustix::fs::OFlags;
use rustix::io::Errno;
use walpoint_pg::files::RelationFile;
use walpoint_repo::backup::{PageFault, Root};

use super::holes::{self, Holes};
use crate::backup::memory::BUFFER;
use crate::backup::replica::{ReplicaFiles, Streams};
use crate::backup::source::shared::Shared;
use crate::walk::directory::SeenEntry;
use crate::walk::{FoundFile, FoundKind};

/// One thread that reads files.
#[derive(Debug)]
pub(crate) struct Reader {
    shared: Arc<Shared>,
    streams: Streams,
    buffer: Vec<u8>,
}

/// A file that is open.
struct Opened<'a> {
    file: File,
    seen: SeenEntry,
    found: &'a FoundFile,
    /// If its pages can be verified, what it is.
    relation: Option<RelationFile>,
}

/// A file that was looked for by its content.
struct LookedUp<'a> {
    /// On its way into the replicas that lack it.
    files: ReplicaFiles<'a>,
    /// Bytes of its beginning that are in the buffer.
    held: usize,
}

impl Reader {
    /// A reader with a buffer of its own.
    pub(crate) fn new(shared: &Arc<Shared>, streams: Streams) -> Self {
        Self { shared: Arc::clone(shared), streams, buffer: vec![0; BUFFER] }
    }

    /// Takes one thing that the walk found. Blocks.
    pub(crate) fn take(&mut self, found: &FoundFile) -> anyhow::Result<()> {
        if self.shared.stop.is_cancelled() {
            bail!("the backup was stopped");
        }
        self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner).note(&found.attributes);
        let (path, attributes) = (&found.path, found.attributes);
        match &found.kind {
            FoundKind::Directory => self.streams.each(|packs| packs.directory(path.clone(), attributes)),
            FoundKind::LinkedDirectory(target) => {
                self.streams.each(|packs| packs.linked_directory(path.clone(), attributes, target))
            }
            FoundKind::Link(target) => {
                self.streams.each(|packs| packs.link(path.clone(), attributes, target))
            }
            FoundKind::File(_) => self.file(found),
        }
    }

    /// Everything was taken: stores what is still held.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.streams.finish()
    }

    fn file(&mut self, found: &FoundFile) -> anyhow::Result<()> {
        let cannot_read = || format!("{} cannot be read", found.place.display());
        let file = match open(&found.place, found.path.root) {
            Ok(Some(file)) => file,
            Ok(None) => {
                self.shared.counts.vanished.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Err(error) => return Err(error).with_context(cannot_read),
        };
        let seen = SeenEntry::from(&file.metadata().with_context(cannot_read)?);
        if !seen.is_file() {
            return Ok(());
        }
        let Self { shared, streams, buffer } = self;
        let relation = match found.path.root {
            Root::Data => shared.pages.as_ref().and_then(|pages| pages.relation(found.path.path.as_path())),
            Root::Extra(_) => None,
        };
        let opened = Opened { file, seen, found, relation };
        let LookedUp { mut files, held } = match streams.may_be_elsewhere(&found.path, opened.seen.length)? {
            true => shared.known_content(&opened, streams, buffer).with_context(cannot_read)?,
            false => LookedUp { files: streams.file(&found.path), held: 0 },
        };
        if !files.is_empty() {
            shared.content(&opened, held, buffer, &mut files)?;
        }
        // Owner and mode as they are when the content is: a file that PostgreSQL writes anew gets another name first.
        files.finish(opened.seen.attributes)
    }
}

impl Shared {
    /// Hashes a file that is new at its path, and adds it to the replicas whose parent has the same content elsewhere: nothing
    /// of it is stored there. It is read no further than it takes to see that it is another file: most differ in their first
    /// block, where the position of the last change is. Its pages are verified as those of any other file: that backup may
    /// have left a page to replay that was newer than its own start, or have verified none. One with a bad page is read as if
    /// no parent had it, so that the page is recorded.
    fn known_content<'a>(
        &self,
        opened: &Opened<'_>,
        streams: &'a mut Streams,
        buffer: &mut [u8],
    ) -> anyhow::Result<LookedUp<'a>> {
        let Opened { file, seen, found, relation } = opened;
        let mut lookup = streams.lookup();
        let (mut at, mut open) = (0, true);
        while at < seen.length {
            if self.stop.is_cancelled() {
                bail!("the backup was stopped");
            }
            let want = usize::try_from(seen.length - at).unwrap_or(BUFFER).min(buffer.len());
            let piece = buffer.get_mut(..want).unwrap_or_default();
            // Cut meanwhile, or unreadable: then it is not what the parent has.
            let Ok(there) = fill(file, at, piece) else {
                return Ok(LookedUp { files: lookup.none_has(&found.path), held: 0 });
            };
            if there < want || !self.is_sound(file, at, piece, *relation)? {
                return Ok(LookedUp { files: lookup.none_has(&found.path), held: 0 });
            }
            lookup.update(piece);
            let first = at == 0;
            at += u64::try_from(there).unwrap_or(0);
            self.counts.read.fetch_add(u64::try_from(there).unwrap_or(0), Ordering::Relaxed);
            if open && let Some(may_be) = lookup.may_still_be(seen.length)? {
                open = false;
                if !may_be {
                    let held = if first { there } else { 0 };
                    return Ok(LookedUp { files: lookup.none_has(&found.path), held });
                }
            }
        }
        let files = lookup.take_over(&found.path, seen.attributes)?;
        if files.is_empty() {
            self.progress.add(seen.length);
        }
        let held = if seen.length <= u64::try_from(buffer.len()).unwrap_or(0) { at } else { 0 };
        Ok(LookedUp { files, held: usize::try_from(held).unwrap_or(0) })
    }

    /// Reads a file to its end into the replicas that lack it. `held`: so many bytes of its beginning were read into the buffer.
    fn content(
        &self,
        opened: &Opened<'_>,
        mut held: usize,
        buffer: &mut [u8],
        files: &mut ReplicaFiles<'_>,
    ) -> anyhow::Result<()> {
        let Opened { file, seen, found, relation } = opened;
        let cannot_read = || format!("{} cannot be read", found.place.display());
        let length = seen.length;
        let sparse = seen.occupied < length && holes::are_reported(file).with_context(cannot_read)?;
        let mut holes = sparse.then(|| Holes::new(file, self.block_size));
        let mut at = 0;
        while at < length {
            if self.stop.is_cancelled() {
                bail!("the backup was stopped");
            }
            let mut end = length;
            if let Some(holes) = holes.as_mut().filter(|_| held == 0) {
                let (data, data_end) = holes.data(at, length).with_context(cannot_read)?;
                if data > at {
                    files.zeros(data - at)?;
                    at = data;
                    continue;
                }
                end = data_end;
            }
            let kept = std::mem::take(&mut held);
            let want = match kept {
                0 => usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER),
                kept => kept,
            };
            let piece = buffer.get_mut(..want).unwrap_or_default();
            let there = match kept {
                0 => self.piece(file, at, piece, *relation, files),
                _ => self.verified(file, at, piece, *relation, files).map_err(anyhow::Error::from),
            };
            let there = there.with_context(cannot_read)?;
            files.write(piece.get(..there).unwrap_or_default())?;
            let read = u64::try_from(there).unwrap_or(0);
            at += read;
            self.progress.add(read);
            if kept == 0 {
                self.counts.read.fetch_add(read, Ordering::Relaxed);
            }
            if there < want {
                self.counts.shrunk.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
        Ok(())
    }

    /// Reads a piece and verifies its pages; how many bytes of it the file has.
    fn piece(
        &self,
        file: &File,
        at: u64,
        piece: &mut [u8],
        relation: Option<RelationFile>,
        files: &mut ReplicaFiles<'_>,
    ) -> anyhow::Result<usize> {
        let length = read(file, at, piece, self.block_size)?;
        let bytes = piece.get_mut(..length).unwrap_or_default();
        Ok(self.verified(file, at, bytes, relation, files)?)
    }

    /// Whether every page of what was read is right; one that was being written is read again.
    fn is_sound(
        &self,
        file: &File,
        at: u64,
        bytes: &mut [u8],
        relation: Option<RelationFile>,
    ) -> io::Result<bool> {
        let (Some(pages), Some(relation)) = (&self.pages, relation) else { return Ok(true) };
        let (mut sound, length) = (true, bytes.len());
        let there = pages.verify(relation, file, at, bytes, |_| sound = false)?;
        Ok(sound && there == length)
    }

    /// Verifies the pages of what was read; how many bytes of it the file has.
    fn verified(
        &self,
        file: &File,
        at: u64,
        bytes: &mut [u8],
        relation: Option<RelationFile>,
        files: &mut ReplicaFiles<'_>,
    ) -> io::Result<usize> {
        match (&self.pages, relation) {
            (Some(pages), Some(relation)) => pages.verify(relation, file, at, bytes, |bad| {
                let fault = PageFault::Checksum { stored: bad.stored, computed: bad.computed };
                files.bad_page(bad.block, fault);
            }),
            _ => Ok(bytes.len()),
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

/// Fills `piece` from a file. What the disk could not read is read once more, block by block: one that it cannot read then ends the backup.
/// Nothing may stand in its place. To PostgreSQL zeros are an empty page, as if the rows of that block had never been there.
fn read(file: &File, at: u64, piece: &mut [u8], block_size: usize) -> anyhow::Result<usize> {
    match fill(file, at, piece) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => {}
        read => return Ok(read?),
    }
    let mut length = 0;
    for block in piece.chunks_mut(block_size) {
        let offset = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        let got = fill(file, offset, block).map_err(|error| unreadable(offset, block_size, &error))?;
        length += got;
        if got < block.len() {
            break;
        }
    }
    Ok(length)
}

fn unreadable(offset: u64, block_size: usize, error: &io::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "block {}, at byte {offset}: {error}\nDETAIL: The storage under the data directory does not return this block. A backup \
         without it would restore without its rows, so none was taken. Earlier backups and the archived WAL are not affected.\nHINT: \
         The kernel's log says more of the storage. Fail over to a standby or restore to other storage (\"restore-agent \
         restore\"), then back that up.",
        offset / u64::try_from(block_size).unwrap_or(u64::MAX).max(1)
    )
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_piece_ends_with_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 10_000], 0).unwrap();
        let mut piece = vec![0; 8192];
        assert_eq!(fill(&file, 0, &mut piece).unwrap(), 8192);
        assert_eq!(fill(&file, 8192, &mut piece).unwrap(), 10_000 - 8192);
        assert_eq!(fill(&file, 16_384, &mut piece).unwrap(), 0);
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
