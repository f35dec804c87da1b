//! Files in a directory of another user's: what root creates there belongs to the directory's owner, as if that user had.
//!
//! A file of `pg_wal` that stayed root's after one command by hand would keep PostgreSQL's own commands from writing to it for good.
//! Only a file that was just created is given away: what was there may be a link that leads anywhere.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use crate::user;

/// Opens a file in that way, and creates it if there is none.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    match options.clone().create_new(true).open(path) {
        Ok(file) => give(&file, directory_of(path)).map(|()| file),
        // A link that leads nowhere as yet is a name that is taken, too.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => options.create(true).open(path),
        Err(error) => Err(error),
    }
}

/// Gives a file that root has just created to the owner of its directory.
pub(crate) fn give(file: &File, directory: &Path) -> io::Result<()> {
    if user::effective() != 0 {
        return Ok(());
    }
    let (own, directory) = (file.metadata()?, std::fs::metadata(directory)?);
    // Filesystems that map users have done it.
    if own.uid() == directory.uid() {
        return Ok(());
    }
    fchown(file, Some(directory.uid()), Some(directory.gid()))
}

/// An error of writing to a file, with the command that makes it the directory owner's if it is another user's.
pub(crate) fn advise(path: &Path, error: io::Error) -> io::Error {
    let both = || Some((std::fs::metadata(path).ok()?, std::fs::metadata(directory_of(path)).ok()?));
    if error.kind() == ErrorKind::PermissionDenied
        && let Some((file, directory)) = both()
        && file.uid() != directory.uid()
    {
        let command = user::give(path, directory.uid(), directory.gid());
        let owner = user::shown(file.uid());
        return io::Error::new(
            error.kind(),
            format!("{error}\nDETAIL: The file belongs to {owner}.\nHINT: Run as root: {command}"),
        );
    }
    error
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::chown;

    use super::*;

    const OTHER_USER: u32 = 65_533;

    /// Only root can try it: others see that their own stays theirs.
    #[test]
    fn what_root_creates_is_the_directory_owners_and_what_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = user::effective() == 0;
        if root {
            chown(dir.path(), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
        }
        let owner = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().uid();
        let open = |name: &str| open(&dir.path().join(name), OpenOptions::new().append(true)).unwrap();
        open("new").write_all(b"1").unwrap();
        open("new").write_all(b"2").unwrap();
        assert_eq!(std::fs::read(dir.path().join("new")).unwrap(), b"12");
        let expected = if root { OTHER_USER } else { user::effective() };
        assert_eq!(owner("new"), expected);
        crate::durable::replace_for_owner(&dir.path().join("whole"), b"1", 0o600).unwrap();
        assert_eq!(owner("whole"), expected);

        let other = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
        open("link").write_all(b"1").unwrap();
        assert_eq!(owner("link"), user::effective(), "what a link leads to is not given away");
    }

    #[test]
    fn a_file_of_another_user_is_named_with_the_command_that_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        File::create_new(&path).unwrap();
        let denied = || io::Error::from(ErrorKind::PermissionDenied);
        assert!(!advise(&path, denied()).to_string().contains("HINT"), "it is no matter of the owner");
        if user::effective() == 0 {
            chown(&path, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
            let told = advise(&path, denied()).to_string();
            assert!(told.contains(&format!("HINT: Run as root: chown root: {}", path.display())), "{told}");
        }
    }
}
