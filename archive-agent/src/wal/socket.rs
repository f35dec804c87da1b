//! The push socket in the file system: who may put it there, and which of two daemons owns it.
//!
//! `<socket>.lock` is locked for as long as a daemon listens, so a socket without a locked file is a dead daemon's and is
//! replaced. A daemon that is killed leaves both files; the kernel drops the lock.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tokio::net::UnixListener;

/// A socket that this process listens on. Dropping it removes the socket's name, so that clients see at once that nobody
/// answers.
#[derive(Debug)]
pub(crate) struct PushSocket {
    /// Where connections come in.
    pub(crate) listener: UnixListener,
    path: PathBuf,
    // Held, not read: released after the name is gone.
    _lock: File,
}

/// The lock of a socket's place, held by the daemon that listens there.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    lock: File,
}

impl Place {
    /// Takes the place. `None` while another daemon has it.
    ///
    /// `owner` is PostgreSQL's user: nobody but that user and root may be able to put another socket there.
    pub(crate) fn take(path: &Path, owner: u32) -> anyhow::Result<Option<Self>> {
        let directory = path.parent().context("the push socket has no directory")?;
        if !directory.exists() {
            walpoint_base::durable::create_directories(directory).with_context(|| {
                format!(
                    "the directory of the push socket, {}, cannot be created (systemd makes it with RuntimeDirectory=; \
                     push_socket names another place)",
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
        let shown = self.path.display();
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("the old socket {shown} cannot be removed"));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&self.path)
            .with_context(|| format!("cannot listen on {shown} (a socket's path holds at most 107 bytes)"))?;
        // Peers are checked by their uid as well; this keeps others from even connecting.
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("the mode of {shown} cannot be set"))?;
        Ok(PushSocket { listener, path: self.path, _lock: self.lock })
    }
}

impl Drop for PushSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("the socket {} was not removed: {error}", self.path.display());
        }
    }
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
            bail!(
                "the push socket must not be below {}: others can write there (mode {:04o}) and could answer \"stored\" in \
                 the daemon's place; chmod go-w {0}, or set push_socket",
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

    #[tokio::test]
    async fn two_daemons_cannot_listen_and_a_dead_ones_socket_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/main.push");
        let first = Place::take(&path, uid()).unwrap().unwrap().listen().unwrap();
        assert!(Place::take(&path, uid()).unwrap().is_none());
        drop(first);
        assert!(!path.exists());
        // What kill -9 leaves: the socket's name, and nobody behind it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(UnixStream::connect(&path).is_err());
        let _second = Place::take(&path, uid()).unwrap().unwrap().listen().unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, says) in [(0o777, "mode 0777"), (0o1777, "mode 1777"), (0o770, "mode 0770")] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = Place::take(&dir.path().join("s"), uid()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        if uid() == 0 {
            std::os::unix::fs::chown(dir.path(), Some(65_534), None).unwrap();
            let error = Place::take(&dir.path().join("s"), 65_533).unwrap_err().to_string();
            assert!(error.contains("uid 65534") && error.contains("uid 65533"), "{error}");
        }
    }
}
