//! What helps where a target cannot be reached, one sentence each.

use walpoint_base::diagnostic::shown;
use walpoint_base::{BackupId, LineageId, Lsn, SegmentName, TimelineId};
use walpoint_plan::restore::{Hint, NamedPoint, Unusable};
use walpoint_repo::lineage::LOST_LINEAGE;

use super::refusals::unusable;
use super::{CommandLine, brief, damaged_lineage, drops, point, why};

const TAKE_BACKUP: &str = "Take one with \"archive-agent backup\"; WAL alone cannot be restored.";

const ARCHIVE_MISSING: &str = "If a server's pg_wal, a standby or another repository still has the missing files, archive them with \
     \"archive-agent push\". A .partial file never replaces its segment.";

const BACKUP_AFTER_MINIMAL: &str = "With wal_level = minimal, the server does not write everything to WAL, so PostgreSQL ends recovery \
     there. Later moments need a backup taken after it; if there is none, take one now.";

const ARCHIVE_WHOLE: &str = "If the server, a standby or another repository has the whole segment, archive it with \"archive-agent push\".";

const CHOOSE_SERVER: &str = "With --lineage, name the lineage of the server that you restore; \"archive-agent status\" shows where each \
     one was split off.";

/// What helps where the only copy of the last segment cannot be read.
const ARCHIVE_ANOTHER_COPY: &str = "Or archive another copy of the incomplete segment, as a .partial file, from the dead server's \
     pg_wal. To recover what is before the segment, give a target: without one, PostgreSQL would request \
     the segment and stop.";

const ALLOW_COPY: &str = "Otherwise add --use-partial to recover to the end of the incomplete copy: \
    restore-fetch then builds the segment from it. A \
     target before that end needs no option.";

const ALLOW_BUILT: &str = "Add --use-partial to recover to that end: restore-fetch then builds the segment from the available WAL. A \
     target before it needs no option.";

const WITHOUT_STANDBY: &str = "Omit --standby to recover it as a server of its own. Once that is promoted and archives, take a backup: \
     standbys can be restored from that one.";

/// What the server has written since need not be lost.
const ARCHIVE_REST: &str = "If the server still runs, run select pg_switch_wal() there to archive the \
    rest, and plan again a second later. If \
     only its pg_wal is left, archive it with \"archive-agent run --once\".";

const TIME_NOT_OVER: &str = "PostgreSQL refuses a target time unless a later commit or abort proves that it is over. Omit the target to \
     recover everything that the archive holds.";

const LEAVE_TARGET_OUT: &str = "Omit the target to recover everything that the archive holds.";

const CHECK_EPOCH: &str = "WAL has only the lower 32 bits of a transaction ID; the epoch comes from the \
    checkpoint before it. Check the \
     number: select pg_current_xact_id() shows it with the epoch, logs and xmin without it.";

const CHOOSE_LINEAGE: &str = "Choose the server whose data you want with \"--lineage\"; \"restore-agent \
    list\" shows the timelines of each.";

const BACKUP_BEHIND: &str =
    "Later moments can be recovered only from a backup that begins after it: take one.";

/// A hint as a sentence.
pub(in crate::plan) fn hint(hint: &Hint, given: &CommandLine) -> String {
    match hint {
        Hint::KnownTimelines(known) => format!("Known timelines: {}.", list(known)),
        Hint::KnownLineages(known) => format!("The cluster has: {}.", list(known)),
        Hint::CheckCluster { store } => {
            format!("Check the name of the cluster and that {store} is the right repository.")
        }
        Hint::RemovedBefore(removed) => drops::removed_before_end(removed, given),
        Hint::PutLineagesBack => LOST_LINEAGE.to_owned(),
        Hint::NameBackup(backup) => {
            format!(
                "If you mean the end of the older one, add --backup {backup}. Without a target, all WAL is replayed from it."
            )
        }
        Hint::UnusableBackup { backup, why } => unusable_backup(*backup, why),
        Hint::TakeBackup => TAKE_BACKUP.to_owned(),
        Hint::TakeBackupOf(lineage) => take_backup_of(*lineage),
        Hint::WasStored(name) => was_stored(*name),
        Hint::FoundDamaged(name) => found_damaged(*name),
        Hint::ArchiveMissing => ARCHIVE_MISSING.to_owned(),
        Hint::MissingEverywhere => "No repository that was read has the missing files.".to_owned(),
        Hint::BackupAfterMinimal => BACKUP_AFTER_MINIMAL.to_owned(),
        Hint::MaybeBehindMinimal(at) => maybe_behind_minimal(*at),
        Hint::MaybeInMissing => "It may be in the WAL that is missing.".to_owned(),
        Hint::DecideCopies(segment) => decide_copies(*segment),
        Hint::ArchiveWhole => ARCHIVE_WHOLE.to_owned(),
        Hint::ArchiveAnotherCopy => ARCHIVE_ANOTHER_COPY.to_owned(),
        Hint::AnotherCopyOrBefore(start) => another_copy_or_before(*start),
        Hint::AllowCopy => ALLOW_COPY.to_owned(),
        Hint::AllowBuilt => ALLOW_BUILT.to_owned(),
        Hint::ArchiveFirst { timeline, first } => archive_first(*timeline, *first),
        Hint::ArchiveRest => ARCHIVE_REST.to_owned(),
        Hint::ClaimedTwice { instead } => claimed_twice(*instead),
        Hint::LostBackups(timeline) => lost_backups(*timeline),
        Hint::ArchiveHistory(timeline) => archive_history(*timeline),
        Hint::WithoutStandby => WITHOUT_STANDBY.to_owned(),
        Hint::Without { timeline, instead } => without(*timeline, *instead),
        Hint::SecondTime(backup) => second_time(*backup),
        Hint::AheadOfClock => "The time is in the future by this machine's clock.".to_owned(),
        Hint::TimeNotOver => TIME_NOT_OVER.to_owned(),
        Hint::LeaveTargetOut => LEAVE_TARGET_OUT.to_owned(),
        Hint::PointAt(at) => point_at(at),
        Hint::OlderPoints(more) => format!("{more} more are older."),
        Hint::CheckEpoch => CHECK_EPOCH.to_owned(),
        Hint::PointOn { timeline, lsn } => point_on(*timeline, *lsn),
        Hint::PointMade { timeline, lsn } => format!("It was created on timeline {timeline} at {lsn}."),
        Hint::KnownPoints(names) => known_points(names),
        Hint::DamagedPoints(damaged) => damaged_points(damaged),
        Hint::OtherTimeline(other) => {
            format!("Timeline {other} has that moment: add --target-timeline {other}.")
        }
        Hint::MayBeMeant { lineage, why: reason } => {
            format!("You may also mean lineage {lineage}: {}.", brief(&why(reason)))
        }
        Hint::ChooseLineage => CHOOSE_LINEAGE.to_owned(),
        Hint::ChooseServer => CHOOSE_SERVER.to_owned(),
        Hint::BoundLineage { by, lineage } => {
            format!(
                "{by} binds the data directory to lineage {lineage}. To recover in another one, name it with --lineage."
            )
        }
        Hint::OlderLineage { older, newest } => older_lineage(*older, *newest),
        Hint::DamagedLineage { lineage, what } => damaged_lineage(*lineage, what),
        Hint::BesideDamaged { lineage, damaged } => {
            format!("To restore lineage {lineage}, whatever {damaged} has, add --lineage {lineage}.")
        }
        Hint::PutLineageBack(lineage) => {
            format!("The metadata of lineage {lineage} is damaged. {LOST_LINEAGE}")
        }
        Hint::EarlierThan(start) => earlier_than(*start),
        Hint::BackupBehind => BACKUP_BEHIND.to_owned(),
        Hint::ListBroken => "\"archive-agent verify\" lists every such place.".to_owned(),
        Hint::LagsBehind { ahead, behind, until, timeline, lineage } => {
            lags_behind((ahead, behind), *until, *timeline, *lineage)
        }
    }
}

fn list(all: &[impl ToString]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn unusable_backup(backup: BackupId, why: &Unusable) -> String {
    format!("Backup {backup} cannot be used because it {}.", unusable(why))
}

fn take_backup_of(lineage: LineageId) -> String {
    format!(
        "Take a backup with \"archive-agent backup\" while the server that archives into lineage {lineage} runs."
    )
}

fn found_damaged(name: SegmentName) -> String {
    format!(
        "\"archive-agent verify\" found {name} damaged. Once the repository has an undamaged copy again, \
         a full verify clears that finding."
    )
}

fn was_stored(name: SegmentName) -> String {
    format!(
        "{name} was in the archive: either the store has lost it (it was deleted, or the repository was \
         copied incompletely), or it was stored although damaged. \"archive-agent verify\" shows which."
    )
}

fn maybe_behind_minimal(at: Lsn) -> String {
    format!(
        "It may be after {at}, where the server was set to wal_level = minimal: recovery cannot pass \
         that, so later moments need \
         a backup taken after it."
    )
}

fn decide_copies(segment: SegmentName) -> String {
    format!(
        "If the server, a standby or another repository has the whole segment, or a younger timeline's \
         first one, archive it with \"archive-agent push\": it shows which copy is right. Otherwise move \
         the objects of the wrong server's copies out of the repository. \
         To recover what is before \"{segment}\", give an earlier target."
    )
}

fn another_copy_or_before(start: Lsn) -> String {
    format!(
        "Or archive another copy of the incomplete segment, as a .partial file, from the dead server's \
         pg_wal. To recover what is before {start}, give a target."
    )
}

fn archive_first(timeline: TimelineId, first: SegmentName) -> String {
    format!(
        "If pg_wal of timeline {timeline}'s server still exists, the timeline's first segment there may \
         hold later commits, although it is incomplete: archive it first, with \"archive-agent push \
         …/pg_wal/{first}\"."
    )
}

fn claimed_twice(instead: TimelineId) -> String {
    format!(
        "See \"archive-agent status\". To restore what the repository holds of one of the two, name its timeline: \
         --target-timeline {instead}."
    )
}

fn lost_backups(timeline: TimelineId) -> String {
    format!(
        "See \"archive-agent status\" and \"archive-agent verify\" to see what happened to the backups \
         that led to timeline {timeline}. \
         While its server runs, take one with \"archive-agent backup\"."
    )
}

fn archive_history(timeline: TimelineId) -> String {
    format!(
        "Look for {}.history in pg_wal of the server or of a standby, or in another repository, and archive it with \
         \"archive-agent push\".",
        timeline.hex()
    )
}

fn without(timeline: TimelineId, instead: TimelineId) -> String {
    format!(
        "To recover without timeline {timeline} and everything that was written on it, add --target-timeline {instead}."
    )
}

fn second_time(backup: BackupId) -> String {
    format!(
        "The target's time occurred twice. To recover to the second occurrence, after the clock was set \
         back, add --backup {backup}; all data in that backup is older than that."
    )
}

fn point_at(at: &NamedPoint) -> String {
    let NamedPoint { timeline, lsn, .. } = at;
    format!(
        "One was created {} on timeline {timeline}: --target-timeline {timeline} --target-lsn {lsn} \
         recovers to exactly there.",
        point(at)
    )
}

fn point_on(timeline: TimelineId, lsn: Lsn) -> String {
    format!(
        "A restore point of that name was created on timeline {timeline} at {lsn}: add --target-timeline {timeline}."
    )
}

fn known_points(names: &[String]) -> String {
    match names.is_empty() {
        true => {
            "The archive has no restore point. To create one, use \"archive-agent restore-point\".".to_owned()
        }
        false => {
            let names: Vec<String> = names.iter().map(|name| shown(name)).collect();
            format!("The archive's restore points, the newest first: {}.", names.join(", "))
        }
    }
}

fn damaged_points(damaged: &str) -> String {
    let damaged = brief(damaged);
    format!(
        "A damaged list of restore points may have contained it, on another timeline or where WAL is \
         missing: {damaged}. If you know its time or LSN, give that as the target."
    )
}

fn older_lineage(older: LineageId, newest: LineageId) -> String {
    format!(
        "To restore the older lineage, add --lineage {older}: it contains nothing that was written in {newest}."
    )
}

fn earlier_than(start: Lsn) -> String {
    format!(
        "What is before {start} can be recovered: give an earlier target, or \"--target-lsn\" with a \
         position before it."
    )
}

fn lags_behind(
    (ahead, behind): (&str, &str),
    until: Lsn,
    timeline: TimelineId,
    lineage: LineageId,
) -> String {
    format!(
        "Repository \"{ahead}\" has a younger timeline or lineage. Repository \"{behind}\" lags behind it, and would recover to \
         {until} on timeline {timeline}: to recover to that position, give \"--lineage {lineage} --target-timeline {timeline}\"."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_restore_point_is_no_hint() {
        let text = known_points(&["good".to_owned(), "x\nHINT: Run this.".to_owned()]);
        assert!(text.ends_with(": good, x\\nHINT: Run this.."), "{text}");
    }
}
