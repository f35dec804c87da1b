//! What this process has seen become durable, so that PostgreSQL's later question is answered at once.
//!
//! An entry says: the file of this name with exactly this identity (inode, size, times, first page) is stored in every
//! repository that has to acknowledge. A file that was recycled or rewritten has another identity and is stored anew, which
//! the repository answers with "same" or "different". Nothing here survives the process, and nothing has to.

use std::collections::{HashMap, VecDeque};

use walpoint_base::WalFileName;
use walpoint_base::socket::FileIdentity;

/// Entries kept: far more than are uploaded ahead of PostgreSQL.
const LIMIT: usize = 1024;

/// The files stored most lately.
///
/// Invariant: `order` holds each name of `files` once, oldest first, and at most [`LIMIT`] of them.
#[derive(Debug, Default)]
pub(crate) struct LastStored {
    files: HashMap<WalFileName, FileIdentity>,
    order: VecDeque<WalFileName>,
    epoch: u64,
}

impl LastStored {
    /// Forgets all that was stored in another epoch: it went into other lineages or repositories.
    pub(crate) fn begin(&mut self, epoch: u64) {
        if self.epoch != epoch {
            *self = Self { epoch, ..Self::default() };
        }
    }

    /// Remembers a file, in place of what was known under its name.
    pub(crate) fn insert(&mut self, name: WalFileName, identity: FileIdentity) {
        if self.files.insert(name, identity).is_some() {
            self.order.retain(|known| *known != name);
        }
        self.order.push_back(name);
        if self.order.len() > LIMIT
            && let Some(oldest) = self.order.pop_front()
        {
            self.files.remove(&oldest);
        }
    }

    /// Whether this very file is stored.
    pub(crate) fn holds(&self, name: WalFileName, identity: &FileIdentity) -> bool {
        self.files.get(&name) == Some(identity)
    }

    /// Whether some file of that name was stored.
    pub(crate) fn knows(&self, name: WalFileName) -> bool {
        self.files.contains_key(&name)
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::{SegmentName, TimelineId};

    use super::*;

    fn name(segment: u32) -> WalFileName {
        WalFileName::Segment(SegmentName { timeline: TimelineId::FIRST, log: 0, segment })
    }

    fn identity(inode: u64) -> FileIdentity {
        FileIdentity { inode, ..FileIdentity::default() }
    }

    #[test]
    fn only_the_same_file_counts() {
        let mut stored = LastStored::default();
        stored.insert(name(1), identity(1));
        assert!(stored.holds(name(1), &identity(1)));
        assert!(!stored.holds(name(1), &identity(2)) && !stored.holds(name(2), &identity(1)));
        stored.insert(name(1), identity(2));
        assert!(stored.holds(name(1), &identity(2)) && !stored.holds(name(1), &identity(1)));
        assert_eq!(stored.order.len(), 1);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut stored = LastStored::default();
        (0..5000).for_each(|n| stored.insert(name(n), identity(7)));
        assert_eq!((stored.files.len(), stored.order.len()), (LIMIT, LIMIT));
        assert!(!stored.holds(name(0), &identity(7)) && stored.holds(name(4999), &identity(7)));
    }
}
