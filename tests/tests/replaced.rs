//! Promise 1 where the repository itself goes: one that is deleted under a running daemon, another one that is made in its
//! place, or a cluster that is forgotten, acknowledges nothing and gets no backup, and what was known of it counts no more.

use std::time::Duration;

use rustix::process::Signal;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::Background;
use walpoint_tests::store::Store;
use walpoint_tests::{user, wait};

/// PostgreSQL tries again a minute after it failed.
const SOON: Duration = Duration::from_secs(150);

/// Longer than a look at the repository counts.
const COUNTS_FOR: Duration = Duration::from_secs(4);

const GONE: &str = "is not the one that was opened";

fn segment(bed: &Archived) -> String {
    bed.cluster.psql("insert into t select generate_series(1, 100)");
    bed.cluster.switch_wal()
}

fn mark(bed: &Archived, name: &str, mark: &str) -> bool {
    bed.cluster.wal_dir().join("archive_status").join(format!("{name}.{mark}")).exists()
}

fn write_key(bed_place: &std::path::Path, digits: &str) {
    std::fs::write(bed_place, format!("{}\n", digits.repeat(32))).unwrap();
    user::give(bed_place);
    std::fs::set_permissions(bed_place, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// Deletes every object of a repository.
fn empty(bed: &Archived) {
    let door = bed.back_door();
    door.list("").iter().for_each(|key| door.delete(key));
}

/// Promise 1: a repository that is emptied under a daemon and made anew, with another key: what PostgreSQL was told to be archived after
/// that can be read with the new key.
#[test]
fn nothing_is_acknowledged_into_a_repository_that_was_deleted_or_made_anew() {
    for store in Store::all_good() {
        let mut key = std::path::PathBuf::new();
        let bed = Archived::start_encrypted(Cluster::builder().segment_size_mb(1), store, |agent| {
            key = agent.place().join("key");
            write_key(&key, "11");
            agent.repository_line("main", &format!("key_file = {:?}", key.display().to_string()))
        });
        bed.cluster.psql("create table t (n int)");
        let before = segment(&bed);
        bed.cluster.wait_done(&before);

        empty(&bed);
        std::thread::sleep(COUNTS_FOR);
        let mut names = vec![segment(&bed)];
        wait::until_true(SOON, "it is refused, or acknowledged", || {
            let log = bed.cluster.log();
            // What else the daemon does may find it first.
            log.contains(GONE) || log.contains("there is no repository") || mark(&bed, &names[0], "done")
        });
        assert!(mark(&bed, &names[0], "ready"), "acknowledged into {}, which is gone", bed.store.url());
        names.push(segment(&bed));
        std::thread::sleep(COUNTS_FOR);
        assert!(names.iter().all(|name| mark(&bed, name, "ready")), "{}", bed.cluster.log());

        write_key(&key, "22");
        bed.agent.init(&["--encrypt"]).expect_success();
        names.push(segment(&bed));
        wait::until_true(SOON, "all is archived", || names.iter().all(|name| mark(&bed, name, "done")));
        let status = bed.agent.run(&["health"]);
        assert!(status.success(), "{status:?}");
        for name in &names {
            let place = bed.agent.place().join(name);
            bed.agent.restore(&["fetch", name, place.to_str().unwrap()]).expect_success();
            let own = std::fs::read(bed.cluster.wal_dir().join(name));
            assert!(own.is_err() || own.ok() == std::fs::read(&place).ok(), "{name}");
        }
        bed.backup();
        bed.agent.run(&["verify"]).expect_success();
    }
}

/// Promise 1: a cluster that is forgotten under a daemon gets no WAL until it is registered again, and then all of it.
#[test]
fn nothing_is_acknowledged_into_a_cluster_that_was_forgotten() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t (n int)");
    let before = segment(&bed);
    bed.cluster.wait_done(&before);
    bed.agent.run(&["forget", "main", "--yes", "--even-if-in-use"]).expect_success();
    std::thread::sleep(COUNTS_FOR);
    let mut names = vec![segment(&bed)];
    wait::until_true(SOON, "it is refused, or acknowledged", || {
        let log = bed.cluster.log();
        log.contains(GONE) || log.contains("does not know cluster") || mark(&bed, &names[0], "done")
    });
    assert!(mark(&bed, &names[0], "ready"), "acknowledged into a cluster that was forgotten");
    names.push(segment(&bed));
    std::thread::sleep(COUNTS_FOR);
    assert!(names.iter().all(|name| mark(&bed, name, "ready")), "{}", bed.cluster.log());

    bed.agent.init(&[]).expect_success();
    names.push(segment(&bed));
    wait::until_true(SOON, "all is archived", || names.iter().all(|name| mark(&bed, name, "done")));
    for name in &names {
        let place = bed.agent.place().join(name);
        bed.agent.restore(&["fetch", name, place.to_str().unwrap()]).expect_success();
    }
    bed.backup();
    bed.agent.run(&["verify"]).expect_success();
}

/// What a daemon remembers to have stored is acknowledged again only in the repository that it went into.
#[test]
fn what_is_remembered_is_not_acknowledged_once_the_repository_is_gone() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::s3());
    bed.cluster.psql("create table t (n int)");
    let before = segment(&bed);
    bed.cluster.wait_done(&before);
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    let name = segment(&bed);
    bed.agent.push(format!("pg_wal/{name}")).expect_success();
    empty(&bed);
    std::thread::sleep(COUNTS_FOR);
    let pushed = bed.agent.push(format!("pg_wal/{name}"));
    assert!(!pushed.success(), "{pushed:?}");
    assert!(pushed.stderr.contains(GONE), "{pushed:?}");
    bed.agent.init(&[]).expect_success();
    bed.agent.push(format!("pg_wal/{name}")).expect_success();
    let keys = bed.back_door().list("clusters");
    assert!(keys.iter().any(|key| key.ends_with(&format!("/{name}"))), "it is in the new one: {keys:?}");
}

/// A backup whose repository is gone when its WAL has arrived is none.
#[test]
fn no_backup_is_published_in_a_repository_that_is_gone() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::s3());
    bed.backup();
    // What shows at first that archiving works is archived, and nothing behind it.
    let first = bed.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
    let command = format!("test ! %f \\\\> {first} && {}", bed.agent.archive_command());
    bed.cluster.set("archive_command", command);
    bed.cluster.reload();
    let before = bed.backups();
    // It would archive ahead of PostgreSQL what the backup shall wait for.
    bed.stop_daemon();
    let log = bed.agent.place().join("backup.log");
    let mut backup = Background::start(&mut bed.agent.command("archive-agent", ["backup"]), &log);
    wait::until_true(SOON, "it waits for its WAL", || {
        assert!(backup.try_status().is_none(), "{}", backup.log());
        backup.log().contains("the backup needs WAL up to")
    });
    backup.signal(Signal::STOP);
    for name in ready(&bed) {
        let path = bed.cluster.wal_dir().join(name);
        bed.agent.run(&["push", path.to_str().unwrap()]).expect_success();
    }
    let door = bed.back_door();
    let descriptor = door.get("walpoint.json").unwrap();
    door.delete("walpoint.json");
    backup.signal(Signal::CONT);
    let status = backup.wait(SOON);
    assert_ne!(status, 0, "{}", backup.log());
    assert!(backup.log().contains(GONE), "{}", backup.log());
    door.put("walpoint.json", descriptor);
    assert_eq!(bed.backups(), before);
}

fn ready(bed: &Archived) -> Vec<String> {
    let entries = std::fs::read_dir(bed.cluster.wal_dir().join("archive_status")).unwrap().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut ready: Vec<String> =
        names.filter_map(|name| name.strip_suffix(".ready").map(str::to_owned)).collect();
    ready.sort();
    ready
}
