//! The options of `restore-agent` that ask for a plan again, or for a moment that can be reached.

use walpoint_base::target::FullXid;
use walpoint_base::{LineageId, Lsn, RecoveryTarget};
use walpoint_plan::restore::{Moment, MomentTarget, RemovedBefore, RestorePlan, StopRule};

/// The options that ask for exactly this plan again, whatever is archived meanwhile: a time as the moment it means, the timeline
/// and the backup by name.
pub(in crate::plan) fn of_plan(plan: &RestorePlan) -> Vec<String> {
    let mut options: Vec<String> = match &plan.target {
        RecoveryTarget::Latest => Vec::new(),
        RecoveryTarget::Immediate => vec!["--target-immediate".to_owned()],
        RecoveryTarget::Time(time) => vec!["--target-time".to_owned(), time.to_string()],
        RecoveryTarget::Lsn(lsn) => vec!["--target-lsn".to_owned(), lsn.to_string()],
        RecoveryTarget::Xid(xid) => {
            let full = plan.stop.as_ref().and_then(|stop| stop.full_xid);
            vec!["--target-xid".to_owned(), full.map_or(xid.to_string(), |full| full.to_string())]
        }
        RecoveryTarget::FullXid(full) => vec!["--target-xid".to_owned(), FullXid(*full).to_string()],
        // Apart from the option it would be taken for one itself.
        RecoveryTarget::Name(name) if name.starts_with('-') => vec![format!("--target-name={name}")],
        RecoveryTarget::Name(name) => vec!["--target-name".to_owned(), name.clone()],
    };
    let exact = StopRule::of(&plan.target, plan.inclusive).is_some()
        && !matches!(plan.target, RecoveryTarget::Name(_));
    if exact && !plan.inclusive {
        options.push("--target-exclusive".to_owned());
    }
    options.extend(["--lineage".to_owned(), plan.lineage.to_string()]);
    options.extend(["--target-timeline".to_owned(), plan.leaf.to_string()]);
    options.extend(["--backup".to_owned(), plan.backup.id.to_string()]);
    if plan.target == RecoveryTarget::Latest && plan.fork.is_some_and(|fork| !fork.is_of_itself()) {
        options.push("--use-partial".to_owned());
    }
    options
}

/// The options that reach the moment before a removal: one at which nothing is locked, if recovery pauses there.
pub(in crate::plan) fn before_removal(removed: &RemovedBefore) -> Vec<String> {
    match removed.removal.unlocked {
        Some(unlocked) => before_lock(unlocked.lsn, removed.lineage),
        None => before_transaction(removed.removal.xid, removed.lineage),
    }
}

/// The options that reach the moment before a record that locks relations.
pub(in crate::plan) fn before_lock(record: Lsn, lineage: Option<LineageId>) -> Vec<String> {
    exclusive("--target-lsn", record.to_string(), lineage)
}

/// The options that reach the moment before the end of a transaction.
pub(in crate::plan) fn before_transaction(xid: u32, lineage: Option<LineageId>) -> Vec<String> {
    exclusive("--target-xid", xid.to_string(), lineage)
}

fn exclusive(target: &str, value: String, lineage: Option<LineageId>) -> Vec<String> {
    let mut options = vec![target.to_owned(), value, "--target-exclusive".to_owned()];
    options
        .extend(lineage.map(|lineage| ["--lineage".to_owned(), lineage.to_string()]).into_iter().flatten());
    options
}

/// The options that reach a moment.
pub(in crate::plan) fn of_moment(moment: &Moment) -> Vec<String> {
    let lineage = moment.lineage.map(|lineage| ["--lineage".to_owned(), lineage.to_string()]);
    let mut options: Vec<String> = lineage.into_iter().flatten().collect();
    options.extend(["--target-timeline".to_owned(), moment.timeline.to_string()]);
    match moment.target {
        MomentTarget::End => {}
        MomentTarget::Record(record) => options.extend(["--target-lsn".to_owned(), record.to_string()]),
        MomentTarget::Consistent(backup) => {
            options.extend(["--target-immediate".to_owned(), "--backup".to_owned(), backup.to_string()]);
        }
    }
    options
}
