//! Every block of every backup: each frame is opened and checked, each block held against the hash in the manifest's
//! tables, each page against its checksum.
//!
//! Backups share packs. A block is read with the first of the backups that refer to it, and which blocks of shared packs were
//! read is remembered: so nothing is left out, and no stored block is read twice, whether its writer is still there or not.
//! Only a page with a wrong checksum that is nothing wrong in one backup, because it is newer than that and replay repairs it
//! or because that backup reports it, is judged again with the next backup that has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use walpoint_base::{BackupId, Lsn};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::{ClusterPaths, Key};

use super::report::{FindingKind, VerifyFinding};
use super::{ContentCheck, Run};
use crate::backup::{
    BackupDescription, BackupReader, BlockRef, ManifestState, PackUnit, ReadWindow, WindowLimits,
};

/// Units on their way: at most 8 MiB each, mostly a third.
const AT_ONCE: usize = 4;

/// Blocks of a window: what is remembered of it is some megabytes.
pub(super) const WINDOW: u32 = 1 << 18;

/// Memory for which blocks were read of packs of which not all were: enough for some hundred gigabytes as they are stored. What
/// lies beyond is read with every backup that refers to it.
const MOST_BYTES: usize = 48 << 20;

/// Blocks that are judged with each backup: some megabytes.
const MOST_AGAIN: usize = 1 << 17;

/// Wrong pages of a backup that are told.
const PAGES: usize = 100;

/// A page with a wrong checksum.
struct BadPage {
    path: String,
    block: u64,
    stored: u16,
    computed: u16,
}

impl Run<'_> {
    /// Goes through the backups, oldest first. Which blocks of packs were read.
    pub(super) async fn blocks(&mut self) -> Result<Covered> {
        let mut covered = Covered::default();
        for id in self.ids.clone() {
            let reader = match self.backups.open(id).await {
                Ok(reader) => reader,
                Err(error) if error.is_not_found() => {
                    self.gone.insert(id);
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.backup(id, &reader, &mut covered).await?;
        }
        Ok(covered)
    }

    /// Reads what a backup refers to and is not covered, as far as its tables lead to it.
    pub(super) async fn backup(
        &mut self,
        id: BackupId,
        reader: &BackupReader,
        covered: &mut Covered,
    ) -> Result<()> {
        let limits = WindowLimits { blocks: WINDOW, ..WindowLimits::default() };
        let mut windows = reader.windows(limits);
        let owners = &reader.manifest().backups;
        loop {
            let window = match windows.next().await {
                Ok(Some(window)) => Arc::new(window),
                Ok(None) => return Ok(()),
                // The tables themselves are damaged: where the rest of the files are is not known.
                Err(RepoError::NotFound { .. }) if self.is_gone(id).await? => return Ok(()),
                Err(error) => return self.unreadable(id, error),
            };
            let units = window.units_where(|_, _, _, at| {
                let Some(owner) = owners.get(usize::from(at.frame.backup.0)) else { return true };
                let pack = (*owner, at.frame.pack.0);
                // Noted in any case: what no backup uses of the pack is read at the end.
                let units = reader.manifest().packs.get(at.frame).map_or(0, |pack| pack.units);
                let is_new = covered.is_new(pack, units, at);
                is_new || self.packs.get(&pack).is_none_or(|(_, users)| users.len() < 2)
            });
            let known = Arc::new(known_bad(reader));
            let check = Arc::clone(&self.check);
            let results = stream::iter(units).map(|unit| {
                let (reader, window, known, check) =
                    (reader.clone(), Arc::clone(&window), Arc::clone(&known), Arc::clone(&check));
                async move {
                    let (backup, pack) = unit.pack();
                    let at = (reader.manifest().backups.get(usize::from(backup.0)).copied(), pack.0);
                    (at, unit_of(reader, unit, window, known, check).await)
                }
            });
            let mut results = results.buffer_unordered(AT_ONCE);
            let (mut pages, mut excused) = (Vec::new(), BTreeSet::new());
            while let Some(((owner, pack), result)) = results.next().await {
                match result {
                    Ok(checked) => {
                        self.report.verified_bytes += checked.bytes;
                        self.report.known_damaged_page_count += checked.known;
                        pages.extend(checked.bad);
                        excused.extend(checked.excused);
                    }
                    Err(RepoError::NotFound { .. }) if self.is_gone(id).await? => {
                        // What others share of the window is read with them.
                        covered.forget_parts();
                        self.bad_pages(id, pages);
                        return Ok(());
                    }
                    Err(error @ (RepoError::Corrupt { .. } | RepoError::NotFound { .. })) => match owner {
                        Some(owner) => self.bad_pack(owner, pack, FindingKind::Damaged, error.to_string()),
                        None => self.unreadable(id, error)?,
                    },
                    Err(error) => return Err(error),
                }
            }
            drop(results);
            covered.window_read();
            if !excused.is_empty() {
                window.units_where(|part, number, _, at| {
                    if let Some(owner) = owners.get(usize::from(at.frame.backup.0))
                        && excused.contains(&(part, number))
                    {
                        covered.judge_again((*owner, at.frame.pack.0), at);
                    }
                    false
                });
            }
            self.bad_pages(id, pages);
        }
    }

    fn bad_pages(&mut self, id: BackupId, pages: Vec<BadPage>) {
        for page in pages.into_iter().take(PAGES) {
            let BadPage { path, block, stored, computed } = page;
            self.report.finding(VerifyFinding {
                kind: FindingKind::Page,
                object: format!("{path} block {block} in backup {id}"),
                what: format!("checksum {stored:04X} in the page, {computed:04X} of its content: it was damaged before it was \
                               stored"),
                backups: vec![id.to_string()],
                moments: None,
                remedy: "Restore the table from an older backup, or rebuild what can be rebuilt (REINDEX).".into(),
            });
        }
    }

    /// Whether what a backup uses may be missing because the backup itself was deleted since the run began.
    pub(super) async fn is_gone(&mut self, id: BackupId) -> Result<bool> {
        if self.gone.contains(&id) {
            return Ok(true);
        }
        let is_gone = match self.backups.standing(id).await {
            Ok(standing) => !matches!(standing, ManifestState::Finished(_)),
            Err(RepoError::Corrupt { .. }) => false,
            Err(error) => return Err(error),
        };
        if is_gone {
            self.gone.insert(id);
        }
        Ok(is_gone)
    }

    /// Whether a backup that uses a pack is still there: `expire` may have deleted all of them since they were listed.
    pub(super) async fn is_still_used(&mut self, owner: BackupId, pack: u32) -> Result<bool> {
        let users = self.packs.get(&(owner, pack)).map(|(_, users)| users.clone()).unwrap_or_default();
        let users: Vec<BackupId> =
            users.iter().filter_map(|at| self.ids.get(usize::from(*at)).copied()).collect();
        for id in users {
            if !self.is_gone(id).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What a backup's tables lead to cannot be read.
    fn unreadable(&mut self, id: BackupId, error: RepoError) -> Result<()> {
        let key: Key = match &error {
            RepoError::Corrupt { key, .. } | RepoError::NotFound { key, .. } => key.clone(),
            _ => return Err(error),
        };
        if let Some(walpoint_storage::layout::ClusterObject::Pack(owner, n)) =
            ClusterPaths::new(self.cluster).parse(&key)
        {
            self.bad_pack(owner, n, FindingKind::Damaged, error.to_string());
            self.report.notes.push(format!("the rest of backup {id}, after {key}, could not be read"));
            self.left_out = true;
            return Ok(());
        }
        self.left_out = true;
        self.damaged_manifests.insert(id);
        self.report.finding(VerifyFinding {
            kind: FindingKind::Damaged,
            object: key.to_string(),
            what: error.to_string(),
            backups: vec![id.to_string()],
            moments: None,
            remedy: "Take a backup: this one cannot be restored completely from here.".into(),
        });
        Ok(())
    }
}

/// Which blocks of packs were read.
#[derive(Default)]
pub(super) struct Covered {
    /// Packs that hold nothing but blocks, each of which was read.
    whole: BTreeSet<(BackupId, u32)>,
    /// Of others, what was read or is asked for in the window that is being read.
    packs: BTreeMap<(BackupId, u32), Asked>,
    /// Packs of which that is every block.
    complete: Vec<(BackupId, u32)>,
    /// Blocks that were read and have to be judged with other backups too.
    again: BTreeSet<(BackupId, u32, u16, u8)>,
    /// About how much memory that takes, in bytes.
    bytes: usize,
}

/// Which blocks of a pack were asked for.
#[derive(Default)]
struct Asked {
    /// Sixteen bits for each frame, for its first blocks; few frames have more.
    frames: Vec<u16>,
    /// The other blocks: frame and index.
    more: BTreeSet<(u16, u8)>,
    /// How many they are.
    blocks: u32,
}

impl Asked {
    /// About how much memory it takes, in bytes.
    fn bytes(&self) -> usize {
        2 * self.frames.len() + 2 * size_of::<(u16, u8)>() * self.more.len()
    }

    /// Notes a block. Whether it is asked for the first time, or cannot be noted because there is no `room`.
    fn is_new(&mut self, frame: u16, index: u8, room: bool) -> bool {
        let noted = match 1u16.checked_shl(u32::from(index)) {
            Some(bit) => {
                let at = usize::from(frame);
                if room && self.frames.len() <= at {
                    self.frames.resize(at + 1, 0);
                }
                let Some(bits) = self.frames.get_mut(at) else { return true };
                let noted = *bits & bit == 0;
                *bits |= bit;
                noted
            }
            None if room => self.more.insert((frame, index)),
            None => return !self.more.contains(&(frame, index)),
        };
        self.blocks += u32::from(noted);
        noted
    }
}

impl Covered {
    /// Whether a data frame was read, as far as there was memory to know: one block is read with the others in its frame.
    pub(super) fn has_frame(&self, pack: (BackupId, u32), frame: u16) -> bool {
        let bits = || self.packs.get(&pack)?.frames.get(usize::from(frame)).copied();
        self.whole.contains(&pack) || bits().is_some_and(|bits| bits != 0)
    }

    /// Whether a block of a pack of so many units is asked for the first time, as far as there is memory to know.
    fn is_new(&mut self, pack: (BackupId, u32), units: u32, at: BlockRef) -> bool {
        if !self.again.is_empty() && self.again.contains(&(pack.0, pack.1, at.frame.frame, at.index)) {
            return true;
        }
        if self.whole.contains(&pack) {
            return false;
        }
        let asked = self.packs.entry(pack).or_default();
        let before = (asked.bytes(), asked.blocks);
        let is_new = asked.is_new(at.frame.frame, at.index, self.bytes < MOST_BYTES);
        self.bytes += asked.bytes() - before.0;
        if asked.blocks > before.1 && asked.blocks == units {
            self.complete.push(pack);
        }
        is_new
    }

    /// A block counts as not read, for every backup that refers to it; as far as there is memory to know.
    fn judge_again(&mut self, pack: (BackupId, u32), at: BlockRef) {
        if self.again.len() < MOST_AGAIN {
            self.again.insert((pack.0, pack.1, at.frame.frame, at.index));
        }
    }

    /// Everything that was asked for was read.
    fn window_read(&mut self) {
        for pack in std::mem::take(&mut self.complete) {
            let asked = self.packs.remove(&pack).unwrap_or_default();
            self.bytes = self.bytes.saturating_sub(asked.bytes());
            self.whole.insert(pack);
        }
    }

    /// Not everything that was asked for was read: forgets which blocks of packs were, but for packs that were read as a whole.
    fn forget_parts(&mut self) {
        *self = Self {
            whole: std::mem::take(&mut self.whole),
            again: std::mem::take(&mut self.again),
            ..Self::default()
        };
    }
}

/// What a unit showed.
struct Checked {
    bytes: u64,
    known: u64,
    bad: Vec<BadPage>,
    /// Blocks with a wrong checksum that is nothing wrong in this backup: part and number.
    excused: Vec<(usize, u64)>,
}

/// Pages that were bad when the backup was made: they are told there.
fn known_bad(reader: &BackupReader) -> BTreeSet<(String, u64)> {
    reader.manifest().findings.iter().map(|finding| (finding.path.to_string(), finding.block)).collect()
}

async fn unit_of(
    reader: BackupReader,
    unit: PackUnit,
    window: Arc<ReadWindow>,
    known: Arc<BTreeSet<(String, u64)>>,
    check: Arc<dyn ContentCheck>,
) -> Result<Checked> {
    let fetched = reader.fetch(&unit).await?;
    crate::cpu::run(move || {
        let facts = &reader.manifest().summary.facts;
        // Nothing is behind this position: every page counts.
        let strict = BackupDescription { start_lsn: Lsn(u64::MAX), ..facts.clone() };
        let (mut bytes, mut recorded, mut bad, mut excused) = (0u64, 0u64, Vec::new(), Vec::new());
        reader.scatter::<RepoError>(&unit, &fetched, |piece| {
            bytes += u64::try_from(piece.bytes.len()).unwrap_or(0);
            let Some(part) = window.parts().get(piece.part).filter(|_| facts.data_checksums) else {
                return Ok(());
            };
            let path = &part.entry.path;
            let mut wrong = BTreeSet::new();
            check.pages(&strict, path, piece.offset, piece.bytes, &mut |block, _, _| {
                wrong.insert(block);
            });
            if wrong.is_empty() {
                return Ok(());
            }
            // What the backup recorded counts as that, also where the page's LSN makes it look newer than the backup: damage may have set
            // the LSN itself.
            let name = path.to_string();
            let is_recorded = |block: u64| known.contains(&(name.clone(), block));
            let recorded_here = wrong.iter().filter(|block| is_recorded(**block)).count();
            recorded += u64::try_from(recorded_here).unwrap_or(0);
            check.pages(facts, path, piece.offset, piece.bytes, &mut |block, stored, computed| {
                if !is_recorded(block) {
                    wrong.remove(&block);
                    if bad.len() < PAGES {
                        bad.push(BadPage { path: name.clone(), block, stored, computed });
                    }
                }
            });
            excused.extend(wrong.into_iter().map(|block| (piece.part, block)));
            Ok(())
        })?;
        Ok(Checked { bytes, known: recorded, bad, excused })
    })
    .await?
}

#[cfg(test)]
mod tests {
    use walpoint_base::TimelineId;

    use super::*;
    use crate::backup::{BackupRef, FrameRef, PackNo};

    fn block(frame: u16, index: u8) -> BlockRef {
        BlockRef { frame: FrameRef { backup: BackupRef(1), pack: PackNo(0), frame }, index }
    }

    fn pack() -> (BackupId, u32) {
        (BackupId::new(jiff::Timestamp::UNIX_EPOCH, TimelineId::FIRST, Lsn(1 << 24), 1), 0)
    }

    #[test]
    fn a_pack_is_whole_once_each_of_its_blocks_was_read() {
        let mut covered = Covered::default();
        let blocks = [block(1, 0), block(1, 15), block(1, 16), block(2, 3)];
        for at in &blocks[..3] {
            assert!(covered.is_new(pack(), 4, *at));
            assert!(!covered.is_new(pack(), 4, *at), "as often as files share it");
        }
        covered.window_read();
        assert!(covered.has_frame(pack(), 1) && !covered.has_frame(pack(), 2));
        assert!(covered.is_new(pack(), 4, blocks[3]), "though three were asked for twice");
        covered.window_read();
        assert!(covered.has_frame(pack(), 2) && blocks.iter().all(|at| !covered.is_new(pack(), 4, *at)));
        assert_eq!(covered.bytes, 0);
        covered.forget_parts();
        assert!(covered.has_frame(pack(), 2), "it was read");
    }

    #[test]
    fn what_was_asked_for_and_not_read_is_read_with_another_backup() {
        let mut covered = Covered::default();
        assert!(covered.is_new(pack(), 2, block(1, 0)) && covered.is_new(pack(), 2, block(1, 1)));
        covered.forget_parts();
        covered.window_read();
        assert!(!covered.has_frame(pack(), 1) && covered.is_new(pack(), 2, block(1, 0)));
    }

    #[test]
    fn what_there_is_no_memory_to_note_is_read_each_time() {
        let mut covered = Covered { bytes: MOST_BYTES, ..Covered::default() };
        for at in [block(1, 0), block(1, 16)] {
            assert!(covered.is_new(pack(), 2, at) && covered.is_new(pack(), 2, at));
        }
        covered.window_read();
        assert!(!covered.has_frame(pack(), 1));
    }
}
