//! Looking up the index, and planning, over 100,000 segments in a directory.

use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use walpoint_base::{
    BackupId, ClusterName, Lsn, PgMajor, PgTimestamp, SegmentNo, SegmentSize, SystemId, TimelineId,
};
use walpoint_bench::long_archive::{SEGMENTS, header};
use walpoint_plan::restore::{
    RemovalSearch, RequiredSearch, RestoreRequest, SegmentDecoder, StopRule, StopSearch, TablespaceSearch,
};
use walpoint_repo::index::{FANOUT, SegmentEntry, TimelineIndex, fixtures};
use walpoint_repo::planning;
use walpoint_repo::repository::NewLineage;
use walpoint_repo::wal::WalArchive;
use walpoint_repo::{Repository, backup};
use walpoint_storage::store::StoreSettings;
use walpoint_tests::dir::TestDir;

const SIZE: SegmentSize = SegmentSize::DEFAULT;
const FIRST: TimelineId = TimelineId::FIRST;

/// For the latest moment nothing has to be decoded.
struct NoDecoder;

impl SegmentDecoder for NoDecoder {
    fn search(&self, _: &StopRule, _: Lsn, _: Lsn) -> Box<dyn StopSearch> {
        unreachable!("the latest moment needs no decoding")
    }

    fn tablespaces(&self) -> Box<dyn TablespaceSearch> {
        unreachable!("no segment is marked")
    }

    fn required(&self) -> Box<dyn RequiredSearch> {
        unreachable!("a plan does not ask")
    }

    fn removals(&self, _: Lsn) -> Option<Box<dyn RemovalSearch>> {
        None
    }
}

fn commit(number: u64) -> PgTimestamp {
    PgTimestamp(number.cast_signed() * 1_000_000)
}

async fn archive(dir: &TestDir) -> WalArchive {
    let settings = StoreSettings::at(dir.path().display().to_string());
    let repository = Repository::init("main", &settings, None).await.expect("init").repository;
    let new = NewLineage {
        system_id: SystemId(7_400_000_000_000_000_001),
        major: PgMajor::new(17).expect("a version"),
        segment_size: SIZE,
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![],
    };
    let cluster: ClusterName = "main".parse().expect("a name");
    let lineage = repository.create_lineage(&cluster, new).await.expect("a lineage");
    let archive = repository.wal(&lineage);
    let entry =
        |number: SegmentNo| Some(SegmentEntry::of(&header(&archive, number.0, commit(number.0)), 5_000_000));
    fixtures::sealed_groups(&archive, FIRST, SEGMENTS / FANOUT, entry).await.expect("an index");
    for number in (1_000..SEGMENTS - 2_000).step_by(10_000) {
        let start = SegmentNo(number).start(SIZE) + 40;
        let id = BackupId::new(commit(number).to_time(), FIRST, start, 1);
        let stop = SegmentNo(number + 2).start(SIZE) + 400;
        backup::fixtures::smallest(&archive, id, stop, commit(number + 2).to_time()).await.expect("a backup");
    }
    archive
}

fn plans(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = TestDir::new();
    let archive = runtime.block_on(archive(&dir));
    let mut group = criterion.benchmark_group("100,000 segments");
    group.sample_size(20);
    group.bench_function("index: load, and look up one segment", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let mut index = TimelineIndex::load(&archive, FIRST).await.expect("the index");
                let group = index.group(55_555 / FANOUT).await.expect("a group");
                assert!(group.get(SegmentNo(55_555)).is_some());
            });
        });
    });
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(NoDecoder);
    let (repository, cluster) = (archive.repository(), archive.lineage().cluster.clone());
    let now = commit(SEGMENTS + 60).to_time();
    group.bench_function("plan: the latest moment", |bencher| {
        bencher.iter(|| {
            let request = RestoreRequest::default();
            let planned = planning::plan(repository, &cluster, &request, &decoder, now);
            assert!(runtime.block_on(planned).expect("planned").is_ok());
        });
    });
    group.finish();
}

criterion_group!(benches, plans);
criterion_main!(benches);
