//! Why a target cannot be reached.

use walpoint_base::chain::ChainFault;
use walpoint_base::target::FullXid;
use walpoint_base::{BackupId, LineageId, Lsn, PgTimestamp, SegmentName, TimelineId};
use walpoint_plan::restore::{Doubt, LineageMoment, SharingLineage, Unreachable, Unusable, Why};

use super::{brief, lineage_moment};

/// A refusal in one line, for a log or an error chain.
pub(crate) fn refusal(refusal: &Unreachable) -> String {
    let verdict = match refusal.why {
        Why::SeveralPoints(_) | Why::SeveralLineages(_) => "means several moments",
        Why::SharedByLineages(_) => "is in several lineages",
        _ => "cannot be reached",
    };
    format!("{} (timeline {}) {verdict}: {}", refusal.target, refusal.timeline, why(&refusal.why))
}

/// The reason, without a final full stop.
pub(crate) fn why(why: &Why) -> String {
    match why {
        Why::LostLineages { cluster, stored } => lost_lineages(cluster, stored),
        Why::NoCluster(name) => format!("the repository has no cluster {name}"),
        Why::UnknownLineage(id) => format!("the cluster has no lineage {id}"),
        Why::SeveralLineages(all) => several_lineages(all),
        Why::SharedByLineages(all) => shared_by_lineages(all),
        Why::NewestWithoutBackup { newest, .. } => {
            format!("the newest lineage has WAL and no complete backup: {}", lineage_moment(newest))
        }
        Why::DamagedLineage { lineage, what, instead } => damaged_lineage(*lineage, what, *instead),
        Why::NoBackup => "the cluster has no complete backup".to_owned(),
        Why::NoBackupOnPath { timeline } => {
            format!("no complete backup lies on the path to timeline {timeline}")
        }
        Why::BeforeFirstBackup { timeline } => {
            format!("every complete backup on the path to timeline {timeline} ends after it")
        }
        Why::ClockSetBack { backup, time } => clock_set_back(*backup, *time),
        Why::UnknownBackup(id) => format!("there is no backup {id}"),
        Why::NewestUnreadable { backup, why, older } => format!(
            "the newest backup, {backup}, {}, and {older}, the newest one that can be used, ends at another moment",
            unusable(why)
        ),
        Why::UnusableBackup(id, why) => {
            format!("backup {id} cannot be restored because it {}", unusable(why))
        }
        Why::BackupTooLate(id) => format!("backup {id} is not yet consistent there"),
        Why::BackupNotOnPath(id, timeline) => {
            format!("backup {id} does not lie on the path to timeline {timeline}")
        }
        Why::UnknownTimeline(timeline) => format!("the archive knows no timeline {timeline}"),
        Why::MissingWal { backup } => format!("WAL is missing between backup {backup} and the target"),
        Why::MinimalWal { backup, at } => minimal_wal(*backup, *at),
        Why::AfterEnd { until, latest, .. } => after_end(*until, *latest),
        Why::BrokenChain { segment, fault, recorded, .. } => broken_chain(*segment, fault, *recorded),
        Why::EndsInFork { timeline, until } => ends_in_fork(*timeline, *until),
        Why::ContradictingCopies { segment, copies } => contradicting_copies(*segment, copies),
        Why::EndsIncomplete { segment, until, damaged } => {
            ends_incomplete(*segment, *until, damaged.as_deref())
        }
        Why::DoubtfulTimeline { timeline, doubt, instead } => doubtful_timeline(*timeline, doubt, *instead),
        Why::NoHistory(timeline) => no_history(*timeline),
        Why::XidNotFound => "its end is in no WAL that a backup can replay".to_owned(),
        Why::XidOfOtherEpoch(found) => xid_of_other_epoch(found),
        Why::NameNotFound => "it is in no WAL that a backup can replay".to_owned(),
        Why::SeveralPoints(points) => format!("there are {} of that name", points.len()),
        Why::NameNotUtf8(_) => {
            "its name in the WAL is not UTF-8 but in its database's encoding, and recovery can find it \
             only by its LSN"
                .to_owned()
        }
    }
}

/// Why a backup cannot be used: fits after "because it".
pub(super) fn unusable(why: &Unusable) -> String {
    match why {
        Unusable::Unfinished => "is not finished".to_owned(),
        Unusable::Aborted => "was aborted before it was finished".to_owned(),
        Unusable::Deleted => "was deleted".to_owned(),
        Unusable::DamagedManifest => "has a damaged manifest".to_owned(),
        Unusable::LostManifest => "has lost its manifest".to_owned(),
        Unusable::Misnamed => "has a manifest that contradicts its name".to_owned(),
        Unusable::Unreadable => "is damaged: what a restore needs of it cannot be read".to_owned(),
        Unusable::OfLineage(lineage) => format!("belongs to lineage {lineage}"),
    }
}

fn lost_lineages(cluster: &str, stored: &[LineageId]) -> String {
    let of: Vec<String> = stored.iter().map(ToString::to_string).collect();
    let of = if of.is_empty() { String::new() } else { format!(" ({})", of.join(", ")) };
    format!(
        "the repository has WAL or backups of cluster {cluster}, but the metadata of its lineages{of} is missing: \
         clusters/{cluster}/lineages/"
    )
}

fn several_lineages(all: &[LineageMoment]) -> String {
    let all: Vec<String> = all.iter().map(lineage_moment).collect();
    format!("several lineages of the cluster have it: {}", all.join("; "))
}

fn shared_by_lineages(all: &[SharingLineage]) -> String {
    let one = |sharing: &SharingLineage| {
        let SharingLineage { lineage, parent, created, newest } = sharing;
        let parent = parent.map(|parent| format!(" (split off from {parent})")).unwrap_or_default();
        let newest = newest.as_ref().map_or("no WAL".to_owned(), |newest| {
            let time = newest.time.map(|time| format!(", {time}")).unwrap_or_default();
            format!("WAL up to {} on timeline {}{time}", newest.until, newest.timeline)
        });
        format!("{lineage}{parent}, created {created:.0}, {newest}")
    };
    let all: Vec<String> = all.iter().map(one).collect();
    format!(
        "they have it in common, the restored server would archive into one of them, and the data directory does not show \
         which: {}",
        all.join("; ")
    )
}

fn damaged_lineage(lineage: LineageId, what: &str, instead: LineageId) -> String {
    let what = brief(what);
    format!(
        "the metadata of lineage {lineage} is damaged ({what}), and it may be the latest one (without it, \
         {instead} is)"
    )
}

fn clock_set_back(backup: BackupId, time: PgTimestamp) -> String {
    format!(
        "backup {backup} ended before it, but already holds a transaction whose commit time, {time}, is after it: the server's \
         clock was set back, or runs ahead of that of the standby that was backed up, and no older backup can be used"
    )
}

fn minimal_wal(backup: BackupId, at: Lsn) -> String {
    format!(
        "between backup {backup} and the target, at {at}, the server was set to wal_level = minimal, and recovery cannot pass that"
    )
}

fn after_end(until: Lsn, latest: Option<PgTimestamp>) -> String {
    let latest = latest.map(|latest| format!("; the latest transaction in it ended at {latest}"));
    // A position may be that end itself: recovery stops at a record, and none begins there.
    format!(
        "the archive ends at {until}, and no record in it reaches the target{}",
        latest.unwrap_or_default()
    )
}

fn broken_chain(segment: SegmentName, fault: &ChainFault, recorded: bool) -> String {
    match !recorded && fault.is_split_brain() {
        true => format!(
            "the archive holds WAL of two servers: \"{segment}\" does not continue the segment before it: {fault}"
        ),
        false => format!("there is a gap, and recovery ends before \"{segment}\": {fault}"),
    }
}

fn ends_in_fork(timeline: TimelineId, until: Lsn) -> String {
    format!(
        "the younger timeline has no segment in the archive yet, and the end of timeline {timeline}, up to {until}, is only in a \
         .partial file or in another timeline's first segment"
    )
}

fn contradicting_copies(segment: SegmentName, copies: &[String]) -> String {
    format!(
        "of the last segment, \"{segment}\", only incomplete copies are in the archive, and they contradict each other, so two \
         servers wrote them: {}",
        copies.join(", ")
    )
}

fn ends_incomplete(segment: SegmentName, until: Lsn, damaged: Option<&str>) -> String {
    match damaged {
        Some(damaged) => format!(
            "of the last segment, \"{segment}\", only a damaged copy is in the archive ({}), and recovery cannot pass {until}",
            brief(damaged)
        ),
        None => format!(
            "of the last segment, \"{segment}\", only an incomplete copy is in the archive, up to {until}, and it is not \
             known whether more of it was written"
        ),
    }
}

fn doubtful_timeline(timeline: TimelineId, doubt: &Doubt, instead: TimelineId) -> String {
    let without = match instead == timeline {
        true => String::new(),
        false => format!("; without it, {instead} is the latest"),
    };
    let text = format!(
        "the latest timeline is in doubt: {} (timeline {timeline}{without})",
        brief(&doubt.to_string())
    );
    match doubt {
        Doubt::Refused => format!(
            "{text}\nDETAIL: The WAL that is stored of timeline {timeline} is that of the server that archived first.\nHINT: To \
             recover that, add --target-timeline {timeline}.\nHINT: Give a server whose WAL was refused a lineage of its own \
             (archive-agent init --new-lineage), then run \"archive-agent lineage settle --timeline {timeline}\" to settle \
             the timeline."
        ),
        Doubt::OtherAncestor(of) => format!(
            "{text}\nDETAIL: The WAL that is stored of timeline {of} is that of the server whose history of it is stored. Timeline \
             {timeline} comes from another server's timeline {of}.\nHINT: To recover to timeline {instead}, add \
             --target-timeline {instead}.\nHINT: If timeline {timeline} is not needed, run \"archive-agent lineage settle \
             --timeline {timeline} --abandoned\" to settle it. Give the server that writes it a lineage of its own (archive-agent \
             init --new-lineage).\nHINT: If timeline {timeline} is the one that counts, run \"archive-agent lineage settle \
             --timeline {timeline}\", and back up the server that writes it."
        ),
        Doubt::Damaged(_) | Doubt::Missing | Doubt::NoBackup => text,
    }
}

fn no_history(timeline: TimelineId) -> String {
    format!(
        "the archive has its WAL, but the history of timeline {timeline} is damaged or missing\nDETAIL: Without it, only \
         a backup that was taken on timeline {timeline} can be recovered to that timeline, and not as a standby."
    )
}

fn xid_of_other_epoch(found: &[FullXid]) -> String {
    let found: Vec<String> = found.iter().map(|full| format!("{full} ({})", full.0)).collect();
    format!(
        "the transaction of that number that a backup can replay is of another epoch: {}",
        found.join(", ")
    )
}
