//! The marker of an unfinished restore: put there before anything is changed, believed only where no other user could have put
//! it, and removed last.
//!
//! The one in the data directory says what the restore wants and which directory it is about ([`super::about`]); one in a directory
//! outside says for which data directory that is filled.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use walpoint_base::durable;
use walpoint_pg::control::CONTROL_FILE;

use super::about::About;
use super::{DirectoryError, error_at};
use crate::restore::beneath::Anchor;
use crate::restore::owners::Owner;
use crate::restore::reach;
use crate::restore::requested::RequestedRecovery;

/// The file that marks an unfinished restore, in the data directory and in those outside it that belong to it.
pub(crate) const MARKER: &str = "walpoint-restore.json";

/// What an unfinished restore was about to do; a re-run has to want the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// The repository's id.
    pub(crate) repository: String,
    /// The cluster's name.
    pub(crate) cluster: String,
    /// What is the same of the lineage in each repository that has it; empty in the marker of an older program.
    #[serde(default)]
    pub(crate) lineage: String,
    /// The backup that is written.
    pub(crate) backup: String,
    /// The target, as a person reads it.
    pub(crate) target: String,
    /// How recovery was asked for; `None` in the marker of an older program.
    #[serde(default)]
    pub(crate) requested: Option<RequestedRecovery>,
    /// A target time that is another moment each time it is read ("5 minutes ago"), and the moment it meant.
    #[serde(default)]
    pub(crate) relative: Option<RelativeTime>,
    /// Where the data directory was moved in whose place this one comes, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaces: Option<PathBuf>,
    /// Directories outside PGDATA that it writes to.
    pub(crate) directories: Vec<PathBuf>,
    /// Whether it repairs what was there, which is then not its own to empty.
    #[serde(default)]
    pub(crate) delta: bool,
    /// Nothing was changed yet: `pg_control` is the old one.
    #[serde(default)]
    pub(crate) claiming: bool,
}

/// The file: a marker, and what it is about.
#[derive(Serialize, Deserialize)]
struct MarkerFile {
    #[serde(flatten)]
    marker: Marker,
    /// `None` in the marker of an older program.
    #[serde(default)]
    about: Option<About>,
}

impl MarkerFile {
    /// Whether it counts in a directory. One that does not say what it is about is believed only where there is nothing that a server could
    /// have written to.
    fn counts_in(&self, pgdata: &Path) -> io::Result<bool> {
        let control = pgdata.join(CONTROL_FILE);
        let control = control.exists().then_some(control.as_path());
        match &self.about {
            Some(about) => Ok(about.counts_in(&About::of(pgdata, control)?)),
            None => Ok(control.is_none()),
        }
    }
}

/// A time relative to now, and what it meant when the restore began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RelativeTime {
    /// As it was written.
    pub(crate) text: String,
    /// In microseconds since 2000-01-01 UTC.
    pub(crate) meant: i64,
}

/// The marker of an unfinished restore. A damaged one counts as none, as does one that is not to be believed or is about another
/// directory: then this one is simply not empty.
pub(super) fn read_marker(pgdata: &Path) -> Result<Option<Marker>, DirectoryError> {
    let path = pgdata.join(MARKER);
    let read = || {
        let anchor = Anchor::open(pgdata)?;
        let Some(mut file) = open_marker(&anchor)? else { return Ok(None) };
        let meta = anchor.directory().metadata()?;
        let owner = Some(Owner { uid: meta.uid(), gid: meta.gid() }).filter(|owner| owner.uid != 0);
        if !is_believed(&anchor, &file, owner)? {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let Ok(file) = serde_json::from_slice::<MarkerFile>(&bytes) else { return Ok(None) };
        Ok(file.counts_in(pgdata)?.then_some(file.marker))
    };
    read().map_err(error_at(&path))
}

/// Opens the marker in a directory, if it has one. What is no regular file is none.
fn open_marker(anchor: &Anchor) -> io::Result<Option<File>> {
    match reach::plain_at(anchor.directory(), Path::new(MARKER)) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(e),
        file => Ok(file.ok()),
    }
}

/// Whether a marker counts. For root it does in the directory of the user for whom it acts, and in one of its own to which
/// nobody else can write, if the marker is its own too.
fn is_believed(anchor: &Anchor, marker: &File, user: Option<Owner>) -> io::Result<bool> {
    if !rustix::process::geteuid().is_root() {
        return Ok(true);
    }
    let (directory, marker) = (anchor.directory().metadata()?, marker.metadata()?);
    let own = directory.uid() == 0 && directory.mode() & 0o022 == 0 && marker.uid() == 0;
    let theirs = |user: Owner| directory.uid() == user.uid && [0, user.uid].contains(&marker.uid());
    Ok(own || user.is_some_and(theirs))
}

/// Gives the directory, which exists, a mode that PostgreSQL accepts and puts the marker into it, durably; from then on
/// PostgreSQL cannot start there.
pub(crate) fn claim(pgdata: &Path, marker: &Marker) -> Result<(), DirectoryError> {
    let mode = fs::metadata(pgdata).map_err(error_at(pgdata))?.permissions().mode() & 0o7777;
    // PostgreSQL starts only in a directory with one of these two modes.
    if !matches!(mode, 0o700 | 0o750) {
        fs::set_permissions(pgdata, fs::Permissions::from_mode(0o700)).map_err(error_at(pgdata))?;
    }
    durable::remove_abandoned(pgdata).map_err(error_at(pgdata))?;
    let control = pgdata.join(CONTROL_FILE);
    // With a marker that does not say so, a pg_control would be that of a finished restore.
    let claiming = control.exists();
    write(pgdata, &Marker { claiming, ..marker.clone() }, claiming.then_some(control.as_path()))?;
    if claiming {
        durable::remove(&control).or_else(no_parent).map_err(error_at(&control))?;
        write(pgdata, &Marker { claiming: false, ..marker.clone() }, None)?;
    }
    Ok(())
}

/// Says in the marker which `pg_control` completes the restore: `control`, which is about to get its name.
pub(crate) fn announce(pgdata: &Path, marker: &Marker, control: &Path) -> Result<(), DirectoryError> {
    write(pgdata, &Marker { claiming: false, ..marker.clone() }, Some(control))
}

/// Puts a marker into a directory. `control`: beside which `pg_control` it counts there.
pub(super) fn write(pgdata: &Path, marker: &Marker, control: Option<&Path>) -> Result<(), DirectoryError> {
    let path = pgdata.join(MARKER);
    let about = About::of(pgdata, control).map_err(error_at(control.unwrap_or(pgdata)))?;
    let file = MarkerFile { marker: marker.clone(), about: Some(about) };
    let json = serde_json::to_vec_pretty(&file).map_err(io::Error::from).map_err(error_at(&path))?;
    durable::replace(&path, &json, 0o600).map_err(error_at(&path))
}

/// A file in a directory that does not exist is gone as well.
fn no_parent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Marks a directory outside PGDATA, which exists, as one that the restore into `pgdata` fills.
pub(crate) fn claim_other(other: &Path, pgdata: &Path) -> Result<(), DirectoryError> {
    durable::remove_abandoned(other).map_err(error_at(other))?;
    let path = other.join(MARKER);
    durable::replace(&path, pgdata.as_os_str().as_encoded_bytes(), 0o600).map_err(error_at(&path))
}

/// Opens a directory outside PGDATA that an unfinished restore into `pgdata` claimed; `None` if none did. `user`: for whom
/// root acts.
pub(crate) fn claimed(other: &Path, pgdata: &Path, user: Option<Owner>) -> Option<Anchor> {
    let anchor = Anchor::open(other).ok()?;
    is_claimed(&anchor, pgdata, user).is_ok_and(|claimed| claimed).then_some(anchor)
}

/// Whether an open directory was claimed by an unfinished restore into `pgdata`.
pub(crate) fn is_claimed(anchor: &Anchor, pgdata: &Path, user: Option<Owner>) -> io::Result<bool> {
    let Some(marker) = open_marker(anchor)? else { return Ok(false) };
    if !is_believed(anchor, &marker, user)? {
        return Ok(false);
    }
    let wanted = pgdata.as_os_str().as_encoded_bytes();
    let mut named = Vec::new();
    marker.take(wanted.len() as u64 + 1).read_to_end(&mut named)?;
    Ok(named == wanted)
}

/// Whether a directory outside PGDATA was claimed by an unfinished restore into `pgdata`.
pub(crate) fn belongs_to(other: &Path, pgdata: &Path, user: Option<Owner>) -> bool {
    claimed(other, pgdata, user).is_some()
}

/// Ends the restore: the cluster is complete.
pub(crate) fn release(pgdata: &Path, marker: &Marker, user: Option<Owner>) -> Result<(), DirectoryError> {
    // The run that put `pg_control` into place may have been killed before it synced the name.
    let global = pgdata.join("global");
    durable::sync_directory(&global).map_err(error_at(&global))?;
    for other in &marker.directories {
        if let Some(anchor) = claimed(other, pgdata, user) {
            disown(&anchor)?;
        }
    }
    disown(&Anchor::open(pgdata).map_err(error_at(pgdata))?)
}

/// Removes the marker of a directory.
pub(crate) fn disown(directory: &Anchor) -> Result<(), DirectoryError> {
    let path = directory.path().join(MARKER);
    durable::remove(&path).map_err(error_at(&path))
}
