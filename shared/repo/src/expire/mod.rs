//! `expire`: deletes what neither retention nor anything under way needs, in two steps that are a grace period apart.
//!
//! | module | owns |
//! |---|---|
//! | `clock` | how far the store's clock is from this machine's |
//! | `gather` | the facts: backups, lineages, holds, what is unfinished |
//! | `beside` | which timelines are written beside each other |
//! | `named` | one backup that is to go by name, and what stands against that |
//! | `soundness` | what is known to be wrong with finished backups |
//! | `roots` | what is needed, from the facts and the decisions |
//! | `aborted` | which unfinished backups no process will finish |
//! | `announcements` | what earlier runs announced |
//! | `scan` | judging every object of the cluster |
//! | `delete` | deleting what was announced and is still not needed |
//! | `full_disk` | deleting that first where the filesystem is full |
//! | `report` | what is told |
//!
//! What always holds: an object is deleted only if `announcements/<n>` has named it for the grace period, by the store's clock,
//! and if it is out of reach of everything that was listed after that. So a backup that began before the object was
//! announced is listed with its intent, and one that began later has read the announcement. Holds are read in every run. What is
//! not known is reported and left alone; nothing outside `clusters/<name>` is touched. A crash leaves announcements of
//! objects some of which are gone: the next run goes on from there. Of a backup its intent goes first and its manifest
//! before its packs, so it is never listed and incomplete.

mod aborted;
mod announcements;
mod beside;
mod clock;
mod delete;
mod full_disk;
mod gather;
mod named;
mod report;
mod roots;
mod scan;
mod soundness;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use walpoint_base::{ClusterName, LineageId};
use walpoint_plan::reach::WalNeed;
use walpoint_plan::retention::{Decision, Policy, decide};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::Key;

use self::announcements::KnownAnnouncements;
pub(crate) use self::clock::compare_for_deletion;
pub use self::clock::{clock_ahead, clocks_apart};
use self::delete::Deleter;
use self::full_disk::Room;
use self::gather::Gathered;
pub use self::named::NamedBackup;
pub use self::report::{BackupDecision, ClassReport, DecisionReport, Expired};
use self::scan::{ListingScan, Standards, Tally};
use crate::Repository;
use crate::backup::{Backups, DamagedAnnouncement, ENOUGH};
use crate::holds::DamagedHold;
use crate::reach::Class;

/// What is asked of a run.
#[derive(Clone, Debug)]
pub struct ExpireOptions {
    /// What stays.
    pub policy: Policy,
    /// How long something has to be announced before it is deleted.
    pub grace: SignedDuration,
    /// Expire this backup, and nothing else.
    pub named: Option<NamedBackup>,
    /// Change nothing, and tell what would be done.
    pub dry_run: bool,
    /// On which machine this runs, for what is announced.
    pub host: String,
    /// The version of Walpoint.
    pub agent: String,
}

/// What retention says about a cluster now.
#[derive(Default, Debug)]
pub struct Outlook {
    /// A decision for each finished backup, oldest first.
    pub decisions: Vec<Decision>,
    /// By this policy.
    pub policy: Policy,
    /// The WAL that is kept for them, and for backups under way.
    pub wal: Vec<(LineageId, WalNeed)>,
    /// Holds that cannot be read. The decisions do without them.
    pub damaged_holds: Vec<DamagedHold>,
    /// Announcements that cannot be read. The decisions do without what they said of damage.
    pub damaged_announcements: Vec<DamagedAnnouncement>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// Decides as [`expire`] would. Reads only.
pub async fn outlook(
    repository: &Repository,
    cluster: &ClusterName,
    policy: &Policy,
    now: Timestamp,
) -> Result<Outlook> {
    let gathered = Gathered::read(repository, cluster, now).await?;
    let decisions = decide(&gathered.facts, policy, now);
    let wal = roots::wal_of_all(&gathered, &decisions);
    let Gathered { damaged_holds, damaged_announcements, notes, .. } = gathered;
    let policy = policy.clone();
    Ok(Outlook { decisions, policy, wal, damaged_holds, damaged_announcements, notes })
}

/// Expires a cluster in one repository.
pub async fn expire(
    repository: &Repository,
    cluster: &ClusterName,
    options: &ExpireOptions,
) -> Result<Expired> {
    let mut report = Expired::new(repository, cluster, options);
    let compared = if options.dry_run { Ok(None) } else { clock::compare(repository.store()).await };
    let room = match compared {
        Ok(ahead) => Some(Room::without_need(ahead)),
        Err(error) if full_disk::is_lacking(&error) => None,
        Err(error) => return Err(error),
    };
    if let Some(room) = room {
        match after(repository, cluster, options, &room, report.clone()).await {
            // There was room for a few bytes and for no more.
            Err(error) if full_disk::is_lacking(&error) => {}
            expired => return expired,
        }
    }
    let room = full_disk::make(repository, cluster, options, &mut report).await;
    let room = room.map_err(|error| full_disk::explain(error, &BTreeMap::new()))?;
    let expired = after(repository, cluster, options, &room, report).await;
    expired.map_err(|error| full_disk::explain(error, &room.deleted))
}

/// The run, after room was made.
async fn after(
    repository: &Repository,
    cluster: &ClusterName,
    options: &ExpireOptions,
    room: &Room,
    mut report: Expired,
) -> Result<Expired> {
    report.clock_ahead_seconds = room.ahead.map(|ahead| ahead.as_secs());
    // Stores tell whole seconds: less than two are no difference.
    let ahead =
        if room.assumed.abs() < SignedDuration::from_secs(2) { SignedDuration::ZERO } else { room.assumed };
    let mut report = announce_and_delete(repository, cluster, options, ahead, report).await?;
    report.deleted(&room.deleted);
    Ok(report)
}

/// The run, with the store's clock so far ahead of this machine's.
async fn announce_and_delete(
    repository: &Repository,
    cluster: &ClusterName,
    options: &ExpireOptions,
    ahead: SignedDuration,
    mut report: Expired,
) -> Result<Expired> {
    let store_now = || Timestamp::now() + ahead;
    let backups = Backups::of(repository, cluster);

    let mut gathered = Gathered::read_for_deletion(repository, cluster, store_now()).await?;
    report.notes.append(&mut gathered.notes);
    report.remarks.append(&mut gathered.unreadables);
    let mut policy = options.policy.clone();
    let mut request = None;
    if let Some(named) = &options.named {
        policy = Policy::default();
        let now = store_now();
        request = Some(named::admit(cluster, &backups, &mut gathered, named, now, &mut report).await?);
    } else if policy.drops() {
        let silent = aborted::of(repository, cluster, &gathered, store_now()).await?;
        for id in silent {
            aborted::abort_backup(&backups, &mut gathered, id, &mut report, aborted::SILENCE).await?;
        }
    }
    let decisions = decide(&gathered.facts, &policy, store_now());
    let only = options.named.as_ref().map(|named| named.backup);
    report.decided(&decisions, &gathered.facts.lives, only);
    let by_name = !policy.drops();
    if by_name && gathered.facts.requests.is_empty() {
        report.notes.push("no retention is configured: nothing is deleted".to_owned());
        return Ok(report);
    }
    if gathered.facts.backups.is_empty() && gathered.facts.requests.is_empty() {
        report.notes.push("there is no finished backup that can be read: nothing is deleted".to_owned());
        return Ok(report);
    }
    let roots = roots::of(&backups, &gathered, &decisions, &BTreeSet::new(), &mut report.notes).await?;
    let before = match &request {
        Some(_) => Some(roots::with_named(&backups, &gathered, &roots, &policy, store_now()).await?),
        // Nothing new is announced where only what was announced by name is deleted.
        None => by_name.then(|| roots.clone()),
    };
    let announced = KnownAnnouncements::read(&backups).await?;
    report.notes.extend(announced.early(backups.paths(), store_now(), options.grace));
    let finished = gathered.facts.backups.iter().map(|backup| backup.id).collect();
    let standards = Standards {
        roots: &roots,
        spared: before.as_ref(),
        announced: &announced,
        finished: &finished,
        eligible_until: eligible_until(store_now(), options.grace),
    };
    let mut scan = ListingScan::of(repository, cluster, standards, store_now()).await?;
    if options.dry_run && options.grace.is_zero() {
        scan.mark_eligible();
    }
    scan.tell(&mut report);
    if options.dry_run {
        return Ok(report);
    }
    let unseen = scan.unseen_damage().filter(|n| !soundness::is_named(&gathered, &roots, &announced, *n));
    let (repaired, spent) = (unseen.collect::<Vec<u64>>(), scan.take_spent());
    soundness::announce_lost(&backups, &gathered, options, store_now()).await?;
    let fresh = scan.into_announced(options, request.as_ref(), store_now());
    let wrote = !fresh.is_empty();
    for announced in &fresh {
        backups.announce(announced).await?;
    }

    // Announced: now everything that may have begun before is listed again.
    let announced = if wrote { KnownAnnouncements::read(&backups).await? } else { announced };
    let announced = (&announced, options.grace, store_now());
    let deleted = delete_announced(repository, cluster, &policy, announced, &mut report).await?;
    report.deleted(&deleted);
    tidy(&backups, &spent, &mut report).await?;
    take_back(&backups, repaired, &mut report).await?;
    report.temporary_file_count += repository.store().remove_leftovers(cluster, LEFTOVER).await?;
    Ok(report)
}

/// The moment that lies the grace period before `now`; the first of all where there is none, before which nothing was announced.
fn eligible_until(now: Timestamp, grace: SignedDuration) -> Timestamp {
    now.checked_sub(grace).unwrap_or(Timestamp::MIN)
}

/// Deletes the `spent` progress objects, which mean nothing once there is a manifest: the process that finished the
/// backup could not delete them, or died. Sums many backups up.
async fn tidy(backups: &Backups, spent: &[Key], report: &mut Expired) -> Result<()> {
    for result in backups.store().delete_all(spent).await {
        if !matches!(result, Err(RepoError::Denied { .. })) {
            result?;
        }
    }
    if report.backups.len() >= ENOUGH {
        backups.summarize().await?;
    }
    Ok(())
}

/// Deletes what has been announced for the grace period at `now` and is still out of reach: what that was. Takes back the
/// announcements of which nothing is left to be done.
async fn delete_announced(
    repository: &Repository,
    cluster: &ClusterName,
    policy: &Policy,
    (announced, grace, now): (&KnownAnnouncements, SignedDuration, Timestamp),
    report: &mut Expired,
) -> Result<BTreeMap<Class, Tally>> {
    let by_name = !policy.drops();
    let until = eligible_until(now, grace);
    let eligible = if by_name { announced.eligible_by_name(until) } else { announced.eligible(until) };
    if eligible.is_empty() {
        return Ok(BTreeMap::new());
    }
    let backups = Backups::of(repository, cluster);
    let gathered = Gathered::read_for_deletion(repository, cluster, now).await?;
    if gathered.facts.requests.is_empty() && (by_name || gathered.facts.backups.is_empty()) {
        return Ok(BTreeMap::new());
    }
    let decisions = decide(&gathered.facts, policy, now);
    let roots = roots::of(&backups, &gathered, &decisions, &BTreeSet::new(), &mut Vec::new()).await?;
    let mut deleter = Deleter::new(repository, cluster, roots, &eligible);
    let deleted = async {
        let held = deleter.delete_backups().await?;
        if !held.is_empty() {
            deleter.spare(roots::of(&backups, &gathered, &decisions, &held, &mut Vec::new()).await?);
        }
        deleter.delete_the_rest().await
    };
    let deleted = deleted.await;
    deleter.tell(report);
    deleted.map_err(|error| full_disk::explain(error, deleter.deleted()))?;
    // An unfinished backup builds on them: a later run deletes them.
    let requested = decisions.iter().filter(|decision| decision.is_requested()).map(|d| d.backup.id);
    let waiting = requested.filter(|id| deleter.roots().needs_backup(*id)).collect();
    take_back(&backups, deleter.finished(announced, &waiting), report).await?;
    Ok(deleter.into_deleted())
}

/// Deletes announcements that say nothing any more. One that the store does not let go does no harm, and a later run tries again.
async fn take_back(backups: &Backups, numbers: Vec<u64>, report: &mut Expired) -> Result<()> {
    for n in numbers {
        match backups.absolve(n).await {
            Err(RepoError::Denied { .. }) => report.deny(&backups.paths().announcement(n)),
            result => result?,
        }
    }
    Ok(())
}

/// What an error calls the clocks of this machine and of the store, which no configuration sets.
pub const CLOCK: &str = "clock";

/// A temporary file that a killed write left in a directory is removed when it is older.
const LEFTOVER: SignedDuration = SignedDuration::from_hours(24);

fn refuse(what: String) -> RepoError {
    RepoError::settings(CLOCK, what)
}
