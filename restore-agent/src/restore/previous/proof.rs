//! Which records are followed: those that say what a restore writes, and, of another user's, those that want nothing of root
//! that this user could not do by himself. Found out before anything is moved.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{RECORD, Record, SUFFIX, beside};
use crate::restore::owners::Owner;
use crate::restore::reach;

impl Record {
    /// Refuses, before anything is moved, a record that must not be followed.
    pub(crate) fn prove(&self) -> anyhow::Result<()> {
        self.check(self.user())
    }

    /// Refuses, before anything is moved, a record that says what no restore wrote, and one of another user's that wants
    /// root to move what that user could not move by himself.
    pub(super) fn check(&self, user: Option<Owner>) -> anyhow::Result<()> {
        let refused =
            "nothing was changed\nHINT: Put that directory and its tablespaces to their places by hand.";
        let shown = self.aside.display();
        let link = |link: &PathBuf| {
            let oid = link.strip_prefix("pg_tblspc").ok().and_then(Path::to_str);
            link == Path::new("pg_wal") || oid.is_some_and(|oid| oid.parse::<u32>().is_ok())
        };
        let name = |directory: &Path| Some(format!("{}{SUFFIX}", directory.file_name()?.to_string_lossy()));
        let time = || self.aside.file_name()?.to_str()?.strip_prefix(&name(&self.pgdata)?);
        let planned = time().is_some_and(|time| {
            let beside = |from: &Path, to: &Path| beside(from, time) == to;
            beside(&self.pgdata, &self.aside)
                && self.moves.iter().all(|m| beside(&m.from, &m.to) && m.link.as_ref().is_none_or(link))
        });
        if !planned {
            bail!("the record {RECORD} of {shown} is not what a restore writes: {refused}");
        }
        for moved in &self.moves {
            match reach::parent(&moved.from, self.trusted, user) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                parent => drop(parent.with_context(|| {
                    format!(
                        "the record {RECORD} of {shown} says that {} belongs to {}: nothing was changed\nHINT: If that is so, \
                         give the record to root.",
                        moved.to.display(),
                        moved.from.display()
                    )
                })?),
            }
        }
        Ok(())
    }
}
