//! A3: a segment that is damaged on disk, what of it is accepted, and what a sound copy in a repository means.

use std::path::Path;

use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::Store;
use walpoint_tests::{user, wait};

use super::{SOON, refused_at, stuck, waiting};
use crate::archive_bed::{Archive, Bed, all_done, register, segments, snapshot};

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

/// A12: a sound copy that takes the place of a damaged one which was accepted is skipped on request, as its refusal says, by the daemon
/// and without one.
#[test]
fn a_sound_copy_behind_an_accepted_one_is_skipped() {
    for with_daemon in [true, false] {
        let (bed, names, command) = waiting(|_, _, agent| agent);
        let path = bed.cluster.wal_dir().join(&names[0]);
        let sound = std::fs::read(&path).unwrap();
        flip(&path, 100_000);
        bed.agent.run(&["push", "--accept-damaged", path.to_str().unwrap()]).expect_success();
        std::fs::write(&path, sound).unwrap();
        let refused = bed.agent.run(&["push", path.to_str().unwrap()]).expect_status(1).stderr;
        assert!(refused.contains("archive-agent push --skip"), "{refused}");
        bed.agent.run(&["push", "--skip", path.to_str().unwrap()]).expect_success();
        let daemon = with_daemon.then(|| bed.agent.daemon());
        bed.cluster.set("archive_command", &command);
        bed.cluster.reload();
        bed.cluster.wait_done(&names[1]);
        assert!(bed.ready().is_empty(), "with a daemon: {with_daemon}: {:?}", bed.ready());
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

pub(super) fn flip(path: &Path, at: usize) {
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

/// A3: one bit of a segment of one page is damaged, and another server of the lineage has stored it sound: as a primary has what its
/// standby archives, too.
#[test]
fn a_bit_of_a_short_segment_that_is_stored_sound_stops_nothing() {
    for accept in [false, true] {
        let (bed, names, command) = waiting(|_, _, agent| agent);
        bed.cluster.psql("insert into t values (1)");
        let short = bed.cluster.switch_wal();
        for name in names.iter().chain([&short]) {
            bed.direct(&bed.copy(name, name)).expect_success();
        }
        let path = bed.cluster.wal_dir().join(&short);
        let sound = std::fs::read(&path).unwrap();
        // In the check of the first record.
        flip(&path, 60);
        if accept {
            let accepted = ["push", "--accept-damaged", &path.display().to_string()];
            let accepted = bed.agent.run(&accepted).expect_success().stderr;
            assert!(!accepted.contains("stored although damaged"), "{accepted}");
        }
        let daemon = bed.agent.daemon();
        bed.cluster.set("archive_command", &command);
        bed.cluster.reload();
        bed.cluster.wait_done(&short);
        assert!(bed.archive().get(&short).unwrap() == sound);
        drop(daemon);
    }
}

/// A3: a standby that archives into a repository of its own is given the sound copy of a segment that is damaged there, and goes on.
#[test]
fn a_standby_goes_on_behind_the_sound_copy_of_a_damaged_segment() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let _archives = bed.agent.daemon();
    bed.cluster.psql("create table t (n int)");
    let (mut standby, own) = (bed.cluster.standby(), Store::local());
    register(&own, standby.pgdata(), standby.major());
    let agent = Agent::with(&standby, &own).cluster_line("look_ahead = 0");
    agent.archive_from(&standby);
    standby.set("archive_mode", "always");
    standby.start();
    let daemon = agent.daemon();
    let switch = || {
        bed.cluster.psql("insert into t select generate_series(1, 5000)");
        bed.cluster.switch_wal()
    };
    // One that is new there shows whose the timeline is.
    standby.wait_done(&switch());
    let command = standby.psql("show archive_command");
    standby.set("archive_command", "");
    standby.reload();
    let (damaged, behind) = (switch(), switch());
    let mark = |name: &str, mark: &str| {
        standby.wal_dir().join("archive_status").join(format!("{name}.{mark}")).exists()
    };
    wait::until_true(SOON, "the standby has both", || mark(&behind, "ready"));
    let path = standby.wal_dir().join(&damaged);
    let sound = std::fs::read(&path).unwrap();
    let mut zeroed = sound.clone();
    zeroed[20 * 8192..23 * 8192].fill(0);
    std::fs::write(&path, zeroed).unwrap();
    standby.set("archive_command", &command);
    standby.reload();
    let refused = format!("could not archive \"{damaged}\"");
    wait::until_true(SOON, "it is refused", || standby.log().contains(&refused));
    let copy = bed.cluster.dir().mkdir("sound").join(&damaged);
    std::fs::write(&copy, &sound).unwrap();
    user::give(&copy);
    agent.run(&["push", copy.to_str().unwrap()]).expect_success();
    // PostgreSQL asks again when another one is ready.
    let last = switch();
    standby.wait_done(&last);
    assert!(mark(&damaged, "done") && mark(&behind, "done"), "{}", standby.log());
    assert!(Archive::of(&own, standby.pgdata()).get(&damaged).unwrap() == sound);
    assert!(!daemon.log().contains("split brain"), "{}", daemon.log());
    assert!(daemon.log().contains("what is stored is sound"), "{}", daemon.log());
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
    assert!(refused.contains("nothing damaged is stored while a repository cannot be reached"), "{refused}");
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
        // What lies elsewhere may be the last copy of it as well.
        let refused = bed.direct(&bed.copy(&names[0], "elsewhere")).expect_status(1).stderr;
        assert!(refused.contains("Move that object away"), "{refused}");
        let daemon = with_daemon.then(|| bed.agent.daemon());
        bed.cluster.set("archive_command", &command);
        bed.cluster.reload();
        refused_at(&bed, &names[0], "damaged");
        if with_daemon {
            // What is stored ahead shows that the timeline is this server's, and nothing of what is damaged.
            let later = bed.cluster.switch_wal();
            wait::until_true(SOON, "a later segment is stored", || {
                door.list("clusters").iter().any(|key| key.ends_with(&later))
            });
            let refused =
                || bed.cluster.log().matches(&format!("could not archive \"{}\"", names[0])).count();
            let before = refused();
            wait::until_true(SOON, "PostgreSQL offers it again", || {
                bed.cluster.switch_wal();
                refused() > before + 1
            });
            assert!(bed.ready().contains(&names[0]));
        }
        door.delete(key);
        bed.cluster.wait_done(&names[1]);
        let sound = std::fs::read(bed.cluster.wal_dir().join(&names[0])).ok();
        assert!(sound.is_none_or(|sound| bed.archive().get(&names[0]).unwrap() == sound));
        drop(daemon);
    }
}

/// Promise 12: a copy of production's storage went on alone in the middle of a segment, and lost on its disk what it wrote there. That
/// production stored the segment, the same up to there, acknowledges nothing of the copy's.
#[test]
fn a_copy_that_parted_in_what_is_damaged_is_not_given_productions_segment() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let _production = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    bed.cluster.psql("insert into t select n, clock_timestamp() from generate_series(1, 500) n");
    let segment = bed.cluster.current_segment();
    let offset = bed.cluster.psql("select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint % (1 << 20)");
    bed.cluster.crash();
    let mut copy = snapshot(&bed, "copy");
    bed.cluster.start();
    let ours = segments(&bed.cluster, 1, 100);
    assert_eq!(ours, std::slice::from_ref(&segment));
    all_done(&bed.cluster, &ours);

    let agent = Agent::with(&copy, &bed.store);
    agent.archive_from(&copy);
    copy.set_last("archive_command", "");
    copy.start();
    assert_eq!(segments(&copy, 1, 700), std::slice::from_ref(&segment));
    // The next segment has begun on its disk.
    copy.psql("insert into t select n, clock_timestamp() from generate_series(1, 10) n; checkpoint");
    let path = copy.wal_dir().join(&segment);
    let mut content = std::fs::read(&path).unwrap();
    content[offset.parse::<usize>().unwrap()..].fill(0);
    std::fs::write(&path, content).unwrap();
    let refused = agent.run(&["push", path.to_str().unwrap()]);
    assert!(!refused.success() && refused.stderr.contains("is damaged"), "{refused:#?}");
    assert!(!refused.stderr.contains("what is stored is sound"), "{refused:#?}");
}
