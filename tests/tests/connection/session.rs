//! Statements: rows, errors, notices, limits, and what is left when nobody waits for an answer any more.

use std::time::{Duration, Instant};

use walpoint_base::{Lsn, TimelineId};
use walpoint_pg::connect::{Error, Replication};
use walpoint_pg::server::Walsender;
use walpoint_tests::cluster::{Cluster, Shutdown};

use crate::{connect, settings};

#[tokio::test]
async fn rows_errors_and_notices() {
    let cluster = Cluster::builder().start();
    let mut connection = connect(&cluster.conninfo()).await.unwrap();
    let rows = connection.query("select n, null as nothing from generate_series(1, 3) n").await.unwrap();
    let numbers: Vec<i32> = rows.iter().map(|row| row.get("n").unwrap()).collect();
    assert_eq!((numbers.as_slice(), rows.tag()), (&[1, 2, 3][..], "SELECT 3"));
    assert_eq!(rows.iter().next().unwrap().nullable::<String>("nothing"), Ok(None));
    assert_eq!(connection.batch("select 1 as a; select 2 as b, 3 as c; set x.y = 1").await.unwrap().len(), 2);
    let error = connection.query("select 1; select 2").await.unwrap_err().to_string();
    assert!(error.contains("2 results"), "{error}");
    connection
        .execute("do $$ begin raise notice 'one'; raise warning 'two' using hint = 'three'; end $$")
        .await
        .unwrap();
    let notices = connection.take_notices();
    assert_eq!(notices.iter().map(|n| n.message.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!((notices[1].severity.as_str(), notices[1].hint.as_deref()), ("WARNING", Some("three")));
    let raise = "do $$ begin raise 'no' using errcode = 'WP001', detail = 'because', hint = 'do it'; end $$";
    let error = connection.execute(raise).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("WP001"));
    let (report, text) = (error.report().unwrap(), error.to_string());
    assert_eq!((report.detail.as_deref(), report.hint.as_deref()), (Some("because"), Some("do it")));
    let host = cluster.socket_dir().display().to_string();
    assert!(text.contains(&host) && text.contains("because") && text.contains("do it"), "{text}");
    // COPY in either direction is declined, and the session goes on.
    connection.execute("create table public.t (n int)").await.unwrap();
    assert!(connection.execute("copy public.t to stdout").await.is_err());
    assert!(connection.execute("copy public.t from stdin").await.is_err());
    assert!(
        connection.query("select repeat('x', 20000000) as x").await.is_err(),
        "longer than any message may be"
    );
    assert!(connection.query("select 1").await.is_err(), "the stream is lost after that");
    let mut connection = connect(&cluster.conninfo()).await.unwrap();
    let large = "select repeat('x', 1000000) as x from generate_series(1, 80)";
    assert!(connection.query(large).await.unwrap_err().to_string().contains("bytes"));
    assert_eq!(
        connection
            .query("show search_path")
            .await
            .unwrap()
            .one()
            .unwrap()
            .get::<String>("search_path")
            .unwrap(),
        ""
    );
}

#[tokio::test]
async fn an_abandoned_statement_is_cancelled_and_its_answer_thrown_away() {
    let cluster = Cluster::builder().start();
    let mut connection = connect(&cluster.conninfo()).await.unwrap();
    let start = Instant::now();
    for _ in 0..5 {
        let sql = "select pg_catalog.pg_sleep(60), 'abandoned' as who";
        let abandoned = tokio::time::timeout(Duration::from_millis(50), connection.query(sql)).await;
        assert!(abandoned.is_err());
        let rows = connection.query("select 'next' as who").await.unwrap();
        assert_eq!(rows.one().unwrap().get::<String>("who").unwrap(), "next");
    }
    connection.set_limit(Some(Duration::from_millis(100)));
    let error = connection.query("select pg_catalog.pg_sleep(60)").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }) && error.is_transient(), "{error}");
    connection.set_limit(None);
    // Cut off anywhere while much data is on its way in both directions.
    for micros in (0..4000).step_by(200) {
        let sql =
            format!("select n, repeat('x', 1000) from generate_series(1, 3000) n -- {}", "y".repeat(500_000));
        drop(tokio::time::timeout(Duration::from_micros(micros), connection.query(&sql)).await);
        let row = connection.query(&format!("select {micros} as n")).await.unwrap().one().unwrap();
        assert_eq!(row.get::<u64>("n").unwrap(), micros);
    }
    assert!(start.elapsed() < Duration::from_secs(30));
    let cancel = connection.cancel();
    let (cancelled, sent) = tokio::join!(connection.query("select pg_catalog.pg_sleep(60)"), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.send().await
    });
    sent.unwrap();
    assert_eq!(cancelled.unwrap_err().sqlstate(), Some("57014"));
}

#[tokio::test]
async fn a_session_that_the_server_ends_says_why_and_stays_ended() {
    let mut cluster = Cluster::builder().start();
    let mut connection = connect(&cluster.conninfo()).await.unwrap();
    cluster.psql(&format!("select pg_terminate_backend({}, 5000)", connection.process_id()));
    let error = connection.query("select 1").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(error.sqlstate() == Some("57P01") || matches!(error, Error::Lost { .. }), "{error}");
    assert!(matches!(connection.query("select 1").await, Err(Error::Lost { .. })));
    let mut connection = connect(&cluster.conninfo()).await.unwrap();
    cluster.crash();
    assert!(matches!(connection.query("select 1").await, Err(Error::Lost { .. })));
    connection.close().await;
    cluster.start();
    cluster.stop(Shutdown::Smart);
}

#[tokio::test]
async fn replication_commands_answer_on_every_version() {
    for major in walpoint_tests::testbed::MAJORS {
        let cluster = Cluster::builder().major(major).start();
        let mut walsender = Walsender::connect(&settings(&cluster.conninfo())).await.unwrap();
        let system = walsender.identify_system().await.unwrap();
        assert_eq!((system.system_id.0, system.timeline), (cluster.system_id(), TimelineId::FIRST));
        assert!(system.position > Lsn(0) && system.database.is_none());
        assert_eq!(u32::from(walsender.major().get()), major);
        assert!(walsender.timeline_history(TimelineId::FIRST).await.unwrap().is_none());
        let error = walsender.timeline_history(TimelineId::new(7).unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("TIMELINE_HISTORY"), "{error}");
        // A stream that nobody asked for is declined: the reader steps over CopyBothResponse.
        let start = format!("START_REPLICATION PHYSICAL {}", system.position);
        assert!(walsender.connection().query(&start).await.is_err());
        assert_eq!(walsender.identify_system().await.unwrap().system_id, system.system_id);
        walsender.close().await;
        let info = settings(&cluster.conninfo()).with_replication(Replication::Database);
        let mut walsender = Walsender::connect(&info).await.unwrap();
        assert_eq!(walsender.identify_system().await.unwrap().database.as_deref(), Some("postgres"));
    }
}

#[tokio::test]
async fn the_history_of_a_promoted_standby() {
    let primary = Cluster::builder().major(19).start();
    let standby = primary.streaming_standby();
    standby.promote();
    let mut walsender = Walsender::connect(&settings(&standby.conninfo())).await.unwrap();
    let timeline = walsender.identify_system().await.unwrap().timeline;
    assert_eq!(timeline.get(), 2);
    let (content, history) = walsender.timeline_history(timeline).await.unwrap().unwrap();
    assert_eq!(history.parent().unwrap().parent, TimelineId::FIRST);
    assert_eq!(content, std::fs::read(standby.wal_dir().join("00000002.history")).unwrap());
}
