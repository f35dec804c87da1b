//! Stores: where a repository's objects are. Four kinds behind one type: a directory, S3 and what speaks it, Google
//! Cloud Storage, Azure Blob.
//!
//! What always holds: objects are created, never replaced ([`Store::create_once`]), but for copies on which nothing rests
//! ([`Store::replace_copy`]); an object is visible as a whole or
//! not at all; when a create returns, its object survives a power cut. A crash in the middle leaves the object or
//! nothing.
//!
//! | module | owns |
//! |---|---|
//! | [`settings`] | what a configuration says about a store, sorted by what it is about |
//! | `table`, `location` | the same as the file has it: flat keys and a URL |
//! | `foreign` | keys of another provider than the one that the URL leads to |
//! | `directory`, `s3`, `google`, `azure` | a folder for each provider: its own settings, opening it, its credentials |
//! | `contradictions` | settings that are wrong as they are written |
//! | `network` | what the three behind a network have in common on the way there |
//! | `encryption` | where the secret of an encrypted repository is |
//! | `open` | from settings to a store |
//! | `evidence` | whether an answer to a create comes from the store |
//! | `create` | creating once, whatever the network does |
//! | `replace` | replacing a copy of what is known otherwise |
//! | `delete` | deleting one object, or a thousand with one request |
//! | `directory::local`, `remote` | the two sorts of store |
//! | `probe` | what a store really does |
//! | `failure` | what a failed request means |
//! | `limits` | timeouts and retries |
//! | `rate` | how fast objects pass, where that is bounded |
//! | `buffers` | memory for what is read |
//! | `counts` | how many requests were sent |

mod azure;
mod buffers;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod contradictions;
mod counts;
#[cfg(any(test, feature = "testing"))]
pub mod crashing;
mod create;
mod delete;
mod directory;
mod encryption;
mod evidence;
mod failure;
mod foreign;
mod google;
mod limits;
mod location;
mod network;
mod open;
mod probe;
mod rate;
mod remote;
mod replace;
mod s3;
pub mod settings;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::ObjectStore;

use self::buffers::Buffers;
pub use self::counts::Requests;
pub use self::create::{Creation, NumberClaim};
pub use self::delete::BULK;
pub use self::directory::{DIRECTORY_MODE, Owner, Unusable, grant};
use self::failure::{Failure, FailureKind};
pub use self::limits::Limits;
pub use self::probe::{Probe, ProbeFinding};
pub use self::rate::Rate;
pub use self::settings::StoreSettings;
use crate::error::Result;
use crate::layout::{Key, Prefix};

/// A store. Cheap to clone; clones share connections and counts.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    backend: Backend,
    name: String,
    limits: Limits,
    counts: Arc<counts::Counts>,
    buffers: Buffers,
    /// What bounds the bytes of objects that are created and read.
    rate: Option<Arc<Rate>>,
    /// Whether the store refused a request that deletes several objects.
    one_by_one: Arc<AtomicBool>,
}

#[derive(Clone, Debug)]
enum Backend {
    Local(directory::Local),
    Remote(remote::Remote),
}

/// What a listing says about an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedObject {
    /// Its name.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// When it was created, by the store's clock.
    pub modified: jiff::Timestamp,
}

/// An object's size and time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Its length in bytes.
    pub size: u64,
    /// When it was created, by the store's clock.
    pub modified: jiff::Timestamp,
}

/// A part of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ranged {
    /// The bytes; fewer than asked for where the object ends.
    pub bytes: Bytes,
    /// The whole object's length.
    pub size: u64,
}

impl Store {
    /// Opens the store that the settings name. No request is sent to a store behind a network.
    pub async fn open(settings: &StoreSettings) -> Result<Self> {
        open::open(settings).await
    }

    /// Any store of the library's, such as one that fails on purpose.
    pub fn over(name: &str, store: Arc<dyn ObjectStore>) -> Self {
        Self::new(name.to_owned(), Backend::Remote(remote::Remote::new(store, "")), Limits::default())
    }

    fn new(name: String, backend: Backend, limits: Limits) -> Self {
        let (counts, one_by_one) = (Arc::default(), Arc::default());
        let buffers = Buffers::new(0);
        Self { inner: Arc::new(Inner { backend, name, limits, counts, buffers, rate: None, one_by_one }) }
    }

    /// What it is called in messages: its URL, without secrets.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The same store with other bounds.
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { inner: Arc::new(Inner { limits, ..Inner::clone(&self.inner) }) }
    }

    /// The same store for reading much from a directory: up to so many bytes of memory are kept for what is read next. Those
    /// that are read must not be kept for long: a small part keeps the whole buffer.
    pub fn keeping_buffers(&self, bytes: usize) -> Self {
        Self { inner: Arc::new(Inner { buffers: Buffers::new(bytes), ..Inner::clone(&self.inner) }) }
    }

    /// The same store, from which objects are read and in which they are created no faster. Listings pass at once, and so do
    /// documents that are created.
    pub fn at_rate(&self, rate: Option<&Arc<Rate>>) -> Self {
        Self { inner: Arc::new(Inner { rate: rate.cloned(), ..Inner::clone(&self.inner) }) }
    }

    /// Its bounds.
    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// Requests sent so far, over all clones.
    pub fn requests(&self) -> Requests {
        self.inner.counts.read()
    }

    /// Whether it is a directory of this machine's filesystems.
    pub fn is_local(&self) -> bool {
        matches!(self.inner.backend, Backend::Local(_))
    }

    /// A whole object. Fails with [`crate::RepoError::NotFound`] if there is none.
    pub async fn get(&self, key: &Key) -> Result<Bytes> {
        Ok(self.read(key, None).await?.bytes)
    }

    /// A part of an object; fewer bytes where it ends. Fails with [`crate::RepoError::NotFound`] if there is none.
    pub async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Ranged> {
        self.read(key, Some(range)).await
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Ranged> {
        let Inner { backend, limits, counts, name, buffers, .. } = &*self.inner;
        let attempt = || {
            counts::add(&counts.get, 1);
            let whole = limits.read_timeout * 4;
            let range = range.clone();
            match backend {
                Backend::Local(local) => {
                    Limits::within(whole, local.get(key.as_str(), range, buffers)).boxed()
                }
                Backend::Remote(remote) => remote.get(key.as_str(), range, limits.read_timeout).boxed(),
            }
        };
        let read = limits.retry(attempt).await.map_err(|failure| failure.about(key, name))?;
        counts::add(&counts.bytes_in, read.bytes.len() as u64);
        if let Some(rate) = &self.inner.rate {
            rate.pass(read.bytes.len() as u64).await;
        }
        Ok(read)
    }

    /// Size and time of an object; `None` if there is none.
    pub async fn head(&self, key: &Key) -> Result<Option<Meta>> {
        let Inner { backend, limits, counts, name, .. } = &*self.inner;
        let attempt = || {
            counts::add(&counts.head, 1);
            match backend {
                Backend::Local(local) => {
                    Limits::within(limits.read_timeout, local.head(key.as_str())).boxed()
                }
                Backend::Remote(remote) => {
                    Limits::within(limits.read_timeout, remote.head(key.as_str())).boxed()
                }
            }
        };
        crate::found(limits.retry(attempt).await.map_err(|failure| failure.about(key, name)))
    }

    /// Every object below `prefix`, in the order of the keys, those after `start_after` only (a whole key or the
    /// beginning of one). Names that are not Walpoint's are left out. Stores differ in where they sort a directory among
    /// names that begin with its name and go on with `-` or `.`; the layout has an order only where that does not matter.
    pub fn list(
        &self,
        prefix: &Prefix,
        start_after: Option<&str>,
    ) -> BoxStream<'static, Result<ListedObject>> {
        let listing = Listing {
            store: self.clone(),
            prefix: prefix.clone(),
            after: start_after.map(str::to_owned),
            running: None,
            listed: 0,
        };
        stream::try_unfold(listing, |mut listing| async move {
            Ok(listing.next().await?.map(|entry| (entry, listing)))
        })
        .boxed()
    }

    /// Every object below `prefix`, at once: for directories that are known to be small.
    pub async fn list_all(&self, prefix: &Prefix) -> Result<Vec<ListedObject>> {
        self.list(prefix, None).try_collect().await
    }

    /// The names of the directories directly in `prefix`, sorted. Some stores, and filesystems after a
    /// crash, also name directories that are empty.
    pub async fn list_dirs(&self, prefix: &Prefix) -> Result<Vec<String>> {
        let Inner { backend, limits, counts, name, .. } = &*self.inner;
        let attempt = || {
            counts::add(&counts.list, 1);
            // Many pages may be needed, so the bound is that of a long answer.
            let limit = limits.read_timeout * 4;
            match backend {
                Backend::Local(local) => Limits::within(limit, local.list_dirs(prefix.as_str())).boxed(),
                Backend::Remote(remote) => Limits::within(limit, remote.list_dirs(prefix.as_str())).boxed(),
            }
        };
        let result = limits.retry(attempt).await;
        let mut names = result.map_err(|failure| failure.during(format!("a listing of {prefix}"), name))?;
        names.retain(|name| name.parse::<Key>().is_ok());
        names.sort_unstable();
        Ok(names)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.inner.name)
    }
}

/// A listing that begins again behind the last entry when the connection breaks.
struct Listing {
    store: Store,
    prefix: Prefix,
    after: Option<String>,
    running: Option<BoxStream<'static, Result<ListedObject, Failure>>>,
    listed: u64,
}

impl Listing {
    async fn next(&mut self) -> Result<Option<ListedObject>> {
        let limits = self.store.inner.limits;
        let mut attempts = limits.attempts();
        loop {
            let failure = match self.step(limits.read_timeout).await {
                Ok(Some(entry)) => {
                    self.after = Some(entry.key.to_string());
                    self.listed += 1;
                    return Ok(Some(entry));
                }
                Ok(None) => return Ok(None),
                Err(failure) => failure,
            };
            self.running = None;
            if failure.kind != FailureKind::Transient || !attempts.another().await {
                return Err(failure.during(format!("a listing of {}", self.prefix), self.store.name()));
            }
        }
    }

    async fn step(&mut self, timeout: Duration) -> Result<Option<ListedObject>, Failure> {
        let counts = &self.store.inner.counts;
        let running = match &mut self.running {
            Some(running) => running,
            none => {
                counts::add(&counts.list, 1);
                let (prefix, after) = (self.prefix.as_str(), self.after.as_deref());
                none.insert(match &self.store.inner.backend {
                    Backend::Local(local) => local.list(prefix, after),
                    Backend::Remote(remote) => remote.list(prefix, after)?,
                })
            }
        };
        if self.listed > 0 && self.listed.is_multiple_of(1000) {
            counts::add(&counts.list, 1);
        }
        Limits::within(timeout, running.try_next()).await
    }
}
