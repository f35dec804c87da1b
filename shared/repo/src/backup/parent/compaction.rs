//! Which packs of the parent the new backup empties, by storing again what it still needs of them.
//!
//! A pack stays in the repository as long as a kept backup uses anything in it, so packs of old backups come to hold mostly
//! what nothing uses. They are not rewritten: a new backup leaves the emptiest of them, and they go with the last backup that
//! uses them. What to empty is decided before anything is read: every file then leaves the same packs, so they do become empty.

use std::collections::{BTreeMap, BTreeSet};

use super::super::location::{BackupRef, PackNo};
use super::super::pack_table::PackUse;

/// What decides how much a backup stores again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changes {
    /// Bytes of WAL since the parent, by position: about what changed, and nothing if nothing did. Segments that
    /// `archive_timeout` ends early count in full.
    pub(super) wal: u64,
    /// Bytes of a block.
    pub(super) block: u64,
}

/// Packs with more in use than this are never emptied: it would cost more than it brings.
const SPARSE: (u64, u64) = (3, 4);
/// What a backup uses should hold, with what it adds itself, at most this many times what is in use of it. A restore reads
/// that much more than of a fresh backup, and a repository that keeps one backup holds that much more. Blocks of a pack count
/// alike, though those in use often compress better than those that are not: the true factor is somewhat higher.
const HELD: (u64, u64) = (5, 4);
/// At most so many times the WAL is stored again, before compression: a backup of an idle cluster stays small.
const AGAIN: u64 = 3;
/// What the backup adds itself is reckoned as at most this share of what is in use, or everything would be emptied after a
/// great change.
const ADDED: u64 = 5;

/// The packs to empty, of those that the parent uses: the emptiest ones, until what is left is in use enough.
pub(super) fn emptied(packs: &[PackUse], changes: Changes) -> BTreeSet<(BackupRef, PackNo)> {
    let held: u64 = packs.iter().map(|pack| u64::from(pack.size)).sum();
    let in_use: u64 = packs.iter().map(in_use_of).sum();
    let added = changes.wal.min(usually_added(packs)).min(in_use / ADDED);
    let goal = part(in_use, HELD.0, HELD.1).saturating_sub(added);

    let mut sparse: Vec<&PackUse> = packs.iter().filter(|pack| is_sparse(pack)).collect();
    sparse.sort_by_key(|pack| part(u64::from(pack.live), 1 << 32, u64::from(pack.units)));
    let (mut left, mut again) = (held, 0u64);
    let mut emptied = BTreeSet::new();
    for pack in sparse {
        again = again.saturating_add(u64::from(pack.live).saturating_mul(changes.block));
        if left <= goal || again > changes.wal.saturating_mul(AGAIN) {
            break;
        }
        left = left.saturating_sub(u64::from(pack.size).saturating_sub(in_use_of(pack)));
        emptied.insert((pack.backup, pack.pack));
    }
    emptied
}

/// What a backup stored that changed much: as much as the second largest of them, because the largest may have been the
/// first one, which stored everything.
fn usually_added(packs: &[PackUse]) -> u64 {
    let mut stored: BTreeMap<BackupRef, u64> = BTreeMap::new();
    for pack in packs {
        *stored.entry(pack.backup).or_default() += u64::from(pack.size);
    }
    let mut stored: Vec<u64> = stored.into_values().collect();
    stored.sort_unstable();
    stored.iter().rev().nth(1).copied().unwrap_or(0)
}

/// `of` times `times` divided by `by`, without an overflow on the way.
fn part(of: u64, times: u64, by: u64) -> u64 {
    let all = u128::from(of).saturating_mul(u128::from(times)) / u128::from(by.max(1));
    u64::try_from(all).unwrap_or(u64::MAX)
}

/// Bytes of the object that hold what is in use.
fn in_use_of(pack: &PackUse) -> u64 {
    part(u64::from(pack.size), u64::from(pack.live), u64::from(pack.units))
}

fn is_sparse(pack: &PackUse) -> bool {
    u64::from(pack.live) * SPARSE.1 < u64::from(pack.units) * SPARSE.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = 8192;

    fn pack(pack: u32, units: u32, live: u32) -> PackUse {
        PackUse { backup: BackupRef(1), pack: PackNo(pack), size: units * 4096, units, live }
    }

    fn changes(wal: u64) -> Changes {
        Changes { wal, block: BLOCK }
    }

    fn numbers(packs: &[PackUse], changes: Changes) -> Vec<u32> {
        emptied(packs, changes).into_iter().map(|(_, pack)| pack.0).collect()
    }

    #[test]
    fn the_emptiest_go_first_until_enough_is_in_use() {
        // 300 of 500 in use: 125 have to go for 375.
        let packs =
            [pack(0, 100, 100), pack(1, 100, 60), pack(2, 100, 30), pack(3, 100, 20), pack(4, 100, 90)];
        assert_eq!(numbers(&packs, changes(u64::MAX)), [2, 3]);
        // Another backup added a pack, and as much is to come.
        let more = [&packs[..], &[PackUse { backup: BackupRef(9), ..pack(0, 60, 60) }]].concat();
        assert_eq!(
            numbers(&more, changes(u64::MAX)),
            [1, 2, 3],
            "560 held, 360 in use: 450 - 60 is the goal"
        );
        // None is so empty that it would be worth it.
        let full = [pack(0, 100, 78), pack(1, 100, 76), pack(2, 100, 75)];
        assert!(numbers(&full, changes(u64::MAX)).is_empty());
        assert!(numbers(&[], changes(u64::MAX)).is_empty());
    }

    #[test]
    fn what_is_stored_again_is_bounded_by_the_wal() {
        let packs = [pack(0, 100, 10), pack(1, 100, 20), pack(2, 100, 100)];
        assert!(numbers(&packs, changes(0)).is_empty(), "idle");
        assert!(numbers(&packs, changes((10 * BLOCK - 1) / AGAIN)).is_empty());
        assert_eq!(numbers(&packs, changes((10 * BLOCK).div_ceil(AGAIN))), [0]);
        assert_eq!(numbers(&packs, changes((30 * BLOCK).div_ceil(AGAIN))), [0, 1]);
    }

    proptest! {
        #[test]
        fn enough_is_in_use_afterwards(lives in prop::collection::vec((1u32..2000, 0u32..=100), 0..60), wal: u32) {
            let packs: Vec<PackUse> =
                lives.iter().zip(0u32..).map(|((units, share), n)| pack(n, *units, units * share / 100)).collect();
            let wal = u64::from(wal) % (200 * 2000 * BLOCK);
            let gone = emptied(&packs, changes(wal));
            let (out, stay): (Vec<&PackUse>, Vec<&PackUse>) =
                packs.iter().partition(|pack| gone.contains(&(pack.backup, pack.pack)));
            let again: u64 = out.iter().map(|pack| u64::from(pack.live) * BLOCK).sum();
            prop_assert!(again <= wal * AGAIN && out.iter().all(|pack| is_sparse(pack)));
            let in_use: u64 = packs.iter().map(in_use_of).sum();
            let held = stay.iter().map(|pack| u64::from(pack.size)).sum::<u64>() + out.iter().map(|p| in_use_of(p)).sum::<u64>();
            let reached = held <= part(in_use, HELD.0, HELD.1);
            let sparse = stay.iter().filter(|pack| is_sparse(pack));
            let next = sparse.min_by_key(|pack| part(u64::from(pack.live), 1 << 32, u64::from(pack.units)));
            let dear = |pack: &&&PackUse| again + u64::from(pack.live) * BLOCK > wal * AGAIN;
            prop_assert!(reached || next.as_ref().is_none_or(dear));
        }
    }
}
