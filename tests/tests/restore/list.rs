//! `restore-agent list` shows what a cluster can be restored to, and each of its lines leads there.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::{self, Output};
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::{BackDoor, Store};
use walpoint_tests::{testbed, user, wait};

use crate::forks;

/// `list` without any configuration.
fn bare(arguments: &[&str]) -> Output {
    let mut command = Command::new(testbed::under_test("restore-agent"));
    command.arg("list").args(arguments).env_remove("WALPOINT_CONFIG").current_dir("/");
    process::run(user::become_user(&mut command), Duration::from_secs(60))
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

/// The options that a line names.
fn options(listed: &Value) -> Vec<&str> {
    let options = listed["options"].as_array().unwrap_or_else(|| panic!("no options: {listed}"));
    options.iter().map(|option| option.as_str().unwrap()).collect()
}

/// The labels of the rows that a restore with these options has.
#[track_caller]
fn rows(bed: &Archived, ledger: &Ledger, options: &[&str]) -> String {
    let restored = bed.restore_and_start("target", &[options, &["--target-action", "promote"]].concat());
    restored.wait_promoted();
    let labels = ledger.labels(&restored);
    drop(restored);
    fs::remove_dir_all(bed.place("target")).unwrap();
    labels
}

fn segments(door: &BackDoor) -> usize {
    let keys = door.list("clusters/main").into_iter();
    keys.filter(|key| key.contains("/wal/") && key.rsplit('/').next().unwrap().len() == 24).count()
}

/// R1: of each repository the backups, the restore points and the windows, in text and JSON. Restore points of one name are told
/// apart by options that lead to each. Neither a server nor a configuration is needed; what cannot be read is named.
#[test]
fn what_is_listed_can_be_restored() {
    let second = Store::local();
    let builder = Cluster::builder().segment_size_mb(1);
    let mut bed = Archived::start_with(builder, Store::local(), |agent| agent.repository("second", &second));
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    let point = |name: &str| bed.cluster.psql(&format!("select pg_create_restore_point('{name}')"));
    point("too early");
    let backup = bed.backup_with(&["--label", "before release"]);
    for (label, name) in [("a1", "daily"), ("a2", "before upgrade"), ("a3", "daily")] {
        ledger.append_as(&bed.cluster, label);
        point(name);
    }
    ledger.append_as(&bed.cluster, "a4");
    bed.settle();
    wait::until_true(wait::SOON, "both have the WAL", || {
        segments(&bed.back_door()) == segments(&second.back_door())
    });

    let text = bed.agent.restore(&["list"]).expect_success().stdout;
    for says in [
        "Cluster main in main (file://",
        "Cluster main in second (file://",
        "PostgreSQL 17",
        "FINISHED ",
        "  full  ",
        "  sound  before release  ",
        &backup,
        "--target-name 'before upgrade'\n",
        "    daily (one of 2)  20",
        "    timeline 1  20",
        ", 1 backup\n",
        " --target-time TIME ",
    ] {
        assert!(text.contains(says), "{says:?} is not in:\n{text}");
    }
    assert!(!text.contains("too early"), "no window has it:\n{text}");

    let listed = json(&bed.agent.restore(&["--json", "list"]).expect_success());
    for repository in listed["repositories"].as_array().unwrap() {
        assert_eq!(
            (&repository["error"], &repository["backups"][0]["id"]),
            (&Value::Null, &backup.as_str().into())
        );
        let points = repository["restore_points"].as_array().unwrap();
        let names: Vec<&str> = points.iter().map(|point| point["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["daily", "before upgrade", "daily"], "{repository}");
        assert!(points.iter().all(|point| point["time"].is_string()), "{repository}");
        assert_eq!(repository["windows"][0]["timeline"], 1, "{repository}");
    }
    let points = &listed["repositories"][0]["restore_points"];
    for (n, found) in [(0, "a1"), (1, "a1 a2"), (2, "a1 a2 a3")] {
        assert_eq!(rows(&bed, &ledger, &options(&points[n])), found, "{}", points[n]);
    }
    let only = json(&bed.agent.restore(&["--json", "list", "--restore-points"]).expect_success());
    let only = &only["repositories"][0];
    assert!(only["restore_points"][2].is_object() && only.get("backups").is_none(), "{only}");
    is_listed_as_far_as_it_can_be_read(&mut bed, &second, &listed["repositories"][0]["backups"]);
}

/// Without the server, without a configuration, and with one repository after the other out of reach.
#[track_caller]
fn is_listed_as_far_as_it_can_be_read(bed: &mut Archived, second: &Store, backups: &Value) {
    bed.stop_daemon();
    bed.cluster.stop(Shutdown::Immediate);
    let url = bed.store.url();
    let alone = json(&bare(&["--repo", &url, "--cluster", "main", "--json"]).expect_success());
    assert_eq!(alone["repositories"][0]["backups"], *backups);
    let command = ["restore-agent", "plan", "--repo", url.as_str(), "--cluster", "main"];
    assert_eq!(alone["plan_command"], serde_json::json!(command));
    let other = bare(&["--repo", &url, "--cluster", "mian"]).expect_status(1);
    assert!(
        other.stdout.contains("\n  the repository has no cluster mian\n  DETAIL: It has: main.\n")
            && other.stderr.contains("no repository has cluster \"mian\""),
        "{other:#?}"
    );
    bare(&[]).expect_status(2);

    for (store, readable) in [(second, true), (&bed.store, false)] {
        let root = store.root().expect("a directory").to_owned();
        fs::rename(&root, root.with_extension("gone")).unwrap();
        let listed = bed.agent.restore(&["list"]);
        let listed = if readable { listed.expect_success() } else { listed.expect_status(1) };
        assert!(
            listed.stdout.contains("cannot be read: ")
                && listed.stdout.contains("HINT: Check that its filesystem is mounted.")
        );
        let backup = backups[0]["id"].as_str().unwrap();
        assert_eq!(listed.stdout.contains(backup), readable, "{listed:#?}");
        assert_eq!(listed.stderr.contains("no repository of cluster"), !readable, "{listed:#?}");
    }
}

/// R2: of several timelines each window and each restore point is listed with the option that leads there, abandoned branches
/// included; a backup that was found damaged is marked.
#[test]
fn branches_and_damage_are_listed() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    let backup = bed.backup();
    let kept = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    ledger.append_as(&bed.cluster, "a2");
    bed.cluster.psql("select pg_create_restore_point('abandoned')");
    ledger.append_as(&bed.cluster, "a3");
    forks::lose_and_restore(&mut bed, "lost", &["--target-xid", &kept], None);
    ledger.append_as(&bed.cluster, "b1");
    bed.cluster.psql("select pg_create_restore_point('in use')");
    ledger.append_as(&bed.cluster, "b2");
    bed.settle();

    let listed = json(&bed.agent.restore(&["--json", "list"]).expect_success());
    let repository = &listed["repositories"][0];
    let timelines: Vec<u64> =
        repository["windows"].as_array().unwrap().iter().map(|w| w["timeline"].as_u64().unwrap()).collect();
    assert_eq!(timelines, [1, 2], "{repository}");
    for (name, timeline, found) in [("abandoned", "1", "a1 a2"), ("in use", "2", "a1 b1")] {
        let points = repository["restore_points"].as_array().unwrap();
        let point = points.iter().find(|point| point["name"] == name).unwrap_or_else(|| panic!("{points:?}"));
        assert_eq!(options(point), ["--target-timeline", timeline, "--target-name", name]);
        assert_eq!(rows(&bed, &ledger, &options(point)), found, "{point}");
    }

    bed.cluster.psql("select pg_create_restore_point('n' || i) from generate_series(1, 25) i");
    bed.settle();
    let text = bed.agent.restore(&["list"]).expect_success().stdout;
    assert!(
        text.contains("    7 older: --restore-points lists all\n") && !text.contains("abandoned"),
        "{text}"
    );
    let text = bed.agent.restore(&["list", "--restore-points"]).expect_success().stdout;
    assert!(
        !text.contains("older") && text.contains("--target-timeline 1 --target-name abandoned\n"),
        "{text}"
    );
    assert_eq!(text.matches("--target-timeline 2 --target-name n").count(), 25, "{text}");

    let packs = bed.back_door().list("clusters/main/data");
    let pack = packs.iter().find(|key| key.contains(&backup) && key.ends_with(".pack")).unwrap();
    bed.back_door().delete(pack);
    bed.agent.run(&["verify"]).expect_status(3);
    let text = bed.agent.restore(&["list", "--backups"]).expect_success().stdout;
    assert!(text.contains("  DAMAGED  ") && text.contains("damage: 1 damaged or missing packs"), "{text}");
    assert!(!text.contains("Restore points") && !text.contains("Windows"), "{text}");
}
