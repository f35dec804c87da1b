//! Writing the files of a backup: windows of the file table, packs in parallel, every block checked before it is written.
//!
//! Memory is bounded by a few windows, which are prepared, written and completed at the same time, and by the bytes of packs in
//! flight, whatever the size of the cluster. Only blocks that are not zero are written, so holes stay holes. Where files are
//! kept, only what is wrong in them is read and written ([`compare`]). The disk begins to write at once; files are durable when
//! all windows are through ([`sync`](super::sync)). A crash leaves files of any content, which the marker of the restore
//! declares void.

use std::fs::{self, File, OpenOptions};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow, bail};
use rustix::fs::Advice;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use walpoint_pg::control::CONTROL_FILE;
use walpoint_repo::backup::{BackupReader, Content, Entry, PackUnit, Part, TablePath, Window, WindowLimits};
use walpoint_repo::cpu;
use walpoint_repo::plan::Signal;
use walpoint_runtime::progress::Progress;

use super::compare;
use super::directory::MARKER;
use super::finish::UNFINISHED_CONTROL;
use super::layout::{Layout, Spot};
use super::owners::{self, Owner, Owners};
use super::sync::Filesystems;

/// Bytes of packs that are held at the same time.
const IN_FLIGHT: u64 = 64 << 20;

/// Half a gigabyte of files: small enough that what only one thread does for a window is done while the last one is written,
/// large enough that few packs are read for two of them.
const WINDOW: WindowLimits = WindowLimits { blocks: 1 << 16, entries: 1 << 13 };

/// Windows whose files are completed while later ones are written.
const ENDING: usize = 2;

/// The unit of the budget: a permit of the semaphore.
const PERMIT: u64 = 4 << 10;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Regular files.
    pub(crate) files: u64,
    /// Bytes of their blocks that are not zero and were written.
    pub(crate) bytes: u64,
    /// Bytes of blocks that were there already.
    pub(crate) reused: u64,
}

/// Writes the files of one backup.
#[derive(Debug, Clone)]
pub(crate) struct Copier {
    /// The backup.
    pub(crate) reader: BackupReader,
    /// Where its paths lead.
    pub(crate) layout: Arc<Layout>,
    /// Who gets the files.
    pub(crate) owners: Owners,
    /// Counts bytes of files.
    pub(crate) progress: Progress,
    /// Whether files that are there are kept, as far as they are right.
    pub(crate) delta: bool,
    /// Where it writes to.
    pub(crate) filesystems: Arc<Filesystems>,
}

/// A file of a window, for the workers.
#[derive(Debug)]
pub(crate) struct Target {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// What it shall be.
    pub(crate) entry: Arc<Entry>,
    /// How many of its bytes were there before: any content.
    pub(crate) present: u64,
    /// Who gets it.
    owner: Option<Owner>,
    /// Bytes of this window that were written in pieces too small to make the disk begin with.
    scattered: AtomicU64,
    /// How long it is so far; `None` before it is created. Of files that are there, or that other windows know too, the whole
    /// length.
    length: Mutex<Option<u64>>,
}

/// A window that is being written.
struct Running {
    window: Window,
    targets: Arc<Vec<Option<Target>>>,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// A window all of whose pieces are written.
struct WrittenWindow {
    window: Window,
    targets: Arc<Vec<Option<Target>>>,
}

impl Running {
    /// Waits until all pieces are written.
    async fn written(self) -> anyhow::Result<WrittenWindow> {
        let Self { window, targets, mut tasks } = self;
        while !tasks.is_empty() {
            joined(tasks.join_next().await)?;
        }
        Ok(WrittenWindow { window, targets })
    }
}

/// What a task gave; there is one.
fn joined<T: Default>(task: Option<Result<anyhow::Result<T>, JoinError>>) -> anyhow::Result<T> {
    task.map_or_else(|| Ok(T::default()), |task| task.context("a worker of the restore broke")?)
}

impl Copier {
    /// Writes and syncs all files; directories are synced and get their modes at the end, innermost first.
    pub(crate) async fn copy(&self) -> anyhow::Result<Written> {
        let mut windows = self.reader.windows(WINDOW);
        let budget = Arc::new(Semaphore::new(permits(IN_FLIGHT) as usize));
        let mut directories: Vec<(PathBuf, Arc<Entry>)> = Vec::new();
        let mut written = Written::default();
        // Of the file that goes on in the next window.
        let mut present = 0;
        let mut before: Option<Running> = None;
        let mut ending = JoinSet::new();
        while let Some(window) = windows.next().await? {
            let targets = Arc::new(self.begin(window.parts(), &mut directories, present)?);
            present = targets.last().and_then(Option::as_ref).map_or(0, |target| target.present);
            let found =
                compare::compare(&window, &targets, self.reader.hashing(), self.reader.block_size()).await?;
            written.reused += found.bytes();
            self.progress.add(found.bytes());
            let mut tasks = JoinSet::new();
            for unit in window.units_of(|part, block, _| !found.has(part, block)) {
                written.bytes += unit.bytes();
                let permit = Arc::clone(&budget)
                    .acquire_many_owned(permits(unit.fetch_bytes().min(IN_FLIGHT)))
                    .await?;
                while let Some(done) = tasks.try_join_next() {
                    done.context("a worker of the restore broke")??;
                }
                tasks.spawn(self.write_unit(unit, &targets, permit));
            }
            let running = Running { window, targets, tasks };
            if let Some(before) = before.replace(running) {
                let before = before.written().await?;
                ending.spawn(self.clone().end(before));
            }
            while ending.len() > ENDING {
                written.files += joined(ending.join_next().await)?;
            }
        }
        if let Some(last) = before {
            ending.spawn(self.clone().end(last.written().await?));
        }
        while !ending.is_empty() {
            written.files += joined(ending.join_next().await)?;
        }
        let filesystems = Arc::clone(&self.filesystems);
        tokio::task::spawn_blocking(move || filesystems.sync())
            .await
            .context("a worker of the restore broke")?
            .map_err(|(path, error)| {
                anyhow!(
                    "what was written to the filesystem of {} cannot be made durable: {error}",
                    path.display()
                )
            })?;
        self.end_directories(directories).await?;
        Ok(written)
    }

    /// Fetches a unit and writes what is in it. Gives the permit back when it is through.
    fn write_unit(
        &self,
        unit: PackUnit,
        targets: &Arc<Vec<Option<Target>>>,
        permit: OwnedSemaphorePermit,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (reader, targets, progress) = (self.reader.clone(), Arc::clone(targets), self.progress.clone());
        async move {
            let fetched = reader.fetch(&unit).await?;
            cpu::run(move || {
                let _in_flight = permit;
                let mut open: Option<OpenFile> = None;
                let scattered = reader.scatter::<anyhow::Error>(&unit, &fetched, |piece| {
                    write(&targets, &mut open, piece.part, piece.offset, piece.bytes)?;
                    progress.add(piece.bytes.len() as u64);
                    Ok(())
                });
                if let Some(open) = open {
                    open.begin_writeback(&targets);
                }
                scattered
            })
            .await?
        }
    }

    /// Completes the files that end in a window which is written; how many these are.
    async fn end(self, window: WrittenWindow) -> anyhow::Result<u64> {
        let window = Arc::new(window);
        let told = |target: &Target| format!("{} cannot be completed", target.path.display());
        let of_blocking = Arc::clone(&window);
        tokio::task::spawn_blocking(move || {
            let parts = of_blocking.targets.iter().zip(of_blocking.window.parts());
            for (target, part) in parts.filter_map(|(target, part)| Some((target.as_ref()?, part))) {
                target.lengthen().with_context(|| told(target))?;
                target.begin_writeback(&part.range);
            }
            Ok::<_, anyhow::Error>(())
        })
        .await
        .context("a worker of the restore broke")??;
        if !self.filesystems.at_once() {
            self.sync_files(window.window.parts(), Arc::clone(&window.targets)).await?;
        }
        let mut files = 0;
        for (target, _) in window.targets.iter().zip(window.window.parts()).filter(|(_, part)| part.ends) {
            let Some(target) = target else { continue };
            files += 1;
            close_off(target).with_context(|| told(target))?;
        }
        Ok(files)
    }

    /// Creates what begins in a window, but for files that are wholly in it: whoever writes to one first creates it. The place
    /// of each part; `None` for what is not restored. `present`: of the file that began in an earlier window.
    fn begin(
        &self,
        parts: &[Part],
        directories: &mut Vec<(PathBuf, Arc<Entry>)>,
        mut present: u64,
    ) -> anyhow::Result<Vec<Option<Target>>> {
        let mut targets = Vec::with_capacity(parts.len());
        for part in parts {
            let entry = &part.entry;
            let Some(path) = self.place(entry) else {
                targets.push(None);
                continue;
            };
            let owner = self.owners.of(entry.attributes.uid, entry.attributes.gid);
            let mut created = true;
            if part.begins {
                if self.layout.is_stray(&entry.path, entry.content.is_directory()) {
                    bail!(
                        "{} is nothing that lies in a tablespace: the backup is not what it should be",
                        entry.path
                    );
                }
                let kept = if self.delta { keep(&path, entry, owner) } else { Ok(None) };
                present = match kept.with_context(|| format!("{} cannot be repaired", path.display()))? {
                    Some(present) => present,
                    None if part.ends && matches!(entry.content, Content::File(_)) => {
                        created = false;
                        0
                    }
                    None => create(&path, entry, &self.layout, owner)
                        .with_context(|| format!("{} cannot be created", path.display()))
                        .map(|()| 0)?,
                };
                if entry.content.is_directory() {
                    directories.push((path.clone(), Arc::clone(entry)));
                }
            }
            targets.push(match &entry.content {
                Content::File(content) => {
                    let length = Mutex::new(created.then_some(content.length));
                    let (entry, scattered) = (Arc::clone(entry), AtomicU64::new(0));
                    Some(Target { path, entry, present, owner, scattered, length })
                }
                _ => None,
            });
        }
        Ok(targets)
    }

    /// Where an entry goes; `None` if it is not restored.
    fn place(&self, entry: &Entry) -> Option<PathBuf> {
        let path = &entry.path;
        if is_left_out(path, &self.layout) {
            return None;
        }
        let control = self.layout.is_data(path) && path.path.as_bytes() == CONTROL_FILE.as_bytes();
        Some(if control { self.layout.pgdata().join(UNFINISHED_CONTROL) } else { self.layout.path(path) })
    }

    /// Syncs the files that end in a window one by one.
    async fn sync_files(&self, parts: &[Part], targets: Arc<Vec<Option<Target>>>) -> anyhow::Result<()> {
        let ended: Vec<usize> = parts.iter().enumerate().filter(|(_, p)| p.ends).map(|(n, _)| n).collect();
        let mut tasks = JoinSet::new();
        // Waiting for the disk is not computing: more of them at once than there are cores.
        for share in ended.chunks(ended.len().div_ceil(8).max(1)) {
            let (share, targets) = (share.to_vec(), Arc::clone(&targets));
            tasks.spawn_blocking(move || -> anyhow::Result<()> {
                for target in share.iter().filter_map(|&n| targets.get(n)?.as_ref()) {
                    let file = OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(&target.path);
                    file.and_then(|file| file.sync_all())
                        .with_context(|| format!("{} cannot be completed", target.path.display()))?;
                }
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.context("a worker of the restore broke")??;
        }
        Ok(())
    }

    async fn end_directories(&self, directories: Vec<(PathBuf, Arc<Entry>)>) -> anyhow::Result<()> {
        let owners = self.owners.clone();
        tokio::task::spawn_blocking(move || {
            for (path, entry) in directories.iter().rev() {
                finish_directory(path, entry, &owners)
                    .with_context(|| format!("the directory {} cannot be completed", path.display()))?;
            }
            Ok(())
        })
        .await
        .context("a worker of the restore broke")?
    }
}

/// Whether an entry is not restored: signal files of the backed-up server would steer this one, the marker of an earlier
/// restore is no part of it, and pg_wal is ours to fill. No backup holds its content, but one that lies could put a link
/// there, to where the spool will be.
pub(crate) fn is_left_out(path: &TablePath, layout: &Layout) -> bool {
    let name = path.path.as_bytes();
    let signals = [Signal::Recovery, Signal::Standby];
    layout.is_data(path)
        && (signals.iter().any(|signal| signal.file_name().as_bytes() == name)
            || name == MARKER.as_bytes()
            || name.starts_with(b"pg_wal/"))
}

fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PERMIT)).unwrap_or(u32::MAX).max(1)
}

impl Target {
    /// Opens it for writing; creates it if it is not there yet.
    fn open(&self) -> anyhow::Result<File> {
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        if length.is_some() {
            return Ok(OpenOptions::new().write(true).custom_flags(NOFOLLOW).open(&self.path)?);
        }
        let file = create_file(&self.path, &self.entry, self.owner)?;
        *length = Some(0);
        Ok(file)
    }

    /// Remembers that it was written up to there.
    fn reaches(&self, end: u64) {
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        *length = (*length).max(Some(end));
    }

    /// Creates it if nothing was written to it, and makes it as long as it shall be: what is zero at its end is not written.
    fn lengthen(&self) -> anyhow::Result<()> {
        let Content::File(content) = &self.entry.content else { return Ok(()) };
        let length = *self.length.lock().unwrap_or_else(PoisonError::into_inner);
        if length.is_none_or(|length| length < content.length) {
            let file = self.open()?;
            if content.length > 0 {
                file.set_len(content.length)?;
            }
        }
        Ok(())
    }

    /// Makes the disk begin with what came from many packs, a little from each. Not in a file that was there: what is right in
    /// it would leave memory, too, and the next windows of it are still to be read.
    fn begin_writeback(&self, range: &Range<u64>) {
        if self.present == 0 && self.scattered.load(Ordering::Relaxed) >= WRITEBACK {
            // To be read: a file that ends in a later window may be closed to writers by now.
            if let Ok(file) = OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(&self.path) {
                begin_writeback(&file, range.start, range.end.saturating_sub(range.start));
            }
        }
    }
}

/// The file of the last piece, and what was written to it without a break.
struct OpenFile {
    part: usize,
    file: File,
    from: u64,
    to: u64,
}

impl OpenFile {
    /// Makes the disk begin with what was written, instead of when memory is full of it or everything is waited for.
    fn begin_writeback(&self, targets: &[Option<Target>]) {
        let length = self.to - self.from;
        if length >= WRITEBACK {
            begin_writeback(&self.file, self.from, length);
        } else if let Some(target) = targets.get(self.part).and_then(Option::as_ref) {
            target.scattered.fetch_add(length, Ordering::Relaxed);
        }
    }
}

/// Advice: what the system cannot do now is done at the end.
fn begin_writeback(file: &File, from: u64, length: u64) {
    rustix::fs::fadvise(file, from, NonZeroU64::new(length), Advice::DontNeed).ok();
}

/// Less than this is left to the system, which puts small writes together.
const WRITEBACK: u64 = 512 << 10;

/// Writes a piece; keeps the file of the last piece open, because pieces of a file lie together in a pack.
fn write(
    targets: &[Option<Target>],
    open: &mut Option<OpenFile>,
    part: usize,
    offset: u64,
    bytes: &[u8],
) -> anyhow::Result<()> {
    let Some(target) = targets.get(part).and_then(Option::as_ref) else { return Ok(()) };
    let told = || format!("{} cannot be written", target.path.display());
    let file = match open {
        Some(last) if last.part == part => last,
        _ => {
            if let Some(last) = open.take() {
                last.begin_writeback(targets);
            }
            let file = target.open().with_context(told)?;
            open.insert(OpenFile { part, file, from: offset, to: offset })
        }
    };
    file.file.write_all_at(bytes, offset).with_context(told)?;
    target.reaches(offset + bytes.len() as u64);
    if file.to != offset {
        file.begin_writeback(targets);
        file.from = offset;
    }
    file.to = offset + bytes.len() as u64;
    Ok(())
}

/// `O_NOFOLLOW`: nothing is written through a link.
pub(crate) const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// Makes a file that is there as long as it shall be and gives how many of its bytes were there before; what else is there
/// was found to be right. `None` if nothing is there.
fn keep(path: &Path, entry: &Entry, owner: Option<Owner>) -> std::io::Result<Option<u64>> {
    let Content::File(content) = &entry.content else {
        // A directory is entered as it is; a link was removed unless it leads to the right place.
        return Ok(path.is_symlink().then_some(0));
    };
    let file = match OpenOptions::new().write(true).custom_flags(NOFOLLOW).open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // As a key file is that nobody may write to: it is made anew.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            return fs::remove_file(path).map(|()| None);
        }
        file => file?,
    };
    let length = file.metadata()?.len();
    if length != content.length {
        file.set_len(content.length)?;
    }
    give(&file, entry, owner)?;
    Ok(Some(length.min(content.length)))
}

fn create(path: &Path, entry: &Entry, layout: &Layout, owner: Option<Owner>) -> anyhow::Result<()> {
    match &entry.content {
        Content::File(content) => {
            let file = create_file(path, entry, owner)?;
            if content.length > 0 {
                file.set_len(content.length)?;
            }
        }
        Content::Directory | Content::LinkedDirectory { .. } => match layout.spot(&entry.path) {
            Spot::Inside => make_directory(path)?,
            Spot::Elsewhere(directory) => {
                owners::create_directories(&directory, owner)?;
                symlink(&directory, path)?;
            }
        },
        Content::Link { .. } if layout.is_wal(&entry.path) => {
            anyhow::bail!(
                "the backup has a link in its place, which it cannot be: the backup is not what it should be"
            )
        }
        Content::Link { target } => symlink(Path::new(std::ffi::OsStr::from_bytes(target)), path)?,
    }
    Ok(())
}

/// Creates an empty file where nothing is.
fn create_file(path: &Path, entry: &Entry, owner: Option<Owner>) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(OURS).custom_flags(NOFOLLOW);
    let file = options.open(path)?;
    if owner.is_some() || mode(entry) | OURS != OURS {
        give(&file, entry, owner)?;
    }
    Ok(file)
}

/// Creates a directory that only we can write to until it gets its own mode; a root of the layout may be there already.
fn make_directory(path: &Path) -> std::io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && fs::symlink_metadata(path)?.is_dir() => {
            Ok(())
        }
        made => made,
    }
}

/// What we need of a file until it is written.
const OURS: u32 = 0o600;

fn mode(entry: &Entry) -> u32 {
    u32::from(entry.attributes.mode) & 0o777
}

/// Gives a file its owner and mode. Whoever it lets in is kept out by the data directory until the end.
fn give(file: &File, entry: &Entry, owner: Option<Owner>) -> std::io::Result<()> {
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(file, Some(owner.uid), Some(owner.gid))?;
    }
    file.set_permissions(fs::Permissions::from_mode(mode(entry) | OURS))
}

/// Takes away what a file's mode does not allow even its owner.
fn close_off(target: &Target) -> std::io::Result<()> {
    let mode = mode(&target.entry);
    if mode & OURS == OURS {
        return Ok(());
    }
    let file = OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(&target.path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    // Hardly any file is like this.
    file.sync_all()
}

fn finish_directory(path: &Path, entry: &Entry, owners: &Owners) -> anyhow::Result<()> {
    let attributes = &entry.attributes;
    if let Some(owner) = owners.of(attributes.uid, attributes.gid) {
        lchown(path, Some(owner.uid), Some(owner.gid))?;
        if fs::symlink_metadata(path)?.is_symlink() {
            std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))?;
        }
    }
    // PostgreSQL refuses to start in a data directory that others can write to, whatever the backup says.
    let mask = if entry.path.path.is_root() { 0o750 } else { 0o777 };
    let mode = u32::from(attributes.mode) & mask;
    fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o700))?;
    File::open(path)?.sync_all()?;
    Ok(())
}
