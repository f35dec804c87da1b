//! What can go wrong with a repository, split by what a caller does about it.
//!
//! Rules: every variant names the object or setting it is about and carries its source; nothing here is logged, errors
//! are returned. Absence ([`RepoError::NotFound`]) is only ever said of an object, never of a bucket, a directory or a
//! repository: those have [`RepoError::NoRepository`], so that nobody takes a lost mount for the end of WAL.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;

use walpoint_base::{BackupId, Diagnostic, TimelineId};

use crate::ids::ContentHash;
use crate::layout::Key;
use crate::store::Owner;

/// The error beneath: from the object store library or the operating system.
pub type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What every fallible function of this crate returns.
pub type Result<T, E = RepoError> = std::result::Result<T, E>;

/// Why something with a repository failed.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// The store answered that there is no such object. Proof of absence only together with a descriptor read in the
    /// same attempt ([`crate::descriptor::read_descriptor`]).
    #[error("{key} is not in {store}")]
    NotFound {
        /// Which object.
        key: Key,
        /// Where it was looked for.
        store: String,
    },
    /// Another content is already stored under this name. Nothing was changed.
    #[error(
        "{key} is already stored with different content (stored: {theirs}, offered: {ours}); nothing was changed"
    )]
    Conflict {
        /// Which object.
        key: Key,
        /// The hash of the content that was offered.
        ours: ContentHash,
        /// The hash of the content that is stored.
        theirs: ContentHash,
    },
    /// The store refused the credentials, or the credentials may not do this.
    #[error("access to {what} in {store} was denied\nHINT: {}", allowed_by(store))]
    Denied {
        /// The object or operation.
        what: String,
        /// Which store.
        store: String,
        /// The store's answer.
        source: Source,
    },
    /// The store cannot be reached, is overloaded or failed. Trying again later may help.
    #[error("{}", unavailable(store, what, source))]
    Unavailable {
        /// The object or operation.
        what: String,
        /// Which store.
        store: String,
        /// The last failure.
        source: Source,
    },
    /// The store understood and refused: trying again will not help.
    #[error("{store} refused {what}")]
    Rejected {
        /// The object or operation.
        what: String,
        /// Which store.
        store: String,
        /// The store's answer.
        source: Source,
    },
    /// The object is there, but its bytes are not what was written.
    #[error("{key} is damaged: {what}")]
    Corrupt {
        /// Which object.
        key: Key,
        /// What is wrong with it.
        what: String,
        /// What to do, where that is a command.
        remedy: Option<Remedy>,
    },
    /// The bucket or directory is missing, or holds no repository.
    #[error("there is no repository in {store}: {what}")]
    NoRepository {
        /// Which store.
        store: String,
        /// What was found instead, and what to look at.
        what: String,
        /// What to do, where that is a command.
        remedy: Option<Remedy>,
    },
    /// The repository that was opened is gone, or another one is in its place: nothing that was found out about it holds.
    #[error("repository {repository} at {store} is not the one that was opened: {what}")]
    Replaced {
        /// What the configuration calls it.
        repository: String,
        /// Where it was.
        store: String,
        /// What is there now, and what to look at.
        what: String,
        /// What to do, where that is a command.
        remedy: Option<Remedy>,
    },
    /// The repository is of a newer format, or another one than expected.
    #[error("the repository in {store} cannot be used: {what}")]
    Format {
        /// Which store.
        store: String,
        /// What does not fit, and what to do.
        what: String,
    },
    /// The repository is encrypted, and there is no key, a wrong one, or one that cannot be read.
    #[error("the repository in {store} cannot be opened: {what}")]
    Locked {
        /// Which store.
        store: String,
        /// What is wrong with the key, and what to do.
        what: String,
        /// What to do, where that is a command.
        remedy: Option<Remedy>,
    },
    /// What was offered does not belong where it was to be stored.
    #[error("{key} is not stored: {what}")]
    Refused {
        /// Which object.
        key: Key,
        /// What does not fit.
        what: String,
    },
    /// What was to be deleted is protected, or not there. Nothing was changed.
    #[error("{what}{}", listed(obstacles))]
    Protected {
        /// What was to be deleted.
        what: String,
        /// What stands against it, and what overrides each.
        obstacles: Vec<Obstacle>,
        /// What to do, where that is a command.
        remedy: Option<Remedy>,
    },
    /// A setting is missing, wrong or contradicts another.
    #[error("{setting}: {what}")]
    Settings {
        /// The setting's name.
        setting: &'static str,
        /// What is wrong with it, and what to do.
        what: String,
        /// What to do, where that is a command.
        remedy: Option<Remedy>,
    },
    /// A local file that was to be read or written failed.
    #[error("{what}: {source}")]
    Io {
        /// What was done with which file.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A fault in Walpoint itself: a worker ended before its work.
    #[error("{0}")]
    Internal(String),
}

/// What a person can do about an error, where that is a command or an option: the programs put it into words, because they know
/// what theirs are called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// Make a repository there.
    CreateRepository,
    /// If the repository was made anew on purpose, register the cluster there and take a backup.
    RegisterAnew,
    /// Look at the key slots.
    ListKeySlots,
    /// Make an encrypted repository.
    MakeEncrypted,
    /// Look at the backups.
    ListBackups,
    /// Place anew what a hold may have held that cannot be read, then remove it.
    PlaceHoldAnew {
        /// The hold's number.
        number: u64,
        /// What the configuration calls the repository.
        repository: String,
    },
    /// Verify all of the cluster, which announces anew what is damaged.
    VerifyAll,
    /// Say once more which repository was lost, as what was recorded of it cannot be read.
    SupersedeAgain,
    /// Verify the backups that are there: some may be incomplete.
    VerifyBackups,
    /// Delete a backup that cannot be read.
    ExpireBackup(BackupId),
    /// Move a damaged object away that is in the way of a file, which is then stored.
    MoveAway,
    /// Say that a timeline was abandoned, if nothing of it is needed.
    AbandonTimeline(TimelineId),
}

/// Something that a person should know though nothing failed, and what can be done about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remark {
    /// What it is, without a final full stop.
    pub what: String,
    /// What to do, where that is a command.
    pub remedy: Option<Remedy>,
}

impl From<String> for Remark {
    fn from(what: String) -> Self {
        Self { what, remedy: None }
    }
}

/// What stands against deleting something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Obstacle {
    /// What it is.
    pub what: String,
    /// What to do about it.
    pub remedy: Option<Remedy>,
    /// What overrides it.
    pub overridden_by: Override,
}

/// What a person can say to have something deleted all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Override {
    /// Although holds are in force.
    Held,
    /// Although it is the last backup.
    Last,
    /// Although an agent may still work on the cluster.
    InUse,
    /// That the unfinished backup that builds on it is aborted.
    AbortUnfinished,
}

/// What stands against something, behind what that is.
fn listed(obstacles: &[Obstacle]) -> String {
    let all: Vec<&str> = obstacles.iter().map(|obstacle| obstacle.what.as_str()).collect();
    if all.is_empty() { String::new() } else { format!(": {}", all.join("; ")) }
}

impl RepoError {
    /// What to do, where that is a command.
    pub fn remedy(&self) -> Option<&Remedy> {
        match self {
            Self::Corrupt { remedy, .. }
            | Self::NoRepository { remedy, .. }
            | Self::Replaced { remedy, .. }
            | Self::Locked { remedy, .. }
            | Self::Protected { remedy, .. }
            | Self::Settings { remedy, .. } => remedy.as_ref(),
            _ => None,
        }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether the store answered that there is no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// An error about damaged bytes.
    pub fn corrupt(key: &Key, what: impl fmt::Display) -> Self {
        Self::Corrupt { key: key.clone(), what: what.to_string(), remedy: None }
    }

    /// A damaged object stands where one was to be created.
    pub fn in_the_way(key: &Key, what: impl fmt::Display) -> Self {
        let what = format!("{what}\nDETAIL: It prevents storing an object under that name.");
        Self::Corrupt { key: key.clone(), what, remedy: Some(Remedy::MoveAway) }
    }

    /// The cryptographic library failed.
    pub fn sealing(error: crate::object::SealError) -> Self {
        Self::Internal(error.to_string())
    }

    /// An error about a secret that cannot be had, on the way to a key.
    pub fn locked_by(error: walpoint_base::SecretError) -> Self {
        Self::settings("key", error)
    }

    /// An error about a setting.
    pub fn settings(setting: &'static str, what: impl fmt::Display) -> Self {
        Self::Settings { setting, what: what.to_string(), remedy: None }
    }
}

/// Turns "no such object" into `None`.
pub fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where to look: what decides who may do what in a store.
fn allowed_by(store: &str) -> String {
    let path =
        store.strip_prefix("file://").or_else(|| store.starts_with('/').then_some(store)).map(Path::new);
    match path.map(|path| (path, Owner::of(path))) {
        Some((path, Ok(owner))) => owner.advice(path),
        Some((_, Err(_))) => {
            "Check who owns the directory and its files, and which user runs this command.".to_owned()
        }
        None => "Check the credentials and what they are allowed to do.".to_owned(),
    }
}

/// What failed where trying again may help. A filesystem without space has answered.
fn unavailable(store: &str, what: &str, source: &Source) -> String {
    let is_full =
        |error: &io::Error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    let source: &(dyn std::error::Error + 'static) = source.as_ref();
    let mut causes = std::iter::successors(Some(source), |cause| cause.source());
    match causes.any(|cause| cause.downcast_ref().is_some_and(is_full)) {
        true => format!("could not write {what} to {store}"),
        false => format!("{store} did not answer for {what}"),
    }
}

/// An error and what is beneath it: the messages in one line, each detail and each hint in a line of its own.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut all = Diagnostic::new(error.to_string());
    let mut source = error.source();
    while let Some(cause) = source {
        all.add_cause(&Diagnostic::new(cause.to_string()));
        source = cause.source();
    }
    all.to_string()
}
