//! R1: a database that is dropped is lost before its transaction ends, so a target right before that needs another one.

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;

/// What follows an option in a command that is printed.
fn after<'a>(text: &'a str, option: &str) -> &'a str {
    let (_, rest) = text.split_once(option).unwrap_or_else(|| panic!("no {option} in {text}"));
    rest.split_whitespace().next().expect("a value")
}

/// R1: the note at a target before the end of the drop, and that behind a target after it, lead to the whole database.
#[test]
fn a_dropped_database_is_restored_with_the_command_of_the_note() {
    for major in [13, 17, 19] {
        let builder = Cluster::builder().major(major).segment_size_mb(1).conf("autovacuum", "off");
        let bed = Archived::start(builder, Store::local());
        let primary = &bed.cluster;
        primary.psql("create database dd");
        primary.psql_in("dd", "create table t as select generate_series(1, 1001) n");
        bed.backup();
        primary.psql("select pg_sleep(1)");
        let utc = "to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || 'Z'";
        let moment = primary.psql(&format!("select {utc}"));
        primary.psql("select pg_sleep(1)");
        let oid = primary.psql("select oid from pg_database where datname = 'dd'");
        // Newer minor versions then name the visibility map in the record that deletes the row.
        primary.psql("vacuum (freeze) pg_database");
        primary.psql("drop database dd");
        let too_late = primary.psql(&format!("select {utc}"));
        primary.psql("create table later ()");
        bed.settle();

        let at_it = bed.agent.restore(&["plan", "--target-time", &moment]).expect_success().stdout;
        let lost = format!("has removed the files of the database with the OID {oid} there");
        assert!(at_it.contains(&lost), "{major}: {at_it}");
        let before = after(&at_it, "--target-lsn ");
        let late = bed.agent.restore(&["plan", "--target-time", &too_late]).expect_success().stdout;
        assert!(late.contains(&format!("removed the database with the OID {oid}")), "{major}: {late}");
        assert_eq!(after(&late, "--target-lsn "), before, "{major}: {late}");
        assert!(!late.contains("--target-xid"), "{major}: {late}");

        let restored = bed.restore_and_start("whole", &["--target-lsn", before, "--target-exclusive"]);
        restored.wait_paused();
        assert_eq!(restored.psql_in("dd", "select count(*) from t"), "1001", "{major}");
        restored.psql("select pg_wal_replay_resume()");
        restored.wait_promoted();
        assert_eq!(restored.psql_in("dd", "select count(*) from t"), "1001", "{major}");
    }
}
