//! B1, R1 and R4 on every version: each way to take a backup restored in each way, to a target after it.
//!
//! | taken | restored |
//! |---|---|
//! | whole, by reading the data directory | into nothing |
//! | two steps of increments deep | `--delta` over a damaged data directory |
//! | whole, by `BASE_BACKUP` | `--replace` of a data directory |
//! | into an encrypted repository | |
//!
//! Each copy has to equal the source at the target: schema by `pg_dump`, every row by count and hash; and PostgreSQL's own
//! checks have to pass. 14 and later: `pg_amcheck` of all tables and indexes, and all page checksums. 13's package has neither
//! program, so there every B-tree is checked by the extension `amcheck` and its `bt_index_parent_check` with all rows of its
//! table, and every row is read.
//!
//! The six tests of `make test` hold every pair of version, way to take and way to restore; `make soak` holds all of them, on
//! both kinds of store.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::oracle::{self, Contents};
use walpoint_tests::store::Store;
use walpoint_tests::testbed::MAJORS;
use walpoint_tests::{faults, process, wait};

use crate::repair::spoil;

/// How a backup is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Taken {
    Whole,
    Increment,
    Remote,
    Encrypted,
}

const TAKEN: [Taken; 4] = [Taken::Whole, Taken::Increment, Taken::Remote, Taken::Encrypted];

/// How it is restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Empty,
    Delta,
    Replace,
}

const WAYS: [Way; 3] = [Way::Empty, Way::Delta, Way::Replace];

/// A stopped cluster, its backups, and what it held at the target.
struct Source {
    bed: Archived,
    backups: Vec<(Taken, String)>,
    good: Contents,
}

/// Rows that change, grow and go; relations that come, go and are written anew.
fn change(cluster: &Cluster, n: u32) {
    cluster.psql(&format!(
        "update accounts set balance = balance + 1 where id % 10 = {n};
         insert into history (account, note) select i, repeat(md5(i::text), 20) from generate_series(1, 2000) i;
         delete from history where account % 7 = {n}; vacuum history;
         create table late_{n} as select i, md5(i::text) as t from generate_series(1, 3000) i; create index on late_{n} (t);
         truncate passing; insert into passing select generate_series(1, {n} * 500); reindex table accounts"
    ));
}

impl Source {
    /// `encrypted`: a repository of its own, as encryption is chosen for all of it.
    fn new(major: u32, store: Store, encrypted: bool) -> Source {
        let builder = Cluster::builder().major(major).segment_size_mb(1);
        let mut bed = if encrypted {
            Archived::start_encrypted(builder, store, |agent| {
                let key = format!("key_file = \"{}\"", agent.place().join("key").display());
                agent.repository_line("main", &key)
            })
        } else {
            Archived::start(builder, store)
        };
        bed.cluster.psql(
            "create table accounts (id int primary key, owner text not null, balance numeric not null);
             insert into accounts select i, md5(i::text), i % 997 from generate_series(1, 20000) i;
             create index on accounts (owner); create table passing (i int primary key);
             create table history (id bigint generated always as identity primary key, account int, note text)",
        );
        let backups = if encrypted {
            vec![(Taken::Encrypted, backup(&bed, &[]).0)]
        } else {
            let (whole, none) = backup(&bed, &[]);
            assert_eq!(none, None);
            change(&bed.cluster, 1);
            let (first, parent) = backup(&bed, &[]);
            assert_eq!(parent.as_ref(), Some(&whole));
            change(&bed.cluster, 2);
            let (second, parent) = backup(&bed, &[]);
            assert_eq!(parent, Some(first));
            let (remote, _) = backup(&bed, &["--remote", "--full"]);
            vec![(Taken::Whole, whole), (Taken::Increment, second), (Taken::Remote, remote)]
        };
        change(&bed.cluster, 3);
        bed.cluster.psql("select pg_create_restore_point('target')");
        let good = Contents::of(&bed.cluster);
        bed.cluster.psql("drop table accounts; update history set note = ''; create table mistake (i int)");
        bed.settle();
        bed.cluster.stop(Shutdown::Fast);
        Source { bed, backups, good }
    }

    /// Restores a backup to the target and compares.
    fn comes_back(&self, taken: Taken, way: Way) {
        let (major, place) = (self.bed.cluster.major(), self.bed.place("copy"));
        println!("PostgreSQL {major}: {taken:?}, {way:?}");
        let (_, id) = self.backups.iter().find(|(other, _)| *other == taken).unwrap();
        let mut options = vec!["--backup", id, "--target-name", "target", "--target-action", "promote"];
        if way != Way::Empty {
            let mut copy = Command::new("cp");
            process::run(copy.arg("-a").arg(self.bed.cluster.pgdata()).arg(&place), wait::SOON)
                .expect_success();
        }
        match way {
            Way::Empty => {}
            Way::Delta => {
                spoil(&place, &mut faults::random());
                options.push("--delta");
            }
            Way::Replace => options.push("--replace"),
        }
        let mut restored = self.bed.restore_and_start("copy", &options);
        restored.wait_promoted();
        self.good.assert_equal(&Contents::of(&restored));
        oracle::amcheck(&restored);
        change(&restored, 4);
        restored.stop(Shutdown::Fast);
        if major > 13 {
            oracle::checksums(major, &place);
        }
        let asides = self.asides();
        assert_eq!(asides.len(), usize::from(way == Way::Replace), "{asides:?}");
        asides.iter().chain([&place]).for_each(|path| fs::remove_dir_all(path).unwrap());
    }

    /// Data directories that were moved aside.
    fn asides(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.bed.cluster.dir().path()).unwrap().flatten();
        let old = |name: &str| name.starts_with("copy.walpoint-old-");
        entries.filter(|e| e.file_name().to_str().is_some_and(old)).map(|e| e.path()).collect()
    }
}

/// Takes a backup; its id and its parent's.
fn backup(bed: &Archived, arguments: &[&str]) -> (String, Option<String>) {
    let output = bed.agent.run(&[&["backup", "--json"], arguments].concat()).expect_success();
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    let parent = report["repositories"][0]["parent"].as_str().map(str::to_owned);
    (report["backup"].as_str().unwrap().to_owned(), parent)
}

/// Restores what was taken in each of these ways.
fn all(major: u32, store: fn() -> Store, ways: impl Fn(usize) -> Vec<Way>) {
    let sources = [Source::new(major, store(), false), Source::new(major, store(), true)];
    for (n, taken) in TAKEN.into_iter().enumerate() {
        let source = &sources[usize::from(taken == Taken::Encrypted)];
        ways(n).into_iter().for_each(|way| source.comes_back(taken, way));
    }
}

/// One version: every way to take a backup, and every way to restore one. Over six versions each way to take a backup meets
/// each way to restore it twice.
fn pairs(major: u32) {
    let shift = usize::try_from(major).unwrap();
    all(major, Store::local, |n| vec![WAYS[(n + shift) % WAYS.len()]]);
}

/// B1, R1, R4 on version 13.
#[test]
fn every_kind_of_backup_of_13() {
    pairs(13);
}

/// B1, R1, R4 on version 14.
#[test]
fn every_kind_of_backup_of_14() {
    pairs(14);
}

/// B1, R1, R4 on version 15.
#[test]
fn every_kind_of_backup_of_15() {
    pairs(15);
}

/// B1, R1, R4 on version 16.
#[test]
fn every_kind_of_backup_of_16() {
    pairs(16);
}

/// B1, R1, R4 on version 17.
#[test]
fn every_kind_of_backup_of_17() {
    pairs(17);
}

/// B1, R1, R4 on version 18.
#[test]
fn every_kind_of_backup_of_18() {
    pairs(18);
}

/// B1, R1, R4 on version 19.
#[test]
fn every_kind_of_backup_of_19() {
    pairs(19);
}

/// B1, R1, R4: all of them.
#[test]
#[ignore = "make soak: every kind of backup in every way, of every version, on both kinds of store"]
fn every_kind_of_backup_in_every_way() {
    for major in MAJORS {
        for store in [Store::local, Store::s3] {
            all(major, store, |_| WAYS.to_vec());
        }
    }
}
