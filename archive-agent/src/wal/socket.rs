//! The push socket in the file system: who may put it there, and which of two daemons owns it.
//!
//! `<socket>.lock` is locked for as long as a daemon listens, so a socket without a locked file is a dead daemon's and is
//! replaced. A daemon that is killed leaves both files; the kernel drops the lock, unless one of its threads is in a filesystem that
//! hangs: then the process stays, and so do its lock and its socket. A daemon that hangs is replaced without the lock. So which of two
//! daemons owns the place is for the name to say: the one that lost it stops listening, and the one that finds no name takes the place,
//! locked or not. A daemon that reads its configuration again keeps the sockets that it has.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::{Context, bail};
use tokio::net::UnixListener;
use walpoint_runtime::config::SOCKET_DIRECTORY;

/// A socket that this process listens on. Dropping it removes the socket's name, so that clients see at once that nobody
/// answers.
#[derive(Debug)]
pub(crate) struct PushSocket {
    /// Where connections come in.
    pub(crate) listener: UnixListener,
    name: SocketName,
    // Held, not read: released after the name is gone. A daemon that hangs has it where its place was taken.
    _lock: Option<File>,
}

/// The name of a socket, to know it again.
#[derive(Debug, Clone)]
pub(crate) struct SocketName {
    pub(super) path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

/// The sockets that this process listens on, by their paths. Each stays as long as somebody holds it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sockets(Arc<Mutex<HashMap<PathBuf, Weak<PushSocket>>>>);

impl Sockets {
    /// The socket at that path that this process has, if its name leads to it: clients do not find one whose name was removed.
    pub(crate) fn own(&self, path: &Path) -> Option<Arc<PushSocket>> {
        self.lock().get(path).and_then(Weak::upgrade).filter(|socket| socket.name.is_there())
    }

    /// A new socket at that path, where no daemon answers. `None` while one has the place. For `owner` see [`SocketLock::take`].
    pub(crate) fn listen(&self, path: &Path, owner: u32) -> anyhow::Result<Option<Arc<PushSocket>>> {
        let mut sockets = self.lock();
        let Some(place) = SocketLock::take(path, owner)? else { return Ok(None) };
        let socket = Arc::new(place.listen()?);
        tracing::info!(socket = %path.display(), "answering archive-push");
        sockets.insert(path.to_owned(), Arc::downgrade(&socket));
        Ok(Some(socket))
    }

    /// A socket in the place of a daemon that hangs, or has lost its name. Should that one get on, clients no longer find it.
    pub(crate) fn replace(&self, path: &Path, owner: u32) -> anyhow::Result<Arc<PushSocket>> {
        let mut sockets = self.lock();
        check_directory(path.parent().context("the push socket has no directory")?, owner)?;
        let socket = Arc::new(bind(path, None)?);
        tracing::warn!(socket = %path.display(), "answering archive-push in place of a daemon that does not");
        sockets.insert(path.to_owned(), Arc::downgrade(&socket));
        Ok(socket)
    }

    /// All of them, to keep them.
    pub(crate) fn all(&self) -> Vec<Arc<PushSocket>> {
        self.lock().values().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Weak<PushSocket>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lock of a socket's place, held by the daemon that listens there.
#[derive(Debug)]
pub(crate) struct SocketLock {
    path: PathBuf,
    lock: File,
}

impl SocketLock {
    /// Takes the place. `None` while another daemon has it.
    ///
    /// `owner` is PostgreSQL's user: nobody but that user and root may be able to put another socket there.
    pub(crate) fn take(path: &Path, owner: u32) -> anyhow::Result<Option<Self>> {
        require_a_name(path)?;
        let directory = path.parent().context("the push socket has no directory")?;
        if !directory.exists() {
            walpoint_base::durable::create_directories(directory).with_context(|| {
                format!(
                    "the directory of the push socket, {}, cannot be created\nHINT: systemd creates it with \
                     RuntimeDirectory=; push_socket names another place.",
                    directory.display()
                )
            })?;
        }
        check_directory(directory, owner)?;
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options
            .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default())
            .open(&name)
            .with_context(|| format!("the lock {} cannot be opened", name.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path: path.to_owned(), lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).context("the push socket's lock"),
        }
    }

    /// Listens, in place of what a dead daemon left.
    pub(crate) fn listen(self) -> anyhow::Result<PushSocket> {
        bind(&self.path, Some(self.lock))
    }
}

fn bind(path: &Path, lock: Option<File>) -> anyhow::Result<PushSocket> {
    let shown = path.display();
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("the old socket {shown} cannot be removed"));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot listen on {shown} (a socket's path holds at most 107 bytes)"))?;
    // Peers are checked by their uid as well; this keeps others from even connecting.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("the mode of {shown} cannot be set"))?;
    let name = fs::symlink_metadata(path).with_context(|| format!("{shown} cannot be read"))?;
    let name = SocketName { path: path.to_owned(), file: (name.dev(), name.ino()) };
    Ok(PushSocket { listener, name, _lock: lock })
}

impl PushSocket {
    /// The name that clients find it by.
    pub(crate) fn name(&self) -> SocketName {
        self.name.clone()
    }
}

impl SocketName {
    /// Whether the path leads to this socket, as far as can be seen.
    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file)
    }

    /// Whether the path is known to lead to nothing or to another socket. Blocks.
    pub(crate) fn is_lost(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Ok(found) => (found.dev(), found.ino()) != self.file,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

impl Drop for PushSocket {
    fn drop(&mut self) {
        // By now the name may be another's: a daemon took the place, or the directory was removed and made anew.
        if !self.name.is_there() {
            return;
        }
        let path = &self.name.path;
        if let Err(error) = fs::remove_file(path) {
            tracing::debug!("the socket {} was not removed: {error}", path.display());
        }
    }
}

/// Refuses a path at which a daemon of that user would not listen. What is missing of its directory is for the daemon to create.
pub(crate) fn check_place(path: &Path, owner: u32) -> anyhow::Result<()> {
    require_a_name(path)?;
    match path.parent().filter(|directory| directory.exists()) {
        Some(directory) => check_directory(directory, owner),
        None => Ok(()),
    }
}

/// Refuses a directory in the socket's own place.
fn require_a_name(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!(
            "the push socket's path {} is a directory\nHINT: Give the path of the socket itself, such as {}.",
            path.display(),
            path.join("main.push").display()
        );
    }
    Ok(())
}

/// Refuses a directory in which somebody else could replace the socket: by writing there, or in one above it.
fn check_directory(directory: &Path, owner: u32) -> anyhow::Result<()> {
    let real = directory.canonicalize().with_context(|| format!("{} cannot be read", directory.display()))?;
    for (depth, place) in real.ancestors().enumerate() {
        let meta = fs::metadata(place).with_context(|| format!("{} cannot be read", place.display()))?;
        if meta.uid() != 0 && meta.uid() != owner {
            bail!(
                "the push socket must not be below {}: that belongs to uid {}, neither to root nor to PostgreSQL's user \
                 (uid {owner}), who could answer \"stored\" in the daemon's place",
                place.display(),
                meta.uid()
            );
        }
        // In a sticky directory above, such as /tmp, others cannot rename what is not theirs.
        let sticky = depth > 0 && meta.mode() & 0o1000 != 0;
        if meta.mode() & 0o022 != 0 && !sticky {
            // What others share is not to be closed to them.
            let close = match meta.uid() == owner {
                true => format!("Run \"chmod go-w {}\", or choose", place.display()),
                false => "Choose".to_owned(),
            };
            bail!(
                "the push socket must not be below {}: others can write there (mode {:04o}) and could answer \"stored\" in \
                 the daemon's place\nHINT: {close} another directory for push_socket, such as {SOCKET_DIRECTORY}.",
                place.display(),
                meta.mode() & 0o7777
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_directory_is_no_place_for_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let hint = format!("such as {}/main.push", dir.path().display());
        for told in [check_place(dir.path(), uid()), SocketLock::take(dir.path(), uid()).map(drop)] {
            let told = told.unwrap_err().to_string();
            assert!(told.contains("is a directory") && told.contains(&hint), "{told}");
        }
    }

    #[test]
    fn a_shared_directory_is_refused_without_closing_it_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.push");
        check_place(&path, uid()).unwrap();
        check_place(&dir.path().join("missing/main.push"), uid()).unwrap();
        for mode in [0o777, 0o1777] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let refused = check_place(&path, uid()).unwrap_err().to_string();
            assert!(refused.contains("chmod go-w") && refused.contains("/run/walpoint"), "{refused}");
        }
        let refused = check_place(Path::new("/tmp/main.push"), uid() + 1).unwrap_err().to_string();
        assert!(!refused.contains("chmod"), "{refused}");
    }

    #[tokio::test]
    async fn two_daemons_cannot_listen_and_a_dead_ones_socket_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/main.push");
        let first = SocketLock::take(&path, uid()).unwrap().unwrap().listen().unwrap();
        assert!(SocketLock::take(&path, uid()).unwrap().is_none());
        drop(first);
        assert!(!path.exists());
        // What kill -9 leaves: the socket's name, and nobody behind it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(UnixStream::connect(&path).is_err());
        let _second = SocketLock::take(&path, uid()).unwrap().unwrap().listen().unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn the_place_of_a_daemon_that_hangs_is_taken_without_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/main.push");
        let hanging = SocketLock::take(&path, uid()).unwrap().unwrap().listen().unwrap();
        assert!(!hanging.name().is_lost());
        let sockets = Sockets::default();
        assert!(sockets.listen(&path, uid()).unwrap().is_none());
        let socket = sockets.replace(&path, uid()).unwrap();
        assert!(hanging.name().is_lost(), "it can see that another has its place");
        UnixStream::connect(&path).unwrap();
        socket.listener.accept().await.unwrap();
        assert!(Arc::ptr_eq(&sockets.own(&path).unwrap(), &socket));
        drop(hanging);
        UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn a_socket_stays_while_it_is_held_and_is_not_kept_without_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/main.push");
        let sockets = Sockets::default();
        assert!(sockets.own(&path).is_none());
        let first = sockets.listen(&path, uid()).unwrap().unwrap();
        let kept = sockets.all();
        drop(first);
        assert!(SocketLock::take(&path, uid()).unwrap().is_none(), "no other daemon takes over");
        let again = sockets.own(&path).unwrap();
        assert!(Arc::ptr_eq(&again, &kept[0]));
        drop(kept);
        UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(again.name().is_lost() && sockets.own(&path).is_none());
        assert!(sockets.listen(&path, uid()).unwrap().is_none(), "the place is still taken");
        drop(again);
        let nameless = sockets.listen(&path, uid()).unwrap().unwrap();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let _new = sockets.listen(&path, uid()).unwrap().unwrap();
        drop(nameless);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, says) in [(0o777, "mode 0777"), (0o1777, "mode 1777"), (0o770, "mode 0770")] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = SocketLock::take(&dir.path().join("s"), uid()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        if uid() == 0 {
            std::os::unix::fs::chown(dir.path(), Some(65_534), None).unwrap();
            let error = SocketLock::take(&dir.path().join("s"), 65_533).unwrap_err().to_string();
            assert!(error.contains("uid 65534") && error.contains("uid 65533"), "{error}");
        }
    }
}
