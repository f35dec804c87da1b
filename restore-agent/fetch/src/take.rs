//! Taking the verified file over from the spool.
//!
//! The name that PostgreSQL asked for leads to the whole file or to what was there before. Killed in the middle, this
//! program leaves at most a temporary file beside it, which the next prefetcher removes.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use walpoint_base::durable;

/// Moves `from`, which must have `size` bytes, to `to`; copies if they lie on different filesystems.
pub(crate) fn take(from: &Path, size: u64, to: &Path) -> io::Result<()> {
    let found = fs::metadata(from)?.len();
    if found != size {
        let text = format!("{} has {found} bytes, {size} were announced", from.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    match durable::hand_over(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy(from, size, to)?;
            // What stays behind is the prefetcher's to remove.
            fs::remove_file(from).ok();
            Ok(())
        }
        other => other,
    }
}

/// Whether a file is not there any more, although its directory is: another process was given it, too, and took it.
pub(crate) fn is_taken(from: &Path, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        && fs::symlink_metadata(from).is_err()
        && from.parent().is_some_and(Path::is_dir)
}

/// Copies by way of a synced temporary file beside `to`.
pub(crate) fn copy(from: &Path, size: u64, to: &Path) -> io::Result<()> {
    let temporary = durable::temporary_beside(to);
    let copied = (|| {
        let mut out = durable::create_locked(&temporary)?;
        let copied = io::copy(&mut File::open(from)?, &mut out)?;
        if copied != size {
            let text = format!("{copied} of {size} bytes were copied from {}", from.display());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        out.sync_all()?;
        durable::rename(&temporary, to)
    })();
    copied.inspect_err(|_| {
        // The copy's own error is the one to report.
        fs::remove_file(&temporary).ok();
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "scratch files of a test")]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_of_the_announced_size_is_taken() {
        let dir = std::env::temp_dir().join(format!("restore-fetch-take-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::write(&from, b"12345").unwrap();
        assert!(take(&from, 6, &to).is_err() && !to.exists());
        assert!(copy(&from, 6, &to).is_err() && !to.exists());
        copy(&from, 5, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"12345");
        take(&from, 5, &to).unwrap();
        assert!(!from.exists());
        let again = take(&from, 5, &to).unwrap_err();
        assert!(is_taken(&from, &again));
        let elsewhere = dir.join("no spool/from");
        let error = take(&elsewhere, 5, &to).unwrap_err();
        assert!(!is_taken(&elsewhere, &error), "the spool is not where the prefetcher has it");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing temporary is left");
        fs::remove_dir_all(dir).unwrap();
    }
}
