//! What a restore does with the directories outside the data directory, decided from their state alone, and from what is done with the
//! data directory.
//!
//! All here is pure, and `outside/tests.rs` has its tables. A directory is filled if nothing is in the way there, or if an unfinished
//! restore into the same data directory had claimed it. What else lies there has to be the data directory's own: then it is treated as
//! that is, repaired or moved aside. Where replay creates tablespaces is decided by itself ([`location`]), because it is known later.

use std::path::{Path, PathBuf};

use super::identity::Position;
use super::outside_state::{
    DataState, FoundDirectory, Lies, LocationState, OutsideState, OwnLink, VersionDirectory,
};
use super::places::{self, Place};
use super::previous::Immovable;
use super::refusal::OutsideRefusal;
use super::steps::Step;

/// What is done with the data directory, as far as it decides about the directories outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OfData<'a> {
    /// It is written anew. No directory outside is its own.
    Written,
    Repaired,
    /// It is moved aside.
    Moved,
    /// An interrupted run had begun to move it aside, and these had to follow.
    Moving {
        /// The directories.
        pending: &'a [PathBuf],
    },
}

impl<'a> OfData<'a> {
    /// By the steps that are decided. `pending`: what an interrupted run had to move yet.
    pub(super) fn by(steps: &[Step], pending: &'a [PathBuf]) -> Self {
        let does = |step| steps.contains(&step);
        if does(Step::MoveAside) {
            Self::Moved
        } else if does(Step::FinishMovingAside) {
            Self::Moving { pending }
        } else if does(Step::Prune) {
            Self::Repaired
        } else {
            Self::Written
        }
    }
}

/// What is done with a directory outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DirectoryStep {
    /// It is made, if it is missing, and filled.
    Fill,
    /// It is filled again: an unfinished restore claimed it.
    Reclaim,
    /// It is repaired. The link proves whose it is.
    Repair {
        /// Relative to the data directory.
        link: PathBuf,
    },
    /// It is moved aside with the data directory, and the link follows.
    MoveAside {
        /// Relative to the data directory; none for what the server does not know of.
        link: Option<PathBuf>,
    },
    /// It is moved aside as an interrupted run had planned.
    FinishMovingAside,
}

/// A directory outside the data directory, with what is done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OutsideDirectory {
    pub(super) path: PathBuf,
    pub(super) step: DirectoryStep,
}

/// What a restore does with each directory of its layout, in its order, or why it does nothing.
pub(super) fn decide(
    state: &OutsideState,
    data: OfData<'_>,
) -> Result<Vec<OutsideDirectory>, OutsideRefusal> {
    let mut found = Vec::new();
    for other in &state.others {
        match &other.found {
            Ok(directory) => found.push(directory),
            Err(_) => return Err(OutsideRefusal::Unread { name: other.name.clone() }),
        }
    }
    let places: Vec<&Place> = found.iter().map(|found| &found.place).chain([&state.data.place]).collect();
    places::require_apart(places, &state.repositories)?;
    found.iter().try_for_each(|found| require_reach(found))?;
    let used = |runs| state.used.iter().find(|used| used.runs == runs).cloned().map(OutsideRefusal::Used);
    used(true).map_or(Ok(()), Err)?;
    found.iter().try_for_each(|found| require_own(found, data))?;
    found
        .iter()
        .try_for_each(|found| found.link.as_ref().map_or(Ok(()), |l| require_visible(path(found), l)))?;
    used(false).map_or(Ok(()), Err)?;
    let steps = found.iter().map(|found| step(found, data)).collect::<Result<Vec<_>, _>>()?;
    if data == OfData::Moved {
        let moved =
            found.iter().zip(&steps).filter(|(_, step)| matches!(step, DirectoryStep::MoveAside { .. }));
        let moved = moved.map(|(found, _)| (path(found), found.immovable.as_ref()));
        let own = (state.data.place.position.path(), state.data.immovable.as_ref());
        moved.chain([own]).try_for_each(|(directory, immovable)| require_movable(directory, immovable))?;
    }
    let directory =
        |(found, step): (&&FoundDirectory, _)| OutsideDirectory { path: path(found).to_owned(), step };
    Ok(found.iter().zip(steps).map(directory).collect())
}

/// Refuses a data directory that root must not fill for another user, if it is to be proven that it may.
pub(super) fn require_data(data: &DataState, is_to_be_proven: bool) -> Result<(), OutsideRefusal> {
    match data.barred.as_ref().filter(|_| is_to_be_proven) {
        Some(why) => Err(OutsideRefusal::Barred { why: why.clone() }),
        None => Ok(()),
    }
}

/// Every place that is written to.
pub(super) fn positions(state: &OutsideState) -> impl Iterator<Item = &Position> {
    let others = state.others.iter().filter_map(|other| other.found.as_ref().ok());
    others.map(|found| &found.place).chain([&state.data.place]).map(|place| &place.position)
}

fn path(found: &FoundDirectory) -> &Path {
    found.place.position.path()
}

/// Refuses a directory that root must not fill for another user.
fn require_reach(found: &FoundDirectory) -> Result<(), OutsideRefusal> {
    match &found.barred {
        Some(why) if !found.claimed => Err(OutsideRefusal::Barred { why: why.clone() }),
        _ => Ok(()),
    }
}

/// Refuses a directory in which something lies that is not the data directory's.
fn require_own(found: &FoundDirectory, data: OfData<'_>) -> Result<(), OutsideRefusal> {
    let Some(in_use) = found.in_use.as_ref().filter(|_| !found.claimed) else { return Ok(()) };
    // Moving loses nothing, and an earlier restore made it by itself.
    let is_made = found.is_default_extra && matches!(data, OfData::Moved | OfData::Moving { .. });
    match found.link.is_some() || is_made {
        true => Ok(()),
        false => Err(OutsideRefusal::InUse { directory: path(found).to_owned(), in_use: in_use.clone() }),
    }
}

/// Refuses a directory that only a link proves to belong to the data directory, where a server could hide: the data directory may be a
/// copy, whose links lead to the original's directories.
fn require_visible(directory: &Path, link: &OwnLink) -> Result<(), OutsideRefusal> {
    let directory = || directory.to_owned();
    match &link.hidden {
        Ok(None) => Ok(()),
        Ok(Some(reason)) => Err(OutsideRefusal::Hidden { directory: directory(), reason: reason.clone() }),
        Err(error) => Err(OutsideRefusal::Unseen { directory: directory(), error: error.clone() }),
    }
}

/// What is done with a directory against which nothing speaks but what is done with the data directory.
fn step(found: &FoundDirectory, data: OfData<'_>) -> Result<DirectoryStep, OutsideRefusal> {
    if found.claimed {
        return Ok(DirectoryStep::Reclaim);
    }
    let Some(in_use) = &found.in_use else { return Ok(DirectoryStep::Fill) };
    let link = found.link.as_ref().map(|own| own.link.clone());
    match (data, link) {
        (OfData::Repaired, Some(link)) => Ok(DirectoryStep::Repair { link }),
        (OfData::Moved, link) => Ok(DirectoryStep::MoveAside { link }),
        (OfData::Moving { pending }, _) if pending.iter().any(|waits| waits == path(found)) => {
            Ok(DirectoryStep::FinishMovingAside)
        }
        (OfData::Written | OfData::Repaired | OfData::Moving { .. }, _) => {
            Err(OutsideRefusal::InUse { directory: path(found).to_owned(), in_use: in_use.clone() })
        }
    }
}

/// Refuses a directory that is to be moved aside and cannot be.
fn require_movable(directory: &Path, immovable: Option<&Immovable>) -> Result<(), OutsideRefusal> {
    match immovable {
        None => Ok(()),
        Some(immovable) => {
            Err(OutsideRefusal::Fixed { directory: directory.to_owned(), immovable: immovable.clone() })
        }
    }
}

/// What is done where replay creates a tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LocationStep<'a> {
    /// Replay finds nothing of this version there, or the restore itself sees to what lies there.
    Nothing,
    /// There is no such directory: replay would stop.
    WarnOfMissing,
    /// What this version has there is the data directory's own: it goes out of the way.
    PutAway(&'a [VersionDirectory]),
    /// What this version has there is another cluster's, and replay would overwrite it.
    Refuse {
        versions: &'a [VersionDirectory],
        /// The other data directory that uses it, if one was found.
        other: Option<&'a Path>,
    },
}

/// What is done at one place where replay creates a tablespace.
pub(super) fn location<'a>(
    location: &Path,
    state: &'a LocationState,
) -> Result<LocationStep<'a>, OutsideRefusal> {
    let lies = state.lies.as_ref().map_err(|error| OutsideRefusal::UnreadLocation {
        location: location.to_owned(),
        error: error.clone(),
    })?;
    match lies {
        Lies::Missing if state.restored => Ok(LocationStep::Nothing),
        Lies::Missing => Ok(LocationStep::WarnOfMissing),
        Lies::Free => Ok(LocationStep::Nothing),
        Lies::Versions { versions, link, other } => {
            // In a `pg_wal` no cluster has a tablespace.
            let link = link.as_ref().filter(|own| own.link != Path::new("pg_wal"));
            let (Some(link), None) = (link, other) else {
                return Ok(LocationStep::Refuse { versions, other: other.as_deref() });
            };
            require_visible(location, link)?;
            Ok(if state.restored { LocationStep::Nothing } else { LocationStep::PutAway(versions) })
        }
    }
}

/// Refuses what lies where replay creates tablespaces and has to go aside with the data directory, but cannot.
pub(super) fn require_moves(versions: &[VersionDirectory], data: OfData<'_>) -> Result<(), OutsideRefusal> {
    for version in versions {
        match data {
            OfData::Written | OfData::Repaired => {}
            OfData::Moved => require_movable(&version.path, version.immovable.as_ref())?,
            OfData::Moving { pending } => match &version.in_use {
                Some(in_use) if !pending.contains(&version.path) => {
                    let (directory, in_use) = (version.path.clone(), in_use.clone());
                    return Err(OutsideRefusal::InUse { directory, in_use });
                }
                _ => {}
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
