//! What is printed of events, and which of them.

use serde_json::{Value, json};
use walpoint_base::{Lsn, PgTimestamp, TimelineId};
use walpoint_pg::wal::events::{ObjectChange, RelationFile, RowCounts, TransactionEvent, WalEvent};
use walpoint_repo::scan::{GapReason, ScanGap};

use super::document::{self, Summary};
use super::listing::Shown;
use super::shown::{LISTED, ShownTransaction, StopOptions};
use super::text;

fn file(number: u32) -> RelationFile {
    RelationFile { tablespace: 1663, database: 16384, number }
}

fn deleted(deleted: u64) -> RowCounts {
    RowCounts { deleted, ..RowCounts::default() }
}

/// A transaction that changed rows of as many relations.
fn transaction(relations: u32) -> TransactionEvent {
    TransactionEvent {
        xid: 4242,
        committed: true,
        prepared: false,
        time: PgTimestamp(0),
        lsn: Lsn(0x5A3_C210),
        next: Lsn(0x5A3_C238),
        first: Lsn(0x500_0000),
        irrevocable: None,
        at_least: false,
        subtransactions: 0,
        rows: (0..relations).map(|n| (file(16390 + n), deleted(u64::from(n) + 1))).collect(),
        created: Vec::new(),
        removed: Vec::new(),
        relations_updated: 0,
        relations_deleted: 0,
        objects: Vec::new(),
    }
}

fn shown(event: TransactionEvent) -> Shown {
    let timeline = TimelineId::FIRST;
    let options = StopOptions(vec!["--target-timeline".to_owned(), "2".to_owned()]);
    Shown::Transaction(Box::new(ShownTransaction::of(event, timeline, &options)))
}

fn json_of(shown: &Shown) -> Value {
    serde_json::from_str(&document::line(shown, false).unwrap()).unwrap()
}

#[test]
fn a_transaction_is_printed_with_what_stops_before_it() {
    let mut event = transaction(0);
    event.rows = vec![(file(16390), deleted(2_100_000)), (file(2619), deleted(1))];
    assert_eq!(
        text::event(&shown(event.clone())),
        "2000-01-01 00:00:00.000000+00  0/5A3C210     xid 4242 committed\n    \
         base/16384/16390: 2,100,000 rows deleted\n    \
         system catalogs: 1 row deleted\n    \
         stop before it: --target-timeline 2 --target-xid 4242 --target-exclusive\n"
    );
    let printed = json_of(&shown(event.clone()));
    assert_eq!(
        printed["rows"],
        json!({ "inserted_count": 0, "updated_count": 0, "deleted_count": 2_100_001 })
    );
    assert_eq!(printed["kind"], "commit");
    assert_eq!(printed["relations"][0]["file_number"], 16390);
    // What was rolled back needs no stop.
    event.committed = false;
    assert!(!text::event(&shown(event.clone())).contains("stop before it"));
    assert_eq!(json_of(&shown(event)).get("stop_before_options"), None);
}

#[test]
fn the_removal_of_a_database_is_stopped_before_its_first_step() {
    let mut event = transaction(0);
    event.objects = vec![ObjectChange::DatabaseDropped(16500)];
    event.irrevocable = Some(Lsn(0x500_0100));
    let printed = text::event(&shown(event));
    assert!(printed.contains("    dropped database 16500\n"), "{printed}");
    assert!(printed.contains("--target-lsn 0/5000100 --target-exclusive\n"), "{printed}");
}

#[test]
fn long_lists_are_cut_and_nothing_is_left_out_silently() {
    let event = transaction(100);
    let total: u64 = (1..=100).sum();
    let Shown::Transaction(cut) = shown(event) else { unreachable!() };
    assert_eq!((cut.event.rows.len(), cut.other_relations), (LISTED, 36));
    assert_eq!(cut.event.rows[0], (file(16489), deleted(100)), "the most rows first");
    let printed = text::event(&Shown::Transaction(cut.clone()));
    assert!(printed.contains("and 36 more relations, of 5,050 rows deleted in all"), "{printed}");
    let printed = json_of(&Shown::Transaction(cut));
    assert_eq!(
        (&printed["other_relation_count"], &printed["rows"]["deleted_count"]),
        (&json!(36), &json!(total))
    );
}

#[test]
fn names_that_others_chose_control_no_terminal() {
    let (lsn, time) = (Lsn(8), PgTimestamp(0));
    let point = WalEvent::RestorePoint { name: "a\u{1b}[2J\nb".to_owned(), time, lsn };
    let printed = text::event(&Shown::Other(point.clone(), TimelineId::FIRST));
    assert!(printed.ends_with("restore point \"a\\u{1b}[2J\\nb\"\n"), "{printed:?}");
    assert_eq!(json_of(&Shown::Other(point, TimelineId::FIRST))["name"], "a\u{1b}[2J\nb");
}

#[test]
fn a_gap_says_where_and_why() {
    let why = GapReason::Missing;
    let gap = ScanGap { from: Lsn(0x100), until: Some(Lsn(0x200)), timeline: TimelineId::FIRST, why };
    let printed = text::event(&Shown::Gap(gap.clone()));
    assert!(printed.ends_with("GAP up to 0/200: no repository has this WAL\n"), "{printed}");
    let printed = json_of(&Shown::Gap(gap));
    assert_eq!((&printed["lsn"], &printed["until_lsn"]), (&json!("0/100"), &json!("0/200")));
    assert_eq!(printed["reason"]["message"], "no repository has this WAL");
    let summary = Summary { gap_count: 1, ..Summary::default() };
    assert!(text::summary(&summary).contains("1 gap: what happened there is not known"));
}
