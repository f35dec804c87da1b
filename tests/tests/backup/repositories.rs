//! One reading, a copy in each repository; one that fails does not take the others with it.

use walpoint_tests::cluster::Cluster;
use walpoint_tests::faults::SmallDisk;
use walpoint_tests::store::Store;
use walpoint_tests::{process, wait};

use crate::bed::{Backed, Bed, noise, report};

/// The same backup, by the same id, in both; each by itself is enough to restore.
#[test]
fn a_backup_goes_to_every_repository() {
    let second = Store::local();
    let bed = Bed::new(Cluster::builder(), Store::local(), |agent| agent.repository("second", &second));
    bed.cluster.psql("create table t as select generate_series(1, 1000) i");
    let backup = bed.backup(&[]);
    let id = backup["backup"].as_str().unwrap();
    assert_eq!(backup["repositories"].as_array().unwrap().len(), 2);
    for store in [&bed.store, &second] {
        let backed = Backed::in_store(store);
        assert_eq!(backed.finished()[0].to_string(), id);
        let target = backed.unpack(id, &bed.cluster);
        assert!(target.join("global/pg_control").exists());
    }
    let only = bed.backup(&["--repo", "second"]);
    assert_eq!(only["repositories"][0]["repository"], "second");
    assert_eq!((bed.repository().finished().len(), Backed::in_store(&second).finished().len()), (1, 2));
    let output = bed.agent.run(&["backup", "--repo", "third"]).expect_status(2);
    assert!(output.stderr.contains("main, second"), "{}", output.stderr);

    // So it is with every command, of both programs.
    let status = bed.agent.run(&["status", "--repo", "second", "--json"]).expect_success().stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let shown = status["clusters"][0]["repositories"].as_array().unwrap();
    assert_eq!((shown.len(), &shown[0]["repository"]), (1, &"second".into()), "{status:#}");
    let checked = bed.agent.run(&["check", "--repo", "second", "--no-switch"]).expect_success().stdout;
    assert!(checked.contains("repository second") && !checked.contains("repository main"), "{checked}");
    assert!(!checked.contains("to acknowledge WAL"), "not a matter of one of them: {checked}");
    let restoring = |arguments: &[&str]| {
        process::run(&mut bed.agent.command("restore-agent", arguments.to_vec()), wait::SOON)
    };
    restoring(&["plan", "--repo", "second"]).expect_success();
    for arguments in
        [&["plan", "--repo", "third"][..], &["plan", "--repo", "second", "--repo", &second.url()]]
    {
        assert!(restoring(arguments).expect_status(2).stderr.contains("--repo"), "{arguments:?}");
    }
    for arguments in [
        &["status", "--repo", "third"][..],
        &["run", "--once", "--repo", "main"],
        &["init", "--repo", "main"],
    ] {
        assert!(bed.agent.run(arguments).expect_status(2).stderr.contains("--repo"), "{arguments:?}");
    }
}

/// A disk that fills up while the backup is written: the other copy is finished, and the failure is told.
#[test]
fn a_repository_that_fails_drops_out() {
    walpoint_tests::needs_root!();
    let disk = SmallDisk::new(50);
    let place = disk.path().join("repo");
    std::fs::create_dir(&place).unwrap();
    walpoint_tests::user::give(&place);
    let small = Store::local_at(&place);
    let bed = Bed::new(Cluster::builder(), Store::local(), |agent| {
        agent.repository("small", &small).cluster_line("ack = [\"main\"]")
    });
    // Room for what the first backup is guessed to take, a quarter, but not for what does not compress.
    noise(&bed.cluster.pgdata().join("noise"), 70);
    let output = bed.agent.run(&["backup", "--json"]).expect_status(1);
    let backup = report(&output);
    assert_eq!(backup["repositories"].as_array().unwrap().len(), 1, "{backup}");
    assert_eq!(backup["repositories"][0]["repository"], "main");
    assert!(backup["failed"][0]["message"].as_str().unwrap().contains("repository small"), "{backup}");
    assert!(output.stderr.contains("not in every repository"), "{}", output.stderr);
    assert_eq!(bed.repository().finished().len(), 1);
    assert_eq!(Backed::in_store(&small).finished(), []);
}

/// A repository beside that cannot be used from the beginning: the others get the backup, and the failure is told. One that is
/// named, and one without which no WAL is archived, is not done without.
#[test]
fn a_repository_that_is_gone_is_left_out() {
    let [gone, second] = [Store::local(), Store::local()];
    let bed = Bed::new(Cluster::builder(), Store::local(), |agent| {
        let agent = agent.repository("gone", &gone).repository("second", &second);
        agent.cluster_line("ack = [\"main\"]")
    });
    let away = |store: &Store| {
        let root = store.root().unwrap();
        std::fs::rename(root, root.with_extension("away")).unwrap();
    };
    away(&gone);
    for arguments in [&["backup", "--json"][..], &["backup", "--json", "--remote"]] {
        let output = bed.agent.run(arguments).expect_status(1);
        let backup = report(&output);
        let names: Vec<_> =
            backup["repositories"].as_array().unwrap().iter().map(|r| &r["repository"]).collect();
        assert_eq!(names, ["main", "second"], "{backup}");
        assert_eq!(backup["failed"].as_array().unwrap().len(), 1, "{backup}");
        assert!(
            backup["failed"][0]["message"]
                .as_str()
                .unwrap()
                .starts_with("repository gone: there is no repository"),
            "{backup}"
        );
        assert!(output.stderr.contains("so this backup is not stored there"), "{}", output.stderr);
        assert!(output.stderr.contains("not in every repository"), "{}", output.stderr);
    }
    assert_eq!((bed.repository().finished().len(), Backed::in_store(&second).finished().len()), (2, 2));
    let refused = |arguments: &[&str]| {
        let output = bed.agent.run(arguments).expect_status(1);
        assert!(output.stderr.contains("no backup was started: repository "), "{}", output.stderr);
    };
    refused(&["backup", "--repo", "gone", "--repo", "main"]);
    bed.agent.run(&["backup", "--repo", "main", "--repo", "second"]).expect_success();
    away(&bed.store);
    refused(&["backup"]);
}

/// Free space is looked at before anything begins.
#[test]
fn a_disk_without_room_is_refused_before_the_backup() {
    walpoint_tests::needs_root!();
    let disk = SmallDisk::new(40);
    let place = disk.path().join("repo");
    std::fs::create_dir(&place).unwrap();
    walpoint_tests::user::give(&place);
    let bed = Bed::new(Cluster::builder(), Store::local_at(&place), |agent| agent);
    bed.cluster.psql("create table t as select md5(random()::text) from generate_series(1, 100000) i");
    disk.fill(3 << 20);
    let output = bed.agent.run(&["backup"]).expect_status(1);
    assert!(
        output.stderr.contains("no backup was started") && output.stderr.contains("free in"),
        "{}",
        output.stderr
    );
    disk.free();
}

/// B4: where there is no room for a full backup, one that stores what has changed is made all the same.
#[test]
fn a_disk_with_room_for_what_changed_takes_the_next_backup() {
    walpoint_tests::needs_root!();
    let disk = SmallDisk::new(100);
    let place = disk.path().join("repo");
    std::fs::create_dir(&place).unwrap();
    walpoint_tests::user::give(&place);
    let bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::local_at(&place), |agent| agent);
    bed.cluster
        .psql("create table t as select md5(random()::text) from generate_series(1, 400000) i; checkpoint");
    let first = bed.backup(&[]);
    let stored = first["repositories"][0]["stored_bytes"].as_u64().unwrap();
    bed.cluster.psql("create table later as select 1; checkpoint");
    disk.fill(stored * 6 / 10);
    let refused = bed.agent.run(&["backup", "--full"]).expect_status(1);
    assert!(
        refused.stderr.contains("no backup was started") && refused.stderr.contains("a full backup takes"),
        "{}",
        refused.stderr
    );
    let next = bed.backup(&[]);
    assert!(next["repositories"][0]["stored_bytes"].as_u64().unwrap() < stored / 10, "{next:#}");
    disk.free();
}

/// What is stored is compressed as the configuration says, WAL no harder than keeps up, and read whatever it says.
#[test]
fn the_compression_level_is_that_of_the_configuration() {
    let [light, heavy] = ["compression_level = 1", "compression_level = 16"].map(|level| {
        let bed = Bed::new(Cluster::builder(), Store::local(), |agent| agent.cluster_line(level));
        bed.cluster.psql(
            "create table words as select i, 'the quick brown fox ' || i * 7919 || ' jumps over ' || i % 101 as t
             from generate_series(1, 200000) i; checkpoint",
        );
        bed.cluster.wait_archived(&bed.cluster.switch_wal());
        let backup = bed.backup(&["--full"]);
        let stored = bed.store.back_door();
        let wal = stored.list("").into_iter().filter(|key| key.contains("/wal/"));
        let wal: usize = wal.map(|key| stored.get(&key).unwrap().len()).sum();
        let restored = bed.restore(backup["backup"].as_str().unwrap());
        assert_eq!(restored.psql("select count(*) from words"), "200000");
        (backup["repositories"][0]["stored_bytes"].as_u64().unwrap(), wal)
    });
    println!("backup and WAL: {light:?} bytes at level 1, {heavy:?} at level 16");
    assert!(heavy.0 * 10 < light.0 * 9 && heavy.1 * 1000 < light.1 * 998, "{light:?} and {heavy:?}");
}
