//! A3, A8, A12: a file that cannot be archived as it is, and the two ways past it; a daemon that hangs.

mod archive_bed;

use std::path::Path;
use std::time::Duration;

use archive_bed::{Archive, Bed};
use rustix::process::Signal;
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::Background;
use walpoint_tests::seaweed::Credentials;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

const SOON: Duration = Duration::from_secs(60);

/// A cluster with a backup and two segments behind it that wait. No daemon runs, and PostgreSQL asks for nothing until it gets the
/// command back that it asks with.
fn waiting(agent: impl FnOnce(&Cluster, &Store, Agent) -> Agent) -> (Bed, [String; 2], String) {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.agent = agent(&bed.cluster, &bed.store, bed.agent);
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.cluster.psql("create table t (n int)");
    bed.agent.run(&["backup"]).expect_success();
    let command = bed.cluster.psql("show archive_command");
    // Without a command PostgreSQL neither archives nor counts failures, after three of which it would rest for a minute.
    bed.cluster.set("archive_command", "");
    bed.cluster.reload();
    let names = [(); 2].map(|()| {
        bed.cluster.psql("insert into t select generate_series(1, 5000)");
        bed.cluster.switch_wal()
    });
    (bed, names, command)
}

/// A cluster with a daemon whose archiver is stuck at a segment that was changed on disk; behind it another one waits.
fn stuck(change: impl FnOnce(&Path)) -> (Bed, [String; 2]) {
    let (bed, names, command) = waiting(|_, _, agent| agent);
    change(&bed.cluster.wal_dir().join(&names[0]));
    bed.cluster.set("archive_command", command);
    bed.cluster.reload();
    (bed, names)
}

fn refused_at(bed: &Bed, name: &str, says: &str) {
    let refused = format!("could not archive \"{name}\"");
    wait::until_true(SOON, "the segment is refused", || {
        let log = bed.cluster.log();
        log.lines().any(|line| line.contains(&refused) && line.contains(says))
    });
    assert!(bed.ready().contains(&name.to_owned()));
}

/// A3: what was accepted though damaged is archived for PostgreSQL, too, by the daemon and without one.
#[test]
fn an_accepted_segment_no_longer_blocks_the_archive() {
    for with_daemon in [true, false] {
        let (bed, names) = stuck(|path| {
            flip(path, 100_000);
        });
        let daemon = with_daemon.then(|| bed.agent.daemon());
        refused_at(&bed, &names[0], "is damaged at");
        let health = || bed.agent.run(&["health"]);
        if with_daemon {
            let says = format!("\"{}\"", names[0]);
            wait::until_true(SOON, "the daemon says so", || health().stderr.contains(&says));
        }
        let path = bed.cluster.wal_dir().join(&names[0]);
        // A copy that was changed once more is not the file that was accepted.
        let changed = bed.copy(&names[0], "changed");
        bed.agent.run(&["push", "--accept-damaged", path.to_str().unwrap()]).expect_success();
        let mut content = std::fs::read(&changed).unwrap();
        content[700_000] ^= 1;
        std::fs::write(&changed, content).unwrap();
        let conflict = bed.direct(&changed).expect_status(1);
        assert!(conflict.stderr.contains("already stored with different content"), "{conflict:#?}");
        // A new segment wakes the archiver.
        let next = bed.cluster.switch_wal();
        bed.cluster.wait_done(&next);
        assert!(bed.ready().is_empty(), "with a daemon: {with_daemon}: {:?}", bed.ready());
        assert_eq!(bed.archive().get(&names[0]).unwrap(), std::fs::read(&path).unwrap());
        assert!(bed.archive().get(&names[1]).is_some());
        // Recovery cannot pass it, until a backup begins behind it.
        let gap = format!("{} was archived although damaged", names[0]);
        let check = || bed.agent.run(&["check", "--no-switch"]);
        let checked = check().expect_status(3);
        assert!(checked.stdout.contains(&gap), "{checked:#?}");
        let status = bed.agent.run(&["status"]).expect_success().stdout;
        assert!(status.contains(&gap) && status.contains("push --accept-damaged"), "{status}");
        if with_daemon {
            wait::until_true(SOON * 2, "the daemon says so", || health().stderr.contains(&gap));
        }
        bed.agent.run(&["backup"]).expect_success();
        if with_daemon {
            wait::until_true(SOON * 2, "nothing is wrong any more", || health().stderr.is_empty());
        }
        let checked = check();
        assert!(!checked.stdout.contains("although damaged"), "{checked:#?}");
        drop(daemon);
    }
}

/// A3: the second half of a segment that the server finished is zeros on its disk: it is refused, not taken for one that ended.
#[test]
fn a_tail_that_was_lost_on_disk_is_damage() {
    let (bed, names) = stuck(|path| {
        let mut content = std::fs::read(path).unwrap();
        content[98_304..].fill(0);
        std::fs::write(path, content).unwrap();
    });
    let daemon = bed.agent.daemon();
    refused_at(&bed, &names[0], "is damaged: its records end at");
    let path = bed.cluster.wal_dir().join(&names[0]);
    // What lies elsewhere says nothing about when it was finished.
    bed.direct(&bed.copy(&names[0], "elsewhere")).expect_success();
    assert!(bed.archive().get(&names[0]).is_none());
    bed.direct(&path).expect_status(1);
    bed.agent.run(&["push", "--accept-damaged", path.to_str().unwrap()]).expect_success();
    let next = bed.cluster.switch_wal();
    bed.cluster.wait_done(&next);
    assert!(bed.ready().is_empty(), "{:?}", bed.ready());
    drop(daemon);
}

/// A3: the same when the server is stopped, and started again: PostgreSQL archives during its shutdown, too.
#[test]
fn a_tail_that_was_lost_on_disk_stays_damage_when_its_server_is_restarted() {
    let (mut bed, names) = stuck(|path| {
        let mut content = std::fs::read(path).unwrap();
        content[98_304..].fill(0);
        std::fs::write(path, content).unwrap();
    });
    let path = bed.cluster.wal_dir().join(&names[0]);
    let refused = |bed: &Bed| {
        assert!(bed.ready().contains(&names[0]));
        let stored = bed.store.back_door().list("clusters");
        assert!(!stored.iter().any(|key| key.contains(".ended")), "{stored:?}");
    };
    let daemon = bed.agent.daemon();
    refused_at(&bed, &names[0], "is damaged: its records end at");
    bed.cluster.stop(Shutdown::Fast);
    refused(&bed);
    bed.direct(&path).expect_status(1);
    bed.agent.run(&["run", "--once"]);
    refused(&bed);
    bed.cluster.start();
    wait::until_true(SOON, "it is refused again", || {
        bed.cluster.log().matches("could not archive").count() > 1
    });
    refused(&bed);
    bed.cluster.crash();
    bed.direct(&path).expect_status(1);
    refused(&bed);
    drop(daemon);
}

/// Both segments stored, as after a crash of the server before it heard so.
fn store_both(bed: &Bed, names: &[String; 2]) {
    for name in names {
        let path = bed.cluster.wal_dir().join(name);
        bed.agent.run(&["push", &path.display().to_string()]).expect_success();
    }
}

fn flip(path: &Path, at: usize) {
    let mut content = std::fs::read(path).unwrap();
    content[at] ^= 1;
    std::fs::write(path, content).unwrap();
}

/// A3: a segment that was stored while it was sound is acknowledged though it is damaged in `pg_wal` since, and is no split brain.
#[test]
fn what_was_stored_before_it_was_damaged_is_acknowledged() {
    for accept in [false, true] {
        let (bed, names, command) = waiting(|_, _, agent| agent);
        store_both(&bed, &names);
        let path = bed.cluster.wal_dir().join(&names[0]);
        let sound = std::fs::read(&path).unwrap();
        flip(&path, 100_000);
        if accept {
            let accepted = ["push", "--accept-damaged", &path.display().to_string()];
            bed.agent.run(&accepted).expect_success();
        }
        let daemon = bed.agent.daemon();
        bed.cluster.set("archive_command", &command);
        bed.cluster.reload();
        bed.cluster.wait_done(&names[1]);
        assert!(bed.ready().is_empty(), "{:?}", bed.ready());
        assert!(bed.archive().get(&names[0]).unwrap() == sound);
        assert!(daemon.log().contains("what is stored is sound"), "{}", daemon.log());
        bed.agent.run(&["check", "--no-switch"]).expect_success();
    }
}

/// Promise 1: what one repository stored before the file was damaged acknowledges nothing for another that is away, or whose copy is
/// damaged; and nothing damaged is stored in either.
#[test]
fn a_sound_copy_in_one_repository_does_not_stand_for_another() {
    let other = Store::local();
    let (bed, names, command) = waiting(|cluster, store, _| {
        let agent = Agent::with(cluster, store).repository("other", &other);
        agent.archive_from(cluster);
        agent.init(&[]).expect_success();
        agent
    });
    store_both(&bed, &names);
    let path = bed.cluster.wal_dir().join(&names[0]);
    flip(&path, 100_000);
    let accept = || bed.agent.run(&["push", "--accept-damaged", &path.display().to_string()]);
    let (mounted, away) = (other.root().unwrap().to_owned(), other.root().unwrap().with_extension("away"));
    std::fs::rename(&mounted, &away).unwrap();
    let refused = accept();
    assert!(!refused.success() && !refused.stderr.contains("split brain"), "{refused:#?}");
    std::fs::rename(&away, &mounted).unwrap();
    let door = other.back_door();
    let keys = door.list("clusters");
    let key = keys.iter().find(|key| key.ends_with(&names[0])).unwrap();
    let sound = door.get(key).unwrap();
    door.flip_bit(key, sound.len() / 2);
    let refused = accept();
    assert!(!refused.success() && refused.stderr.contains("repository other"), "{refused:#?}");
    door.put(key, sound.clone());
    accept().expect_success();
    door.delete(key);
    let refused = accept();
    assert!(!refused.success() && refused.stderr.contains("restore-agent fetch"), "{refused:#?}");
    assert!(door.list("clusters").iter().all(|other| other != key), "what is damaged here is stored there");
    door.put(key, sound);
    bed.cluster.set("archive_command", &command);
    bed.cluster.reload();
    bed.cluster.wait_done(&names[1]);
}

/// A cluster whose WAL goes to two repositories, and a segment that one of them has sound and that is damaged in `pg_wal` since, with
/// the other one away until then.
fn sound_in_one(ack: Option<&str>) -> (Bed, Store, [String; 2], String) {
    let other = Store::local();
    let (bed, names, command) = waiting(|cluster, store, _| {
        let agent = Agent::with(cluster, store).repository("other", &other);
        let agent = match ack {
            Some(ack) => agent.cluster_line(ack),
            None => agent,
        };
        let agent = agent.cluster_line("push_timeout = \"2s\"");
        agent.archive_from(cluster);
        agent.init(&[]).expect_success();
        agent
    });
    let path = bed.cluster.wal_dir().join(&names[0]);
    let (mounted, away) = (other.root().unwrap().to_owned(), other.root().unwrap().with_extension("away"));
    std::fs::rename(&mounted, &away).unwrap();
    assert_eq!(bed.direct(&path).success(), ack.is_some());
    std::fs::rename(&away, &mounted).unwrap();
    assert!(bed.archive().get(&names[0]).is_some());
    flip(&path, 100_000);
    (bed, other, names, command)
}

fn holds(store: &Store, name: &str) -> bool {
    store.back_door().list("clusters").iter().any(|key| key.ends_with(name))
}

/// Promises 1 and 10: while a repository is away that may have a segment sound, the damaged one is stored nowhere; when it is back, the
/// way on that is told works.
#[test]
fn nothing_damaged_is_stored_while_it_may_be_sound_in_a_repository_that_is_away() {
    let (bed, other, names, command) = sound_in_one(None);
    let path = bed.cluster.wal_dir().join(&names[0]);
    let accept = || bed.agent.run(&["push", "--accept-damaged", &path.display().to_string()]);
    let (mounted, away) =
        (bed.store.root().unwrap().to_owned(), bed.store.root().unwrap().with_extension("away"));
    std::fs::rename(&mounted, &away).unwrap();
    let refused = accept().expect_status(1).stderr;
    assert!(refused.contains("nothing damaged is stored while a repository is away"), "{refused}");
    assert!(refused.contains("push --skip") && !holds(&other, &names[0]), "{refused}");
    std::fs::rename(&away, &mounted).unwrap();
    let refused = accept().expect_status(1).stderr;
    assert!(refused.contains("other lacks it") && !holds(&other, &names[0]), "{refused}");
    let copy = bed.cluster.dir().mkdir("copied").join(&names[0]);
    bed.agent.restore(&["fetch", &names[0], copy.to_str().unwrap()]).expect_success();
    bed.direct(&copy).expect_success();
    bed.cluster.set("archive_command", &command);
    bed.cluster.reload();
    bed.cluster.wait_done(&names[1]);
    assert!(bed.ready().is_empty());
}

/// Promise 10: what is damaged here and sound in a repository that acknowledged it is stored damaged in none beside it.
#[test]
fn nothing_damaged_is_stored_beside_a_sound_copy() {
    let (bed, other, names, _) = sound_in_one(Some("ack = [\"main\"]"));
    let path = bed.cluster.wal_dir().join(&names[0]);
    bed.agent.run(&["push", "--accept-damaged", &path.display().to_string()]).expect_success();
    assert!(!holds(&other, &names[0]), "it is stored damaged");
    let daemon = bed.agent.daemon();
    wait::until_true(SOON * 2, "it is copied", || holds(&other, &names[0]));
    let sound = bed.archive().get(&names[0]);
    assert_eq!(Archive::of(&other, bed.cluster.pgdata()).get(&names[0]), sound);
    drop(daemon);
}

/// Promises 1 and 10: what is stored damaged is not acknowledged when its server offers the segment again.
#[test]
fn what_is_stored_damaged_is_not_acknowledged() {
    for with_daemon in [true, false] {
        let (bed, names, command) = waiting(|_, _, agent| agent);
        store_both(&bed, &names);
        let door = bed.store.back_door();
        let keys = door.list("clusters");
        let key = keys.iter().find(|key| key.ends_with(&names[0])).unwrap();
        let mut object = door.get(key).unwrap().to_vec();
        let middle = object.len() / 2;
        object[middle] ^= 1;
        door.put(key, object);
        let daemon = with_daemon.then(|| bed.agent.daemon());
        bed.cluster.set("archive_command", &command);
        bed.cluster.reload();
        refused_at(&bed, &names[0], "damaged");
        door.delete(key);
        bed.cluster.wait_done(&names[1]);
        let sound = std::fs::read(bed.cluster.wal_dir().join(&names[0])).ok();
        assert!(sound.is_none_or(|sound| bed.archive().get(&names[0]).unwrap() == sound));
        drop(daemon);
    }
}

/// Promise 7: while the first backup is under way no gap is told.
#[test]
fn a_first_backup_that_is_under_way_is_no_gap() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    bed.cluster.psql("create table t (n int)");
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    let log = bed.agent.place().join("backup.log");
    let backup = Background::start(&mut bed.agent.command("archive-agent", ["backup"]), &log);
    wait::until_true(SOON, "it waits for its WAL", || backup.log().contains("the backup needs WAL up to"));
    let checked = bed.agent.run(&["check", "--no-switch"]);
    assert!(!checked.stdout.contains("no backup leads"), "{checked:#?}");
    drop(backup);
}

/// Promise 7: `check` and `health` know of a gap by what is stored, whether or not anything here is on record of it.
#[test]
fn a_gap_that_is_on_no_record_is_no_secret() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.cluster.psql("create table t (n int)");
    bed.agent.run(&["backup"]).expect_success();
    let names = [(); 3].map(|()| {
        bed.cluster.psql("insert into t select generate_series(1, 5000)");
        let name = bed.cluster.switch_wal();
        bed.cluster.wait_done(&name);
        name
    });
    bed.agent.run(&["check", "--no-switch"]).expect_success();
    let door = bed.store.back_door();
    let keys = door.list("clusters");
    door.delete(keys.iter().find(|key| key.ends_with(&names[1])).unwrap());
    let gap = format!("cannot pass segment {}", names[1]);
    let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
    assert!(checked.stdout.contains(&gap), "{checked:#?}");
    assert_eq!(daemon.stop(), 0);
    let daemon = bed.agent.daemon();
    let health = || bed.agent.run(&["health"]);
    wait::until_true(SOON, "the daemon says so", || health().stderr.contains(&gap));
    bed.agent.run(&["backup"]).expect_success();
    bed.agent.run(&["check", "--no-switch"]).expect_success();
    wait::until_true(SOON * 2, "a backup makes up for it", || health().success());
    drop(daemon);
}

/// A12: a file that cannot be stored at all is skipped on request: on record, with a warning until the next backup.
#[test]
fn a_skipped_segment_is_a_gap_until_the_next_backup() {
    for with_daemon in [true, false] {
        let (bed, names) = stuck(|path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(300_000).unwrap();
        });
        let daemon = with_daemon.then(|| bed.agent.daemon());
        refused_at(&bed, &names[0], "300000 bytes");
        let place = |name: &str| bed.cluster.wal_dir().join(name).display().to_string();
        // Only what PostgreSQL waits for.
        let copy = bed.copy(&names[0], "elsewhere").display().to_string();
        for path in [copy, place("0000000100000000000000F0")] {
            let refused = bed.agent.run(&["push", "--skip", &path]).expect_status(1);
            assert!(refused.stderr.contains("does not wait for being archived"), "{refused:#?}");
        }
        let skipped = bed.agent.run(&["push", "--skip", &place(&names[0])]).expect_success();
        assert!(skipped.stderr.contains("recovery cannot pass"), "{skipped:#?}");
        let next = bed.cluster.switch_wal();
        bed.cluster.wait_done(&next);
        assert!(bed.ready().is_empty(), "with a daemon: {with_daemon}: {:?}", bed.ready());
        assert!(bed.archive().get(&names[0]).is_none() && bed.archive().get(&names[1]).is_some());
        let gap = format!("{} was dropped and not archived", names[0]);
        let status = bed.agent.run(&["status"]).expect_success().stdout;
        assert!(status.contains(&gap) && status.contains("push --skip"), "{status}");
        if with_daemon {
            let health = || bed.agent.run(&["health"]);
            wait::until_true(SOON, "the daemon says so", || health().stderr.contains(&gap));
            let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
            assert_eq!(checked.stdout.matches(&gap).count(), 1, "{checked:#?}");
            bed.agent.run(&["backup"]).expect_success();
            wait::until_true(SOON * 2, "a backup makes up for it", || health().success());
        }
        drop(daemon);
    }
}

/// A12: a backup that `verify` found damaged makes up for no gap.
#[test]
fn a_damaged_backup_makes_up_for_no_gap() {
    let (bed, names) = stuck(|path| {
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(300_000).unwrap();
    });
    let daemon = bed.agent.daemon();
    refused_at(&bed, &names[0], "300000 bytes");
    let place = bed.cluster.wal_dir().join(&names[0]).display().to_string();
    bed.agent.run(&["push", "--skip", &place]).expect_success();
    let next = bed.cluster.switch_wal();
    bed.cluster.wait_done(&next);
    let packs = || {
        let mut keys = bed.store.back_door().list("clusters");
        keys.retain(|key| key.ends_with(".pack"));
        keys
    };
    let before = packs();
    bed.cluster.psql("create table more as select i, repeat('x', 500) from generate_series(1, 5000) i");
    bed.agent.run(&["backup"]).expect_success();
    let gap = format!("{} was dropped and not archived", names[0]);
    let health = || bed.agent.run(&["health"]);
    wait::until_true(SOON * 2, "a backup makes up for it", || health().success());
    let new: Vec<String> = packs().into_iter().filter(|key| !before.contains(key)).collect();
    let door = bed.store.back_door();
    assert!(!new.is_empty(), "{before:?}");
    for key in new {
        let middle = door.get(&key).unwrap().len() / 2;
        door.flip_bit(&key, middle);
    }
    assert!(!bed.agent.run(&["verify"]).success());
    wait::until_true(SOON * 2, "the daemon says so", || health().stderr.contains(&gap));
    let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
    assert!(checked.stdout.contains(&gap), "{checked:#?}");
    // What is on no record here shows in the repository.
    std::fs::remove_file(bed.cluster.wal_dir().join("walpoint-dropped")).unwrap();
    let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
    let passes = format!("cannot pass segment {}", names[0]);
    assert!(checked.stdout.contains(&passes), "{checked:#?}");
    bed.agent.run(&["backup"]).expect_success();
    bed.agent.run(&["check", "--no-switch"]).expect_success();
    drop(daemon);
}

/// A12: with `queue_max` no file is kept for ever: neither one that was cut short nor one that cannot be read.
#[test]
fn what_has_not_the_length_of_a_segment_is_given_up_like_any_other() {
    let (mut bed, names) = stuck(|path| {
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(300_000).unwrap();
    });
    bed.agent.cluster_lines.push("queue_max = \"2MiB\"".to_owned());
    let daemon = bed.agent.daemon();
    refused_at(&bed, &names[0], "300000 bytes");
    assert!(!bed.cluster.log().contains("dropped"), "{}", bed.cluster.log());
    for _ in 0..3 {
        bed.cluster.psql("insert into t select generate_series(1, 5000)");
        bed.cluster.switch_wal();
    }
    wait::until_true(SOON * 2, "nothing waits", || bed.ready().is_empty());
    let log = bed.cluster.log();
    assert_eq!(log.matches("was dropped and not archived: ").count(), 1, "{log}");
    assert!(bed.archive().get(&names[0]).is_none() && bed.archive().get(&names[1]).is_some());
    drop(daemon);
}

/// A12: a segment of which not even the first page can be read is skipped on request, by the daemon or without one.
#[test]
fn a_segment_that_cannot_be_read_is_skipped() {
    for with_daemon in [true, false] {
        // What is opened and cannot be read.
        let (bed, names) = stuck(|path| {
            std::fs::rename(path, path.with_extension("aside")).unwrap();
            std::fs::create_dir(path).unwrap();
        });
        let daemon = with_daemon.then(|| bed.agent.daemon());
        refused_at(&bed, &names[0], "");
        let place = bed.cluster.wal_dir().join(&names[0]);
        bed.agent.run(&["push", "--skip", &place.display().to_string()]).expect_success();
        bed.cluster.wait_done(&names[1]);
        assert!(bed.archive().get(&names[0]).is_none() && bed.archive().get(&names[1]).is_some());
        std::fs::remove_dir(&place).unwrap();
        std::fs::rename(place.with_extension("aside"), &place).unwrap();
        drop(daemon);
    }
}

/// A12: what is refused for good and accepted three seconds later is not dropped, by the daemon or without one.
#[test]
fn a_refusal_of_three_seconds_drops_nothing() {
    for with_daemon in [true, false] {
        let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
        bed.agent.cluster_lines.push("push_timeout = \"2s\"".to_owned());
        bed.agent.cluster_lines.push("queue_max = \"2MiB\"".to_owned());
        bed.agent.archive_from(&bed.cluster);
        bed.cluster.start();
        let command = bed.cluster.psql("show archive_command");
        bed.cluster.set("archive_command", "");
        bed.cluster.reload();
        let names = [(); 8].map(|()| {
            bed.cluster.psql("create table if not exists t (n int); insert into t values (1)");
            bed.cluster.switch_wal()
        });
        let write = |who: &Credentials| {
            for (name, value) in [("access_key_id", &who.key), ("secret_access_key", &who.secret)] {
                std::fs::write(bed.agent.place().join(format!("main.{name}")), value).unwrap();
            }
        };
        write(&Credentials::unknown());
        let daemon = with_daemon.then(|| bed.agent.daemon());
        bed.cluster.set("archive_command", command);
        bed.cluster.reload();
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(bed.ready(), names);
        write(&Credentials::full());
        bed.cluster.wait_done(&names[7]);
        let log = bed.cluster.log();
        assert!(!log.contains("dropped"), "with a daemon: {with_daemon}: {log}");
        assert!(names.iter().all(|name| bed.archive().get(name).is_some()));
        drop(daemon);
    }
}

/// A8: a daemon that hangs is gone round, and `check` and `health` say so.
#[test]
fn a_daemon_that_hangs_holds_nothing_up() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    daemon.process.signal(Signal::STOP);
    let begun = std::time::Instant::now();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert!(bed.cluster.log().contains("hangs: it has said nothing"), "{}", bed.cluster.log());
    let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
    assert!(checked.stdout.contains("gave no answer"), "{checked:#?}");
    let health = bed.agent.run(&["health"]).expect_status(1);
    assert!(health.stderr.contains("gave no answer"), "{health:#?}");
    daemon.process.signal(Signal::CONT);
    bed.agent.run(&["health"]).expect_success();
    assert!(bed.archive().get(&name).is_some());
}

/// A8: a daemon that was killed and cannot end, since a thread of it is in a filesystem that hangs, keeps its lock and its socket. Here it
/// is stopped. The next one takes its place.
#[test]
fn a_daemon_that_hangs_is_replaced_by_the_next_one() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let first = bed.agent.daemon();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    first.process.signal(Signal::STOP);
    let second = bed.agent.launch();
    wait::until_true(SOON, "the second one answers", || bed.agent.run(&["health"]).success());
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert!(!bed.cluster.log().contains("without the daemon"), "{}", bed.cluster.log());
    // Both at once do no harm.
    first.process.signal(Signal::CONT);
    let names = [(); 3].map(|()| bed.cluster.switch_wal());
    names.iter().for_each(|name| bed.cluster.wait_done(name));
    assert!(names.iter().all(|name| bed.archive().get(name).is_some()));
    drop(first);
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert!(!bed.cluster.log().contains("without the daemon"), "{}", bed.cluster.log());
    drop(second);
}

/// A8: a daemon that hangs has lost its place to another, which has ended, and still has the lock. The next one takes the place; the one
/// that gets on waits, and takes it again in the end.
#[test]
fn a_daemon_that_lost_its_place_keeps_no_other_from_it() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let first = bed.agent.daemon();
    first.process.signal(Signal::STOP);
    let healthy = || bed.agent.run(&["health"]).success();
    let second = bed.agent.launch();
    wait::until_true(SOON, "the second one answers", healthy);
    assert_eq!(second.stop(), 0);
    assert!(!bed.agent.push_socket().exists());
    let third = bed.agent.launch();
    wait::until_true(SOON, "the third one answers", healthy);
    let archives = || {
        let name = bed.cluster.switch_wal();
        bed.cluster.wait_done(&name);
        assert!(bed.archive().get(&name).is_some());
        assert!(!bed.cluster.log().contains("without the daemon"), "{}", bed.cluster.log());
    };
    archives();
    // The daemons write the same log.
    first.process.signal(Signal::CONT);
    wait::until_true(SOON, "the first one notices", || {
        third.log().contains("leads to no socket, or to another")
    });
    assert!(healthy());
    archives();
    assert_eq!(third.stop(), 0);
    wait::until_true(SOON, "the first one answers again", healthy);
    archives();
    // A socket that was removed is made anew.
    std::fs::remove_file(bed.agent.push_socket()).unwrap();
    wait::until_true(SOON, "it listens anew", healthy);
    archives();
    assert_eq!(first.stop(), 0);
}

/// A8: beside a daemon that hangs only the first file waits as long as the daemon may be silent.
#[test]
fn beside_a_daemon_that_hangs_files_are_archived_at_a_fair_pace() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    daemon.process.signal(Signal::STOP);
    bed.cluster.psql("create table t (n int)");
    let begun = std::time::Instant::now();
    let names = [(); 8].map(|()| {
        bed.cluster.psql("insert into t values (1)");
        bed.cluster.switch_wal()
    });
    wait::until_true(SOON * 4, "all are archived", || bed.ready().is_empty());
    let took = begun.elapsed();
    println!("8 segments beside a daemon that hangs: {took:?}");
    assert!(took < Duration::from_secs(50), "{took:?}");
    assert!(names.iter().all(|name| bed.archive().get(name).is_some()));
    let mark = bed.cluster.wal_dir().join("walpoint-hung");
    assert!(mark.exists());
    // It gets on, and archives again.
    daemon.process.signal(Signal::CONT);
    let alone = bed.cluster.log().matches("without the daemon").count();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert_eq!(bed.cluster.log().matches("without the daemon").count(), alone, "{}", bed.cluster.log());
    assert!(!mark.exists() && bed.archive().get(&name).is_some());
    assert_eq!(daemon.stop(), 0);
}

/// A12: what is too much of what waits goes at the same pace without a daemon, and beside one that hangs.
#[test]
fn without_a_daemon_too_only_the_first_file_beyond_queue_max_is_tried_long() {
    for hangs in [false, true] {
        let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
        bed.agent.cluster_lines.push("queue_max = \"2MiB\"".to_owned());
        bed.agent.archive_from(&bed.cluster);
        bed.cluster.start();
        let daemon = hangs.then(|| bed.agent.daemon());
        let command = bed.cluster.psql("show archive_command");
        bed.cluster.set("archive_command", "");
        bed.cluster.reload();
        bed.cluster.psql("create table t (n int)");
        let names = [(); 16].map(|()| {
            bed.cluster.psql("insert into t values (1)");
            bed.cluster.switch_wal()
        });
        let root = bed.store.root().unwrap();
        let away = root.with_extension("away");
        walpoint_base::durable::rename(root, &away).unwrap();
        if let Some(daemon) = &daemon {
            daemon.process.signal(Signal::STOP);
        }
        bed.cluster.set("archive_command", command);
        bed.cluster.reload();
        wait::until_true(SOON * 2, "the first one goes", || !bed.ready().contains(&names[0]));
        let begun = std::time::Instant::now();
        wait::until_true(SOON * 5, "what is too much goes", || bed.ready().len() <= 2);
        let took = begun.elapsed();
        println!("13 more segments, beside a daemon that hangs: {hangs}: {took:?}");
        assert!(took < Duration::from_secs(60), "{took:?}");
        // The store is back: nothing more goes.
        walpoint_base::durable::rename(&away, root).unwrap();
        let next = bed.cluster.switch_wal();
        bed.cluster.wait_done(&next);
        assert!(names[14..].iter().chain([&next]).all(|name| bed.archive().get(name).is_some()));
    }
}

/// A8: one that hangs for so long that it takes no more connections, because those of clients that left fill its queue.
#[test]
fn a_daemon_whose_queue_is_full_holds_nothing_up() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    daemon.process.signal(Signal::STOP);
    let socket = bed.agent.push_socket();
    while walpoint_base::socket::connect(&socket, Duration::from_millis(100)).is_ok() {}
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert!(bed.cluster.log().contains("hangs: it has said nothing"), "{}", bed.cluster.log());
    let begun = std::time::Instant::now();
    let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
    assert!(checked.stdout.contains("gave no answer"), "{checked:#?}");
    let health = bed.agent.run(&["health"]).expect_status(1);
    assert!(health.stderr.contains("gave no answer"), "{health:#?}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    daemon.process.signal(Signal::CONT);
    wait::until_true(SOON, "it answers again", || bed.agent.run(&["health"]).success());
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert!(bed.archive().get(&name).is_some());
}
