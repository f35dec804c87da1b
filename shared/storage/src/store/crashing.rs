//! A directory as a process sees it that dies before its n-th request: from then on nothing that it asks for is done.
#![allow(clippy::unwrap_used, reason = "for tests, which fail loudly")]

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path as LocalPath;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::Store;

/// The store of a process that will die. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CrashingStore {
    inner: Arc<LocalFileSystem>,
    left: Arc<AtomicI64>,
    /// What has to be deleted before something can be written: 0 once there is room.
    lacking: Arc<AtomicI64>,
    /// What is listed, and said not to be there where it is read.
    hidden: Arc<Mutex<Option<String>>>,
    /// What the keys begin with that must not be deleted.
    locked: Arc<Mutex<Option<String>>>,
    /// Requests that are being carried out.
    running: Arc<AtomicI64>,
}

impl CrashingStore {
    /// Over a directory; `life` requests are carried out.
    pub fn new(directory: &LocalPath, life: u32) -> Self {
        let inner = Arc::new(LocalFileSystem::new_with_prefix(directory).unwrap());
        Self {
            inner,
            left: Arc::new(AtomicI64::new(i64::from(life))),
            lacking: Arc::default(),
            hidden: Arc::default(),
            locked: Arc::default(),
            running: Arc::default(),
        }
    }

    /// Fills its filesystem: nothing can be written until so many objects are deleted.
    pub fn fill(&self, lacking: u32) {
        self.lacking.store(i64::from(lacking), SeqCst);
    }

    /// Answers every request to read this key with "not found"; with none, none.
    pub fn hide(&self, key: Option<&str>) {
        *self.hidden.lock().unwrap_or_else(PoisonError::into_inner) = key.map(str::to_owned);
    }

    /// Lets no key go that begins so; with none, all go.
    pub fn lock(&self, keys: Option<&str>) {
        *self.locked.lock().unwrap_or_else(PoisonError::into_inner) = keys.map(str::to_owned);
    }

    /// As a store that does not try again what failed.
    pub fn store(&self) -> Store {
        let store = Store::over("crashing", Arc::new(self.clone()));
        store.with_limits(store.limits().once())
    }

    /// Kills it, waits until what it had asked for before is done, and tells whether it was dead already.
    pub async fn has_crashed(&self) -> bool {
        let died = self.left.swap(i64::MIN / 2, SeqCst) < 0;
        while self.running.load(SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        died
    }

    fn spend(&self) -> Result<()> {
        if self.left.fetch_sub(1, SeqCst) > 0 {
            return Ok(());
        }
        self.left.fetch_min(-1, SeqCst);
        Err(object_store::Error::Generic { store: "crashing", source: "the process is dead".into() })
    }

    /// One request, carried out to its end even if nobody waits for it any more.
    async fn request<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.spend()?;
        let running = Arc::clone(&self.running);
        running.fetch_add(1, SeqCst);
        let work = async move {
            let done = work.await;
            running.fetch_sub(1, SeqCst);
            done
        };
        tokio::spawn(work).await.unwrap()
    }
}

impl fmt::Display for CrashingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CrashingStore")
    }
}

#[async_trait::async_trait]
impl ObjectStore for CrashingStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if self.lacking.load(SeqCst) > 0 {
            let source = io::Error::from(io::ErrorKind::StorageFull).into();
            return Err(object_store::Error::Generic { store: "crashing", source });
        }
        let (inner, at) = (Arc::clone(&self.inner), at.clone());
        // A directory knows no content types.
        let opts = PutOptions { attributes: Attributes::new(), ..opts };
        self.request(async move { inner.put_opts(&at, payload, opts).await }).await
    }

    async fn get_opts(&self, at: &Path, opts: GetOptions) -> Result<GetResult> {
        let (inner, at) = (Arc::clone(&self.inner), at.clone());
        if self.hidden.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(at.as_ref()) {
            let path = at.to_string();
            return Err(object_store::Error::NotFound { path, source: "it is hidden".into() });
        }
        self.request(async move { inner.get_opts(&at, opts).await }).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let crashing = self.clone();
        let delete = move |path: Result<Path>| {
            let crashing = crashing.clone();
            async move {
                let (path, inner) = (path?, Arc::clone(&crashing.inner));
                let locked = crashing.locked.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if locked.is_some_and(|locked| path.as_ref().starts_with(&locked)) {
                    let path = path.to_string();
                    return Err(object_store::Error::PermissionDenied {
                        path,
                        source: "it is locked".into(),
                    });
                }
                let gone = path.clone();
                crashing.request(async move { inner.delete(&path).await }).await?;
                crashing.lacking.fetch_sub(1, SeqCst);
                Ok(gone)
            }
        };
        at.then(delete).boxed()
    }

    /// In the order of names, as object stores list.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(dead) = self.spend() {
            return stream::iter([Err(dead)]).boxed();
        }
        let all = self.inner.list(prefix).try_collect::<Vec<_>>();
        let sorted = async move {
            let mut all = all.await?;
            all.sort_unstable_by(|a, b| a.location.cmp(&b.location));
            Ok::<_, object_store::Error>(stream::iter(all.into_iter().map(Ok)))
        };
        stream::once(sorted).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.spend()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, opts: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, opts).await
    }
}
