//! The key slots of one repository.
//!
//! Numbers are claimed by creating the next one. Nobody deletes the last slot by accident: a removal names another slot that
//! was opened just before, looks for it again afterwards, and puts the removed one back if that one has gone meanwhile.

use std::sync::Arc;

use walpoint_base::Diagnostic;

use super::slot::{NewSlot, Slot};
use super::source::KeySource;
use crate::descriptor::{Descriptor, read_descriptor};
use crate::document::SealedDocument;
use crate::error::{Remedy, RepoError, Result, found};
use crate::layout;
use crate::object::{MasterKey, RepositoryId, Salt};
use crate::store::{Creation, Store, StoreSettings};

/// More slots are a mistake, or somebody's wish to keep readers busy.
pub const MAX_SLOTS: usize = 32;

/// The slots of a repository.
#[derive(Clone, Debug)]
pub struct KeySlots {
    store: Store,
    descriptor: Descriptor,
}

/// A slot as a listing found it.
#[derive(Debug)]
pub struct ListedSlot {
    /// Its number.
    pub number: u32,
    /// What it holds, or why it cannot be read.
    pub slot: Result<Slot>,
}

/// A slot that was opened.
#[derive(Clone, Debug)]
pub struct OpenedSlot {
    /// Its number.
    pub slot: u32,
    /// The key in it, proven to be the repository's.
    pub master: MasterKey,
}

/// What became of a removal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// The slot is gone.
    Removed,
    /// The slot that was to remain was removed by somebody else at the same moment; this one was put back.
    PutBack,
}

impl KeySlots {
    /// Those of the repository in the store, which has that descriptor.
    pub fn new(store: Store, descriptor: Descriptor) -> Self {
        Self { store, descriptor }
    }

    /// Those of the repository that the settings name, for which no key is needed; `None` if it is not encrypted.
    pub async fn at(settings: &StoreSettings) -> Result<Option<Self>> {
        let store = Store::open(settings).await?;
        let descriptor = read_descriptor(&store).await?;
        Ok(descriptor.encryption.is_some().then(|| Self::new(store, descriptor)))
    }

    /// Whose they are.
    pub fn repository(&self) -> RepositoryId {
        self.descriptor.id
    }

    /// All of them, by number.
    pub async fn list(&self) -> Result<Vec<ListedSlot>> {
        let mut slots = Vec::new();
        for number in self.numbers().await? {
            match found(self.store.get(&layout::key_slot(number)).await) {
                Ok(Some(bytes)) => slots.push(ListedSlot { number, slot: Slot::parse(number, &bytes) }),
                // Removed since it was listed.
                Ok(None) => {}
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => slots.push(ListedSlot { number, slot: Err(error) }),
            }
        }
        Ok(slots)
    }

    async fn numbers(&self) -> Result<Vec<u32>> {
        let prefix = layout::key_slots();
        let listed = self.store.list_all(&prefix).await?;
        let number = |name: &str| name.parse::<u32>().ok().filter(|number| number.to_string() == name);
        let mut numbers: Vec<u32> =
            listed.iter().filter_map(|entry| number(entry.key.below(&prefix)?)).collect();
        numbers.sort_unstable();
        match numbers.len() {
            0..=MAX_SLOTS => Ok(numbers),
            many => {
                Err(self
                    .locked(format!("it has {many} key slots, and no more than {MAX_SLOTS} are expected")))
            }
        }
    }

    /// Opens the first slot that the secret opens.
    pub async fn open(&self, source: &KeySource) -> Result<OpenedSlot> {
        let (mut tried, mut problems) = (0, Vec::new());
        let mut secret = None;
        for listed in self.list().await? {
            let slot = match listed.slot {
                Ok(slot) => slot,
                Err(error) => {
                    problems.push(error.to_string());
                    continue;
                }
            };
            if slot.repository != self.descriptor.id || !source.fits(&slot.kind) {
                continue;
            }
            tried += 1;
            let read = match &secret {
                Some(secret) => Arc::clone(secret),
                None => {
                    let source = source.clone();
                    let read = blocking(move || source.read()).await?;
                    let read = Arc::new(read.map_err(|error| self.locked(error))?);
                    Arc::clone(secret.insert(read))
                }
            };
            let descriptor = self.descriptor.clone();
            let number = slot.number;
            let opened = blocking(move || {
                let secret = read.of_slot(&slot.kind, slot.salt).map_err(RepoError::locked_by)?;
                let master = slot.unwrap(&secret)?;
                // A slot of another life of this repository holds another key.
                Ok(match master {
                    Some(master) if descriptor.is_key(&master)? => Some(master),
                    _ => None,
                })
            });
            match opened.await? {
                Ok(Some(master)) => return Ok(OpenedSlot { slot: number, master }),
                Ok(None) => {}
                Err(error @ RepoError::Internal(_)) => return Err(error),
                Err(error) => problems.push(format!("slot {number}: {error}")),
            }
        }
        // Why a slot could not be tried is a detail of why none opens.
        let explained = |what: String| {
            let unread = problems.iter().map(Diagnostic::new);
            unread
                .fold(Diagnostic::new(what), |all, problem| {
                    all.detail(format!("Not tried: {}.", problem.message()))
                })
                .to_string()
        };
        if tried == 0 {
            let what = explained(format!("it has no key slot that the {source} could open"));
            let (store, remedy) = (self.store.name().to_owned(), Some(Remedy::ListKeySlots));
            return Err(RepoError::Locked { store, what, remedy });
        }
        Err(self.locked(explained(match tried {
            1 => format!("the {source} does not open its key slot: it is wrong, or of another repository"),
            _ => format!(
                "the {source} opens none of the {tried} key slots of its kind: it is wrong, or of another repository"
            ),
        })))
    }

    /// Makes a slot that the secret opens, and proves that it does.
    pub async fn add(&self, master: &MasterKey, source: &KeySource, comment: &str) -> Result<u32> {
        let mut number = self.numbers().await?.last().map_or(0, |last| last.saturating_add(1));
        let salt = Salt::random().map_err(RepoError::sealing)?;
        let wanted = source.clone();
        let (kind, secret) = blocking(move || wanted.secret_for_new(salt)).await??;
        loop {
            let new = NewSlot { number, repository: self.descriptor.id, comment, kind: kind.clone(), salt };
            let document = new.wrap(&secret, master)?;
            match self.store.create_document(&document).await {
                Ok(Creation::New | Creation::Same) => break,
                // Somebody else makes one at the same moment.
                Err(RepoError::Conflict { .. }) if self.numbers().await?.len() < MAX_SLOTS => {
                    number = number.saturating_add(1);
                }
                Err(error) => return Err(error),
            }
        }
        match self.proves(number, source).await {
            Ok(true) => Ok(number),
            // It would promise what it does not keep.
            Ok(false) => {
                self.store.delete(&layout::key_slot(number)).await?;
                Err(self.locked(format!(
                    "the {source} does not open the slot that was created with it; the slot was removed \
                     again\nDETAIL: The secret is different each time, or wrap_command and unwrap_command \
                     do not match."
                )))
            }
            Err(error) => {
                self.store.delete(&layout::key_slot(number)).await?;
                Err(error)
            }
        }
    }

    /// Whether the secret, read anew, opens that slot as it is in the store.
    pub async fn proves(&self, number: u32, source: &KeySource) -> Result<bool> {
        let bytes = self.store.get(&layout::key_slot(number)).await?;
        let slot = Slot::parse(number, &bytes)?;
        if slot.repository != self.descriptor.id || !source.fits(&slot.kind) {
            return Ok(false);
        }
        let source = source.clone();
        let master = blocking(move || {
            let secret = source.read().map_err(RepoError::locked_by)?;
            let secret = secret.of_slot(&slot.kind, slot.salt).map_err(RepoError::locked_by)?;
            slot.unwrap(&secret)
        });
        match master.await?? {
            Some(master) => self.descriptor.is_key(&master),
            None => Ok(false),
        }
    }

    /// Deletes a slot. `remaining` is another one that was opened just before; `None` if nobody could prove one, and the
    /// caller was told what that means.
    pub async fn remove(&self, number: u32, remaining: Option<u32>) -> Result<Removal> {
        let key = layout::key_slot(number);
        let bytes = self.store.get(&key).await?;
        if remaining == Some(number) {
            return Err(RepoError::Refused { key, what: "it is the slot that was to remain".to_owned() });
        }
        self.store.delete(&key).await?;
        let Some(remaining) = remaining else { return Ok(Removal::Removed) };
        if self.store.head(&layout::key_slot(remaining)).await?.is_some() {
            return Ok(Removal::Removed);
        }
        let text = std::str::from_utf8(&bytes).ok().and_then(crate::document::written_check);
        let check = text.ok_or_else(|| RepoError::corrupt(&key, "it does not end with a check"))?;
        self.store.create_document(&SealedDocument { key, bytes, check }).await?;
        Ok(Removal::PutBack)
    }

    fn locked(&self, what: impl std::fmt::Display) -> RepoError {
        RepoError::Locked { store: self.store.name().to_owned(), what: what.to_string(), remedy: None }
    }
}

/// Reads secrets on a thread of its own. Not one of those for the processor: a command may take half a minute, and whoever
/// archives to another repository must not wait for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let ended =
        |_| RepoError::Internal("a thread that read a secret ended before its work was done".to_owned());
    tokio::task::spawn_blocking(work).await.map_err(ended)
}
