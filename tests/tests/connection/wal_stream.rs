//! Streaming WAL on every supported version: byte for byte, to the end of a timeline and beyond it, and to a server's last byte.

use std::time::Duration;

use walpoint_base::{Lsn, PgTimestamp, SegmentNo, SegmentSize, SlotName, TimelineId};
use walpoint_pg::server::Walsender;
use walpoint_pg::wal_stream::{NextTimeline, StreamEvent, StreamPlace, StreamStart, WalStream, place};
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::testbed;

use crate::{server, settings};

const SIZE: u64 = 1 << 20;

fn slot() -> SlotName {
    "walpoint".parse().unwrap()
}

async fn walsender(cluster: &Cluster) -> Walsender {
    Walsender::connect(&settings(&cluster.conninfo())).await.expect("a walsender")
}

fn lsn(cluster: &Cluster) -> Lsn {
    cluster.psql("select pg_current_wal_flush_lsn()").trim().parse().unwrap()
}

/// The start of the segment that holds a position.
fn segment_start(position: Lsn) -> Lsn {
    Lsn(position.0 / SIZE * SIZE)
}

async fn start(cluster: &Cluster, slot: Option<&SlotName>, timeline: u32, from: Lsn) -> WalStream {
    let timeline = TimelineId::new(timeline).unwrap();
    match WalStream::start(walsender(cluster).await, slot, timeline, from).await.expect("a stream") {
        StreamStart::Streaming(stream) => *stream,
        StreamStart::TimelineEnd(next) => panic!("{next:?}"),
    }
}

/// What a stream gives up to a position at least, or up to its end.
async fn receive(stream: &mut WalStream, until: Lsn, received: &mut Vec<u8>) -> Option<StreamEvent> {
    while stream.position() < until {
        match stream.next().await.expect("an event") {
            StreamEvent::Wal(wal) => received.extend_from_slice(&wal.bytes),
            StreamEvent::Keepalive(_) => {}
            end => return Some(end),
        }
    }
    None
}

/// What the files in `pg_wal` hold of a timeline, of a whole number of segments and the beginning of one more.
fn in_files(cluster: &Cluster, timeline: u32, from: Lsn, length: usize) -> Vec<u8> {
    let (size, timeline) = (SegmentSize::new(SIZE).unwrap(), TimelineId::new(timeline).unwrap());
    let (mut content, first) = (Vec::new(), SegmentNo::of(from, size));
    for number in (first.0..).take(length.div_ceil(SIZE as usize)) {
        let name = SegmentNo(number).name(timeline, size).to_string();
        content.extend(std::fs::read(cluster.wal_dir().join(name)).expect("a segment"));
    }
    content.truncate(length);
    content
}

#[tokio::test]
async fn wal_is_streamed_byte_for_byte_and_kept_until_it_is_reported() {
    for major in testbed::MAJORS {
        let builder = Cluster::builder().major(major).segment_size_mb(1);
        let mut cluster = builder.conf("wal_keep_size", "64MB").start();
        let name = slot();
        let mut sender = walsender(&cluster).await;
        assert!(sender.create_slot(&name).await.unwrap());
        assert!(!sender.create_slot(&name).await.unwrap(), "it is there");
        let known = sender.slot_position(&name).await.unwrap();
        assert_eq!(known.is_some(), major >= 15, "{major}");
        sender.close().await;
        let state = server(&cluster).await.slot(&name).await.unwrap().expect("a slot");
        assert!(state.physical && state.active_pid.is_none() && !state.is_lost(), "{state:?}");
        assert!(known.is_none_or(|known| Some(known.restart) == state.restart), "{known:?} {state:?}");

        let from = segment_start(state.restart.expect("reserved"));
        let (mut stream, mut received) = (start(&cluster, Some(&name), 1, from).await, Vec::new());
        cluster.fill_wal_mb(5);
        let end = lsn(&cluster);
        assert!(receive(&mut stream, end, &mut received).await.is_none());
        assert_eq!(received, in_files(&cluster, 1, from, received.len()), "{major}");
        stream.report(end, PgTimestamp(0), false).await.unwrap();
        let kept = format!("select restart_lsn = '{end}' and active from pg_replication_slots");
        cluster.wait_for(&kept, "t");
        let flushed = format!("select flush_lsn = '{end}' and replay_lsn is null from pg_stat_replication");
        cluster.wait_for(&flushed, "t");

        // A server that is shut down waits for what it has sent to be reported, and then says so.
        let stopping = std::thread::spawn(move || {
            cluster.stop(Shutdown::Fast);
            cluster
        });
        let last = loop {
            match stream.next().await.expect("an event") {
                StreamEvent::Wal(wal) => received.extend_from_slice(&wal.bytes),
                StreamEvent::Keepalive(alive) if alive.wants_reply => {
                    stream.report(stream.position(), PgTimestamp(0), false).await.unwrap();
                }
                StreamEvent::Keepalive(_) => {}
                end => break end,
            }
        };
        assert_eq!(last, StreamEvent::ServerShutdown, "{major}");
        let cluster = stopping.join().unwrap();
        assert_eq!(received, in_files(&cluster, 1, from, received.len()), "{major}: the last byte included");
    }
}

#[tokio::test]
async fn the_end_of_a_timeline_names_the_next_one() {
    for major in testbed::MAJORS {
        let primary = Cluster::builder().major(major).segment_size_mb(1).start();
        let standby = primary.streaming_standby();
        let from = segment_start(lsn(&primary));
        let (mut stream, mut received) = (start(&standby, None, 1, from).await, Vec::new());
        primary.psql("create table t as select generate_series(1, 5000)");
        standby.wait_replayed(&primary);
        standby.promote();
        let end = receive(&mut stream, Lsn(u64::MAX), &mut received).await.expect("the end");
        let StreamEvent::TimelineEnd(NextTimeline { timeline, switch }) = end else { panic!("{end:?}") };
        assert_eq!((timeline.get(), stream.position()), (2, switch), "{major}");
        let (content, history) =
            walsender(&standby).await.timeline_history(timeline).await.unwrap().expect("a history");
        assert_eq!(history.end_of(TimelineId::FIRST), Some(switch));
        assert_eq!(content, std::fs::read(standby.wal_dir().join("00000002.history")).unwrap());

        // The next one begins in the middle of a segment, and is streamed from that one's start.
        standby.psql("create table u as select generate_series(1, 50000)");
        let (from, until) = (segment_start(switch), lsn(&standby));
        let (mut stream, mut received) = (start(&standby, None, 2, from).await, Vec::new());
        assert!(receive(&mut stream, until, &mut received).await.is_none());
        assert_eq!(received, in_files(&standby, 2, from, received.len()), "{major}");
        stream.stop().await.unwrap();

        // From the very end of the first one there is nothing to stream.
        let sender = walsender(&standby).await;
        match WalStream::start(sender, None, TimelineId::FIRST, switch).await.unwrap() {
            StreamStart::TimelineEnd(next) => assert_eq!(next, NextTimeline { timeline, switch }),
            StreamStart::Streaming(_) => panic!("{major}: a stream of nothing"),
        }
        let identity = walsender(&standby).await.identify_system().await.unwrap();
        let place = |timeline: u32, position| {
            place(&identity, &history, TimelineId::new(timeline).unwrap(), position)
        };
        assert_eq!(place(1, switch + 1), StreamPlace::OnBranch { switch }, "the primary has more of it");
        assert_eq!(place(1, switch), StreamPlace::Behind);
        assert!(matches!(place(2, Lsn(u64::MAX)), StreamPlace::Ahead { .. }));
        let server = &standby;
        let refused = |timeline, position| async move {
            let timeline = TimelineId::new(timeline).unwrap();
            match WalStream::start(walsender(server).await, None, timeline, position).await {
                // That it has no such WAL yet, a server says once the stream has begun.
                Ok(StreamStart::Streaming(mut stream)) => stream.next().await.is_err(),
                Ok(StreamStart::TimelineEnd(_)) => false,
                Err(_) => true,
            }
        };
        for (timeline, position) in [(1, switch + 1), (2, Lsn(1 << 40)), (3, switch)] {
            assert!(refused(timeline, position).await, "{major}: {timeline} {position}");
        }
    }
}

#[tokio::test]
async fn a_stream_whose_server_dies_or_falls_silent_ends_with_an_error() {
    let mut cluster = Cluster::builder().segment_size_mb(1).start();
    let mut stream = start(&cluster, None, 1, segment_start(lsn(&cluster))).await;
    assert!(receive(&mut stream, lsn(&cluster), &mut Vec::new()).await.is_none());
    stream.set_silence_limit(Duration::from_millis(100));
    let silent = loop {
        match stream.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(silent.is_transient() && silent.to_string().contains("streaming WAL"), "{silent}");
    let mut stream = start(&cluster, None, 1, segment_start(lsn(&cluster))).await;
    cluster.crash();
    let died = loop {
        match stream.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(died.is_transient(), "{died}");
}
