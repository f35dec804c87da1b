//! Which backups a new one should build on, from a listing alone.

use walpoint_base::BackupId;

use super::super::catalog::{ListedBackup, ListedState};

/// Finished backups that are named: the first that can be used is the parent.
const CANDIDATES: usize = 3;
/// At most so many unfinished backups are resumed.
const RESUMED: usize = 8;

/// What a new backup should build on.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ReusableBackups {
    /// Finished backups, the best first.
    pub parents: Vec<BackupId>,
    /// Unfinished ones that stored something, oldest first.
    pub resumed: Vec<BackupId>,
}

impl ReusableBackups {
    /// The newest finished backups, and all unfinished ones of late. New is what the store received last: its clock counts,
    /// so it does not matter if that of a server was changed.
    pub fn choose(listed: &[ListedBackup]) -> Self {
        let mut finished = Vec::new();
        let mut unfinished = Vec::new();
        for backup in listed {
            match (backup.state, backup.begun) {
                (ListedState::Finished(stored), _) => finished.push((stored, backup.id)),
                (ListedState::Unfinished, Some(begun)) if backup.progress > 0 => {
                    unfinished.push((begun, backup.id));
                }
                _ => {}
            }
        }
        finished.sort_unstable_by(|a, b| b.cmp(a));
        unfinished.sort_unstable();
        let of_late = unfinished.len().saturating_sub(RESUMED);
        Self {
            parents: finished.into_iter().take(CANDIDATES).map(|(_, id)| id).collect(),
            resumed: unfinished.into_iter().skip(of_late).map(|(_, id)| id).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::super::blocks::tests::id;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn listed(n: u32, begun: i64, progress: u32, state: ListedState) -> ListedBackup {
        ListedBackup { id: id(n), begun: Some(at(begun)), progress, published: false, state }
    }

    #[test]
    fn the_newest_by_the_stores_clock() {
        use ListedState::{Aborted, Finished, Unfinished};
        let all = [
            listed(9, 1, 0, Finished(at(10))),
            listed(1, 2, 0, Finished(at(50))),
            listed(2, 3, 4, Finished(at(30))),
            listed(3, 4, 4, Finished(at(20))),
            listed(4, 70, 1, Unfinished),
            listed(5, 60, 2, Unfinished),
            listed(6, 61, 0, Unfinished),
            listed(7, 62, 3, Aborted(at(63))),
            ListedBackup { begun: None, ..listed(8, 0, 3, Unfinished) },
        ];
        let ReusableBackups { parents, resumed } = ReusableBackups::choose(&all);
        assert_eq!(parents, [id(1), id(2), id(3)]);
        assert_eq!(resumed, [id(5), id(4)], "the newest last; one that stored nothing is of no use");
        assert_eq!(ReusableBackups::choose(&[]), ReusableBackups::default());
        let many: Vec<ListedBackup> = (0..20).map(|n| listed(n, i64::from(n), 1, Unfinished)).collect();
        assert_eq!(ReusableBackups::choose(&many).resumed.len(), RESUMED);
        assert_eq!(ReusableBackups::choose(&many).resumed.last(), Some(&id(19)));
    }
}
