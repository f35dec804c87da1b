//! What `events` prints for a person. Lines end with a newline.

use std::fmt::Write;

use walpoint_base::diagnostic::shown as escaped;
use walpoint_base::{Lsn, PgTimestamp};
use walpoint_pg::wal::events::{FileRemoval, ObjectChange, RelationFile, RowCounts, WalEvent};
use walpoint_repo::scan::{GapReason, ScanGap};
use walpoint_runtime::human;

use super::document::{Head, Summary};
use super::listing::Shown;
use super::shown::{ShownTransaction, is_catalog, path};
use crate::shell;

/// Files that are named in one line.
const NAMED: usize = 8;

/// What is read.
pub(super) fn head(head: &Head, segments: u64) -> String {
    let Head { lineage, timeline, repositories, backup } = head;
    let from = backup.map(|backup| format!(", from where backup {backup} starts")).unwrap_or_default();
    let segments = human::count(segments, "segment");
    format!("Lineage {lineage}, timeline {timeline}: {segments} in {}{from}\n\n", repositories.join(", "))
}

/// What was read.
pub(super) fn summary(summary: &Summary) -> String {
    let Summary { committed_count, aborted_count, changing_count, .. } = summary;
    let mut text = format!(
        "\nRead {} of {}: {} committed, {} rolled back, {} of them with changes\n",
        human::number(summary.read_segment_count),
        human::count(summary.segment_count, "segment"),
        human::count(*committed_count, "transaction"),
        human::number(*aborted_count),
        human::number(*changing_count),
    );
    let mut line = |count: u64, one: &str, what: &str| {
        if count > 0 {
            text.push_str(&format!("{}{what}\n", human::count(count, one)));
        }
    };
    line(summary.gap_count, "gap", ": what happened there is not known");
    let unended = " with changes that did not end: a crash rolled them back, or they were still open";
    line(summary.unended_transaction_count, "transaction", unended);
    line(summary.unattributed_file_count, "file", " created by transactions that no record names");
    text
}

/// An event.
pub(super) fn event(shown: &Shown) -> String {
    match shown {
        Shown::Transaction(shown) => transaction(shown),
        Shown::Gap(gap) => self::gap(gap),
        Shown::Other(event, _) => other(event),
    }
}

fn other(event: &WalEvent) -> String {
    match event {
        WalEvent::Transaction(event) => line(Some(event.time), event.lsn, &format!("xid {}", event.xid)),
        WalEvent::Prepared { xid, gid, time, lsn } => {
            line(Some(*time), *lsn, &format!("xid {xid} prepared as \"{}\"", escaped(gid)))
        }
        WalEvent::RestorePoint { name, time, lsn } => {
            line(Some(*time), *lsn, &format!("restore point \"{}\"", escaped(name)))
        }
        WalEvent::Object { lsn, change } => line(None, *lsn, &object(*change)),
        WalEvent::Switch { lsn } => line(None, *lsn, "segment switch"),
        WalEvent::Shutdown { lsn } => line(None, *lsn, "shutdown, or the end of a crash recovery"),
        WalEvent::Promotion { lsn, time, timeline, previous } => {
            line(*time, *lsn, &format!("promotion from timeline {previous} to timeline {timeline}"))
        }
    }
}

fn line(time: Option<PgTimestamp>, lsn: Lsn, what: &str) -> String {
    let time = time.map(|time| time.to_string()).unwrap_or_default();
    format!("{time:<29}  {lsn:<12}  {what}\n", lsn = lsn.to_string())
}

fn gap(gap: &ScanGap) -> String {
    let until = gap.until.map(|until| format!(" up to {until}")).unwrap_or_default();
    let what = format!("GAP{until}: {}", reason(&gap.why));
    line(None, gap.from, &what)
}

/// Why WAL was not read.
pub(super) fn reason(why: &GapReason) -> String {
    match why {
        GapReason::Missing => "no repository has this WAL".to_owned(),
        GapReason::Lost => "this WAL was stored, and is damaged or gone".to_owned(),
        GapReason::Damaged(why) => format!("what is stored is damaged: {why}"),
        GapReason::Records(why) => format!("the records cannot be followed: {why}"),
    }
}

fn transaction(shown: &ShownTransaction) -> String {
    let event = &shown.event;
    let how = match (event.committed, event.prepared) {
        (true, false) => "committed",
        (true, true) => "committed (prepared before)",
        (false, false) => "rolled back",
        (false, true) => "rolled back (prepared before)",
    };
    let mut text = line(Some(event.time), event.lsn, &format!("xid {} {how}", event.xid));
    let mut add = |what: String| writeln!(text, "    {what}").unwrap_or_default();
    if event.at_least {
        add("at least, because a part of it was not read:".to_owned());
    }
    let mut catalogs = RowCounts::default();
    for (file, rows) in &event.rows {
        match is_catalog(*file) {
            true => catalogs.add(*rows),
            false => add(format!("{}: {}", path(*file), counts(*rows))),
        }
    }
    if !catalogs.is_empty() {
        add(format!("system catalogs: {}", counts(catalogs)));
    }
    if shown.other_relations > 0 {
        let more = u64::try_from(shown.other_relations).unwrap_or(u64::MAX);
        add(format!("and {}, of {} in all", human::count(more, "more relation"), counts(shown.total)));
    }
    if shown.created > 0 {
        add(format!("created {}", files(&event.created, shown.created)));
    }
    if let Some(removal) = shown.removal {
        let what = match removal {
            FileRemoval::Dropped => "dropped",
            FileRemoval::Replaced => "replaced (TRUNCATE, VACUUM FULL or a rewrite)",
            FileRemoval::Unclear => "removed (dropped or replaced)",
        };
        add(format!("{what} {}", files(&event.removed, shown.removed)));
    }
    event.objects.iter().for_each(|change| add(object(*change)));
    if !shown.stop_before.is_empty() {
        add(format!("stop before it: {}", shell::line(&shown.stop_before)));
    }
    text
}

/// `2,100,000 rows deleted, 1 row inserted`.
fn counts(rows: RowCounts) -> String {
    let one = |count: u64, what: &str| {
        let rows = if count == 1 { "row" } else { "rows" };
        (count > 0).then(|| format!("{} {rows} {what}", human::number(count)))
    };
    let all = [one(rows.deleted, "deleted"), one(rows.updated, "updated"), one(rows.inserted, "inserted")];
    let all: Vec<String> = all.into_iter().flatten().collect();
    if all.is_empty() { "0 rows".to_owned() } else { all.join(", ") }
}

fn files(named: &[RelationFile], all: usize) -> String {
    let paths: Vec<String> = named.iter().take(NAMED).map(|file| path(*file)).collect();
    let count = u64::try_from(all).unwrap_or(u64::MAX);
    let more = if all > paths.len() { ", …" } else { "" };
    format!("{}: {}{more}", human::count(count, "file"), paths.join(", "))
}

fn object(change: ObjectChange) -> String {
    match change {
        ObjectChange::DatabaseCreated(oid) => format!("created database {oid}"),
        ObjectChange::DatabaseCopied(oid) => format!("copied database {oid} to another tablespace"),
        ObjectChange::DatabaseDropped(oid) => format!("dropped database {oid}"),
        ObjectChange::DatabaseFilesRemoved(oid) => {
            format!("removed files of database {oid}, without dropping it")
        }
        ObjectChange::TablespaceCreated(oid) => format!("created tablespace {oid}"),
        ObjectChange::TablespaceDropped(oid) => format!("dropped tablespace {oid}"),
    }
}
