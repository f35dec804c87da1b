//! The directory that a cluster is restored into: what may be written to, and what marks an unfinished restore.
//!
//! While a restore is under way the directory holds [`MARKER`] and no `global/pg_control`, so PostgreSQL cannot start
//! there. `pg_control` comes last and the marker goes after it: a crash between the two leaves a complete cluster whose
//! marker the next run only has to remove. Over a data directory that is there the marker comes first and says so until
//! `pg_control` is gone. Directories outside PGDATA hold a marker too while they are filled: one that has none, or another
//! data directory's, is never emptied, whatever an interrupted restore had meant to put there.
//!
//! Root believes a marker only where no other user could have put it, or in a directory of the user's own: there it does
//! nothing that this user could not do by himself. A marker that came along with a copy of its directory, or beside which a server has
//! run, is none ([`about`]).

mod about;
mod links;
mod marker;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use walpoint_base::durable;

pub(crate) use self::links::{given, resolve, spelled};
use self::marker::read_marker;
pub(crate) use self::marker::{
    MARKER, Marker, RelativeTime, announce, belongs_to, claim, claim_other, claimed, disown, is_claimed,
    release,
};
use super::beneath::Anchor;
use super::identity::Identity;
use super::running::{self, LockFile, Reason, RunningServer};

/// What a directory is before a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Contents {
    /// It does not exist, or is empty.
    Empty,
    /// A restore was interrupted there before it could write `pg_control`.
    Unfinished(Marker),
    /// A restore ended there; only its marker was not removed.
    Finished(Marker),
    /// It holds something else, this for example.
    Occupied(String),
}

/// Why nothing may be restored into a directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    /// A server runs there, or may.
    #[error(
        "{pgdata}: nothing was changed, because a PostgreSQL server {} running there: {}, and {reason}",
        if matches!(**reason, Reason::Works(_)) { "is" } else { "may be" },
        match file {
            Some(file) => format!("its postmaster.pid is present ({file})"),
            None => "its postmaster.pid is missing".to_owned(),
        }
    )]
    Running {
        /// The directory.
        pgdata: PathBuf,
        /// What the server wrote, if it is still there.
        file: Option<LockFile>,
        /// Why it is believed.
        reason: Box<Reason>,
    },
    /// It holds something else.
    #[error(
        "{pgdata} is not empty (it holds {example:?}): nothing was changed\nHINT: Give a new or an empty \
         directory. To repair the existing one, use --delta; to rename and replace it, use --replace."
    )]
    NotEmpty {
        /// The directory.
        pgdata: PathBuf,
        /// Something in it.
        example: String,
    },
    /// It is a file, or lies below one.
    #[error("{0} is not a directory: nothing was changed\nHINT: Give a new or an empty directory.")]
    NoDirectory(PathBuf),
    /// Its path has `..` behind something that does not exist.
    #[error(
        "{}\"{path}\" leads through a directory that does not exist: nothing was changed\nDETAIL: \"{missing}\" does not exist, \
         and \"..\" follows it.\nHINT: Give a path without \"..\".",
        option.map(|option| format!("{option} ")).unwrap_or_default()
    )]
    Nowhere {
        /// The option that has the path, if one has.
        option: Option<&'static str>,
        path: PathBuf,
        /// The first part of the path that does not exist.
        missing: PathBuf,
    },
    /// Another restore writes to it.
    #[error("{0}: another restore into it is running; nothing was changed")]
    Busy(PathBuf),
    /// It cannot be looked at or changed.
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl DirectoryError {
    /// The same about the path that an option has.
    fn of(self, option: &'static str, given: &Path) -> Self {
        match self {
            Self::Nowhere { missing, .. } => {
                Self::Nowhere { option: Some(option), path: given.to_owned(), missing }
            }
            other => other,
        }
    }
}

pub(super) fn error_at(path: &Path) -> impl FnOnce(io::Error) -> DirectoryError + '_ {
    move |source| DirectoryError::Io { path: path.to_owned(), source }
}

/// Looks at the directory without changing it. `lost+found` of a fresh filesystem does not count, nor does a marker that
/// was about to get its name when an earlier restore was killed.
pub(crate) fn inspect(pgdata: &Path) -> Result<Contents, DirectoryError> {
    let entries = match fs::read_dir(pgdata) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Contents::Empty),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(DirectoryError::NoDirectory(pgdata.to_owned()));
        }
        entries => entries.map_err(error_at(pgdata))?,
    };
    let names = entries
        .map(|e| e.map(|e| e.file_name()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(error_at(pgdata))?;
    let Some(example) = names.iter().filter(|name| counts(name)).min() else {
        return Ok(Contents::Empty);
    };
    match read_marker(pgdata)? {
        Some(marker) if !marker.claiming && pgdata.join("global/pg_control").exists() => {
            Ok(Contents::Finished(marker))
        }
        Some(marker) => Ok(Contents::Unfinished(marker)),
        None => Ok(Contents::Occupied(example.to_string_lossy().into_owned())),
    }
}

/// Whether a name in a directory is a reason not to write to it.
pub(super) fn counts(name: &OsStr) -> bool {
    let half_made = format!("{}{MARKER}", durable::TEMPORARY_PREFIX);
    name != "lost+found" && !name.to_string_lossy().starts_with(&half_made)
}

/// Something in an open directory, if it holds anything that counts.
pub(crate) fn example(directory: &Anchor) -> io::Result<Option<String>> {
    let names = directory.names()?;
    let example = names.iter().filter(|name| counts(name)).min();
    Ok(example.map(|name| name.to_string_lossy().into_owned()))
}

/// Keeps other restores out of the directory for as long as it is held.
#[derive(Debug)]
pub(crate) struct DirectoryLock(File);

impl DirectoryLock {
    /// Which directory is held.
    pub(crate) fn identity(&self) -> io::Result<Identity> {
        self.0.metadata().map(|meta| Identity::from(&meta))
    }
}

/// Locks the directory, which exists.
pub(crate) fn hold(pgdata: &Path) -> Result<DirectoryLock, DirectoryError> {
    let directory = Anchor::open(pgdata).map_err(error_at(pgdata))?.into_directory();
    match directory.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Err(DirectoryError::Busy(pgdata.to_owned())),
        // A filesystem without locks on directories has none for another restore either.
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(DirectoryLock(directory)),
    }
}

/// Empties a directory that an interrupted restore had begun to fill: all but the marker. Links are removed, not followed.
pub(crate) fn clear(directory: &Anchor) -> Result<(), DirectoryError> {
    directory.clear(&[MARKER, "lost+found"]).map_err(error_at(directory.path()))
}

/// What is in the way in a directory outside PGDATA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InUse {
    /// It holds something.
    NotEmpty,
    /// It holds something, and belongs to the data directory that was moved aside to there.
    Aside(PathBuf),
    /// It is a file, or lies below one.
    NoDirectory,
    /// It cannot be looked at; why.
    Unread(String),
}

impl InUse {
    /// Looks at a directory; `None` if it does not exist, or is empty.
    pub(crate) fn look(directory: &Path) -> Option<Self> {
        match fs::read_dir(directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => Some(Self::NoDirectory),
            Err(e) => Some(Self::Unread(e.to_string())),
            Ok(mut entries) => entries
                .any(|entry| entry.as_ref().map_or(true, |entry| counts(&entry.file_name())))
                .then_some(Self::NotEmpty),
        }
    }

    /// Says it of a directory that a data directory needs which is put back: no option names another place for it.
    pub(crate) fn explain_to_rollback(&self, directory: &Path) -> String {
        let shown = directory.display();
        match self {
            Self::Aside(aside) => format!(
                "{shown} belongs to the data directory that was renamed to {0}: nothing was changed\nDETAIL: A link in {0} leads there, \
                 or its walpoint-aside.json names it, and the data directory that is to come back needs this place.\nHINT: Rename {shown}, \
                 let the link in {0} lead to the new name, and run the command again.",
                aside.display()
            ),
            Self::NotEmpty => format!(
                "{shown} is not empty, and another cluster may use it: nothing was changed\nDETAIL: The data directory that is to come \
                 back needs this place.\nHINT: If no cluster uses it, rename or delete it, and run the command again."
            ),
            Self::NoDirectory | Self::Unread(_) => self.explain(directory),
        }
    }

    /// Says it of a directory to which a restore is to write.
    pub(crate) fn explain(&self, directory: &Path) -> String {
        let shown = directory.display();
        match self {
            Self::NoDirectory => DirectoryError::NoDirectory(directory.to_owned()).to_string(),
            Self::Unread(error) => format!("{shown}: {error}"),
            Self::Aside(aside) => format!(
                "{shown} belongs to the data directory that was renamed to {0}: nothing was changed\nDETAIL: A link in {0} leads there, \
                 or its walpoint-aside.json names it, so \"restore-agent rollback\" needs it.\nHINT: If a rollback was interrupted, run it \
                 again. Otherwise choose another place with --tablespace OLD=NEW, --tablespace-dir, \
                 --flatten-tablespaces or --wal-dir, as the restore did that renamed it.",
                aside.display()
            ),
            Self::NotEmpty => format!(
                "{shown} is not empty, and another cluster may use it: nothing was changed\nHINT: Choose another place with \
                 --tablespace OLD=NEW, --tablespace-dir, --wal-dir or --extra-dir. If it is left from an earlier restore, delete it."
            ),
        }
    }
}

/// Refuses a directory on which a server runs, or may be running; `vouched`: the person who restores says that none does.
/// What a crashed server left there.
pub(crate) fn require_down(pgdata: &Path, vouched: bool) -> Result<Option<LockFile>, DirectoryError> {
    match running::find(pgdata, vouched).map_err(error_at(pgdata))? {
        RunningServer::None => Ok(None),
        RunningServer::Crashed(file) => Ok(Some(file)),
        RunningServer::Running(file, reason) => {
            Err(DirectoryError::Running { pgdata: pgdata.to_owned(), file, reason: Box::new(reason) })
        }
    }
}

/// Bytes that can still be written to the filesystem of `path`, or of the nearest parent that exists.
pub(crate) fn free_space(path: &Path) -> io::Result<u64> {
    let mut at = path;
    while !at.exists() {
        at = at.parent().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    }
    let at = if at.as_os_str().is_empty() { Path::new(".") } else { at };
    let stat = rustix::fs::statvfs(at)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::marker::write;
    use super::*;

    fn marker() -> Marker {
        Marker {
            repository: "r".into(),
            cluster: "c".into(),
            lineage: "7-1".into(),
            backup: "b".into(),
            target: "latest".into(),
            requested: None,
            relative: None,
            replaces: None,
            directories: vec!["/fast".into()],
            delta: false,
            claiming: false,
        }
    }

    #[test]
    fn only_an_empty_directory_or_an_unfinished_restore_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().join("a/data");
        assert_eq!(inspect(&pgdata).unwrap(), Contents::Empty);
        // Killed while it was about to claim the directory.
        durable::create_directories(&pgdata).unwrap();
        drop(durable::create_locked(&durable::temporary_beside(&pgdata.join(MARKER))).unwrap());
        assert_eq!(inspect(&pgdata).unwrap(), Contents::Empty);
        claim(&pgdata, &marker()).unwrap();
        assert_eq!(fs::read_dir(&pgdata).unwrap().count(), 1);
        assert_eq!(inspect(&pgdata).unwrap(), Contents::Unfinished(marker()));
        complete(&pgdata);
        assert_eq!(inspect(&pgdata).unwrap(), Contents::Finished(marker()));
        release(&pgdata, &marker(), None).unwrap();
        assert_eq!(inspect(&pgdata).unwrap(), Contents::Occupied("global".into()));
    }

    /// Puts `pg_control` into place, as the end of a restore does.
    fn complete(pgdata: &Path) {
        let control = pgdata.join("global/pg_control");
        durable::create_directories(&pgdata.join("global")).unwrap();
        durable::create(&pgdata.join("waits"), b"x").unwrap();
        announce(pgdata, &marker(), &pgdata.join("waits")).unwrap();
        assert_eq!(inspect(pgdata).unwrap(), Contents::Unfinished(marker()));
        durable::rename(&pgdata.join("waits"), &control).unwrap();
    }

    #[test]
    fn a_marker_answers_neither_for_a_copy_nor_for_what_a_server_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let (pgdata, copy) = (dir.path().join("data"), dir.path().join("copy"));
        let take_along = |name: &str| {
            durable::create(&copy.join(name), &fs::read(pgdata.join(name)).unwrap()).unwrap();
        };
        durable::create_directories(&pgdata).unwrap();
        durable::create_directories(&copy.join("global")).unwrap();
        claim(&pgdata, &marker()).unwrap();
        take_along(MARKER);
        assert_eq!(inspect(&copy).unwrap(), Contents::Occupied("global".into()), "an unfinished one");
        complete(&pgdata);
        fs::remove_file(copy.join(MARKER)).unwrap();
        take_along(MARKER);
        take_along("global/pg_control");
        assert_eq!(inspect(&copy).unwrap(), Contents::Occupied("global".into()));
        let moved = dir.path().join("moved");
        durable::rename(&pgdata, &moved).unwrap();
        assert_eq!(inspect(&moved).unwrap(), Contents::Finished(marker()));
        durable::replace(&moved.join("global/pg_control"), b"started", 0o600).unwrap();
        assert_eq!(inspect(&moved).unwrap(), Contents::Occupied("global".into()));
    }

    #[test]
    fn a_cluster_that_is_being_claimed_is_not_finished() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("global")).unwrap();
        let control = dir.path().join("global/pg_control");
        durable::create(&control, b"old").unwrap();
        let claiming = Marker { claiming: true, delta: true, ..marker() };
        write(dir.path(), &claiming, Some(&control)).unwrap();
        assert_eq!(inspect(dir.path()).unwrap(), Contents::Unfinished(claiming.clone()));
        durable::replace(&control, b"written since", 0o600).unwrap();
        assert_eq!(inspect(dir.path()).unwrap(), Contents::Occupied("global".into()));
        claim(dir.path(), &claiming).unwrap();
        assert!(!dir.path().join("global/pg_control").exists());
        let claimed = Marker { claiming: false, ..claiming };
        assert_eq!(inspect(dir.path()).unwrap(), Contents::Unfinished(claimed));
    }

    #[test]
    fn claiming_takes_pg_control_away_and_clearing_keeps_the_marker() {
        let dir = tempfile::tempdir().unwrap();
        claim(dir.path(), &marker()).unwrap();
        fs::create_dir(dir.path().join("global")).unwrap();
        durable::create(&dir.path().join("global/pg_control"), b"x").unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        durable::create(&outside.path().join("kept"), b"").unwrap();
        claim(dir.path(), &marker()).unwrap();
        assert!(!dir.path().join("global/pg_control").exists());
        clear(&Anchor::open(dir.path()).unwrap()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(outside.path().join("kept").exists(), "links are not followed");
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn only_what_was_claimed_for_a_data_directory_belongs_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (pgdata, other) = (dir.path().join("data"), dir.path().join("deep/other"));
        durable::create_directories(&pgdata).unwrap();
        durable::create_directories(&other).unwrap();
        fs::create_dir(pgdata.join("global")).unwrap();
        assert!(!belongs_to(&other, &pgdata, None));
        claim_other(&other, &pgdata).unwrap();
        assert!(belongs_to(&other, &pgdata, None) && !belongs_to(&other, &dir.path().join("data2"), None));
        let marker = Marker { directories: vec![other.clone()], ..marker() };
        claim(&pgdata, &marker).unwrap();
        release(&pgdata, &marker, None).unwrap();
        assert!(!belongs_to(&other, &pgdata, None) && !pgdata.join(MARKER).exists());
        // Another's marker stays.
        claim_other(&other, &dir.path().join("data2")).unwrap();
        release(&pgdata, &marker, None).unwrap();
        assert!(other.join(MARKER).exists());
    }

    #[test]
    fn one_restore_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = hold(dir.path()).unwrap();
        assert!(matches!(hold(dir.path()), Err(DirectoryError::Busy(_))));
        drop(held);
        hold(dir.path()).unwrap();
    }

    #[test]
    fn a_file_is_no_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().canonicalize().unwrap().join("file");
        durable::create(&file, b"").unwrap();
        for path in [file.clone(), file.join("new/data")] {
            let error = resolve(&path).and_then(|path| inspect(&path)).unwrap_err();
            assert!(matches!(&error, DirectoryError::NoDirectory(path) if *path == file), "{error}");
        }
        assert_eq!(InUse::look(&file), Some(InUse::NoDirectory));
        assert!(InUse::NoDirectory.explain(&file).contains("not a directory"));
    }

    #[test]
    fn what_is_in_the_way_is_seen_and_said() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(InUse::look(dir.path()), None);
        assert_eq!(InUse::look(&dir.path().join("missing")), None);
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        assert_eq!(InUse::look(dir.path()), None);
        durable::create(&dir.path().join("x"), b"").unwrap();
        assert_eq!(InUse::look(dir.path()), Some(InUse::NotEmpty));
        assert!(InUse::NotEmpty.explain(dir.path()).contains("--tablespace OLD=NEW"));
        let aside = InUse::Aside("/data.walpoint-old-1".into());
        let of_aside = aside.explain(dir.path());
        assert!(of_aside.contains("/data.walpoint-old-1") && !of_aside.contains("delete"), "{of_aside}");
        // A rollback has no options that name a place.
        for in_use in [InUse::NotEmpty, aside, InUse::NoDirectory, InUse::Unread("denied".into())] {
            let told = in_use.explain_to_rollback(dir.path());
            assert!(told.contains(dir.path().to_str().unwrap()) && !told.contains("--"), "{told}");
        }
    }

    #[test]
    fn free_space_is_that_of_the_nearest_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_space(&dir.path().join("x/y")).unwrap() > 0);
    }
}
