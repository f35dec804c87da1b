//! R7 and F7: settings of an earlier recovery do not steer this one, the user's own stay, and a copy does not write into the
//! archive that it came from.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

/// A target of each kind that leads nowhere.
const LEFT_OVER: [(&str, &str); 5] = [
    ("recovery_target", "immediate"),
    ("recovery_target_lsn", "FF/FF000028"),
    ("recovery_target_name", "long ago"),
    ("recovery_target_time", "2001-01-01 00:00:00+00"),
    ("recovery_target_xid", "4000000000"),
];

fn append(path: &Path, text: &str) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// The value that a server on that directory would use, or what it says against the configuration.
fn value(cluster: &Cluster, pgdata: &Path, name: &str) -> Result<String, String> {
    let mut command = cluster.tool("postgres");
    command.arg("-D").arg(pgdata).args(["-C", name]);
    let output = process::run(&mut command, wait::SOON);
    if output.success() { Ok(output.stdout.trim().to_owned()) } else { Err(output.stderr) }
}

/// Settings as an earlier recovery leaves them, beside what is the user's own.
fn leave_settings(primary: &Cluster) {
    for (name, value) in [
        ("restore_command", "exit 1"),
        ("recovery_end_command", "exit 3"),
        ("archive_cleanup_command", "exit 3"),
        ("recovery_min_apply_delay", "1h"),
        ("recovery_target_timeline", "77"),
        ("recovery_target_inclusive", "off"),
        ("recovery_target_action", "shutdown"),
    ] {
        primary.set(name, value);
    }
    // In the other file, by ALTER SYSTEM, beside what is the user's own.
    primary.psql("alter system set recovery_target_name = 'older still'");
    primary.psql("alter system set work_mem = '5432kB'");
    primary.psql("alter system set application_name = 'it''s mine'");
    append(
        &primary.pgdata().join("postgresql.auto.conf"),
        "Restore_Command 'exit 2'\nRECOVERY_TARGET_ACTION=promote\n",
    );
    append(&primary.pgdata().join("postgresql.conf"), "maintenance_work_mem = 23MB\n");
}

/// R7: targets and commands of an earlier recovery, wherever they were left, do not steer this one.
#[test]
fn settings_of_an_earlier_recovery_are_neutralised_and_the_users_own_stay() {
    let builder = Cluster::builder().segment_size_mb(1);
    let bed = Archived::start(builder, Store::local());
    let primary = &bed.cluster;
    leave_settings(primary);
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    let rows = ledger.append_many(primary, 3);
    primary.psql("select pg_create_restore_point('here')");
    ledger.append(primary);
    bed.settle();

    let (xid, time, lsn) = (rows[1].xid.to_string(), rows[1].time_after.clone(), rows[2].before.clone());
    let cases: [(&str, &[&str], u32); 6] = [
        ("recovery_target_xid", &["--target-xid", &xid], 2),
        ("recovery_target_time", &["--target-time", &time], 2),
        ("recovery_target_lsn", &["--target-lsn", &lsn], 2),
        ("recovery_target_name", &["--target-name", "here"], 3),
        ("recovery_target", &["--target-immediate"], 0),
        ("", &[], 4),
    ];
    for (n, (parameter, options, expected)) in cases.into_iter().enumerate() {
        let pgdata = bed.restore("target", options);
        let ours =
            if parameter.is_empty() { String::new() } else { value(primary, &pgdata, parameter).unwrap() };
        assert_eq!(ours.is_empty(), parameter.is_empty(), "{options:?}");
        // Whatever single target the user's own file holds, ours alone counts.
        let (conf, own) =
            (pgdata.join("postgresql.conf"), std::fs::read(pgdata.join("postgresql.conf")).unwrap());
        for (name, left) in LEFT_OVER {
            append(&conf, &format!("{name} = '{left}'\n"));
            for (other, _) in LEFT_OVER {
                let expected = if other == parameter { ours.as_str() } else { "" };
                assert_eq!(
                    value(primary, &pgdata, other).as_deref(),
                    Ok(expected),
                    "{name} is left over: {options:?}"
                );
            }
            if LEFT_OVER[n % LEFT_OVER.len()].0 != name {
                std::fs::write(&conf, &own).unwrap();
            }
        }
        let restored = Cluster::start_restored(primary.dir(), primary.major(), &pgdata);
        if parameter.is_empty() {
            restored.wait_promoted()
        } else {
            restored.wait_paused()
        }
        assert_eq!(ledger.highest(&restored), expected, "{options:?}");
        for (name, expected) in [
            ("work_mem", "5432"),
            ("maintenance_work_mem", "23552"),
            ("recovery_end_command", ""),
            ("archive_cleanup_command", ""),
            ("recovery_min_apply_delay", "0"),
        ] {
            assert_eq!(
                restored.psql(&format!("select reset_val from pg_settings where name = '{name}'")),
                expected
            );
        }
        let auto = std::fs::read_to_string(pgdata.join("postgresql.auto.conf")).unwrap();
        assert!(auto.contains("application_name = 'it''s mine'"), "{auto}");
        drop(restored);
        std::fs::remove_dir_all(pgdata).unwrap();
    }
}

/// R7: a backup of a restored cluster is one like any other: what its restore left behind does not steer the next.
#[test]
fn a_restore_of_a_restored_cluster_begins_from_a_clean_slate() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    let row = ledger.append(&bed.cluster);
    ledger.append(&bed.cluster);
    bed.settle();
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    std::fs::rename(&pgdata, bed.place("lost")).unwrap();
    let options = ["--target-xid", &row.xid.to_string(), "--target-action", "promote", "--resume-archiving"];
    bed.restore(pgdata.file_name().unwrap().to_str().unwrap(), &options);
    bed.cluster.start();
    bed.cluster.wait_promoted();
    bed.cluster.psql("insert into rows values (7)");
    bed.backup();
    bed.cluster.psql("insert into rows values (8)");
    bed.settle();
    let restored = bed.restore_and_start("again", &[]);
    restored.wait_promoted();
    assert_eq!(restored.psql("select string_agg(n::text, ' ' order by n) from rows"), "1 7 8");
    let auto = std::fs::read_to_string(restored.pgdata().join("postgresql.auto.conf")).unwrap();
    assert_eq!(auto.matches("\nrestore_command").count(), 1, "{auto}");
}

/// F7: what takes the original's place is not said to archive where the backup's own configuration switches that off.
#[test]
fn a_backup_with_archiving_switched_off_is_not_said_to_archive() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    // It counts from the next start on.
    bed.cluster.psql("alter system set archive_mode = off");
    bed.backup();
    bed.settle();
    let output = bed.try_restore("back", &["--resume-archiving", "--json"]).expect_success();
    let report: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(report["archiving"], false, "{report:#}");
    let says = |note: &serde_json::Value| note.to_string().contains("this server archives nothing");
    assert!(report["notes"].as_array().unwrap().iter().any(says), "{report:#}");
}

/// F7: a restored copy does not archive, says so, and goes on saying so to who restores it; with `--resume-archiving` its
/// WAL goes into the same archive, on the new timeline.
#[test]
fn a_restored_copy_does_not_archive_unless_it_was_told_to() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let primary = &bed.cluster;
    primary.psql("create table t as select 1 as one");
    bed.backup();
    bed.settle();
    // That it was restored is on record; nothing else is.
    let objects = || {
        let mut objects = bed.back_door().list("clusters/main");
        objects.retain(|key| !key.contains("/evidence/"));
        objects
    };
    let before = objects();

    let output = bed.try_restore("copy", &[]).expect_success();
    assert!(
        output.stdout.contains("archive_mode is off") && output.stdout.contains("--resume-archiving"),
        "{output:#?}"
    );
    let mut copy = Cluster::start_restored(primary.dir(), primary.major(), bed.place("copy"));
    copy.wait_promoted();
    assert_eq!(copy.psql("show archive_mode"), "off");
    copy.psql("create table mine as select i from generate_series(1, 10000) i");
    copy.switch_wal();
    copy.stop(Shutdown::Fast);
    copy.start();
    assert_eq!(copy.psql("show archive_mode"), "off");
    copy.stop(Shutdown::Fast);
    drop(copy);
    assert_eq!(objects(), before, "a copy wrote into the archive");

    // A standby neither, but one that is to take over is ready for it.
    let output = bed.try_restore("follows", &["--standby"]).expect_success();
    assert!(output.stdout.contains("--standby --resume-archiving"), "{output:#?}");
    let standby = bed.restore_and_start("takes-over", &["--standby", "--resume-archiving"]);
    assert_eq!(
        (standby.psql("show archive_mode"), standby.psql("select pg_is_in_recovery()")),
        ("on".into(), "t".into())
    );
    assert_eq!(standby.psql("show archive_command"), primary.psql("show archive_command"));
    drop(standby);
    assert_eq!(objects(), before, "a standby wrote into the archive");

    // The original goes on undisturbed.
    primary.psql("create table more as select 1 as one");
    bed.settle();
    assert!(objects().len() > before.len());

    // The disaster: the copy takes the original's place, and its name for the daemon.
    let mut bed = bed;
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    std::fs::remove_dir_all(&pgdata).unwrap();
    let output = bed.try_restore(pgdata.file_name().unwrap().to_str().unwrap(), &["--resume-archiving"]);
    assert!(!output.expect_success().stdout.contains("archive_mode is off"));
    bed.cluster.start();
    bed.cluster.wait_promoted();
    assert_eq!(bed.cluster.psql("show archive_mode"), "on");
    bed.settle();
    let keys = bed.back_door().list("clusters/main");
    assert!(keys.iter().any(|key| key.ends_with("history/00000002.history")), "{keys:#?}");
    assert!(keys.iter().any(|key| key.contains("/wal/00000002/")), "{keys:#?}");
    assert_eq!(bed.cluster.psql("select one from more"), "1");
}

/// F7: a copy of a subscriber connects to no publisher, also while production is down: it would advance production's replication slot, and
/// production would never get these rows. What takes the original's place keeps its subscriptions.
#[test]
fn a_restored_copy_takes_no_rows_that_a_publisher_keeps_for_the_original() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let publisher = Cluster::builder().conf("wal_level", "logical").in_dir(bed.cluster.dir()).start();
    publisher.psql("create table r (n int primary key)");
    publisher.psql("create publication p for table r");
    publisher.psql("insert into r values (1)");
    bed.cluster.psql("create table r (n int primary key)");
    bed.cluster.psql(&format!("create subscription s connection '{}' publication p", publisher.conninfo()));
    let count = "select count(*) from r";
    bed.cluster.wait_for(count, "1");
    bed.backup();
    bed.settle();

    let setting = "max_logical_replication_workers";
    let dry = bed.try_restore("copy", &["--dry-run"]).expect_success();
    assert!(dry.stdout.contains("subscriptions do not run"), "{dry:#?}");
    let output = bed.try_restore("copy", &[]).expect_success();
    assert!(output.stdout.contains(&format!("alter system reset {setting}")), "{output:#?}");
    let follows = bed.restore("follows", &["--standby"]);
    let takes_over = bed.restore("takes-over", &["--standby", "--resume-archiving"]);
    let dry = bed.try_restore("other", &["--standby", "--resume-archiving", "--dry-run"]).expect_success();
    assert!(!dry.stdout.contains("subscriptions do not run"), "{dry:#?}");
    let written = |pgdata: &Path| {
        let auto = std::fs::read_to_string(pgdata.join("postgresql.auto.conf")).unwrap();
        auto.contains(setting)
    };
    assert!(written(&follows) && !written(&takes_over));
    assert_ne!(value(&bed.cluster, &takes_over, setting).unwrap(), "0");

    bed.cluster.stop(Shutdown::Fast);
    let active = "select active from pg_replication_slots where slot_name = 's'";
    publisher.wait_for(active, "f");
    let mut copy = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), bed.place("copy"));
    copy.wait_promoted();
    publisher.psql("insert into r values (2)");
    let workers = "select count(*) from pg_stat_activity where backend_type like 'logical replication%'";
    wait::holds_for(Duration::from_secs(3), "no connection of the copy", || {
        copy.psql(workers) == "0" && publisher.psql(active) == "f"
    });
    assert_eq!(
        (copy.psql("select subenabled from pg_subscription"), copy.psql(count)),
        ("t".into(), "1".into())
    );
    copy.psql(&format!("alter system reset {setting}"));
    copy.stop(Shutdown::Fast);
    assert_ne!(value(&bed.cluster, copy.pgdata(), setting).unwrap(), "0");

    bed.cluster.start();
    bed.cluster.wait_for(count, "2");
}

/// R7, K6: without a configuration, from a URL alone: what recovery needs stands in `restore_command`.
#[test]
fn a_restore_without_a_configuration_recovers_without_one() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    ledger.append(primary);
    bed.settle();
    let pgdata = bed.place("it's a \"50%\" copy");
    let url = bed.store.url();
    let arguments = ["restore", "--repo", &url, "--cluster", "main", "--pgdata", pgdata.to_str().unwrap()];
    let mut command = bed.agent.command("restore-agent", arguments);
    process::run(command.env_remove("WALPOINT_CONFIG"), wait::SOON).expect_success();
    std::fs::remove_file(bed.agent.config()).unwrap();
    let restored = Cluster::start_restored(primary.dir(), primary.major(), &pgdata);
    restored.wait_promoted();
    assert_eq!(ledger.highest(&restored), 1);
}

/// The hooks: `--pre-command` may forbid it, `--post-command` sees a complete cluster.
#[test]
fn hooks_run_before_anything_is_written_and_when_all_is() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.backup();
    bed.settle();
    let output = bed.try_restore("target", &["--pre-command", "echo not today >&2; exit 7"]).expect_status(1);
    assert!(output.stderr.contains("not today") && output.stderr.contains('7'), "{output:#?}");
    assert!(!bed.place("target").exists());
    let note = bed.agent.place().join("note");
    let before = format!("test ! -e \"$WALPOINT_PGDATA\" && echo before > {}", note.display());
    let after = format!("ls \"$WALPOINT_PGDATA/global/pg_control\" >> {}", note.display());
    bed.restore("target", &["--pre-command", &before, "--post-command", &after]);
    let expected = format!("before\n{}\n", bed.place("target/global/pg_control").display());
    assert_eq!(std::fs::read_to_string(note).unwrap(), expected);
}

/// Promise 4: settings that were raised on the server after the backup, one of them in WAL that only its `pg_wal` has, would stop a recovery
/// in its midst. They are raised on the copy, too, and the restore says so.
#[track_caller]
fn raised_settings_stop_no_recovery(major: u32) {
    let mut bed = Archived::start(Cluster::builder().major(major).segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    bed.settle();
    let raise = |bed: &mut Archived, name: &str| {
        let value: u32 = bed.cluster.psql(&format!("show {name}")).parse().unwrap();
        let value = value + 50;
        bed.cluster.stop(Shutdown::Fast);
        bed.cluster.set(name, value);
        bed.cluster.start();
        assert_eq!(bed.cluster.psql(&format!("show {name}")), value.to_string());
        value.to_string()
    };
    let connections = raise(&mut bed, "max_connections");
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    bed.settle();
    ledger.append_as(&bed.cluster, "a2");
    bed.settle();
    let told = bed.try_restore("latest", &[]).expect_success().stdout;
    assert!(told.contains(&format!("max_connections = {connections}")), "PostgreSQL {major}: {told}");
    let latest = Cluster::start_restored(bed.cluster.dir(), major, bed.place("latest"));
    latest.wait_promoted();
    assert_eq!(ledger.labels(&latest), "a1 a2", "PostgreSQL {major}");
    assert_eq!(latest.psql("show max_connections"), connections);
    drop(latest);
    let paused = bed.restore_and_start("paused", &["--target-xid", &first]);
    paused.wait_paused();
    assert_eq!(ledger.labels(&paused), "a1", "PostgreSQL {major}");
    drop(paused);

    raise(&mut bed, "max_prepared_transactions");
    ledger.append_as(&bed.cluster, "a3");
    bed.cluster.crash();
    bed.try_restore("data", &["--delta", "--server-is-down"]).expect_success();
    bed.cluster.start();
    bed.cluster.wait_promoted();
    assert_eq!(ledger.labels(&bed.cluster), "a1 a2 a3", "PostgreSQL {major}");
}

#[test]
fn settings_that_were_raised_after_the_backup_stop_no_recovery() {
    raised_settings_stop_no_recovery(17);
}

/// The same on the oldest version, which ends there, and on the newest.
#[test]
fn settings_that_were_raised_stop_no_recovery_of_the_oldest_and_the_newest_version() {
    raised_settings_stop_no_recovery(13);
    raised_settings_stop_no_recovery(19);
}

/// What the server had when it was backed up is in its `pg_control` alone: on its command line, or in a file that was lowered since.
#[test]
fn settings_that_the_backup_needs_are_raised() {
    for major in [13, 17, 19] {
        let mut bed = Archived::start(Cluster::builder().major(major).segment_size_mb(1), Store::local());
        let mut ledger = Ledger::create(&bed.cluster, "rows");
        let before = bed.cluster.psql("show max_connections");
        bed.cluster.stop(Shutdown::Fast);
        bed.cluster.set("max_connections", 150);
        bed.cluster.start();
        bed.cluster.set("max_connections", before);
        bed.backup();
        ledger.append_as(&bed.cluster, "a1");
        bed.settle();
        let told = bed.try_restore("copy", &[]).expect_success().stdout;
        assert!(told.contains("max_connections = 150"), "PostgreSQL {major}: {told}");
        let copy = Cluster::start_restored(bed.cluster.dir(), major, bed.place("copy"));
        copy.wait_promoted();
        assert_eq!(ledger.labels(&copy), "a1", "PostgreSQL {major}");
    }
}

/// A commit on the restored server would wait for standbys that are not there: the restore names them.
#[test]
fn standbys_that_commits_would_wait_for_are_named() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t as select 1");
    // Not in force: here too no commit would end.
    bed.cluster.set("synchronous_standby_names", "FIRST 1 (west)");
    bed.backup();
    bed.settle();
    let told = bed.try_restore("copy", &[]).expect_success().stdout;
    assert!(told.contains("synchronous_standby_names is \"FIRST 1 (west)\""), "{told}");
    let told = bed.try_restore("standby", &["--standby"]).expect_success().stdout;
    assert!(!told.contains("synchronous_standby_names"), "{told}");
}
