//! A directory as a store.
//!
//! An object is written under a temporary name in its directory, synced, hard-linked to its name, and the directory is
//! synced: a reader sees all of it or nothing, and no create ever replaces. What is acknowledged survives a power cut:
//! before an object counts as stored, every directory on the way to it is synced too, also directories and names that
//! another process made a moment ago and may not have synced yet (the library's own local store leaves those out, which
//! is why creating is done here). A crash leaves at most a file whose name begins with
//! [`TEMPORARY_PREFIX`](durable::TEMPORARY_PREFIX); it is never listed.
//!
//! The root is remembered by device and inode: a filesystem that is unmounted, or mounted over it, is an error and never
//! an empty store. Every call runs on a thread for blocking calls, of which one place has a [share](super::share): a filesystem that
//! hangs takes no more threads than that, and what is mounted in its place has its own.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use walpoint_base::durable;

use super::mounts;
use super::owner::{self, Owner};
use super::share::{Share, Spot};
use crate::layout::Key;
use crate::object::MAX_OBJECT;
use crate::store::buffers::Buffers;
use crate::store::failure::{Failure, FailureKind};
use crate::store::{ListedObject, Meta, Ranged};

/// Owner and group may read: a restoring user is often another one than the archiving one. This is the mode whatever the umask is:
/// `archive_command` has PostgreSQL's, which leaves the group nothing.
const FILE_MODE: u32 = 0o640;

/// The mode of a repository's directories, for the same reason.
pub const DIRECTORY_MODE: u32 = 0o750;

/// Directories remembered as synced; then the memory is emptied and filled anew.
const REMEMBERED: usize = 1024;

/// A directory that holds a repository. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::store) struct Local(Arc<Root>);

#[derive(Debug)]
struct Root {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// The mount on which it lies, where that is known.
    mount: Option<u64>,
    /// To whom it belongs.
    owner: Owner,
    /// Directories below the root whose own names, up to the root, were synced by this process.
    synced: Mutex<HashSet<PathBuf>>,
    share: Arc<Share>,
}

impl Local {
    /// The directory must exist: a store that creates its root would hide a lost mount.
    pub(in crate::store) async fn open(path: &Path) -> Result<Self, Failure> {
        let path = path.to_owned();
        let share = Share::of(Spot::Path(path.clone(), mounts::of(&path)));
        share.run(0, || Ok(()), move || Self::look(&path)).await
    }

    fn look(path: &Path) -> Result<Self, Failure> {
        let no_store = |what: String| Failure::new(FailureKind::NoStore, what);
        let meta = fs::metadata(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => no_store(format!(
                "the directory {} does not exist\nHINT: Check that its filesystem is mounted.",
                path.display()
            )),
            _ => error.into(),
        })?;
        if !meta.is_dir() {
            return Err(no_store(format!("{} is not a directory", path.display())));
        }
        // Later the links on the way are not read again: what they lead to may hang.
        if let Ok(real) = fs::canonicalize(path) {
            mounts::leads_to(path, real);
        }
        let (synced, mount) = (Mutex::new(HashSet::new()), mounts::of(path));
        let (path, device, inode, owner) = (path.to_owned(), meta.dev(), meta.ino(), Owner::of(path)?);
        let share = Share::of(Spot::Directory(device, inode, mount));
        Ok(Self(Arc::new(Root { path, device, inode, mount, owner, synced, share })))
    }

    /// Where a name lies.
    pub(in crate::store) fn path_of(&self, name: &str) -> PathBuf {
        self.0.path.join(name)
    }

    pub(in crate::store) async fn get(
        &self,
        name: &str,
        range: Option<Range<u64>>,
        buffers: &Buffers,
    ) -> Result<Ranged, Failure> {
        let (path, buffers) = (self.0.path.join(name), buffers.clone());
        self.run(move |_| read(&path, range, &buffers)).await
    }

    pub(in crate::store) async fn head(&self, name: &str) -> Result<Meta, Failure> {
        let path = self.0.path.join(name);
        self.run(move |_| {
            let meta = fs::metadata(&path)?;
            if !meta.is_file() {
                return Err(io::Error::from(ErrorKind::IsADirectory).into());
            }
            Ok(Meta { size: meta.len(), modified: modified(&meta) })
        })
        .await
    }

    pub(in crate::store) async fn create(&self, name: &str, pieces: &[Bytes]) -> Result<(), Failure> {
        let (path, pieces) = (self.0.path.join(name), pieces.to_vec());
        let bytes = pieces.iter().map(Bytes::len).sum();
        self.run_writing(bytes, move |root| root.create(&path, &pieces)).await
    }

    /// Stores a file in the place of one that may be there: a reader sees all of the old one or all of the new one.
    pub(in crate::store) async fn replace(&self, name: &str, pieces: &[Bytes]) -> Result<(), Failure> {
        let (path, pieces) = (self.0.path.join(name), pieces.to_vec());
        let bytes = pieces.iter().map(Bytes::len).sum();
        self.run_writing(bytes, move |root| {
            root.make_directory(path.parent().unwrap_or(&root.path))?;
            let temporary = write_temporary(&path, &pieces, root.owner)?;
            durable::rename(&temporary, &path).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
            Ok(())
        })
        .await
    }

    /// What time it is by the filesystem's clock: an empty file is created and removed. A crash leaves a temporary file.
    pub(in crate::store) async fn time(&self) -> Result<jiff::Timestamp, Failure> {
        self.run(|root| {
            let path = durable::temporary_beside(&root.path.join("time"));
            let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path)?;
            let meta = file.metadata();
            fs::remove_file(&path).ok();
            Ok(modified(&meta?))
        })
        .await
    }

    pub(in crate::store) async fn sync(&self, name: &str) -> Result<(), Failure> {
        let path = self.0.path.join(name);
        self.run(move |root| root.sync(&path)).await
    }

    pub(in crate::store) async fn delete(&self, name: &str) -> Result<(), Failure> {
        let path = self.0.path.join(name);
        self.run(move |root| root.delete(&path)).await
    }

    pub(in crate::store) async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, Failure> {
        let path = self.0.path.join(prefix);
        self.run(move |_| {
            let mut names = Vec::new();
            for item in read_directory(&path)? {
                if let Item::Directory { name, .. } = item {
                    names.push(name);
                }
            }
            names.sort_unstable();
            Ok(names)
        })
        .await
    }

    /// Everything below `prefix` in the order of the keys, a directory at a time; subtrees that lie wholly at or before
    /// `start_after` are not entered.
    pub(in crate::store) fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> BoxStream<'static, Result<ListedObject, Failure>> {
        let first = Pending::Directory(prefix.to_owned());
        let state = (self.clone(), vec![first], start_after.unwrap_or_default().to_owned());
        stream::try_unfold(state, |(local, mut pending, after)| async move {
            loop {
                match pending.pop() {
                    None => return Ok(None),
                    Some(Pending::File(entry)) => return Ok(Some((entry, (local, pending, after)))),
                    Some(Pending::Directory(name)) => {
                        let begin = after.clone();
                        let children = local.run(move |root| root.children(&name, &begin)).await?;
                        pending.extend(children);
                    }
                }
            }
        })
        .boxed()
    }

    /// On a blocking thread. Before and after it looks whether the root is still the directory that was opened.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        self.run_writing(0, work).await
    }

    /// The same for work that holds so many bytes.
    async fn run_writing<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Root) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let root = Arc::clone(&self.0);
        let work = move || {
            root.check()?;
            match work(&root) {
                // Absence counts only in the store that was opened.
                Err(failure) => root.check().and(Err(failure)),
                done => done,
            }
        };
        let (share, root) = (Arc::clone(&self.0.share), Arc::clone(&self.0));
        // The calls that have all threads may never return, even if another filesystem answers at this path now.
        share.run(bytes, move || root.check_mount(), work).await
    }
}

enum Pending {
    Directory(String),
    File(ListedObject),
}

impl Root {
    fn check(&self) -> Result<(), Failure> {
        match fs::metadata(&self.path) {
            Ok(meta) if (meta.dev(), meta.ino()) == (self.device, self.inode) => Ok(()),
            Ok(_) => Err(self.gone("is another directory than when it was opened")),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(self.gone("is gone")),
            Err(error) => Err(error.into()),
        }
    }

    /// The same by the list of mounts alone, without a call into a filesystem that may hang. The same directory under another mount
    /// counts as another one: it is opened anew.
    fn check_mount(&self) -> Result<(), Failure> {
        match mounts::of(&self.path) {
            Some(now) if self.mount.is_some_and(|then| then != now) => {
                Err(self.gone("is on another mount than when it was opened"))
            }
            _ => Ok(()),
        }
    }

    fn gone(&self, what: &str) -> Failure {
        let what = format!("{} {what}\nHINT: Check that its filesystem is mounted.", self.path.display());
        Failure::new(FailureKind::NoStore, what)
    }

    fn create(&self, path: &Path, pieces: &[Bytes]) -> Result<(), Failure> {
        let directory = path.parent().unwrap_or(&self.path);
        self.make_directory(directory)?;
        let linked = match write_and_link(path, pieces, self.owner) {
            // Another process deleted the last object in this directory, and the directory with it; or this process was suspended for so long
            // that its temporary file was removed as one of a killed write.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.forget(directory);
                self.make_directory(directory)?;
                write_and_link(path, pieces, self.owner)
            }
            linked => linked,
        };
        match linked {
            // If that fails, the object is not known to survive a power cut, and stays: another process may have found it, synced
            // it and acknowledged it by now. None counts it as stored before that.
            Ok(()) => Ok(durable::sync_directory(directory)?),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // Its maker may not have synced it yet, and the caller may acknowledge it as stored. A lease may be deleted by now.
                match self.sync(path) {
                    Err(failure) if failure.kind != FailureKind::NotFound => Err(failure),
                    _ => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes an object that is there, and its name, survive a power cut.
    fn sync(&self, path: &Path) -> Result<(), Failure> {
        let directory = path.parent().unwrap_or(&self.path);
        self.make_directory(directory)?;
        File::open(path)?.sync_all()?;
        Ok(durable::sync_directory(directory)?)
    }

    /// Makes the directory and what is missing above it, and syncs every name up to the root once per process: that a
    /// directory is there does not say that whoever made it has synced it.
    fn make_directory(&self, path: &Path) -> io::Result<()> {
        if path == self.path || self.synced.lock().is_ok_and(|s| s.contains(path)) {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&self.path);
        self.make_directory(parent)?;
        match fs::DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
            Ok(()) => self.hand_over(path).inspect_err(|_| {
                // Nobody could use it. Somebody may have put something into it already.
                fs::remove_dir(path).ok();
            })?,
            // Its maker may have died before this.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let opened = match self.owner.is_others() {
                    false => Some(File::open(path)?),
                    // Where a link leads is not to be given away, nor opened for more users.
                    true => owner::within(&self.path, path).ok(),
                };
                if let Some(directory) = opened {
                    self.owner.give_left(&directory, self.device)?;
                    grant(&directory, DIRECTORY_MODE);
                }
            }
            Err(error) => return Err(error),
        }
        durable::sync_directory(parent)?;
        if let Ok(mut synced) = self.synced.lock() {
            if synced.len() >= REMEMBERED {
                synced.clear();
            }
            synced.insert(path.to_owned());
        }
        Ok(())
    }

    /// Gives a directory that was made now its owner and its mode.
    fn hand_over(&self, path: &Path) -> io::Result<()> {
        let mode = fs::Permissions::from_mode(DIRECTORY_MODE);
        if self.owner.is_others() {
            let directory = owner::within(&self.path, path)?;
            self.owner.give(&directory)?;
            return directory.set_permissions(mode);
        }
        // By its path: a umask may have taken away the right to open it.
        fs::set_permissions(path, mode)?;
        self.owner.give(&File::open(path)?)
    }

    fn forget(&self, path: &Path) {
        if let Ok(mut synced) = self.synced.lock() {
            synced.retain(|known| !path.starts_with(known));
        }
    }

    /// Removes the object, then the directories that are empty without it, as object stores have none.
    fn delete(&self, path: &Path) -> Result<(), Failure> {
        durable::remove(path)?;
        for directory in path.ancestors().skip(1).take_while(|d| *d != self.path) {
            // Somebody may be using it again; then it is not empty.
            if fs::remove_dir(directory).is_err() {
                break;
            }
            self.forget(directory);
        }
        Ok(())
    }

    /// What lies directly in the directory and sorts after `after`, last one first.
    fn children(&self, directory: &str, after: &str) -> Result<Vec<Pending>, Failure> {
        let path = self.path.join(directory);
        let mut children = Vec::new();
        for item in read_directory(&path)? {
            let join = |name: &str| {
                if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
            };
            match item {
                Item::Directory { name } => {
                    // With its slash, because that is how the keys in it compare with their neighbours.
                    let name = format!("{}/", join(&name));
                    if name.as_str() > after || after.starts_with(&name) {
                        children
                            .push((name.clone(), Pending::Directory(name.trim_end_matches('/').to_owned())));
                    }
                }
                Item::File { name, meta } => {
                    let name = join(&name);
                    let Ok(key) = name.parse::<Key>() else { continue };
                    if name.as_str() > after {
                        let entry = ListedObject { key, size: meta.len(), modified: modified(&meta) };
                        children.push((name, Pending::File(entry)));
                    }
                }
            }
        }
        children.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        Ok(children.into_iter().map(|(_, child)| child).collect())
    }
}

enum Item {
    Directory { name: String },
    File { name: String, meta: fs::Metadata },
}

/// The directories and files in a directory; nothing if there is none. Temporary files and strangers are left out.
fn read_directory(path: &Path) -> Result<Vec<Item>, Failure> {
    let entries = match fs::read_dir(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut items = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with(durable::TEMPORARY_PREFIX) || name.parse::<Key>().is_err() {
            continue;
        }
        // Follows links; one that was deleted meanwhile is not listed.
        match fs::metadata(entry.path()) {
            Ok(meta) if meta.is_dir() => items.push(Item::Directory { name }),
            Ok(meta) if meta.is_file() => items.push(Item::File { name, meta }),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(items)
}

fn read(path: &Path, range: Option<Range<u64>>, buffers: &Buffers) -> Result<Ranged, Failure> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::from(ErrorKind::IsADirectory).into());
    }
    let size = meta.len();
    let range = range.unwrap_or(0..size);
    let (start, end) = (range.start.min(size), range.end.min(size));
    let length = end.saturating_sub(start);
    let expected = usize::try_from(length).ok().filter(|_| length <= MAX_OBJECT).ok_or_else(|| {
        Failure::new(FailureKind::TooLong, format!("it has {length} bytes, more than any object"))
    })?;
    // Into memory that nobody filled with zeros first: that would cost as much as the reading.
    let mut buffer = buffers.take(expected);
    file.seek(SeekFrom::Start(start))?;
    file.take(length).read_to_end(&mut buffer.bytes)?;
    if buffer.bytes.len() != expected {
        return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
    }
    Ok(Ranged { bytes: Bytes::from_owner(buffer), size })
}

fn write_and_link(path: &Path, pieces: &[Bytes], owner: Owner) -> io::Result<()> {
    let temporary = write_temporary(path, pieces, owner)?;
    let linked = fs::hard_link(&temporary, path);
    // Left over at worst; the name decides.
    fs::remove_file(&temporary).ok();
    linked
}

fn write_temporary(path: &Path, pieces: &[Bytes], owner: Owner) -> io::Result<PathBuf> {
    let temporary = durable::temporary_beside(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&temporary)?;
    let owned = owner.give(&file);
    // Of a file that was made now no mode was chosen: whatever it lacks, the umask took.
    file.set_permissions(fs::Permissions::from_mode(FILE_MODE)).ok();
    let written = owned.and_then(|()| pieces.iter().try_for_each(|piece| file.write_all(piece)));
    written.and_then(|()| file.sync_all()).inspect_err(|_| {
        // The write's own error is the one to report.
        fs::remove_file(&temporary).ok();
    })?;
    Ok(temporary)
}

/// Adds the rights that the umask took away from others than the owner; a mode that keeps its owner out was set on purpose. Where
/// that cannot be, in a directory of another user's for example, the mode stays.
pub fn grant(file: &File, mode: u32) {
    let Ok(meta) = file.metadata() else { return };
    let owners = mode & 0o700;
    if meta.mode() & owners == owners && meta.mode() & mode != mode {
        file.set_permissions(fs::Permissions::from_mode((meta.mode() & 0o7777) | mode)).ok();
    }
}

fn modified(meta: &fs::Metadata) -> jiff::Timestamp {
    let nanos = i32::try_from(meta.mtime_nsec()).unwrap_or_default();
    jiff::Timestamp::new(meta.mtime(), nanos).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}
