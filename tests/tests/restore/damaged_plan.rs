//! Promises 7 and 10: what is damaged or gone in one repository neither hides nor changes the answer of another one, and is named.

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::Output;
use walpoint_tests::store::{BackDoor, Store};
use walpoint_tests::wait;

/// What a repository has of everything that plans read.
fn objects(door: &BackDoor) -> Vec<String> {
    let keys = door.list("").into_iter();
    keys.filter(|key| !key.contains("/data/") && !key.contains("/evidence/") && !key.contains("/leases/"))
        .collect()
}

/// Two repositories that hold two timelines of one server, a restore point on each, and backups.
fn bed(second: &Store) -> Archived {
    let builder = Cluster::builder().segment_size_mb(1);
    let mut bed = Archived::start_with(builder, Store::local(), |agent| agent.repository("second", second));
    bed.cluster.psql("create table t as select i from generate_series(1, 100) i");
    bed.backup();
    bed.cluster.psql("select pg_create_restore_point('first')");
    bed.settle();
    bed.cluster.psql("insert into t values (0)");
    bed.settle();
    let mut standby = bed.cluster.streaming_standby();
    standby.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    bed.stop_daemon();
    let agent = Agent::with(&standby, &bed.store).repository("second", second);
    agent.archive_from(&standby);
    let daemon = agent.daemon();
    standby.stop(Shutdown::Fast);
    standby.start();
    standby.promote();
    standby.psql("insert into t values (1); select pg_create_restore_point('second')");
    let segment = standby.switch_wal();
    standby.wait_archived(&segment);
    agent.run(&["backup"]).expect_success();
    standby.psql("insert into t values (2)");
    let segment = standby.switch_wal();
    standby.wait_archived(&segment);
    let (main, other) = (bed.back_door(), second.back_door());
    let wal = |door: &BackDoor| objects(door).into_iter().filter(|key| key.contains("/wal/")).count();
    wait::until_true(wait::SOON, "both have the WAL", || wal(&main) == wal(&other));
    assert_eq!(daemon.stop(), 0);
    standby.stop(Shutdown::Fast);
    bed
}

/// What a plan does, but for what says where it comes from.
fn answer(output: &Output) -> Value {
    assert_eq!(output.status, 0, "{output:#?}");
    let mut plan: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"));
    let plan = plan.as_object_mut().unwrap();
    let kept = ["timeline", "until_lsn", "stop", "path", "segments", "backup"].iter();
    kept.filter_map(|name| Some((name.to_string(), plan.remove(*name)?))).collect()
}

/// Whichever object of one repository is damaged, empty or gone, the plan is the one that both together gave, and a repository that is
/// not used is named.
#[test]
fn what_is_damaged_in_one_repository_does_not_hide_the_others_answer() {
    let second = Store::local();
    let bed = bed(&second);
    let (main, other) = (bed.back_door(), second.back_door());
    let targets: [&[&str]; 4] = [
        &[],
        &["--target-name", "first", "--target-timeline", "1"],
        &["--target-name", "second"],
        &["--target-immediate"],
    ];
    let plan = |options: &[&str]| bed.agent.restore(&[&["--json", "plan"], options].concat());
    let sound: Vec<Value> = targets.iter().map(|options| answer(&plan(options))).collect();
    let mut wrong = Vec::new();
    for (repository, door) in [("main", &main), ("second", &other)] {
        for key in objects(door) {
            let whole = door.get(&key).unwrap();
            for how in ["header", "body", "empty", "gone"] {
                let mut bytes = whole.to_vec();
                match how {
                    "header" => bytes[10.min(whole.len() - 1)] ^= 1,
                    "body" => bytes[whole.len() / 2] ^= 1,
                    "empty" => bytes.clear(),
                    _ => {}
                }
                if how == "gone" {
                    door.delete(&key)
                } else {
                    door.put(&key, bytes)
                }
                for (options, sound) in targets.iter().zip(&sound) {
                    let output = plan(options);
                    let what = format!("{how} in {repository}: {key} {options:?}");
                    if output.status != 0 {
                        wrong.push(format!("{what}: {}", output.stderr));
                        continue;
                    }
                    let answer = answer(&output);
                    if answer != *sound {
                        wrong.push(format!("{what}: {answer:#} instead of {sound:#}; {}", output.stderr));
                    }
                    if output.stderr.contains("is not used") || output.stderr.contains("was skipped") {
                        let named = output.stderr.replace("\\", "").contains(&format!("\"{repository}\""));
                        if !named {
                            wrong.push(format!("{what}: {}", output.stderr))
                        }
                    }
                }
            }
            door.put(&key, whole);
        }
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}

/// One repository's history of the youngest timeline is damaged or gone. What lies before that timeline is planned all the same: the
/// other repository's history says where it begins.
#[test]
fn a_history_that_one_repository_lost_hides_nothing_before_its_timeline() {
    let second = Store::local();
    let bed = bed(&second);
    let plan = |options: &[&str]| answer(&bed.agent.restore(&[&["--json", "plan"], options].concat()));
    let named = plan(&["--target-name", "first", "--target-timeline", "1"]);
    let to_first = || plan(&["--target-lsn", named["stop"]["lsn"].as_str().unwrap()]);
    let sound = to_first();
    assert_eq!(sound["timeline"], 1, "{sound:#}");
    for door in [bed.back_door(), second.back_door()] {
        let keys = door.list("clusters/main").into_iter();
        let history = { keys }.find(|key| key.ends_with("00000002.history")).unwrap();
        let whole = door.get(&history).unwrap();
        door.flip_bit(&history, whole.len() / 2);
        assert_eq!(to_first(), sound, "{history} is damaged");
        door.delete(&history);
        assert_eq!(to_first(), sound, "{history} is gone");
        door.put(&history, whole);
    }
}

/// Everything of the newest backup but its packs is gone in both repositories. The end of an older one is not planned without a word.
#[test]
fn a_newest_backup_that_is_lost_but_for_its_packs_is_named() {
    let second = Store::local();
    let bed = bed(&second);
    let plan = |options: &[&str]| answer(&bed.agent.restore(&[&["--json", "plan"], options].concat()));
    let notes = |options: &[&str]| {
        let output = bed.agent.restore(&[&["--json", "plan", "--target-immediate"], options].concat());
        serde_json::from_str::<Value>(&output.stdout).unwrap()["notes"].to_string()
    };
    let newest = plan(&["--target-immediate"])["backup"]["id"].as_str().unwrap().to_owned();
    assert!(!notes(&[]).contains("is newer"), "{}", notes(&[]));
    for door in [bed.back_door(), second.back_door()] {
        let own = format!("backups/{newest}/");
        door.list("clusters/main")
            .into_iter()
            .filter(|key| key.contains(&own))
            .for_each(|key| door.delete(&key));
    }
    let of_older = notes(&[]);
    assert!(of_older.contains(&format!("Backup {newest} is newer")), "{of_older}");
    let named = notes(&["--target-timeline", "1"]);
    assert!(!named.contains("is newer"), "{named}");
}
