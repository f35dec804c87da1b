//! A target state with what is decided about it, for one restore, and what is done by the steps before the place is taken.
//!
//! Nothing is changed here. Without `--delta` or `--replace` only an empty directory and what an interrupted restore left
//! are written to. With them a data directory has to be one, no server may run on it, and what lies outside it has to be
//! its own.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use jiff::Timestamp;
use walpoint_base::WalFileName;

use super::created::FoundLocations;
use super::directory::Contents;
use super::elsewhere;
use super::existing::Existing;
use super::identity::{Identity, Position};
use super::kept::Kept;
use super::layout::Layout;
use super::named::Named;
use super::opened::{self, Judged};
use super::outside::{self, DirectoryStep, OfData, OutsideDirectory};
use super::outside_state::OutsideState;
use super::owners::Owner;
use super::previous::Record;
use super::refusal::{OutsideRefusal, Refusal};
use super::running::{LockFile, RunningServer};
use super::steps::{self, RestoreMode, Step, Which};
use super::stored::{NotStored, Whose};
use super::target_state::{Previous, TargetState};
use crate::plan::Planned;

/// A `pg_wal` that may hold what no archive has.
#[derive(Debug)]
pub(super) struct OldWal {
    /// The data directory, where it lies now.
    pub(super) data: PathBuf,
    /// Where its `pg_wal` lies.
    pub(super) wal: PathBuf,
    /// Whose files count.
    pub(super) whose: Whose,
    /// Whether it was moved aside, by a run that was interrupted.
    pub(super) is_aside: bool,
}

/// What was found, and what is decided.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) mode: RestoreMode,
    /// Whether the person who restores says that no server runs there.
    pub(super) vouched: bool,
    steps: Vec<Step>,
    pub(super) contents: Contents,
    /// Which directory it is, if one is there.
    identity: Option<Identity>,
    /// The data directory whose links are followed.
    pub(super) existing: Option<Existing>,
    /// The data directory that was moved aside last, if that could be found out.
    pub(super) previous: Option<Previous>,
    waiting: io::Result<Vec<WalFileName>>,
    /// What earlier restores moved aside.
    pub(super) asides: anyhow::Result<Vec<Record>>,
    /// What earlier repairs kept.
    pub(super) kept: anyhow::Result<Vec<Kept>>,
    /// What a server that does not run any more left there.
    crashed: Option<LockFile>,
    /// For whom root acts.
    pub(super) user: Option<Owner>,
    /// The data directories that this one may be a copy of.
    pub(super) originals: Vec<PathBuf>,
}

impl Decided {
    /// Looks at a directory and decides. `vouched`: the person who restores says that no server runs there.
    pub(super) fn look(pgdata: &Path, mode: RestoreMode, vouched: bool) -> anyhow::Result<Self> {
        let identity = Identity::of(pgdata);
        let state = TargetState::probe(pgdata, vouched)?;
        let steps = match steps::decide(&state, mode) {
            Ok(steps) => steps,
            Err(refusal) => return Err(refusal.explain_from(pgdata, state)),
        };
        let TargetState { server, contents, present, waiting, previous, asides, kept } = state;
        // What could not be found out and matters was refused.
        let previous = previous.ok().flatten();
        let existing = if steps.contains(&Step::FollowLinks(Which::Present)) {
            present.ok().flatten()
        } else if steps.contains(&Step::FollowLinks(Which::Previous)) {
            previous.as_ref().and_then(Previous::under_its_names)
        } else {
            None
        };
        let crashed = match server {
            RunningServer::Crashed(file) => Some(file),
            RunningServer::None | RunningServer::Running(..) => None,
        };
        let contents = contents?;
        Ok(Self {
            mode,
            vouched,
            steps,
            contents,
            identity,
            existing,
            previous,
            waiting,
            asides,
            kept,
            crashed,
            user: None,
            originals: Vec::new(),
        })
    }

    /// The same, with the user for whom root acts.
    pub(super) fn acting_for(self, user: Option<Owner>) -> Self {
        Self { user, ..self }
    }

    /// The same, with the data directories that this one may be a copy of.
    pub(super) fn beside(self, originals: Vec<PathBuf>) -> Self {
        Self { originals, ..self }
    }

    /// What is done, in order.
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether it is done.
    pub(super) fn does(&self, step: &Step) -> bool {
        self.steps.contains(step)
    }

    /// The link, relative to the data directory, that proves a directory outside it to be its own.
    pub(super) fn link_to(&self, directory: &Path) -> Option<PathBuf> {
        self.existing.as_ref()?.link_to(directory, self.user)
    }

    /// Looks again, later, and refuses a directory that is not what it was. This is the one second look at what was probed: planning
    /// takes a while, `--pre-command` may do anything, mount a filesystem say, and what is there now is what will be moved or overwritten.
    pub(super) fn prove_unchanged(&self, pgdata: &Path) -> anyhow::Result<()> {
        opened::prove_path(pgdata)?;
        let now = Self::look(pgdata, self.mode, self.vouched)?;
        let is_as_moved = match (&now.previous, &self.previous) {
            (Some(now), Some(before)) => now.is_as(before),
            (now, before) => now.is_none() && before.is_none(),
        };
        // An empty one may be another one by now, on a filesystem that was mounted.
        let is_same = self.contents == Contents::Empty || now.identity == self.identity;
        if now.contents != self.contents || !is_same || self.does(&Step::FinishMovingAside) && !is_as_moved {
            bail!("{} is not what it was when the restore began; nothing was changed", pgdata.display());
        }
        Ok(())
    }

    /// What has to be opened to write the data directory there.
    pub(super) fn judged(&self) -> Judged {
        match self.contents == Contents::Empty || self.does(&Step::MoveAside) {
            true => Judged::Vacant,
            false => Judged::This(self.identity),
        }
    }

    /// Logs whose word was taken for it that the server is down.
    pub(super) fn log_crashed(&self, pgdata: &Path) {
        if let Some(file) = &self.crashed {
            let why = if self.vouched { "--server-is-down says so" } else { "no process works there" };
            tracing::warn!(
                "{}: its postmaster.pid is present ({file}): treating the server as crashed, because {why}",
                pgdata.display()
            );
        }
    }

    /// The data directory whose `pg_wal` may hold what no archive has. One that is moved aside, or that an interrupted restore had
    /// moved, is another cluster's if its `pg_control` says so; a damaged one says nothing.
    pub(super) fn old(&self, pgdata: &Path, planned: &Planned) -> Option<OldWal> {
        let own = planned.lineage.system_id();
        let may_be_own = |existing: &&Existing| existing.system_id.is_none_or(|found| found == own);
        let source = self.steps.iter().find_map(|step| match step {
            Step::FindWal(which, whose) => Some((*which, *whose)),
            _ => None,
        });
        let present =
            |whose| OldWal { data: pgdata.to_owned(), wal: pgdata.join("pg_wal"), whose, is_aside: false };
        match source? {
            (Which::Present, Whose::All) => Some(present(Whose::All)),
            (Which::Present, Whose::Own) => {
                self.existing.as_ref().filter(may_be_own).map(|_| present(Whose::Own))
            }
            (Which::Previous, whose) => {
                let previous = self.previous.as_ref()?;
                previous.existing.as_ref().ok()?.as_ref().filter(may_be_own)?;
                let record = &previous.record;
                Some(OldWal { data: record.aside.clone(), wal: record.wal(), whose, is_aside: true })
            }
        }
    }

    /// Refuses to repair another cluster's directory.
    pub(super) fn prove_cluster(&self, pgdata: &Path, planned: &Planned) -> anyhow::Result<()> {
        if !self.does(&Step::ProveCluster) {
            return Ok(());
        }
        let found = self.existing.as_ref().and_then(|existing| existing.system_id);
        steps::cluster(found, planned.lineage.system_id()).map_err(|refusal| refusal.explain(pgdata))
    }

    /// Refuses to repair a directory whose `pg_wal` has the only sound copy of what recovery reads: it would end there.
    pub(super) fn prove_undamaged(
        &self,
        pgdata: &Path,
        not_stored: &NotStored,
        planned: &Planned,
    ) -> anyhow::Result<()> {
        let size = planned.lineage.segment_size;
        let is_read = |name: &&WalFileName| {
            let WalFileName::Segment(name) = name else { return false };
            let number = name.number(size);
            let mut ranges = planned.plan.wal.iter().filter(|range| range.timeline == name.timeline);
            ranges.any(|range| number.is_some_and(|number| range.first <= number && number <= range.last))
        };
        // Where the archive has other content, it is that which recovery reads.
        let here = &not_stored.here;
        let mut damaged = here.damaged.iter().filter(|name| !here.differ.contains(name));
        match damaged.find(is_read).filter(|_| !self.does(&Step::LeaveWal)) {
            None => Ok(()),
            Some(name) => {
                let read = elsewhere::read(&not_stored.copies);
                Err(Refusal::StoredDamaged { name: *name, read }.explain(pgdata))
            }
        }
    }

    /// Refuses to repair a directory whose `pg_wal` holds files that wait for the archive, while no archive has them.
    pub(super) async fn prove_archived(&self, pgdata: &Path, not_stored: &NotStored) -> anyhow::Result<()> {
        if !self.does(&Step::ProveArchived) {
            return Ok(());
        }
        let waiting = match &self.waiting {
            Ok(waiting) => waiting.clone(),
            Err(error) => return Err(anyhow!("{error}").context(pgdata.display().to_string())),
        };
        let lost = not_stored.among(pgdata, waiting).await?;
        let repository = not_stored.copies.first().repository().name();
        steps::archived(&lost, |name| not_stored.here.differ.contains(name), repository)
            .map_err(|refusal| refusal.explain(pgdata))
    }

    /// Refuses what has to be moved aside or kept and cannot be. `wal`: the files of `pg_wal` that no archive has.
    pub(super) fn prove_movable(
        &self,
        pgdata: &Path,
        wal: &[String],
        found: &FoundLocations,
    ) -> anyhow::Result<()> {
        outside::require_moves(&found.ours, self.of_data()).map_err(OutsideRefusal::explain)?;
        if self.does(&Step::Keep) && !(wal.is_empty() && found.ours.is_empty()) {
            Kept::prove_place(pgdata, wal, self.user)?;
        }
        Ok(())
    }

    /// What is done with the data directory, as far as it decides about the directories outside.
    pub(super) fn of_data(&self) -> OfData<'_> {
        OfData::by(&self.steps, self.unfinished().map_or(&[], |previous| &previous.pending))
    }

    /// The data directory that was moved aside last, if what is restored comes in its place.
    pub(super) fn predecessor(&self) -> Option<&Previous> {
        self.previous.as_ref().filter(|previous| previous.is_predecessor(&self.contents))
    }

    /// The same, if an earlier run had not yet moved all that belongs to it.
    fn unfinished(&self) -> Option<&Previous> {
        self.predecessor().filter(|previous| !previous.complete)
    }

    /// Where the data directory lies, or will, in whose place what is restored comes. `replacement`: how it will be moved aside, if it will.
    pub(super) fn replaces(&self, replacement: Option<&Record>) -> Option<PathBuf> {
        let earlier = || self.predecessor().map(|previous| &previous.record);
        replacement.or_else(earlier).map(|record| record.aside.clone())
    }

    /// How the data directory will be moved aside with these directories, if it will.
    pub(super) fn replacement(
        &self,
        pgdata: &Path,
        directories: Vec<(PathBuf, Option<PathBuf>)>,
    ) -> anyhow::Result<Option<Record>> {
        match self.of_data() {
            OfData::Moved => Record::plan(pgdata, directories, None, Timestamp::now()).map(Some),
            OfData::Moving { .. } => Ok(self.unfinished().map(|previous| previous.record.clone())),
            OfData::Written | OfData::Repaired => Ok(None),
        }
    }
}

/// The directories outside the data directory, with what is decided about them.
#[derive(Debug)]
pub(super) struct DecidedOutside {
    directories: Vec<OutsideDirectory>,
    /// What each of them has to be when it is opened.
    pub(super) judged: Vec<Judged>,
    /// The nearest directories that are there, above all places that are written to.
    pub(super) parents: Vec<PathBuf>,
}

impl DecidedOutside {
    /// Looks at the directories of a layout and decides.
    pub(super) fn look(
        layout: &Layout,
        decided: &Decided,
        named: &Named,
        repositories: &[PathBuf],
    ) -> anyhow::Result<Self> {
        let state = OutsideState::probe(layout, decided, named, repositories);
        let is_data_reached = decided.does(&Step::ProveReach);
        let directories = outside::decide(&state, decided.of_data()).and_then(|directories| {
            outside::require_data(&state.data, is_data_reached).map(|()| directories)
        });
        match directories {
            Err(refusal) => Err(refusal.explain_from(state)),
            Ok(directories) => {
                let parents = outside::positions(&state).filter_map(Position::nearest_above);
                // The last position is the data directory's.
                let judged = directories.iter().zip(outside::positions(&state));
                let judged = judged.map(|(directory, found)| Judged::by(&directory.step, found)).collect();
                let parents = parents.map(Path::to_owned).collect();
                Ok(Self { directories, judged, parents })
            }
        }
    }

    /// The directories that go aside with the data directory, each with its link.
    pub(super) fn moved(&self) -> Vec<(PathBuf, Option<PathBuf>)> {
        let moved = self.directories.iter().filter_map(|directory| match &directory.step {
            DirectoryStep::MoveAside { link } => Some((directory.path.clone(), link.clone())),
            _ => None,
        });
        moved.collect()
    }

    /// A directory that goes aside by only one of two looks: what the record does not name would stay, and be written over.
    pub(super) fn first_moved_otherwise(&self, earlier: &Self) -> Option<PathBuf> {
        let (now, before) = (self.moved(), earlier.moved());
        let is_in_one = |directory: &&(PathBuf, _)| now.contains(directory) != before.contains(directory);
        now.iter().chain(&before).find(is_in_one).map(|(directory, _)| directory.clone())
    }
}

/// Where what lay outside the data directory goes unless told otherwise.
pub(super) fn default_extra(pgdata: &Path) -> PathBuf {
    let mut beside = pgdata.as_os_str().to_owned();
    beside.push(".extra");
    PathBuf::from(beside)
}
