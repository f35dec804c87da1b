//! Deleting objects: one, or many with as few requests as the store allows.

use std::sync::atomic::Ordering::Relaxed;

use futures_util::{FutureExt, StreamExt, stream};

use super::failure::{Failure, FailureKind};
use super::limits::Limits;
use super::{Backend, Inner, Store, counts};
use crate::error::Result;
use crate::layout::Key;

/// Keys that are deleted with one request where the store allows it: what S3 takes at most.
pub const BULK: usize = 1000;

/// Objects that are deleted at the same time where each one takes a request.
const AT_ONCE: usize = 64;

impl Store {
    /// Deletes an object. One that is not there is no error; one that is held is [`crate::RepoError::Denied`].
    pub async fn delete(&self, key: &Key) -> Result<()> {
        let Inner { backend, limits, counts, name, .. } = &*self.inner;
        let attempt = || {
            counts::add(&counts.delete, 1);
            match backend {
                Backend::Local(local) => {
                    Limits::within(limits.read_timeout, local.delete(key.as_str())).boxed()
                }
                Backend::Remote(remote) => {
                    Limits::within(limits.read_timeout, remote.delete(key.as_str())).boxed()
                }
            }
        };
        match limits.retry(attempt).await {
            Err(failure) if failure.kind == FailureKind::NotFound => Ok(()),
            // A delete has no condition that could fail: Azure answers 409 for a blob that a policy or a hold keeps, and 412 for
            // one under a lease.
            Err(failure) if failure.kind == FailureKind::Exists => {
                Err(Failure::new(FailureKind::Denied, failure.source).about(key, name))
            }
            result => result.map_err(|failure| failure.about(key, name)),
        }
    }

    /// Deletes objects, what [`Store::delete`] says of each in the order of the keys. With bulk requests where the store has
    /// them (S3, Azure); where it refuses those, or some key in one, with a request for each object.
    pub async fn delete_all(&self, keys: &[Key]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(keys.len());
        for some in keys.chunks(BULK) {
            results.extend(self.delete_chunk(some).await);
        }
        results
    }

    async fn delete_chunk(&self, keys: &[Key]) -> Vec<Result<()>> {
        let Inner { backend, limits, counts, name, one_by_one, .. } = &*self.inner;
        let bulk = match backend {
            Backend::Remote(remote) => remote.bulk().filter(|_| !one_by_one.load(Relaxed) && keys.len() > 1),
            Backend::Local(_) => None,
        };
        let (Backend::Remote(remote), Some(bulk)) = (backend, bulk) else {
            return self.delete_each(keys).await;
        };
        let attempt = || {
            counts::add(&counts.delete, u64::try_from(keys.len().div_ceil(bulk)).unwrap_or(u64::MAX));
            // A store looks at each key in turn: as long as for a long answer.
            Limits::within(limits.read_timeout * 4, remote.delete_bulk(keys)).boxed()
        };
        let each = match limits.retry(attempt).await {
            Ok(each) => each,
            Err(failure) if failure.kind == FailureKind::Transient => {
                let what = failure.source.to_string();
                let same = |key: &Key| Err(Failure::new(failure.kind, what.as_str()).about(key, name));
                return keys.iter().map(same).collect();
            }
            // A store without such requests, or without the right to them.
            Err(failure) => {
                one_by_one.store(true, Relaxed);
                tracing::debug!(url = name, "deleting one by one: {}", failure.source);
                return self.delete_each(keys).await;
            }
        };
        // What went wrong with a single key is tried again by itself, which also finds out what it means.
        let again = keys.iter().zip(each).map(|(key, outcome)| async move {
            match outcome {
                Ok(()) => Ok(()),
                Err(Failure { kind: FailureKind::NotFound, .. }) => Ok(()),
                Err(failure) if failure.kind == FailureKind::Denied => Err(failure.about(key, name)),
                Err(_) => self.delete(key).await,
            }
        });
        // Collected first: with a closure in it, the compiler cannot prove the stream to be `Send`.
        let again: Vec<_> = again.collect();
        stream::iter(again).buffered(AT_ONCE).collect().await
    }

    async fn delete_each(&self, keys: &[Key]) -> Vec<Result<()>> {
        let each: Vec<_> = keys.iter().map(|key| self.delete(key)).collect();
        stream::iter(each).buffered(AT_ONCE).collect().await
    }
}
