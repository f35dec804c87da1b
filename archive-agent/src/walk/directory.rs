//! A directory as a walk meets it: the names in it, and what each of them is.
//!
//! PostgreSQL keeps all relations of a database in one directory, a million files if it has to. They are looked at below the
//! open directory, so that its path is resolved once, and by several threads at a time.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use anyhow::Context;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, statat};
use rustix::io::Errno;
use walpoint_repo::backup::Attributes;

/// Files that are looked at before the first of them is visited: some 400 kB.
const BATCH: usize = 4096;

/// Threads that look at a batch.
const LOOKERS: usize = 4;

/// Fewer files than this are looked at sooner than a thread is started.
const WORTH_A_THREAD: usize = 256;

/// What is at a place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SeenEntry {
    kind: FileType,
    /// Owner, mode and time.
    pub(crate) attributes: Attributes,
    /// Bytes of a file.
    pub(crate) length: u64,
    /// Bytes that are read of a file: its length, or what it occupies if it has holes.
    pub(crate) occupied: u64,
    /// Device and inode.
    pub(crate) identity: (u64, u64),
}

impl SeenEntry {
    pub(crate) fn is_file(&self) -> bool {
        self.kind == FileType::RegularFile
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }

    pub(crate) fn is_link(&self) -> bool {
        self.kind == FileType::Symlink
    }

    fn new(mode: u32, owner: (u32, u32), time: i128, length: u64, blocks: u64, identity: (u64, u64)) -> Self {
        let attributes = Attributes {
            mode: u16::try_from(mode & 0o7777).unwrap_or(0),
            uid: owner.0,
            gid: owner.1,
            mtime: i64::try_from(time).unwrap_or(0),
        };
        let occupied = length.min(blocks.saturating_mul(512));
        Self { kind: FileType::from_raw_mode(mode), attributes, length, occupied, identity }
    }
}

/// Nanoseconds since 1970.
fn time(seconds: impl Into<i128>, nanoseconds: impl Into<i128>) -> i128 {
    seconds.into() * 1_000_000_000 + nanoseconds.into()
}

impl From<&Metadata> for SeenEntry {
    fn from(meta: &Metadata) -> Self {
        let (owner, time) = ((meta.uid(), meta.gid()), time(meta.mtime(), meta.mtime_nsec()));
        Self::new(meta.mode(), owner, time, meta.len(), meta.blocks(), (meta.dev(), meta.ino()))
    }
}

impl From<&Stat> for SeenEntry {
    fn from(stat: &Stat) -> Self {
        let (owner, time) = ((stat.st_uid, stat.st_gid), time(stat.st_mtime, stat.st_mtime_nsec));
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        Self::new(stat.st_mode, owner, time, length, blocks, (stat.st_dev, stat.st_ino))
    }
}

/// An open directory and the names in it, sorted as the file table is: what lies together in a backup is restored together,
/// and compared with the parent's table page by page. A million names are some 20 MB.
#[derive(Debug)]
pub(crate) struct OpenDirectory {
    open: OwnedFd,
    bytes: Vec<u8>,
    /// Where each name begins and ends in `bytes`.
    ranges: Vec<(u32, u32)>,
}

impl OpenDirectory {
    /// `None` if it vanished.
    pub(crate) fn open(place: &Path) -> anyhow::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = match rustix::fs::open(place, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            open => open.with_context(|| cannot_read(place))?,
        };
        let entries = Dir::read_from(&open).with_context(|| cannot_read(place))?;
        let (mut bytes, mut ranges) = (Vec::new(), Vec::new());
        for entry in entries {
            let entry = entry.with_context(|| cannot_read(place))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let begin = bytes.len();
            bytes.extend_from_slice(name);
            let range = u32::try_from(begin).ok().zip(u32::try_from(bytes.len()).ok());
            ranges.push(range.with_context(|| format!("{} has too many files", place.display()))?);
        }
        ranges.sort_unstable_by(|a, b| name_at(&bytes, *a).cmp(name_at(&bytes, *b)));
        Ok(Some(Self { open, bytes, ranges }))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &OsStr> {
        self.ranges.iter().map(|range| self.name(*range))
    }

    /// Visits what is there, with what it is; what vanished is left out. `place`: of the directory.
    pub(crate) fn each(
        &self,
        place: &Path,
        mut visit: impl FnMut(&OsStr, &SeenEntry) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for batch in self.ranges.chunks(BATCH) {
            for (range, seen) in batch.iter().zip(self.look(batch)) {
                let name = self.name(*range);
                match seen {
                    Err(Errno::NOENT) => {}
                    seen => visit(name, &seen.with_context(|| cannot_read(&place.join(name)))?)?,
                }
            }
        }
        Ok(())
    }

    /// What each of them is, in their order.
    fn look(&self, batch: &[(u32, u32)]) -> Vec<rustix::io::Result<SeenEntry>> {
        let look = |ranges: &[(u32, u32)]| -> Vec<_> {
            let stat = |range| statat(&self.open, self.name(range), AtFlags::SYMLINK_NOFOLLOW);
            ranges.iter().map(|range| stat(*range).map(|stat| SeenEntry::from(&stat))).collect()
        };
        let mut shares = batch.chunks(batch.len().div_ceil(LOOKERS).max(WORTH_A_THREAD));
        let first = shares.next().unwrap_or_default();
        thread::scope(|scope| {
            let spawn = |ranges| (ranges, thread::Builder::new().spawn_scoped(scope, move || look(ranges)));
            let others: Vec<_> = shares.map(spawn).collect();
            let mut all = look(first);
            for (ranges, thread) in others {
                all.extend(match thread {
                    Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                    // No more threads are to be had: this one does it.
                    Err(_) => look(ranges),
                });
            }
            all
        })
    }

    fn name(&self, range: (u32, u32)) -> &OsStr {
        OsStr::from_bytes(name_at(&self.bytes, range))
    }
}

fn name_at(bytes: &[u8], (begin, end): (u32, u32)) -> &[u8] {
    let range = usize::try_from(begin).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(usize::MAX);
    bytes.get(range).unwrap_or_default()
}

/// What vanished is no error.
pub(crate) fn present<T>(result: io::Result<T>, place: &Path) -> anyhow::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| cannot_read(place)),
    }
}

/// Says so of a place.
pub(crate) fn cannot_read(place: &Path) -> String {
    format!("{} cannot be read", place.display())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use walpoint_base::durable;

    use super::*;

    /// What a directory of so many files gives, and that each is what the standard library sees.
    fn seen(files: usize) -> usize {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..files {
            durable::create(&dir.path().join(n.to_string()), &vec![1; n % 7]).unwrap();
        }
        fs::create_dir(dir.path().join("below")).unwrap();
        std::os::unix::fs::symlink("0", dir.path().join("link")).unwrap();
        let directory = OpenDirectory::open(dir.path()).unwrap().unwrap();
        let names: Vec<_> = directory.names().map(OsStr::to_owned).collect();
        assert!(names.is_sorted(), "{names:?}");
        if files > 0 {
            fs::remove_file(dir.path().join("0")).unwrap();
        }
        let mut count = 0;
        directory
            .each(dir.path(), |name, seen| {
                let expected = SeenEntry::from(&fs::symlink_metadata(dir.path().join(name))?);
                assert_eq!(format!("{seen:?}"), format!("{expected:?}"), "{name:?}");
                assert_eq!((seen.is_directory(), seen.is_link()), (name == "below", name == "link"));
                assert_ne!(name, "0", "it vanished");
                count += 1;
                Ok(())
            })
            .unwrap();
        count
    }

    #[test]
    fn many_files_are_seen_as_few_are() {
        assert_eq!([seen(0), seen(100), seen(WORTH_A_THREAD * 3)], [2, 101, WORTH_A_THREAD * 3 + 1]);
    }

    #[test]
    fn what_cannot_be_listed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(OpenDirectory::open(&dir.path().join("none")).unwrap().is_none());
        durable::create(&dir.path().join("file"), b"x").unwrap();
        let error = OpenDirectory::open(&dir.path().join("file")).unwrap_err();
        assert!(format!("{error:#}").contains("file cannot be read"), "{error:#}");
    }
}
