//! Writing the files of a backup: windows of the file table, packs in parallel, every block checked before it is written.
//!
//! Memory is bounded by a few windows, which are prepared, written and completed at the same time, and by the bytes of packs in
//! flight, whatever the size of the cluster. Only blocks that are not zero are written, so holes stay holes. Where files are
//! kept, only what is wrong in them is read and written ([`compare`]). The disk begins to write at once; files are durable when
//! all windows are through ([`sync`](super::sync)). A crash leaves files of any content, which the marker of the restore
//! declares void.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use walpoint_pg::control::CONTROL_FILE;
use walpoint_plan::restore::Signal;
use walpoint_repo::backup::{
    BackupReader, EntryContent, FileEntry, PackUnit, ReadWindow, TablePath, WindowLimits, WindowPart,
};
use walpoint_repo::cpu;
use walpoint_runtime::progress::ByteProgress;

use super::beneath::OpenRoots;
use super::compare::{self, KeptBlocks};
use super::directory::MARKER;
use super::files::{self, FileTarget, LastFile};
use super::finish::UNFINISHED_CONTROL;
use super::gather::{Buffers, Gather};
use super::layout::Layout;
use super::owners::Owners;
use super::sync::Filesystems;

/// Bytes of packs that are held at the same time.
const IN_FLIGHT: u64 = 28 << 20;

/// Bytes of files that wait for what lies beside them.
const WAITING: usize = 32 << 20;

/// What is written at a time: little enough that it can wait in memory for what lies beside it, and much enough that few
/// frames are opened for two windows: the first and the last one of each pack.
const WINDOW: WindowLimits = WindowLimits { blocks: 1 << 12, entries: 1 << 12 };

/// The same where only what is wrong is written: much enough that all cores compare, little enough that what only one
/// thread does for a window is done while another one is written.
const WINDOW_OF_REPAIR: WindowLimits = WindowLimits { blocks: 1 << 14, entries: 1 << 13 };

/// Windows that are prepared and compared with what is there before the first of them is written.
const AHEAD: usize = 2;

/// Windows whose block lists are read at the same time, from a store behind a network.
const READ_AT_ONCE: usize = 4;

/// Windows that are written while the next one is prepared.
const RUNNING: usize = 3;

/// Windows whose files are completed while later ones are written.
const ENDING: usize = 2;

/// The unit of the budget: a permit of the semaphore.
const PERMIT: u64 = 4 << 10;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WrittenFiles {
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
    pub(crate) progress: ByteProgress,
    /// Whether files that are there are kept, as far as they are right.
    pub(crate) delta: bool,
    /// From where its paths are reached.
    pub(crate) roots: Arc<OpenRoots>,
    /// Where it writes to.
    pub(crate) filesystems: Arc<Filesystems>,
    /// Whether the server that will run here may not reach what is outside.
    pub(crate) is_confined: bool,
}

/// A window whose block lists are being read.
type Reading = JoinSet<anyhow::Result<Option<ReadWindow>>>;

/// A window that is being compared with what is there.
struct Comparing {
    window: Arc<ReadWindow>,
    targets: Arc<Vec<Option<FileTarget>>>,
    found: JoinSet<anyhow::Result<KeptBlocks>>,
}

/// A window that is being written.
struct Running {
    window: Arc<ReadWindow>,
    files: Arc<Files>,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// What the workers on a window share.
struct Files {
    targets: Arc<Vec<Option<FileTarget>>>,
    gather: Gather,
}

/// A window all of whose pieces are written.
struct WrittenWindow {
    window: Arc<ReadWindow>,
    files: Arc<Files>,
}

impl Running {
    /// Waits until all pieces are written.
    async fn written(self) -> anyhow::Result<WrittenWindow> {
        let Self { window, files, mut tasks } = self;
        while !tasks.is_empty() {
            joined(tasks.join_next().await)?;
        }
        if !files.gather.is_complete() {
            bail!("internal error: not all of a window was written");
        }
        Ok(WrittenWindow { window, files })
    }
}

/// What a task gave; there is one.
fn joined<T: Default>(task: Option<Result<anyhow::Result<T>, JoinError>>) -> anyhow::Result<T> {
    task.map_or_else(
        || Ok(T::default()),
        |task| task.context("a worker thread of the restore ended abnormally")?,
    )
}

impl Copier {
    /// Writes and syncs all files; directories get their modes at the end, innermost first, and are synced.
    pub(crate) async fn copy(&self) -> anyhow::Result<WrittenFiles> {
        let (mut reading, mut windows) = self.read_windows();
        let buffers = Arc::new(Buffers::new(WAITING));
        let budget = Arc::new(Semaphore::new(permits(IN_FLIGHT) as usize));
        let mut directories: Vec<(PathBuf, Arc<FileEntry>)> = Vec::new();
        let mut written = WrittenFiles::default();
        // Of the file that goes on in the next window.
        let mut present = 0;
        let mut ahead: VecDeque<Comparing> = VecDeque::new();
        let mut running: VecDeque<Running> = VecDeque::new();
        let allowed = if self.delta { 1 } else { RUNNING };
        let mut ending = JoinSet::new();
        loop {
            while ahead.len() < AHEAD
                && let Some(window) = Self::next_window(&mut windows).await?
            {
                let targets = self.begin(window.parts(), &mut directories, present)?;
                present = targets.last().and_then(Option::as_ref).map_or(0, |target| target.present);
                ahead.push_back(self.compare(window, targets));
            }
            let Some(Comparing { window, targets, mut found }) = ahead.pop_front() else { break };
            let found = joined(found.join_next().await)?;
            written.reused += found.bytes();
            self.progress.add(found.bytes());
            let mut gather = Gather::new(&buffers);
            let units = window.units_of(|part, block, _| {
                let wanted = !found.has(part, block);
                if wanted {
                    self.expect(&mut gather, window.parts(), part, block);
                }
                wanted
            });
            let files = Arc::new(Files { targets, gather });
            let mut tasks = JoinSet::new();
            for unit in units {
                written.bytes += unit.bytes();
                let permit = Arc::clone(&budget)
                    .acquire_many_owned(permits(unit.fetch_bytes().min(IN_FLIGHT)))
                    .await?;
                while let Some(done) = tasks.try_join_next() {
                    done.context("a worker thread of the restore ended abnormally")??;
                }
                tasks.spawn(self.write_unit(unit, &files, permit));
            }
            running.push_back(Running { window, files, tasks });
            if running.len() > allowed
                && let Some(first) = running.pop_front()
            {
                ending.spawn(self.clone().end(first.written().await?));
            }
            while ending.len() > ENDING {
                written.files += joined(ending.join_next().await)?;
            }
        }
        joined(reading.join_next().await)?;
        for last in running {
            ending.spawn(self.clone().end(last.written().await?));
        }
        while !ending.is_empty() {
            written.files += joined(ending.join_next().await)?;
        }
        self.end_directories(directories).await?;
        let filesystems = Arc::clone(&self.filesystems);
        tokio::task::spawn_blocking(move || filesystems.sync())
            .await
            .context("a worker thread of the restore ended abnormally")?
            .map_err(|(path, error)| {
                anyhow!(
                    "what was written to the filesystem of {} cannot be made durable: {error}",
                    path.display()
                )
            })?;
        Ok(written)
    }

    /// Reads windows in a task of its own, a few at the same time where answers take long.
    fn read_windows(&self) -> (JoinSet<anyhow::Result<()>>, mpsc::Receiver<Reading>) {
        let mut windows = self.reader.windows(if self.delta { WINDOW_OF_REPAIR } else { WINDOW });
        let (sender, receiver) = mpsc::channel(if self.reader.is_local() { 1 } else { READ_AT_ONCE });
        let reader = self.reader.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(outline) = windows.outline().await? {
                let mut reading = Reading::new();
                let reader = reader.clone();
                reading.spawn(async move {
                    let window = outline.read().await?;
                    reader.open_packs(&window).await;
                    Ok(Some(window))
                });
                // Nothing is received after a failure elsewhere.
                if sender.send(reading).await.is_err() {
                    break;
                }
            }
            Ok(())
        });
        (task, receiver)
    }

    /// The next window; `None` after the last one, or the last one before those that cannot be read.
    async fn next_window(windows: &mut mpsc::Receiver<Reading>) -> anyhow::Result<Option<ReadWindow>> {
        match windows.recv().await {
            Some(mut reading) => joined(reading.join_next().await),
            None => Ok(None),
        }
    }

    /// Begins to compare a window with what is there.
    fn compare(&self, window: ReadWindow, targets: Vec<Option<FileTarget>>) -> Comparing {
        let (window, targets) = (Arc::new(window), Arc::new(targets));
        let mut found = JoinSet::new();
        let (reader, of_task, to) = (self.reader.clone(), Arc::clone(&window), Arc::clone(&targets));
        found.spawn(
            async move { compare::compare(&of_task, &to, reader.hashing(), reader.block_size()).await },
        );
        Comparing { window, targets, found }
    }

    /// Makes a window wait for a block.
    fn expect(&self, gather: &mut Gather, parts: &[WindowPart], part: usize, block: u64) {
        let size = self.reader.block_size();
        if let Some(EntryContent::File(content)) = parts.get(part).map(|part| &part.entry.content) {
            gather.expect(part, block.saturating_mul(size.bytes()), size.block_len(content.length, block));
        }
    }

    /// Fetches a unit and writes what is in it. Gives the permit back when it is through.
    fn write_unit(
        &self,
        unit: PackUnit,
        files: &Arc<Files>,
        permit: OwnedSemaphorePermit,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (reader, of_window, progress) = (self.reader.clone(), Arc::clone(files), self.progress.clone());
        async move {
            let opened = reader.open_unit(&unit).await?;
            let mut permit = permit;
            // What was held is the most that it can be. A directory of this machine answers at once: more at the same time would
            // only take more memory.
            if !reader.is_local() {
                let more = permit.num_permits().saturating_sub(permits(opened.bytes()) as usize);
                drop(permit.split(more));
            }
            let fetched = reader.fetch_opened(opened).await?;
            cpu::run(move || {
                let _in_flight = permit;
                let Files { targets, gather } = &*of_window;
                let mut open: Option<LastFile> = None;
                let scattered = reader.scatter::<anyhow::Error>(&unit, &fetched, |piece| {
                    gather.take(piece.part, piece.offset, piece.bytes, |offset, bytes| {
                        files::write(targets, &mut open, piece.part, offset, bytes)
                    })?;
                    progress.add(piece.bytes.len() as u64);
                    Ok(())
                });
                if let Some(open) = open {
                    open.begin_writeback(targets);
                }
                scattered
            })
            .await?
        }
    }

    /// Completes the files that end in a window which is written; how many these are.
    async fn end(self, window: WrittenWindow) -> anyhow::Result<u64> {
        let window = Arc::new(window);
        let context = |target: &FileTarget| format!("{} cannot be completed", target.path.display());
        let of_blocking = Arc::clone(&window);
        tokio::task::spawn_blocking(move || {
            let parts = of_blocking.files.targets.iter().zip(of_blocking.window.parts());
            for (target, part) in parts.filter_map(|(target, part)| Some((target.as_ref()?, part))) {
                target.lengthen().with_context(|| context(target))?;
                target.begin_writeback(&part.range);
            }
            Ok::<_, anyhow::Error>(())
        })
        .await
        .context("a worker thread of the restore ended abnormally")??;
        if !self.filesystems.at_once() {
            self.sync_files(window.window.parts(), Arc::clone(&window.files.targets)).await?;
        }
        let mut files = 0;
        for (target, _) in
            window.files.targets.iter().zip(window.window.parts()).filter(|(_, part)| part.ends)
        {
            let Some(target) = target else { continue };
            files += 1;
            files::close_off(target).with_context(|| context(target))?;
        }
        Ok(files)
    }

    /// Creates what begins in a window, but for files that are wholly in it: whoever writes to one first creates it. The place
    /// of each part; `None` for what is not restored. `present`: of the file that began in an earlier window.
    fn begin(
        &self,
        parts: &[WindowPart],
        directories: &mut Vec<(PathBuf, Arc<FileEntry>)>,
        mut present: u64,
    ) -> anyhow::Result<Vec<Option<FileTarget>>> {
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
                let kept = if self.delta { files::keep(&self.roots, &path, entry, owner) } else { Ok(None) };
                present = match kept.with_context(|| format!("{} cannot be repaired", path.display()))? {
                    Some(present) => present,
                    None if part.ends && matches!(entry.content, EntryContent::File(_)) => {
                        created = false;
                        0
                    }
                    None => files::create(&self.roots, &path, entry, &self.layout, owner)
                        .with_context(|| format!("{} cannot be created", path.display()))
                        .map(|()| 0)?,
                };
                if entry.content.is_directory() {
                    directories.push((path.clone(), Arc::clone(entry)));
                }
            }
            targets.push(match &entry.content {
                EntryContent::File(content) => {
                    let created = created.then_some(content.length);
                    let (roots, entry) = (Arc::clone(&self.roots), Arc::clone(entry));
                    Some(FileTarget::new(path, roots, entry, present, owner, created))
                }
                _ => None,
            });
        }
        Ok(targets)
    }

    /// Where an entry goes; `None` if it is not restored.
    fn place(&self, entry: &FileEntry) -> Option<PathBuf> {
        let path = &entry.path;
        let leads_out = self.is_confined && matches!(entry.content, EntryContent::Link { .. });
        if is_left_out(path, &self.layout) || leads_out && self.layout.is_among_data(path) {
            return None;
        }
        let control = self.layout.is_data(path) && path.path.as_bytes() == CONTROL_FILE.as_bytes();
        Some(if control { self.layout.pgdata().join(UNFINISHED_CONTROL) } else { self.layout.path(path) })
    }

    /// Syncs the files that end in a window one by one.
    async fn sync_files(
        &self,
        parts: &[WindowPart],
        targets: Arc<Vec<Option<FileTarget>>>,
    ) -> anyhow::Result<()> {
        let ended: Vec<usize> = parts.iter().enumerate().filter(|(_, p)| p.ends).map(|(n, _)| n).collect();
        let mut tasks = JoinSet::new();
        // Waiting for the disk is not computing: more of them at once than there are cores.
        for share in ended.chunks(ended.len().div_ceil(8).max(1)) {
            let (share, targets) = (share.to_vec(), Arc::clone(&targets));
            tasks.spawn_blocking(move || -> anyhow::Result<()> {
                for target in share.iter().filter_map(|&n| targets.get(n)?.as_ref()) {
                    target
                        .read()
                        .and_then(|file| file.sync_all())
                        .with_context(|| format!("{} cannot be completed", target.path.display()))?;
                }
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.context("a worker thread of the restore ended abnormally")??;
        }
        Ok(())
    }

    /// Gives the directories their owners and modes; syncs them unless that is done for all at once. The data directory itself and
    /// `pg_wal` are handed over when everything else is complete.
    async fn end_directories(&self, directories: Vec<(PathBuf, Arc<FileEntry>)>) -> anyhow::Result<()> {
        let copier = self.clone();
        tokio::task::spawn_blocking(move || {
            let Self { roots, layout, owners, .. } = &copier;
            let last = |entry: &FileEntry| {
                layout.is_data(&entry.path) && (entry.path.path.is_root() || layout.is_wal(&entry.path))
            };
            let one_by_one = !copier.filesystems.at_once();
            for (path, entry) in directories.iter().rev().filter(|(_, entry)| !last(entry)) {
                files::finish_directory(roots, layout, path, entry, owners, one_by_one)
                    .with_context(|| format!("the directory {} cannot be completed", path.display()))?;
            }
            Ok(())
        })
        .await
        .context("a worker thread of the restore ended abnormally")?
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
