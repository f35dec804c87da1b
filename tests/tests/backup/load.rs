//! B1, B2: backups of a cluster that is written to, in every way that changes files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use walpoint_tests::cluster::Cluster;
use walpoint_tests::oracle::{self, Contents};
use walpoint_tests::testbed::MAJORS;

use crate::bed::Bed;

/// Writes until told to stop: rows, relations that come, go, grow and shrink, databases.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<u32>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Load {
        let statements: [&[&str]; 3] = [
            &[
                "insert into accounts select i, 1, md5(random()::text) from generate_series(1, 500) i on conflict (id) do update set balance = accounts.balance + 1",
                "update accounts set balance = balance + 1 where id % 37 = 5",
                "delete from accounts where id % 53 = 7",
                "vacuum accounts",
            ],
            &[
                "create table churn as select i, repeat('x', 200) as t from generate_series(1, 3000) i; create index on churn (i)",
                "truncate churn",
                "insert into churn select i, repeat('y', 300) from generate_series(1, 2000) i",
                "vacuum full churn",
                "drop table churn",
            ],
            &["create database coming", "checkpoint", "drop database coming"],
        ];
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |statements: &'static [&'static str]| {
            let (stop, mut session) = (Arc::clone(&stop), cluster.session());
            std::thread::spawn(move || {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    statements.iter().for_each(|sql| drop(session.run(sql)));
                    rounds += 1;
                }
                rounds
            })
        };
        Load { threads: statements.into_iter().map(thread).collect(), stop }
    }

    /// Stops; how often the whole work was done, by the least busy thread.
    fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).min().unwrap()
    }
}

fn fill(cluster: &Cluster) {
    let space = cluster.create_tablespace("fast");
    assert!(space.is_dir());
    cluster.psql(
        "create table accounts (id int primary key, balance int, note text);
         insert into accounts select i, 0, md5(i::text) from generate_series(1, 20000) i;
         create table away (id int primary key, t text) tablespace fast;
         insert into away select i, repeat('a', 100) from generate_series(1, 5000) i;
         create unlogged table scratch (id int primary key);
         insert into scratch select generate_series(1, 1000);
         create table wide as select i, repeat(md5(i::text), 100) as t from generate_series(1, 3000) i;",
    );
}

/// The whole way: a backup under load, restored past its end, equals the source and passes amcheck.
pub(crate) fn under_load(major: u32, backups: u32, reader: &[&str]) {
    let bed = Bed::local(Cluster::builder().major(major).segment_size_mb(1).conf("archive_timeout", 2));
    fill(&bed.cluster);
    let load = Load::start(&bed.cluster);
    let made: Vec<_> =
        (0..backups).map(|n| bed.backup(&[&["--label", &format!("number {n}")], reader].concat())).collect();
    assert!(load.stop() > 0);
    let source = Contents::of(&bed.cluster);
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    let finished: Vec<String> = bed.repository().finished().iter().map(ToString::to_string).collect();
    assert_eq!(finished.len(), made.len());
    for (n, backup) in made.iter().enumerate() {
        let id = backup["backup"].as_str().unwrap();
        assert!(finished.contains(&id.to_owned()));
        assert_eq!(
            (&backup["damaged_page_count"], &backup["checksums_verified"]),
            (&0.into(), &true.into()),
            "{backup}"
        );
        let restored = if n == 0 { bed.restore(id) } else { bed.recover(id) };
        let mut contents = Contents::of(&restored);
        assert_eq!(
            contents.tables.remove("public.scratch").as_deref(),
            Some("0||"),
            "unlogged tables are empty"
        );
        let mut expected = source.clone();
        expected.tables.remove("public.scratch");
        expected.assert_equal(&contents);
        oracle::amcheck(&restored);
    }
}

/// B1, B2 on the version most used.
#[test]
fn a_backup_under_load_restores_to_what_the_source_became() {
    under_load(17, 2, &[]);
}

/// B1 on every version: they differ in the functions called, the label, the map and `pg_control`.
#[test]
fn backups_of_every_version_restore() {
    for major in MAJORS.into_iter().filter(|major| *major != 17) {
        under_load(major, 1, &[]);
    }
}
