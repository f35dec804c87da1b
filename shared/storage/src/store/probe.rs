//! Finding out what a store really does, before it is trusted.
//!
//! One small object of a random name is created and deleted again; a crash before leaves it.

use bytes::Bytes;

use super::Store;
use crate::error::{RepoError, Result, error_chain};
use crate::layout;

/// What a store did with a probe object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// A missing object was answered with "not found". S3 without ListBucket says "denied": then absence cannot be proven.
    pub absence: ProbeFinding,
    /// What was created was read back, whole and in part, and its size was right.
    pub reading: ProbeFinding,
    /// A create over an existing object was refused, and the object was unchanged.
    pub never_replaces: ProbeFinding,
    /// A listing showed the object at once.
    pub listing: ProbeFinding,
    /// The object could be deleted and was gone.
    pub deleting: ProbeFinding,
    /// How far the store's clock is ahead of this machine's, to about a second; `None` where it cannot be told.
    pub clock_ahead: Option<jiff::SignedDuration>,
}

/// Whether a store does as expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProbeFinding {
    /// It does.
    Good,
    /// It does not; what it did, and what that means.
    Bad(String),
}

impl ProbeFinding {
    fn of(good: bool, what: &str) -> Self {
        if good { Self::Good } else { Self::Bad(what.to_owned()) }
    }

    fn or_error<T>(result: Result<T>, good: impl FnOnce(&T) -> bool, what: &str) -> Self {
        match result {
            Ok(value) => Self::of(good(&value), what),
            Err(error) => Self::Bad(error_chain(&error)),
        }
    }

    /// Whether the store does as expected.
    pub fn is_good(&self) -> bool {
        *self == Self::Good
    }
}

impl Probe {
    /// Everything that was found, with a name for each.
    pub fn findings(&self) -> [(&'static str, &ProbeFinding); 5] {
        [
            ("absence", &self.absence),
            ("reading", &self.reading),
            ("never replaces", &self.never_replaces),
            ("listing", &self.listing),
            ("deleting", &self.deleting),
        ]
    }

    /// Finds out what a store does, with one small object that is deleted afterwards. Fails if that object cannot be
    /// created; everything else is a finding.
    pub async fn of(store: &Store) -> Result<Self> {
        let key = layout::probe(rand::random());
        let absence = match store.head(&key).await {
            Ok(None) => match store.get(&key).await {
                Err(RepoError::NotFound { .. }) => ProbeFinding::Good,
                Ok(_) => ProbeFinding::Bad("an object that was never written was found".to_owned()),
                Err(error) => ProbeFinding::Bad(error_chain(&error)),
            },
            Ok(Some(_)) => ProbeFinding::Bad("an object that was never written was found".to_owned()),
            Err(error) => ProbeFinding::Bad(format!(
                "a missing object was not answered with \"not found\": {}\nHINT: Check that the credentials may list the \
                 bucket (s3:ListBucket).",
                error_chain(&error)
            )),
        };
        let (first, second) =
            (Bytes::from_static(b"walpoint probe 1"), Bytes::from_static(b"walpoint probe two"));
        if !store.create_blindly(&key, first.clone()).await? {
            return Err(RepoError::Rejected {
                what: format!("the creation of {key}"),
                store: store.name().to_owned(),
                source: "it says that an object of a random name exists already".into(),
            });
        }
        let before = jiff::Timestamp::now();
        let reading = match (store.get(&key).await, store.get_range(&key, 9..14).await) {
            (Ok(whole), Ok(part)) => {
                let good = whole == first && part.bytes == "probe" && part.size == first.len() as u64;
                ProbeFinding::of(good, "what was read is not what was written")
            }
            (Err(error), _) | (_, Err(error)) => ProbeFinding::Bad(error_chain(&error)),
        };
        let refused = store.create_blindly(&key, second).await;
        let unchanged = store.get(&key).await;
        let never_replaces = match (refused, unchanged) {
            (Ok(false), Ok(now)) if now == first => ProbeFinding::Good,
            (Ok(true), Ok(now)) if now != first => ProbeFinding::Bad(
                "the store accepted If-None-Match and overwrote the object all the same: two hosts could replace each \
                 other's WAL unnoticed"
                    .to_owned(),
            ),
            (Ok(_), Ok(_)) => ProbeFinding::Bad("a create over an existing object was answered wrongly".to_owned()),
            (Err(error), _) | (_, Err(error)) => ProbeFinding::Bad(error_chain(&error)),
        };
        let listed = store.list_all(&layout::probes()).await;
        let listing = ProbeFinding::or_error(
            listed,
            |l| l.iter().any(|e| e.key == key),
            "a listing does not show the object",
        );
        let clock_ahead = store.head(&key).await.ok().flatten().map(|m| m.modified.duration_since(before));
        let deleting = match store.delete(&key).await {
            Ok(()) => ProbeFinding::or_error(
                store.head(&key).await,
                Option::is_none,
                "a deleted object is still there",
            ),
            Err(error) => ProbeFinding::Bad(error_chain(&error)),
        };
        Ok(Self { absence, reading, never_replaces, listing, deleting, clock_ahead })
    }
}
