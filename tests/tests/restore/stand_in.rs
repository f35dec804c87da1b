//! Promise 10: a backup that turns out to be damaged does not end a restore while the same backup lies in another repository, or
//! another backup leads to the same place.

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::{BackDoor, Store};
use walpoint_tests::wait;

fn bed(
    configure: impl FnOnce(walpoint_tests::agent::Agent) -> walpoint_tests::agent::Agent,
) -> (Archived, Ledger) {
    let builder = Cluster::builder().segment_size_mb(1).conf("wal_retrieve_retry_interval", "200ms");
    let bed = Archived::start_with(builder, Store::local(), configure);
    let ledger = Ledger::create(&bed.cluster, "rows");
    bed.cluster.psql("create table t as select i, md5(i::text) from generate_series(1, 50000) i; checkpoint");
    (bed, ledger)
}

fn packs(door: &BackDoor, backup: &str) -> Vec<String> {
    let keys = door.list("clusters/main/data").into_iter();
    keys.filter(|key| key.contains(backup) && key.ends_with(".pack")).collect()
}

/// Restores, and the highest row; what was reported.
#[track_caller]
fn restored(bed: &Archived, ledger: &Ledger, options: &[&str]) -> (u32, Value, String) {
    let pgdata = bed.place("target");
    let arguments = [&["--json", "restore", "--pgdata", pgdata.to_str().unwrap()], options].concat();
    let output = bed.agent.restore(&arguments).expect_success();
    let report = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"));
    let server = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), &pgdata);
    server.wait_promoted();
    assert_eq!(server.psql("select count(*) from t"), "50000");
    let highest = ledger.highest(&server);
    drop(server);
    std::fs::remove_dir_all(&pgdata).unwrap();
    (highest, report, output.stderr)
}

/// Promise 10: the same backup in another repository stands in for one that is damaged, whatever of it is.
#[test]
fn the_same_backup_in_another_repository_stands_in() {
    let second = Store::local();
    let (bed, mut ledger) = bed(|agent| agent.repository("second", &second));
    let backup = bed.backup();
    ledger.append(&bed.cluster);
    bed.settle();
    let (main, other) = (bed.back_door(), second.back_door());
    wait::until_true(wait::SOON, "both have the backup", || !packs(&other, &backup).is_empty());
    wait::until_true(wait::SOON, "both have the WAL", || {
        let segments = |door: &BackDoor| {
            let keys = door.list("clusters/main").into_iter();
            keys.filter(|key| key.contains("/wal/") && key.rsplit('/').next().unwrap().len() == 24).count()
        };
        segments(&main) == segments(&other)
    });
    let damaged = packs(&main, &backup);
    assert_eq!(damaged, packs(&other, &backup), "one id in both");
    let count = bed.place("before");
    let before = format!("echo x >> {}", count.display());
    let mut midway = 0;
    for pack in &damaged {
        let whole = main.get(pack).unwrap();
        main.flip_bit(pack, whole.len() / 2);
        let (row, report, log) = restored(&bed, &ledger, &["--pre-command", &before]);
        assert_eq!((row, &report["backup"]), (1, &backup.as_str().into()));
        let notes = report["notes"].to_string();
        for told in [pack.as_str(), "holds the same backup"] {
            assert!(notes.contains(told), "{told}: {report:#} {log}");
        }
        midway += usize::from(log.contains("starting over"));
        assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n", "--pre-command ran once");
        std::fs::remove_file(&count).unwrap();
        main.delete(pack);
        let (row, report, _) = restored(&bed, &ledger, &[]);
        assert!(row == 1 && report["notes"].to_string().contains(pack), "{report:#}");
        main.put(pack, whole);
    }
    assert!(midway > 0, "some damage is found when files are written already");
    // Damaged in both of them.
    let [first, ..] = &damaged[..] else { panic!("no pack") };
    let whole = main.get(first).unwrap();
    for door in [&main, &other] {
        door.flip_bit(first, whole.len() / 2);
    }
    let refused = bed.try_restore("target", &[]).expect_status(1);
    assert!(refused.stderr.contains("The same command would end there again"), "{refused:#?}");
}

/// Promises 10 and 11: an older backup stands in for a damaged one where recovery ends at the same place; where the older one is
/// not enough, or another was asked for, the damage ends the restore. What `verify` announced is not planned with.
#[test]
fn another_backup_stands_in_and_what_verify_announced_is_not_planned() {
    let (bed, mut ledger) = bed(|agent| agent);
    let early = bed.backup();
    ledger.append(&bed.cluster);
    bed.cluster.psql("create table u as select i, md5(i::text) from generate_series(1, 50000) i; checkpoint");
    let late = bed.backup();
    ledger.append(&bed.cluster);
    bed.settle();
    let door = bed.back_door();
    for pack in packs(&door, &late) {
        let whole = door.get(&pack).unwrap();
        door.flip_bit(&pack, whole.len() / 2);
        let (row, report, log) = restored(&bed, &ledger, &[]);
        assert_eq!((row, &report["backup"]), (2, &early.as_str().into()), "{report:#} {log}");
        assert!(log.contains(&pack) && report["notes"].to_string().contains(&late), "{report:#} {log}");
        let refused = bed.try_restore("target", &["--backup", &late]).expect_status(1);
        assert!(refused.stderr.contains("The same command would end there again"), "{refused:#?}");
        let moment = bed.try_restore("moment", &["--target-immediate"]).expect_status(1);
        assert!(moment.stderr.contains("cannot replace it"), "{moment:#?}");
        for place in ["target", "moment"] {
            std::fs::remove_dir_all(bed.place(place)).ok();
        }
        door.put(&pack, whole);
    }

    let pack = packs(&door, &late).remove(0);
    door.truncate(&pack, 1000);
    bed.agent.run(&["verify"]).expect_status(3);
    let plan = |options: &[&str]| -> Value {
        let output = bed.agent.restore(&[&["--json", "plan"], options].concat());
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
    };
    let planned = plan(&[]);
    assert_eq!(planned["backup"]["id"], early.as_str(), "{planned:#}");
    let notes = planned["notes"].to_string();
    assert!(notes.contains(&format!("Backup {late} is newer but was not chosen")), "{planned:#}");
    assert!(notes.contains("found damaged or missing"), "{planned:#}");
    assert_eq!(plan(&["--backup", &late])["backup"]["id"], late.as_str(), "asked for by its id");
    let status = bed.agent.run(&["status"]).expect_success();
    assert!(status.stdout.contains("DAMAGED: 1 damaged or missing packs"), "{status:#?}");
    assert_eq!(restored(&bed, &ledger, &[]).0, 2);
}
