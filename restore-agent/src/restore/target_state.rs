//! The state of the directory that a cluster is restored into: asked once, before anything is planned, and never changed after that. The
//! directories outside are the second part of it, asked when the plan and the backup have named them ([`super::outside_state`]).
//!
//! Nothing is decided here. What could not be found out is part of the state, because whether it matters depends on what is decided
//! ([`super::steps`]). Whether an archive has the WAL that lies there is not part of it: that takes a plan ([`super::stored`]).

use std::io;
use std::path::{Path, PathBuf};

use walpoint_base::WalFileName;

use super::directory::{self, Contents, DirectoryError, MARKER, error_at};
use super::existing::{self, Existing};
use super::kept::{self, Kept};
use super::previous::{self, Record, Succession};
use super::running::{self, RunningServer};

/// What a server writes when it starts; no backup has it.
const SERVER_OPTIONS: &str = "postmaster.opts";

/// What was found.
#[derive(Debug)]
pub(super) struct TargetState {
    /// Whether a server runs there.
    pub(super) server: RunningServer,
    /// What lies there.
    pub(super) contents: Result<Contents, DirectoryError>,
    /// The data directory that is there, with its links; `None` if it is no data directory.
    pub(super) present: io::Result<Option<Existing>>,
    /// Files that wait in its `pg_wal` to be archived.
    pub(super) waiting: io::Result<Vec<WalFileName>>,
    /// The data directory that an earlier restore moved aside from there last.
    pub(super) previous: anyhow::Result<Option<Previous>>,
    /// All that were moved aside, the latest first.
    pub(super) asides: anyhow::Result<Vec<Record>>,
    /// What repairs of it kept, oldest first.
    pub(super) kept: anyhow::Result<Vec<Kept>>,
}

/// A data directory that was moved aside.
#[derive(Debug)]
pub(super) struct Previous {
    pub(super) record: Record,
    /// Whether all that belongs to it was moved, and its links lead there.
    pub(super) complete: bool,
    /// Directories that were to be moved with it and are still where they were.
    pub(super) pending: Vec<PathBuf>,
    /// What lies where it was moved to.
    pub(super) existing: io::Result<Option<Existing>>,
}

impl TargetState {
    /// Looks at a directory. `vouched`: the person who restores says that no server runs there.
    pub(super) fn probe(pgdata: &Path, vouched: bool) -> Result<Self, DirectoryError> {
        let server = running::find(pgdata, vouched).map_err(error_at(pgdata))?;
        Ok(Self {
            server,
            contents: contents(pgdata),
            present: Existing::look(pgdata),
            waiting: existing::waiting(pgdata),
            previous: previous::latest(pgdata).map(|record| record.map(Previous::look)),
            asides: previous::all(pgdata),
            kept: kept::all(pgdata),
        })
    }
}

impl Previous {
    fn look(record: Record) -> Self {
        Self {
            complete: record.is_complete(),
            pending: record.pending().map(Path::to_owned).collect(),
            existing: Existing::look(&record.aside),
            record,
        }
    }

    /// The data directory with everything under the names it had.
    pub(super) fn under_its_names(&self) -> Option<Existing> {
        let existing = self.existing.as_ref().ok()?.clone()?;
        Some(existing.renamed(|path| self.record.original(path)))
    }

    /// What is known of the directory that came in its place, where this lies now. Only if none did is it the predecessor of what is
    /// restored.
    pub(super) fn succession(&self, contents: &Contents) -> Succession {
        match contents {
            Contents::Occupied(_) => Succession::Completed,
            Contents::Unfinished(marker) | Contents::Finished(marker) if marker.replaces.is_some() => {
                match marker.replaces.as_ref() == Some(&self.record.aside) {
                    true => Succession::Interrupted,
                    false => Succession::Completed,
                }
            }
            Contents::Empty | Contents::Unfinished(_) | Contents::Finished(_) => self.record.succession(),
        }
    }

    /// Whether it is the predecessor of what is restored, or may be.
    pub(super) fn is_predecessor(&self, contents: &Contents) -> bool {
        self.succession(contents) != Succession::Completed
    }

    /// Whether nothing was moved since another look.
    pub(super) fn is_as(&self, earlier: &Self) -> bool {
        (&self.record, self.complete, &self.pending) == (&earlier.record, earlier.complete, &earlier.pending)
    }
}

/// What lies in a directory, as far as a restore is concerned.
pub(super) fn contents(pgdata: &Path) -> Result<Contents, DirectoryError> {
    let contents = directory::inspect(pgdata)?;
    // A server that started there has made the restored cluster one of its own; it takes the label away. A repair leaves
    // an earlier server's file until it removes what the backup does not have.
    let started = pgdata.join(SERVER_OPTIONS).exists();
    let used = match &contents {
        Contents::Finished(_) => started || !pgdata.join("backup_label").exists(),
        Contents::Unfinished(marker) => started && !marker.delta,
        Contents::Empty | Contents::Occupied(_) => false,
    };
    Ok(match used {
        true => Contents::Occupied(if started { SERVER_OPTIONS } else { MARKER }.to_owned()),
        false => contents,
    })
}
