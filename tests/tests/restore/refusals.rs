//! R3 and R4: what cannot be reached, and where nothing may be written, is refused before anything is touched.

use std::path::PathBuf;

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::Output;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;

use crate::tree::snapshot;

/// The key of a segment's object.
fn object(bed: &Archived, segment: &str) -> String {
    let keys = bed.back_door().list("clusters/main");
    let mut found = keys.into_iter().filter(|key| key.contains("/wal/") && key.ends_with(segment));
    found.next().unwrap_or_else(|| panic!("{segment} is not in the archive"))
}

/// Refused by `restore` and `plan` alike, without a trace of the target directory.
#[track_caller]
fn refused(bed: &Archived, options: &[&str]) -> Output {
    let output = bed.try_restore("refused/data", options).expect_status(1);
    assert!(output.stderr.contains("Nothing was touched"), "{options:?}: {output:#?}");
    assert!(!bed.place("refused").exists(), "{options:?} touched something");
    let plan = bed.agent.restore(&[&["plan"], options].concat()).expect_status(1);
    assert_eq!(plan.stdout, output.stdout, "{options:?}: plan and restore say the same");
    output
}

/// The newest row at the moment that is offered in place of a transaction.
#[track_caller]
fn highest_at_nearest(bed: &Archived, ledger: &Ledger, xid: &str) -> u32 {
    let output = bed.agent.restore(&["--json", "plan", "--target-xid", xid]).expect_status(1);
    let refusal: Value = serde_json::from_str(&output.stdout).unwrap();
    let nearest = refusal["nearest_targets"].as_array().unwrap();
    assert!(!nearest.is_empty(), "{refusal:#}");
    let options = nearest[0]["options"].as_array().unwrap().iter().map(|o| o.as_str().unwrap());
    let restored = bed.restore_and_start("nearest", &options.collect::<Vec<_>>());
    restored.wait_paused();
    ledger.highest(&restored)
}

/// R3: whatever is missing is named, and the moments that are offered instead can be reached.
#[test]
fn what_cannot_be_reached_is_refused_with_what_is_missing_and_what_can_be() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    // What lies exactly at a target can be left out only if there is one.
    bed.agent.restore(&["plan", "--target-exclusive"]).expect_status(2);
    // Without a backup WAL is worth nothing.
    let output = refused(&bed, &[]);
    assert!(output.stderr.contains("no complete backup") && output.stdout.contains("archive-agent backup"));
    let early = ledger.append(primary);
    let first = bed.backup();
    // A row in a segment of its own each.
    let rows: Vec<_> = (0..5)
        .map(|_| {
            let mark = ledger.append(primary);
            bed.cluster.switch_wal();
            mark
        })
        .collect();
    bed.settle();

    for (options, says) in [
        (["--target-name", "nowhere"], "restore point \"nowhere\" (timeline latest) cannot be reached"),
        (["--target-xid", "900000"], "transaction 900000"),
        (["--target-timeline", "7"], "the archive knows no timeline 7"),
        (["--target-time", &early.time_before], "ends after it"),
        (["--target-time", "2000-01-01 00:00:00+00"], "ends after it"),
        (["--target-time", "2100-01-01 00:00:00+00"], "no record in it reaches"),
        (["--target-lsn", "FF/0"], "no record in it reaches"),
        (["--backup", "20200101T000000Z-00000001-0000000000000028-00000000"], "there is no backup"),
    ] {
        let output = refused(&bed, &options);
        assert!(output.stderr.contains(says), "{options:?}: {output:#?}");
    }

    // A gap: the third row's segment is gone.
    let (key, door) = (object(&bed, &rows[2].segment), bed.back_door());
    let bytes = door.get(&key).unwrap();
    door.delete(&key);
    let fifth = rows[4].xid.to_string();
    for options in [
        &["--target-xid", &fifth][..],
        &["--target-time", &rows[3].time_after],
        &["--target-lsn", &rows[4].before],
    ] {
        let output = refused(&bed, options);
        assert!(output.stdout.contains(&rows[2].segment), "the missing file is named: {output:#?}");
        assert!(output.stdout.contains("--target-lsn"), "the nearest moment is told: {output:#?}");
        let says =
            if options[0] == "--target-xid" { "in no WAL that" } else { "WAL is missing between backup" };
        assert!(output.stderr.contains(says), "{output:#?}");
    }
    // Before the gap all is well. (No commit before it proves that the time after this row is over.)
    let restored = bed.restore_and_start("before", &["--target-xid", &rows[1].xid.to_string()]);
    restored.wait_paused();
    assert_eq!(ledger.highest(&restored), rows[1].n);
    drop(restored);
    // What is offered can be reached: everything before the gap.
    assert_eq!(highest_at_nearest(&bed, &ledger, &fifth), rows[1].n);
    let second = bed.backup();
    let last = ledger.append(primary);
    bed.settle();
    let output = refused(&bed, &["--target-xid", &fifth]);
    assert!(output.stdout.contains(&second), "the backup behind the gap is offered: {output:#?}");
    refused(&bed, &["--backup", &first]);
    let restored = bed.restore_and_start("behind", &["--target-time", &last.time_before]);
    restored.wait_paused();
    assert_eq!(ledger.highest(&restored), rows[4].n);
    drop(restored);

    // The object is back: the target can be reached again.
    door.put(&key, bytes);
    bed.agent.restore(&["plan", "--target-xid", &fifth]).expect_success();
    // A `.partial` never stands in.
    let bytes = door.get(&key).unwrap();
    door.delete(&key);
    door.put(&format!("{key}.partial/{:032x}", 7), bytes);
    refused(&bed, &["--target-xid", &fifth]);
}

/// R3, K6: a repository that cannot be read, or is not one, or knows no such cluster, is no reason to touch anything.
#[test]
fn a_repository_that_cannot_be_read_is_told_before_anything_is_touched() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let id = bed.backup();
    bed.settle();
    let nobody = bed.try_restore("refused/data", &["--repo", &bed.store.url(), "--cluster", "nobody"]);
    assert!(nobody.status != 0 && nobody.stderr.contains("nobody"), "{nobody:#?}");
    let (root, aside) = (bed.store.root().unwrap(), bed.store.root().unwrap().with_extension("aside"));
    std::fs::rename(root, &aside).unwrap();
    let gone = bed.try_restore("refused/data", &[]).expect_status(1);
    assert!(gone.stderr.contains(root.to_str().unwrap()), "{gone:#?}");
    std::fs::rename(&aside, root).unwrap();
    // A manifest that is damaged is no backup, and is named.
    let key = format!("clusters/main/backups/{id}/manifest");
    let door = bed.back_door();
    let bytes = door.get(&key).unwrap();
    for damaged in [bytes[..bytes.len() / 2].to_vec(), vec![0; 100], Vec::new()] {
        door.put(&key, damaged);
        let output = bed.try_restore("refused/data", &[]);
        let told = format!("{}{}", output.stdout, output.stderr);
        assert!(output.status == 1 && told.contains(&id), "{output:#?}");
    }
    door.put(&key, bytes);
    assert!(!bed.place("refused").exists());
    bed.restore("well", &[]);
}

/// R4: a running cluster, a directory with anything in it, and directories of tablespaces that are in use.
#[test]
fn nothing_is_written_where_something_lives() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let primary = &bed.cluster;
    let space = primary.create_tablespace("fast");
    primary.psql("create table t tablespace fast as select 1");
    let (oid, _) = primary.tablespaces()[0];
    bed.backup();
    bed.settle();
    primary.psql("checkpoint");

    let running = bed.try_restore("data", &[]).expect_status(1);
    let pid = primary.pid().unwrap().to_string();
    assert!(running.stderr.contains("running") && running.stderr.contains(&pid), "{running:#?}");
    assert_eq!(primary.psql("select * from t"), "1");

    let full = primary.dir().mkdir("full");
    primary.dir().write("full/important", "data");
    let elsewhere = format!("{oid}={}", bed.place("elsewhere").display());
    let before = (snapshot(&full), snapshot(&space));
    let output = bed.try_restore("full", &["--tablespace", &elsewhere]).expect_status(1);
    assert!(output.stderr.contains("not empty") && output.stderr.contains("important"), "{output:#?}");
    // The tablespace's own directory is the running server's.
    let output = bed.try_restore("new", &[]).expect_status(1);
    assert!(output.stderr.contains(space.to_str().unwrap()), "{output:#?}");
    let taken = format!("{oid}={}", full.display());
    let output = bed.try_restore("new", &["--tablespace", &taken]).expect_status(1);
    assert!(output.stderr.contains(full.to_str().unwrap()), "{output:#?}");
    // A dry run refuses what the restore would refuse.
    let dry = bed.try_restore("new", &["--tablespace", &taken, "--dry-run"]).expect_status(1);
    assert!(dry.stderr.contains(full.to_str().unwrap()), "{dry:#?}");
    for option in ["--wal-dir", "--tablespace-dir"] {
        let parent = bed.place("parent");
        let place = if option == "--wal-dir" { full.clone() } else { parent.clone() };
        if option == "--tablespace-dir" {
            primary.dir().mkdir("parent");
            primary.dir().mkdir(format!("parent/{oid}"));
            primary.dir().write(format!("parent/{oid}/important"), "data");
        }
        let mut options = vec![option, place.to_str().unwrap()];
        if option == "--wal-dir" {
            options.extend(["--tablespace", &elsewhere]);
        }
        let output = bed.try_restore("new", &options).expect_status(1);
        assert!(output.stderr.contains("not empty"), "{option}: {output:#?}");
    }
    assert!(!bed.place("new").exists() && !bed.place("elsewhere").exists());
    assert_eq!((snapshot(&full), snapshot(&space)), before, "something was touched");

    // A file is no directory.
    primary.dir().write("file", "data");
    for name in ["file", "file/new/data"] {
        let output = bed.try_restore(name, &["--tablespace", &elsewhere]);
        let told = format!("{} is not a directory", bed.place("file").display());
        assert!(output.status == 1 && output.stderr.contains(&told), "{output:#?}");
    }
    // An empty directory is fine, also with a mode that PostgreSQL would refuse; and a dry run writes nothing at all.
    let empty = primary.dir().mkdir("empty");
    std::fs::set_permissions(&empty, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let before = snapshot(&empty);
    let dry = bed.try_restore("empty", &["--tablespace", &elsewhere, "--dry-run"]).expect_success();
    let plan = bed.agent.restore(&["plan"]).expect_success();
    // Beside the plan it says what makes a copy of the server.
    let of_copy = |line: &&str| line.contains("max_logical_replication_workers");
    assert!(dry.stdout.lines().any(|line| of_copy(&line)), "{dry:#?}");
    let planned: Vec<&str> = dry.stdout.lines().filter(|line| !of_copy(line)).collect();
    assert_eq!(planned, plan.stdout.lines().collect::<Vec<_>>());
    assert_eq!(snapshot(&empty), before);
    let restored = bed.restore_and_start("empty", &["--tablespace", &elsewhere]);
    restored.wait_promoted();
    assert_eq!(restored.psql("select * from t"), "1");
    // A restored cluster is a cluster: nothing is restored over it.
    let again = bed.try_restore("empty", &["--tablespace", &elsewhere]).expect_status(1);
    assert!(again.stderr.contains("running"), "{again:#?}");
    drop(restored);
    let again = bed.try_restore("empty", &["--tablespace", &elsewhere]).expect_status(1);
    assert!(again.stderr.contains("not empty"), "{again:#?}");
}

/// R4: a path whose `..` follows a directory that does not exist would lead to a cluster, or to others' files, as soon as that is made.
/// It is refused, and nothing is made.
#[test]
fn a_path_that_leads_nowhere_yet_is_refused() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.backup();
    bed.settle();
    let pid = bed.cluster.pid();
    let occupied = bed.cluster.dir().mkdir("occupied");
    bed.cluster.dir().write("occupied/important", "data");
    let before = snapshot(&occupied);
    let place = bed.place("nope/../occupied").display().to_string();
    let refused: [(&str, &[&str]); 6] = [
        ("nope/../data", &[]),
        ("nope/../data", &["--if-empty"]),
        ("nope/../occupied", &["--dry-run"]),
        ("new", &["--wal-dir", &place]),
        ("new", &["--extra-dir", &place]),
        ("new", &["--tablespace-dir", &place]),
    ];
    for (pgdata, options) in refused {
        let output = bed.try_restore(pgdata, options).expect_status(1);
        let named = output.stderr.contains(if pgdata == "new" { options[0] } else { "--pgdata" });
        assert!(
            named && output.stderr.contains("leads through a directory that"),
            "{options:?}: {output:#?}"
        );
        assert!(!bed.place("nope").exists() && !bed.place("new").exists(), "{options:?}");
    }
    assert_eq!((snapshot(&occupied), bed.cluster.pid()), (before, pid));
    assert_eq!(bed.cluster.psql("select 1"), "1");
    // What exists is left by `..` as the kernel does it.
    bed.cluster.dir().mkdir("deep");
    let wal = bed.place("deep/../elsewhere").display().to_string();
    let pgdata = bed.restore("deep/../new", &["--wal-dir", &wal]);
    let linked = std::fs::read_link(pgdata.join("pg_wal")).unwrap();
    assert_eq!(linked, bed.place("elsewhere").canonicalize().unwrap());
}

/// R4: neither a repository nor another cluster's data directory gets a cluster, a tablespace or a pg_wal inside.
#[test]
fn nothing_is_restored_into_a_repository_or_a_data_directory() {
    let second = Store::local();
    let mut bed = Archived::start_with(Cluster::builder().segment_size_mb(1), Store::local(), |agent| {
        agent.repository("second", &second)
    });
    bed.cluster.create_tablespace("fast");
    bed.cluster.psql("create table t tablespace fast as select 1");
    let (oid, _) = bed.cluster.tablespaces()[0];
    bed.backup();
    bed.settle();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let mapped = |place: &str| format!("{oid}={place}");
    let (good, spaces) = (text(bed.place("good/data")), mapped(&text(bed.place("good/fast"))));
    for stopped in [false, true] {
        if stopped {
            bed.cluster.stop(Shutdown::Fast);
        }
        let own = bed.store.root().unwrap().to_owned();
        let outer =
            [own.join("clusters"), second.root().unwrap().to_owned(), bed.cluster.pgdata().join("base")];
        for outer in outer {
            let inner = text(outer.join("pg"));
            for options in [
                ["--pgdata", &inner, "--tablespace", &spaces, "--wal-dir", &text(bed.place("good/wal"))],
                [
                    "--pgdata",
                    &good,
                    "--tablespace",
                    &mapped(&inner),
                    "--wal-dir",
                    &text(bed.place("good/wal")),
                ],
                ["--pgdata", &good, "--tablespace", &spaces, "--wal-dir", &inner],
            ] {
                let output = bed.agent.restore(&[&["restore"], &options[..]].concat()).expect_status(1);
                let told = output.stderr.contains(&inner) && output.stderr.contains("nothing was changed");
                let why = ["overlap", "lies within"].iter().any(|why| output.stderr.contains(why));
                assert!(told && why, "{options:?}: {output:#?}");
            }
            assert!(!outer.join("pg").exists() && !bed.place("good").exists());
        }
    }
    // Nor into one that is not read.
    let inner = text(second.root().unwrap().join("pg"));
    let options = ["restore", "--repo", "main", "--pgdata", &inner, "--tablespace", &spaces];
    let output = bed.agent.restore(&options).expect_status(1);
    assert!(output.stderr.contains(&inner) && output.stderr.contains("overlap"), "{output:#?}");
    // A cluster that would take the repository along is not moved or emptied either.
    let around = bed.store.root().unwrap().parent().unwrap().to_owned();
    std::fs::write(around.join("PG_VERSION"), "17\n").unwrap();
    // Without it that would be the first reason.
    std::fs::create_dir_all(around.join("pg_wal/archive_status")).unwrap();
    let output =
        bed.agent.restore(&["restore", "--replace", "--pgdata", &text(around), "--tablespace", &spaces]);
    let output = output.expect_status(1);
    assert!(output.stderr.contains("overlap"), "{output:#?}");
    bed.agent.restore(&["restore", "--pgdata", &good, "--tablespace", &spaces]).expect_success();
}

/// R2: of two repositories the one that reaches further gives the plan, whichever is asked first.
#[test]
fn the_repository_that_reaches_furthest_gives_the_plan() {
    let second = Store::local();
    let bed = Archived::start_with(Cluster::builder().segment_size_mb(1), Store::local(), |agent| {
        agent.repository("second", &second)
    });
    bed.backup();
    bed.cluster.psql("create table t as select 1");
    let last = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&last);
    let plan = || {
        let output = bed.agent.restore(&["--json", "plan"]).expect_success();
        let plan: Value = serde_json::from_str(&output.stdout).unwrap();
        (plan["until_lsn"].as_str().unwrap().to_owned(), output.stderr.replace('\\', ""))
    };
    let (key, door) = (object(&bed, &last), second.back_door());
    walpoint_tests::wait::until_true(walpoint_tests::wait::SOON, "both have it", || door.get(&key).is_some());
    let (whole, told) = plan();
    assert!(!told.contains("goes on"), "{told}");
    let bytes = bed.back_door().get(&key).unwrap();
    bed.back_door().delete(&key);
    let (until, told) = plan();
    assert!(until == whole && told.contains("\"second\" goes on to"), "{until} {whole} {told}");
    bed.back_door().put(&key, bytes);
    door.delete(&key);
    let (until, told) = plan();
    assert!(until == whole && told.contains("\"main\" goes on to"), "{until} {whole} {told}");
}
