//! The files that PostgreSQL handed over, as a repository lists them.

use std::future::ready;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use walpoint_base::{Lsn, SegmentName, WalFileName};
use walpoint_storage::RepoError;
use walpoint_storage::layout::{NameHash, WalEntry};
use walpoint_storage::store::ListedObject;

/// A file that PostgreSQL handed over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Handed {
    pub(super) file: WalFileName,
    pub(super) copy: Copied,
}

/// Which content of a file: of what is not complete, several may exist. In an encrypted repository hashes are its own, so there
/// such a file is copied once more whenever its segment is compared, and found to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    Whole,
    Partial(SegmentName, NameHash),
    /// A segment whose records end there.
    Ended(SegmentName, Lsn, NameHash),
}

impl Handed {
    /// A file of which there is one.
    pub(super) fn of(file: WalFileName) -> Self {
        Self { file, copy: Copied::Whole }
    }

    /// The segment that it is, if it is a whole one.
    pub(super) fn whole(&self) -> Option<SegmentName> {
        match (self.copy, self.file) {
            (Copied::Whole, WalFileName::Segment(segment)) => Some(segment),
            _ => None,
        }
    }

    /// The segment that it is, or is a copy of; `None` for PostgreSQL's other files.
    pub(super) fn segment(&self) -> Option<SegmentName> {
        match (self.copy, self.file) {
            (Copied::Whole, WalFileName::Segment(segment)) => Some(segment),
            (Copied::Partial(segment, _) | Copied::Ended(segment, ..), _) => Some(segment),
            _ => None,
        }
    }

    /// Its place in a listing.
    pub(super) fn order(&self) -> (String, Option<(Lsn, NameHash)>) {
        match self.copy {
            Copied::Whole => (self.file.to_string(), None),
            Copied::Partial(_, hash) => (self.file.to_string(), Some((Lsn(0), hash))),
            Copied::Ended(segment, end, hash) => (format!("{segment}.ended"), Some((end, hash))),
        }
    }
}

/// What PostgreSQL handed over, of a listing.
pub(super) fn files(
    listed: BoxStream<'static, Result<(WalEntry, ListedObject), RepoError>>,
) -> BoxStream<'static, Result<Handed, RepoError>> {
    let file = |entry| match entry {
        WalEntry::File(file) => Some(Handed::of(file)),
        WalEntry::Partial(segment, hash) => {
            Some(Handed { file: WalFileName::Partial(segment), copy: Copied::Partial(segment, hash) })
        }
        WalEntry::Ended(segment, end, hash) => {
            Some(Handed { file: WalFileName::Segment(segment), copy: Copied::Ended(segment, end, hash) })
        }
        _ => None,
    };
    listed.try_filter_map(move |(entry, _)| ready(Ok(file(entry)))).boxed()
}
