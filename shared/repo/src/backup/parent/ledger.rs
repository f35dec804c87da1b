//! Which packs of other backups may be used, and which of them the new backup should empty.
//!
//! A pack may be used if it was found with its size and is not condemned. **Compaction:** packs of which the parent uses
//! less than half are emptied, the emptiest first, by storing again what the new backup still needs of them. How many is
//! decided as the backup goes on: together they hold at most a fifth of what changed so far.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::location::{BackupRef, FrameRef, PackNo};
use super::super::pack_table::PackUse;

/// Bytes stored again for compaction are at most the changed bytes divided by this.
const SHARE: u64 = 5;

/// What is known of one pack of another backup.
#[derive(Clone, Copy, Debug)]
struct Row {
    name: (BackupRef, PackNo),
    size: u32,
    units: u32,
    there: bool,
    /// If it should be emptied: the bytes in use of this pack and of those that are emptier.
    emptied_at: Option<u64>,
}

/// All packs that a new backup could use.
#[derive(Default, Debug)]
pub(in crate::backup) struct Ledger {
    /// By name.
    rows: Vec<Row>,
    /// Bytes that were found to have changed.
    changed: AtomicU64,
}

impl Ledger {
    /// `used` are the packs as those who use them know them; of one that two know differently nothing is believed. `there`
    /// says whether a pack was found with that size. `parent` are those that the parent uses, with `block` bytes in a unit.
    pub(super) fn new(
        used: impl Iterator<Item = PackUse>,
        parent: &[PackUse],
        block: u64,
        there: impl Fn(&PackUse) -> bool,
    ) -> Self {
        let mut rows: BTreeMap<(BackupRef, PackNo), Row> = BTreeMap::new();
        for pack in used {
            let PackUse { size, units, .. } = pack;
            let name = (pack.backup, pack.pack);
            let row = Row { name, size, units, there: there(&pack), emptied_at: None };
            let known = rows.entry(name).or_insert(row);
            known.there &= known.size == size && known.units == units;
        }
        let mut sparse: Vec<&PackUse> = parent.iter().filter(|pack| is_sparse(pack)).collect();
        sparse.sort_by_key(|pack| (u64::from(pack.live) << 32) / u64::from(pack.units.max(1)));
        let mut sum = 0u64;
        for pack in sparse {
            sum = sum.saturating_add(u64::from(pack.live).saturating_mul(block));
            if let Some(row) = rows.get_mut(&(pack.backup, pack.pack)) {
                row.emptied_at = Some(sum);
            }
        }
        Self { rows: rows.into_values().collect(), changed: AtomicU64::new(0) }
    }

    fn row(&self, backup: BackupRef, pack: PackNo) -> Option<&Row> {
        let at = self.rows.binary_search_by_key(&(backup, pack), |row| row.name).ok()?;
        self.rows.get(at)
    }

    /// Whether what is in this frame may be pointed to.
    pub(in crate::backup) fn may_use(&self, at: FrameRef) -> bool {
        self.row(at.backup, at.pack).is_some_and(|row| {
            let fifth = || self.changed.load(Ordering::Relaxed) / SHARE;
            row.there && row.emptied_at.is_none_or(|sum| sum > fifth())
        })
    }

    /// The size of a pack that is there.
    pub(super) fn size_of(&self, at: FrameRef) -> Option<u32> {
        self.row(at.backup, at.pack).filter(|row| row.there).map(|row| row.size)
    }

    /// Counts bytes of blocks that no other backup had at their place.
    pub(in crate::backup) fn count_changed(&self, bytes: usize) {
        if !self.rows.is_empty() {
            self.changed.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// A pack as a manifest's table names it. Blocks that two files share were counted twice.
    pub(in crate::backup) fn pack(&self, backup: BackupRef, pack: PackNo, live: u32) -> Option<PackUse> {
        let Row { size, units, .. } = *self.row(backup, pack)?;
        Some(PackUse { backup, pack, size, units, live: live.min(units) })
    }
}

/// Less than half of it is in use.
fn is_sparse(pack: &PackUse) -> bool {
    u64::from(pack.live) * 2 < u64::from(pack.units)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(pack: u32, units: u32, live: u32) -> PackUse {
        PackUse { backup: BackupRef(1), pack: PackNo(pack), size: 1000, units, live }
    }

    fn at(pack: u32) -> FrameRef {
        FrameRef { backup: BackupRef(1), pack: PackNo(pack), frame: 1 }
    }

    #[test]
    fn sparse_packs_are_emptied_one_after_the_other_as_far_as_changes_allow() {
        let parent = [pack(0, 100, 100), pack(1, 100, 49), pack(2, 100, 10), pack(3, 100, 50)];
        let ledger = Ledger::new(parent.into_iter(), &parent, 8192, |_| true);
        let used = |ledger: &Ledger| (0..5).filter(|n| ledger.may_use(at(*n))).collect::<Vec<_>>();
        assert_eq!(used(&ledger), [0, 1, 2, 3], "nothing changed");
        ledger.count_changed(5 * 10 * 8192 - 1);
        assert_eq!(used(&ledger), [0, 1, 2, 3]);
        ledger.count_changed(1);
        assert_eq!(used(&ledger), [0, 1, 3], "the emptiest one is worth a fifth of that");
        ledger.count_changed(5 * 49 * 8192);
        assert_eq!(used(&ledger), [0, 3], "half in use is not less than half");
    }

    #[test]
    fn what_is_missing_or_known_in_two_ways_is_not_used() {
        let ledger = Ledger::new(
            [pack(0, 9, 1), pack(1, 9, 1), pack(1, 9, 5), pack(2, 9, 1), pack(2, 8, 1)].into_iter(),
            &[],
            8192,
            |pack| pack.pack != PackNo(0),
        );
        assert!(!ledger.may_use(at(0)) && ledger.may_use(at(1)) && !ledger.may_use(at(2)));
        assert!(!ledger.may_use(at(7)));
        assert_eq!(ledger.size_of(at(0)), None);
        assert_eq!(ledger.pack(BackupRef(1), PackNo(1), 3), Some(PackUse { live: 3, ..pack(1, 9, 0) }));
    }
}
