//! The scratch directory: a directory of this run's own, with a mark that says so and a lock that shows that the run is alive.
//!
//! The mark holds the directory's own device and inode, so that it proves nothing in a copy or after a move. It appears with its lock
//! held, and is removed last. As root the directory is root's: PostgreSQL's user passes through it and can change nothing in it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jiff::Timestamp;
use rand::Rng;
use serde::{Deserialize, Serialize};
use walpoint_base::{ClusterName, durable, user};

use super::leftover;
use crate::restore::{self, owners::Owner};

/// The mark.
pub(super) const MARK: &str = "walpoint-scratch.json";

/// How the names of fresh directories begin.
pub(super) const PREFIX: &str = "walpoint-scratch-";

/// The data directory of the instance.
const DATA: &str = "data";
/// What lay outside the data directory.
const EXTRA: &str = "extra";
/// The directory of the socket. Short: the path of a socket has at most 107 bytes.
const SOCKET: &str = "socket";
/// What the server logs.
pub(super) const LOG: &str = "server.log";

/// The longest path of a Unix socket, without its final zero (`sun_path` of `unix(7)`).
const LONGEST_SOCKET: usize = 107;

/// How long a process of the instance that is ending may still make files.
const AFTERMATH: Duration = Duration::from_secs(10);

/// What the mark says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The program, so that no other file is taken for a mark.
    program: String,
    /// The directory it lies in.
    pub(super) device: u64,
    pub(super) inode: u64,
    /// Whether the directory was made for the run.
    pub(super) made: bool,
    /// Whether a person asked to keep it.
    pub(super) kept: bool,
    cluster: String,
    started: Timestamp,
}

/// The value of [`Mark::program`].
const PROGRAM: &str = "restore-agent";

impl Mark {
    /// Whether it is one, and the directory's own.
    pub(super) fn is_of(&self, directory: &fs::Metadata) -> bool {
        self.program == PROGRAM && (self.device, self.inode) == (directory.dev(), directory.ino())
    }
}

/// A scratch directory, for as long as this run lives.
#[derive(Debug)]
pub(super) struct ScratchDirectory {
    path: PathBuf,
    mark: Mark,
    /// Keeps the lock.
    _lock: File,
}

/// Where fresh directories are made unless the configuration says.
pub(super) fn default_place() -> PathBuf {
    let variable = std::env::var_os("TMPDIR").filter(|place| !place.is_empty());
    variable.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

impl ScratchDirectory {
    /// Makes a fresh one in a place. `kept`: no later run removes it, whatever becomes of this one.
    pub(super) fn fresh(place: &Path, cluster: &ClusterName, kept: bool) -> anyhow::Result<Self> {
        let real = place.canonicalize().with_context(|| {
            format!(
                "could not make a scratch directory in \"{}\"\nHINT: Set scratch_directory in the configuration, or give \
                 --directory.",
                place.display()
            )
        })?;
        let mut random = rand::rng();
        let path = real.join(format!("{PREFIX}{:016x}", random.random::<u64>()));
        Self::make(&path, cluster, (true, kept))
    }

    /// Takes the directory that a person named: a new one, an empty one, or one that a killed run left.
    pub(super) fn given(path: &Path, cluster: &ClusterName, kept: bool) -> anyhow::Result<Self> {
        let path = std::path::absolute(path)?;
        let shown = path.display();
        let meta = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let parent = path.parent().unwrap_or(Path::new("/")).canonicalize();
                let parent =
                    parent.with_context(|| format!("could not make the scratch directory \"{shown}\""))?;
                return Self::make(&parent.join(path.file_name().unwrap_or_default()), cluster, (true, kept));
            }
            meta => meta.with_context(|| format!("could not look at \"{shown}\""))?,
        };
        if !meta.is_dir() {
            bail!(
                "\"{shown}\" is not a directory: nothing was changed\nHINT: Give a new or an empty directory."
            );
        }
        if meta.uid() != user::effective() {
            bail!(
                "\"{shown}\" belongs to {}, and a scratch directory has to be this process's own: nothing was changed\nHINT: Give \
                 a directory that does not exist yet.",
                user::shown(meta.uid())
            );
        }
        let path = path.canonicalize()?;
        if let Some(example) = fs::read_dir(&path)?.find_map(|entry| Some(entry.ok()?.file_name())) {
            bail!(
                "\"{shown}\" is not empty (it holds {example:?}): nothing was changed\nHINT: Give a new or an empty directory."
            );
        }
        Self::make(&path, cluster, (false, kept))
    }

    fn make(path: &Path, cluster: &ClusterName, (new, kept): (bool, bool)) -> anyhow::Result<Self> {
        let socket = path.join(SOCKET).join(".s.PGSQL.5432");
        let length = socket.as_os_str().len();
        if length > LONGEST_SOCKET {
            bail!(
                "the scratch directory \"{}\" has too long a path for the server's socket: nothing was made\nDETAIL: The \
                 socket's path would have {length} bytes; {LONGEST_SOCKET} are possible.\nHINT: Choose a shorter path with \
                 --directory or scratch_directory.",
                path.display()
            );
        }
        require_own_way(path.parent().unwrap_or(path))?;
        let context = || format!("could not make the scratch directory \"{}\"", path.display());
        if new {
            DirBuilder::new().mode(0o700).create(path).with_context(context)?;
        }
        let marked = Self::marked(path, cluster, (new, kept));
        if marked.is_err() && new {
            // Without its mark no later run would remove it.
            fs::remove_dir_all(path).ok();
        }
        marked.with_context(context)
    }

    /// Puts the mark into a directory that is there.
    fn marked(path: &Path, cluster: &ClusterName, (new, kept): (bool, bool)) -> anyhow::Result<Self> {
        // As root the owner of the files has to pass through, and does so before anything is restored.
        let mode = if user::effective() == 0 { 0o711 } else { 0o700 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        let meta = fs::symlink_metadata(path)?;
        let mark = Mark {
            program: PROGRAM.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
            made: new,
            kept,
            cluster: cluster.to_string(),
            started: Timestamp::now(),
        };
        let lock = write_mark(path, &mark)?;
        Ok(Self { path: path.to_owned(), mark, _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The data directory of the instance.
    pub(super) fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    /// Where files from outside the data directory go.
    pub(super) fn extra(&self) -> PathBuf {
        self.path.join(EXTRA)
    }

    /// The directory of the socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// The server's log.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// Makes the directory of the socket, which is the own one of the user who runs the server.
    pub(super) fn make_socket_directory(&self, owner: Option<Owner>) -> anyhow::Result<()> {
        let context = || format!("could not prepare the scratch directory \"{}\"", self.path.display());
        let socket = self.socket();
        match DirBuilder::new().mode(0o700).create(&socket) {
            // An attempt with a backup that turned out to be damaged made it.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            made => made.with_context(context)?,
        }
        owner.map_or(Ok(()), |owner| owner.give(&socket)).with_context(context)
    }

    /// Removes it and all that is in it.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        remove(&self.path, &self.mark)
            .with_context(|| format!("could not remove the scratch directory \"{}\"", self.path.display()))
    }
}

/// Refuses a place in which another user could put something else under the name of the scratch directory: what is removed at the end
/// has to be what was made.
fn require_own_way(place: &Path) -> anyhow::Result<()> {
    let own = user::effective();
    for directory in place.ancestors() {
        let meta = fs::symlink_metadata(directory)
            .with_context(|| format!("could not look at \"{}\"", directory.display()))?;
        // A group of an ordinary user's directory is mostly that user's own.
        let others = if own == 0 { 0o022 } else { 0o002 };
        let is_shared = meta.mode() & others != 0 && meta.mode() & 0o1000 == 0;
        if is_shared || ![0, own].contains(&meta.uid()) {
            bail!(
                "no scratch directory is made in \"{}\", because other users can rename what lies in \"{}\"\nHINT: Choose a \
                 place that only this process's user can change, or one with the sticky bit, such as /var/tmp.",
                place.display(),
                directory.display()
            );
        }
    }
    Ok(())
}

/// Writes the mark, locked before it has its name.
fn write_mark(directory: &Path, mark: &Mark) -> anyhow::Result<File> {
    let path = directory.join(MARK);
    let temporary = durable::temporary_beside(&path);
    let mut file = durable::create_locked(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(mark)?)?;
    file.sync_all()?;
    durable::rename(&temporary, &path)?;
    Ok(file)
}

/// Removes a scratch directory, its mark last; the directory itself only if it was made. What is ending may still make files for a
/// moment.
pub(super) fn remove(directory: &Path, mark: &Mark) -> io::Result<()> {
    let until = Instant::now() + AFTERMATH;
    loop {
        if !mark.is_of(&fs::symlink_metadata(directory)?) {
            return Err(io::Error::other("another directory lies there"));
        }
        match remove_once(directory, mark.made) {
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

fn remove_once(directory: &Path, made: bool) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == MARK {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    match fs::remove_file(directory.join(MARK)) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    if made { fs::remove_dir(directory) } else { Ok(()) }
}

/// Removes what killed runs left, and makes the directory; see [`ScratchDirectory::fresh`]. Nothing is removed where another user could put
/// something else in its place.
pub(super) fn made(
    given: Option<PathBuf>,
    place: &Path,
    cluster: &ClusterName,
    kept: bool,
) -> anyhow::Result<ScratchDirectory> {
    let given = given.map(|path| restore::spelled("--directory", &path)).transpose()?;
    let place = match &given {
        Some(path) => path.parent().map(Path::to_owned).unwrap_or_default(),
        None => place.to_owned(),
    };
    // What is not there has nothing that could be removed.
    if let Ok(real) = place.canonicalize() {
        require_own_way(&real)?;
    }
    match given {
        Some(path) => {
            leftover::remove_one(&path);
            ScratchDirectory::given(&path, cluster, kept)
        }
        None => {
            leftover::remove_all(&place);
            ScratchDirectory::fresh(&place, cluster, kept)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_above_one_that_does_not_exist_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        let path = dir.path().join("missing/../other");
        let error = made(Some(path), dir.path(), &"main".parse().unwrap(), false).unwrap_err().to_string();
        assert!(error.starts_with("--directory ") && error.contains("does not exist"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the other one");
    }
}
