//! The file that PostgreSQL names: opened and looked at, or an error with a hint about the usual mistakes.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use walpoint_base::WalFileName;
use walpoint_base::socket::FileIdentity;

/// A file of WAL as this program sees it.
#[derive(Debug)]
pub(crate) struct WalFile {
    pub(crate) name: WalFileName,
    /// What it is, to be compared with what the daemon read.
    pub(crate) identity: FileIdentity,
    /// The user that owns it: PostgreSQL's.
    pub(crate) owner: u32,
}

/// Opens the file and reads its identity. An error is for PostgreSQL's log.
pub(crate) fn look(path: &Path) -> Result<WalFile, String> {
    let shown = path.display();
    let text = path.file_name().unwrap_or_default().to_string_lossy();
    if text.contains('%') {
        return Err(format!(
            "the path is {shown}: PostgreSQL replaces %p only in archive_command\nHINT: To archive a file by hand, give a \
             path such as pg_wal/000000010000000000000001."
        ));
    }
    let name: WalFileName = text.parse().map_err(|problem| format!("cannot archive {shown}: {problem}"))?;
    let problem = |error: io::Error| format!("cannot read {shown}: {error}{}", hint(path, &error));
    let file = File::open(path).map_err(problem)?;
    let identity = FileIdentity::of(&file, matches!(name, WalFileName::Segment(_))).map_err(problem)?;
    let owner = file.metadata().map_err(problem)?.uid();
    Ok(WalFile { name, identity, owner })
}

/// What most likely went wrong, as lines to append.
fn hint(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound if path.is_absolute() => String::new(),
        io::ErrorKind::NotFound => {
            let directory = std::env::current_dir().ok();
            let here = directory.as_ref().map_or_else(|| "unknown".to_owned(), |d| d.display().to_string());
            let only_a_name = path.parent().is_none_or(|parent| parent.as_os_str().is_empty());
            if only_a_name {
                format!(
                    "\nDETAIL: The working directory is {here}.\nHINT: archive_command must pass %p (the path), not %f (the \
                     name)."
                )
            } else if directory.is_some_and(|directory| directory.join("PG_VERSION").exists()) {
                let place = path.parent().unwrap_or(path).display();
                format!(
                    "\nDETAIL: The data directory {here} has no such file in {place}: it was archived and \
                     removed, or has not been written yet."
                )
            } else {
                format!(
                    "\nDETAIL: The path is relative to the data directory, but the working directory is {here}.\nHINT: \
                     archive_command must not change the working directory."
                )
            }
        }
        io::ErrorKind::PermissionDenied => {
            "\nHINT: archive-push must run as the user that owns the data directory.".to_owned()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_mistakes_get_a_hint() {
        for (path, says) in [
            ("000000010000000000000001", "must pass %p"),
            ("pg_wal/000000010000000000000001", "must not change the working directory"),
            ("%p", "replaces %p only in archive_command"),
            ("pg_wal/xlogtemp.27", "not a WAL file name"),
            ("/nowhere/000000010000000000000001", "No such file"),
            ("..", "not a WAL file name"),
        ] {
            let problem = look(Path::new(path)).unwrap_err();
            assert!(problem.contains(says), "{path}: {problem}");
        }
    }
}
