//! The end of a restore: what makes a copied directory a cluster that recovers to the target.
//!
//! Order matters. Everything but `pg_control` is on disk before `pg_control` appears under its name: up to that rename
//! PostgreSQL refuses to start, after it the cluster is complete.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use walpoint_base::{PgMajor, durable};
use walpoint_pg::label::{BACKUP_LABEL_FILE, TABLESPACE_MAP_FILE, TablespaceMap};
use walpoint_plan::restore::Signal;

use super::owners::Owner;
use crate::settings;

/// `pg_control` while the restore is under way.
pub(crate) const UNFINISHED_CONTROL: &str = "global/.walpoint-tmp-pg_control";

/// What is written beside the files of the backup.
pub(crate) struct Finish<'a> {
    /// The data directory.
    pub(crate) pgdata: &'a Path,
    /// The version that will run here.
    pub(crate) major: PgMajor,
    /// `backup_label`, unchanged.
    pub(crate) backup_label: &'a [u8],
    /// `tablespace_map` with the new places; PostgreSQL makes the links anew from it.
    pub(crate) tablespace_map: TablespaceMap,
    /// Settings for `postgresql.auto.conf`, in order.
    pub(crate) settings: Vec<(String, String)>,
    /// The signal file.
    pub(crate) signal: Signal,
    /// Who owns what is written, if not this process's user.
    pub(crate) owner: Option<Owner>,
    /// Gives the data directory itself its owner and mode: until then nobody else can change what lies directly in it.
    pub(crate) hand_over: &'a dyn Fn() -> io::Result<()>,
}

impl fmt::Debug for Finish<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finish").field("pgdata", &self.pgdata).finish_non_exhaustive()
    }
}

impl Finish<'_> {
    /// Writes all of it, `pg_control` last.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        self.file(BACKUP_LABEL_FILE, self.backup_label)?;
        let map = self.pgdata.join(TABLESPACE_MAP_FILE);
        if self.tablespace_map.tablespaces.is_empty() {
            durable::remove(&map).with_context(|| format!("{} cannot be removed", map.display()))?;
        } else {
            self.file(TABLESPACE_MAP_FILE, &self.tablespace_map.to_bytes(self.major))?;
        }
        let auto = self.pgdata.join("postgresql.auto.conf");
        let existing = read_if_plain(&auto).with_context(|| format!("{} cannot be read", auto.display()))?;
        let text = settings::rewrite(&existing, &self.settings, self.major.get());
        self.file("postgresql.auto.conf", &text)?;
        // A backup of a standby brings its signal file along.
        for signal in [Signal::Recovery, Signal::Standby] {
            if signal != self.signal {
                let path = self.pgdata.join(signal.file_name());
                durable::remove(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
            }
        }
        self.file(self.signal.file_name(), b"")?;
        (self.hand_over)()
            .with_context(|| format!("{} cannot be handed over to its owner", self.pgdata.display()))?;
        let control = self.pgdata.join(walpoint_pg::control::CONTROL_FILE);
        durable::rename(&self.pgdata.join(UNFINISHED_CONTROL), &control)
            .with_context(|| format!("{}, the last file, cannot be put in place", control.display()))
    }

    fn file(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let path: PathBuf = self.pgdata.join(name);
        durable::replace(&path, content, 0o600)
            .with_context(|| format!("{} cannot be written", path.display()))?;
        if let Some(owner) = self.owner {
            owner
                .give(&path)
                .with_context(|| format!("{} cannot be given to uid {}", path.display(), owner.uid))?;
        }
        Ok(())
    }
}

/// The content of a file; empty if there is none. A link is not followed: a hostile backup could point it anywhere.
fn read_if_plain(path: &Path) -> io::Result<Vec<u8>> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => fs::read(path),
        Ok(_) => Ok(Vec::new()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pg_control_appears_last_and_other_signals_go() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path();
        fs::create_dir(pgdata.join("global")).unwrap();
        durable::create(&pgdata.join(UNFINISHED_CONTROL), b"control").unwrap();
        durable::create(&pgdata.join("standby.signal"), b"").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", pgdata.join("postgresql.auto.conf")).unwrap();
        let mut finish = Finish {
            pgdata,
            major: PgMajor::new(17).unwrap(),
            backup_label: b"label",
            tablespace_map: TablespaceMap { tablespaces: Vec::new() },
            settings: vec![("archive_mode".into(), "off".into())],
            signal: Signal::Recovery,
            owner: None,
            hand_over: &|| Ok(()),
        };
        finish.write().unwrap();
        assert_eq!(fs::read(pgdata.join("global/pg_control")).unwrap(), b"control");
        assert!(pgdata.join("recovery.signal").exists() && !pgdata.join("standby.signal").exists());
        let auto = fs::read_to_string(pgdata.join("postgresql.auto.conf")).unwrap();
        assert!(
            auto.contains("archive_mode = 'off'") && !auto.contains("root:"),
            "a link is replaced, not followed"
        );
        finish.signal = Signal::Standby;
        assert!(finish.write().is_err(), "without an unfinished pg_control there is nothing to finish");
    }
}
