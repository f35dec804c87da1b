//! The last transaction before a position that removed relations, as DROP and TRUNCATE do.
//!
//! A person who looks for the moment before an accident often gives a time behind it: that of the first query that failed. The plan,
//! or the refusal where nothing was committed since, leads from there to the moment before the removal.

use walpoint_base::{LineageId, Lsn, PgTimestamp, RecoveryTarget, SegmentName, TimelineId};

use super::facts::{Asking, BackupFacts, BackupState};
use super::planner::{Planner, Refusal};
use super::request::TargetAction;
use super::restore_plan::RestorePlan;
use super::stop::StopRule;
use super::unreachable::Why;

/// A transaction that removed relations, or a database, and was committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Removal {
    /// The transaction.
    pub xid: u32,
    /// When it was committed.
    pub time: PgTimestamp,
    /// Where the record of its commit starts.
    pub lsn: Lsn,
    /// The last position before that at which nothing was locked, if it is known; before the removal of a database, the last one at which
    /// it was whole.
    pub unlocked: Option<UnlockedPosition>,
    /// The OID of the database, if it removed one.
    pub database: Option<u32>,
}

/// A position at which no relation was locked yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnlockedPosition {
    /// Where the record starts that locks one.
    pub lsn: Lsn,
    /// Whether no transaction ended between there and the place that it is an alternative to.
    pub same_transactions: bool,
}

/// Which transaction on the path to `path` was the last one before a position that removed relations? How far back that is looked
/// for is up to who answers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RemovalQuestion {
    /// The timeline whose path is followed.
    pub path: TimelineId,
    /// Records that start before this do not count.
    pub after: Lsn,
    /// Nor do those that start here or later.
    pub before: Lsn,
}

/// One search, fed with consecutive segments in LSN order, beginning anywhere.
pub trait RemovalSearch: Send {
    /// Takes the next segment. The error says what is wrong with its content.
    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<(), String>;

    /// The last one in what was fed so far.
    fn last(&self) -> Option<Removal>;
}

/// A removal before the target, or before the end of the archive, and what leads to the moment before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemovedBefore {
    /// The removal. Of relations, its position without locks is left out where recovery cannot stop there, or does not pause.
    pub removal: Removal,
    /// The lineage, where it has to be named.
    pub lineage: Option<LineageId>,
    /// Whether recovery pauses at a target.
    pub pauses: bool,
}

impl Planner<'_> {
    /// What was removed before the target of a plan.
    pub(super) fn removed_before(&self, plan: &RestorePlan) -> Asking<Option<RemovedBefore>> {
        let is_target = StopRule::of(&self.request.target, self.request.inclusive).is_some();
        let Some(stop) = plan.stop.as_ref().filter(|_| is_target) else { return Ok(None) };
        let (after, before) = (plan.backup.end, plan.replayed_until());
        let known = stop.removal.filter(|removal| removal.unlocked.is_some());
        let removal = match known {
            Some(known) => Some(known),
            None => self.facts.removal(RemovalQuestion { path: plan.leaf, after, before })?.or(stop.removal),
        };
        Ok(removal.and_then(|removal| self.avoidable(removal, &plan.backup)))
    }

    /// What was removed before the archive ends, where a target time lies behind that.
    pub(super) fn removed_before_end(&self, refusal: &Refusal) -> Asking<Option<RemovedBefore>> {
        let (Why::AfterEnd { backup, until, .. }, RecoveryTarget::Time(_), Some(path)) =
            (&refusal.why, &self.request.target, refusal.path)
        else {
            return Ok(None);
        };
        let BackupState::Complete(backup) = self.facts.backup(*backup)? else { return Ok(None) };
        let removal = self.facts.removal(RemovalQuestion { path, after: backup.end, before: *until })?;
        Ok(removal.and_then(|removal| self.avoidable(removal, backup)))
    }

    /// A removal, if recovery from the backup can stop before it.
    fn avoidable(&self, removal: Removal, backup: &BackupFacts) -> Option<RemovedBefore> {
        let pauses = self.request.action == TargetAction::Pause;
        // Most of the removal of a database comes before its transaction ends, and is not undone.
        let counts = pauses || removal.database.is_some();
        let unlocked = removal.unlocked.filter(|unlocked| counts && unlocked.lsn > backup.end);
        if removal.database.is_some() && unlocked.is_none() {
            return None;
        }
        let removal = Removal { unlocked, ..removal };
        (removal.lsn >= backup.end).then_some(RemovedBefore { removal, lineage: None, pauses })
    }
}
