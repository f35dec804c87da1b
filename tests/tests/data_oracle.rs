//! The data directory as PostgreSQL's own tools see it: pg_control against `pg_controldata`, page checksums against
//! `pg_checksums` (B5), what belongs into a base backup against `pg_basebackup`. 13's package has only the server: there
//! it is asked by SQL.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use walpoint_base::{Lsn, SegmentName, TimelineId};
use walpoint_pg::checksum::{PageState, verify_page};
use walpoint_pg::control::{CONTROL_FILE, ClusterState, ControlFile, WalLevel};
use walpoint_pg::files::{self, Action, DEFAULT_RELATION_SEGMENT_BLOCKS, Unlogged};
use walpoint_pg::label::{BackupHistory, BackupLabel, TablespaceMap};
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::testbed::{self, MAJORS};
use walpoint_tests::{process, user};

fn control(pgdata: &Path) -> ControlFile {
    let mut last = None;
    // A running server may be writing it.
    for _ in 0..10 {
        match ControlFile::parse(&fs::read(pgdata.join(CONTROL_FILE)).unwrap()) {
            Ok(control) => return control,
            Err(error) => last = Some(error),
        }
    }
    panic!("{last:?}");
}

/// As PostgreSQL prints it: 0 is none.
fn timeline(timeline: Option<TimelineId>) -> String {
    timeline.map_or(0, TimelineId::get).to_string()
}

fn controldata(major: u32, pgdata: &Path) -> BTreeMap<String, String> {
    let mut command = Command::new(testbed::pg_program(major, "pg_controldata"));
    command.env("TZ", "UTC").env("LC_ALL", "C").arg(pgdata);
    let output = process::run(user::become_user(&mut command), Duration::from_secs(30)).expect_success();
    let pairs = output.stdout.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect()
}

fn assert_same(ours: &ControlFile, theirs: &BTreeMap<String, String>) {
    let value = |key: &str| theirs.get(key).unwrap_or_else(|| panic!("no {key} in {theirs:#?}")).clone();
    let lsn = |key: &str| value(key).parse::<Lsn>().unwrap();
    let on = |on: bool| if on { "on" } else { "off" }.to_owned();
    let checkpoint = &ours.checkpoint;
    assert_eq!(ours.system_id.to_string(), value("Database system identifier"));
    assert_eq!(ours.control_version.to_string(), value("pg_control version number"));
    assert_eq!(ours.catalog_version.to_string(), value("Catalog version number"));
    let state = match ours.state {
        ClusterState::Startup => "starting up",
        ClusterState::ShutDown => "shut down",
        ClusterState::ShutDownInRecovery => "shut down in recovery",
        ClusterState::ShuttingDown => "shutting down",
        ClusterState::InCrashRecovery => "in crash recovery",
        ClusterState::InArchiveRecovery => "in archive recovery",
        ClusterState::InProduction => "in production",
    };
    assert_eq!(state, value("Database cluster state"));
    assert_eq!(checkpoint.lsn, lsn("Latest checkpoint location"));
    assert_eq!(checkpoint.redo, lsn("Latest checkpoint's REDO location"));
    assert_eq!(timeline(checkpoint.timeline), value("Latest checkpoint's TimeLineID"));
    assert_eq!(timeline(checkpoint.previous_timeline), value("Latest checkpoint's PrevTimeLineID"));
    let next = format!("{}:{}", checkpoint.next_xid >> 32, checkpoint.next_xid & 0xFFFF_FFFF);
    assert_eq!(next, value("Latest checkpoint's NextXID"));
    assert_eq!(checkpoint.oldest_xid.to_string(), value("Latest checkpoint's oldestXID"));
    let time = |seconds: i64| {
        let time = jiff::Timestamp::from_second(seconds).unwrap();
        time.strftime("%a %b %e %H:%M:%S %Y").to_string()
    };
    assert_eq!(time(checkpoint.time), value("Time of latest checkpoint"));
    assert_eq!(time(ours.time), value("pg_control last modified"));
    assert_eq!(ours.min_recovery_point, lsn("Minimum recovery ending location"));
    assert_eq!(timeline(ours.min_recovery_point_timeline), value("Min recovery ending loc's timeline"));
    assert_eq!(ours.backup_start_point, lsn("Backup start location"));
    assert_eq!(ours.backup_end_point, lsn("Backup end location"));
    let required = if ours.backup_end_required { "yes" } else { "no" };
    assert_eq!(required, value("End-of-backup record required"));
    let settings = &ours.settings;
    assert_eq!(format!("{:?}", settings.wal_level).to_lowercase(), value("wal_level setting"));
    assert_eq!(on(settings.wal_log_hints), value("wal_log_hints setting"));
    assert_eq!(settings.max_connections.to_string(), value("max_connections setting"));
    assert_eq!(settings.max_worker_processes.to_string(), value("max_worker_processes setting"));
    assert_eq!(settings.max_wal_senders.to_string(), value("max_wal_senders setting"));
    assert_eq!(settings.max_prepared_transactions.to_string(), value("max_prepared_xacts setting"));
    assert_eq!(settings.max_locks_per_transaction.to_string(), value("max_locks_per_xact setting"));
    assert_eq!(on(settings.track_commit_timestamp), value("track_commit_timestamp setting"));
    assert_eq!(ours.block_size.to_string(), value("Database block size"));
    assert_eq!(ours.relation_segment_blocks.to_string(), value("Blocks per segment of large relation"));
    assert_eq!(ours.wal_block_size.to_string(), value("WAL block size"));
    assert_eq!(ours.wal_segment_size.bytes().to_string(), value("Bytes per WAL segment"));
    assert_eq!(ours.data_checksum_version.to_string(), value("Data page checksum version"));
}

#[test]
fn pg_control_says_what_pg_controldata_says() {
    for major in 14..=19 {
        let mut cluster = Cluster::builder()
            .major(major)
            .segment_size_mb(4)
            .checksums(major % 2 == 0)
            .conf("wal_level", if major == 16 { "logical" } else { "replica" })
            .conf("wal_log_hints", "on")
            .conf("max_locks_per_transaction", 77)
            .conf("track_commit_timestamp", "on")
            .start();
        cluster.psql("create table t as select generate_series(1, 10) as n; checkpoint");
        assert_same(&control(cluster.pgdata()), &controldata(major, cluster.pgdata()));
        let mut standby = cluster.streaming_standby();
        standby.wait_replayed(&cluster);
        standby.stop(Shutdown::Fast);
        let ours = control(standby.pgdata());
        assert_eq!(ours.state, ClusterState::ShutDownInRecovery);
        assert!(ours.min_recovery_point.is_valid());
        assert_same(&ours, &controldata(major, standby.pgdata()));
        let copy = cluster.base_backup(&["-X", "none"]);
        assert_same(&control(&copy), &controldata(major, &copy));
        cluster.stop(Shutdown::Fast);
        let ours = control(cluster.pgdata());
        assert_eq!((u32::from(ours.major.get()), ours.state), (major, ClusterState::ShutDown));
        assert_same(&ours, &controldata(major, cluster.pgdata()));
    }
}

#[test]
fn pg_control_of_13_says_what_its_server_says() {
    let cluster = Cluster::builder().major(13).segment_size_mb(2).conf("max_connections", 33).start();
    cluster.psql("checkpoint");
    let ours = control(cluster.pgdata());
    let row = |sql: &str| cluster.psql(sql);
    assert_eq!(ours.major.get(), 13);
    assert_eq!(
        format!("{}|{}|{}", ours.system_id, ours.control_version, ours.catalog_version),
        row("select system_identifier, pg_control_version, catalog_version_no from pg_control_system()")
    );
    assert_eq!(
        format!("{}|{}|{}", ours.checkpoint.lsn, ours.checkpoint.redo, timeline(ours.checkpoint.timeline)),
        row("select checkpoint_lsn, redo_lsn, timeline_id from pg_control_checkpoint()")
    );
    assert_eq!(
        format!("{}|{}", ours.checkpoint.time, ours.checkpoint.oldest_xid),
        row("select extract(epoch from checkpoint_time)::bigint, oldest_xid from pg_control_checkpoint()")
    );
    assert_eq!(
        format!(
            "{}|{}|{}|{}",
            ours.block_size,
            ours.relation_segment_blocks,
            ours.wal_block_size,
            ours.wal_segment_size.bytes()
        ),
        row(
            "select database_block_size, blocks_per_segment, wal_block_size, bytes_per_wal_segment from pg_control_init()"
        )
    );
    assert_eq!((ours.settings.max_connections, ours.settings.wal_level), (33, WalLevel::Replica));
    assert_eq!(
        ours.data_checksum_version.to_string(),
        row("select data_page_checksum_version from pg_control_init()")
    );
}

/// Bad blocks by our own count: file, block, computed, stored.
type Bad = BTreeSet<(String, u32, u16, u16)>;

fn verify(pgdata: &Path) -> (usize, Bad) {
    let (mut pages, mut bad) = (0, Bad::new());
    for path in tree(pgdata, pgdata) {
        let Some(relation) = files::relation(&path) else { continue };
        let content = fs::read(pgdata.join(&path)).unwrap();
        for (number, page) in (0u32..).zip(content.chunks(8192)) {
            pages += 1;
            let block = relation.block_in_relation(number, DEFAULT_RELATION_SEGMENT_BLOCKS).unwrap();
            if let PageState::Bad { stored, computed } = verify_page(page, block, None) {
                bad.insert((path.to_str().unwrap().to_owned(), number, computed, stored));
            }
        }
    }
    (pages, bad)
}

/// All regular files, relative to the data directory; links in pg_tblspc are followed.
fn tree(pgdata: &Path, dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(tree(pgdata, &path));
        } else {
            found.push(path.strip_prefix(pgdata).unwrap().to_owned());
        }
    }
    found
}

fn pg_checksums(major: u32, pgdata: &Path) -> Bad {
    let mut command = Command::new(testbed::pg_program(major, "pg_checksums"));
    command.args(["--check", "-D"]).arg(pgdata).env("LC_ALL", "C");
    let output = process::run(user::become_user(&mut command), Duration::from_secs(120));
    let parse = |line: &str| {
        let (_, rest) = line.split_once("checksum verification failed in file \"")?;
        let (file, rest) = rest.split_once("\", block ")?;
        let (block, rest) = rest.split_once(": calculated checksum ")?;
        let (computed, stored) = rest.split_once(" but block contains ")?;
        let path = Path::new(file).strip_prefix(pgdata).ok()?.to_str()?.to_owned();
        let hex = |text: &str| u16::from_str_radix(text.trim(), 16).ok();
        Some((path, block.parse().ok()?, hex(computed)?, hex(stored)?))
    };
    let failed = output.stderr.lines().filter(|line| line.contains("checksum verification failed in"));
    failed.map(|line| parse(line).unwrap_or_else(|| panic!("a line of pg_checksums: {line}"))).collect()
}

#[test]
fn damaged_pages_are_those_that_pg_checksums_finds() {
    for major in MAJORS {
        let mut cluster = Cluster::builder().major(major).start();
        cluster.create_tablespace("elsewhere");
        cluster.psql(
            "create table t (n int primary key, filler text); create table u (n int) tablespace elsewhere;
             insert into t select n, repeat('x', 300) from generate_series(1, 5000) n;
             insert into u select generate_series(1, 5000); delete from t where n % 3 = 0; vacuum t, u;",
        );
        let paths = cluster.psql(
            "select pg_relation_filepath('t'); select pg_relation_filepath('t_pkey');
             select pg_relation_filepath('u')",
        );
        let mut targets: Vec<String> = paths.lines().map(str::to_owned).collect();
        cluster.stop(Shutdown::Fast);
        targets.extend([format!("{}_fsm", targets[0]), format!("{}_vm", targets[0])]);

        let (pages, bad) = verify(cluster.pgdata());
        assert!(pages > 2000 && bad.is_empty(), "{major}: {bad:?}");
        for (index, path) in targets.iter().enumerate() {
            let file =
                fs::OpenOptions::new().read(true).write(true).open(cluster.pgdata().join(path)).unwrap();
            let blocks = file.metadata().unwrap().len() / 8192;
            // A header, a checksum, data, and the last byte, each in the last blocks of another relation.
            for (step, offset) in
                [0u64, 8, 100, 4096, 8191].into_iter().enumerate().take(blocks.min(5) as usize)
            {
                let at = (blocks - 1 - step as u64) * 8192 + offset;
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                byte[0] ^= 1 << (index % 8);
                file.write_all_at(&byte, at).unwrap();
            }
        }
        let (_, bad) = verify(cluster.pgdata());
        assert!(bad.len() >= 10, "{major}: {bad:?}");
        if major > 13 {
            assert_eq!(bad, pg_checksums(major, cluster.pgdata()), "{major}");
            continue;
        }
        // The server finds the first bad page of a relation when it reads it, and says both checksums.
        cluster.start();
        assert!(bad.iter().filter(|(path, ..)| *path == targets[0]).count() >= 4);
        for (path, block, computed, stored) in bad.iter().filter(|(path, ..)| *path == targets[0]) {
            assert!(cluster.try_psql(&format!("select * from t where ctid = '({block},1)'")).is_err());
            let line =
                format!("page verification failed, calculated checksum {computed} but expected {stored}");
            assert!(cluster.log().contains(&line), "{path} {block}: {line}\n{}", cluster.log());
        }
    }
}

/// What our rules take of a data directory: files and directories.
fn taken(pgdata: &Path, dir: &Path, found: &mut BTreeSet<PathBuf>) {
    let entries: Vec<_> = fs::read_dir(pgdata.join(dir)).unwrap().flatten().collect();
    let unlogged = Unlogged::among(entries.iter().map(|entry| entry.file_name()));
    for entry in entries {
        let path = dir.join(entry.file_name());
        if pgdata.join(&path).is_dir() {
            match files::directory(&path) {
                Action::LeaveOut => continue,
                Action::KeepEmpty => {}
                Action::Keep => taken(pgdata, &path, found),
            }
            found.insert(path);
        } else if files::file(&path, &unlogged) == Action::Keep {
            found.insert(path);
        }
    }
}

#[test]
fn a_base_backup_takes_what_pg_basebackup_takes() {
    for major in MAJORS {
        let cluster = Cluster::builder().major(major).start();
        cluster.create_tablespace("elsewhere");
        cluster.psql(
            "create table t (n int primary key); create unlogged table u (n int primary key, t text);
             create unlogged table v (n int) tablespace elsewhere; insert into v values (1);
             insert into t select generate_series(1, 1000); insert into u select n, 'x' from generate_series(1, 1000) n;
             create table w (n int) tablespace elsewhere; vacuum t, u; checkpoint;",
        );
        let mut session = cluster.session();
        session.run("create temp table tmp as select generate_series(1, 1000) as n");
        for (path, content) in [
            ("base/pgsql_tmp/pgsql_tmp1.0", "x"),
            ("pgsql_tmp_of_an_extension", "x"),
            ("postgresql.auto.conf.tmp", "x"),
            ("current_logfiles.tmp", "x"),
            ("backup_manifest", "x"),
            ("tablespace_map.old", "x"),
            ("pg_replslot/x", "x"),
            ("pg_stat_tmp/x", "x"),
            ("pg_subtrans/x", "x"),
            ("base/1/somebody_s_file", "x"),
            ("log/postgresql.log", "x"),
        ] {
            let path = cluster.pgdata().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
        }
        user::give_tree(cluster.pgdata());
        let copy = cluster.base_backup(&["-X", "none"]);
        let (mut ours, mut theirs) = (BTreeSet::new(), BTreeSet::new());
        taken(cluster.pgdata(), Path::new(""), &mut ours);
        taken_all(&copy, Path::new(""), &mut theirs);
        // Written by the backup itself.
        theirs.retain(|path| {
            !matches!(path.to_str().unwrap(), "backup_label" | "backup_manifest" | "tablespace_map")
        });
        theirs.retain(|path| path.parent() != Some(Path::new("pg_wal")));
        let (missing, extra): (Vec<_>, Vec<_>) =
            (theirs.difference(&ours).collect(), ours.difference(&theirs).collect());
        assert!(missing.is_empty() && extra.is_empty(), "{major}: missing {missing:?}, extra {extra:?}");
        assert!(ours.len() > 900);
        session.run("select 1");
    }
}

fn taken_all(root: &Path, dir: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(root.join(dir)).unwrap().flatten() {
        let path = dir.join(entry.file_name());
        if root.join(&path).is_dir() {
            taken_all(root, &path, found);
        }
        found.insert(path);
    }
}

#[test]
fn labels_maps_and_history_files_of_every_version_are_read() {
    for major in MAJORS {
        let dir = std::sync::Arc::new(walpoint_tests::dir::TestDir::new());
        let archive = dir.mkdir("archive");
        let command = format!("cp %p {}/%f", archive.display());
        let cluster = Cluster::builder().major(major).in_dir(&dir).archive_command(&command).start();
        let space = cluster.create_tablespace("a");
        let copy = cluster.base_backup(&["-X", "none", "-l", "label: with a colon"]);
        let label = BackupLabel::parse(&fs::read(copy.join("backup_label")).unwrap()).unwrap();
        assert_eq!((label.label.as_str(), label.timeline.get()), ("label: with a colon", 1));
        assert!(!label.from_standby && label.start.is_valid() && label.checkpoint > label.start);
        // The plain format keeps no map; by the SQL functions it is returned.
        let (start, stop) = match major {
            13 | 14 => ("pg_start_backup('b', true, false)", "pg_stop_backup(false)"),
            _ => ("pg_backup_start('b', true)", "pg_backup_stop()"),
        };
        let mut session = cluster.session();
        let begun: Lsn = session.run(&format!("select {start}")).parse().unwrap();
        let column = |column: &str| format!("convert_from(convert_to({column}, 'UTF8'), 'UTF8')");
        let answer = session.run(&format!(
            "select lsn, {}, {} from (select * from {stop}) as s (lsn, label, map)",
            column("replace(label, chr(10), '~')"),
            column("replace(map, chr(10), '~')")
        ));
        let parts: Vec<&str> = answer.split('|').collect();
        let stopped: Lsn = parts[0].parse().unwrap();
        let label = BackupLabel::parse(parts[1].replace('~', "\n").as_bytes()).unwrap();
        let own = control(cluster.pgdata()).major;
        let map = TablespaceMap::parse(parts[2].replace('~', "\n").as_bytes(), own).unwrap();
        assert_eq!((label.start, map.tablespaces.len()), (begun, 1));
        assert_eq!(map.tablespaces[0].path, space.to_str().unwrap().as_bytes());
        assert_eq!(map.to_bytes(own), parts[2].replace('~', "\n").into_bytes());

        let backup_files = fs::read_dir(&archive).unwrap().flatten().map(|entry| entry.path());
        let histories = backup_files.filter(|path| path.extension().is_some_and(|e| e == "backup"));
        let histories: Vec<BackupHistory> =
            histories.map(|path| BackupHistory::parse(&fs::read(path).unwrap()).unwrap()).collect();
        let ours = histories.iter().find(|history| history.label.label == "b").unwrap();
        assert_eq!((ours.label.start, ours.stop, ours.stop_timeline.get()), (begun, stopped, 1));
        let expected: SegmentName = ours.label.start_segment;
        assert_eq!(expected, label.start_segment);
    }
}
