//! Stores behind a network: S3 and what speaks it, Google Cloud Storage, Azure Blob, through one library.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload,
};

use super::failure::{Failure, FailureKind};
use super::limits::Limits;
use super::{ListedObject, Meta, Ranged};
use crate::layout::Key;
use crate::object::MAX_OBJECT;

/// What every object is said to be. Stores and proxies that compress what is sent without a type would work for nothing:
/// it is compressed already.
const CONTENT_TYPE: &str = "application/octet-stream";

/// A store of the library's under a prefix of the user's.
#[derive(Clone)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    /// What single objects are deleted through, where the library deletes them by a bulk request otherwise.
    single: Option<Arc<dyn ObjectStore>>,
    prefix: String,
    attributes: Attributes,
    /// Look first and create without a condition, for stores that know none.
    look_first: bool,
    /// Objects that one request can delete; `None` where each takes one.
    bulk: Option<usize>,
}

impl Remote {
    pub(super) fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        let prefix = prefix.trim_matches('/').to_owned();
        let attributes = Attributes::from_iter([(Attribute::ContentType, CONTENT_TYPE)]);
        Self { store, single: None, prefix, attributes, look_first: false, bulk: Some(1000) }
    }

    /// Deletes single objects through this: the same store, told to use no bulk requests.
    pub(super) fn with_single(mut self, single: Arc<dyn ObjectStore>) -> Self {
        self.single = Some(single);
        self
    }

    pub(super) fn with_storage_class(mut self, class: Option<&str>) -> Self {
        if let Some(class) = class {
            self.attributes.insert(Attribute::StorageClass, class.to_owned().into());
        }
        self
    }

    pub(super) fn look_first(mut self, look_first: bool) -> Self {
        self.look_first = look_first;
        self
    }

    /// How many objects one request can delete, as the library asks for it.
    pub(super) fn with_bulk(mut self, bulk: Option<usize>) -> Self {
        self.bulk = bulk;
        self
    }

    pub(super) fn bulk(&self) -> Option<usize> {
        self.bulk
    }

    /// Reads an object or a part of it; every chunk must come within the read timeout.
    pub(super) async fn get(
        &self,
        name: &str,
        range: Option<Range<u64>>,
        read_timeout: Duration,
    ) -> Result<Ranged, Failure> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let path = self.path(name)?;
        let request = async { self.store.get_opts(&path, options).await.map_err(Failure::from) };
        let answer = Limits::within(read_timeout, request).await?;
        let size = answer.meta.size;
        let length = answer.range.end.saturating_sub(answer.range.start);
        let expected = usize::try_from(length).ok().filter(|_| length <= MAX_OBJECT).ok_or_else(|| {
            Failure::new(FailureKind::TooLong, format!("it has {length} bytes, more than any object"))
        })?;
        let mut chunks = answer.into_stream();
        let mut next = async || {
            let chunk = async { chunks.try_next().await.map_err(Failure::from) };
            Limits::within(read_timeout, chunk).await
        };
        let first = next().await?.unwrap_or_default();
        if first.len() == expected {
            return Ok(Ranged { bytes: first, size });
        }
        let mut bytes = BytesMut::with_capacity(expected);
        bytes.extend_from_slice(&first);
        while let Some(chunk) = next().await? {
            if bytes.len() + chunk.len() > expected {
                break;
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.len() != expected {
            let what = format!("the answer has {} bytes instead of {expected}", bytes.len());
            return Err(Failure::new(FailureKind::Transient, what));
        }
        Ok(Ranged { bytes: bytes.freeze(), size })
    }

    pub(super) async fn head(&self, name: &str) -> Result<Meta, Failure> {
        let meta = self.store.head(&self.path(name)?).await?;
        Ok(Meta { size: meta.size, modified: modified(&meta) })
    }

    pub(super) async fn create(&self, name: &str, pieces: &[Bytes]) -> Result<(), Failure> {
        let path = self.path(name)?;
        let mut options = PutOptions { attributes: self.attributes.clone(), ..PutOptions::default() };
        options.mode = PutMode::Create;
        if self.look_first {
            match self.store.head(&path).await {
                Ok(_) => return Err(Failure::new(FailureKind::Exists, "it is already there")),
                Err(object_store::Error::NotFound { .. }) => options.mode = PutMode::Overwrite,
                Err(error) => return Err(error.into()),
            }
        }
        self.store.put_opts(&path, PutPayload::from_iter(pieces.iter().cloned()), options).await?;
        Ok(())
    }

    pub(super) async fn replace(&self, name: &str, pieces: &[Bytes]) -> Result<(), Failure> {
        let options = PutOptions { attributes: self.attributes.clone(), ..PutOptions::default() };
        let payload = PutPayload::from_iter(pieces.iter().cloned());
        self.store.put_opts(&self.path(name)?, payload, options).await?;
        Ok(())
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), Failure> {
        let store = self.single.as_ref().unwrap_or(&self.store);
        Ok(store.delete(&self.path(name)?).await?)
    }

    /// Deletes objects with bulk requests: what became of each, in the order of the keys. Fails as a whole where a request
    /// was not answered, or not about each key; some are deleted then.
    pub(super) async fn delete_bulk(&self, keys: &[Key]) -> Result<Vec<Result<(), Failure>>, Failure> {
        let paths: Vec<Path> = keys.iter().map(|key| self.path(key.as_str())).collect::<Result<_, _>>()?;
        let paths = futures_util::stream::iter(paths.into_iter().map(Ok)).boxed();
        let mut answers: Vec<Result<(), Failure>> = self
            .store
            .delete_stream(paths)
            .map(|answer| answer.map(drop).map_err(Failure::from))
            .collect()
            .await;
        if answers.len() == keys.len() && (keys.len() > 1 || answers.iter().all(Result::is_ok)) {
            return Ok(answers);
        }
        let failed = answers.iter().position(Result::is_err);
        match failed.map(|at| answers.swap_remove(at)) {
            Some(Err(failure)) => Err(failure),
            _ => Err(Failure::new(FailureKind::Rejected, "the answer is not about every key")),
        }
    }

    pub(super) fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<BoxStream<'static, Result<ListedObject, Failure>>, Failure> {
        let path = self.path(prefix)?;
        let path = Some(&path).filter(|p| !p.as_ref().is_empty());
        let listing = match start_after {
            Some(after) => self.store.list_with_offset(path, &self.path(after)?),
            None => self.store.list(path),
        };
        let own = self.prefix.clone();
        let entries = listing
            .map_err(Failure::from)
            .try_filter_map(move |meta| std::future::ready(Ok(self_entry(&own, &meta))));
        Ok(entries.boxed())
    }

    pub(super) async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, Failure> {
        let path = self.path(prefix)?;
        let path = Some(&path).filter(|p| !p.as_ref().is_empty());
        let found = self.store.list_with_delimiter(path).await?;
        Ok(found.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_owned)).collect())
    }

    fn path(&self, name: &str) -> Result<Path, Failure> {
        let joined = match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => name.to_owned(),
            (false, true) => self.prefix.clone(),
            (false, false) => format!("{}/{name}", self.prefix),
        };
        Path::parse(joined).map_err(|e| Failure::new(FailureKind::Rejected, e))
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the builder's Debug: it may show credentials.
        write!(f, "Remote(prefix {:?})", self.prefix)
    }
}

/// `None` for names that are not ours.
fn self_entry(prefix: &str, meta: &ObjectMeta) -> Option<ListedObject> {
    let name = meta.location.as_ref();
    let name = if prefix.is_empty() { name } else { name.strip_prefix(prefix)?.strip_prefix('/')? };
    let key: Key = name.parse().ok()?;
    Some(ListedObject { key, size: meta.size, modified: modified(meta) })
}

fn modified(meta: &ObjectMeta) -> jiff::Timestamp {
    let nanos = i32::try_from(meta.last_modified.timestamp_subsec_nanos()).unwrap_or_default();
    jiff::Timestamp::new(meta.last_modified.timestamp(), nanos).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}
