//! What a person should know of a plan, one sentence each.

use walpoint_base::diagnostic::shown;
use walpoint_base::target::FullXid;
use walpoint_base::{BackupId, LineageId, Lsn, PgTimestamp, TimelineId};
use walpoint_plan::restore::{
    DamageNote, ForkSegment, LineageMoment, NamedPoint, Note, RestorePlan, Unfollowed, WentOn, Why,
};

use super::{CommandLine, brief, damaged_lineage, drops, lineage_moment, locks, point, why};
use crate::wal::build::built_from;

/// The notes of a plan, in its order. `given`: the command that they are about.
pub(crate) fn notes(plan: &RestorePlan, given: &CommandLine) -> Vec<String> {
    plan.notes.iter().map(|one| note(one, given)).collect()
}

/// One of them.
pub(crate) fn note(note: &Note, given: &CommandLine) -> String {
    match note {
        Note::DamagedPages(pages) => {
            format!("{pages} pages had wrong checksums when the backup was taken; restored as they were.")
        }
        Note::Unfollowed { on, next } => unfollowed(*on, next),
        Note::NoWholeSegment(timeline) => {
            format!("Timeline {timeline} has no whole segment in the archive yet.")
        }
        Note::PartHandedOut(fork) => part_handed_out(fork),
        Note::LastSegmentBuilt(fork) => last_segment_built(fork),
        Note::ForkBuilt(fork) => fork_built(fork),
        Note::MoreUntil { timeline, cut } => more_until(*timeline, *cut),
        Note::AlsoOn(other) => {
            format!(
                "Timeline {other} has that moment, too.\nHINT: --target-timeline {other} recovers it there."
            )
        }
        Note::EpochChosen(full) => epoch_chosen(*full),
        Note::NotTheLatest { timeline, record } => {
            format!(
                "Not the latest: {record}.\nHINT: --target-timeline {timeline} recovers what was written there."
            )
        }
        Note::PointAlsoOn(other) => point_also_on(other),
        Note::DamagedPoints { name, damaged } => {
            format!("A damaged list of restore points may hold \"{}\" once more: {damaged}.", shown(name))
        }
        Note::PointByPosition { name, lsn } => point_by_position(name, *lsn),
        Note::Locked(locked) => locks::locked(locked, given),
        Note::Dropped(dropped) => drops::dropped(dropped, given),
        Note::Prepared { open, relations } => locks::prepared(open, relations),
        Note::HoldsLaterCommit { backup, time } => holds_later_commit(*backup, *time),
        Note::NewerHoldsLaterCommit { backup, time } => newer_holds_later_commit(*backup, *time),
        Note::NewerDamaged { backup, damage } => newer_damaged(*backup, *damage),
        Note::SameUntil { timeline, common } => same_until(*timeline, *common),
        Note::RemovedBefore(removed) => drops::removed_before(removed, given),
        Note::StandbyStays(timeline) => standby_stays(*timeline),
        Note::HistoryLost(timeline) => history_lost(*timeline),
        Note::WentOn(one) => went_on(one),
        Note::NewerWithoutBackup { newest, older } => newer_without_backup(newest, *older),
        Note::OlderInUse { older, lineage, why } => older_in_use(*older, *lineage, why),
        Note::AlsoInLineages { lineage, others } => also_in_lineages(*lineage, others),
        Note::DamagedLineage { lineage, what } => damaged_lineage(*lineage, what),
        Note::SplitOff { lineage, parent } => {
            format!("Lineage {lineage} was split off from lineage {parent}, which does not have the target.")
        }
    }
}

fn unfollowed(on: TimelineId, next: &Unfollowed) -> String {
    format!(
        "Timeline {}, which was forked from timeline {on} at {}, has no whole segment in the archive yet: recovery ends there.",
        next.timeline, next.from
    )
}

fn part_handed_out(fork: &ForkSegment) -> String {
    format!(
        "Of {}, restore-fetch delivers only what lies before {}, where timeline {} was left.",
        fork.name, fork.cut, fork.name.timeline
    )
}

fn last_segment_built(fork: &ForkSegment) -> String {
    format!(
        "{} is incomplete in the archive; restore-fetch builds it from that copy, up to the end of its last record, {}.",
        fork.name, fork.cut
    )
}

fn fork_built(fork: &ForkSegment) -> String {
    format!(
        "{} is not in the archive; restore-fetch builds it from {}, up to {}, where timeline {} was left.",
        fork.name,
        built_from(fork),
        fork.cut,
        fork.name.timeline
    )
}

fn more_until(timeline: TimelineId, cut: Lsn) -> String {
    format!(
        "A younger timeline left timeline {timeline} at {cut} and has what comes before.\nHINT: --use-partial recovers up to \
         there."
    )
}

fn epoch_chosen(full: FullXid) -> String {
    let xid = full.xid();
    format!(
        "Transaction IDs repeat: {xid} is interpreted as {full} (pg_current_xact_id() printed {}), the \
         newest transaction of that \
         number that can be reached.\nHINT: For a transaction of another epoch, give --target-xid EPOCH:{xid}.",
        full.0
    )
}

fn point_also_on(other: &NamedPoint) -> String {
    let (timeline, made) = (other.timeline, point(other));
    format!(
        "Timeline {timeline} has a restore point of that name, too: {made}.\nHINT: --target-timeline {timeline} recovers it \
         there."
    )
}

fn point_by_position(name: &str, lsn: Lsn) -> String {
    format!(
        "The restore point \"{}\" is at {lsn}. The restore gives PostgreSQL this position instead of the name, because \
         recovery would stop at another restore point of that name before.",
        shown(name)
    )
}

fn holds_later_commit(backup: BackupId, time: PgTimestamp) -> String {
    format!(
        "Backup {backup} already holds a transaction whose commit time, {time}, is after the target: the server's clock was \
         set back, or runs ahead of that of the standby that was backed up.\nHINT: Without --backup an older backup is \
         chosen, from which recovery stops before that transaction."
    )
}

fn newer_holds_later_commit(backup: BackupId, time: PgTimestamp) -> String {
    format!(
        "Backup {backup} is newer but was not chosen: it already holds a transaction whose commit time, \
         {time}, is after the \
         target, so the server's clock was set back, or runs ahead of that of the standby that was backed up. Recovery stops \
         before the first such transaction.\nHINT: --backup {backup} recovers the target's time after the clock was set back."
    )
}

fn newer_damaged(backup: BackupId, damage: DamageNote) -> String {
    let found = match damage {
        DamageNote::Pages(pages) => {
            return format!(
                "Backup {backup} is newer but was not chosen: {pages} of its pages had wrong checksums when it was \
                 taken.\nHINT: --backup {backup} restores it anyway."
            );
        }
        DamageNote::Packs(packs) => {
            format!("{packs} of the packs that it uses were found damaged or missing")
        }
        DamageNote::Segments(segments) => {
            format!("{segments} of the WAL segments that make it consistent were found damaged")
        }
        DamageNote::Manifest => "its manifest is damaged or missing".to_owned(),
    };
    format!(
        "Backup {backup} is newer but was not chosen: {found}.\nHINT: \"archive-agent verify\" shows more."
    )
}

fn same_until(timeline: TimelineId, common: Lsn) -> String {
    format!(
        "The repository does not show where a younger timeline than {timeline} comes from. It has the same WAL up to {common}, so \
         the target is the same on both."
    )
}

fn standby_stays(timeline: TimelineId) -> String {
    format!(
        "recovery_target_timeline is {timeline}: PostgreSQL would not find that timeline by itself, because the archive has no history \
         for a number before it.\nHINT: Once the standby is on timeline {timeline}, run \"alter system set \
         recovery_target_timeline = 'latest'\" and restart it: then it follows later promotions."
    )
}

fn history_lost(timeline: TimelineId) -> String {
    format!(
        "The history of timeline {timeline} is damaged or lost, and this plan does not need it. recovery_target_timeline is current: \
         recovery stays on timeline {timeline} and follows no younger one. The history of the timeline that the server begins then \
         names timeline {timeline} as its only ancestor.\nHINT: Once the server is promoted and archives, take a backup: until then, no \
         standby can be restored."
    )
}

fn went_on(one: &WentOn) -> String {
    let WentOn { timeline, left_by, left, last, at } = one;
    format!(
        "Timeline {timeline} continued after timeline {left_by} left it at {left}: the archive has it up to {last}, written \
         until {at}. \"Latest\" follows timeline {left_by}.\nHINT: --target-timeline {timeline} follows timeline {timeline}."
    )
}

fn newer_without_backup(newest: &LineageMoment, older: LineageId) -> String {
    format!(
        "Lineage {} is newer and has no complete backup, so it cannot be restored: {}. This plan restores the older lineage \
         {older}.",
        newest.lineage,
        lineage_moment(newest)
    )
}

fn also_in_lineages(lineage: LineageId, others: &[LineageId]) -> String {
    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
    let (have, they) = if others.len() > 1 { ("have", "they were") } else { ("has", "it was") };
    format!(
        "Lineage {} {have} the target too, from before {they} split off. This plan recovers in lineage {lineage}.\nHINT: If you restore \
         another one of these servers, name its lineage with --lineage.",
        others.join(" and ")
    )
}

fn older_in_use(older: LineageId, lineage: LineageId, reason: &Why) -> String {
    format!(
        "Lineage {older} is older and was in use after lineage {lineage} was registered; there the target cannot be reached: {}.",
        brief(&why(reason))
    )
}
