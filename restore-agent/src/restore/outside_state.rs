//! The state of the directories outside the data directory: the second part of a target's state, asked once and never changed after that.
//!
//! The first part ([`super::target_state`]) is asked before anything is planned. Which directories a restore writes to outside the data
//! directory takes the manifest of the backup, which names its tablespaces and what else lay outside, and where replay creates
//! tablespaces takes the WAL of the plan. So these names are arguments here, and each directory is asked about when its name is known.
//!
//! Nothing is decided here ([`super::outside`]).

use std::path::{Path, PathBuf};

use walpoint_base::tablespace;

use super::decided::{self, Decided};
use super::directory::{self, DirectoryError, InUse};
use super::existing;
use super::identity::{self, Position};
use super::layout::Layout;
use super::named::Named;
use super::originals;
use super::places::Place;
use super::previous::{self, Immovable, Record};
use super::running::Reason;
use super::steps::RestoreMode;
use super::{reach, running};

/// What was found of all directories that a restore writes to.
#[derive(Debug)]
pub(super) struct OutsideState {
    /// The data directory among the others.
    pub(super) data: DataState,
    /// The others, in the order of the layout.
    pub(super) others: Vec<DirectoryState>,
    /// Repositories that are directories.
    pub(super) repositories: Vec<Position>,
    /// The first of the others that another data directory uses: one on which a server runs, or the one that this is a copy of. Where
    /// nothing may be written over, neither is looked for.
    pub(super) used: Option<UsedDirectory>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UsedDirectory {
    pub(super) directory: PathBuf,
    /// The other data directory.
    pub(super) data: PathBuf,
    /// Whether a server runs on it.
    pub(super) runs: bool,
}

impl UsedDirectory {
    /// Looks for the first of these directories that another data directory uses.
    fn look(pgdata: &Path, directories: &[PathBuf], decided: &Decided) -> Option<Self> {
        let of = |runs| move |(directory, data)| Self { directory, data, runs };
        let running = existing::used_by_another_server(pgdata, directories).map(of(true));
        running.or_else(|| originals::sharing(&decided.originals, directories).map(of(false)))
    }
}

/// What only the second part knows of the data directory.
#[derive(Debug)]
pub(super) struct DataState {
    pub(super) place: Place,
    /// Why root must not fill it for another user.
    pub(super) barred: Option<String>,
    pub(super) immovable: Option<Immovable>,
}

/// A directory outside.
#[derive(Debug)]
pub(super) struct DirectoryState {
    /// Its name in the layout.
    pub(super) name: PathBuf,
    /// What lies where the name leads, if that could be found out.
    pub(super) found: Result<FoundDirectory, DirectoryError>,
}

/// What lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundDirectory {
    pub(super) place: Place,
    /// Why root must not fill it for another user.
    pub(super) barred: Option<String>,
    /// Whether the marker of an unfinished restore into the same data directory is there.
    pub(super) claimed: bool,
    /// What is in the way.
    pub(super) in_use: Option<InUse>,
    /// The link of the data directory to what is in the way.
    pub(super) link: Option<OwnLink>,
    /// Whether it is where a restore puts what lay outside, unless told otherwise. No link leads there.
    pub(super) is_default_extra: bool,
    pub(super) immovable: Option<Immovable>,
}

/// A link of the data directory, which proves a directory to be its own unless the data directory is a copy of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnLink {
    /// The link, relative to the data directory.
    pub(super) link: PathBuf,
    /// Why a server could use the directory and not be seen, or why that could not be found out. Nothing, if the person who restores
    /// says that none runs.
    pub(super) hidden: Result<Option<Reason>, String>,
}

/// A place where replay creates a tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocationState {
    /// Whether the restore writes there itself.
    pub(super) restored: bool,
    /// What lies there, or why that could not be found out.
    pub(super) lies: Result<Lies, String>,
}

/// What lies where replay creates a tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lies {
    /// There is no such directory.
    Missing,
    /// Nothing of the version that will run, or what an unfinished restore into the same data directory claimed.
    Free,
    /// Directories of that version.
    Versions {
        versions: Vec<VersionDirectory>,
        /// The link of the data directory that leads there.
        link: Option<OwnLink>,
        /// The other data directory that uses it.
        other: Option<PathBuf>,
    },
}

/// What one version of PostgreSQL has in a tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VersionDirectory {
    pub(super) path: PathBuf,
    pub(super) in_use: Option<InUse>,
    pub(super) immovable: Option<Immovable>,
}

impl OutsideState {
    /// Looks at the directories of a layout.
    pub(super) fn probe(layout: &Layout, decided: &Decided, named: &Named, repositories: &[PathBuf]) -> Self {
        let pgdata = layout.pgdata();
        let others: Vec<DirectoryState> = layout
            .others()
            .into_iter()
            .map(|name| DirectoryState::probe(name, pgdata, decided, named))
            .collect();
        let found = others.iter().filter_map(|other| other.found.as_ref().ok());
        let found: Vec<PathBuf> = found.map(|found| found.place.position.path().to_owned()).collect();
        let used = match decided.mode {
            RestoreMode::New => None,
            RestoreMode::Delta { .. } | RestoreMode::Replace { .. } => {
                UsedDirectory::look(pgdata, &found, decided)
            }
        };
        Self {
            data: DataState {
                place: Place::look(pgdata.to_owned()),
                barred: reach::check(pgdata, named.pgdata, decided.user).err(),
                immovable: Immovable::look(pgdata),
            },
            others,
            repositories: repositories.iter().cloned().map(Position::of).collect(),
            used,
        }
    }
}

impl DirectoryState {
    fn probe(name: PathBuf, pgdata: &Path, decided: &Decided, named: &Named) -> Self {
        let found = directory::resolve(&name).map(|path| {
            let claimed = directory::belongs_to(&path, pgdata, decided.user);
            let in_use = previous::in_use(&path, &path, asides(decided));
            FoundDirectory {
                barred: reach::check(&name, named.has(&name), decided.user).err(),
                claimed,
                link: in_use.as_ref().filter(|_| !claimed).and_then(|_| OwnLink::look(&path, decided)),
                in_use,
                is_default_extra: path == decided::default_extra(pgdata),
                immovable: Immovable::look(&path),
                place: Place::look(path),
            }
        });
        Self { name, found }
    }
}

/// What earlier restores moved aside, as far as it can be read.
fn asides(decided: &Decided) -> &[Record] {
    decided.asides.as_ref().map_or(&[], Vec::as_slice)
}

impl OwnLink {
    fn look(directory: &Path, decided: &Decided) -> Option<Self> {
        let link = decided.link_to(directory)?;
        let hidden = if decided.vouched { Ok(None) } else { running::hidden(directory) };
        Some(Self { link, hidden: hidden.map_err(|error| error.to_string()) })
    }
}

impl LocationState {
    /// Looks at a place where replay creates a tablespace, for the major version that will run.
    pub(super) fn probe(location: &Path, major: u8, layout: &Layout, decided: &Decided) -> Self {
        let restored = layout.others().iter().any(|other| identity::same(other, location));
        let lies = match tablespace::version_directories(location, major) {
            Err(error) => Err(error.to_string()),
            Ok(None) => Ok(Lies::Missing),
            Ok(Some(versions)) => Ok(Lies::look(location, versions, layout.pgdata(), decided)),
        };
        Self { restored, lies }
    }
}

impl Lies {
    fn look(location: &Path, versions: Vec<PathBuf>, pgdata: &Path, decided: &Decided) -> Self {
        if versions.is_empty() || directory::belongs_to(location, pgdata, decided.user) {
            return Self::Free;
        }
        let used = UsedDirectory::look(pgdata, &[location.to_owned()], decided);
        Self::Versions {
            versions: versions
                .into_iter()
                .map(|path| VersionDirectory::look(path, location, decided))
                .collect(),
            link: OwnLink::look(location, decided),
            other: used.map(|used| used.data),
        }
    }
}

impl VersionDirectory {
    fn look(path: PathBuf, location: &Path, decided: &Decided) -> Self {
        let in_use = previous::in_use(&path, location, asides(decided));
        Self { in_use, immovable: Immovable::look(&path), path }
    }
}
