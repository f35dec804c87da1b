//! What a plan costs behind a line with latency: the requests that wait for one another, not those that are sent.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use walpoint_base::{Lsn, PgTimestamp, RecoveryTarget, SegmentNo, TimelineId};
use walpoint_plan::restore::testing::world::size;
use walpoint_plan::restore::*;
use walpoint_plan::retention::Policy;
use walpoint_storage::store::{Store, StoreSettings};

use super::decoder::Decoder;
use super::simulate::{SEGMENTS, backup, large_archive, real_segment};
use crate::Repository;
use crate::agreement::{self, Agreement};
use crate::catalog::Catalog;
use crate::expire::outlook;
use crate::expire::tests::{self as expire_tests, world};
use crate::index::tests::{Bed, bed, commit_time};
use crate::planning::{self, created_tablespaces, creating_segments};
use crate::verify::tests::Anything;
use crate::verify::{Depth, VerifyOptions, verify};
use crate::wal::WalCopies;

/// How far away the store is: much more than what the processor needs between two requests.
const ROUND_TRIP: Duration = Duration::from_millis(200);

/// Objects of a page of a listing.
const PAGE: usize = 1000;

/// A store far away.
#[derive(Debug)]
struct Far(InMemory);

impl Far {
    /// With what a directory holds.
    async fn with(bed: &Bed) -> Self {
        let memory = InMemory::new();
        let mut directories = vec![bed.dir.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let key = path.strip_prefix(bed.dir.path()).unwrap().to_str().unwrap();
                memory.put(&Path::from(key), std::fs::read(&path).unwrap().into()).await.unwrap();
            }
        }
        Self(memory)
    }
}

impl fmt::Display for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Far")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Far {
    async fn put_opts(&self, at: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        tokio::time::sleep(ROUND_TRIP).await;
        self.0.put_opts(at, payload, opts).await
    }

    async fn get_opts(&self, at: &Path, opts: GetOptions) -> Result<GetResult> {
        tokio::time::sleep(ROUND_TRIP).await;
        self.0.get_opts(at, opts).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(at, opts).await
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        pages(self.0.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        pages(self.0.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        tokio::time::sleep(ROUND_TRIP).await;
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, opts: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, opts).await
    }
}

/// A round trip for each page, also for an empty one.
fn pages(all: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
    let first = stream::once(async {
        tokio::time::sleep(ROUND_TRIP).await;
        Ok(None)
    });
    let rest = all.enumerate().then(|(n, object)| async move {
        if n > 0 && n % PAGE == 0 {
            tokio::time::sleep(ROUND_TRIP).await;
        }
        object.map(Some)
    });
    first.chain(rest).try_filter_map(|object| std::future::ready(Ok(object))).boxed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_waits_for_few_requests_in_a_row() {
    let bed = bed().await;
    for segment in [1000, 51_000, 99_400] {
        backup(&bed, segment).await;
    }
    large_archive(&bed).await;
    bed.store(51_000..51_901).await;
    real_segment(&bed, 51_901).await;
    let cluster = bed.archive.lineage().cluster.clone();
    let far = Store::over("far", Arc::new(Far::with(&bed).await));
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    let now = commit_time(SEGMENTS + 60).to_time();
    let settings = StoreSettings::at("/nowhere");
    let requests = || (far.requests().total(), Instant::now());
    let prove = async |target, longest: f64| {
        let request = RestoreRequest { target, ..RestoreRequest::default() };
        let (before, begun) = requests();
        let mut catalog = Catalog::over("far", &settings, far.clone(), &cluster).await.unwrap();
        let plan =
            planning::prove_from(&mut catalog, &request, &decoder, now).await.unwrap().expect("a plan");
        let lineage = &mut catalog.lineages_mut()[0];
        let creating = creating_segments(lineage, &plan).await.unwrap();
        let (after, ended) = requests();
        let rounds = (ended - begun).as_secs_f64() / ROUND_TRIP.as_secs_f64();
        println!("{}: {} requests, {rounds:.1} in a row", request.target, after - before);
        assert!(rounds < longest, "{}: {rounds:.1} requests in a row", request.target);
        // What a restore asks of the index is known by then.
        let copies = WalCopies::new(lineage.archive().clone(), []);
        let tablespaces =
            created_tablespaces(&copies, &plan, Some(&creating), Lsn(0), &decoder).await.unwrap();
        assert_eq!((tablespaces.len(), requests().0 - after), (0, 0));
        plan
    };
    let latest = prove(RecoveryTarget::Latest, 8.0).await;
    assert_eq!(latest.until, SegmentNo(SEGMENTS).start(size()));
    let time = prove(RecoveryTarget::Time(PgTimestamp(commit_time(51_900).0 + 500_000)), 11.0).await;
    assert_eq!(time.stop.as_ref().unwrap().xid, Some(51_901));
    assert_eq!(time.wal[0].first, SegmentNo(51_000));

    // That another repository holds the same server's WAL shows a request to each, at the same time.
    let mut catalogs = Vec::new();
    for name in ["far", "farther"] {
        let mut catalog = Catalog::over(name, &settings, far.clone(), &cluster).await.unwrap();
        catalog.lineages_mut()[0].look_at(&time).await;
        catalogs.push(catalog);
    }
    let (before, begun) = requests();
    let along =
        agreement::along(&time, &catalogs[0].lineages()[0], &catalogs[1].lineages()[0]).await.unwrap();
    let (after, ended) = requests();
    assert_eq!((along.agreement, along.end, after - before), (Agreement::Same, None, 2));
    assert!(ended - begun < ROUND_TRIP * 2, "{:?}", ended - begun);
}

/// What `expire` decides by and what `verify --light` looks at does not take several requests in a row for each backup; to decide,
/// not where the store has lost all WAL that the index names either.
#[tokio::test(flavor = "multi_thread")]
async fn many_backups_are_looked_at_at_the_same_time() {
    let (bed, _) = world().await;
    let few = rounds(&bed).await;
    for n in 0..10u64 {
        expire_tests::backup(&bed, 50 + 4 * n, 100 - i64::try_from(n).unwrap()).await;
    }
    let many = rounds(&bed).await;
    println!("{few:.1?} requests in a row, with ten more backups {many:.1?}");
    assert!(few.iter().zip(&many).all(|(few, many)| *many < few + 10.0), "{few:.1?}, {many:.1?}");
}

/// How many requests in a row it takes to decide what expires without any WAL, to decide it with all of it, and to verify that by name
/// and size.
async fn rounds(bed: &Bed) -> [f64; 3] {
    let (cluster, policy) = (expire_tests::cluster(), Policy::default());
    let since = |begun: Instant| begun.elapsed().as_secs_f64() / ROUND_TRIP.as_secs_f64();
    let open = async |far: Far| {
        let store = Store::over("far", Arc::new(far));
        Repository::over("far", store, None).await.unwrap()
    };
    let far = Far::with(bed).await;
    for number in 0..100 {
        let name = SegmentNo(number).name(TimelineId::FIRST, bed.archive.lineage().segment_size);
        far.0.delete(&Path::from(bed.archive.paths().segment(name).as_str())).await.unwrap();
    }
    let without = open(far).await;
    let begun = Instant::now();
    outlook(&without, &cluster, &policy, Timestamp::now()).await.unwrap();
    let decided_without = since(begun);

    let repository = open(Far::with(bed).await).await;
    let begun = Instant::now();
    let outlook = outlook(&repository, &cluster, &policy, Timestamp::now()).await.unwrap();
    let decided = since(begun);
    let (host, agent) = (String::new(), String::new());
    let options = VerifyOptions { depth: Depth::Light, host, agent, ..VerifyOptions::default() };
    let begun = Instant::now();
    let report = verify(&repository, &cluster, &outlook, Arc::new(Anything), &options).await.unwrap();
    assert_eq!(report.findings, []);
    [decided_without, decided, since(begun)]
}
