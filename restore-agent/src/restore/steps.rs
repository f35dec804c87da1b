//! What a restore does with what lies at its target, decided from the state of that and the mode of the restore alone.
//!
//! [`decide`] is pure: it asks nothing, and `steps/tests.rs` is its table. It is asked before the plan is made, because a target that
//! is refused needs none; what only the plan can say, whose cluster it is ([`cluster`]) and which WAL an archive has ([`archived`]), is
//! decided when it is their turn. What a restore does at every target is no step of these: [`super::execute`] has the order of all.

use std::path::PathBuf;

use walpoint_base::{SystemId, WalFileName};

use super::directory::{Contents, Marker};
use super::refusal::{Refusal, Unread};
use super::running::RunningServer;
use super::stored::Whose;
use super::target_state::TargetState;

/// What is to become of a data directory that is there. `--standby` and `--resume-archiving` are no part of it: they change what the
/// restored server does, not what may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestoreMode {
    /// There must be none.
    New,
    /// It is repaired.
    Delta {
        /// Whatever of its WAL recovery leaves out.
        discard_wal: bool,
        /// Whosever it is.
        overwrite_other: bool,
    },
    /// It is moved aside.
    Replace {
        /// Whatever of its WAL recovery leaves out.
        discard_wal: bool,
    },
}

/// Which data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// The one that is there.
    Present,
    /// The one that an earlier restore moved aside.
    Previous,
}

/// What is done, in the order in which it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Removes the marker of a restore that ended: nothing else was left to do.
    EndFinished(Box<Marker>),
    /// Takes what the links of a data directory lead to for its own.
    FollowLinks(Which),
    /// Refuses a data directory that is not the plan's cluster's.
    ProveCluster,
    /// Finds out which WAL in the `pg_wal` of a data directory no archive has.
    FindWal(Which, Whose),
    /// Refuses a data directory in which WAL waits that no archive has.
    ProveArchived,
    /// Finds out which WAL that earlier restores of the directory kept or moved aside no archive has, whatever is left of it.
    LookBack,
    /// Recovers without WAL that is not known, cannot be replayed or lies behind the end of recovery. Without this it is refused.
    LeaveWal,
    /// Refuses a directory that root must not fill for another user.
    ProveReach,
    /// Refuses filesystems without enough space.
    MeasureSpace,
    /// Moves the data directory aside.
    MoveAside,
    /// Moves what an interrupted run had not moved yet; refuses what else is in the way.
    FinishMovingAside,
    /// Continues an interrupted repair, or repairs what an interrupted restore wrote, which had claimed these directories.
    Resume(Vec<PathBuf>),
    /// Empties what an interrupted restore wrote, which had claimed these directories.
    StartOver(Vec<PathBuf>),
    /// Keeps WAL that no archive has, and tablespaces that replay would overwrite.
    Keep,
    /// Removes what the backup does not have.
    Prune,
}

/// What a restore does with what lies at its target, or why it does nothing.
pub(super) fn decide(state: &TargetState, mode: RestoreMode) -> Result<Vec<Step>, Refusal> {
    if let RunningServer::Running(file, reason) = &state.server {
        return Err(Refusal::Running { file: file.clone(), reason: reason.clone() });
    }
    let contents = state.contents.as_ref().map_err(|_| Refusal::Unread(Unread::Contents))?;
    match (contents, mode) {
        (Contents::Finished(marker), _) => Ok(vec![Step::EndFinished(Box::new(marker.clone()))]),
        (Contents::Occupied(example), RestoreMode::New) => {
            Err(Refusal::NotEmpty { example: example.clone() })
        }
        (Contents::Unfinished(marker), RestoreMode::New | RestoreMode::Replace { .. }) if marker.delta => {
            Err(Refusal::OnlyDelta { backup: marker.backup.clone() })
        }
        (_, RestoreMode::New) => write_anew(state, contents),
        (_, RestoreMode::Delta { discard_wal, overwrite_other }) => {
            repair(state, contents, discard_wal, overwrite_other)
        }
        (Contents::Occupied(example), RestoreMode::Replace { discard_wal }) => {
            replace(state, example, discard_wal)
        }
        (_, RestoreMode::Replace { discard_wal }) => replace_again(state, contents, discard_wal),
    }
}

/// Into an empty directory, or over what an interrupted restore wrote, which may have moved a data directory aside.
fn write_anew(state: &TargetState, contents: &Contents) -> Result<Vec<Step>, Refusal> {
    let Contents::Unfinished(marker) = contents else {
        let mut steps: Vec<Step> = look_back(state).collect();
        steps.extend([Step::ProveReach, Step::MeasureSpace]);
        return Ok(steps);
    };
    let mut steps = Vec::new();
    if has_previous(state, contents)? {
        steps.push(Step::FindWal(Which::Previous, Whose::Own));
    }
    steps.extend(look_back(state));
    steps.push(Step::StartOver(marker.directories.clone()));
    Ok(steps)
}

/// Whether a data directory lies where an interrupted restore moved one. What cannot be read is refused: it may have WAL that is nowhere
/// else.
fn has_previous(state: &TargetState, contents: &Contents) -> Result<bool, Refusal> {
    let previous = state.previous.as_ref().map_err(|_| Refusal::Unread(Unread::Record))?;
    let Some(previous) = previous.as_ref().filter(|previous| previous.is_predecessor(contents)) else {
        return Ok(false);
    };
    Ok(previous.existing.as_ref().map_err(|_| Refusal::Unread(Unread::Previous))?.is_some())
}

/// Whether earlier restores kept something of the directory or moved it aside, or may have: what cannot be read is refused when it is
/// looked at, unless it is to be left.
fn look_back(state: &TargetState) -> impl Iterator<Item = Step> + use<> {
    let is_nothing =
        state.kept.as_ref().is_ok_and(Vec::is_empty) && state.asides.as_ref().is_ok_and(Vec::is_empty);
    (!is_nothing).then_some(Step::LookBack).into_iter()
}

/// `--delta`.
fn repair(
    state: &TargetState,
    contents: &Contents,
    discard_wal: bool,
    overwrite_other: bool,
) -> Result<Vec<Step>, Refusal> {
    let present = state.present.as_ref().map_err(|_| Refusal::Unread(Unread::Present))?;
    let mut steps = Vec::new();
    match (contents, present) {
        (Contents::Occupied(example), None) => {
            return Err(Refusal::NoDataDirectory { example: example.clone() });
        }
        (_, None) => {}
        (_, Some(_)) => steps.push(Step::FollowLinks(Which::Present)),
    }
    let is_to_be_proven = matches!(contents, Contents::Occupied(_));
    if is_to_be_proven && !overwrite_other {
        steps.push(Step::ProveCluster);
    }
    steps.push(Step::FindWal(Which::Present, Whose::All));
    if is_to_be_proven && !discard_wal {
        steps.push(Step::ProveArchived);
    }
    steps.extend(look_back(state));
    steps.extend(discard_wal.then_some(Step::LeaveWal));
    match contents {
        Contents::Unfinished(marker) => steps.push(Step::Resume(marker.directories.clone())),
        // How much stays was not compared yet.
        Contents::Occupied(_) => steps.push(Step::ProveReach),
        Contents::Empty | Contents::Finished(_) => {
            steps.extend([Step::ProveReach, Step::MeasureSpace]);
        }
    }
    steps.extend([Step::Keep, Step::Prune]);
    Ok(steps)
}

/// `--replace` of a data directory.
fn replace(state: &TargetState, example: &str, discard_wal: bool) -> Result<Vec<Step>, Refusal> {
    if state.present.as_ref().map_err(|_| Refusal::Unread(Unread::Present))?.is_none() {
        return Err(Refusal::NoDataDirectory { example: example.to_owned() });
    }
    let mut steps = vec![Step::FollowLinks(Which::Present), Step::FindWal(Which::Present, Whose::Own)];
    steps.extend(look_back(state));
    steps.extend(discard_wal.then_some(Step::LeaveWal));
    steps.extend([Step::ProveReach, Step::MeasureSpace, Step::MoveAside]);
    Ok(steps)
}

/// `--replace` where no data directory is left: an interrupted run may have moved it.
fn replace_again(state: &TargetState, contents: &Contents, discard_wal: bool) -> Result<Vec<Step>, Refusal> {
    let mut steps = Vec::new();
    if has_previous(state, contents)? {
        steps.extend([Step::FollowLinks(Which::Previous), Step::FindWal(Which::Previous, Whose::Own)]);
    }
    steps.extend(look_back(state));
    steps.extend(discard_wal.then_some(Step::LeaveWal));
    if !matches!(contents, Contents::Unfinished(_)) {
        steps.extend([Step::ProveReach, Step::MeasureSpace]);
    }
    steps.push(Step::FinishMovingAside);
    if let Contents::Unfinished(marker) = contents {
        steps.push(Step::StartOver(marker.directories.clone()));
    }
    Ok(steps)
}

/// Refuses what an interrupted restore left that wanted something of another lineage or cluster. The same lineage counts in whatever
/// repository: the plan may be another one's by now, and another backup of it stands in for a damaged one.
pub(super) fn same_restore(contents: &Contents, wanted: &Marker) -> Result<(), Refusal> {
    let Contents::Unfinished(earlier) = contents else { return Ok(()) };
    let is_same = match earlier.lineage.as_str() {
        "" => earlier.repository == wanted.repository,
        lineage => lineage == wanted.lineage,
    };
    match is_same && earlier.cluster == wanted.cluster {
        true => Ok(()),
        false => Err(Refusal::OtherRestore { cluster: earlier.cluster.clone() }),
    }
}

/// Decides [`Step::ProveCluster`]. `found`: whose the data directory is by its `pg_control`, if that can be read.
pub(super) fn cluster(found: Option<SystemId>, wanted: SystemId) -> Result<(), Refusal> {
    match found {
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err(Refusal::OtherCluster { found, wanted }),
        None => Err(Refusal::UnknownCluster),
    }
}

/// Decides [`Step::ProveArchived`]. `lost`: the files that wait and are in no archive; `differs`: whether the plan's lineage has other
/// content under a name.
pub(super) fn archived(
    lost: &[WalFileName],
    differs: impl Fn(&WalFileName) -> bool,
    repository: &str,
) -> Result<(), Refusal> {
    let Some(first) = lost.first() else { return Ok(()) };
    // Of an incomplete segment there may be several copies.
    let only_one = |name: &&WalFileName| !matches!(name, WalFileName::Partial(_));
    Err(Refusal::NotArchived {
        repository: repository.to_owned(),
        count: lost.len(),
        first: *first,
        other: lost.iter().filter(only_one).find(|name| differs(name)).copied(),
    })
}

#[cfg(test)]
mod tests;
