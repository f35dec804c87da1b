//! What was removed before the target, or is being removed there: relations, and databases.

use walpoint_base::Diagnostic;
use walpoint_plan::restore::{Dropped, RemovedBefore};

use super::CommandLine;
use super::options::{before_lock, before_removal, before_transaction};
use crate::shell;

/// A database that cannot be opened after recovery, and how to have it all the same.
pub(super) fn dropped(dropped: &Dropped, given: &CommandLine) -> String {
    let xid = dropped.xid;
    let lost = match dropped.database {
        Some(database) => format!("has removed the files of the database with the OID {database} there"),
        None => "has marked a database as invalid there".to_owned(),
    };
    let note = format!(
        "Transaction {xid}, a DROP DATABASE, has not ended, but {lost}: the restored server cannot open that database. \
         PostgreSQL does not undo this."
    );
    let hint = match dropped.before {
        Some(before) => {
            let same = match before.same_transactions {
                true => "after the same transactions",
                false => "though also before transactions that ended meanwhile",
            };
            let command = shell::line(&given.with_target(&before_lock(before.lsn, dropped.lineage)));
            format!("To keep the database, stop before that, {same}: {command}")
        }
        None => "To keep the database, restore an older backup, to a target before that.".to_owned(),
    };
    Diagnostic::new(note).hint(hint).to_string()
}

/// A drop that the target comes too late for.
pub(super) fn removed_before(removed: &RemovedBefore, given: &CommandLine) -> String {
    let (xid, time) = (removed.removal.xid, removed.removal.time);
    let note = match removed.removal.database {
        Some(database) => format!(
            "Transaction {xid} was committed before the target, at {time}, and removed the database with the OID {database}: the \
             restored server does not have it."
        ),
        None => format!(
            "Transaction {xid} was committed before the target, at {time}, and removed relations, as DROP and TRUNCATE do: the \
             restored server does not have them."
        ),
    };
    moment_before(removed, given).iter().fold(Diagnostic::new(note), Diagnostic::hint).to_string()
}

/// A drop before the end of the archive, where the target lies behind that.
pub(super) fn removed_before_end(removed: &RemovedBefore, given: &CommandLine) -> String {
    let (xid, time) = (removed.removal.xid, removed.removal.time);
    let what = match removed.removal.database {
        Some(database) => format!("the database with the OID {database}"),
        None => "relations, as DROP and TRUNCATE do".to_owned(),
    };
    let moment = moment_before(removed, given).join("\n");
    format!("Transaction {xid}, committed at {time}, removed {what}. {moment}")
}

/// What leads to the moment before a removal, one instruction each. A command ends its line, so that it can be copied.
fn moment_before(removed: &RemovedBefore, given: &CommandLine) -> Vec<String> {
    let RemovedBefore { removal, lineage, pauses } = removed;
    let command = shell::line(&given.with_target(&before_removal(removed)));
    let mut moment = vec![format!("If that was the accident, restore the moment before it: {command}")];
    match removal.unlocked {
        // Between the two the database cannot be opened any more.
        Some(_) if removal.database.is_some() => {}
        Some(unlocked) if !unlocked.same_transactions => {
            let command = shell::line(&given.with_target(&before_transaction(removal.xid, *lineage)));
            moment.push(format!(
                "Other transactions ended between that moment and the removal. To keep these, too, use the following command. \
                 Queries that read what was removed then wait until select pg_wal_replay_resume() ends recovery: {command}"
            ));
        }
        None if *pauses => moment.push(
            "Queries that read what was removed then wait until select pg_wal_replay_resume() ends recovery."
                .to_owned(),
        ),
        _ => {}
    }
    moment
}
