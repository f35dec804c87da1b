//! The local store against the suite, and creating once against a store that fails on purpose.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use super::*;
use crate::error::{Remedy, RepoError, error_chain};
use crate::layout::Key;
use crate::object::{ObjectKind, ObjectWriter, RepositoryId, SealedObject, Sealer};

async fn local() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&StoreSettings::at(dir.path().to_str().unwrap())).await.unwrap();
    (dir, store)
}

fn sealed(name: &str, content: &[u8]) -> SealedObject {
    let key: Key = name.parse().unwrap();
    let mut writer =
        ObjectWriter::new(&Sealer::plain(RepositoryId([3; 16])), ObjectKind::Probe, &key).unwrap();
    writer.frame(content).unwrap();
    writer.finish().unwrap()
}

/// What is written and what is read share one bound.
#[tokio::test]
async fn objects_pass_no_faster_than_the_bound() {
    let (_dir, store) = local().await;
    let object = sealed("large", &[7; 10_000]);
    let length: u64 = object.pieces.iter().map(|piece| piece.len() as u64).sum();
    let bounded = store.at_rate(Rate::limit(Some(length * 4)).as_ref());
    let begun = std::time::Instant::now();
    bounded.create_once(&object).await.unwrap();
    assert_eq!(bounded.get(&object.key).await.unwrap().len() as u64, length);
    assert!(begun.elapsed() >= Duration::from_millis(500), "twice a quarter of a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_does_what_a_store_must() {
    let (dir, store) = local().await;
    conformance::all(&store).await;
    assert!(store.requests().put > 1100 && store.requests().total() > store.requests().put);
    let left: Vec<_> = walk(dir.path()).into_iter().filter(|p| p.contains("walpoint-tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_library_in_memory_does_what_a_store_must() {
    let store = Store::over("memory", Arc::new(InMemory::new()));
    conformance::all(&store).await;
}

fn walk(path: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        found.push(path.display().to_string());
        if path.is_dir() {
            found.extend(walk(&path));
        }
    }
    found
}

#[tokio::test]
async fn what_a_crash_left_and_strangers_are_not_listed() {
    let (dir, store) = local().await;
    store.create_once(&sealed("a/one", b"x")).await.unwrap();
    std::fs::copy(dir.path().join("a/one"), dir.path().join("a/.walpoint-tmp-one-1-2-3")).unwrap();
    std::fs::copy(dir.path().join("a/one"), dir.path().join("a/with blank")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("a/broken")).unwrap();
    let listed = store.list_all(&Prefix::root()).await.unwrap();
    assert_eq!(listed.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), ["a/one"]);
}

#[tokio::test]
async fn no_directory_is_left_without_an_object() {
    let (dir, store) = local().await;
    let (one, two) = (sealed("a/b/one", b"x"), sealed("a/two", b"x"));
    store.create_once(&one).await.unwrap();
    store.create_once(&two).await.unwrap();
    store.delete(&one.key).await.unwrap();
    assert!(!dir.path().join("a/b").exists() && dir.path().join("a").exists());
    store.delete(&two.key).await.unwrap();
    assert!(!dir.path().join("a").exists() && dir.path().exists());
    assert_eq!(store.create_once(&one).await.unwrap(), Creation::New);
}

/// What is missing lies below a repository that is there.
#[tokio::test]
async fn a_directory_that_is_missing_below_the_root_is_no_missing_repository() {
    let (dir, store) = local().await;
    std::os::unix::fs::symlink("nowhere", dir.path().join("a")).unwrap();
    let error = store.create_once(&sealed("a/one", b"x")).await.unwrap_err();
    assert!(matches!(error, RepoError::Rejected { .. }), "{error}");
}

#[tokio::test]
async fn files_are_for_owner_and_group() {
    let (dir, store) = local().await;
    store.create_once(&sealed("a/one", b"x")).await.unwrap();
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
    // Whatever the umask takes away, others get nothing.
    assert_eq!((mode("a") & 0o707, mode("a/one") & 0o707), (0o700, 0o600));
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let error = Store::open(&StoreSettings::at(missing.to_str().unwrap())).await.unwrap_err();
    assert!(
        matches!(&error, RepoError::NoRepository { what, .. } if what.contains("does not exist")),
        "{error}"
    );
    assert!(!missing.exists());
}

/// As when its filesystem is unmounted, or another one is mounted over it.
#[tokio::test]
async fn a_directory_that_is_exchanged_is_never_an_empty_store() {
    let (dir, store) = local().await;
    let object = sealed("a/one", b"x");
    store.create_once(&object).await.unwrap();
    let aside = dir.path().with_extension("aside");
    walpoint_base::durable::rename(dir.path(), &aside).unwrap();
    let lost = |error: RepoError| assert!(matches!(error, RepoError::NoRepository { .. }), "{error}");
    let everything_is_lost = async || {
        lost(store.get(&object.key).await.unwrap_err());
        lost(store.head(&object.key).await.unwrap_err());
        lost(store.list_all(&Prefix::root()).await.unwrap_err());
        lost(store.list_dirs(&Prefix::root()).await.unwrap_err());
        lost(store.create_once(&sealed("a/two", b"x")).await.unwrap_err());
        lost(store.delete(&object.key).await.unwrap_err());
    };
    everything_is_lost().await;
    std::fs::create_dir(dir.path()).unwrap();
    everything_is_lost().await;
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing was written to the wrong directory"
    );
    std::fs::remove_dir(dir.path()).unwrap();
    walpoint_base::durable::rename(&aside, dir.path()).unwrap();
    assert!(store.head(&object.key).await.unwrap().is_some());
}

#[tokio::test]
async fn a_damaged_object_is_in_the_way_and_named() {
    let (dir, store) = local().await;
    let object = sealed("a/one", b"content");
    store.create_once(&object).await.unwrap();
    for damage in [&b"short"[..], &object.to_bytes()[..130], &[7; 500]] {
        walpoint_base::durable::replace(&dir.path().join("a/one"), damage, 0o600).unwrap();
        let error = store.create_once(&object).await.unwrap_err();
        assert!(matches!(&error, RepoError::Corrupt { key, .. } if *key == object.key), "{error}");
    }
}

/// What the store does with the next creates; then it is in order.
#[derive(Clone, Copy, PartialEq, Debug)]
enum StoreFault {
    /// Stores it, then the answer is lost.
    LandsUnanswered,
    /// Stores it with a byte that is another one, then the answer is lost.
    LandsDamaged,
    /// Does not store it, and answers 503.
    Unavailable,
    /// Does not store it, and answers 409.
    ConflictForNothing,
    /// Never answers and does not store it.
    Hangs,
    /// Never answers, but stores it.
    LandsAndHangs,
    /// Refuses the credentials.
    Denied,
    /// Takes the condition and overwrites all the same.
    Overwrites,
}

#[derive(Debug)]
struct FaultyStore {
    inner: InMemory,
    creates: Mutex<VecDeque<StoreFault>>,
    looks: Mutex<VecDeque<StoreFault>>,
    deletes: Mutex<VecDeque<StoreFault>>,
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStore")
    }
}

fn unavailable() -> object_store::Error {
    let source = "Server returned non-2xx status code: 503 Service Unavailable: SlowDown".into();
    object_store::Error::Generic { store: "S3", source }
}

#[async_trait::async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let fault = self.creates.lock().unwrap().pop_front();
        if matches!(fault, None | Some(StoreFault::LandsUnanswered | StoreFault::LandsAndHangs)) {
            let result = self.inner.put_opts(at, payload.clone(), opts.clone()).await;
            if fault.is_none() {
                return result;
            }
        }
        if fault == Some(StoreFault::LandsDamaged) {
            let mut bytes: Vec<u8> = payload.into_iter().flatten().collect();
            *bytes.last_mut().unwrap() ^= 1;
            self.inner.put_opts(at, bytes.into(), opts).await?;
            return Err(unavailable());
        }
        let source = "Server returned non-2xx status code: 409 Conflict".into();
        match fault {
            Some(StoreFault::Overwrites) => {
                self.inner.put_opts(at, payload, object_store::PutMode::Overwrite.into()).await
            }
            Some(StoreFault::ConflictForNothing) => {
                Err(object_store::Error::AlreadyExists { path: at.to_string(), source })
            }
            Some(StoreFault::Denied) => {
                Err(object_store::Error::PermissionDenied { path: at.to_string(), source })
            }
            Some(StoreFault::Hangs | StoreFault::LandsAndHangs) => std::future::pending().await,
            _ => Err(unavailable()),
        }
    }

    async fn get_opts(&self, at: &Path, opts: GetOptions) -> object_store::Result<GetResult> {
        let fault = self.looks.lock().unwrap().pop_front();
        match fault {
            None => self.inner.get_opts(at, opts).await,
            Some(StoreFault::Hangs) => std::future::pending().await,
            Some(StoreFault::Denied) => {
                let source = "Server returned non-2xx status code: 403 Forbidden".into();
                Err(object_store::Error::PermissionDenied { path: at.to_string(), source })
            }
            Some(_) => Err(unavailable()),
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let Some(fault) = self.deletes.lock().unwrap().pop_front() else {
            return self.inner.delete_stream(at);
        };
        let refuse = move |path: object_store::Result<Path>| {
            let path = path?.to_string();
            let source = |answer: &str| format!("Server returned non-2xx status code: {answer}").into();
            match fault {
                StoreFault::Denied => {
                    let source = source("403 Forbidden: retentionPolicyNotMet");
                    Err(object_store::Error::PermissionDenied { path, source })
                }
                StoreFault::ConflictForNothing => {
                    let source = source("409 Conflict: BlobImmutableDueToPolicy");
                    Err(object_store::Error::AlreadyExists { path, source })
                }
                _ => Err(unavailable()),
            }
        };
        at.map(refuse).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, opts: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, opts).await
    }
}

fn faulty_later() -> (Store, Arc<FaultyStore>) {
    let none = || Mutex::new(VecDeque::new());
    let backend =
        Arc::new(FaultyStore { inner: InMemory::new(), creates: none(), looks: none(), deletes: none() });
    let store = Store::over("faulty", Arc::clone(&backend) as Arc<dyn ObjectStore>);
    (store.with_limits(Limits { read_timeout: Duration::from_millis(100), ..Limits::default() }), backend)
}

/// Google Cloud Storage answers 403 where a retention policy keeps an object, Azure 409.
#[tokio::test]
async fn a_delete_that_a_lock_forbids_is_denied() {
    for fault in [StoreFault::Denied, StoreFault::ConflictForNothing] {
        let (store, backend) = faulty_later();
        let object = sealed("a/one", b"content");
        store.create_once(&object).await.unwrap();
        backend.deletes.lock().unwrap().push_back(fault);
        let error = store.delete(&object.key).await.unwrap_err();
        assert!(matches!(error, RepoError::Denied { .. }), "{fault:?}: {error:?}");
        store.delete(&object.key).await.unwrap();
    }
}

fn faulty(creates: &[StoreFault], looks: &[StoreFault]) -> Store {
    let (store, backend) = faulty_later();
    backend.creates.lock().unwrap().extend(creates);
    backend.looks.lock().unwrap().extend(looks);
    store
}

#[tokio::test]
async fn whatever_the_network_does_it_is_stored_once_and_known_to_be() {
    use StoreFault::*;
    let mut cases = Vec::new();
    for fault in [LandsUnanswered, Unavailable, ConflictForNothing, Hangs, LandsAndHangs] {
        for faults in [vec![fault], vec![Unavailable, fault], vec![fault, ConflictForNothing]] {
            for looks in [vec![], vec![Unavailable]] {
                cases.push((faults.clone(), looks));
            }
        }
    }
    // All at once, as each waits a little.
    let runs = cases.into_iter().map(|(faults, looks)| async move {
        let object = sealed("a/one", b"x");
        let store = faulty(&faults, &looks);
        let created = store.create_once(&object).await;
        assert_eq!(created.unwrap(), Creation::New, "{faults:?} {looks:?}");
        assert_eq!(store.get(&object.key).await.unwrap(), object.to_bytes());
    });
    futures_util::future::join_all(runs).await;
}

/// Promise 1: a create that failed is no success because a header that was sent with it is there.
#[tokio::test]
async fn what_a_store_damaged_while_it_failed_is_not_stored() {
    let sealer = Sealer::plain(RepositoryId([3; 16]));
    let mut writer = ObjectWriter::new(&sealer, ObjectKind::Probe, &"a/one".parse().unwrap()).unwrap();
    let frame: Vec<u8> = (0_u32..15_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    (0..40).for_each(|_| writer.frame(&frame).unwrap());
    let object = writer.finish().unwrap();
    assert!(object.len() > 2 << 20, "it is read back in pieces");
    let store = faulty(&[StoreFault::LandsDamaged], &[]);
    let is_in_the_way = |error: &RepoError| match error {
        RepoError::Corrupt { key, remedy, .. } => *key == object.key && *remedy == Some(Remedy::MoveAway),
        _ => false,
    };
    for _ in 0..2 {
        let error = store.create_once(&object).await.unwrap_err();
        assert!(is_in_the_way(&error), "{error}");
    }
    assert!(matches!(store.claim(&object).await, Err(RepoError::Corrupt { .. })));
    store.delete(&object.key).await.unwrap();
    assert_eq!(store.create_once(&object).await.unwrap(), Creation::New);
}

#[tokio::test]
async fn a_lost_answer_does_not_hide_a_conflict() {
    let (theirs, ours) = (sealed("a/one", b"theirs"), sealed("a/one", b"ours"));
    for fault in [StoreFault::Unavailable, StoreFault::Hangs, StoreFault::ConflictForNothing] {
        let (store, backend) = faulty_later();
        store.create_once(&theirs).await.unwrap();
        backend.creates.lock().unwrap().push_back(fault);
        let error = store.create_once(&ours).await.unwrap_err();
        assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
        backend.creates.lock().unwrap().push_back(fault);
        assert_eq!(store.claim(&ours).await.unwrap(), NumberClaim::Lost);
        assert_eq!(store.get(&theirs.key).await.unwrap(), theirs.to_bytes());
    }
}

#[tokio::test]
async fn waiting_is_bounded_and_the_reason_is_told() {
    let object = sealed("a/one", b"x");
    let store = faulty(&[StoreFault::Unavailable; 50], &[]);
    let begun = std::time::Instant::now();
    let error = store.create_once(&object).await.unwrap_err();
    assert!(error.is_transient() && error_chain(&error).contains("503"), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(store.requests().put, 4);

    let store = faulty(&[], &[StoreFault::Hangs; 50]);
    let error = store.get(&object.key).await.unwrap_err();
    assert!(error.is_transient() && error_chain(&error).contains("no answer"), "{error:?}");
    assert_eq!(store.requests().get, 4);
    let once = store.with_limits(store.limits().once());
    assert!(once.get(&object.key).await.unwrap_err().is_transient());
    assert_eq!(store.requests().get, 5, "clones count together");
}

#[tokio::test]
async fn a_refusal_is_not_repeated() {
    let object = sealed("a/one", b"x");
    let store = faulty(&[StoreFault::Denied], &[]);
    assert!(matches!(store.create_once(&object).await.unwrap_err(), RepoError::Denied { .. }));
    assert_eq!(store.requests().put, 1);
    // Stored or not, nobody may look: not a success.
    let store = faulty(&[StoreFault::LandsUnanswered], &[StoreFault::Denied]);
    assert!(matches!(store.create_once(&object).await.unwrap_err(), RepoError::Denied { .. }));
}

/// K5: the probe tells a store that overwrites, and what looking first makes of it.
#[tokio::test]
async fn a_store_that_overwrites_is_found_out() {
    let probe = Probe::of(&faulty(&[], &[])).await.unwrap();
    assert!(probe.findings().iter().all(|(_, finding)| finding.is_good()), "{probe:?}");
    let probe = Probe::of(&faulty(&[StoreFault::Overwrites; 2], &[])).await.unwrap();
    let told = |finding: &ProbeFinding| format!("{finding:?}");
    assert!(told(&probe.never_replaces).contains("overwrote"), "{probe:?}");
    assert!([probe.absence, probe.reading, probe.listing, probe.deleting].iter().all(|f| f.is_good()));

    let (_, backend) = faulty_later();
    backend.creates.lock().unwrap().extend([StoreFault::Overwrites; 9]);
    let backend: Arc<dyn ObjectStore> = backend;
    let careful = remote::Remote::new(backend, "prefix").look_first(true);
    let store = Store::new("careful".into(), Backend::Remote(careful), Limits::default());
    let probe = Probe::of(&store).await.unwrap();
    assert!(probe.findings().iter().all(|(_, finding)| finding.is_good()), "{probe:?}");
    let (one, other) = (sealed("a/one", b"x"), sealed("a/one", b"y"));
    assert_eq!(store.create_once(&one).await.unwrap(), Creation::New);
    assert!(matches!(store.create_once(&other).await.unwrap_err(), RepoError::Conflict { .. }));
    assert_eq!(store.list_all(&Prefix::root()).await.unwrap()[0].key, one.key, "without the prefix");
}

#[tokio::test]
async fn missing_credentials_are_told_quickly() {
    // A test must not depend on whose environment it runs in.
    if std::env::vars().any(|(name, _)| name.starts_with("AWS_") || name.starts_with("GOOGLE_")) {
        return;
    }
    for url in ["s3://bucket/prefix", "gs://bucket"] {
        let begun = std::time::Instant::now();
        let error = Store::open(&StoreSettings::at(url)).await.unwrap_err();
        assert!(matches!(error, RepoError::Settings { .. }), "{url}: {error}");
        assert!(error.to_string().contains("no credentials"), "{url}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
}

#[tokio::test]
async fn a_plain_endpoint_must_be_allowed() {
    let table = r#"{"url": "s3://bucket", "endpoint": "http://127.0.0.1:1"}"#;
    let error = Store::open(&serde_json::from_str(table).unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("allow_http"), "{error}");
}

/// Every call can run in a task of its own.
#[test]
fn futures_can_be_sent() {
    fn sendable<T: Send>(_: T) {}
    let store = Store::over("memory", Arc::new(InMemory::new()));
    let object = sealed("a/one", b"x");
    sendable(store.get(&object.key));
    sendable(store.head(&object.key));
    sendable(store.create_once(&object));
    sendable(store.claim(&object));
    sendable(store.delete(&object.key));
    sendable(store.list_dirs(&Prefix::root()));
    sendable(store.list_all(&Prefix::root()));
    sendable(Store::open(&StoreSettings::at("/tmp")));
}
