//! What a plan costs behind a line with latency: the requests that wait for one another, not those that are sent.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use walpoint_base::{Lsn, PgTimestamp, RecoveryTarget, SegmentNo};
use walpoint_plan::restore::testing::world::size;
use walpoint_plan::restore::*;
use walpoint_storage::store::{Store, StoreSettings};

use super::decoder::Decoder;
use super::simulate::{SEGMENTS, backup, large_archive, real_segment};
use crate::agreement::{self, Agreement};
use crate::catalog::Catalog;
use crate::index::tests::{Bed, bed, commit_time};
use crate::planning::{self, created_tablespaces, creating_segments};
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
