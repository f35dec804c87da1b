//! What is needed, from the facts and the decisions: reads the manifests of all that stays.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use walpoint_base::{BackupId, LineageId, TimelineId};
use walpoint_plan::reach::{WalNeed, WalRoots};
use walpoint_plan::retention::{Candidate, Decision, Policy, RetentionReason, RetentionVerdict, decide};
use walpoint_storage::error::{RepoError, Result};

use super::gather::{Gathered, LineageFacts};
use crate::backup::Backups;
use crate::reach::Roots;

/// Manifests that are read at the same time, each up to some tens of megabytes in the largest clusters.
const AT_ONCE: usize = 2;

/// A tombstone stays so long, though nothing else of its backup does: a process that was suspended finds it.
const TOMBSTONE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Everything that is needed. `held` are backups whose manifest, or the tombstone in its place, the store does not let go: what is
/// listed stays whole.
pub(super) async fn of(
    backups: &Backups,
    gathered: &Gathered,
    decisions: &[Decision],
    held: &BTreeSet<BackupId>,
    notes: &mut Vec<String>,
) -> Result<Roots> {
    let mut roots = Roots::default();
    let mut spared = spared(gathered, &mut roots, notes);
    // A tombstone needs nothing, for as long as it is there.
    spared.extend(held.iter().filter(|id| !gathered.aborted.iter().any(|(aborted, _)| aborted == *id)));
    let mut manifests = spared.clone();
    manifests.extend(decisions.iter().filter(|decision| decision.stays()).map(|decision| decision.backup.id));
    for id in &gathered.unreadable {
        roots.keep_backup(*id);
        roots.keep_packs_until(*id);
    }
    for (id, at) in &gathered.aborted {
        if Timestamp::now().duration_since(*at) < TOMBSTONE {
            roots.keep_manifest(*id);
        }
    }
    roots.know(gathered.facts.backups.iter().map(|backup| backup.id));
    roots.know(gathered.unfinished.iter().map(|unfinished| unfinished.id));
    roots.know(gathered.aborted.iter().map(|(id, _)| *id));
    roots.know(gathered.unreadable.iter().copied());
    roots.know(gathered.facts.requests.iter().map(|request| request.backup));
    add_manifests(backups, &manifests, &mut roots, notes).await?;
    for facts in &gathered.lineages {
        let need = wal(gathered, facts, decisions, &spared);
        roots.keep_wal(facts.lineage.id, facts.lineage.segment_size, need);
    }
    Ok(roots)
}

/// The finished backups that stay as long as unfinished ones may use them.
fn spared(gathered: &Gathered, roots: &mut Roots, notes: &mut Vec<String>) -> BTreeSet<BackupId> {
    let mut spared = BTreeSet::new();
    for unfinished in &gathered.unfinished {
        add_unfinished(gathered, unfinished.id, roots, &mut spared, notes);
    }
    spared
}

/// The unfinished backups that may use a finished one.
pub(super) fn users(gathered: &Gathered, id: BackupId) -> Vec<BackupId> {
    let uses = |user: &BackupId| {
        let mut used = BTreeSet::new();
        add_unfinished(gathered, *user, &mut Roots::default(), &mut used, &mut Vec::new());
        used.contains(&id)
    };
    gathered.unfinished.iter().map(|unfinished| unfinished.id).filter(uses).collect()
}

/// What is needed, and beside it what would be if nothing were deleted by name: that of those backups.
pub(super) async fn with_named(
    backups: &Backups,
    gathered: &Gathered,
    roots: &Roots,
    policy: &Policy,
    now: Timestamp,
) -> Result<Roots> {
    let mut with = roots.clone();
    let mut facts = gathered.facts.clone();
    let named: BTreeSet<BackupId> = facts.requests.drain(..).map(|request| request.backup).collect();
    let here = |id: &&BackupId| gathered.facts.backups.iter().any(|backup| backup.id == **id);
    let (known, unread): (BTreeSet<&BackupId>, BTreeSet<&BackupId>) = named.iter().partition(here);
    for id in unread {
        with.keep_backup(*id);
        with.keep_packs_until(*id);
    }
    let known = known.into_iter().copied().collect();
    add_manifests(backups, &known, &mut with, &mut Vec::new()).await?;
    let decisions = decide(&facts, policy, now);
    let spared = spared(gathered, &mut Roots::default(), &mut Vec::new());
    for facts in &gathered.lineages {
        let need = wal(gathered, facts, &decisions, &spared);
        with.keep_wal(facts.lineage.id, facts.lineage.segment_size, need);
    }
    Ok(with)
}

/// What an unfinished backup may use: its own, its parents', and all that it resumed, with what those use.
fn add_unfinished(
    gathered: &Gathered,
    id: BackupId,
    roots: &mut Roots,
    manifests: &mut BTreeSet<BackupId>,
    notes: &mut Vec<String>,
) {
    let (mut todo, mut seen) = (vec![id], BTreeSet::new());
    while let Some(next) = todo.pop() {
        if !seen.insert(next) {
            continue;
        }
        roots.keep_backup(next);
        roots.keep_all_packs(next);
        let is_finished = |id: BackupId| gathered.facts.backups.iter().any(|backup| backup.id == id);
        let Some(unfinished) = gathered.unfinished.iter().find(|unfinished| unfinished.id == next) else {
            // Finished after all, by the process that it was taken over from: as long as it is listed, it stays whole.
            if is_finished(next) {
                manifests.insert(next);
            }
            continue;
        };
        let Some(intent) = &unfinished.intent else {
            roots.keep_packs_until(next);
            manifests.extend(gathered.facts.backups.iter().map(|b| b.id).filter(|older| *older < next));
            continue;
        };
        for parent in &intent.parents {
            if is_finished(*parent) && manifests.insert(*parent) {
                notes.push(format!(
                    "backup {parent} is kept for now: the unfinished backup {next} builds on it"
                ));
            }
            roots.keep_all_packs(*parent);
        }
        todo.extend(&intent.resumed);
    }
}

async fn add_manifests(
    backups: &Backups,
    ids: &BTreeSet<BackupId>,
    roots: &mut Roots,
    notes: &mut Vec<String>,
) -> Result<()> {
    let read = stream::iter(ids).map(|id| async move { (*id, backups.open(*id).await) });
    let mut read = read.buffer_unordered(AT_ONCE);
    while let Some((id, reader)) = read.next().await {
        roots.keep_backup(id);
        match reader {
            Ok(reader) => {
                let manifest = reader.manifest();
                for pack in manifest.packs.packs() {
                    if let Some(owner) = manifest.backups.get(usize::from(pack.backup.0)) {
                        roots.keep_pack(*owner, pack.pack.0);
                    }
                }
            }
            Err(error @ RepoError::Corrupt { .. }) => {
                notes.push(format!("{error}\nDETAIL: All packs older than it are kept."));
                roots.keep_packs_until(id);
            }
            Err(RepoError::NotFound { .. }) if backups.lists_manifest(id).await? => {
                notes.push(format!(
                    "{}: the store lists it, but reports that it does not exist\nDETAIL: All packs older \
                     than it are kept.",
                    backups.paths().manifest(id)
                ));
                roots.keep_packs_until(id);
            }
            // Deleted by another expire since it was listed, or ended.
            Err(RepoError::NotFound { .. } | RepoError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The WAL that is needed of each lineage.
pub(super) fn wal_of_all(gathered: &Gathered, decisions: &[Decision]) -> Vec<(LineageId, WalNeed)> {
    let spared = spared(gathered, &mut Roots::default(), &mut Vec::new());
    let wal = |facts: &LineageFacts| (facts.lineage.id, wal(gathered, facts, decisions, &spared));
    gathered.lineages.iter().map(wal).collect()
}

fn wal(
    gathered: &Gathered,
    facts: &LineageFacts,
    decisions: &[Decision],
    spared: &BTreeSet<BackupId>,
) -> WalNeed {
    let LineageFacts { lineage, graph, known } = facts;
    // What a backup needs whose manifest cannot be read is not known, nor how timelines hang together. Without any backup
    // the WAL waits for the next one.
    let nothing_stays = decisions.iter().all(|decision| !decision.stays());
    let on_the_way = is_on_the_way(gathered, decisions, lineage.id);
    if !known || on_the_way || gathered.has_unreadable() || nothing_stays {
        return WalNeed::everything();
    }
    let of = |verdict: RetentionVerdict| -> Vec<Candidate> {
        let here = decisions.iter().filter(|d| d.verdict == verdict && d.backup.lineage == lineage.id);
        here.map(|decision| decision.backup.clone()).collect()
    };
    let (mut onward, mut alone) = (of(RetentionVerdict::Onward), of(RetentionVerdict::Alone));
    // What is listed can be restored, for whatever reason it is still there.
    let dropped = of(RetentionVerdict::Drop).into_iter();
    alone.extend(dropped.filter(|backup| spared.contains(&backup.id)));
    let running = gathered.unfinished.iter();
    let here = running.filter(|u| u.intent.as_ref().is_none_or(|intent| intent.lineage == lineage.id));
    let unfinished: Vec<BackupId> = here.map(|u| u.id).collect();
    let life = gathered.facts.lives.iter().find(|life| life.lineage == lineage.id);
    let in_use = life.is_none_or(|life| life.superseded.is_none());
    let beside: Vec<TimelineId> = life.into_iter().flat_map(|life| life.beside.iter().copied()).collect();
    onward.sort_by_key(|backup| backup.id);
    WalNeed::of(&WalRoots {
        graph,
        size: lineage.segment_size,
        onward: &onward,
        alone: &alone,
        unfinished: &unfinished,
        in_use,
        beside: &beside,
    })
}

/// Whether WAL of a lineage leads from a backup of another one, which stays for that, to what is recovered from it.
fn is_on_the_way(gathered: &Gathered, decisions: &[Decision], lineage: LineageId) -> bool {
    let parent = |of: &LineageId| {
        let facts = gathered.lineages.iter().find(|facts| facts.lineage.id == *of)?;
        facts.lineage.parent.map(|parent| parent.lineage)
    };
    decisions.iter().any(|decision| {
        let bases = decision.reasons.iter().filter_map(|reason| match reason {
            RetentionReason::Base(of, _) => Some(*of),
            _ => None,
        });
        bases.into_iter().any(|of| {
            // A lineage descends from one with a lower number.
            let way = std::iter::successors(Some(of), parent).take(gathered.lineages.len());
            way.take_while(|on| *on != decision.backup.lineage).any(|on| on == lineage)
        })
    })
}
