//! The master key for whoever opens a repository: found once in a process, however often the repository is opened.
//!
//! A passphrase costs a tenth of a second and 32 MiB, a key management service a request. What was found stays in memory as
//! long as the process; a slot that is removed meanwhile locks out the next process, not this one.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::slots::{KeySlots, OpenedSlot};
use super::source::KeySource;
use crate::descriptor::Descriptor;
use crate::error::{RepoError, Result};
use crate::object::RepositoryId;
use crate::store::Store;
use crate::store::settings::EncryptionSettings;

/// One for each repository and secret that this process has seen.
static LOCKS: Mutex<Vec<Arc<Lock>>> = Mutex::new(Vec::new());

/// What is found once: several who open a repository at the same moment stretch its passphrase once, and nobody waits for
/// the secret of another repository.
#[derive(Debug)]
struct Lock {
    repository: RepositoryId,
    source: KeySource,
    opened: OnceCell<OpenedSlot>,
}

impl Lock {
    fn of(repository: RepositoryId, source: &KeySource) -> Arc<Self> {
        // Each change is a single push, so a panic elsewhere leaves the list whole.
        let mut locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
        let known = locks.iter().find(|lock| lock.repository == repository && lock.source == *source);
        if let Some(known) = known {
            return Arc::clone(known);
        }
        let new = Arc::new(Self { repository, source: source.clone(), opened: OnceCell::new() });
        locks.push(Arc::clone(&new));
        new
    }
}

/// An open lock: what opened it, and what was in it.
#[derive(Clone, Debug)]
pub struct Unlocked {
    /// Where the secret came from.
    pub source: KeySource,
    /// The slot and the key.
    pub opened: OpenedSlot,
}

/// The key of the repository with that descriptor, as the settings or else the environment say; `None` if it has none.
pub async fn unlock(
    store: &Store,
    descriptor: &Descriptor,
    settings: &EncryptionSettings,
) -> Result<Option<Unlocked>> {
    if descriptor.encryption.is_none() {
        return match KeySource::of(settings)? {
            None => Ok(None),
            // Whoever can write to the store could have put it there, to be believed or to be archived to.
            Some(source) => Err(RepoError::Format {
                store: store.name().to_owned(),
                what: format!(
                    "it is not encrypted, and a key is configured for it ({source})\nDETAIL: It is another repository than \
                     the one that was meant, or was created without encryption."
                ),
            }),
        };
    }
    let source = KeySource::configured(settings)?.ok_or_else(|| RepoError::Locked {
        store: store.name().to_owned(),
        what: "it is encrypted and no key is configured\nHINT: Set key_file, passphrase_file or unwrap_command in its table, \
               or WALPOINT_KEY_FILE in the environment."
            .to_owned(),
        remedy: None,
    })?;
    let lock = Lock::of(descriptor.id, &source);
    let slots = KeySlots::new(store.clone(), descriptor.clone());
    let opened = lock.opened.get_or_try_init(|| slots.open(&source)).await?;
    // The same id with another check is another repository's descriptor, or one that was tampered with.
    let opened = match descriptor.is_key(&opened.master)? {
        true => opened.clone(),
        false => slots.open(&source).await?,
    };
    Ok(Some(Unlocked { source, opened }))
}
