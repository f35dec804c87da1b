//! What a file of WAL that no archive has is to a recovery, by names, histories and positions alone.

use walpoint_base::{Lsn, SegmentSize, TimelineHistory, WalFileName};

/// Where recovery would end.
#[derive(Debug)]
pub(super) struct Recovery {
    /// The path that was asked for.
    pub(super) history: TimelineHistory,
    /// Up to where it is replayed.
    pub(super) end: Lsn,
    /// Whether recovery goes on from there to what `pg_wal` has of the same timeline: what is not replayed of that, the report names.
    pub(super) goes_on: bool,
    /// Whether the newest timeline was asked for, and not one by its number.
    pub(super) latest: bool,
}

/// What is known of a timeline of which `pg_wal` holds WAL.
#[derive(Debug)]
pub(super) struct Branch {
    /// Where it comes from.
    pub(super) history: TimelineHistory,
    pub(super) known: Known,
}

/// How a timeline is known to the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Its history is there.
    Archived,
    /// Its history waits in `pg_wal` to be archived.
    Waits,
    /// Neither.
    Unknown,
    /// `rollback` took its server away: it was not to go on.
    RolledBack,
    /// The archive has another history of that number: another server's timeline.
    Differs,
}

/// What a file of WAL is to a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing that was asked for.
    Beside,
    /// It goes on where the recovery would end.
    Behind,
    /// It is of a younger timeline than any that the archive knows.
    Younger,
}

impl Recovery {
    /// Judges a file of segment `name`, whose last valid record ends at `end`.
    pub(super) fn verdict(&self, branch: &Branch, name: WalFileName, end: Lsn, size: SegmentSize) -> Verdict {
        let Some((segment, number)) = name.segment().and_then(|name| Some((name, name.number(size)?))) else {
            return Verdict::Beside;
        };
        let (timeline, leaf) = (segment.timeline, self.history.timeline());
        let has_more = end > self.end && end > number.start(size);
        let behind = |is: bool| if is && has_more { Verdict::Behind } else { Verdict::Beside };
        if branch.known == Known::Differs {
            return Verdict::Beside;
        }
        if timeline == leaf {
            return behind(!self.goes_on || matches!(name, WalFileName::Partial(_)));
        }
        if self.history.contains(timeline) {
            let until = self.history.served_until(timeline, number, size);
            return behind(until.is_some_and(|until| until > self.end));
        }
        if !self.latest || matches!(branch.known, Known::Unknown | Known::RolledBack) {
            return Verdict::Beside;
        }
        let before = Lsn(self.end.0.saturating_sub(1));
        let descends = branch.history.of_ancestor(leaf).as_ref() == Some(&self.history)
            && branch.history.timeline_at(before) == self.history.timeline_at(before);
        if descends {
            return behind(true);
        }
        let own = branch.history.begin_of(timeline).is_some_and(|begin| end > begin);
        match own && branch.known == Known::Waits && timeline > leaf {
            true => Verdict::Younger,
            false => Verdict::Beside,
        }
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::TimelineId;

    use super::Known::{Archived, Differs, RolledBack, Unknown, Waits};
    use super::Verdict::{Behind, Beside, Younger};
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn tli(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    fn history(timeline: u32, text: &str) -> TimelineHistory {
        TimelineHistory::parse(tli(timeline), text.as_bytes()).unwrap()
    }

    /// What a recovery along a path that ends at a position makes of a file whose records end at another one.
    struct Case {
        says: &'static str,
        path: TimelineHistory,
        ends: u64,
        goes_on: bool,
        latest: bool,
        branch: (TimelineHistory, Known),
        file: &'static str,
        until: u64,
        is: Verdict,
    }

    /// What recovery does: its path, where it ends, whether it can continue behind that, and whether "latest" was asked for.
    type Ends = (TimelineHistory, u64, bool, bool);

    fn case(
        says: &'static str,
        (path, ends, goes_on, latest): Ends,
        branch: (TimelineHistory, Known),
        file: &'static str,
        until: u64,
        is: Verdict,
    ) -> Case {
        Case { says, path, ends, goes_on, latest, branch, file, until, is }
    }

    /// Where segment 9 begins, and a fork inside it.
    const END: u64 = 0x900_0000;
    const FORK: u64 = 0x900_0090;

    fn boundary() -> TimelineHistory {
        history(2, "1\t0/9000000\tx\n")
    }

    fn inside() -> TimelineHistory {
        history(2, "1\t0/9000090\tx\n")
    }

    fn root() -> TimelineHistory {
        TimelineHistory::root(tli(1))
    }

    fn nine(timeline: u32) -> &'static str {
        match timeline {
            1 => "000000010000000000000009",
            2 => "000000020000000000000009",
            _ => "000000030000000000000009",
        }
    }

    /// Recovery ends where a timeline begins, or on it.
    fn at_a_fork() -> Vec<Case> {
        vec![
            case(
                "the timeline that is asked for, which recovery can continue",
                (boundary(), END, true, true),
                (boundary(), Archived),
                nine(2),
                END + 999,
                Beside,
            ),
            case(
                "it begins in a segment that the parent has whole",
                (inside(), FORK, false, true),
                (inside(), Archived),
                nine(2),
                FORK + 999,
                Behind,
            ),
            case(
                "the same, named",
                (inside(), FORK, false, false),
                (inside(), Archived),
                nine(2),
                FORK + 999,
                Behind,
            ),
            case(
                "nothing of its own",
                (inside(), FORK, false, true),
                (inside(), Archived),
                nine(2),
                FORK,
                Beside,
            ),
            case(
                "another server's of the same number",
                (inside(), FORK, false, true),
                (inside(), Differs),
                nine(2),
                FORK + 999,
                Beside,
            ),
            case(
                "a later segment without a record",
                (inside(), FORK, false, true),
                (inside(), Archived),
                "00000002000000000000000A",
                0xA00_0000,
                Beside,
            ),
            case(
                "what the path left behind",
                (inside(), FORK, false, true),
                (root(), Archived),
                "00000001000000000000000A",
                0xA00_0999,
                Beside,
            ),
            case(
                "and in the segment of the fork",
                (inside(), FORK, false, true),
                (root(), Archived),
                nine(1),
                FORK + 999,
                Beside,
            ),
        ]
    }

    /// Recovery ends where the archive does.
    fn at_the_end() -> Vec<Case> {
        vec![
            case(
                "an incomplete copy has less",
                (root(), FORK, false, true),
                (root(), Archived),
                nine(1),
                FORK + 999,
                Behind,
            ),
            case(
                "an incomplete copy has the same",
                (root(), FORK, false, true),
                (root(), Archived),
                nine(1),
                FORK,
                Beside,
            ),
            case(
                "a history that waits, left inside the next segment",
                (root(), END, true, true),
                (inside(), Waits),
                nine(2),
                FORK + 999,
                Behind,
            ),
            case(
                "left at the end",
                (root(), END, true, true),
                (boundary(), Waits),
                nine(2),
                END + 999,
                Behind,
            ),
            case(
                "the parent's last segment",
                (root(), END, true, true),
                (root(), Archived),
                "000000010000000000000009.partial",
                FORK,
                Behind,
            ),
            case(
                "timeline 1 was named",
                (root(), END, true, false),
                (inside(), Waits),
                nine(2),
                FORK + 999,
                Beside,
            ),
            case(
                "a copy that archives nothing",
                (root(), END, true, true),
                (inside(), Unknown),
                nine(2),
                FORK + 999,
                Beside,
            ),
        ]
    }

    /// `rollback` took away the directory in which the file lies.
    fn rolled_back() -> Vec<Case> {
        let later = (root(), 0xB00_0000, true, true);
        vec![
            case("a branch that began before", later, (inside(), RolledBack), nine(2), FORK + 999, Beside),
            case(
                "a branch that left at the end",
                (root(), END, true, true),
                (boundary(), RolledBack),
                nine(2),
                END + 999,
                Beside,
            ),
            case(
                "what it had from before",
                (root(), END, true, true),
                (root(), RolledBack),
                "000000010000000000000009.partial",
                FORK,
                Behind,
            ),
        ]
    }

    /// Several promotions, and branches.
    fn beside_branches() -> Vec<Case> {
        vec![
            case(
                "two promotions",
                (root(), END, true, true),
                (history(3, "1\t0/9000090\tx\n2\t0/9000120\tx\n"), Waits),
                nine(3),
                FORK + 999,
                Behind,
            ),
            case(
                "two promotions, of which the archive knows one",
                (inside(), FORK, false, true),
                (history(3, "1\t0/9000090\tx\n2\t0/9000120\tx\n"), Waits),
                nine(3),
                FORK + 999,
                Behind,
            ),
            case(
                "and of the one between them",
                (history(3, "1\t0/9000000\tx\n2\t0/A000000\tx\n"), END, false, true),
                (boundary(), Archived),
                nine(2),
                END + 999,
                Behind,
            ),
            case(
                "an older branch",
                (root(), 0xB00_0000, true, true),
                (inside(), Archived),
                "00000002000000000000000B",
                0xB00_0999,
                Beside,
            ),
            case(
                "the same, and the archive is yet to hear of it",
                (root(), 0xB00_0000, true, true),
                (inside(), Waits),
                nine(2),
                FORK + 999,
                Younger,
            ),
            case(
                "a branch beside the one that is asked for",
                (history(4, "1\t0/9000090\tx\n"), FORK, false, true),
                (history(3, "1\t0/9000120\tx\n"), Waits),
                nine(3),
                FORK + 999,
                Beside,
            ),
            case(
                "a sibling that the archive is yet to hear of",
                (inside(), FORK, false, true),
                (history(3, "1\t0/9000120\tx\n"), Waits),
                nine(3),
                FORK + 999,
                Younger,
            ),
        ]
    }

    #[test]
    fn what_comes_after_the_end_is_told_from_what_lies_beside_it() {
        for Case { says, path, ends, goes_on, latest, branch: (of, known), file, until, is } in
            [at_a_fork(), at_the_end(), rolled_back(), beside_branches()].into_iter().flatten()
        {
            let recovery = Recovery { history: path, end: Lsn(ends), goes_on, latest };
            let branch = Branch { history: of, known };
            let found = recovery.verdict(&branch, file.parse().unwrap(), Lsn(until), SIZE);
            assert_eq!(found, is, "{says}");
        }
    }
}
