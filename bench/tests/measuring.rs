//! The pieces of the comparison work together: one segment is archived by our own daemon into a server that keeps
//! nothing, under a driver, as `tools.toml` says.

use std::path::Path;

use walpoint_bench::bed::{Bed, Surroundings, Task};
use walpoint_bench::drive::{self, WorkKind as Load};
use walpoint_bench::place::{StoreKind, Stores};
use walpoint_bench::tools;
use walpoint_bench::work::WorkDirectory;
use walpoint_tests::cluster::{Cluster, Shutdown};

#[test]
fn a_segment_is_archived_to_the_sink_and_everything_is_counted() {
    let mut cluster = Cluster::builder().major(17).segment_size_mb(1).conf("wal_keep_size", "64MB").start();
    let segment = cluster.switch_wal();
    cluster.stop(Shutdown::Fast);
    drive::clear_archive_status(cluster.pgdata());

    let program = Path::new(env!("CARGO_BIN_EXE_walpoint-bench"));
    let work = WorkDirectory::at(cluster.dir().join("bench"), program).unwrap();
    let mut stores = Stores::new(&work);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools.toml");
    let all = tools::read(&file).unwrap();
    let ours = all.iter().find(|c| c.is_ours()).unwrap();
    let mut around = Surroundings { work: &work, stores: &mut stores, cluster: None };
    let bed = Bed::make(ours, StoreKind::Sink, cluster.pgdata(), &mut around).unwrap();
    let task = Task {
        load: Load::Archive { segments: vec![segment.clone()] },
        command: ours.archive.as_deref().unwrap(),
        daemon: true,
        at: cluster.pgdata(),
        look_ms: 1,
    };
    let seen = bed.measure(task, &mut around, || Ok(())).unwrap();

    let report = seen.report;
    assert_eq!(report.commands_ms.len(), 1);
    assert!(report.seconds > 0.0 && report.seconds < 60.0, "{report:?}");
    assert!(report.memory.contains_key("archive-agent"), "{:?}", report.memory);
    let (before, after) = report.idle.unwrap();
    assert!(before > 1 << 20 && after > 1 << 20, "{before} {after}");
    assert!(seen.requests["PUT"] >= 1, "{:?}", seen.requests);
    assert!(bed.place().stored(&mut stores) > 1000);
    let status = cluster.wal_dir().join("archive_status");
    assert!(
        status.join(format!("{segment}.done")).exists() && !status.join(format!("{segment}.ready")).exists()
    );
    bed.remove(&mut stores);
}
