//! R5 and promise 7: what fails in the middle: the store, the disk, the network. The restore ends with the reason, cannot
//! start, and the same command finishes it when the cause is gone.

use std::path::Path;
use std::time::Duration;

use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::faults::{self, SmallDisk};
use walpoint_tests::http_faults::{FaultRule, HttpProxy};
use walpoint_tests::oracle::Contents;
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::store::Store;
use walpoint_tests::{needs_root, process, wait};

fn bed(store: Store) -> (Archived, Contents) {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1).conf("max_wal_size", "200MB"), store);
    let primary = &bed.cluster;
    primary.psql(
        "create table t as select i, md5(i::text) || md5((-i)::text) as text from generate_series(1, 100000) i",
    );
    bed.backup();
    primary.psql("insert into t values (0, 'later')");
    let contents = Contents::of(primary);
    bed.settle();
    (bed, contents)
}

#[track_caller]
fn unfinished(bed: &Archived, pgdata: &Path) {
    assert!(pgdata.join("walpoint-restore.json").exists() && !pgdata.join("global/pg_control").exists());
    let mut server = Cluster::adopt(bed.cluster.dir().clone(), bed.cluster.major(), pgdata.to_owned(), None);
    assert!(server.try_start(wait::SOON).is_err(), "an unfinished restore started");
}

#[track_caller]
fn finished(bed: &Archived, pgdata: &Path, contents: &Contents) {
    let restored = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), pgdata);
    restored.wait_promoted();
    Contents::of(&restored).assert_equal(contents);
}

/// R5: the store goes away, or begins to refuse, while files are being written.
#[test]
fn a_store_that_goes_away_ends_the_restore_and_the_same_command_finishes_it() {
    let (bed, contents) = bed(Store::s3());
    let port = bed.store.port().unwrap();
    let (tcp, http) = (Proxy::to(port), HttpProxy::to(port));
    let pgdata = bed.place("target");
    let arguments = ["restore", "--pgdata", pgdata.to_str().unwrap()];
    let quick = |agent: Agent| {
        ["retries = 1", "retry_timeout = \"2s\"", "read_timeout = \"2s\"", "connect_timeout = \"1s\""]
            .into_iter()
            .fold(agent, |agent, line| agent.repository_line("main", line))
    };

    let agent = quick(Agent::new(&bed.cluster).repository_via_port("main", &bed.store, http.port()));
    agent.restore(&arguments).expect_success();
    let reads = http.requests().iter().filter(|r| r.starts_with("GET") && r.contains(".pack")).count();
    std::fs::remove_dir_all(&pgdata).unwrap();
    // Refused at the first read of data: nothing was written yet.
    http.set(vec![FaultRule::new("GET", ".pack", 403, "AccessDenied")]);
    agent.restore(&arguments).expect_status(1);
    assert!(!pgdata.exists());
    // In the midst of it: no credentials any more, deleted, not willing.
    for (status, code) in [(403, "AccessDenied"), (404, "NoSuchKey"), (503, "SlowDown")] {
        http.set(vec![FaultRule::new("GET", ".pack", status, code).after(u32::try_from(reads).unwrap() - 1)]);
        let output = agent.restore(&arguments).expect_status(1);
        assert!(
            output.stderr.contains(".pack") && output.stderr.contains("cannot start"),
            "{code}: {output:#?}"
        );
        assert!(output.took < Duration::from_secs(30), "{code} took {:?}", output.took);
        unfinished(&bed, &pgdata);
    }
    http.set(Vec::new());

    // A network that breaks.
    let agent = quick(Agent::new(&bed.cluster).repository_via("main", &bed.store, &tcp));
    for fault in [
        Fault::ResetAnswerAfter(200_000),
        Fault::TruncateAnswerAfter(300_000),
        Fault::StallAnswerAfter(400_000),
    ] {
        tcp.set(fault);
        let output = agent.restore(&arguments).expect_status(1);
        assert!(output.took < Duration::from_secs(60), "{fault:?} took {:?}", output.took);
        unfinished(&bed, &pgdata);
        tcp.cut();
        tcp.heal();
    }
    // Passing trouble is no trouble.
    let agent = Agent::new(&bed.cluster).repository_via_port("main", &bed.store, http.port());
    http.set(vec![FaultRule::new("GET", ".pack", 503, "SlowDown").times(2)]);
    agent.restore(&arguments).expect_success();
    http.set(Vec::new());
    finished(&bed, &pgdata, &contents);
}

/// Promise 10: damage anywhere in a backup's data is found before PostgreSQL sees it.
#[test]
fn a_damaged_pack_is_named_and_never_becomes_a_cluster() {
    let (bed, contents) = bed(Store::local());
    let pgdata = bed.place("target");
    let door = bed.back_door();
    let pack = door.list("clusters/main/data").into_iter().find(|key| key.ends_with(".pack")).unwrap();
    let bytes = door.get(&pack).unwrap();
    for damaged in [
        bytes[..bytes.len() - 1000].to_vec(),
        flipped(&bytes, bytes.len() / 2),
        flipped(&bytes, bytes.len() / 3),
        Vec::new(),
    ] {
        door.put(&pack, damaged);
        let output = bed.try_restore("target", &[]).expect_status(1);
        assert!(output.stderr.contains(&pack), "{output:#?}");
        assert!(output.stderr.contains("The same command would end there again"), "{output:#?}");
        unfinished(&bed, &pgdata);
    }
    door.put(&pack, bytes);
    bed.restore("target", &[]);
    finished(&bed, &pgdata, &contents);
    // One that is missing, whether it holds files or says which files there are.
    let mut seen = [false; 2];
    for pack in door.list("clusters/main/data").into_iter().filter(|key| key.ends_with(".pack")) {
        let bytes = door.get(&pack).unwrap();
        door.delete(&pack);
        let output = bed.try_restore("another", &[]).expect_status(1);
        for says in [&pack, "The same command would end there again", "restore-agent list"] {
            assert!(output.stderr.contains(says), "{says}: {output:#?}");
        }
        let begun = bed.place("another").exists();
        seen[usize::from(begun)] = true;
        assert_eq!(output.stderr.contains("nothing was changed"), !begun, "{output:#?}");
        if begun {
            unfinished(&bed, &bed.place("another"));
            std::fs::remove_dir_all(bed.place("another")).unwrap();
        }
        door.put(&pack, bytes);
    }
    assert_eq!(seen, [true; 2], "some are missed beforehand, some on the way");
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

/// R5: writing fails: the disk is full, or broken.
#[test]
fn a_disk_that_fails_ends_the_restore_and_the_same_command_finishes_it() {
    let (bed, contents) = bed(Store::local());
    let pgdata = bed.place("target");
    let command = || bed.agent.command("restore-agent", ["restore", "--pgdata", pgdata.to_str().unwrap()]);
    for (injection, says) in [
        ("pwrite64:error=ENOSPC:when=5+", "No space left"),
        ("ftruncate:error=EFBIG", "too large"),
        ("fsync:error=EIO:when=10+", "Input/output error"),
        ("syncfs:error=EIO", "cannot be made durable"),
        ("mkdirat:error=EACCES:when=5+", "Permission denied"),
        ("rename:error=EIO:when=2+", "Input/output error"),
    ] {
        let output =
            process::run(&mut faults::inject(&command(), &[injection], &[]), Duration::from_secs(60));
        assert!(output.status == 1 && output.stderr.contains(says), "{injection}: {output:#?}");
        unfinished(&bed, &pgdata);
    }
    process::run(&mut command(), wait::SOON).expect_success();
    finished(&bed, &pgdata, &contents);
}

/// Promise 7: a disk that is too small is found out before anything is written; one that others fill meanwhile is told.
#[test]
fn a_small_disk_is_refused_before_anything_is_written() {
    needs_root!();
    let (bed, contents) = bed(Store::local());
    let small = SmallDisk::new(20);
    let target = small.path().join("data");
    let arguments = ["restore", "--pgdata", target.to_str().unwrap()];
    let output = bed.agent.restore(&arguments).expect_status(1);
    assert!(
        output.stderr.contains("not enough space") && output.stderr.contains("nothing was changed"),
        "{output:#?}"
    );
    assert_eq!(std::fs::read_dir(small.path()).unwrap().count(), 0);
    // Read-only.
    small.set_read_only(true);
    let output = bed.agent.restore(&["restore", "--pgdata", small.path().to_str().unwrap()]).expect_status(1);
    assert!(!output.stderr.is_empty(), "{output:#?}");
    assert_eq!(std::fs::read_dir(small.path()).unwrap().count(), 0);

    // The data directory fits, its tablespace does not.
    let (data, space) = (SmallDisk::new(200), SmallDisk::new(20));
    let target = data.path().join("data");
    let spaces = space.path().join("spaces");
    let arguments =
        ["restore", "--pgdata", target.to_str().unwrap(), "--tablespace-dir", spaces.to_str().unwrap()];
    bed.cluster.create_tablespace("slow");
    bed.cluster.psql("create table wide tablespace slow as select i, repeat(md5(i::text), 40) from generate_series(1, 20000) i");
    bed.backup();
    bed.settle();
    let output = bed.agent.restore(&arguments).expect_status(1);
    assert!(
        output.stderr.contains("not enough space") && output.stderr.contains(spaces.to_str().unwrap()),
        "{output:#?}"
    );
    assert!(!target.exists() && !spaces.exists());
    bed.cluster.psql("drop table wide; drop tablespace slow");
    bed.backup();
    bed.settle();

    // Others have filled it; then they leave.
    let large = SmallDisk::new(200);
    large.fill(20 << 20);
    let target = large.path().join("data");
    let arguments = ["restore", "--pgdata", target.to_str().unwrap()];
    let output = bed.agent.restore(&arguments).expect_status(1);
    assert!(output.stderr.contains("not enough space") && !target.exists(), "{output:#?}");
    large.free();
    bed.agent.restore(&arguments).expect_success();
    finished(&bed, &target, &contents);
}
