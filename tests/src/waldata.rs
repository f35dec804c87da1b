//! Real WAL made by real PostgreSQL, for what decodes WAL: segments and history files, with `pg_waldump` as the oracle.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Cluster, Shutdown};
use crate::dir::TestDir;
use crate::process::{self, Output};
use crate::{testbed, user};

/// WAL of a cluster that is stopped for good. Lives as long as the value.
#[derive(Debug)]
pub struct WalData {
    /// The server's major version.
    pub major: u32,
    /// The cluster's system identifier.
    pub system_id: u64,
    /// Segment size in bytes.
    pub segment_size: u64,
    /// What `archive_command` was given: complete segments, `.history` and `.partial` files.
    pub archive: PathBuf,
    /// The last `pg_wal`, whose newest segment is incomplete.
    pub pg_wal: PathBuf,
    /// Where the WAL ends, as PostgreSQL prints it.
    pub end: String,
    _dir: Arc<TestDir>,
}

/// When the end of a record is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The primary crashes and is started again.
    InACrash,
    /// A standby never receives it and is promoted: the old timeline's last segment ends in a broken record for good, and
    /// the new timeline goes on from that record's beginning. PostgreSQL overwrites nothing then.
    InAPromotion,
}

impl WalData {
    /// Archived whole segments, sorted by name.
    pub fn segments(&self) -> Vec<PathBuf> {
        let whole = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let entries = fs::read_dir(&self.archive).expect("read the archive").flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(whole).collect();
        paths.sort();
        paths
    }

    /// Runs this version's `pg_waldump`. It ends with 1 where the WAL ends; 13 has none.
    #[track_caller]
    pub fn waldump(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(testbed::pg_program(self.major, "pg_waldump"));
        process::run(command.args(arguments).env("TZ", "UTC"), Duration::from_secs(120))
    }

    /// `pg_waldump` of one file.
    #[track_caller]
    pub fn waldump_file(&self, segment: &Path) -> Output {
        self.waldump(&[segment.to_str().expect("a path in UTF-8")])
    }

    fn take(mut cluster: Cluster, archive: &Path) -> WalData {
        let end = cluster.psql("select pg_current_wal_flush_lsn()");
        let (major, system_id) = (cluster.major(), cluster.system_id());
        let size = cluster.psql("select setting from pg_settings where name = 'wal_segment_size'");
        // A fast shutdown waits until everything is archived.
        cluster.stop(Shutdown::Fast);
        WalData {
            major,
            system_id,
            segment_size: size.parse().expect("a number"),
            archive: archive.to_owned(),
            pg_wal: cluster.wal_dir(),
            end,
            _dir: Arc::clone(cluster.dir()),
        }
    }
}

fn archiving(major: u32, segment_mb: u32) -> (Cluster, PathBuf) {
    let dir = Arc::new(TestDir::new());
    let archive = dir.mkdir("archive");
    let cluster = Cluster::builder()
        .major(major)
        .segment_size_mb(segment_mb)
        .in_dir(&dir)
        .archive_command(&format!("test ! -e {0}/%f && cp %p {0}/%f", archive.display()))
        .conf("wal_level", "logical")
        .conf("wal_keep_size", "2GB")
        .conf("wal_recycle", "off")
        .conf("wal_compression", "on")
        .conf("track_commit_timestamp", "on")
        .start();
    (cluster, archive)
}

/// All sorts of records, in segments of this size: OLTP, DDL, prepared transactions, subtransactions, aborts, bulk
/// loads, VACUUM FULL, databases, sequences, restore points, records larger than a segment, a switch.
#[track_caller]
pub fn mixed(major: u32, segment_mb: u32) -> WalData {
    let (cluster, archive) = archiving(major, segment_mb);
    workload(&cluster);
    cluster.switch_wal();
    workload_large(&cluster, segment_mb);
    cluster.psql("checkpoint");
    cluster.switch_wal();
    WalData::take(cluster, &archive)
}

/// One round of the mixed workload, on any running primary; may be repeated.
#[track_caller]
pub fn workload(cluster: &Cluster) {
    cluster.psql(
        "drop table if exists wal_a, wal_b;
         create table wal_a (id int primary key, filler text, v jsonb);
         create index on wal_a (filler); create index on wal_a using gin (v); create index on wal_a using brin (id);
         insert into wal_a select n, md5(n::text), jsonb_build_object('n', n) from generate_series(1, 3000) n;
         update wal_a set filler = md5(filler) where id % 3 = 0;
         delete from wal_a where id % 7 = 0;
         begin; insert into wal_a values (-1, 'aborted', null); rollback;
         begin; insert into wal_a values (-2, 'kept', null); savepoint s; insert into wal_a values (-3, 'gone', null);
         rollback to s; savepoint t; insert into wal_a values (-4, 'kept', null); release t; commit;
         begin; update wal_a set v = null where id = 5; prepare transaction 'wal-committed'; commit prepared 'wal-committed';
         begin; update wal_a set v = null where id = 6; prepare transaction 'wal-aborted'; rollback prepared 'wal-aborted';
         begin; select * from wal_a where id < 20 for update; select * from wal_a where id < 20 for key share; commit;
         vacuum wal_a; vacuum full wal_a; reindex table wal_a; cluster wal_a using wal_a_pkey;
         create table wal_b as select repeat(md5(n::text), 100) as wide from generate_series(1, 500) n;
         alter table wal_b alter column wide set storage external;
         insert into wal_b select repeat(md5(n::text), 200) from generate_series(1, 100) n;
         truncate wal_b; drop table wal_b; checkpoint;
         create sequence if not exists wal_s; select nextval('wal_s') from generate_series(1, 100);
         select pg_create_restore_point('wal-point');
         select pg_logical_emit_message(true, 'wal', 'in a transaction');
         create database wal_d; drop database wal_d;
         do $$ begin for i in 1 .. 50 loop
           begin insert into wal_a values (100000 + i, 'sub', null); if i % 2 = 0 then raise 'undo'; end if;
           exception when others then null; end;
         end loop; end $$;",
    );
}

/// Records that cross one, two and many segment boundaries.
#[track_caller]
pub fn workload_large(cluster: &Cluster, segment_mb: u32) {
    let segment = u64::from(segment_mb) << 20;
    // An allocation in PostgreSQL, and so a message, is at most 1 GiB.
    for size in [segment / 3, segment / 2 + 1, segment + segment / 5, (segment * 5 / 2).min(500 << 20)] {
        cluster.psql(&format!("select pg_logical_emit_message(false, 'wal', repeat('w', {size}))"));
    }
}

/// What [`kinds`] writes, one after the other.
pub const KINDS: [&str; 7] = [
    "pgbench",
    "ddl",
    "two-phase commit",
    "subtransactions",
    "vacuum full",
    "records across segments",
    "switches",
];

/// At least `segments` segments of 1 MiB of each of [`KINDS`], in this order.
#[track_caller]
pub fn kinds(major: u32, segments: u64) -> WalData {
    let (cluster, archive) = archiving(major, 1);
    for kind in KINDS {
        let start = cluster.lsn();
        let sql = format!("select pg_current_wal_insert_lsn() - '{start}' >= {}", segments << 20);
        let mut round = 0;
        while cluster.psql(&sql) != "t" {
            workload_of_kind(&cluster, kind, round);
            round += 1;
        }
        cluster.psql(&format!("select pg_create_restore_point('after {kind}')"));
    }
    cluster.switch_wal();
    WalData::take(cluster, &archive)
}

fn workload_of_kind(cluster: &Cluster, kind: &str, round: u32) {
    let many = |count: u32, sql: &dyn Fn(String) -> String| {
        let text: String = (0..count).map(|n| sql(format!("{round}_{n}"))).collect();
        cluster.psql(&text);
    };
    match kind {
        "pgbench" => {
            let mut arguments = vec!["-n", "-c", "4", "-j", "2", "-t", "500"];
            if round == 0 {
                arguments = vec!["-i", "-q", "-s", "1"];
            }
            let mut pgbench = cluster.tool("pgbench");
            process::run(pgbench.args(arguments), Duration::from_secs(120)).expect_success();
        }
        "ddl" => many(20, &|n| {
            format!(
                "create table d{n} (id int primary key, t text); create index on d{n} (t);
                 insert into d{n} select i, md5(i::text) from generate_series(1, 300) i;
                 alter table d{n} add c int default 5, alter t type varchar; truncate d{n};
                 begin; drop table d{n}; create view v{n} as select 1; drop view v{n}; commit;"
            )
        }),
        "two-phase commit" => many(20, &|n| {
            format!(
                "create table if not exists gone (t text); begin; create table p{n} (id int primary key, t text);
                 insert into p{n} select i, md5(i::text) from generate_series(1, 200) i;
                 savepoint a; insert into p{n} values (-1); savepoint b; drop table gone; create table gone (t text);
                 prepare transaction 'first {n}'; commit prepared 'first {n}';
                 begin; update p{n} set t = t; savepoint a; create table q{n} as select 1; truncate p{n};
                 prepare transaction 'second {n}'; rollback prepared 'second {n}'; drop table p{n};"
            )
        }),
        "subtransactions" => {
            cluster.psql("create table if not exists s (n int, t text)");
            many(5, &|n| {
                format!(
                    "do $$ begin for i in 1 .. 300 loop begin insert into s values (i, repeat('{n}', 20));
                       if i % 3 = 0 then raise 'undo'; end if; exception when others then null; end; end loop; end $$;
                     begin; insert into s values (0); savepoint a; insert into s values (1); rollback;"
                )
            });
        }
        "vacuum full" => {
            cluster.psql(
                "create table if not exists f as select i, repeat(md5(i::text), 8) t from generate_series(1, 4000) i;
                 update f set t = t || i where i % 5 = 0; vacuum full f; vacuum full pg_class;",
            );
        }
        "records across segments" => many(8, &|_| {
            "select pg_logical_emit_message(random() < 0.5, 'across', repeat('x', (random() * 700000)::int));
             select pg_logical_emit_message(false, 'across', repeat('y', (random() * 2500000)::int));"
                .to_owned()
        }),
        "switches" => drop(cluster.switch_wal()),
        other => panic!("no such kind of workload: {other}"),
    }
}

/// A primary's timeline and that of its promoted standby, which archives into the same place: a `.history`, a
/// `.partial`, and a first segment of timeline 2 that begins with pages of timeline 1.
#[track_caller]
pub fn promotion(major: u32) -> WalData {
    let (mut primary, archive) = archiving(major, 1);
    workload(&primary);
    let standby = primary.streaming_standby();
    primary.switch_wal();
    primary.psql("create table wal_c as select generate_series(1, 100) as n");
    standby.wait_replayed(&primary);
    primary.crash();
    standby.promote();
    workload(&standby);
    standby.switch_wal();
    WalData::take(standby, &archive)
}

/// Records that set and clear bits of a visibility map.
#[track_caller]
pub fn visibility(major: u32) -> WalData {
    let (cluster, archive) = archiving(major, 1);
    cluster.psql("create table wal_v as select generate_series(1, 20000) as i");
    cluster.psql("vacuum (freeze) wal_v");
    cluster.psql(
        "checkpoint; delete from wal_v where i % 1000 = 1; update wal_v set i = i + 1 where i % 1000 = 2;
         select from wal_v where i % 777 = 0 for update; select pg_switch_wal()",
    );
    cluster.psql("vacuum wal_v");
    cluster.psql(
        "begin; create table wal_w (like wal_v); copy wal_w from program 'seq 1 1000' (freeze); commit",
    );
    cluster.switch_wal();
    WalData::take(cluster, &archive)
}

/// A record that crosses into a segment that was lost, and what PostgreSQL writes then. After a crash the page behind the
/// broken record is flagged, and an `OVERWRITE_CONTRECORD` record names it.
#[track_caller]
pub fn overwritten_contrecord(major: u32, lost: Lost) -> WalData {
    let (mut cluster, archive) = archiving(major, 1);
    cluster.psql("create table wal_f (n int, filler text)");
    // Up to the last two pages of a segment, as PostgreSQL's own test of this does.
    cluster.psql(
        "do $$ declare size int; page int; left_over int; begin
           select setting::int into size from pg_settings where name = 'wal_segment_size';
           select setting::int into page from pg_settings where name = 'wal_block_size';
           loop
             insert into wal_f select n, repeat(md5(n::text), (random() * 15)::int + 1) from generate_series(1, 10) n;
             left_over := size - (pg_current_wal_insert_lsn() - '0/0') % size;
             exit when left_over < 2 * page;
           end loop; end $$;",
    );
    let first = cluster.current_segment();
    // Not archived: whoever archives is stopped before, as by a machine's death.
    cluster.set("archive_command", "false");
    cluster.reload();
    cluster.wait_for("show archive_command", "false");
    cluster.psql(&format!("select pg_logical_emit_message(true, 'wal', repeat('xyzxz', {}))", 123_456));
    let second = cluster.current_segment();
    assert_ne!(first, second, "the record crosses into another segment");
    cluster.crash();
    fs::remove_file(cluster.wal_dir().join(&second)).expect("lose the end of the record");
    let status = cluster.wal_dir().join("archive_status");
    drop(fs::remove_file(status.join(format!("{second}.ready"))));
    cluster.set("archive_command", format!("test ! -e {0}/%f && cp %p {0}/%f", archive.display()));
    if lost == Lost::InAPromotion {
        let signal = cluster.pgdata().join("standby.signal");
        fs::write(&signal, "").expect("write standby.signal");
        user::give(&signal);
    }
    cluster.start();
    if lost == Lost::InAPromotion {
        cluster.promote();
    }
    workload(&cluster);
    cluster.switch_wal();
    WalData::take(cluster, &archive)
}
