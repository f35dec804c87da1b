//! B1, B2, B3, B7: backups that the server sends (`BASE_BACKUP`) are those that a reader of its data directory makes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;

use walpoint_repo::backup::{EntryContent, FileEntry, Method};
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::oracle::Contents;
use walpoint_tests::process::Background;
use walpoint_tests::testbed::MAJORS;
use walpoint_tests::user;

use crate::bed::{Bed, noise, report};
use crate::load::under_load;

/// B1, B2 in the dialect of 13 and 14.
#[test]
fn remote_backups_under_load_restore_in_the_old_dialect() {
    for major in MAJORS.into_iter().filter(|major| *major < 15) {
        under_load(major, 1, &["--remote"]);
    }
}

/// B1, B2 in the dialect of 15 and later.
#[test]
fn remote_backups_under_load_restore_in_the_new_dialect() {
    for major in MAJORS.into_iter().filter(|major| *major >= 15) {
        under_load(major, 1, &["--remote"]);
    }
}

/// What has to be the same: all but the time, which a stream gives in whole seconds.
fn essence(entry: &FileEntry) -> (String, u16, u32, u32) {
    let content = match &entry.content {
        EntryContent::File(file) => format!("{} bytes {:?}", file.length, file.hash),
        EntryContent::Directory => "directory".to_owned(),
        EntryContent::LinkedDirectory { target } => format!("linked to {}", target.escape_ascii()),
        EntryContent::Link { target } => format!("link to {}", target.escape_ascii()),
    };
    let attributes = entry.attributes;
    (content, attributes.mode, attributes.uid, attributes.gid)
}

/// B2, B3: the same entries with the same sizes, owners, modes and hashes, on every version: tablespaces, a `pg_wal` that is a
/// link, odd names, empty files and directories, what stays out.
#[test]
fn both_readers_find_the_same() {
    for major in MAJORS {
        let dir = std::sync::Arc::new(walpoint_tests::dir::TestDir::new());
        let builder = Cluster::builder().major(major).in_dir(&dir).wal_dir(dir.join("wal"));
        let bed = Bed::local(builder.conf("autovacuum", "off").initdb("--allow-group-access"));
        bed.cluster.create_tablespace("first");
        bed.cluster.create_tablespace("empty");
        bed.cluster.psql(
            "create table one (i int) tablespace first; insert into one select generate_series(1, 1000);
             create table big as select i, md5(i::text) as t from generate_series(1, 300000) i;
             create unlogged table scratch as select generate_series(1, 1000);
             create temporary table gone (i int);",
        );
        let pgdata = bed.cluster.pgdata();
        let odd = OsString::from_vec(b"na\xFFme\nwith \"everything\\ .conf".to_vec());
        fs::write(pgdata.join(&odd), "x").unwrap();
        fs::write(pgdata.join("x".repeat(99)), vec![7; 100_000]).unwrap();
        fs::write(pgdata.join("empty"), "").unwrap();
        fs::create_dir_all(pgdata.join("some/where")).unwrap();
        fs::write(pgdata.join("some/where/kept"), "kept").unwrap();
        fs::write(pgdata.join("base/pgsql_tmp123"), "temporary").unwrap();
        fs::write(pgdata.join("zeros"), vec![0; 3 << 20]).unwrap();
        user::give_tree(pgdata);
        // Hint bits and the visibility map are written now and not between the two.
        bed.cluster.psql("vacuum freeze");
        bed.cluster.psql("checkpoint");

        let [local, remote] = [&[][..], &["--remote"]].map(|reader| bed.backup(reader));
        assert_eq!((&local["method"], &remote["method"]), (&"local".into(), &"remote".into()));
        let [left, right] = [&local, &remote].map(|backup| {
            let id = backup["backup"].as_str().unwrap();
            let entries = bed.repository().entries(id);
            (entries, bed.repository().open(id).manifest().summary.clone())
        });
        let essences = |entries: &BTreeMap<String, FileEntry>| {
            let mut all: BTreeMap<_, _> =
                entries.iter().map(|(path, entry)| (path.clone(), essence(entry))).collect();
            // The backups themselves write it; pg_wal's link does not go over the wire.
            all.remove("global/pg_control");
            let wal = all.get_mut("pg_wal").unwrap();
            assert!(wal.0 == "directory" || wal.0.starts_with("linked to"));
            wal.0 = "pg_wal".to_owned();
            all
        };
        let (ours, theirs) = (essences(&left.0), essences(&right.0));
        let differ: Vec<_> = ours
            .keys()
            .chain(theirs.keys())
            .filter(|path| ours.get(*path) != theirs.get(*path))
            .map(|path| format!("{path:?}: {:?} {:?}", ours.get(path), theirs.get(path)))
            .collect();
        assert!(differ.is_empty(), "PostgreSQL {major}, local and remote: {differ:#?}");
        assert!(ours.len() > 900 && ours.contains_key("some/where/kept"), "{}", ours.len());
        assert!(matches!(right.0["global/pg_control"].content, EntryContent::File(_)));
        let (ours, theirs) = (left.1.facts, right.1.facts);
        assert_eq!((ours.method, theirs.method), (Method::Local, Method::Remote));
        assert_eq!(
            (&ours.tablespace_map, &ours.tablespaces, &ours.pgdata, ours.data_checksums, &ours.users),
            (
                &theirs.tablespace_map,
                &theirs.tablespaces,
                &theirs.pgdata,
                theirs.data_checksums,
                &theirs.users
            )
        );
        assert_eq!(theirs.tablespaces.len(), 2);
    }
}

/// B2, B6: a standby sends the backup. Nobody switches a segment for it, so it waits until the primary has archived its end.
#[test]
fn a_remote_backup_from_a_standby() {
    for major in [13, 17] {
        let bed = Bed::local(Cluster::builder().major(major));
        bed.cluster.psql("create table t as select generate_series(1, 1000) i");
        let standby = bed.cluster.streaming_standby();
        standby.wait_replayed(&bed.cluster);
        let agent = Agent::with(&standby, &bed.store);
        let mut command = agent.command("archive-agent", ["backup", "--remote"]);
        let mut backup = Background::start(&mut command, &agent.place().join("backup.log"));
        bed.let_standby_end(&mut backup);
        let id = bed.repository().finished()[0].to_string();
        let facts = bed.repository().open(&id).manifest().summary.facts.clone();
        assert!(facts.from_standby && facts.method == Method::Remote);
        let source = Contents::of(&bed.cluster);
        let segment = bed.cluster.switch_wal();
        bed.cluster.wait_archived(&segment);
        source.assert_equal(&Contents::of(&bed.recover(&id)));
    }
}

/// B2: where the data directory is not visible the server sends it by itself, and that is said; so does `check`.
#[test]
fn without_a_visible_data_directory_the_server_sends_it() {
    let bed = Bed::local(Cluster::builder().major(16));
    bed.cluster.psql("create table t as select generate_series(1, 1000) i");
    let nowhere = bed.cluster.dir().join("of another machine");
    let agent =
        Agent::at(bed.cluster.dir(), &nowhere, &bed.cluster.conninfo()).repository("main", &bed.store);
    let output = agent.run(&["backup", "--json"]).expect_success();
    assert!(
        output.stderr.contains("BASE_BACKUP") && output.stderr.contains("there is no"),
        "{}",
        output.stderr
    );
    let backup = report(&output);
    assert_eq!(backup["method"], "remote");
    let id = backup["backup"].as_str().unwrap();
    // Of users whose names this machine need not know, numbers are kept.
    assert_eq!(bed.repository().open(id).manifest().summary.facts.users, []);
    let checked = agent.run(&["check"]).expect_success();
    assert!(
        checked.stdout.contains("replication") && checked.stdout.contains("was switched"),
        "{}",
        checked.stdout
    );
    let source = Contents::of(&bed.cluster);
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    source.assert_equal(&Contents::of(&bed.restore(id)));
}

/// B7: each reader builds on the other's backup: what did not change is not stored again, whoever reads it, and what did is
/// found. Files that are new at their path are stored as a whole.
#[test]
fn each_reader_builds_on_the_others_backup() {
    for major in [14, 17] {
        let bed = Bed::local(Cluster::builder().major(major).conf("autovacuum", "off"));
        bed.cluster.psql(
            "create table t as select i, md5(random()::text) as t from generate_series(1, 300000) i; vacuum freeze t",
        );
        noise(&bed.cluster.pgdata().join("noise"), 24);
        bed.cluster.psql("checkpoint");
        let stored = |reader: &[&str]| {
            let backup = bed.backup(reader);
            let bytes = backup["repositories"][0]["stored_bytes"].as_u64().unwrap();
            (backup["backup"].as_str().unwrap().to_owned(), bytes)
        };
        let (_, whole) = stored(&[]);
        assert!(whole > 24 << 20, "{whole}");
        let mut last = String::new();
        for reader in [&["--remote"][..], &[], &["--remote"]] {
            bed.cluster.psql("update t set t = 'changed' where i % 60000 = 7; checkpoint");
            let (id, bytes) = stored(reader);
            assert!(bytes < whole / 20, "PostgreSQL {major}, {reader:?}: {bytes} of {whole}");
            last = id;
        }
        let (_, full) = stored(&["--remote", "--full"]);
        assert!(full > whole / 2, "{full} of {whole}");
        let source = Contents::of(&bed.cluster);
        let segment = bed.cluster.switch_wal();
        bed.cluster.wait_archived(&segment);
        source.assert_equal(&Contents::of(&bed.restore(&last)));
    }
}
