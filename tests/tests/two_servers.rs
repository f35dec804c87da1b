//! Two servers with one system identifier and one archive, of which the second keeps trying: production goes on, and nothing
//! of the second is stored, whatever its `pg_wal` has forgotten.

mod archive_bed;

use std::path::Path;

use archive_bed::{
    Archive, Bed, SCANNED, SOON, all_done, archive_again, clone, forget, promote_from_standby, refused,
    segments, snapshot,
};
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::Store;
use walpoint_tests::{user, wait};

fn bed() -> Bed {
    Bed::local(Cluster::builder().segment_size_mb(1))
}

/// Writes on until the server is in the segment that another one is in, archiving as it goes.
fn level(cluster: &Cluster, last: &str) {
    loop {
        let names = segments(cluster, 1, 100);
        all_done(cluster, &names);
        match names[0].as_str().cmp(last) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => return,
            std::cmp::Ordering::Greater => panic!("{} is behind {last}", names[0]),
        }
    }
}

fn ready(cluster: &Cluster) -> Vec<String> {
    let entries = std::fs::read_dir(cluster.wal_dir().join("archive_status")).unwrap().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.ends_with(".ready")).collect()
}

#[track_caller]
fn none_stored(archive: &Archive, names: &[String]) {
    for name in names {
        assert!(archive.get(name).is_none(), "{name} is stored");
    }
}

#[track_caller]
fn all_is_of(archive: &Archive, cluster: &Cluster, names: &[String]) {
    for name in names {
        let kept = std::fs::read(cluster.wal_dir().join(name));
        let stored = archive.get(name).unwrap_or_else(|| panic!("{name} is not stored"));
        assert!(kept.is_err() || kept.ok() == Some(stored), "{name} is another server's");
    }
}

/// A clone on production's timeline whose own segments before the first refused one are recycled: nothing behind that one is
/// stored either, not even its backup history file, and production archives on, its own backup included.
#[test]
fn what_follows_a_refused_segment_is_refused_and_production_goes_on() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (mut copy, agent) = clone(&bed);
    let before = segments(&copy, 5, 150);
    let last = before.last().unwrap();
    level(&bed.cluster, last);
    forget(&copy, last);
    let beside = agent.daemon();
    archive_again(&mut copy);
    let theirs = segments(&copy, 4, 150);
    refused(&copy);
    let archive = bed.archive();
    none_stored(&archive, &theirs);

    // Without what the daemon remembers.
    drop(beside);
    let beside = agent.daemon();
    copy.base_backup(&["-X", "stream"]);
    let labels = ready(&copy).into_iter().filter(|name| name.contains(".backup."));
    let labels: Vec<String> = labels.map(|name| name.trim_end_matches(".ready").to_owned()).collect();
    assert_eq!(labels.len(), 1, "{:?}", ready(&copy));
    std::thread::sleep(SCANNED);
    none_stored(&archive, &[&theirs[..], &labels].concat());
    assert!(beside.log().contains("split brain"), "{}", beside.log());

    let ours = segments(&bed.cluster, 6, 100);
    all_done(&bed.cluster, &ours);
    bed.cluster.base_backup(&["-X", "stream"]);
    all_done(&bed.cluster, &segments(&bed.cluster, 1, 100));
    wait::until_true(SOON, "nothing of production waits", || ready(&bed.cluster).is_empty());
    all_is_of(&archive, &bed.cluster, &ours);
}

/// Two servers may begin a backup at one position: the file about it that comes second is no use to recovery, and never stops
/// the archive.
#[test]
fn a_backup_file_that_differs_never_stops_the_archive() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    bed.cluster.base_backup(&["-X", "stream"]);
    wait::until_true(SOON, "all of it is archived", || ready(&bed.cluster).is_empty());
    let status = bed.cluster.wal_dir().join("archive_status");
    let entries = std::fs::read_dir(&status).unwrap().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let label = names.filter_map(|name| Some(name.strip_suffix(".done")?.to_owned()));
    let label = label.into_iter().find(|name| name.ends_with(".backup")).unwrap();
    let stored = bed.archive().get(&label);
    let path = bed.cluster.dir().mkdir("other").join(&label);
    let text = String::from_utf8(stored.clone().unwrap()).unwrap() + "LABEL: another\n";
    std::fs::write(&path, text).unwrap();
    user::give(&path);
    let pushed = bed.direct(&path).expect_success();
    assert!(pushed.stderr.contains("differs"), "{pushed:?}");
    assert_eq!(bed.archive().get(&label), stored, "what is stored stays");
}

/// A data directory that is reset to an earlier state under a running daemon is another server.
#[test]
fn a_data_directory_put_back_under_a_running_daemon_stores_nothing_behind_the_lost_future() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    bed.cluster.stop(Shutdown::Fast);
    let pgdata = bed.cluster.pgdata().to_owned();
    let place = snapshot(&bed, "put-back").pgdata().to_owned();
    bed.cluster.start();
    let lost = segments(&bed.cluster, 3, 100);
    all_done(&bed.cluster, &lost);
    bed.cluster.stop(Shutdown::Fast);
    let archive = bed.archive();
    std::fs::remove_dir_all(&pgdata).unwrap();
    std::fs::rename(&place, &pgdata).unwrap();
    bed.cluster.set("archive_command", "");
    bed.cluster.start();
    let again = segments(&bed.cluster, 8, 150);
    let unstored = again.iter().find(|name| archive.get(name).is_none()).unwrap();
    let ahead = bed.agent.push(format!("pg_wal/{unstored}"));
    assert!(!ahead.success() && ahead.stderr.contains("split brain"), "{ahead:?}\n{}", daemon.log());
    bed.cluster.set("archive_command", bed.agent.archive_command());
    bed.cluster.reload();
    refused(&bed.cluster);
    let new: Vec<String> = again.into_iter().filter(|name| name > lost.last().unwrap()).collect();
    assert!(new.len() > 3);
    for name in &new {
        // The last one before the server was stopped is the first server's own.
        let ours = std::fs::read(bed.cluster.wal_dir().join(name)).ok();
        assert!(archive.get(name).is_none_or(|stored| Some(stored) != ours), "{name}: {}", daemon.log());
    }
}

/// The same where what it archived next has expired since: the WAL that it writes now would fit behind what is stored. Nothing that
/// another history goes on with later is continued, and there is no backup of it.
#[test]
fn a_data_directory_put_back_to_before_expired_wal_is_refused() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    bed.cluster.stop(Shutdown::Fast);
    let pgdata = bed.cluster.pgdata().to_owned();
    let place = snapshot(&bed, "put-back").pgdata().to_owned();
    bed.cluster.start();
    let lost = segments(&bed.cluster, 9, 100);
    all_done(&bed.cluster, &lost);
    bed.cluster.stop(Shutdown::Fast);
    let door = bed.store.back_door();
    for key in door.list("clusters").iter().filter(|key| lost[..6].iter().any(|name| key.contains(name))) {
        door.delete(key);
    }
    std::fs::remove_dir_all(&pgdata).unwrap();
    std::fs::rename(&place, &pgdata).unwrap();
    bed.cluster.start();
    let again = segments(&bed.cluster, 3, 150);
    refused(&bed.cluster);
    none_stored(&bed.archive(), &again);
    assert!(
        bed.cluster.log().contains("reset to an earlier state"),
        "{}\n{}",
        bed.cluster.log(),
        daemon.log()
    );
    let check = bed.agent.run(&["check"]);
    assert!(!check.success() && check.stdout.contains("split brain"), "{check:?}");
    let health = bed.agent.run(&["health"]);
    assert!(health.stderr.contains("split brain"), "{health:?}");
    let backup = bed.agent.run(&["backup"]);
    assert!(!backup.success(), "{backup:?}");
}

/// Two servers promoted at one position, of which the second begins to archive far behind what the first one has archived.
#[test]
fn a_server_that_begins_behind_a_gap_in_another_ones_timeline_is_refused() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let promoted = || {
        let standby = bed.cluster.standby();
        let agent = Agent::with(&standby, &bed.store);
        agent.archive_from(&standby);
        standby.set("archive_mode", "off");
        (standby, agent)
    };
    let [(mut first, first_agent), (mut second, second_agent)] = [promoted(), promoted()];
    for standby in [&mut first, &mut second] {
        standby.start();
        standby.wait_replayed(&bed.cluster);
    }
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    first.promote();
    second.promote();
    let _first = first_agent.daemon();
    archive_again(&mut first);
    let mut ours = segments(&first, 3, 100);
    all_done(&first, &ours);
    let unarchived = segments(&second, 7, 150);
    forget(&second, unarchived.last().unwrap());
    let _second = second_agent.daemon();
    archive_again(&mut second);
    let theirs = segments(&second, 4, 150);
    refused(&second);
    let archive = bed.archive();
    none_stored(&archive, &theirs);
    ours = segments(&first, 12, 100);
    all_done(&first, &ours);
    all_is_of(&archive, &first, &ours);
}

/// Production that did not archive for a while is no other server, whatever it recycled meanwhile, and whichever of server and
/// daemon was started anew.
#[test]
fn a_server_that_did_not_archive_for_a_while_archives_again() {
    let mut bed = bed();
    bed.cluster.start();
    let mut daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    for anew in [false, true] {
        bed.cluster.set("archive_mode", "off");
        bed.cluster.stop(Shutdown::Fast);
        bed.cluster.start();
        let unarchived = segments(&bed.cluster, 5, 100);
        forget(&bed.cluster, unarchived.last().unwrap());
        if anew {
            assert_eq!(daemon.stop(), 0);
            daemon = bed.agent.daemon();
        }
        archive_again(&mut bed.cluster);
        let names = segments(&bed.cluster, 3, 100);
        all_done(&bed.cluster, &names);
        all_is_of(&bed.archive(), &bed.cluster, &names);
        assert!(!daemon.log().contains("split brain"), "{}", daemon.log());
    }
    wait::until_true(SOON, "nothing waits", || ready(&bed.cluster).is_empty());
}

/// The last segment of a clone that goes its own way and is promoted is not the one that production's heirs would read.
#[test]
fn the_partial_segment_of_a_refused_clone_is_not_stored() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (mut copy, agent) = clone(&bed);
    let before = segments(&copy, 3, 150);
    level(&bed.cluster, before.last().unwrap());
    forget(&copy, before.last().unwrap());
    copy.psql("insert into t select n, clock_timestamp() from generate_series(1, 77) n");
    promote_from_standby(&mut copy);
    let beside = agent.daemon();
    segments(&copy, 2, 150);
    refused(&copy);
    let partial: Vec<String> = ready(&copy).into_iter().filter(|name| name.contains(".partial")).collect();
    assert_eq!(partial.len(), 1, "{:?}", ready(&copy));
    let kept = bed.store.back_door().list("clusters");
    assert!(!kept.iter().any(|key| key.contains(".partial")), "{kept:?}\n{}", beside.log());
    let ours = segments(&bed.cluster, 3, 100);
    all_done(&bed.cluster, &ours);
    all_is_of(&bed.archive(), &bed.cluster, &ours);
}

/// What is damaged in the repository proves nothing against production: neither the segment before, nor the history where
/// `pg_wal` has it.
#[test]
fn damage_in_the_repository_does_not_stop_the_archive() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let mut heir = bed.cluster.standby();
    let agent = Agent::with(&heir, &bed.store);
    agent.archive_from(&heir);
    heir.start();
    heir.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    let daemon = agent.daemon();
    heir.promote();
    let names = segments(&heir, 3, 100);
    all_done(&heir, &names);
    assert_eq!(daemon.stop(), 0);
    let root = bed.store.root().unwrap();
    for key in bed.store.back_door().list("clusters") {
        let path = root.join(&key);
        if key.ends_with("/00000002.history") {
            flip(&path, 70);
            flip(&path, 90);
        } else if key.ends_with(&format!("/{}", names[2])) {
            (24..64).for_each(|at| flip(&path, at));
        }
    }
    let daemon = agent.daemon();
    let more = segments(&heir, 3, 100);
    all_done(&heir, &more);
    assert!(!heir.log().contains("split brain"), "{}", heir.log());
    wait::until_true(SOON, "the damaged history is told of", || {
        let told = agent.run(&["health"]);
        format!("{}{}", told.stdout, told.stderr).contains("00000002.history is damaged")
    });
    assert!(daemon.log().contains("00000002.history"), "{}", daemon.log());
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 0xFF;
    }
    std::fs::write(path, bytes).unwrap();
}

/// Who is refused in one of its repositories stores in none.
#[test]
fn a_clone_that_is_refused_in_one_repository_stores_in_no_other() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (mut copy, _) = clone(&bed);
    let before = segments(&copy, 3, 150);
    level(&bed.cluster, before.last().unwrap());
    let other = Store::local();
    let agent = Agent::with(&copy, &bed.store).repository("other", &other);
    agent.init(&[]).expect_success();
    agent.archive_from(&copy);
    let _beside = agent.daemon();
    archive_again(&mut copy);
    segments(&copy, 3, 150);
    refused(&copy);
    let stored = other.back_door().list("clusters");
    assert!(!stored.iter().any(|key| key.contains("/wal/")), "{stored:?}");
}

/// A segment that is stored with other content leaves nothing of the refused one, not even its restore points; and a check of a
/// server that does not archive at all finds that what is stored under the same name is not its own.
#[test]
fn a_clone_that_does_not_archive_is_found_by_content() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (mut copy, agent) = clone(&bed);
    copy.set("archive_command", "/bin/true");
    archive_again(&mut copy);
    copy.psql("select pg_create_restore_point('foreign')");
    let theirs = segments(&copy, 1, 150);
    all_done(&bed.cluster, &segments(&bed.cluster, 6, 100));
    let pushed = agent.run(&["push", copy.wal_dir().join(&theirs[0]).to_str().unwrap()]);
    assert!(!pushed.success() && pushed.stderr.contains("split brain"), "{pushed:?}");
    let kept = bed.store.back_door().list("clusters");
    assert!(!kept.iter().any(|key| key.contains("/points/")), "{kept:?}");
    let checked = agent.run(&["check"]);
    let text = format!("{}{}", checked.stdout, checked.stderr);
    assert!(!text.contains("was switched and stored") && text.contains("is another server's"), "{text}");
}
