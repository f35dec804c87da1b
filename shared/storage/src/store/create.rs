//! Creating an object once: the only way anything gets into a repository.
//!
//! A create that times out may have landed; a create repeated after a 5xx may find its own bytes; S3 answers 409 though
//! nothing landed. So a refusal or an unanswered create says nothing by itself, and neither does a success that a proxy
//! may have answered (`evidence`): the object is read, and the content hash in its header decides. Absent: the create is
//! repeated. Equal: it is stored, by this create or another. Different: a conflict, and nothing is changed.
//!
//! A header says what an object should hold, not that it does: a store that fails in the middle of a create may have kept other bytes.
//! So what an unanswered create of this process left is compared with what was sent, to the last byte.

use std::ops::Range;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::failure::{Failure, FailureKind};
use super::limits::Limits;
use super::{Backend, Store, counts};
use crate::document::{MAX_DOCUMENT, SealedDocument, written_check};
use crate::error::{RepoError, Result};
use crate::layout::Key;
use crate::object::{ContentHash, OBJECT_HEADER, ObjectHeader, Salt, SealedObject, Sealer};

/// Bytes of an object that are read back at once.
const READ_BACK: u64 = 1 << 20;

/// What creating an object did, if it did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Creation {
    /// It was not there and is now.
    New,
    /// The same content was there already.
    Same,
}

/// What claiming a number in a sequence did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NumberClaim {
    /// The object is this one.
    Won,
    /// Somebody was faster: read theirs and decide again.
    Lost,
}

/// What is stored under a name, as far as it matters here.
struct StoredContent {
    content: ContentHash,
    /// The salt tells our own bytes from equal ones. Documents have none.
    salt: Option<Salt>,
    /// All of it, of a document.
    document: Option<Bytes>,
}

impl Store {
    /// Stores an object unless there is one of that name. Different content there is a [`RepoError::Conflict`]. Of an object that was there
    /// only the header is read: that its content is sound is known to who stored it.
    pub async fn create_once(&self, object: &SealedObject) -> Result<Creation> {
        let ours = object.content();
        if let Some(rate) = &self.inner.rate {
            rate.pass(object.pieces.iter().map(|piece| piece.len() as u64).sum()).await;
        }
        match self.create_and_look(&object.key, &object.pieces, || self.look(object).boxed()).await? {
            None => Ok(Creation::New),
            Some(found) if found.content != ours => {
                Err(RepoError::Conflict { key: object.key.clone(), ours, theirs: found.content })
            }
            Some(found) if found.salt == Some(object.header.salt) => {
                self.compare(&object.key, &object.pieces).await?;
                Ok(Creation::New)
            }
            Some(_) => Ok(Creation::Same),
        }
    }

    /// Whether an object of that content is there by its header, and stays: for what is too long to be sent only to find out.
    pub async fn holds(&self, sealer: &Sealer, key: &Key, content: ContentHash) -> Result<bool> {
        if let Backend::Local(local) = &self.inner.backend {
            local.sync(key.as_str()).await.map_err(|failure| failure.about(key, self.name()))?;
        }
        Ok(self.look_at(sealer, key).await?.is_some_and(|found| found.content == content))
    }

    /// Stores an object that claims its name, as the next number of a sequence: equal content by somebody else is a loss
    /// like any other.
    pub async fn claim(&self, object: &SealedObject) -> Result<NumberClaim> {
        match self.create_and_look(&object.key, &object.pieces, || self.look(object).boxed()).await? {
            Some(found) if found.salt != Some(object.header.salt) => Ok(NumberClaim::Lost),
            Some(_) => self.compare(&object.key, &object.pieces).await.map(|()| NumberClaim::Won),
            None => Ok(NumberClaim::Won),
        }
    }

    /// Stores a document unless there is one of that name.
    pub async fn create_document(&self, document: &SealedDocument) -> Result<Creation> {
        let key = &document.key;
        let look = || self.look_at_document(key).boxed();
        match self.create_and_look(key, std::slice::from_ref(&document.bytes), look).await? {
            None => Ok(Creation::New),
            Some(found) if found.document.as_ref() == Some(&document.bytes) => Ok(Creation::Same),
            Some(found) if found.content == document.check => {
                Err(RepoError::in_the_way(key, "it does not hold what its check says"))
            }
            Some(found) => {
                Err(RepoError::Conflict { key: key.clone(), ours: document.check, theirs: found.content })
            }
        }
    }

    /// Compares an object, which an unanswered create of this process left, with what was sent.
    async fn compare(&self, key: &Key, sent: &[Bytes]) -> Result<()> {
        let mut sent = sent.to_vec();
        sent.reverse();
        let length: u64 = sent.iter().map(|piece| piece.len() as u64).sum();
        let mut from = 0;
        while from < length {
            let range: Range<u64> = from..length.min(from + READ_BACK);
            let mut found = self.get_range(key, range.clone()).await?.bytes;
            if found.len() as u64 != range.end - range.start || !begin_with(&mut sent, &mut found) {
                return Err(RepoError::in_the_way(key, "the store has kept other bytes than were sent"));
            }
            from = range.end;
        }
        Ok(())
    }

    /// One create, without looking: what `init` and `check` find out about a store with. `false`: refused, because
    /// something is there.
    pub async fn create_blindly(&self, key: &Key, bytes: Bytes) -> Result<bool> {
        match self.try_create(key, std::slice::from_ref(&bytes)).await {
            Ok(()) => Ok(true),
            Err(failure) if failure.kind == FailureKind::Exists => Ok(false),
            Err(failure) if failure.kind == FailureKind::Unproven => match crate::found(self.get(key).await)?
            {
                Some(found) if found == bytes => Ok(true),
                _ => Err(failure.about(key, self.name())),
            },
            Err(failure) => Err(failure.about(key, self.name())),
        }
    }

    /// `None`: the create itself succeeded. Otherwise what was found under the name.
    async fn create_and_look<'a>(
        &self,
        key: &Key,
        pieces: &[Bytes],
        look: impl Fn() -> BoxFuture<'a, Result<Option<StoredContent>>>,
    ) -> Result<Option<StoredContent>> {
        let mut attempts = self.inner.limits.attempts();
        loop {
            let failure = match self.try_create(key, pieces).await {
                Ok(()) => return Ok(None),
                Err(failure) => failure,
            };
            match failure.kind {
                FailureKind::Exists => {}
                // The local store's failures are certain, and what it says exists it has synced; only creating again
                // gives that certainty.
                FailureKind::Transient if matches!(self.inner.backend, Backend::Local(_)) => {
                    if attempts.another().await {
                        continue;
                    }
                    return Err(failure.about(key, self.name()));
                }
                FailureKind::Transient | FailureKind::Unproven => {}
                // A 404 to a PUT is about the bucket. A directory's root was looked at: what is missing lies below it.
                FailureKind::NotFound => {
                    let kind = match self.inner.backend {
                        Backend::Local(_) => FailureKind::Rejected,
                        Backend::Remote(_) => FailureKind::NoStore,
                    };
                    let failure = Failure { kind, ..failure };
                    return Err(failure.about(key, self.name()));
                }
                _ => return Err(failure.about(key, self.name())),
            }
            match look().await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                // Nothing is known about the object; the reason why it could not be created is the one to tell.
                Err(error) if error.is_transient() && failure.kind != FailureKind::Exists => {}
                Err(error) => return Err(error),
            }
            if !attempts.another().await {
                // A conflict that never shows an object is a store that is busy with the name.
                let kind = FailureKind::Transient;
                return Err(Failure { kind, ..failure }.about(key, self.name()));
            }
        }
    }

    async fn try_create(&self, key: &Key, pieces: &[Bytes]) -> Result<(), Failure> {
        let length = pieces.iter().map(|p| p.len() as u64).sum();
        counts::add(&self.inner.counts.put, 1);
        counts::add(&self.inner.counts.bytes_out, length);
        let limit = self.inner.limits.sending(length);
        match &self.inner.backend {
            Backend::Local(local) => Limits::within(limit, local.create(key.as_str(), pieces)).await,
            Backend::Remote(remote) => Limits::within(limit, remote.create(key.as_str(), pieces)).await,
        }
    }

    async fn look_at_document(&self, key: &Key) -> Result<Option<StoredContent>> {
        let Some(found) = crate::found(self.get_range(key, 0..MAX_DOCUMENT as u64).await)? else {
            return Ok(None);
        };
        let theirs = std::str::from_utf8(&found.bytes).ok().and_then(written_check);
        let content = theirs.ok_or_else(|| RepoError::corrupt(key, "it does not end with a check"))?;
        Ok(Some(StoredContent { content, salt: None, document: Some(found.bytes) }))
    }

    async fn look(&self, object: &SealedObject) -> Result<Option<StoredContent>> {
        self.look_at(object.sealer(), &object.key).await
    }

    async fn look_at(&self, sealer: &Sealer, key: &Key) -> Result<Option<StoredContent>> {
        let Some(found) = crate::found(self.get_range(key, 0..OBJECT_HEADER as u64).await)? else {
            return Ok(None);
        };
        let (header, _) = ObjectHeader::parse(sealer, key, &found.bytes)
            .map_err(|error| RepoError::in_the_way(key, error))?;
        if header.object_len != found.size {
            let what = format!("it has {} bytes, its header says {}", found.size, header.object_len);
            return Err(RepoError::in_the_way(key, what));
        }
        Ok(Some(StoredContent { content: header.content, salt: Some(header.salt), document: None }))
    }
}

/// Whether `found` is what comes next of pieces, the last of which comes first; takes both.
fn begin_with(sent: &mut Vec<Bytes>, found: &mut Bytes) -> bool {
    while found.has_remaining() {
        let Some(piece) = sent.last_mut() else { return false };
        let length = piece.len().min(found.len());
        if piece.split_to(length) != found.split_to(length) {
            return false;
        }
        if piece.is_empty() {
            sent.pop();
        }
    }
    true
}
