//! What a server says about itself, and the low-level backup, on every version.

use std::path::Path;
use std::time::Duration;

use walpoint_base::Lsn;
use walpoint_pg::checksum::Checksums;
use walpoint_pg::connect::Error;
use walpoint_pg::server::{BackupSession, Server, ServerError};
use walpoint_tests::cluster::Cluster;
use walpoint_tests::testbed::MAJORS;

use crate::server;

#[tokio::test]
async fn every_version_tells_who_it_is() {
    for major in MAJORS {
        let checksums = major % 2 == 0;
        let cluster = Cluster::builder().major(major).segment_size_mb(4).checksums(checksums).start();
        let mut server = server(&cluster).await;
        let identity = server.identity().await.unwrap();
        assert_eq!(identity.system_id.0, cluster.system_id());
        assert_eq!((u32::from(identity.major.get()), identity.segment_size.bytes()), (major, 4 << 20));
        assert_eq!(
            (identity.block_size, identity.wal_block_size, identity.relation_segment_blocks),
            (8192, 8192, 131_072)
        );
        assert_eq!((identity.in_recovery, identity.timeline.get()), (false, 1));
        assert_eq!(
            (identity.checksums == Checksums::On, identity.data_directory.as_path()),
            (checksums, cluster.pgdata())
        );
        // "18.6", and of a release candidate "19rc1".
        let version = identity.version.strip_prefix(&major.to_string());
        assert!(
            version.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit())),
            "{}",
            identity.version
        );
        let files = server.config_files().await.unwrap();
        let conf = cluster.pgdata().join("postgresql.conf");
        assert_eq!((files.config_file.as_ref(), files.sources.contains(&conf)), (Some(&conf), true));
        assert_eq!(server.setting("no_such.setting").await.unwrap(), None);
        assert_eq!(server.setting("wal_level").await.unwrap().as_deref(), Some("replica"));
        let settings = server.archive_settings().await.unwrap();
        assert_eq!((settings.archive_mode.as_str(), settings.archive_command.as_str()), ("off", ""));
    }
}

/// B3 (tablespaces): label and map are those that PostgreSQL wants back, byte by byte.
#[tokio::test]
async fn a_backup_session_on_every_version() {
    for major in MAJORS {
        let cluster = Cluster::builder().major(major).segment_size_mb(1).start();
        let place = cluster.dir().mkdir("söme where");
        cluster.psql(&format!("create tablespace \"söme where\" location '{}'", place.display()));
        let backup = BackupSession::start(server(&cluster).await, "it's a \\label", true).await.unwrap();
        let started = backup.started().clone();
        assert_eq!((started.timeline.get(), started.in_recovery), (1, false));
        let tablespaces = server(&cluster).await.tablespaces().await.unwrap();
        let [space] = tablespaces.as_slice() else { panic!("{tablespaces:?}") };
        assert_eq!((space.name.as_str(), space.location.as_path()), ("söme where", place.as_path()));
        cluster.fill_wal_mb(2);
        let stop = backup.stop().await.unwrap().0;
        assert!(stop.lsn > started.lsn + (1 << 20), "{} {}", stop.lsn, started.lsn);
        let label = String::from_utf8(stop.label).unwrap();
        // From version 19 on its lower half has leading zeros.
        let begins = label.strip_prefix("START WAL LOCATION: ").and_then(|rest| rest.split(' ').next());
        assert_eq!(begins.unwrap_or_default().parse().ok(), Some(started.lsn), "{label}");
        assert!(
            label.contains("\nLABEL: it's a \\label\n") && label.contains("\nSTART TIMELINE: 1\n"),
            "{label}"
        );
        let map = String::from_utf8(stop.tablespace_map.unwrap()).unwrap();
        assert_eq!(map.trim_end(), format!("{} {}", space.oid, place.display()));
        // The segment with the backup's end was switched.
        let position: Lsn = cluster.lsn().parse().unwrap();
        assert!(position > stop.lsn && position.0 >> 20 > (stop.lsn.0 - 1) >> 20);
        // Without tablespaces there is no map, and what is no label is refused.
        cluster.psql("drop tablespace \"söme where\"");
        let stop =
            BackupSession::start(server(&cluster).await, "", true).await.unwrap().stop().await.unwrap().0;
        assert_eq!(stop.tablespace_map, None);
        let error = BackupSession::start(server(&cluster).await, "two\nlines", true).await.unwrap_err();
        assert!(matches!(error, ServerError::State { .. }), "{error}");
    }
}

/// B6: the session does not wait for the archive; whoever stores the backup does.
#[tokio::test]
async fn a_stalled_archive_does_not_stop_the_end_of_a_backup() {
    let cluster = Cluster::builder().archive_command("false").start();
    let backup = BackupSession::start(server(&cluster).await, "l", true).await.unwrap();
    let stop =
        tokio::time::timeout(Duration::from_secs(20), backup.stop()).await.expect("no waiting").unwrap().0;
    assert!(stop.lsn.is_valid());
}

/// B4: a backup whose session is gone is gone, and is noticed by whoever still copies.
#[tokio::test]
async fn a_lost_session_is_no_backup() {
    let cluster = Cluster::builder().start();
    let mut backup = BackupSession::start(server(&cluster).await, "l", true).await.unwrap();
    backup.check().await.unwrap();
    cluster.psql(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'walpoint'",
    );
    let error = backup.check().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let error = backup.stop().await.unwrap_err();
    assert!(matches!(error, ServerError::Connection { source: Error::Lost { .. }, .. }), "{error}");
}

/// B2 (from a standby).
#[tokio::test]
async fn a_backup_session_on_a_standby_and_positions() {
    for major in [13, 14, 17] {
        let primary = Cluster::builder().major(major).start();
        let standby = primary.streaming_standby();
        primary.psql("create table t as select 1");
        standby.wait_replayed(&primary);
        let mut server = server(&standby).await;
        let identity = server.identity().await.unwrap();
        assert!(identity.in_recovery && identity.timeline.get() == 1);
        let replay = server.replay_state().await.unwrap();
        assert!(replay.in_recovery && !replay.paused && replay.last_commit.is_some());
        assert_eq!(server.position().await.unwrap(), replay.replayed);
        assert!(replay.received >= replay.replayed);
        assert!(matches!(server.switch_wal().await, Err(ServerError::Connection { .. })));
        primary.psql("checkpoint");
        standby.wait_replayed(&primary);
        let backup = BackupSession::start(server, "from the standby", true).await.unwrap();
        let started = backup.started().clone();
        assert!(started.in_recovery);
        let stop = backup.stop().await.unwrap().0;
        assert!(
            stop.lsn >= started.lsn && String::from_utf8_lossy(&stop.label).contains("BACKUP FROM: standby")
        );
        standby.promote();
        let mut server = crate::server(&standby).await;
        assert_eq!(server.identity().await.unwrap().timeline.get(), 2, "at once, before the next checkpoint");
        assert!(!server.replay_state().await.unwrap().in_recovery);
    }
}

/// K5: what `check` and `status` ask about archiving.
#[tokio::test]
async fn archiving_is_seen_to_work_and_to_fail() {
    for major in MAJORS {
        let mut cluster = Cluster::builder()
            .major(major)
            .archive_command("test -e ok")
            .conf("archive_timeout", "90s")
            .init();
        let ok = cluster.pgdata().join("ok");
        std::fs::write(&ok, "").unwrap();
        cluster.start();
        let mut server = server(&cluster).await;
        let settings = server.archive_settings().await.unwrap();
        assert_eq!(
            (settings.archive_mode.as_str(), settings.archive_command.as_str(), settings.archive_timeout),
            ("on", "test -e ok", 90)
        );
        assert_eq!((settings.wal_level.as_str(), settings.archive_library.as_str()), ("replica", ""));
        let point = server.create_restore_point("it's here").await.unwrap();
        let name = cluster.current_segment();
        let end = server.switch_wal().await.unwrap();
        assert!(end >= point, "{end} {point}");
        cluster.wait_archived(&name);
        let stats = server.archiver_stats().await.unwrap();
        assert_eq!((stats.last_archived_wal.as_deref(), stats.is_failing()), (Some(name.as_str()), false));
        let age = now_micros() - stats.last_archived_time.unwrap().unix_micros();
        assert!((0..60_000_000).contains(&age), "{age} µs");
        std::fs::remove_file(&ok).unwrap();
        let name = cluster.switch_wal();
        let stats = wait_failing(&mut server).await;
        assert_eq!(stats.last_failed_wal.as_deref(), Some(name.as_str()));
        let error = server.create_restore_point(&"x".repeat(64)).await.unwrap_err().to_string();
        assert!(error.contains("63"), "{error}");
        assert!(!Path::new(&name).is_absolute());
    }
}

fn now_micros() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

async fn wait_failing(server: &mut Server) -> walpoint_pg::server::ArchiverStats {
    for _ in 0..600 {
        let stats = server.archiver_stats().await.unwrap();
        if stats.is_failing() {
            return stats;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("archiving does not fail");
}
