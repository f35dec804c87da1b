//! Archiving must keep up with the server.

use std::fs;
use std::time::{Duration, Instant};

use walpoint_base::SegmentName;
use walpoint_pg::wal::inspect;
use walpoint_tests::cluster::Cluster;

/// Full-page images and many small records: the two extremes. The limit is generous: this runs beside other tests.
#[test]
fn a_segment_of_16_mib_is_inspected_in_milliseconds() {
    let cluster =
        Cluster::builder().major(17).conf("wal_keep_size", "1GB").conf("full_page_writes", "off").start();
    cluster.switch_wal();
    let small = cluster.current_segment();
    cluster.psql("create table t (n int); insert into t select generate_series(1, 300000)");
    cluster.switch_wal();
    let large = cluster.current_segment();
    cluster.fill_wal_mb(20);
    for name in [small, large] {
        let content = fs::read(cluster.wal_dir().join(&name)).unwrap();
        let name: SegmentName = name.parse().unwrap();
        let facts = inspect(name, &content).unwrap();
        let took = (0..7).map(|_| {
            let start = Instant::now();
            assert!(inspect(name, &content).is_ok());
            start.elapsed()
        });
        let best = took.min().unwrap();
        eprintln!("{} records in {best:?}", facts.records);
        assert!(facts.whole && best < Duration::from_millis(50), "{} records: {best:?}", facts.records);
    }
}
