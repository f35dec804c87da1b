//! What a server does: transactions with subtransactions, prepared ones, restore points, tablespaces, switches. Each
//! statement's positions and times come from the very session that ran it.

use rand::Rng;
use rand::rngs::StdRng;
use walpoint_base::Lsn;

use super::oracle::{Branch, Effect, HistoryEvent};
use super::server::Server;

/// The tables. Tables in tablespaces inherit from the ledger, so one query reads them all.
pub const SCHEMA: &str = "
    create table ledger (id bigserial, number int not null, pad text);
    create index on ledger (number)";

/// Ends a statement whose effect lies between two marks. The message makes sure that the record at a mark is no commit.
const MARK: &str = "select 'M|' || pg_current_wal_insert_lsn() || '|'
    || to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'";

/// Runs one statement between two marks and appends the event to the branch.
#[track_caller]
pub fn happen(server: &mut Server, branch: &mut Branch, sql: &str, effect: Effect) {
    let spacer = "select 'S|' || pg_logical_emit_message(false, 'walpoint', 'spacer')";
    let answer = server.sql(&format!("{MARK}; {spacer}; {sql}; {MARK}"));
    let marks: Vec<Vec<&str>> =
        answer.lines().filter_map(|line| Some(line.strip_prefix("M|")?.split('|').collect())).collect();
    let [first, second] = &marks[..] else { panic!("{sql}: {answer}\n{}", server.log_tail()) };
    let xid = answer.lines().find_map(|line| line.strip_prefix("X|")?.parse().ok());
    let lsn = |text: &str| text.parse::<Lsn>().expect("a position");
    branch.events.push(HistoryEvent {
        timeline: branch.timeline,
        before: lsn(first[0]),
        after: lsn(second[0]),
        time_before: first[1].to_owned(),
        time_after: second[1].to_owned(),
        xid,
        effect,
    });
}

fn insert(table: &str, number: i64, rows: i64) -> String {
    format!(
        "insert into {table} (number, pad) select {number}, repeat('x', 150) from generate_series(1, {rows})"
    )
}

const XID: &str = "select 'X|' || pg_current_xact_id()";

/// A transaction with subtransactions, some of them rolled back, some of them removing what others wrote.
pub fn transaction(rng: &mut StdRng, server: &mut Server, branch: &mut Branch, number: i64) {
    let rows = rng.random_range(1..40);
    let present: Vec<i64> = branch.state(branch.events.len()).rows.into_keys().collect();
    let mut removed = Vec::new();
    let mut sql = format!("begin; {}; ", insert("ledger", number, rows));
    if rng.random_bool(0.4) {
        sql += &format!("savepoint a; {}; rollback to a; ", insert("ledger", -number, 7));
    }
    if rng.random_bool(0.4) {
        sql += "savepoint b; ";
        if !present.is_empty() && rng.random_bool(0.5) {
            let gone = present[rng.random_range(0..present.len())];
            sql += &format!("delete from ledger where number = {gone}; ");
            removed.push(gone);
        }
        sql += "release b; ";
    }
    sql += &format!("{XID}; commit");
    happen(server, branch, &sql, Effect::Commit { added: (number, rows), removed });
}

/// Leaves a prepared transaction open.
pub fn prepare(server: &mut Server, branch: &mut Branch, number: i64) {
    let sql = format!("begin; {}; savepoint s; prepare transaction 'p{number}'", insert("ledger", number, 5));
    happen(server, branch, &sql, Effect::Prepare(format!("p{number}")));
}

/// Ends a prepared transaction, on whichever server it is open now.
pub fn resolve(rng: &mut StdRng, server: &mut Server, branch: &mut Branch) {
    let Some(name) = branch.open().pop() else { return };
    let number: i64 = name[1..].parse().expect("a number");
    if rng.random_bool(0.7) {
        let effect = Effect::CommitPrepared(name.clone(), (number, 5));
        happen(server, branch, &format!("commit prepared '{name}'"), effect);
    } else {
        happen(server, branch, &format!("rollback prepared '{name}'"), Effect::RollbackPrepared(name));
    }
}

/// Commits something, so that all before it survives a crash: restore points and rollbacks are not flushed by themselves.
pub fn flush(server: &mut Server, branch: &mut Branch) {
    let sql = "select length(pg_logical_emit_message(true, 'walpoint', 'flush')::text)";
    happen(server, branch, sql, Effect::Ended);
}

/// One of the things that a busy server does.
pub fn step(rng: &mut StdRng, server: &mut Server, branch: &mut Branch, next: &mut i64) {
    *next += 1;
    let number = *next;
    match rng.random_range(0..100) {
        0..55 => transaction(rng, server, branch, number),
        55..65 => {
            let sql = format!("begin; {}; {XID}; rollback", insert("ledger", -number, 3));
            happen(server, branch, &sql, Effect::Nothing);
        }
        65..72 if branch.open().len() < 3 => prepare(server, branch, number),
        72..79 => resolve(rng, server, branch),
        79..85 => {
            let name = format!("point {number}");
            happen(server, branch, &format!("select pg_create_restore_point('{name}')"), Effect::Point(name));
        }
        85..92 => {
            let bytes = rng.random_range(1_000..900_000);
            let sql =
                format!("select length(pg_logical_emit_message(false, 'bulk', repeat('x', {bytes}))::text)");
            happen(server, branch, &sql, Effect::Nothing);
        }
        92..97 => happen(server, branch, "select pg_switch_wal()", Effect::Nothing),
        _ => happen(server, branch, "checkpoint", Effect::Nothing),
    }
}

/// Several of them.
pub fn run(rng: &mut StdRng, server: &mut Server, branch: &mut Branch, next: &mut i64, steps: u32) {
    (0..steps).for_each(|_| step(rng, server, branch, next));
}
