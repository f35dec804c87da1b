//! What is locked at the target, by a transaction that has not ended there, and by prepared ones.

use walpoint_base::diagnostic::shown;
use walpoint_plan::restore::{Locked, PreparedTransaction};

use super::CommandLine;
use super::options::before_lock;
use crate::shell;

/// Relations, or transactions, that a note lists.
const NAMED: usize = 5;

/// What a paused recovery does not let anybody read, and how to read it all the same.
pub(super) fn locked(locked: &Locked, given: &CommandLine) -> String {
    let mut note = format!(
        "Transaction {} has not ended there and keeps {} locked, as DROP and TRUNCATE do: queries that read {} wait while \
         recovery is paused. A target right before a DROP is usually of this kind.",
        locked.xid,
        named(&locked.relations),
        if locked.relations.len() == 1 { "it" } else { "them" },
    );
    if let Some(before) = locked.before {
        let same = match before.same_transactions {
            true => "after the same transactions",
            false => "though also before transactions that ended meanwhile",
        };
        let command = shell::line(&given.with_target(&before_lock(before.lsn, locked.lineage)));
        note.push_str(&format!(
            "\nHINT: To read what it locks while recovery is paused, stop before the lock, {same}: {command}"
        ));
    }
    note.push_str(
        "\nHINT: Otherwise, select pg_wal_replay_resume() ends recovery, which rolls the transaction back and releases its \
         locks. In the restored server, \"select OID::regclass\" shows the name of a relation.",
    );
    if locked.perhaps_prepared {
        note.push_str(
            "\nHINT: If select * from pg_prepared_xacts lists it, it was prepared and keeps its locks after recovery too, \
             until COMMIT PREPARED or ROLLBACK PREPARED ends it.",
        );
    }
    note
}

/// Transactions that are open there and stay open.
pub(super) fn prepared(open: &[PreparedTransaction], relations: &[u32]) -> String {
    let names = open.iter().map(|p| format!("{} ('{}')", p.xid, shown(&p.gid.replace('\'', "''"))));
    let locked = match relations.is_empty() {
        true => String::new(),
        false => format!(", {} among what they lock", named(relations)),
    };
    format!(
        "Prepared transactions are open there: {}. They stay open and keep their locks, also after recovery has \
         ended{locked}, until COMMIT PREPARED or ROLLBACK PREPARED ends them.\nHINT: pg_prepared_xacts lists them all.",
        first_of(names, open.len())
    )
}

/// Relations by their OIDs: their names are in the catalog, which is not read here.
fn named(relations: &[u32]) -> String {
    let oids = first_of(relations.iter().map(u32::to_string), relations.len());
    match relations.len() {
        1 => format!("the relation with the OID {oids}"),
        _ => format!("the relations with the OIDs {oids}"),
    }
}

/// The first of these, and how many more there are.
fn first_of(names: impl Iterator<Item = String>, count: usize) -> String {
    let more = count.checked_sub(NAMED).filter(|more| *more > 0).map(|more| format!("{more} more"));
    names.take(NAMED).chain(more).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use walpoint_base::Diagnostic;

    use super::*;

    #[test]
    fn what_a_client_called_its_transaction_is_no_hint() {
        let gid = "it's\nHINT: Run this.\u{1b}[8m".to_owned();
        let text = prepared(&[PreparedTransaction { xid: 700, gid, subtransactions: Vec::new() }], &[]);
        assert!(text.contains("700 ('it''s\\nHINT: Run this.\\u{1b}[8m')"), "{text}");
        assert_eq!(Diagnostic::new(&text).hints(), ["pg_prepared_xacts lists them all."]);
    }
}
