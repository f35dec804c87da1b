//! A1 and A2 under encryption: equality is decided by the keyed hash of the content, for the stored bytes differ each time.

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

use crate::secret;

/// The object of a segment.
fn object(bed: &Archived, segment: &str) -> String {
    let keys = bed.back_door().list("clusters");
    let mut found = keys.into_iter().filter(|key| key.ends_with(segment));
    found.next().unwrap_or_else(|| panic!("no {segment}"))
}

/// A1, A2
#[test]
fn equal_segments_are_equal_though_their_bytes_differ() {
    for store in Store::all_good() {
        let builder = Cluster::builder().segment_size_mb(1);
        let bed = Archived::start_encrypted(builder, store, secret::key_file);
        let twin = bed.cluster.base_backup(&["-X", "stream", "-c", "fast"]);
        let conf = std::fs::read_to_string(twin.join("postgresql.conf")).unwrap();
        std::fs::write(twin.join("postgresql.conf"), conf + "\narchive_mode = off\n").unwrap();
        let mut twin = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), twin);
        bed.cluster.psql("create table t as select 1");
        let name = bed.cluster.switch_wal();
        bed.cluster.wait_done(&name);
        let saved = bed.cluster.dir().mkdir("saved").join(&name);
        std::fs::copy(bed.cluster.wal_dir().join(&name), &saved).unwrap();
        walpoint_tests::user::give(&saved);
        let path = saved.to_str().unwrap();
        let (key, door) = (object(&bed, &name), bed.back_door());
        let first = door.get(&key).unwrap();

        // The same again: nothing changes. From scratch: other bytes, and still the same.
        bed.agent.run(&["push", path]).expect_success();
        assert_eq!(door.get(&key).unwrap(), first);
        door.delete(&key);
        bed.agent.run(&["push", path]).expect_success();
        let second = door.get(&key).unwrap();
        assert_ne!(first, second, "each object has a salt of its own");
        door.put(&key, first.clone());
        bed.agent.run(&["push", path]).expect_success();
        assert_eq!(door.get(&key).unwrap(), first);

        // Two at the same moment.
        door.delete(&key);
        let outputs = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..2).map(|_| scope.spawn(|| bed.agent.run(&["push", path]))).collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
        });
        outputs.into_iter().for_each(|output| drop(output.expect_success()));
        let stored = door.get(&key).unwrap();

        twin.psql("create table other as select 2");
        while twin.switch_wal() < name {}
        // Nothing is taken from a server that runs.
        twin.crash();
        let other = twin.wal_dir().join(&name);
        let refused = bed.agent.run(&["push", other.to_str().unwrap()]).expect_status(1).stderr;
        assert!(refused.contains("already stored with different content"), "{refused}");
        assert!(refused.contains("stored: ") && refused.contains("offered: "), "both hashes: {refused}");
        // A hash that anybody could compute would tell which of known files is stored.
        let plain = blake3_of(&saved);
        assert!(!refused.contains(&plain), "the hash is keyed: {refused}");
        assert_eq!(door.get(&key).unwrap(), stored);
    }
}

fn blake3_of(path: &std::path::Path) -> String {
    let script = "import sys, blake3; print(blake3.blake3(open(sys.argv[1], 'rb').read()).hexdigest())";
    let mut python = walpoint_tests::testbed::python_crypto();
    let output = walpoint_tests::process::run(python.args(["-c", script]).arg(path), wait::SOON);
    output.expect_success().stdout.trim().to_owned()
}

/// R8 for whoever archives: without the right key nothing is stored, exit 1, and the text says why. With it PostgreSQL goes on
/// without a restart.
#[test]
fn without_its_key_nothing_is_archived() {
    let builder = Cluster::builder().segment_size_mb(1);
    let configure = |agent| secret::key_file(agent).cluster_line("push_timeout = \"1s\"");
    let mut bed = Archived::start_encrypted(builder, Store::local(), configure);
    let key = bed.agent.place().join("main.key");
    let right = std::fs::read_to_string(&key).unwrap();
    // PostgreSQL does not archive meanwhile.
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    bed.stop_daemon();
    let path = bed.cluster.wal_dir().join(bed.cluster.switch_wal());
    let path = path.to_str().unwrap();
    bed.cluster.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
    let before = bed.back_door().list("");
    for (text, told) in [
        (None, "cannot be read"),
        (Some("f".repeat(64)), "does not open its key slot"),
        (Some("not a key".to_owned()), "32 random bytes"),
    ] {
        match text {
            None => std::fs::remove_file(&key).unwrap(),
            Some(text) => drop(secret::file(&bed.agent, "main.key", &text)),
        }
        let output = bed.agent.run(&["push", path]).expect_status(1);
        assert!(output.stderr.contains(told) && output.stderr.contains("key"), "{output:#?}");
    }
    assert_eq!(bed.back_door().list(""), before, "something was stored");
    // A daemon that starts without it goes on when it is there.
    let daemon = bed.agent.daemon();
    let output = bed.agent.push(path).expect_status(1);
    assert!(output.stderr.contains("32 random bytes"), "{output:#?}");
    secret::file(&bed.agent, "main.key", &right);
    bed.agent.push(path).expect_success();
    assert_eq!(daemon.stop(), 0);
}
