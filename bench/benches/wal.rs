//! Decoding and checking whole segments of real WAL.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walpoint_base::SegmentName;
use walpoint_pg::wal::inspect;
use walpoint_tests::cluster::Cluster;

fn segments(criterion: &mut Criterion) {
    let cluster =
        Cluster::builder().major(17).conf("wal_keep_size", "1GB").conf("full_page_writes", "off").start();
    cluster.switch_wal();
    let small = cluster.current_segment();
    cluster.psql("create table t (n int); insert into t select generate_series(1, 300000)");
    cluster.switch_wal();
    let large = cluster.current_segment();
    cluster.fill_wal_mb(20);
    let mut group = criterion.benchmark_group("segment of 16 MiB");
    for (kind, segment) in [("small records", small), ("large records", large)] {
        let content = std::fs::read(cluster.wal_dir().join(&segment)).expect("read a segment");
        let name: SegmentName = segment.parse().expect("a segment's name");
        group.throughput(Throughput::Bytes(content.len() as u64));
        group.bench_function(format!("inspect, {kind}"), |bencher| {
            bencher.iter(|| inspect(name, black_box(&content)).expect("sound WAL"));
        });
    }
    group.finish();
}

criterion_group!(benches, segments);
criterion_main!(benches);
