//! A last segment of which the archive has only incomplete copies: which of them recovery gets, and when it gets one at all. Other
//! copies, the whole segment and later ones may come after the restore was planned.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use walpoint_tests::agent::{Agent, Daemon};
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::rows::{Ledger, Mark};
use walpoint_tests::store::{BackDoor, Store};
use walpoint_tests::{user, wait};

use crate::forks;

fn bed(second: Option<&Store>) -> (Archived, Ledger) {
    let builder = Cluster::builder().major(17).segment_size_mb(1);
    let bed = Archived::start_with(builder, Store::local(), |agent| {
        // What is not certain ends recovery soon.
        let agent = agent.cluster_line("fetch_timeout = \"2s\"");
        match second {
            Some(second) => agent.repository("second", second),
            None => agent,
        }
    });
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    (bed, ledger)
}

/// The copies that ended early.
fn ended(door: &BackDoor) -> Vec<String> {
    let mut keys = door.list("clusters/main");
    keys.retain(|key| key.contains(".ended/"));
    keys
}

/// Stores what there is of a segment.
#[track_caller]
fn push_part(bed: &Archived, directory: &str, segment: &str) {
    let content = fs::read(bed.cluster.wal_dir().join(segment)).unwrap();
    bed.cluster.dir().mkdir(directory);
    let file = bed.cluster.dir().write(format!("{directory}/{segment}"), content);
    let pushed = bed.agent.run(&["push", file.to_str().unwrap()]).expect_success();
    assert!(pushed.stderr.contains("records end at"), "{pushed:#?}");
}

/// The primary dies with two rows in its open segment, of which a copy is stored; the rows.
#[track_caller]
fn die(bed: &mut Archived, ledger: &mut Ledger) -> [Mark; 2] {
    let rows = ["a2", "a3"].map(|label| ledger.append_as(&bed.cluster, label));
    assert_eq!(rows[0].segment, rows[1].segment);
    bed.cluster.crash();
    bed.stop_daemon();
    push_part(bed, "salvaged", &rows[1].segment);
    rows
}

/// The primary comes back after all, completes its segment and writes another one.
fn come_back(bed: &mut Archived, ledger: &mut Ledger) -> Daemon {
    let daemon = bed.agent.daemon();
    bed.cluster.start();
    for label in ["a4", "a5"] {
        ledger.append_as(&bed.cluster, label);
        bed.settle();
    }
    daemon
}

/// Takes the target out of the settings of a stopped server, which is to go on to the end.
fn without_target(server: &Cluster) {
    let path = server.pgdata().join("postgresql.auto.conf");
    let text = fs::read_to_string(&path).unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("recovery_target_xid")).collect();
    assert!(kept.len() < text.lines().count(), "{text}");
    fs::write(&path, kept.join("\n") + "\n").unwrap();
    user::give(&path);
}

/// Recovery ended without a promotion, and said why.
#[track_caller]
fn stops(server: &mut Cluster, why: &str) {
    server.launch();
    assert_ne!(server.wait_for_end(wait::SOON), 0);
    let log = server.log();
    assert!(log.contains(why) && !log.contains("selected new timeline"), "{log}");
}

#[track_caller]
fn promoted_with(server: &Cluster, ledger: &Ledger, rows: &str) {
    server.wait_promoted();
    assert_eq!(ledger.labels(server), rows, "{}", server.log());
}

/// Promise 4: the plan counted on an incomplete copy, and by the time that recovery asks the archive has the whole segment, and
/// more.
#[test]
fn a_segment_that_was_completed_after_the_plan_is_recovered_whole() {
    let (mut bed, mut ledger) = bed(None);
    let [target, _] = die(&mut bed, &mut ledger);
    let xid = target.xid.to_string();
    let mut paused = bed.restore_and_start("paused", &["--target-xid", &xid]);
    paused.wait_paused();
    assert_eq!(ledger.labels(&paused), "a1 a2");
    paused.stop(Shutdown::Fast);
    let waiting = bed.restore("waiting", &["--use-partial"]);
    let _daemon = come_back(&mut bed, &mut ledger);
    without_target(&paused);
    paused.start();
    promoted_with(&paused, &ledger, "a1 a2 a3 a4 a5");
    let waiting = Cluster::start_restored(bed.cluster.dir(), 17, waiting);
    promoted_with(&waiting, &ledger, "a1 a2 a3 a4 a5");
}

/// Promise 4: nor does recovery end in the copy where the whole segment is lost, and later ones show that it was there.
#[test]
fn recovery_does_not_end_in_an_incomplete_copy_that_later_segments_prove_to_be_one() {
    let (mut bed, mut ledger) = bed(None);
    let [_, last] = die(&mut bed, &mut ledger);
    let place = bed.restore("waiting", &["--use-partial"]);
    let _daemon = come_back(&mut bed, &mut ledger);
    let mut keys = bed.back_door().list("clusters/main");
    keys.retain(|key| key.ends_with(&format!("/{}", last.segment)));
    bed.back_door().delete(&keys[0]);
    let mut waiting = Cluster::adopt(Arc::clone(bed.cluster.dir()), 17, place, None);
    stops(&mut waiting, "it is a gap in the archive");
}

/// Promise 4: a target in the copy needs no option; to go on to its end without a target does.
#[test]
fn the_end_of_an_incomplete_copy_is_only_recovered_on_request() {
    let (mut bed, mut ledger) = bed(None);
    let [target, last] = die(&mut bed, &mut ledger);
    let mut server = bed.restore_and_start("paused", &["--target-xid", &target.xid.to_string()]);
    server.wait_paused();
    server.stop(Shutdown::Fast);
    without_target(&server);
    stops(&mut server, "Restore again: with --use-partial");
    // Another target is reached, or PostgreSQL fails by itself.
    server.set_last("recovery_target_xid", last.xid);
    server.set_last("recovery_target_action", "promote");
    server.start();
    promoted_with(&server, &ledger, "a1 a2 a3");
}

/// Promise 4: of two repositories one has an earlier copy of the last segment. The one that reaches as far as the plan is taken, and
/// none if that is gone.
#[test]
fn of_two_repositories_the_copy_that_was_planned_with_is_recovered() {
    let second = Store::local();
    let (mut bed, mut ledger) = bed(Some(&second));
    let (main, other) = (bed.back_door(), second.back_door());
    let early = ledger.append_as(&bed.cluster, "a2");
    push_part(&bed, "early", &early.segment);
    ended(&other).iter().for_each(|key| other.delete(key));
    let last = ledger.append_as(&bed.cluster, "a3");
    assert_eq!(early.segment, last.segment);
    bed.cluster.crash();
    bed.stop_daemon();
    let shorter = ended(&main);
    push_part(&bed, "late", &last.segment);
    ended(&main).iter().filter(|key| !shorter.contains(key)).for_each(|key| main.delete(key));
    assert_eq!((ended(&main).len(), ended(&other).len()), (1, 1));

    let server = bed.restore_and_start("again", &["--use-partial"]);
    promoted_with(&server, &ledger, "a1 a2 a3");
    let place = bed.restore("without", &["--use-partial"]);
    other.delete(&ended(&other)[0]);
    let mut server = Cluster::adopt(Arc::clone(bed.cluster.dir()), 17, place, None);
    stops(&mut server, "shorter than the copy that the restore was planned with");
}

/// The primary dies with two rows in its open segment, of which a copy with the first one is stored, and one with both after the restore
/// that is returned.
#[track_caller]
fn outgrown(bed: &mut Archived, ledger: &mut Ledger) -> Cluster {
    let early = ledger.append_as(&bed.cluster, "a2");
    push_part(bed, "early", &early.segment);
    let last = ledger.append_as(&bed.cluster, "a3");
    assert_eq!(early.segment, last.segment);
    bed.cluster.crash();
    bed.stop_daemon();
    let place = bed.restore("short", &["--use-partial"]);
    push_part(bed, "late", &last.segment);
    Cluster::adopt(Arc::clone(bed.cluster.dir()), 17, place, None)
}

/// Promise 4: a longer copy of the last segment is archived between the restore and the start. Recovery does not end before the rows
/// that it holds.
#[test]
fn recovery_does_not_end_in_a_copy_when_a_longer_one_was_archived() {
    let (mut bed, mut ledger) = bed(None);
    let mut short = outgrown(&mut bed, &mut ledger);
    stops(&mut short, "recovery would end at");
    assert!(short.log().contains("Restore again."), "{}", short.log());
    let server = bed.restore_and_start("again", &["--use-partial"]);
    promoted_with(&server, &ledger, "a1 a2 a3");
}

/// Promise 4: the same where the longer copy is in the other repository alone.
#[test]
fn recovery_does_not_end_in_a_copy_when_another_repository_holds_a_longer_one() {
    let second = Store::local();
    let (mut bed, mut ledger) = bed(Some(&second));
    let (main, other) = (bed.back_door(), second.back_door());
    let mut short = outgrown(&mut bed, &mut ledger);
    let (mut copies, mut others) = (ended(&main), ended(&other));
    // By the position in their names.
    copies.sort_unstable();
    others.sort_unstable();
    assert_eq!((copies.len(), others.len()), (2, 2));
    main.delete(&copies[1]);
    other.delete(&others[0]);
    stops(&mut short, "recovery would end at");
    let server = bed.restore_and_start("again", &["--use-partial"]);
    promoted_with(&server, &ledger, "a1 a2 a3");
}

/// Promise 7: of two copies the one that holds more is damaged. The other one is not the end of the archive, and what it holds can be
/// recovered by name.
#[test]
fn a_copy_that_holds_less_than_a_damaged_one_is_no_end_of_the_archive() {
    let (mut bed, mut ledger) = bed(None);
    let main = bed.back_door();
    let early = ledger.append_as(&bed.cluster, "a2");
    push_part(&bed, "early", &early.segment);
    let shorter = ended(&main);
    let last = ledger.append_as(&bed.cluster, "a3");
    assert_eq!(early.segment, last.segment);
    bed.cluster.crash();
    bed.stop_daemon();
    push_part(&bed, "late", &last.segment);
    let longer = ended(&main).into_iter().find(|key| !shorter.contains(key)).unwrap();
    let sound = main.get(&longer).unwrap();
    main.flip_bit(&longer, sound.len() / 2);
    for options in [&["plan"][..], &["plan", "--use-partial"]] {
        let output = bed.agent.restore(&[&["--json"], options].concat());
        let refusal: Value = serde_json::from_str(&output.expect_status(1).stdout).unwrap();
        assert_eq!(refusal["reason"], "ends-incomplete", "{options:?}: {refusal:#}");
        assert!(refusal["message"].to_string().contains(&longer), "{options:?}: {refusal:#}");
    }
    let early = early.xid.to_string();
    let target = ["--target-xid", early.as_str(), "--target-action", "promote"];
    let server = bed.restore_and_start("early-rows", &target);
    promoted_with(&server, &ledger, "a1 a2");
    main.delete(&longer);
    main.put(&longer, sound);
    let server = bed.restore_and_start("again", &["--use-partial"]);
    promoted_with(&server, &ledger, "a1 a2 a3");
}

/// A copy of the data directory as a server that goes its own way on the same timeline.
fn copy_of(bed: &mut Archived) -> Cluster {
    bed.cluster.stop(Shutdown::Fast);
    let place = bed.cluster.dir().join("copy");
    let copied = Command::new("cp").arg("-a").arg(bed.cluster.pgdata()).arg(&place).status().unwrap();
    assert!(copied.success());
    let mut copy = Cluster::adopt(Arc::clone(bed.cluster.dir()), 17, place, None);
    copy.set("archive_mode", "off");
    copy.start();
    bed.cluster.start();
    copy
}

/// Stores what a server has of a segment in one repository alone.
#[track_caller]
fn push_of(bed: &Archived, server: &Cluster, store: &Store, directory: &str, segment: &str) {
    let agent = Agent::at(bed.cluster.dir(), server.pgdata(), &server.conninfo()).repository("alone", store);
    agent.write();
    let content = fs::read(server.wal_dir().join(segment)).unwrap();
    bed.cluster.dir().mkdir(directory);
    let file = bed.cluster.dir().write(format!("{directory}/{segment}"), content);
    agent.run(&["push", file.to_str().unwrap()]).expect_success();
}

/// The refusal of a plan to the end of the copies, and to a position in them.
#[track_caller]
fn refused(bed: &Archived, lsn: &str, reasons: &[&str], keys: &[&String]) {
    for options in [&["--use-partial"][..], &["--target-lsn", lsn]] {
        let output = bed.agent.restore(&[&["--json", "plan"], options].concat()).expect_status(1);
        let refusal: Value = serde_json::from_str(&output.stdout).unwrap();
        let reason = refusal["reason"].as_str().unwrap();
        assert!(reasons.contains(&reason), "{options:?}: {refusal:#}");
        for key in keys {
            assert!(refusal["message"].to_string().contains(*key), "{options:?}: {key}: {refusal:#}");
        }
    }
}

/// Two servers that went apart die in the same segment, and what each has of it is in a repository of its own. Where they went apart.
#[track_caller]
fn went_apart(bed: &mut Archived, ledger: &mut Ledger, second: &Store) -> String {
    let mut copy = copy_of(bed);
    let lsn = copy.psql("select pg_current_wal_insert_lsn()");
    let last = ledger.append_as(&bed.cluster, "a2");
    copy.psql("create table other (n int); insert into other select generate_series(1, 50)");
    assert_eq!(copy.psql("select pg_walfile_name(pg_current_wal_lsn())"), last.segment);
    bed.cluster.crash();
    copy.crash();
    bed.stop_daemon();
    push_of(bed, &bed.cluster, &bed.store, "ours", &last.segment);
    push_of(bed, &copy, second, "theirs", &last.segment);
    assert_eq!((ended(&bed.back_door()).len(), ended(&second.back_door()).len()), (1, 1));
    lsn
}

/// Promise 12: what two servers have of one segment is in a repository of each. No plan
/// reads both, nor does one take the one for the end where the other is damaged.
#[test]
fn incomplete_copies_of_two_servers_are_no_plan() {
    let second = Store::local();
    let (mut bed, mut ledger) = bed(Some(&second));
    let lsn = went_apart(&mut bed, &mut ledger, &second);
    let main = bed.back_door();
    let refuses = |what: &str| {
        for options in [&["plan", "--use-partial"][..], &["plan", "--target-lsn", &lsn]] {
            let plan = bed.agent.restore(options).expect_status(1);
            assert!(plan.stderr.contains(what) && plan.stderr.contains("--repo NAME"), "{what}: {plan:#?}");
        }
    };
    refuses("incomplete copy");
    // Production's is the shorter one: that the other server's does not begin with it shows by its name.
    let key = &ended(&main)[0];
    main.flip_bit(key, main.get(key).unwrap().len() / 2);
    refuses("incomplete copy");
}

/// Promise 12: the same where one repository has both copies, and the other one lags behind with one of them. It does not decide, neither
/// for a plan nor for a recovery that was planned before the first one had any.
#[test]
fn a_repository_without_one_of_two_servers_copies_does_not_decide() {
    let second = Store::local();
    let (mut bed, mut ledger) = bed(Some(&second));
    let lsn = went_apart(&mut bed, &mut ledger, &second);
    let (main, other) = (bed.back_door(), second.back_door());
    let (ours, theirs) = (ended(&main)[0].clone(), ended(&other)[0].clone());
    let sound = main.get(&ours).unwrap();
    main.delete(&ours);
    let place = bed.restore("planned", &["--use-partial"]);
    main.put(&ours, sound);
    main.put(&theirs, other.get(&theirs).unwrap());
    refused(&bed, &lsn, &["conflicting-copies"], &[&ours, &theirs]);
    let plan = bed.agent.restore(&["plan"]).expect_status(1);
    assert!(plan.stderr.contains(&ours) && plan.stderr.contains("they contradict each other"), "{plan:#?}");
    let mut server = Cluster::adopt(Arc::clone(bed.cluster.dir()), 17, place, None);
    stops(&mut server, "these copies contradict each other");
}

/// Promise 12: production died in a segment of which one repository has its copy, and the other one has another server's whole segment,
/// which fits behind what both have.
#[test]
fn another_servers_whole_segment_does_not_complete_an_incomplete_copy() {
    let second = Store::local();
    let (mut bed, mut ledger) = bed(Some(&second));
    let copy = copy_of(&mut bed);
    let last = ledger.append_as(&bed.cluster, "a2");
    copy.psql("create table other (n int); insert into other select generate_series(1, 50)");
    assert_eq!(copy.switch_wal(), last.segment);
    bed.cluster.crash();
    bed.stop_daemon();
    push_part(&bed, "ours", &last.segment);
    let (main, other) = (bed.back_door(), second.back_door());
    ended(&other).iter().for_each(|key| other.delete(key));
    assert_eq!(ended(&main).len(), 1);
    push_of(&bed, &copy, &second, "theirs", &last.segment);
    let xid = last.xid.to_string();
    for options in [&[][..], &["--use-partial"], &["--target-xid", &xid]] {
        let plan = bed.agent.restore(&[&["plan"], options].concat()).expect_status(1);
        assert!(plan.stderr.contains("incomplete copy") && plan.stderr.contains("--repo NAME"), "{plan:#?}");
    }
}

/// Promise 12: the same in one repository, where production's own copy is damaged: the other server's is not taken for the end, nor for
/// what production wrote of that segment.
#[test]
fn another_servers_incomplete_copy_does_not_stand_in_for_a_damaged_one() {
    for longer in [false, true] {
        let (mut bed, mut ledger) = bed(None);
        let mut copy = copy_of(&mut bed);
        let lsn = copy.psql("select pg_current_wal_insert_lsn()");
        let last = ledger.append_as(&bed.cluster, "a2");
        if longer {
            ledger.append_as(&bed.cluster, "a3");
            bed.cluster.psql("create table more (n int); insert into more select generate_series(1, 500)");
        }
        copy.psql("create table other (n int); insert into other select generate_series(1, 50)");
        assert_eq!(copy.psql("select pg_walfile_name(pg_current_wal_lsn())"), last.segment);
        bed.cluster.crash();
        copy.crash();
        bed.stop_daemon();
        push_of(&bed, &bed.cluster, &bed.store, "ours", &last.segment);
        let main = bed.back_door();
        let ours = ended(&main)[0].clone();
        let sound = main.get(&ours).unwrap();
        main.delete(&ours);
        push_of(&bed, &copy, &bed.store, "theirs", &last.segment);
        let theirs = ended(&main)[0].clone();
        main.put(&ours, sound.clone());
        let both = [&ours, &theirs];
        main.flip_bit(&ours, sound.len() / 2);
        refused(&bed, &lsn, &["conflicting-copies", "ends-incomplete"], &both);
        main.flip_bit(&ours, sound.len() / 2);
        refused(&bed, &lsn, &["conflicting-copies"], &both);
    }
}

/// Promise 7: of two repositories one has a copy that holds less, and that which holds more is damaged in the other.
#[test]
fn a_copy_that_holds_less_than_a_damaged_one_elsewhere_is_no_end_of_the_archive() {
    let second = Store::local();
    let (mut bed, mut ledger) = bed(Some(&second));
    let (main, other) = (bed.back_door(), second.back_door());
    let early = ledger.append_as(&bed.cluster, "a2");
    push_part(&bed, "early", &early.segment);
    let shorter = ended(&main);
    let last = ledger.append_as(&bed.cluster, "a3");
    assert_eq!(early.segment, last.segment);
    bed.cluster.crash();
    bed.stop_daemon();
    push_part(&bed, "late", &last.segment);
    let longer = ended(&main).into_iter().find(|key| !shorter.contains(key)).unwrap();
    ended(&main).iter().filter(|key| **key != longer).for_each(|key| main.delete(key));
    other.delete(&longer);
    let sound = main.get(&longer).unwrap();
    main.flip_bit(&longer, sound.len() / 2);
    let output = bed.agent.restore(&["--json", "plan", "--use-partial"]).expect_status(1);
    let refusal: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(refusal["reason"], "ends-incomplete", "{refusal:#}");
    assert!(refusal["message"].to_string().contains(&longer), "{refusal:#}");
    let early = early.xid.to_string();
    let target = ["--target-xid", early.as_str(), "--target-action", "promote"];
    let server = bed.restore_and_start("early-rows", &target);
    promoted_with(&server, &ledger, "a1 a2");
    main.delete(&longer);
    main.put(&longer, sound);
    let server = bed.restore_and_start("again", &["--use-partial"]);
    promoted_with(&server, &ledger, "a1 a2 a3");
}

/// Promise 4: the plan ended at a failover behind which there was nothing yet. By the time that recovery asks, there is.
#[test]
fn recovery_does_not_end_at_a_failover_behind_which_there_is_more_by_now() {
    let mut failover = forks::fail_over(17);
    let place = failover.bed.restore("again", &["--use-partial"]);
    failover.ledger.append_as(&failover.standby, "b1");
    let segment = failover.standby.switch_wal();
    failover.standby.wait_archived(&segment);
    let mut server = Cluster::adopt(Arc::clone(failover.bed.cluster.dir()), 17, place, None);
    server.set_last("restore_command", failover.bed.agent.restore_command());
    stops(&mut server, "timeline 2 had nothing of it in the archive");
}

/// Promise 7: a copy that is damaged shows that the segment was begun. The plan to the latest moment names it, and the position
/// that can be recovered to; a sound copy in another repository, or beside it, counts.
#[test]
fn a_damaged_copy_is_no_end_of_the_archive() {
    let second = Store::local();
    let (mut bed, mut ledger) = bed(Some(&second));
    let [_, last] = die(&mut bed, &mut ledger);
    let (main, other) = (bed.back_door(), second.back_door());
    for (door, sound) in [(&main, true), (&other, false)] {
        let key = &ended(door)[0];
        door.flip_bit(key, door.get(key).unwrap().len() / 2);
        for options in [&["plan"][..], &["plan", "--use-partial"]] {
            let output = bed.agent.restore(&[&["--json"], options].concat());
            if sound && options.len() > 1 {
                output.expect_success();
                continue;
            }
            let refusal: Value = serde_json::from_str(&output.expect_status(1).stdout).unwrap();
            assert_eq!(refusal["reason"], "ends-incomplete", "{options:?}: {refusal:#}");
            assert_eq!(refusal["message"].to_string().contains(key), !sound, "{options:?}: {refusal:#}");
        }
        if sound {
            let server = bed.restore_and_start("again", &["--use-partial"]);
            promoted_with(&server, &ledger, "a1 a2 a3");
        }
    }
    // A repository that has nothing of the segment does not answer for the other.
    main.delete(&ended(&main)[0]);
    let refusal = bed.agent.restore(&["--json", "plan"]).expect_status(1);
    let refusal: Value = serde_json::from_str(&refusal.stdout).unwrap();
    let options = refusal["nearest_targets"][0]["options"].as_array().unwrap();
    let options: Vec<&str> = options.iter().map(|option| option.as_str().unwrap()).collect();
    assert!(options.contains(&"--target-lsn"), "{refusal:#}");
    let server = bed.restore_and_start("before", &[&options[..], &["--target-action", "promote"]].concat());
    promoted_with(&server, &ledger, "a1");
    // Another copy of what there is.
    let content = fs::read(bed.cluster.wal_dir().join(&last.segment)).unwrap();
    let partial = bed.cluster.dir().write(format!("{}.partial", last.segment), content);
    bed.agent.run(&["push", partial.to_str().unwrap()]).expect_success();
    let server = bed.restore_and_start("beside", &["--use-partial"]);
    promoted_with(&server, &ledger, "a1 a2 a3");
}
