//! When a file is proven not to be in the archive.
//!
//! PostgreSQL ends recovery at the first file that is "not in the archive" and promotes, so an answer that may be wrong
//! loses what comes after. That a store answers "no such object" is not enough: the archive must be the right one
//! (the caller has read its descriptor and the lineage in the same attempt), every repository that acknowledges must have
//! answered, and nothing may show that the file was written once: nothing later on its timeline, no timeline that left it
//! later, no copy of it that is merely incomplete, no index that names it or a later one.
//!
//! Pure: what the repositories showed is judged here, not read.

use std::collections::BTreeSet;

use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

use crate::wal::refusal::{Remedy, Unproven};

/// What the repositories show around a file that none of them has.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// Something on the file's timeline that was written after it.
    pub(crate) later: Option<String>,
    /// Of a segment: it or a later one that the index names, so that it was there.
    pub(crate) indexed: Option<SegmentName>,
    /// A copy of the segment that does not reach its end. Of one in which no record is complete nothing can be recovered: it is none.
    pub(crate) incomplete: Option<String>,
    /// Of a segment: whether some of it was streamed while its server wrote it, perhaps behind the place where a younger timeline left it.
    pub(crate) streamed: bool,
    /// Of a segment that is built: where the last record ends that its incomplete copies hold.
    pub(crate) copied_until: Option<Lsn>,
    /// Of a segment: the histories of all timelines with a higher id.
    pub(crate) histories: Vec<TimelineHistory>,
    /// Of a segment: timelines with a higher id that have the same segment, whole; where only that is asked, those that have anything
    /// behind the position at which this one was left.
    pub(crate) heirs: Vec<TimelineId>,
    /// Where only that is asked: the segments of which those have slices and nothing else that shows it.
    pub(crate) sliced: BTreeSet<SegmentName>,
    /// Of a segment: those timelines, with the repository that has each.
    pub(crate) younger: Vec<(TimelineId, String)>,
    /// Of a history: higher timelines whose histories are there.
    pub(crate) later_timelines: Vec<TimelineId>,
}

/// Whether a segment that no repository has is proven absent; otherwise why it may have existed.
pub(crate) fn of_segment(name: SegmentName, size: SegmentSize, around: &Surroundings) -> Result<(), String> {
    let inherited = is_inherited(name, size, around)?;
    match &around.incomplete {
        Some(copy) if !inherited || around.streamed => {
            Err(format!("only an incomplete copy of it is in the archive: {copy}"))
        }
        _ => Ok(()),
    }
}

/// Whether only an incomplete copy shows that a segment may have existed, so that it has to be read: nothing else does, and no younger
/// timeline has what counts of it.
pub(crate) fn hinges_on_copy(name: SegmentName, size: SegmentSize, around: &Surroundings) -> bool {
    let inherited = is_inherited(name, size, around);
    around.incomplete.is_some() && inherited.is_ok_and(|inherited| !inherited || around.streamed)
}

/// Whether a younger timeline that left this one inside a segment has the beginning of it in its own; an error if anything but an
/// incomplete copy shows that the segment may have existed.
fn is_inherited(name: SegmentName, size: SegmentSize, around: &Surroundings) -> Result<bool, String> {
    let mut inherited = false;
    for (history, switch) in nothing_later(name, size, around)? {
        let child = history.timeline();
        // The timeline was left inside this segment, so it may never have been completed here; the part up to there begins
        // the child's segment of the same number, and that of every other timeline that took over as much.
        let last = switch - 1;
        let owner = history.of_ancestor(name.timeline).map(|own| own.timeline_at(last));
        let took_over = |heir: TimelineId, path: &TimelineHistory| {
            let own = if path.timeline() == heir { Some(path.clone()) } else { path.of_ancestor(heir) };
            own.is_some_and(|own| Some(own.timeline_at(last)) == owner)
        };
        let heir = around
            .heirs
            .iter()
            .any(|heir| *heir > name.timeline && around.histories.iter().any(|path| took_over(*heir, path)));
        if !heir {
            return Err(format!(
                "timeline {child} left timeline {} at {switch}, inside this segment, and has not archived its own copy",
                name.timeline
            ));
        }
        inherited = true;
    }
    Ok(inherited)
}

/// Whether nothing is known of a segment that no repository has behind a position up to which recovery is given it; otherwise
/// why more of it may have existed.
pub(crate) fn of_rest(
    name: SegmentName,
    until: Lsn,
    size: SegmentSize,
    around: &Surroundings,
) -> Result<(), Unproven> {
    let left = nothing_later(name, size, around)?;
    if let Some((history, switch)) = left.iter().find(|(_, switch)| *switch > until) {
        let why = format!(
            "recovery would end at {until}, and timeline {} left timeline {} later, at {switch}",
            history.timeline(),
            name.timeline
        );
        return Err(Unproven::Refused(why, Remedy::Restore));
    }
    // Where a younger timeline left it, the end of this one is there, whatever its own server wrote behind that.
    let is_left = left.iter().any(|(_, switch)| *switch == until);
    match around.copied_until.filter(|copied| *copied > until && !is_left) {
        Some(copied) => {
            let why = format!(
                "recovery would end at {until}, and by now the archive has an incomplete copy of \"{name}\" up to {copied}"
            );
            Err(Unproven::Refused(why, Remedy::Restore))
        }
        None => Ok(()),
    }
}

/// Whether no younger timeline has anything behind the place where recovery to the latest moment would end; `only`: the one that counts, because
/// what the others have was known.
pub(crate) fn of_heirs(only: Option<TimelineId>, around: &Surroundings) -> Result<(), Unproven> {
    match around.heirs.iter().filter(|heir| only.is_none_or(|only| only == **heir)).max() {
        Some(heir) => {
            let why = format!(
                "when this restore was planned, timeline {heir} had nothing of it in the archive, and now it has"
            );
            Err(Unproven::Refused(why, Remedy::RestoreAlong))
        }
        None => Ok(()),
    }
}

/// Whether all younger timelines were known when the restore to the latest moment was planned, of which `youngest` was the
/// youngest; `None` if it was for another moment, or for a timeline that was named.
pub(crate) fn of_younger(youngest: Option<TimelineId>, around: &Surroundings) -> Result<(), Unproven> {
    let Some(youngest) = youngest else { return Ok(()) };
    match around.younger.iter().filter(|(timeline, _)| *timeline > youngest).max() {
        Some((timeline, repository)) => {
            let why = format!(
                "a younger timeline, {timeline}, is in repository {repository}, and was not known when this restore to the latest \
                 moment was planned"
            );
            Err(Unproven::Refused(why, Remedy::RestoreAlongOrStay(youngest)))
        }
        None => Ok(()),
    }
}

/// The histories of the timelines that left that of a segment inside it, and where; an error if that, or anything later, shows
/// that the whole segment was written.
fn nothing_later(
    name: SegmentName,
    size: SegmentSize,
    around: &Surroundings,
) -> Result<Vec<(&TimelineHistory, Lsn)>, String> {
    let Some(number) = name.number(size) else {
        return Err(format!(
            "\"{name}\" is not the name of WAL of this cluster, whose segments have {size:?}"
        ));
    };
    if let Some(later) = &around.later {
        return Err(format!("it is a gap in the archive: {later} is there"));
    }
    if let Some(indexed) = &around.indexed {
        return Err(format!(
            "it is a gap in the archive: the index names \"{indexed}\", which is not there\nHINT: Check whether WAL was \
             deleted, or the repository copied in part."
        ));
    }
    let mut inside = Vec::new();
    for history in &around.histories {
        let Some(entry) = history.entries().iter().find(|entry| entry.parent == name.timeline) else {
            continue;
        };
        if SegmentNo::of(entry.switch, size) > number {
            return Err(format!(
                "it is a gap in the archive: timeline {} left timeline {} at {}, after this segment",
                history.timeline(),
                name.timeline,
                entry.switch
            ));
        }
        if entry.switch > number.start(size) {
            inside.push((history, entry.switch));
        }
    }
    Ok(inside)
}

/// Whether a history file that no repository has is proven absent; otherwise why the timeline may exist.
pub(crate) fn of_history(timeline: TimelineId, around: &Surroundings) -> Result<(), String> {
    if let Some(later) = &around.later {
        return Err(format!("the timeline exists, although its history is missing: {later} is there"));
    }
    // A server takes the first number that it finds free: behind its own, a higher one is in use only if this one is.
    match around.later_timelines.iter().find(|id| **id > timeline) {
        Some(id) => {
            Err(format!("the history of the later timeline {id} is there, so this one must have existed"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    fn history(timeline: u32, text: &str) -> TimelineHistory {
        TimelineHistory::parse(tli(timeline), text.as_bytes()).unwrap()
    }

    fn segment(around: &Surroundings) -> Result<(), String> {
        // From 0/5000000 to 0/6000000.
        of_segment("000000010000000000000005".parse().unwrap(), SegmentSize::DEFAULT, around)
    }

    #[test]
    fn the_end_of_the_archive_is_absence() {
        assert_eq!(segment(&Surroundings::default()), Ok(()));
        // Timelines that left before it or come from another one say nothing about it.
        for text in ["1\t0/5000000\tx\n", "1\t0/4000028\tx\n", ""] {
            let around = Surroundings { histories: vec![history(2, text)], ..Surroundings::default() };
            assert_eq!(segment(&around), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_must_have_existed_is_not_absent() {
        let gaps = [
            Surroundings { later: Some("000000010000000000000007".into()), ..Surroundings::default() },
            Surroundings { incomplete: Some("….partial".into()), ..Surroundings::default() },
            Surroundings {
                indexed: Some("000000010000000000000005".parse().unwrap()),
                ..Surroundings::default()
            },
            // Left after the segment, or exactly at its end, which only a whole segment reaches.
            Surroundings { histories: vec![history(2, "1\t0/9000060\tx\n")], ..Surroundings::default() },
            Surroundings { histories: vec![history(2, "1\t0/6000000\tx\n")], ..Surroundings::default() },
            // A grandchild tells as well as a child.
            Surroundings {
                histories: vec![history(3, "1\t0/9000060\tx\n2\t0/A000000\ty\n")],
                ..Surroundings::default()
            },
            // Left inside, and no repository has the rest.
            Surroundings { histories: vec![history(2, "1\t0/5000060\tx\n")], ..Surroundings::default() },
        ];
        for around in gaps {
            assert!(segment(&around).is_err(), "{around:?}");
        }
    }

    #[test]
    fn a_segment_left_in_the_middle_lives_on_in_the_child() {
        let around = |heirs: &[u32]| Surroundings {
            incomplete: Some("000000010000000000000005.partial".into()),
            histories: vec![history(3, "1\t0/5000060\tx\n2\t0/5000090\ty\n")],
            heirs: heirs.iter().map(|id| tli(*id)).collect(),
            ..Surroundings::default()
        };
        assert_eq!(segment(&around(&[2])), Ok(()));
        assert_eq!(segment(&around(&[3])), Ok(()));
        let streamed = Surroundings { streamed: true, ..around(&[2]) };
        assert!(segment(&streamed).is_err(), "its own server may have written more of it");
        assert!(segment(&around(&[4])).is_err(), "another branch");
        let passed_through = Surroundings {
            histories: vec![history(3, "1\t0/5000060\tx\n2\t0/5000030\ty\n")],
            ..around(&[3])
        };
        assert!(segment(&passed_through).is_err(), "timeline 3 took over less");
        assert_eq!(segment(&Surroundings { heirs: vec![tli(2)], ..passed_through }), Ok(()));
        assert!(segment(&around(&[])).is_err());
    }

    #[test]
    fn recovery_ends_in_an_incomplete_segment_only_if_nothing_shows_more_of_it() {
        let rest = |around: &Surroundings| {
            let name = "000000010000000000000005".parse().unwrap();
            of_rest(name, Lsn(0x500_0060), SegmentSize::DEFAULT, around)
        };
        let left_at = |text| Surroundings { histories: vec![history(2, text)], ..Surroundings::default() };
        let copy = Surroundings { incomplete: Some("….partial".into()), ..Surroundings::default() };
        assert_eq!(rest(&copy), Ok(()));
        assert_eq!(rest(&left_at("1\t0/5000060\tx\n")), Ok(()));
        assert!(rest(&left_at("1\t0/5000090\tx\n")).is_err(), "a child has more of it");
        assert!(rest(&left_at("1\t0/7000000\tx\n")).is_err(), "a child left later");
        assert!(rest(&Surroundings { later: Some("…6".into()), ..copy }).is_err());
    }

    #[test]
    fn recovery_does_not_end_before_the_end_of_a_longer_copy() {
        let name: SegmentName = "000000010000000000000005".parse().unwrap();
        let rest = |copied: u64, text: &str| {
            let histories = vec![history(2, text)];
            let around =
                Surroundings { copied_until: Some(Lsn(copied)), histories, ..Surroundings::default() };
            of_rest(name, Lsn(0x500_0060), SegmentSize::DEFAULT, &around)
        };
        assert_eq!(rest(0x500_0060, ""), Ok(()), "the copy that was planned with");
        assert_eq!(rest(0x500_0028, ""), Ok(()), "the longer one was elsewhere");
        let why = rest(0x500_0098, "").unwrap_err();
        assert!(
            matches!(&why, Unproven::Refused(why, Remedy::Restore) if why.contains("up to 0/5000098")),
            "{why:?}"
        );
        assert!(rest(0x500_0098, "1\t0/5000030\tx\n").is_err());
        assert_eq!(rest(0x500_0098, "1\t0/5000060\tx\n"), Ok(()), "a timeline left it where the plan ends");
    }

    #[test]
    fn the_timeline_that_the_path_leads_to_is_followed_once_it_has_the_segment() {
        let around = Surroundings { heirs: vec![tli(2), tli(3)], ..Surroundings::default() };
        assert!(of_heirs(None, &around).is_err());
        assert!(of_heirs(Some(tli(3)), &around).is_err());
        assert_eq!(of_heirs(Some(tli(4)), &around), Ok(()), "the others had it before");
        assert_eq!(of_heirs(None, &Surroundings::default()), Ok(()));
    }

    #[test]
    fn a_timeline_that_no_plan_knew_is_no_end() {
        let around = Surroundings { younger: vec![(tli(2), "b".into())], ..Surroundings::default() };
        assert_eq!(of_younger(None, &around), Ok(()));
        assert_eq!(of_younger(Some(tli(2)), &around), Ok(()));
        let why = of_younger(Some(tli(1)), &around).unwrap_err();
        assert!(
            matches!(&why, Unproven::Refused(why, Remedy::RestoreAlongOrStay(stay))
                if *stay == tli(1) && why.contains("timeline, 2, is in repository b")),
            "{why:?}"
        );
    }

    #[test]
    fn a_history_is_absent_only_if_no_later_timeline_exists() {
        let some = |later: &[u32]| Surroundings {
            later_timelines: later.iter().map(|id| tli(*id)).collect(),
            ..Surroundings::default()
        };
        assert_eq!(of_history(tli(3), &some(&[])), Ok(()));
        assert!(of_history(tli(3), &some(&[4])).is_err());
        let with_wal =
            Surroundings { later: Some("000000030000000000000005".into()), ..Surroundings::default() };
        assert!(of_history(tli(3), &with_wal).is_err());
    }

    #[test]
    fn a_name_of_another_segment_size_is_no_absence() {
        let name = "000000010000000000000105".parse().unwrap();
        assert!(of_segment(name, SegmentSize::DEFAULT, &Surroundings::default()).is_err());
    }
}
