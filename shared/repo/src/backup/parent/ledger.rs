//! Which packs of other backups may be used: those that were found with their size, are not announced or found
//! damaged, and are not to be emptied.

use std::collections::{BTreeMap, BTreeSet};

use super::super::location::{BackupRef, FrameRef, PackNo};
use super::super::pack_table::PackUse;

/// What is known of one pack of another backup.
#[derive(Clone, Copy, Debug)]
struct Row {
    name: (BackupRef, PackNo),
    size: u32,
    units: u32,
    there: bool,
    /// Whether what is still needed of it is stored again.
    emptied: bool,
}

/// All packs that a new backup could use.
#[derive(Default, Debug)]
pub(in crate::backup) struct Ledger {
    /// By name.
    rows: Vec<Row>,
}

impl Ledger {
    /// `used` are the packs as those who use them know them; of one that two know differently nothing is believed. `there`
    /// says whether a pack was found with that size. `emptied` are not to be used though they are there.
    pub(super) fn new(
        used: impl Iterator<Item = PackUse>,
        emptied: &BTreeSet<(BackupRef, PackNo)>,
        there: impl Fn(&PackUse) -> bool,
    ) -> Self {
        let mut rows: BTreeMap<(BackupRef, PackNo), Row> = BTreeMap::new();
        for pack in used {
            let PackUse { size, units, .. } = pack;
            let name = (pack.backup, pack.pack);
            let row = Row { name, size, units, there: there(&pack), emptied: emptied.contains(&name) };
            let known = rows.entry(name).or_insert(row);
            known.there &= known.size == size && known.units == units;
        }
        Self { rows: rows.into_values().collect() }
    }

    fn row(&self, backup: BackupRef, pack: PackNo) -> Option<&Row> {
        let at = self.rows.binary_search_by_key(&(backup, pack), |row| row.name).ok()?;
        self.rows.get(at)
    }

    /// Whether what is in this frame may be pointed to.
    pub(in crate::backup) fn may_use(&self, at: FrameRef) -> bool {
        self.row(at.backup, at.pack).is_some_and(|row| row.there && !row.emptied)
    }

    /// The size of a pack that is there.
    pub(super) fn size_of(&self, at: FrameRef) -> Option<u32> {
        self.row(at.backup, at.pack).filter(|row| row.there).map(|row| row.size)
    }

    /// A pack as a manifest's table names it. Blocks that two files share were counted twice.
    pub(in crate::backup) fn pack(&self, backup: BackupRef, pack: PackNo, live: u32) -> Option<PackUse> {
        let Row { size, units, .. } = *self.row(backup, pack)?;
        Some(PackUse { backup, pack, size, units, live: live.min(units) })
    }
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
    fn what_is_to_be_emptied_is_read_but_not_used() {
        let emptied = BTreeSet::from([(BackupRef(1), PackNo(1))]);
        let ledger = Ledger::new([pack(0, 9, 1), pack(1, 9, 1)].into_iter(), &emptied, |_| true);
        assert!(ledger.may_use(at(0)) && !ledger.may_use(at(1)));
        assert_eq!(ledger.size_of(at(1)), Some(1000));
    }

    #[test]
    fn what_is_missing_or_known_in_two_ways_is_not_used() {
        let ledger = Ledger::new(
            [pack(0, 9, 1), pack(1, 9, 1), pack(1, 9, 5), pack(2, 9, 1), pack(2, 8, 1)].into_iter(),
            &BTreeSet::new(),
            |pack| pack.pack != PackNo(0),
        );
        assert!(!ledger.may_use(at(0)) && ledger.may_use(at(1)) && !ledger.may_use(at(2)));
        assert!(!ledger.may_use(at(7)));
        assert_eq!(ledger.size_of(at(0)), None);
        assert_eq!(ledger.pack(BackupRef(1), PackNo(1), 3), Some(PackUse { live: 3, ..pack(1, 9, 0) }));
    }
}
