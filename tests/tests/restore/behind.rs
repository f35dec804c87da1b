//! R4: WAL of a new primary that crashed in its first segment, of which the archive has nothing yet: it is replayed, or the restore says
//! what to archive first, whichever way its timeline left the old one. What was not asked for is in the way of nothing.

use std::fs;
use std::path::Path;

use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::{self, Output};
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::{faults, user, wait};

use crate::forks;

pub(crate) fn bed(major: u32) -> (Archived, Ledger) {
    let bed = Archived::start(Cluster::builder().major(major).segment_size_mb(1), Store::local());
    let ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    bed.settle();
    (bed, ledger)
}

fn has(bed: &Archived, part: &str) -> bool {
    bed.back_door().list("clusters/main").iter().any(|key| key.contains(part))
}

/// A row on the new timeline, of which the archive has only the history, and a crash; the segment.
#[track_caller]
fn crash_in_the_first_segment(bed: &mut Archived, ledger: &mut Ledger) -> String {
    wait::until_true(wait::SOON, "the history is archived", || has(bed, "00000002.history"));
    let row = ledger.append_as(&bed.cluster, "b1");
    bed.cluster.crash();
    assert!(row.segment.starts_with("00000002") && !has(bed, "/wal/00000002/"), "{}", row.segment);
    row.segment
}

#[track_caller]
fn rows(bed: &mut Archived, ledger: &Ledger) -> String {
    bed.cluster.start();
    bed.cluster.wait_promoted();
    ledger.labels(&bed.cluster)
}

/// A cluster is lost and restored from the archive alone, which ends with a segment: there its new timeline begins.
#[track_caller]
fn the_first_segment_behind_a_boundary_is_replayed(major: u32, way: &str) {
    let (mut bed, mut ledger) = bed(major);
    ledger.append_as(&bed.cluster, "a1");
    forks::lose_and_restore(&mut bed, "lost", &[], None);
    let history = fs::read_to_string(bed.cluster.wal_dir().join("00000002.history")).unwrap();
    let switch = history.split('\t').nth(1).unwrap();
    assert!(switch.ends_with("00000"), "not on a boundary: {history}");
    let first = crash_in_the_first_segment(&mut bed, &mut ledger);
    let restored =
        bed.try_restore("data", &[way, "--server-is-down", "--resume-archiving"]).expect_success().stdout;
    let replays = format!(
        "after the end of the archive, recovery replays unarchived WAL from the previous data directory's \
         pg_wal: {first}"
    );
    assert!(restored.contains(&replays), "PostgreSQL {major} {way}: {restored}");
    assert_eq!(rows(&mut bed, &ledger), "a1 b1", "PostgreSQL {major} {way}");
    assert_eq!(bed.cluster.timeline(), 3);
}

#[test]
fn the_first_segment_of_a_timeline_that_begins_on_a_boundary_is_replayed() {
    for way in ["--delta", "--replace"] {
        the_first_segment_behind_a_boundary_is_replayed(17, way);
    }
}

/// The same on the oldest and the newest version.
#[test]
fn the_oldest_and_the_newest_version_replay_the_first_segment_behind_a_boundary() {
    the_first_segment_behind_a_boundary_is_replayed(13, "--delta");
    the_first_segment_behind_a_boundary_is_replayed(19, "--replace");
}

/// A drill's copy and the new primary are restored from one archive, which ends with a segment: their histories are equal, and the
/// archive has that of the primary alone. What the drill wrote, which archives nothing, is not taken for the archive's.
#[test]
fn what_a_drill_wrote_is_not_replayed_because_its_history_equals_the_archives() {
    let (mut bed, mut ledger) = bed(17);
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    bed.cluster.crash();
    let mut drill = bed.restore_and_start("drill", &[]);
    drill.wait_promoted();
    let written = ledger.append_as(&drill, "drill").segment;
    drill.crash();

    let pgdata = bed.cluster.pgdata().to_owned();
    fs::rename(&pgdata, bed.place("lost")).unwrap();
    bed.restore("data", &["--resume-archiving"]);
    bed.cluster.start();
    bed.cluster.wait_promoted();
    let production = crash_in_the_first_segment(&mut bed, &mut ledger);
    assert_eq!(written, production);
    let history = |server: &Cluster| fs::read_to_string(server.wal_dir().join("00000002.history")).unwrap();
    assert_eq!(history(&drill), history(&bed.cluster));

    let repaired = bed.try_restore("drill", &["--delta", "--server-is-down"]).expect_success().stdout;
    assert!(repaired.contains("the archive has only the history of timeline 2"), "{repaired}");
    assert!(!repaired.contains("recovery replays unarchived WAL"), "{repaired}");
    let again = Cluster::start_restored(bed.cluster.dir(), 17, drill.pgdata());
    again.wait_promoted();
    assert_eq!(ledger.labels(&again), "a1");
    // The primary's own rows are still replayed.
    let options = ["--delta", "--server-is-down", "--resume-archiving"];
    bed.try_restore("data", &options).expect_success();
    assert_eq!(rows(&mut bed, &ledger), "a1 b1");
}

/// The old timeline's own copy of the segment in which the new one begins is whole in the archive: recovery would end at the fork.
#[test]
fn the_first_segment_of_a_timeline_that_left_a_whole_one_is_not_left_out() {
    let (mut bed, mut ledger) = bed(17);
    let kept = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    ledger.append_as(&bed.cluster, "a2");
    forks::lose_and_restore(&mut bed, "lost", &["--target-xid", &kept], None);
    let first = crash_in_the_first_segment(&mut bed, &mut ledger);
    let path = bed.cluster.wal_dir().join(&first).display().to_string();
    let restore =
        |options: &[&str]| bed.try_restore("data", &[&["--server-is-down", "--dry-run"], options].concat());
    for way in ["--delta", "--replace"] {
        for options in [&[way][..], &[way, "--target-timeline", "2"]] {
            let refused = restore(options).expect_status(1);
            for says in
                [&format!("archive-agent push {path}"), "nothing was changed", "--discard-unarchived-wal"]
            {
                assert!(refused.stderr.contains(says), "{options:?} {says}: {refused:#?}");
            }
        }
        // What does not ask for it.
        for options in [
            &[way, "--discard-unarchived-wal"][..],
            &[way, "--target-timeline", "1"],
            &[way, "--target-xid", &kept],
            &[way, "--standby"],
        ] {
            restore(options).expect_success();
        }
    }
    bed.agent.run(&["push", &path]).expect_success();
    let options = ["--delta", "--server-is-down", "--resume-archiving", "--use-partial"];
    bed.try_restore("data", &options).expect_success();
    assert_eq!(rows(&mut bed, &ledger), "a1 b1");
}

/// A failover during an outage of the archive: not even the new timeline's history is in it, so the archive's own latest moment is an
/// older one. What the manual says brings all rows back.
#[test]
fn a_timeline_that_the_archive_is_yet_to_hear_of_is_not_left_out() {
    let (mut bed, mut ledger) = bed(17);
    let mut standby = bed.cluster.streaming_standby();
    standby.set("archive_command", "false");
    standby.reload();
    let archived = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    bed.settle();
    bed.stop_daemon();
    ledger.append_as(&bed.cluster, "a2");
    standby.wait_replayed(&bed.cluster);
    bed.cluster.crash();
    standby.promote();
    let first = ledger.append_as(&standby, "b1").segment;
    standby.crash();
    let name = standby.pgdata().file_name().unwrap().to_str().unwrap().to_owned();
    let restore = |options: &[&str]| -> Output {
        bed.try_restore(&name, &[&["--server-is-down", "--dry-run"], options].concat())
    };
    let path = standby.wal_dir().join(&first).display().to_string();
    for way in ["--delta", "--replace"] {
        let refused = restore(&[way]).expect_status(1);
        for says in ["archive-agent run --once", "nothing was changed", "--discard-unarchived-wal"] {
            assert!(refused.stderr.contains(says), "{way} {says}: {refused:#?}");
        }
        restore(&[way, "--discard-unarchived-wal"]).expect_success();
    }
    let push = format!("archive-agent push {path}");
    let refused = restore(&["--replace"]).expect_status(1);
    assert!(refused.stderr.contains(&push), "{refused:#?}");
    restore(&["--replace", "--target-xid", &archived]).expect_success();
    let refused = restore(&["--replace", "--target-timeline", "1"]).expect_status(1);
    assert!(refused.stderr.contains(".partial"), "its own last rows are in no archive either: {refused:#?}");

    // Where a run that was killed has moved it aside, no program archives: it goes back first.
    let place = standby.pgdata().to_str().unwrap().to_owned();
    let options = ["--pgdata", &place, "--server-is-down", "--replace", "--target-xid", &archived];
    let command = bed.agent.command("restore-agent", [&["restore"], &options[..]].concat());
    process::run(&mut faults::inject(&command, &["pwrite64:signal=SIGKILL:when=1"], &[]), wait::SOON);
    assert!(standby.pgdata().join("walpoint-restore.json").exists());
    let back = format!("restore-agent rollback --pgdata {place}");
    let refused = restore(&["--replace"]).expect_status(1);
    assert!(refused.stderr.contains(&back), "{refused:#?}");
    bed.agent.restore(&["rollback", "--pgdata", &place]).expect_success();
    let agent = Agent::with(&standby, &bed.store);
    agent.write();
    agent.run(&["run", "--once"]).expect_success();
    for named in [&[][..], &["--target-timeline", "2"]] {
        let refused = restore(&[&["--replace", "--use-partial"], named].concat()).expect_status(1);
        assert!(refused.stderr.contains(&push), "{named:?}: {refused:#?}");
    }
    agent.run(&["push", &path]).expect_success();
    bed.try_restore(&name, &["--server-is-down", "--replace", "--use-partial"]).expect_success();
    let restored = Cluster::start_restored(bed.cluster.dir(), 17, standby.pgdata());
    restored.wait_promoted();
    assert_eq!(ledger.labels(&restored), "a1 a2 b1");
}

/// A restore to another target came first, of the same or the other kind, finished or killed: what it kept or moved aside of the crashed
/// server's last segment is replayed all the same.
#[test]
fn what_an_earlier_restore_put_away_is_replayed() {
    for (first, second) in [("--replace", "--replace"), ("--replace", "--delta"), ("--delta", "--replace")] {
        let (mut bed, mut ledger) = bed(17);
        let archived = ledger.append_as(&bed.cluster, "a1").xid.to_string();
        bed.settle();
        ledger.append_as(&bed.cluster, "a2");
        bed.cluster.crash();
        bed.try_restore("data", &["--server-is-down", first, "--target-xid", &archived]).expect_success();
        is_replayed(&mut bed, &ledger, &[second]);
    }
}

/// The same when the restore that moved it aside was killed, and another one finishes it.
#[test]
fn what_a_killed_restore_put_away_is_replayed() {
    walpoint_tests::needs_root!();
    let (mut bed, ledger) = killed();
    is_replayed(&mut bed, &ledger, &["--delta"]);
}

/// A cluster whose last segment no archive has, and a restore that was killed when it had moved it aside.
#[track_caller]
pub(crate) fn killed() -> (Archived, Ledger) {
    let (mut bed, mut ledger) = bed(17);
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    ledger.append_as(&bed.cluster, "a2");
    bed.cluster.crash();
    let place = bed.place("data");
    let restore = ["restore", "--pgdata", place.to_str().unwrap(), "--server-is-down", "--replace"];
    let command = bed.agent.command("restore-agent", restore);
    let killed =
        process::run(&mut faults::inject(&command, &["pwrite64:signal=SIGKILL:when=1"], &[]), wait::SOON);
    assert!(place.join("walpoint-restore.json").exists(), "{killed:#?}");
    (bed, ledger)
}

/// The same when the plain command finishes it.
#[test]
fn what_a_killed_restore_put_away_is_replayed_by_the_plain_command() {
    walpoint_tests::needs_root!();
    let (mut bed, ledger) = killed();
    is_replayed(&mut bed, &ledger, &[]);
}

/// Its `pg_control` is damaged or gone, which is why it is restored: WAL says itself whose it is.
#[test]
fn wal_beside_a_damaged_pg_control_is_replayed() {
    for gone in [true, false] {
        let (mut bed, mut ledger) = bed(17);
        ledger.append_as(&bed.cluster, "a1");
        bed.settle();
        ledger.append_as(&bed.cluster, "a2");
        bed.cluster.crash();
        let control = bed.cluster.pgdata().join("global/pg_control");
        match gone {
            true => fs::remove_file(control).unwrap(),
            false => fs::write(control, [0; 8192]).unwrap(),
        }
        is_replayed(&mut bed, &ledger, &["--replace", "--server-is-down"]);
    }
}

/// Of a file that cannot be read it is not known whether an archive has it.
#[test]
fn what_cannot_be_read_is_not_left_out_without_a_word() {
    walpoint_tests::needs_root!();
    let (mut bed, mut ledger) = bed(17);
    let segment = ledger.append_as(&bed.cluster, "a1").segment;
    bed.cluster.crash();
    let place = bed.place("data");
    let restore = |unreadable: &Path, options: &[&str]| {
        let all =
            ["restore", "--pgdata", place.to_str().unwrap(), "--replace", "--server-is-down", "--dry-run"];
        let command = bed.agent.command("restore-agent", [&all, options].concat());
        process::run(&mut faults::inject(&command, &["read:error=EIO"], &[unreadable]), wait::SOON)
    };
    let here = bed.cluster.wal_dir().join(&segment);
    let refused = restore(&here, &[]).expect_status(1);
    assert!(refused.stderr.contains("could not determine whether"), "{refused:#?}");
    restore(&here, &["--discard-unarchived-wal"]).expect_success();
    // The same of a directory that an earlier restore moved aside.
    bed.try_restore("data", &["--replace", "--server-is-down", "--target-immediate"]).expect_success();
    let names = fs::read_dir(place.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let aside =
        names.filter(|path| path.to_str().unwrap().contains("data.walpoint-old-")).collect::<Vec<_>>();
    let there = aside[0].join("pg_wal").join(&segment);
    let refused = restore(&there, &[]).expect_status(1);
    assert!(refused.stderr.contains("kept or renamed"), "{refused:#?}");
    restore(&there, &["--discard-unarchived-wal"]).expect_success();
}

/// The same where the directory above it has another name by now, as in another container, also if something else is in its old place.
#[test]
fn what_an_earlier_restore_put_away_is_found_by_another_path() {
    for (first, is_left) in [("--delta", false), ("--delta", true), ("--replace", true)] {
        let (mut bed, mut ledger) = bed(17);
        let kept = ledger.append_as(&bed.cluster, "a1").xid.to_string();
        ledger.append_as(&bed.cluster, "a2");
        forks::lose_and_restore(&mut bed, "lost", &["--target-xid", &kept], None);
        crash_in_the_first_segment(&mut bed, &mut ledger);
        let [before, now] = ["before", "now"].map(|name| bed.place(name));
        fs::create_dir(&before).unwrap();
        user::give(&before);
        fs::rename(bed.place("data"), before.join("data")).unwrap();
        let earlier = ["--server-is-down", first, "--target-xid", &kept];
        bed.try_restore("before/data", &earlier).expect_success();
        fs::rename(&before, &now).unwrap();
        let mut name = "data";
        if is_left {
            fs::create_dir(&before).unwrap();
            name = "main";
            for entry in fs::read_dir(&now).unwrap().flatten() {
                let called = entry.file_name().into_string().unwrap().replace("data", name);
                fs::rename(entry.path(), now.join(called)).unwrap();
            }
        }
        let again = ["--replace", "--resume-archiving"];
        let refused = bed.try_restore(&format!("now/{name}"), &again).expect_status(1);
        let push = format!("archive-agent push {}/{name}.walpoint-", now.display());
        assert!(refused.stderr.contains(&push), "{first} {is_left}: {refused:#?}");
    }
}

/// The same where a replacement was interrupted and the restore is begun again without `--replace`.
#[test]
fn what_an_interrupted_replacement_moved_is_not_left_out_where_its_record_cannot_be_read() {
    let (mut bed, mut ledger) = bed(17);
    ledger.append_as(&bed.cluster, "a1");
    bed.cluster.crash();
    let place = bed.place("data");
    let options = ["restore", "--pgdata", place.to_str().unwrap(), "--replace", "--server-is-down"];
    let command = bed.agent.command("restore-agent", options);
    process::run(&mut faults::inject(&command, &["pwrite64:signal=SIGKILL:when=1"], &[]), wait::SOON * 2);
    assert!(place.join("walpoint-restore.json").exists(), "it was interrupted");
    let names = fs::read_dir(place.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let aside =
        names.filter(|path| path.to_str().unwrap().contains("data.walpoint-old-")).collect::<Vec<_>>();
    bed.try_restore("data", &["--dry-run"]).expect_success();
    fs::write(aside[0].join("walpoint-aside.json"), "{").unwrap();
    let refused = bed.try_restore("data", &["--dry-run"]).expect_status(1);
    assert!(
        refused.stderr.contains("walpoint-aside.json") && refused.stderr.contains("is damaged"),
        "{refused:#?}"
    );
}

#[track_caller]
pub(crate) fn is_replayed(bed: &mut Archived, ledger: &Ledger, options: &[&str]) {
    let restored =
        bed.try_restore("data", &[options, &["--resume-archiving"]].concat()).expect_success().stdout;
    assert!(
        restored.contains("after the end of the archive, recovery replays unarchived WAL"),
        "{options:?}: {restored}"
    );
    assert_eq!(rows(bed, ledger), "a1 a2", "{options:?}");
}

/// The same where recovery would leave it out: each further restore says so, and how to archive it from where it lies.
#[test]
fn what_an_earlier_restore_put_away_is_not_left_out() {
    for (first, second) in [("--delta", "--delta"), ("--replace", "--replace"), ("--delta", "--replace")] {
        let (mut bed, mut ledger) = bed(17);
        let kept = ledger.append_as(&bed.cluster, "a1").xid.to_string();
        ledger.append_as(&bed.cluster, "a2");
        forks::lose_and_restore(&mut bed, "lost", &["--target-xid", &kept], None);
        let segment = crash_in_the_first_segment(&mut bed, &mut ledger);
        bed.try_restore("data", &["--server-is-down", first, "--target-xid", &kept]).expect_success();
        let refused = bed.try_restore("data", &[second, "--resume-archiving"]).expect_status(1);
        let command =
            refused.stderr.split("archive-agent push ").nth(1).and_then(|rest| rest.split('"').next());
        let path = command.unwrap_or_else(|| panic!("{first} {second}: {refused:#?}"));
        assert!(path.ends_with(&segment) && !path.contains("/data/"), "{path}");
        bed.agent.run(&["push", path]).expect_success();
        bed.try_restore("data", &[second, "--resume-archiving", "--use-partial"]).expect_success();
        assert_eq!(rows(&mut bed, &ledger), "a1 b1", "{first} {second}");
    }
}

/// A server that crashed was restored, the restored one was promoted in the segment that the crashed one had been writing, and was rolled
/// back. `archives`: whether it archived.
fn rolled_back(archives: bool) -> (Archived, Ledger) {
    let (mut bed, mut ledger) = bed(17);
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    let open = ledger.append_as(&bed.cluster, "a2").segment;
    bed.cluster.crash();
    bed.try_restore("data", &["--replace", "--server-is-down", "--resume-archiving"]).expect_success();
    if !archives {
        bed.stop_daemon();
        bed.cluster.set_last("archive_command", "false");
    }
    bed.cluster.start();
    bed.cluster.wait_promoted();
    ledger.append_as(&bed.cluster, "discarded");
    if archives {
        bed.settle();
        wait::until_true(wait::SOON, "the old timeline's last segment is archived", || {
            has(&bed, &format!("/{open}.partial/"))
        });
    }
    bed.cluster.stop(Shutdown::Fast);
    let place = bed.place("data");
    let rollback = ["rollback", "--server-is-down", "--pgdata", place.to_str().unwrap()];
    bed.agent.restore(&rollback).expect_success();
    if !archives {
        bed.start_daemon();
    }
    bed.cluster.start();
    let next = ledger.append_as(&bed.cluster, "a3").segment;
    assert_eq!((next, has(&bed, "00000002.history")), (open, archives));
    (bed, ledger)
}

/// R4: a younger timeline left this one in the segment that the server was writing when it crashed, and the archive has an incomplete copy
/// of that. The timeline is named, as `rollback` and `status` say: its rows are in the server's own segment alone.
#[test]
fn the_open_segment_of_a_timeline_that_a_younger_one_left_in_it_is_replayed() {
    for way in ["--delta", "--replace"] {
        let (mut bed, ledger) = rolled_back(true);
        bed.cluster.crash();
        let options = [way, "--server-is-down", "--resume-archiving", "--target-timeline", "1"];
        let restored = bed.try_restore("data", &options).expect_success().stdout;
        assert!(restored.contains("recovery replays unarchived WAL"), "{way}: {restored}");
        assert_eq!(rows(&mut bed, &ledger), "a1 a2 a3", "{way}");
    }
}

/// With `--use-partial` recovery ends in the archive's incomplete copy, and the same command works once the server's own segment is
/// archived.
#[test]
fn the_open_segment_of_a_timeline_that_a_younger_one_left_in_it_is_archived_and_used() {
    let (mut bed, ledger) = rolled_back(true);
    let open = bed.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
    bed.cluster.crash();
    let options =
        ["--delta", "--server-is-down", "--resume-archiving", "--target-timeline", "1", "--use-partial"];
    let refused = bed.try_restore("data", &options).expect_status(1);
    let path = bed.cluster.wal_dir().join(open).display().to_string();
    assert!(refused.stderr.contains(&format!("archive-agent push {path}")), "{refused:#?}");
    bed.agent.run(&["push", &path]).expect_success();
    bed.try_restore("data", &options).expect_success();
    assert_eq!(rows(&mut bed, &ledger), "a1 a2 a3");
}

/// R4: the timeline of a restored server that `rollback` took away was never archived, and is in the way of nothing that is restored later:
/// neither of a repair or a replacement, nor of a restore when the data directory is lost.
#[test]
fn a_timeline_that_a_rollback_took_away_does_not_count() {
    for ways in [&["--delta"][..], &["--replace"], &[]] {
        let (mut bed, mut ledger) = rolled_back(false);
        bed.settle();
        ledger.append_as(&bed.cluster, "a4");
        bed.cluster.crash();
        if ways.is_empty() {
            fs::remove_dir_all(bed.cluster.pgdata()).unwrap();
        }
        let options = [ways, &["--server-is-down", "--resume-archiving"]].concat();
        bed.try_restore("data", &options).expect_success();
        let expected = if ways.is_empty() { "a1 a2 a3" } else { "a1 a2 a3 a4" };
        assert_eq!(rows(&mut bed, &ledger), expected, "{ways:?}");
    }
}
