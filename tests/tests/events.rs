//! R11: `restore-agent events` says what happened: known transactions on real servers are counted exactly, and WAL that is missing
//! is told as a gap.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::Store;
use walpoint_tests::wait;

/// What is known of the transactions that a test ran.
struct Known<'a> {
    cluster: &'a Cluster,
    /// The file of table `b`.
    b: u64,
    /// By transaction: rows that it inserted, updated and deleted by number of the file.
    rows: BTreeMap<u64, BTreeMap<u64, [u64; 3]>>,
}

impl Known<'_> {
    fn of(cluster: &Cluster) -> Known<'_> {
        let mut known = Known { cluster, b: 0, rows: BTreeMap::new() };
        known.b = known.filenode("b");
        known
    }

    fn filenode(&self, table: &str) -> u64 {
        self.number(&format!("select pg_relation_filenode('{table}')"))
    }

    /// The last number that the statements print.
    #[track_caller]
    fn number(&self, sql: &str) -> u64 {
        let printed = self.cluster.psql(sql);
        let mut numbers = printed.lines().rev().filter_map(|line| line.trim().parse().ok());
        numbers.next().unwrap_or_else(|| panic!("{sql}: {printed}"))
    }

    /// Runs a transaction that changes so many rows; its id.
    #[track_caller]
    fn run(&mut self, sql: &str, expected: &[(&str, [u64; 3])]) -> u64 {
        let rows = expected.iter().map(|(table, rows)| (self.filenode(table), *rows)).collect();
        let xid = self.number(&format!("begin; {sql}; select txid_current(); commit"));
        self.rows.insert(xid, rows);
        xid
    }
}

#[track_caller]
fn events(bed: &Archived, arguments: &[&str]) -> Value {
    let output = bed.agent.restore(&[&["events", "--json"], arguments].concat()).expect_success();
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", output.stdout))
}

/// The event of a kind and a transaction.
#[track_caller]
fn of<'e>(found: &'e Value, kind: &str, xid: u64) -> &'e Value {
    let mut all = found["events"].as_array().unwrap().iter();
    let is = |event: &&Value| event["kind"] == kind && event["xid"] == xid;
    all.find(is).unwrap_or_else(|| panic!("no {kind} of {xid} in {found:#}"))
}

/// Rows by number of the file, of relations that are no system catalogs.
fn rows(event: &Value) -> BTreeMap<u64, [u64; 3]> {
    let relations = event["relations"].as_array().unwrap().iter();
    let own = relations.filter(|relation| relation["catalog"] == false);
    let count = |relation: &Value, what: &str| relation[format!("{what}_count")].as_u64().unwrap();
    own.map(|relation| {
        let rows = ["inserted", "updated", "deleted"].map(|what| count(relation, what));
        (relation["file_number"].as_u64().unwrap(), rows)
    })
    .collect()
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

fn filenodes(files: &Value) -> Vec<u64> {
    files.as_array().unwrap().iter().map(|file| file["file_number"].as_u64().unwrap()).collect()
}

/// Changes rows in every way.
fn change_rows(known: &mut Known) -> u64 {
    known.run("insert into a select n, 'x' from generate_series(1, 1000) n", &[("a", [1000, 0, 0])]);
    known.run("copy b from program 'seq 1 500'", &[("b", [500, 0, 0])]);
    known.run("update a set v = 'y' where n <= 300", &[("a", [0, 300, 0])]);
    known.run("update a set n = n + 5000 where n <= 100", &[("a", [0, 100, 0])]);
    known.run("delete from b where n <= 200", &[("b", [0, 0, 200])]);
    let both = "insert into b values (1); savepoint s; delete from a where n between 200 and 249; release s;
                savepoint t; insert into b select generate_series(1, 70); rollback to t;
                update b set n = n where n between 201 and 210";
    known.run(both, &[("a", [0, 0, 50]), ("b", [1, 10, 0])]);
    let conflict = "insert into a values (300, 'z'), (9999, 'z') on conflict (n) do nothing";
    known.run(conflict, &[("a", [1, 0, 0])]);
    let locked =
        "select count(*) from (select * from c for update) x; lock table c; insert into c values (1)";
    known.run(locked, &[("c", [1, 0, 0])]);
    // More than PostgreSQL keeps of a transaction in shared memory.
    let many = "do $$ begin for i in 1..100 loop begin insert into b values (-1);
                exception when others then null; end; end loop; end $$";
    known.run(many, &[("b", [100, 0, 0])])
}

/// The rows of every transaction, those that were rolled back and prepared ones.
fn assert_rows(found: &Value, known: &Known, (many, rolled_back, prepared): (u64, u64, u64)) {
    for (xid, expected) in &known.rows {
        let event = of(found, "commit", *xid);
        assert_eq!(rows(event), *expected, "{event:#}");
        assert_eq!(event["at_least"], false, "{event:#}");
    }
    assert_eq!(of(found, "commit", many)["subtransaction_count"], 100);
    let b = known.b;
    let all = found["events"].as_array().unwrap();
    let aborted: Vec<_> = all.iter().filter(|event| event["kind"] == "abort").map(rows).collect();
    assert!(aborted.contains(&BTreeMap::from([(b, [70, 0, 0])])), "the savepoint: {aborted:?}");
    assert_eq!(rows(of(found, "abort", rolled_back)), BTreeMap::from([(b, [33, 0, 0])]));
    assert_eq!(of(found, "prepare", prepared)["gid"], "gid one");
    let event = of(found, "commit", prepared);
    assert_eq!((&event["prepared"], rows(event)), (&json!(true), BTreeMap::from([(b, [0, 0, 100])])));
}

/// Every way in which rows, files and databases are changed, on a server of that version, and what is found of it.
fn known_transactions_are_found_exactly(major: u32) {
    let builder = Cluster::builder().major(major).segment_size_mb(1);
    let builder = builder.conf("max_prepared_transactions", 2).conf("autovacuum", "off");
    let mut bed = Archived::start(builder, Store::local());
    let tables = "create table a (n int primary key, v text); create table b (n int); create table c (n int)";
    bed.cluster.psql(tables);
    bed.backup();
    let mut known = Known::of(&bed.cluster);
    let (a, b, c) = (known.filenode("a"), known.b, known.filenode("c"));
    let many = change_rows(&mut known);
    let rolled_back =
        known.number("begin; insert into b select generate_series(1, 33); select txid_current(); rollback");
    let prepare = "begin; delete from b where n = -1; select txid_current(); prepare transaction 'gid one'";
    let prepared = known.number(prepare);
    bed.cluster.psql("commit prepared 'gid one'");
    let truncated = known.number("begin; truncate b; select txid_current(); commit");
    bed.cluster.psql("vacuum full a");
    let dropped = known.number("begin; drop table c; select txid_current(); commit");
    bed.cluster.psql("create database other");
    let other = known.number("select oid from pg_database where datname = 'other'");
    bed.cluster.psql("drop database other; select pg_create_restore_point('here')");
    bed.settle();
    let found = events(&bed, &[]);
    assert_rows(&found, &known, (many, rolled_back, prepared));

    let event = of(&found, "commit", truncated);
    assert_eq!((&event["removal"], filenodes(&event["removed_files"])), (&json!("replaced"), vec![b]));
    assert_eq!(event["created_file_count"], 1, "{event:#}");
    let all = found["events"].as_array().unwrap();
    let removes_a =
        |event: &&Value| event["removed_files"].is_array() && filenodes(&event["removed_files"]).contains(&a);
    assert_eq!(all.iter().find(removes_a).unwrap()["removal"], "replaced", "{found:#}");
    let event = of(&found, "commit", dropped);
    assert_eq!((&event["removal"], filenodes(&event["removed_files"])), (&json!("dropped"), vec![c]));
    let objects: Vec<&Value> = all.iter().filter_map(|event| event.get("objects")).collect();
    let change = |change: &str| json!([{ "change": change, "oid": other }]);
    assert_eq!(objects, [&change("database-created"), &change("database-dropped")]);
    assert!(all.iter().any(|event| event["kind"] == "restore-point" && event["name"] == "here"));

    bed.cluster.stop(Shutdown::Fast);
    bed.cluster.start();
    bed.settle();
    let found = events(&bed, &[]);
    let kinds = |kind: &str| found["events"].as_array().unwrap().iter().filter(|e| e["kind"] == kind).count();
    assert_eq!(kinds("shutdown"), 1, "{found:#}");
    assert_eq!((&found["gap_count"], &found["unended_transaction_count"]), (&json!(0), &json!(0)));
    largest_first(&bed, a);
}

/// The largest transactions first, with the options that stop right before each.
fn largest_first(bed: &Archived, a: u64) {
    let largest = events(bed, &["--largest", "2"]);
    let listed = largest["events"].as_array().unwrap();
    assert_eq!(listed.len(), 2, "{largest:#}");
    assert_eq!(rows(&listed[0]), BTreeMap::from([(a, [1000, 0, 0])]));
    let options = words(&listed[1]["stop_before_options"]);
    let restored = bed.restore_and_start("target", &options);
    restored.wait_paused();
    assert_eq!(restored.psql("select count(*) from a"), "1000");
    assert_eq!(restored.psql("select count(*) from b"), "0", "stopped before {options:?}");
}

#[test]
fn known_transactions_are_found_on_13() {
    known_transactions_are_found_exactly(13);
}

#[test]
fn known_transactions_are_found_on_17() {
    known_transactions_are_found_exactly(17);
}

#[test]
fn known_transactions_are_found_on_19() {
    known_transactions_are_found_exactly(19);
}

/// What one repository lacks or has damaged is read from another one; what none has is a gap, and what lies behind it is listed.
#[test]
fn what_cannot_be_read_is_a_gap() {
    let second = Store::local();
    let builder = Cluster::builder().segment_size_mb(1);
    let bed = Archived::start_with(builder, Store::local(), |agent| agent.repository("second", &second));
    bed.cluster.psql("create table t (n int)");
    bed.backup();
    let step = |rows: u32| {
        let before = bed.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
        bed.cluster.psql(&format!("insert into t select generate_series(1, {rows})"));
        bed.settle();
        before
    };
    let steps: Vec<String> = [11, 22, 33, 44].map(step).to_vec();
    let key = |door: &walpoint_tests::store::BackDoor, segment: &String| {
        let keys = door.list("clusters/main").into_iter();
        keys.filter(|key| key.contains("/wal/")).find(|key| key.ends_with(segment.as_str()))
    };
    let (first, other) = (bed.back_door(), second.back_door());
    wait::until_true(wait::SOON, "both have the WAL", || {
        steps.iter().all(|segment| key(&first, segment).is_some() && key(&other, segment).is_some())
    });
    let inserted = |found: &Value| -> Vec<u64> {
        let all = found["events"].as_array().unwrap().iter();
        let rows = all.filter(|event| event["rows"].is_object()).map(|event| rows(event).into_values());
        rows.flatten().map(|[inserted, ..]| inserted).filter(|count| *count > 10).collect()
    };
    assert_eq!(inserted(&events(&bed, &[])), [11, 22, 33, 44]);

    first.delete(&key(&first, &steps[1]).unwrap());
    first.flip_bit(&key(&first, &steps[2]).unwrap(), 900);
    let found = events(&bed, &[]);
    assert_eq!((&found["gap_count"], inserted(&found)), (&json!(0), vec![11, 22, 33, 44]), "{found:#}");

    other.delete(&key(&other, &steps[1]).unwrap());
    other.flip_bit(&key(&other, &steps[2]).unwrap(), 900);
    let found = events(&bed, &[]);
    let gaps: Vec<&Value> =
        found["events"].as_array().unwrap().iter().filter(|event| event["kind"] == "gap").collect();
    assert_eq!((found["gap_count"].as_u64(), inserted(&found)), (Some(2), vec![11, 44]), "{found:#}");
    let reason = |gap: &Value| gap["reason"]["message"].as_str().unwrap().to_owned();
    assert!(reason(gaps[1]).contains("damaged"), "{gaps:#?}");
    let text = bed.agent.restore(&["events"]).expect_success().stdout;
    assert_eq!(text.matches("GAP").count(), 2, "{text}");
    assert!(text.contains("44 rows inserted") && text.contains("stop before it: --target-xid"), "{text}");
}
