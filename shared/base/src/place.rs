//! Where PostgreSQL wants a file of WAL: which cluster that is, and whether it is a standby.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{SystemId, WalFileName};

/// The file in `pg_wal` that says what a recovery began with. While it is there, so are the histories that a standby has
/// seen in this recovery.
pub const RECOVERY_ORIGIN: &str = "walpoint-origin";

/// The data directory around the requested path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalDirectory {
    /// The data directory. Found in the text of the path: `pg_wal` may be a symbolic link.
    pub pgdata: PathBuf,
    /// The path's directory, `pg_wal`.
    pub wal: PathBuf,
    /// Its inode.
    pub inode: u64,
    /// The system identifier in `global/pg_control`.
    pub system_id: SystemId,
    /// `postmaster.pid` is there: a server asks, not `pg_rewind` or a person.
    pub server: bool,
    /// What kind of recovery the data directory is in.
    pub recovery: Recovery,
}

/// What kind of recovery a data directory is in, by its signal files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// No signal file: in none, or just leaving it.
    None,
    /// `recovery.signal`.
    Archive,
    /// `standby.signal`, which prevails.
    Standby,
}

impl Recovery {
    /// The recovery that the data directory is in at this moment.
    pub fn of(pgdata: &Path) -> Self {
        let signal = |name: &str| pgdata.join(name).exists();
        match (signal("standby.signal"), signal("recovery.signal")) {
            (true, _) => Self::Standby,
            (false, true) => Self::Archive,
            (false, false) => Self::None,
        }
    }
}

impl WalDirectory {
    /// What lies around the requested `path`; `None` if that is no data directory, as when a person fetches a file by
    /// hand.
    pub fn around(path: &Path) -> Option<Self> {
        let wal = up(path)?;
        let pgdata = if wal == Path::new(".") { PathBuf::from("..") } else { up(&wal)? };
        Self::at(pgdata, wal)
    }

    /// The place of a data directory; `None` if it is none.
    pub fn of(pgdata: &Path) -> Option<Self> {
        Self::at(pgdata.to_owned(), pgdata.join("pg_wal"))
    }

    fn at(pgdata: PathBuf, wal: PathBuf) -> Option<Self> {
        // ControlFileData begins with the system identifier.
        let mut system_id = [0; 8];
        File::open(pgdata.join("global/pg_control")).ok()?.read_exact(&mut system_id).ok()?;
        Some(Self {
            inode: fs::metadata(&wal).ok()?.ino(),
            system_id: SystemId(u64::from_ne_bytes(system_id)),
            server: pgdata.join("postmaster.pid").exists(),
            recovery: Recovery::of(&pgdata),
            pgdata,
            wal,
        })
    }

    /// A server that serves readers and must neither be stopped nor made to wait.
    pub fn is_standby(&self) -> bool {
        self.server && self.recovery == Recovery::Standby
    }

    /// Whether a server without a signal file asks: it is about to leave recovery, or has left it.
    pub fn leaves_recovery(&self) -> bool {
        self.server && self.recovery == Recovery::None
    }

    /// Whether a server that ends recovery asks for a history of its own `pg_wal`. With transactions that are prepared
    /// PostgreSQL 16 and later do so for the timeline they have just begun (`XlogReadTwoPhaseData`). The answer is "not in
    /// the archive", whereupon PostgreSQL reads its own file: what it is given it takes for archived, and any other answer
    /// would stop it without its signal file, to start again on the old timeline.
    pub fn has_own_history(&self, name: WalFileName) -> bool {
        self.leaves_recovery()
            && matches!(name, WalFileName::History(_))
            && self.wal.join(name.to_string()).is_file()
    }
}

/// The directory of a path, in its text; of a bare name it is `.`.
fn up(path: &Path) -> Option<PathBuf> {
    let parent = path.parent()?;
    Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable;

    #[test]
    fn a_data_directory_is_known_by_its_pg_control() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        fs::create_dir(dir.join("global")).unwrap();
        fs::create_dir(dir.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.join("elsewhere"), dir.join("pg_wal")).unwrap();
        assert!(WalDirectory::around(&dir.join("pg_wal/RECOVERYXLOG")).is_none());
        durable::create(&dir.join("global/pg_control"), &7u64.to_ne_bytes()).unwrap();
        let place = WalDirectory::around(&dir.join("pg_wal/RECOVERYXLOG")).unwrap();
        assert_eq!(
            (place.system_id, place.recovery, place.pgdata.clone()),
            (SystemId(7), Recovery::None, dir.to_owned())
        );
        assert_eq!(place.inode, fs::metadata(dir.join("elsewhere")).unwrap().ino());
        durable::create(&dir.join("standby.signal"), b"").unwrap();
        let place = WalDirectory::around(&dir.join("pg_wal/RECOVERYXLOG")).unwrap();
        assert!(place.recovery == Recovery::Standby && !place.is_standby(), "pg_rewind asks");
        durable::create(&dir.join("postmaster.pid"), b"").unwrap();
        assert!(WalDirectory::around(&dir.join("pg_wal/RECOVERYXLOG")).unwrap().is_standby());
        assert!(WalDirectory::of(dir).is_some() && WalDirectory::of(&dir.join("global")).is_none());
    }

    #[test]
    fn only_a_server_that_ends_recovery_has_an_own_history() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        fs::create_dir_all(dir.join("global")).unwrap();
        fs::create_dir_all(dir.join("pg_wal")).unwrap();
        durable::create(&dir.join("global/pg_control"), &7u64.to_ne_bytes()).unwrap();
        let segment = "000000020000000000000003";
        for name in ["00000002.history", segment] {
            durable::create(&dir.join("pg_wal").join(name), b"").unwrap();
        }
        let has = |name: &str| WalDirectory::of(dir).unwrap().has_own_history(name.parse().unwrap());
        assert!(!has("00000002.history"), "no server asks");
        durable::create(&dir.join("postmaster.pid"), b"").unwrap();
        assert!(has("00000002.history") && !has("00000003.history") && !has(segment));
        durable::create(&dir.join("recovery.signal"), b"").unwrap();
        assert!(!has("00000002.history"), "it recovers");
    }
}
