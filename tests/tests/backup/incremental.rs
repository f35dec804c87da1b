//! Backups that build on others: they cost what changed, and each restores by itself (B4, B7).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::oracle::{self, Contents};
use walpoint_tests::user;

use crate::bed::{Bed, noise};

fn id(backup: &Value) -> &str {
    backup["backup"].as_str().unwrap()
}

/// A number that a backup says about its copy in the first repository.
fn copy(backup: &Value, name: &str) -> u64 {
    backup["repositories"][0][name].as_u64().unwrap()
}

fn parent(backup: &Value) -> Option<&str> {
    backup["repositories"][0]["parent"].as_str()
}

/// Every table of every database, equal to the source's at the end of the archive; indexes and tables are sound.
fn restores_to(bed: &Bed, backup: &Value, source: &Contents) {
    let restored = bed.recover(id(backup));
    source.assert_equal(&Contents::of(&restored));
    oracle::amcheck(&restored);
}

fn end_of_archive(bed: &Bed) -> Contents {
    let source = Contents::of(&bed.cluster);
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    source
}

/// Every pack in the store, and its size.
fn packs(bed: &Bed) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    let data = bed.store.root().unwrap().join("clusters/main/data");
    for backup in fs::read_dir(data).unwrap() {
        for pack in fs::read_dir(backup.unwrap().path()).unwrap() {
            let pack = pack.unwrap();
            all.insert(pack.path(), pack.metadata().unwrap().len());
        }
    }
    all
}

/// B7, B8: an idle cluster's backup costs next to nothing, whatever its size; then every way in which relations change,
/// ten deep. Each of the backups restores.
fn ten_deep(major: u32, depth: usize) {
    let bed = Bed::local(Cluster::builder().major(major).conf("autovacuum", "off"));
    bed.cluster.psql(
        "create table accounts (id int primary key, balance int, note text);
         insert into accounts select i, 0, md5(i::text) from generate_series(1, 300000) i;
         create table wide as select i, repeat(md5(i::text), 30) as t from generate_series(1, 20000) i;
         create table small (i int); vacuum; checkpoint",
    );
    let full = bed.backup(&[]);
    assert_eq!(parent(&full), None);
    let bytes = full["file_bytes"].as_u64().unwrap();
    bed.cluster.psql("checkpoint");
    let settled = bed.backup(&[]);
    let idle = bed.backup(&[]);
    assert_eq!(parent(&idle), Some(id(&settled)));
    let stored = copy(&idle, "stored_bytes");
    println!("{bytes} bytes; full {}, idle {stored}", copy(&full, "stored_bytes"));
    assert!(stored <= bytes / 5000 + (64 << 10), "{stored} of {bytes}: {idle}");
    assert!(copy(&idle, "reused_bytes") > bytes * 8 / 10, "{idle}");

    let changes = [
        "update accounts set balance = balance + 1 where id % 2000 < 100",
        "create table late as select i, md5(i::text) from generate_series(1, 50000) i",
        "vacuum full accounts",
        "truncate wide; insert into wide select i, 'x' from generate_series(1, 100) i",
        "delete from accounts where id > 100000; vacuum (truncate) accounts",
        "insert into accounts select i, 5, md5(i::text) from generate_series(400000, 600000) i",
        "drop table late",
        "create database other",
        "reindex table accounts",
        "drop database other",
    ];
    let mut made = vec![full, idle];
    for n in 0..depth {
        bed.cluster.psql(changes[n % changes.len()]);
        if n % 2 == 1 {
            bed.cluster.psql("checkpoint");
        }
        let next = bed.backup(&[]);
        assert_eq!(parent(&next), Some(id(made.last().unwrap())), "{next}");
        assert!(copy(&next, "new_bytes") + copy(&next, "reused_bytes") > 0);
        made.push(next);
    }
    let source = end_of_archive(&bed);
    restores_to(&bed, &made[made.len() / 2], &source);
    // The deepest one by the restore itself.
    let deepest = bed.restore(id(made.last().unwrap()));
    source.assert_equal(&Contents::of(&deepest));
    oracle::amcheck(&deepest);
}

/// B7: the version most used, all ways of change.
#[test]
fn increments_ten_deep_cost_what_changed_and_restore() {
    ten_deep(17, 10);
}

/// B7: the oldest and the newest version.
#[test]
fn increments_of_the_oldest_and_the_newest_version() {
    ten_deep(13, 2);
    ten_deep(19, 2);
}

/// B7: a database that is made by copying files costs next to nothing: they are found by their content.
#[test]
fn a_copied_database_is_found_by_its_content() {
    let bed = Bed::local(Cluster::builder());
    bed.cluster.psql("create database model_of_it");
    bed.cluster.psql_in(
        "model_of_it",
        "create table t as select i, md5(i::text) from generate_series(1, 200000) i; vacuum; checkpoint",
    );
    bed.backup(&[]);
    bed.cluster.psql("create database the_copy template model_of_it strategy file_copy");
    let copied = bed.backup(&[]);
    let bytes = copied["file_bytes"].as_u64().unwrap();
    assert!(bytes > 40 << 20, "{copied}");
    assert!(copy(&copied, "new_bytes") < 2 << 20, "{copied}");
    let source = Contents::of_database(&bed.cluster, "the_copy");
    end_of_archive(&bed);
    source.assert_equal(&Contents::of_database(&bed.recover(id(&copied)), "the_copy"));
}

/// B7: promotion: the parent is of another timeline and of another server, with the same paths.
#[test]
fn the_next_backup_after_a_promotion_is_incremental() {
    let mut bed = Bed::local(Cluster::builder());
    bed.cluster
        .psql("create table t as select i, md5(i::text) from generate_series(1, 100000) i; checkpoint");
    let first = bed.backup(&[]);
    let mut promoted = bed.cluster.streaming_standby();
    promoted.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    promoted.promote();
    let agent = Agent::with(&promoted, &bed.store);
    agent.archive_from(&promoted);
    promoted.stop(Shutdown::Fast);
    let _daemon = agent.daemon();
    promoted.start();
    promoted.psql("update t set md5 = 'after' where i % 50 = 0");
    let output = agent.run(&["backup", "--json"]).expect_success();
    let second = crate::bed::report(&output);
    assert_eq!((&second["start_timeline"], parent(&second)), (&2.into(), Some(id(&first))));
    let (new, reused) = (copy(&second, "new_bytes"), copy(&second, "reused_bytes"));
    assert!(reused > new, "{second}");
    let source = Contents::of(&promoted);
    let segment = promoted.switch_wal();
    promoted.wait_archived(&segment);
    restores_to(&bed, &second, &source);
}

/// B7, B4: packs that somebody deleted are noticed before they are believed. The next backup stores again what was in them,
/// and `--full` relies on none.
#[test]
fn packs_deleted_by_hand_are_noticed() {
    let bed = Bed::local(Cluster::builder());
    noise(&bed.cluster.pgdata().join("noise"), 90);
    let full = bed.backup(&[]);
    let largest = packs(&bed).into_iter().max_by_key(|(_, size)| *size).unwrap().0;
    fs::remove_file(&largest).unwrap();
    let output = bed.agent.run(&["backup", "--json"]).expect_success();
    assert!(output.stderr.contains("1 packs of earlier backups are missing"), "{}", output.stderr);
    let healed = crate::bed::report(&output);
    assert_eq!(parent(&healed), Some(id(&full)));
    let (new, reused) = (copy(&healed, "new_bytes"), copy(&healed, "reused_bytes"));
    assert!(new > 20 << 20 && reused > 50 << 20, "{healed}");
    let source = end_of_archive(&bed);
    source.assert_equal(&Contents::of(&bed.recover(id(&healed))));
    let output = bed.agent.run(&["backup", "--json", "--full"]).expect_success();
    assert!(output.stderr.contains("storing everything, as --full asks"), "{}", output.stderr);
    let whole = crate::bed::report(&output);
    assert_eq!((parent(&whole), copy(&whole, "reused_bytes")), (None, 0));
}

/// Two repositories have parents of their own; what one of them lacks is stored there.
#[test]
fn each_repository_has_its_own_parent() {
    let second = walpoint_tests::store::Store::local();
    let bed = Bed::new(Cluster::builder(), walpoint_tests::store::Store::local(), |agent| {
        agent.repository("second", &second)
    });
    let file = bed.cluster.pgdata().join("noise");
    noise(&file, 10);
    let only = bed.backup(&["--repo", "main"]);
    let both = bed.backup(&[]);
    let copies = both["repositories"].as_array().unwrap();
    let of = |name: &str| copies.iter().find(|copy| copy["repository"] == name).unwrap();
    assert_eq!(of("main")["parent"], only["backup"]);
    assert_eq!(of("second")["parent"], Value::Null);
    let new = |name: &str| of(name)["new_bytes"].as_u64().unwrap();
    assert!(new("main") < 5 << 20 && new("second") > 10 << 20, "{both}");
    user::give(&file);
}

/// New files that are as long as known ones and others are read once, but for what shows that: a block of a short one, 16 MiB of
/// a long one. What is a copy is found to be one, and stored nowhere.
#[test]
fn new_files_as_long_as_known_ones_are_read_once() {
    const LONG: usize = 48 << 20;
    let bed = Bed::local(Cluster::builder());
    let write = |name: &str, mut seed: u64, length: usize| {
        let path = bed.cluster.pgdata().join(name);
        let mut content = vec![0; length];
        for word in content.chunks_exact_mut(8) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            word.copy_from_slice(&seed.to_le_bytes());
        }
        fs::write(&path, content).unwrap();
        user::give(&path);
    };
    write("long-1", 1, LONG);
    write("short-1", 2, 300_000);
    bed.backup(&[]);
    write("long-2", 3, LONG);
    write("copied", 1, LONG);
    for n in 0..50 {
        write(&format!("short-{}", n + 2), 10 + n, 300_000);
    }
    let backup = bed.backup(&[]);
    let number = |name: &str| backup[name].as_u64().unwrap();
    let twice = number("read_bytes").saturating_sub(number("file_bytes"));
    println!("{twice} bytes of {} were read twice", number("file_bytes"));
    assert!(twice < 17 << 20, "{backup}");
    assert!(copy(&backup, "new_bytes") < LONG as u64 + (20 << 20), "{backup}");
}
