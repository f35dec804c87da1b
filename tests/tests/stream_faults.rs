//! The WAL stream on a bad line to its server: what was acknowledged is stored, whatever the connection goes through.

mod stream_bed;

use std::thread;
use std::time::Duration;

use stream_bed::{STREAM, disaster, major, wait_durable};
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::store::Store;
use walpoint_tests::wait;

/// A cluster that the daemon reaches through a proxy only.
fn behind_a_proxy() -> (Archived, Proxy) {
    let builder = major(17).segment_size_mb(1).tcp().conf("wal_sender_timeout", "1s");
    let (mut cluster, store) = (builder.init(), Store::local());
    let proxy = Proxy::to(cluster.port());
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", proxy.port());
    let mut agent = Agent::at(cluster.dir(), cluster.pgdata(), &conninfo).repository("main", &store);
    agent.tables = format!("{STREAM}flush_interval = \"100ms\"\n");
    agent.archive_from(&cluster);
    agent.init(&[]).expect_success();
    let daemon = agent.daemon();
    cluster.start();
    (Archived::of(daemon, cluster, agent, store), proxy)
}

#[test]
fn a_bad_line_to_the_server_costs_the_stream_nothing_but_time() {
    go_through(&[Fault::ResetAnswerAfter(100_000), Fault::StallAnswerAfter(150_000), Fault::Blackhole]);
}

/// Each failed attempt makes the next one come later.
#[test]
#[ignore = "waits between attempts to connect: make soak"]
fn no_kind_of_bad_line_costs_the_stream_more_than_time() {
    go_through(&[
        Fault::ResetAnswerAfter(0),
        Fault::ResetAnswerAfter(100_000),
        Fault::HalfCloseAfter(60_000),
        Fault::TruncateAnswerAfter(70_000),
        Fault::StallAnswerAfter(150_000),
        Fault::ResetRequestAfter(2_000),
        Fault::Refuse,
        Fault::Blackhole,
    ]);
}

/// Writes under one fault after the other; in the end all is restored.
fn go_through(faults: &[Fault]) {
    let (mut bed, proxy) = behind_a_proxy();
    bed.cluster.psql("create table t (n int, filler text)");
    bed.backup();
    wait_durable(&bed.cluster);
    let mut written = 0;
    let mut write = |bed: &Archived| {
        let rows = format!(
            "select n, repeat(md5(n::text), 20) from generate_series({}, {}) n",
            written + 1,
            written + 300
        );
        bed.cluster.psql(&format!("insert into t {rows}"));
        written += 300;
    };
    for fault in faults {
        write(&bed);
        let connections = proxy.connections();
        proxy.set(*fault);
        write(&bed);
        wait::until_true(Duration::from_secs(60), "the stream connects again", || {
            write(&bed);
            thread::sleep(Duration::from_millis(200));
            proxy.connections() > connections || *fault == Fault::Refuse
        });
        proxy.heal();
        write(&bed);
        wait_durable(&bed.cluster);
    }
    // A slow line is no reason for another connection.
    let connections = proxy.connections();
    proxy.set(Fault::Latency(Duration::from_millis(100)));
    write(&bed);
    wait_durable(&bed.cluster);
    assert_eq!(proxy.connections(), connections);
    let log = bed.daemon().log();
    assert!(!log.contains("split brain") && !log.contains("cannot be continued"), "{log}");
    bed.agent.run(&["verify"]).expect_success();
    disaster(&mut bed);
    let restored = bed.restore_and_start("latest", &["--target-action", "promote"]);
    restored.wait_promoted();
    assert_eq!(restored.psql("select count(*), count(distinct n) from t"), format!("{written}|{written}"));
}
