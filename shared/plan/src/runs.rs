//! Which segments of a timeline are there, as runs of consecutive numbers: a million segments without a gap are one run.

use walpoint_base::SegmentNo;

/// Consecutive segments that are all there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentRun {
    /// The first one.
    pub first: SegmentNo,
    /// The last one; never before the first.
    pub last: SegmentNo,
    /// Bytes that they take in the repository.
    pub stored: u64,
}

impl SegmentRun {
    /// How many segments.
    pub fn count(&self) -> u64 {
        self.last.0.saturating_sub(self.first.0).saturating_add(1)
    }
}

/// The segments of one timeline.
///
/// Invariant: runs ascend, and between two of them at least one segment is missing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Runs(Vec<SegmentRun>);

impl Runs {
    /// Adds one segment that takes `stored` bytes. One that is there already changes nothing.
    pub fn insert(&mut self, number: SegmentNo, stored: u64) {
        self.add(SegmentRun { first: number, last: number, stored });
    }

    /// Adds a run. What it shares with runs already there is counted once in `stored`, in proportion.
    pub fn add(&mut self, mut run: SegmentRun) {
        if run.last < run.first {
            return;
        }
        // Everything from `begin` to `end` overlaps the new run or touches it.
        let begin = self.0.partition_point(|r| r.last.next() < run.first);
        let end = begin + self.0.iter().skip(begin).take_while(|r| r.first <= run.last.next()).count();
        let shared: u64 = self.0.iter().skip(begin).take(end - begin).map(|r| overlap(r, &run)).sum();
        run.stored = share(run.stored, run.count().saturating_sub(shared), run.count());
        for old in self.0.drain(begin..end) {
            run.first = run.first.min(old.first);
            run.last = run.last.max(old.last);
            run.stored = run.stored.saturating_add(old.stored);
        }
        self.0.insert(begin, run);
    }

    /// Takes one segment out.
    pub fn remove(&mut self, number: SegmentNo) {
        let Some(at) = self.0.iter().position(|r| r.first <= number && number <= r.last) else { return };
        let whole = self.0.remove(at);
        let below = number.0.checked_sub(1).filter(|&last| last >= whole.first.0);
        let above = Some(number.next()).filter(|&first| first <= whole.last);
        let mut put = |first: SegmentNo, last: SegmentNo| {
            let mut run = SegmentRun { first, last, stored: 0 };
            run.stored = share(whole.stored, run.count(), whole.count());
            let at = self.0.partition_point(|r| r.last < first);
            self.0.insert(at, run);
        };
        if let Some(last) = below {
            put(whole.first, SegmentNo(last));
        }
        if let Some(first) = above {
            put(first, whole.last);
        }
    }

    /// The runs, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &SegmentRun> {
        self.0.iter()
    }

    /// The run that holds `number`.
    pub fn containing(&self, number: SegmentNo) -> Option<&SegmentRun> {
        self.from(number).filter(|r| r.first <= number)
    }

    /// Whether `number` is there.
    pub fn contains(&self, number: SegmentNo) -> bool {
        self.containing(number).is_some()
    }

    /// The run that holds `number`, or else the next one after it.
    pub fn from(&self, number: SegmentNo) -> Option<&SegmentRun> {
        self.0.get(self.0.partition_point(|r| r.last < number))
    }

    /// The highest segment.
    pub fn last(&self) -> Option<SegmentNo> {
        self.0.last().map(|r| r.last)
    }

    /// The lowest segment.
    pub fn first(&self) -> Option<SegmentNo> {
        self.0.first().map(|r| r.first)
    }

    /// How many segments there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(SegmentRun::count).sum()
    }

    /// Bytes that they take in the repository.
    pub fn stored(&self) -> u64 {
        self.0.iter().map(|r| r.stored).sum()
    }

    /// Bytes that the segments from `first` to `last` take, in proportion to the runs they belong to.
    pub fn stored_within(&self, first: SegmentNo, last: SegmentNo) -> u64 {
        let wanted = SegmentRun { first, last, stored: 0 };
        self.0.iter().map(|r| share(r.stored, overlap(r, &wanted), r.count())).sum()
    }
}

/// How many segments two runs share.
fn overlap(a: &SegmentRun, b: &SegmentRun) -> u64 {
    let (first, last) = (a.first.max(b.first), a.last.min(b.last));
    if last < first { 0 } else { last.0 - first.0 + 1 }
}

/// `part` of `of` of `bytes`.
fn share(bytes: u64, part: u64, of: u64) -> u64 {
    let share = u128::from(bytes) * u128::from(part) / u128::from(of.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_a_set_of_numbers(
            adds in proptest::collection::vec((0u64..60, 1u64..9), 0..25),
            removes in proptest::collection::vec(0u64..70, 0..5),
        ) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (first, count) in adds {
                runs.add(SegmentRun { first: SegmentNo(first), last: SegmentNo(first + count - 1), stored: count * 100 });
                set.extend(first..first + count);
            }
            for number in removes {
                runs.remove(SegmentNo(number));
                set.remove(&number);
            }
            prop_assert_eq!(runs.count(), set.len() as u64);
            prop_assert_eq!(runs.stored(), 100 * set.len() as u64);
            prop_assert_eq!(runs.first().map(|n| n.0), set.first().copied());
            prop_assert_eq!(runs.last().map(|n| n.0), set.last().copied());
            for n in 0..70 {
                prop_assert_eq!(runs.contains(SegmentNo(n)), set.contains(&n));
                let next = set.range(n..).next().copied();
                prop_assert_eq!(runs.from(SegmentNo(n)).map(|r| r.first.0.max(n)), next);
            }
            for pair in runs.0.windows(2) {
                prop_assert!(pair[0].last.0 + 1 < pair[1].first.0);
            }
            prop_assert_eq!(runs.stored_within(SegmentNo(5), SegmentNo(14)), 100 * set.range(5..15).count() as u64);
        }
    }
}
