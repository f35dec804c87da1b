//! R1: `archive-agent restore-point`: a moment that is named before a deployment, and that the printed command restores to.

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::builder::ClusterBuilder;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::Output;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;

fn builder() -> ClusterBuilder {
    Cluster::builder().segment_size_mb(1).conf("wal_retrieve_retry_interval", "200ms")
}

fn report(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

/// The options of the printed command, without its directory.
fn options(report: &Value) -> Vec<String> {
    let command = report["command"].as_str().expect("a command");
    let options =
        command.strip_prefix("restore-agent restore ").and_then(|rest| rest.strip_suffix(" --pgdata DIR"));
    options.unwrap_or_else(|| panic!("{command}")).split(' ').map(str::to_owned).collect()
}

/// The highest row after the printed command.
#[track_caller]
fn row(bed: &Archived, ledger: &Ledger, options: &[String]) -> u32 {
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let restored = bed.restore_and_start("target", &options);
    restored.wait_paused();
    let highest = ledger.highest(&restored);
    let pgdata = restored.pgdata().to_owned();
    drop(restored);
    std::fs::remove_dir_all(pgdata).unwrap();
    highest
}

#[test]
fn a_restore_point_is_durable_when_it_is_printed_with_its_command() {
    let far = Store::local();
    let bed = Archived::start_with(builder(), Store::local(), |agent| agent.repository("far", &far));
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    let early = bed.agent.run(&["restore-point", "early", "--json"]).expect_success();
    assert_eq!(
        report(&early)["warnings"].as_array().map(Vec::len),
        Some(2),
        "no backup leads there: {early:#?}"
    );
    bed.backup();
    ledger.append(primary);
    let made = bed.agent.run(&["restore-point", "before-release", "--json"]).expect_success();
    let first = report(&made);
    assert_eq!(first["repositories"], serde_json::json!(["main", "far"]), "{first:#}");
    assert_eq!((&first["same_name_count"], &first["warnings"]), (&0.into(), &Value::Null), "{first:#}");
    let segment = first["segment"].as_str().unwrap();
    for store in [&bed.store, &far] {
        assert!(
            store.back_door().list("clusters/main").iter().any(|key| key.ends_with(segment)),
            "{first:#}"
        );
    }
    ledger.append(primary);

    // A second one of that name: the command leads to it, and the first one's no longer to either.
    let again = bed.agent.run(&["restore-point", "before-release", "--json"]).expect_success();
    assert!(again.stderr.contains("another restore point named"), "{again:#?}");
    let second = report(&again);
    assert_eq!(second["same_name_count"], 1, "{second:#}");
    ledger.append(primary);
    bed.settle();
    assert_eq!(row(&bed, &ledger, &options(&second)), 2, "{second:#}");
    bed.try_restore("refused", &["--target-name", "before-release"]).expect_status(1);

    let only = bed.agent.run(&["restore-point", "in-one", "--repo", "far"]).expect_success().stdout;
    assert!(only.contains("\"in-one\" is durable") && only.contains(" in far\n"), "{only}");
    assert!(only.contains("--repo far --target-name in-one --pgdata DIR"), "{only}");
    let unique = bed.agent.run(&["restore-point", "after-release", "--json"]).expect_success();
    ledger.append(primary);
    bed.settle();
    let unique = options(&report(&unique));
    assert!(unique.ends_with(&["--target-name".to_owned(), "after-release".to_owned()]), "{unique:?}");
    assert_eq!(row(&bed, &ledger, &unique), 3);
}

#[test]
fn a_restore_point_that_cannot_be_restored_to_is_refused() {
    let bed = Archived::start(builder(), Store::local());
    let primary = &bed.cluster;
    bed.backup();
    for name in ["", &"n".repeat(64)] {
        let refused = bed.agent.run(&["restore-point", name]).expect_status(2);
        assert!(refused.stderr.contains("63 bytes"), "{refused:#?}");
    }
    let unit = bed.agent.run(&["restore-point", "x", "--timeout", "60"]).expect_status(2);
    assert!(unit.stderr.contains("has units"), "{unit:#?}");
    bed.agent.run(&["restore-point", "x", "--repo", "nowhere"]).expect_status(2);

    // What is not archived in time is told with its reason. It stays in WAL, and is found once that is archived.
    primary.psql("alter system set archive_command = 'false'");
    primary.reload();
    primary.wait_for("show archive_command", "false");
    let late = bed.agent.run(&["restore-point", "late", "--timeout", "2s"]).expect_status(1);
    for says in ["\"late\" was created at ", "not durable yet", "within 2s", "archive_command = 'false'"] {
        assert!(late.stderr.contains(says), "{says}: {late:#?}");
    }
    primary.psql("alter system reset archive_command");
    primary.reload();
    bed.settle();
    let again = bed.agent.run(&["restore-point", "late", "--json"]).expect_success();
    assert_eq!(report(&again)["same_name_count"], 1, "{again:#?}");

    // A standby writes no WAL of its own.
    let copy = bed.restore_and_start("copy", &["--standby"]);
    let standby = Agent::with(&copy, &bed.store).run(&["restore-point", "x"]).expect_status(1);
    assert!(standby.stderr.contains("is in recovery"), "{standby:#?}");
    // From its machine, the primary creates one: the directory there is the standby's, and is left alone.
    let from_there =
        Agent::at(primary.dir(), copy.pgdata(), &primary.conninfo()).repository("main", &bed.store);
    from_there.run(&["restore-point", "from-the-standby"]).expect_success();
}

/// A name that is no UTF-8 is one that recovery cannot be given: the restore point is listed with its position, and the name is refused.
#[test]
fn a_restore_point_whose_name_is_no_utf8_is_reached_by_its_position() {
    let bed = Archived::start(builder().initdb("--encoding=LATIN1"), Store::local());
    let name = "vor-Änderung";
    let converted = bed.agent.run(&["restore-point", name]).expect_status(2);
    assert!(converted.stderr.contains("LATIN1"), "{converted:#?}");
    bed.backup();
    bed.cluster.psql(&format!("set client_encoding = 'UTF8'; select pg_create_restore_point('{name}')"));
    bed.settle();
    let listed = report(&bed.agent.restore(&["list", "--json", "--restore-points"]).expect_success());
    let point = &listed["repositories"][0]["restore_points"][0];
    let lsn = point["lsn"].as_str().unwrap();
    assert_eq!(point["options"], serde_json::json!(["--target-lsn", lsn]), "{listed:#}");
    let refused = bed.agent.restore(&["plan", "--target-name", point["name"].as_str().unwrap()]);
    assert!(format!("{}{}", refused.stdout, refused.stderr).contains(lsn), "{refused:#?}");
    refused.expect_status(1);
    bed.agent.restore(&["plan", "--target-lsn", lsn]).expect_success();
}

/// Writes WAL up to less than the length of a restore point's record before the end of a segment of 1 MiB.
fn fill_the_segment(primary: &Cluster) {
    primary.psql(
        "do $$ declare rest bigint; begin loop \
         rest := 1048576 - pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint % 1048576; \
         exit when rest < 100; \
         perform pg_logical_emit_message(false, 'w', repeat('x', \
           greatest(0, case when rest > 2000 then rest * 9 / 10 - 500 else rest - 144 end)::int)); \
         end loop; end $$",
    );
}

/// No name is stored of a record that crosses the end of a segment: the printed command leads to it all the same, and not to another one
/// of its name.
#[test]
fn a_restore_point_across_the_end_of_a_segment_is_restored_to() {
    let bed = Archived::start(builder(), Store::local());
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    ledger.append(primary);
    bed.agent.run(&["restore-point", "twice"]).expect_success();
    ledger.append(primary);
    let crossing = (0..20).find_map(|_| {
        fill_the_segment(primary);
        let made = report(&bed.agent.run(&["restore-point", "twice", "--json"]).expect_success());
        made["lsn"].is_null().then_some(made)
    });
    let crossing = crossing.expect("one that crosses");
    assert_eq!(crossing["warnings"], Value::Null, "{crossing:#}");
    ledger.append(primary);
    bed.settle();
    let options = options(&crossing);
    assert!(options.contains(&"--target-exclusive".to_owned()), "{options:?}");
    assert_eq!(row(&bed, &ledger, &options), 2);
}

#[test]
fn a_server_that_archives_nothing_gets_no_restore_point() {
    let mut cluster = builder().init();
    let store = Store::local();
    let agent = Agent::with(&cluster, &store);
    agent.init(&[]).expect_success();
    cluster.start();
    let before = cluster.psql("select pg_current_wal_insert_lsn()");
    let refused = agent.run(&["restore-point", "x"]).expect_status(1);
    assert!(refused.stderr.contains("archive_mode is off"), "{refused:#?}");
    let unchanged =
        cluster.psql(&format!("select pg_current_wal_insert_lsn() - '{}' < 1048576", before.trim()));
    assert_eq!(unchanged.trim(), "t", "no segment was switched");
}

/// What another server writes is not what the configuration archives, whatever its system identifier.
#[test]
fn no_restore_point_is_created_on_another_server_than_the_data_directorys() {
    let bed = Archived::start(builder(), Store::local());
    bed.backup();
    let other = {
        let mut standby = bed.cluster.standby();
        standby.start();
        standby.wait_replayed(&bed.cluster);
        standby.promote();
        standby
    };
    let mixed =
        Agent::at(other.dir(), bed.cluster.pgdata(), &other.conninfo()).repository("main", &bed.store);
    mixed.write();
    let refused = mixed.run(&["restore-point", "x"]).expect_status(1);
    assert!(refused.stderr.contains("is not that of "), "{refused:#?}");

    let foreign = Cluster::builder().segment_size_mb(1).start();
    let mixed =
        Agent::at(foreign.dir(), bed.cluster.pgdata(), &foreign.conninfo()).repository("main", &bed.store);
    mixed.write();
    let refused = mixed.run(&["restore-point", "x"]).expect_status(1);
    assert!(refused.stderr.contains("cannot create a restore point"), "{refused:#?}");
}
