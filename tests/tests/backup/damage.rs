//! B5: pages that are damaged on disk, and files that change while they are read.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walpoint_repo::backup::{EntryContent, PageFault};
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::{self, Background};
use walpoint_tests::{faults, needs_root, wait};

use crate::bed::{Bed, report};

/// A cluster with a table whose file it names, at rest.
fn bed(checksums: bool) -> (Bed, PathBuf) {
    let bed = Bed::local(Cluster::builder().checksums(checksums));
    bed.cluster.psql(
        "create table t as select i, repeat('x', 500) from generate_series(1, 5000) i; vacuum t; checkpoint",
    );
    let path = bed.cluster.psql("select pg_relation_filepath('t')");
    (bed, path.into())
}

fn damage(bed: &Bed, path: &PathBuf, block: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(bed.cluster.pgdata().join(path)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, block * 8192 + 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], block * 8192 + 5000).unwrap();
}

/// B5: reported by file and block, recorded, and no reason to have no backup; `--strict` makes it one.
#[test]
fn damaged_pages_are_reported_by_file_and_block_and_recorded() {
    let (bed, path) = bed(true);
    for block in [3, 70] {
        damage(&bed, &path, block);
    }
    let output = bed.agent.run(&["backup", "--json"]).expect_success();
    let backup = report(&output);
    let name = path.display().to_string();
    assert_eq!(backup["damaged_page_count"], 2, "{backup}");
    for (finding, block) in backup["damaged_pages"].as_array().unwrap().iter().zip([3, 70]) {
        assert_eq!((finding["file"].as_str().unwrap(), &finding["block"]), (name.as_str(), &block.into()));
    }
    assert!(output.stderr.contains("2 damaged pages"), "{}", output.stderr);
    let id = backup["backup"].as_str().unwrap();
    let manifest = bed.repository().open(id).manifest().clone();
    assert_eq!(manifest.summary.totals.bad_pages, 2);
    assert!(manifest.findings.iter().all(
        |finding| finding.path.to_string() == name && matches!(finding.fault, PageFault::Checksum { .. })
    ));
    let EntryContent::File(file) = &bed.repository().entries(id)[&name].content else { panic!() };
    assert_eq!(file.bad_pages, 2);
    // The text names them too.
    let text = bed.agent.run(&["backup"]).expect_success().stdout;
    assert!(text.contains(&format!("{name} block 3")) && text.contains("2 DAMAGED"), "{text}");

    let before = bed.repository().finished();
    let strict = bed.agent.run(&["backup", "--strict"]).expect_status(1);
    assert!(strict.stderr.contains(&format!("{name} block 3")), "{}", strict.stderr);
    assert_eq!(bed.repository().finished(), before, "with --strict there is no backup");
    bed.repository().list().iter().for_each(|listed| {
        assert!(
            !matches!(listed.state, walpoint_repo::backup::ListedState::Unfinished),
            "it was aborted: {listed:?}"
        );
    });
}

/// B5: without checksums nothing can be verified, and that is said.
#[test]
fn a_cluster_without_checksums_says_so() {
    let (bed, path) = bed(false);
    damage(&bed, &path, 3);
    let output = bed.agent.run(&["backup", "--json"]).expect_success();
    let backup = report(&output);
    assert_eq!((&backup["damaged_page_count"], &backup["checksums_verified"]), (&0.into(), &false.into()));
    assert!(output.stderr.contains("page checksums"), "{}", output.stderr);
}

/// B5: `pg_checksums` switches them, and the server then says both what `initdb` chose and what holds.
#[test]
fn checksums_that_were_switched_since_initdb_are_what_is_verified() {
    for major in [17, 19] {
        let mut bed = Bed::local(Cluster::builder().major(major).checksums(false));
        bed.cluster
            .psql("create table t as select i, repeat('x', 500) from generate_series(1, 5000) i; vacuum t");
        let path: PathBuf = bed.cluster.psql("select pg_relation_filepath('t')").into();
        for on in [true, false] {
            bed.cluster.stop(Shutdown::Fast);
            let mut switch = bed.cluster.tool("pg_checksums");
            switch.arg(if on { "--enable" } else { "--disable" }).arg("-D").arg(bed.cluster.pgdata());
            process::run(&mut switch, Duration::from_secs(60)).expect_success();
            bed.cluster.start();
            if on {
                damage(&bed, &path, 3);
            }
            for arguments in [&[][..], &["--remote"]] {
                let backup = bed.backup(arguments);
                let found = (&backup["damaged_page_count"], &backup["checksums_verified"]);
                assert_eq!(found, (&u64::from(on).into(), &on.into()), "{major} {arguments:?}: {backup}");
            }
        }
    }
}

/// B5: an LSN that is damaged so that the page looks newer than the backup does not hide it.
#[test]
fn a_page_newer_than_all_wal_is_damaged() {
    let (bed, path) = bed(true);
    let file = fs::OpenOptions::new().write(true).open(bed.cluster.pgdata().join(&path)).unwrap();
    file.write_all_at(&[0x7F; 4], 5 * 8192).unwrap();
    let backup = bed.backup(&[]);
    assert_eq!(
        (&backup["damaged_page_count"], &backup["damaged_pages"][0]["block"]),
        (&1.into(), &5.into()),
        "{backup}"
    );
}

/// B5: pages that change all the time while they are read are no damage.
#[test]
fn pages_that_change_while_they_are_read_are_not_reported() {
    let bed = Bed::local(Cluster::builder().conf("full_page_writes", "on").conf("shared_buffers", "1MB"));
    bed.cluster
        .psql("create table hot as select i, 0 as n, repeat('x', 300) as t from generate_series(1, 30000) i");
    let mut session = bed.cluster.session();
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let mut rounds = 0;
        while receiver.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            // With so few buffers, pages are written out all the time.
            session.run("update hot set n = n + 1 where i % 7 = 3; vacuum hot");
            rounds += 1;
        }
        rounds
    });
    for _ in 0..3 {
        assert_eq!(bed.backup(&[])["damaged_page_count"], 0);
    }
    sender.send(()).unwrap();
    assert!(writer.join().unwrap() > 0);
}

/// B5: what the disk cannot read is no page with a wrong checksum: zeros in its place would be an empty page to PostgreSQL, and
/// unfinished transactions to whoever asks `pg_xact`.
#[test]
fn a_block_that_the_disk_cannot_read_ends_the_backup() {
    for checksums in [true, false] {
        let (bed, table) = bed(checksums);
        for file in [table.as_path(), Path::new("pg_xact/0000"), Path::new("global/pg_filenode.map")] {
            let command = bed.agent.command("archive-agent", ["backup"]);
            let place = bed.cluster.pgdata().join(file);
            let mut command = faults::inject(&command, &["pread64:error=EIO"], &[&place]);
            let output = process::run(&mut command, Duration::from_secs(120)).expect_status(1);
            let what = format!("{} cannot be read: block 0, at byte 0: ", place.display());
            assert!(output.stderr.contains(&what) && output.stderr.contains("HINT: "), "{}", output.stderr);
            assert_eq!(bed.repository().finished(), []);
        }
        // A second look succeeds.
        let command = bed.agent.command("archive-agent", ["backup"]);
        let place = bed.cluster.pgdata().join(&table);
        let mut command = faults::inject(&command, &["pread64:error=EIO:when=1"], &[&place]);
        process::run(&mut command, Duration::from_secs(120)).expect_success();
        bed.agent.run(&["verify"]).expect_success();
    }
}

/// A file that the agent has no right to read is no disk's fault: the error names it and who asked.
#[test]
fn an_unreadable_file_ends_the_backup_with_its_name() {
    let (mut bed, path) = bed(true);
    let own = bed.cluster.pgdata().join("not-ours");
    fs::write(&own, "x").unwrap();
    fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    if walpoint_tests::user::is_root() {
        let output = bed.agent.run(&["backup"]).expect_status(1);
        assert!(output.stderr.contains("not-ours") && output.stderr.contains("uid"), "{}", output.stderr);
        assert!(bed.repository().list().is_empty(), "found out before anything began");
    }
    fs::remove_file(&own).unwrap();
    bed.backup(&[]);
    bed.cluster.stop(Shutdown::Fast);
    assert!(bed.cluster.pgdata().join(path).exists());
}

/// B5: a page that went bad while one backup left it to replay is told by the next one, also where that finds the whole file
/// elsewhere in the first; and by `verify`, which reads the block they share.
#[test]
fn a_page_that_an_earlier_backup_left_to_replay_is_verified_where_the_file_moved() {
    needs_root!();
    let bed = Bed::local(Cluster::builder());
    bed.cluster.psql("create database d");
    bed.cluster.create_tablespace("ts");
    bed.cluster.psql_in(
        "d",
        "create table t with (autovacuum_enabled = off) as select i, repeat('x', 500) s from generate_series(1, 5000) i",
    );
    bed.cluster.psql("checkpoint");
    let path = PathBuf::from(bed.cluster.psql_in("d", "select pg_relation_filepath('t')"));
    let (mut first, _) = held_at_its_opening(&bed, &bed.cluster.pgdata().join(&path));
    bed.cluster.psql_in("d", "update t set s = repeat('y', 500) where i = 100");
    let block = bed.cluster.psql_in("d", "select (ctid::text::point)[0]::int from t where i = 100");
    bed.cluster.psql("checkpoint");
    let block: u64 = block.parse().unwrap();
    damage(&bed, &path, block);
    bed.cluster.switch_wal();
    assert_eq!(first.wait(Duration::from_secs(60)), 0, "{}", first.log());
    assert!(first.log().contains("\"damaged_page_count\": 0"), "{}", first.log());
    bed.cluster.psql("alter database d set tablespace ts");
    let second = bed.backup(&[]);
    assert_eq!(
        (&second["damaged_page_count"], &second["damaged_pages"][0]["block"]),
        (&1.into(), &block.into()),
        "{second}"
    );
}

/// A backup that takes some seconds to open this file.
fn held_at_its_opening(bed: &Bed, file: &Path) -> (Background, PathBuf) {
    let command = bed.agent.command("archive-agent", ["backup", "--json"]);
    let mut command = faults::inject(&command, &["openat:delay_enter=6s:when=1"], &[file]);
    let log = bed.agent.place().join("opening.log");
    let backup = Background::start(&mut command, &log);
    wait::until_true(wait::SOON, "the backup copies", || backup.log().contains("copying"));
    // The walk and the readers are soon at the file.
    std::thread::sleep(Duration::from_secs(1));
    (backup, log)
}
