//! Waiting until the WAL that a backup needs is in a repository. Before that the backup is nothing that can be restored, so
//! it is not announced.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use walpoint_base::facts::SegmentMarks;
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, WalFileName};
use walpoint_repo::backup::{BackupDescription, WalStored};
use walpoint_repo::wal::WalArchive;
use walpoint_runtime::human;
use walpoint_words::format_chain;

use super::needed_history::Histories;
use crate::check::archiving::why_not_archived;

/// Segments that are looked for at the same time.
const AT_ONCE: usize = 16;
/// How long nothing may arrive before that is worth a word, and then another.
const QUIET: Duration = Duration::from_secs(15);
/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The segments from a backup's start to its stop.
#[derive(Debug)]
pub(crate) struct BackupWal {
    size: SegmentSize,
    first: SegmentNo,
    last: SegmentNo,
    stored: WalStored,
    history: TimelineHistory,
    /// The last position that the backup needs.
    stop: Lsn,
    /// The next timeline's copy of the last segment, where the server was promoted before that was full.
    taken_over: OnceLock<SegmentName>,
}

impl BackupWal {
    /// What a backup with these facts needs; `history` is that of the timeline on which it stopped.
    pub(crate) fn new(facts: &BackupDescription, history: TimelineHistory) -> anyhow::Result<Self> {
        let size = SegmentSize::new(facts.wal_segment_size).context("no cluster has such segments")?;
        let (first, last) = facts.wal()?;
        Ok(Self {
            size,
            first: SegmentNo::of(facts.start_lsn, size),
            last: SegmentNo::before(facts.stop_lsn, size),
            stored: WalStored { first, last },
            history,
            stop: facts.stop_lsn,
            taken_over: OnceLock::new(),
        })
    }

    /// The first and the last segment.
    pub(crate) fn stored(&self) -> WalStored {
        self.stored
    }

    /// How long segments are.
    pub(crate) fn size(&self) -> SegmentSize {
        self.size
    }

    /// Whether a position lies in one of the segments.
    pub(crate) fn holds(&self, lsn: Lsn) -> bool {
        (self.first..=self.last).contains(&SegmentNo::of(lsn, self.size))
    }

    /// Every name, the last one first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = SegmentName> + '_ {
        (self.first.0..=self.last.0).rev().flat_map(|number| self.names(SegmentNo(number)))
    }

    /// Every segment, in order.
    pub(crate) fn segments(&self) -> impl Iterator<Item = SegmentNo> + use<> {
        (self.first.0..=self.last.0).map(SegmentNo)
    }

    /// The names that a segment may be stored under. Where the timeline changed within it, it is read to its end under the newer one's
    /// name, which took over what lies before, and is finished under no other; the last segment is read to the backup's end.
    pub(crate) fn names(&self, segment: SegmentNo) -> Vec<SegmentName> {
        if segment == self.last {
            return [self.stored.last].into_iter().chain(self.taken_over.get().copied()).collect();
        }
        let owner = self.history.timeline_at(segment.end(self.size) - 1);
        vec![segment.name(owner, self.size)]
    }

    /// The first segment, from `from` on, that is not in the archive; `None` if all are there. Those before it in which a
    /// database was copied are added to `copied`.
    async fn first_missing(
        &self,
        archive: &WalArchive,
        from: SegmentNo,
        copied: &mut BTreeSet<SegmentNo>,
    ) -> anyhow::Result<Option<SegmentNo>> {
        let numbers = (from.0..=self.last.0).map(SegmentNo);
        let looks = numbers.map(|segment| async move { (segment, self.is_there(archive, segment).await) });
        let mut looks = stream::iter(looks).buffered(AT_ONCE);
        while let Some((segment, there)) = looks.next().await {
            match there? {
                None => return Ok(Some(segment)),
                Some(marks) if marks.database_copy => drop(copied.insert(segment)),
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// What is marked in a segment, if it is there.
    async fn is_there(
        &self,
        archive: &WalArchive,
        segment: SegmentNo,
    ) -> anyhow::Result<Option<SegmentMarks>> {
        for name in self.names(segment) {
            let Some(header) = archive.header(name).await? else { continue };
            if header.damaged {
                bail!(
                    "segment {name}, which the backup needs, was stored although it is damaged (push \
                     --accept-damaged)\nDETAIL: \
                     Recovery would end in it."
                );
            }
            return Ok(Some(header.marks));
        }
        Ok(None)
    }

    /// The names that the last segment may have on the path of `history`, on which the server has left the timeline of the backup's end
    /// inside it: on that timeline it is never finished. Empty if that is not so.
    fn successors(&self, history: &TimelineHistory) -> Vec<SegmentName> {
        let old = self.stored.last.timeline;
        let left = history.end_of(old).filter(|switch| *switch >= self.stop);
        if left.is_none_or(|switch| SegmentNo::of(switch, self.size) != self.last) {
            return Vec::new();
        }
        let younger = history.candidates(self.last, self.size).filter(|timeline| *timeline > old);
        younger.map(|timeline| self.last.name(timeline, self.size)).collect()
    }

    /// Where the server was promoted, or followed a promotion, inside the segment that is missing: takes the copy of it that the next
    /// timeline begins with. Otherwise the promotion, if the backup waits for nothing else.
    async fn take_over(
        &self,
        archive: &WalArchive,
        histories: Histories<'_>,
        missing: SegmentNo,
    ) -> anyhow::Result<Option<String>> {
        let old = self.stored.last.timeline;
        if missing != self.last {
            return Ok(None);
        }
        let Some(newest) = histories.newest_timeline().await?.filter(|newest| *newest > old) else {
            return Ok(None);
        };
        let content = histories.content(newest).await?;
        let content = content.with_context(|| format!("no {}", WalFileName::History(newest)))?;
        let names = self.successors(&TimelineHistory::parse(newest, &content)?);
        let Some(first) = names.first().copied() else { return Ok(None) };
        if archive.history(newest).await?.is_some() {
            for name in names {
                if archive.header(name).await?.is_some() {
                    self.taken_over.get_or_init(|| name);
                    return Ok(None);
                }
            }
        }
        Ok(Some(format!(
            "the server left timeline {old} for timeline {newest} inside segment {}, which is never finished, and {first} is not in \
             repository {}",
            self.stored.last,
            archive.repository().name()
        )))
    }

    /// Waits until all are in the archive, `limit` at the most. What keeps them away is logged meanwhile, and in the error.
    /// Gives those in which a database was copied file by file.
    pub(crate) async fn wait(
        &self,
        archive: &WalArchive,
        limit: Duration,
        histories: Histories<'_>,
    ) -> anyhow::Result<BTreeSet<SegmentNo>> {
        let mut copied = BTreeSet::new();
        let (began, mut moved, mut reported) = (Instant::now(), Instant::now(), Instant::now());
        let (mut next, mut pause, mut promoted) = (self.first, Duration::from_millis(50), None::<Instant>);
        let repository = archive.repository().name();
        loop {
            let missing = match self.first_missing(archive, next, &mut copied).await {
                Ok(None) => return Ok(copied),
                Ok(Some(missing)) => missing,
                Err(error) if is_transient(&error) => {
                    tracing::warn!(
                        repository,
                        "could not look for WAL, trying again: {}",
                        format_chain(&error)
                    );
                    next
                }
                Err(error) => return Err(error),
            };
            if missing != next {
                (next, moved, pause) = (missing, Instant::now(), Duration::from_millis(50));
            }
            match self.take_over(archive, histories, missing).await {
                // What is on its way arrives soon.
                Ok(Some(promotion)) => {
                    if promoted.get_or_insert_with(Instant::now).elapsed() >= QUIET {
                        bail!(
                            "no backup was taken: a promotion came between: {promotion}\nHINT: Run the backup again."
                        );
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(repository, "could not look for a promotion: {}", format_chain(&error))
                }
            }
            let timed_out = began.elapsed() >= limit;
            if timed_out || (moved.elapsed() >= QUIET && reported.elapsed() >= QUIET) {
                let name = self.names(missing).first().map_or_else(String::new, SegmentName::to_string);
                let segment = self.names(missing).first().copied().unwrap_or(self.stored.first);
                let Histories { server, pgdata, .. } = histories;
                let why = why_not_archived(&mut *server.lock().await, pgdata, segment).await;
                let left = self.last.0.saturating_sub(missing.0) + 1;
                let what = format!(
                    "the backup needs WAL up to {}; segment {name} is the first of {left} not in repository {repository}: {why}",
                    self.stored.last
                );
                if timed_out {
                    bail!(
                        "no backup was taken within {} (backup_wal_timeout): {what}\nHINT: Fix archiving \
                         and run the backup \
                         again.",
                        human::span(began.elapsed())
                    );
                }
                tracing::warn!("waiting: {what}");
                reported = Instant::now();
            }
            tokio::time::sleep(pause.min(limit.saturating_sub(began.elapsed()))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn is_transient(error: &anyhow::Error) -> bool {
    error.downcast_ref::<walpoint_storage::RepoError>().is_some_and(walpoint_storage::RepoError::is_transient)
}

#[cfg(test)]
mod tests {
    use walpoint_base::TimelineId;

    use super::*;

    fn name(text: &str) -> SegmentName {
        text.parse().unwrap()
    }

    /// The history of the timeline that comes after those in the text.
    fn history(text: &[u8]) -> TimelineHistory {
        let timeline = TimelineId::new(u32::try_from(text.split(|b| *b == b'\n').count()).unwrap()).unwrap();
        TimelineHistory::parse(timeline, text).unwrap()
    }

    fn needed(first: &str, last: &str, stop: Lsn, history: TimelineHistory) -> BackupWal {
        let size = SegmentSize::DEFAULT;
        let (first, last) = (name(first), name(last));
        BackupWal {
            size,
            first: first.number(size).unwrap(),
            last: last.number(size).unwrap(),
            stored: WalStored { first, last },
            history,
            stop,
            taken_over: OnceLock::new(),
        }
    }

    #[test]
    fn the_next_timelines_copy_takes_the_place_of_a_segment_that_is_never_finished() {
        let (first, last) = ("000000010000000000000004", "000000010000000000000005");
        let needed = needed(first, last, Lsn(0x500_0100), TimelineHistory::root(TimelineId::FIRST));
        let successors = |text: &[u8]| needed.successors(&history(text));
        let child = name("000000020000000000000005");
        assert_eq!(successors(b"1\t0/5000200\tx\n"), [child]);
        assert_eq!(successors(b"1\t0/5000100\tx\n"), [child], "at the end of the backup");
        assert_eq!(
            successors(b"1\t0/5000200\tx\n2\t0/5000300\ty\n"),
            [name("000000030000000000000005"), child]
        );
        assert_eq!(successors(b"1\t0/5000090\tx\n"), [], "the backup goes on behind it");
        assert_eq!(successors(b"1\t0/6000200\tx\n"), [], "the segment was finished");
        assert_eq!(needed.names(SegmentNo(5)), [name(last)]);
        needed.taken_over.set(child).unwrap();
        assert_eq!(needed.names(SegmentNo(5)), [name(last), child]);
        assert_eq!(needed.names(SegmentNo(4)), [name(first)]);
    }

    /// The upstream of a standby was promoted while that was backed up.
    #[test]
    fn a_segment_in_which_the_timeline_changed_is_the_newer_ones() {
        let forked = || history(b"1\t0/5000200\tx\n");
        let child = name("000000020000000000000005");
        // In the only one.
        let only = needed("000000010000000000000005", "000000020000000000000005", Lsn(0x500_0300), forked());
        assert_eq!(only.newest_first().collect::<Vec<_>>(), [child]);
        // In the first one, and in one in the middle.
        let last = name("000000020000000000000006");
        let first = needed("000000010000000000000005", "000000020000000000000006", Lsn(0x600_0300), forked());
        assert_eq!(first.newest_first().collect::<Vec<_>>(), [last, child]);
        let middle =
            needed("000000010000000000000004", "000000020000000000000006", Lsn(0x600_0300), forked());
        let before = name("000000010000000000000004");
        assert_eq!(middle.newest_first().collect::<Vec<_>>(), [last, child, before]);
    }
}
