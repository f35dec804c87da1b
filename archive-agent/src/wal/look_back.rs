//! Whether WAL belongs behind what is stored before it: directly, behind segments that wait in the directory, or behind a gap.
//!
//! Of what waits, the segment next to what is stored shows whether it continues that. Behind a gap, and behind what does not lie
//! in the directory any more, what the directory remembers of this archive tells ([`claim`]), or another repository.

use futures_util::TryStreamExt;
use walpoint_base::chain::{ChainEnd, Link};
use walpoint_base::{SegmentName, TimelineId, WalFileName};
use walpoint_storage::layout::WalEntry;

use super::claim;
use super::comparison::{self, Comparison};
use super::damaged_copy;
use super::neighbors::{Newcomer, StoredNeighbor, before, header, newest_before, stored_between};
use super::target::TargetError;

/// Segments that are asked for one by one before a listing says which of them is stored.
const ONE_BY_ONE: usize = 4;

impl Newcomer<'_> {
    pub(super) async fn look_back(&self) -> Result<(), TargetError> {
        let first = match self.file {
            // Of the segment itself, more may be stored.
            WalFileName::Backup(..) => Some(self.name),
            _ => before(self.name, self.history, self.size()),
        };
        let (mut next, mut waiting) = (first, Vec::new());
        for _ in 0..ONE_BY_ONE {
            let Some(name) = next.filter(|name| !self.known(*name)) else { return Ok(()) };
            match self.judge(name).await? {
                Some((compared, chain)) => {
                    let end = chain.map_or(ChainEnd::UNKNOWN, |chain| chain.end);
                    return self.follows(name, compared, end, &waiting).await;
                }
                None => match self.is_here(name).await? {
                    true => waiting.push(name),
                    false => return self.behind_a_gap(name).await,
                },
            }
            next = before(name, self.history, self.size());
        }
        match next {
            Some(next) => self.behind_a_backlog(next, waiting).await,
            None => Ok(()),
        }
    }

    /// [`Self::look_back`] where many segments wait in the directory, with one listing for each of their timelines.
    async fn behind_a_backlog(
        &self,
        from: SegmentName,
        mut waiting: Vec<SegmentName>,
    ) -> Result<(), TargetError> {
        let mut next = Some(from);
        while let Some(name) = next {
            if !self.is_here(name).await? {
                break;
            }
            if self.known(name) {
                return Ok(());
            }
            waiting.push(name);
            next = before(name, self.history, self.size());
        }
        let mut end = waiting.len();
        for run in waiting.chunk_by(|one, other| one.timeline == other.timeline) {
            let (Some(newest), Some(oldest)) = (run.first(), run.last()) else { continue };
            let mut found = None;
            let mut listed = self.archive.list(oldest.timeline, Some(*oldest));
            while let Some((entry, _)) = listed.try_next().await? {
                match entry {
                    WalEntry::File(WalFileName::Segment(segment)) if segment > *newest => break,
                    WalEntry::File(WalFileName::Segment(segment)) => found = Some(segment),
                    _ => {}
                }
            }
            if found.is_some() {
                end = waiting.iter().position(|name| Some(*name) == found).unwrap_or(end);
                break;
            }
        }
        let (behind, stored) = waiting.split_at(end);
        match (stored.first(), next) {
            (Some(name), _) => match self.judge(*name).await? {
                Some((compared, chain)) => {
                    let end = chain.map_or(ChainEnd::UNKNOWN, |chain| chain.end);
                    self.follows(*name, compared, end, behind).await
                }
                // Deleted since it was listed.
                None => Ok(()),
            },
            (None, Some(next)) => match self.judge(next).await? {
                Some((compared, chain)) => {
                    let end = chain.map_or(ChainEnd::UNKNOWN, |chain| chain.end);
                    self.follows(next, compared, end, behind).await
                }
                None => self.behind_a_gap(next).await,
            },
            (None, None) => Ok(()),
        }
    }

    /// Whether what waits in the directory, nearest first, and then this file continue a stored segment.
    async fn follows(
        &self,
        stored: SegmentName,
        compared: Comparison,
        mut end: ChainEnd,
        waiting: &[SegmentName],
    ) -> Result<(), TargetError> {
        match compared {
            Comparison::Other(what) => return Err(self.split(what)),
            Comparison::Same => {
                let chain = self.chain.filter(|_| waiting.is_empty());
                return match chain.map(|chain| end.link(&chain)) {
                    Some(Link::Broken(found)) => self.record_gap(stored, self.name, &found.to_string()).await,
                    _ => Ok(()),
                };
            }
            Comparison::Unknown => {}
        }
        // A server that never archived what is stored may fit behind it all the same: equal loads write records of equal lengths.
        if end != ChainEnd::UNKNOWN && self.is_asked() && stored.timeline == self.name.timeline {
            let noted = self.has_noted(stored).await;
            let is_own = matches!(noted, Ok(true))
                || self.is_stored().await?
                || self.is_shown_elsewhere(stored).await?
                || self.has_recycled(stored).await?
                || self.has_damaged(stored).await?;
            if !is_own {
                // What could not be read may have shown it.
                noted?;
                return Err(self.not_shown(format!(
                    "segment {stored} is stored, pg_wal does not have it as it is stored, and nothing shows that this \
                     server wrote it{}",
                    self.same_server()
                )));
            }
        }
        let broken = |file: String, found| {
            self.split(format!("{file} does not continue {stored}, which is stored: {found}"))
        };
        for name in waiting.iter().rev() {
            let Some(chain) = comparison::edges(self.wal, *name, self.cluster).await else { return Ok(()) };
            if let Link::Broken(found) = end.link(&chain) {
                return Err(broken(format!("segment {name}, which is not stored,"), found));
            }
            if chain.begin.previous.is_some() {
                return Ok(());
            }
            end = end.after(&chain);
        }
        match self.chain.map(|chain| end.link(&chain)) {
            Some(Link::Broken(found)) => Err(broken(format!("segment {}", self.name), found)),
            _ => Ok(()),
        }
    }

    /// The newest segment of a timeline that the directory remembers to have stored in this archive, or this process for it, if that is
    /// there with this content still.
    async fn noted(&self, timeline: TimelineId) -> Result<Option<SegmentName>, TargetError> {
        match claim::newest((self.target, self.archive), self.wal, timeline).await? {
            Some(claim) => Ok(claim::unless_replaced(self.archive, claim).await?),
            None => Ok(None),
        }
    }

    /// Whether the directory remembers that it stored a segment, or one behind it on its timeline.
    pub(super) async fn has_noted(&self, stored: SegmentName) -> Result<bool, TargetError> {
        let noted = self.noted(stored.timeline).await?;
        Ok(noted.is_some_and(|claim| claim >= stored))
    }

    /// Whether the directory has a stored segment under the name of a later one that it waits to become.
    async fn has_recycled(&self, stored: SegmentName) -> Result<bool, TargetError> {
        match header(self.archive, stored).await? {
            StoredNeighbor::Sound(header) => {
                Ok(comparison::is_recycled(self.archive, self.wal, stored, header.hash).await)
            }
            StoredNeighbor::Absent | StoredNeighbor::Damaged => Ok(false),
        }
    }

    /// Whether the directory has a stored segment, damaged since then: what is sound of it, and what lies around it, show that. Where no note
    /// could be written, nothing else does.
    async fn has_damaged(&self, stored: SegmentName) -> Result<bool, TargetError> {
        if !self.is_here(stored).await? {
            return Ok(false);
        }
        let of = (self.target, self.archive);
        Ok(damaged_copy::is_own(of, self.cluster, self.wal, stored).await?)
    }

    /// Refuses what a server wrote or received behind a segment that is missing here and there, while segments before that one are
    /// stored that are not known to be this server's: it may have come from elsewhere to this place.
    async fn behind_a_gap(&self, missing: SegmentName) -> Result<(), TargetError> {
        let timeline = self.name.timeline;
        if !self.is_asked() || missing.timeline != timeline {
            return Ok(());
        }
        let noted = self.noted(timeline).await;
        let claim = noted.as_ref().ok().copied().flatten();
        let Some(other) = stored_between(self.archive, claim, Some(missing), timeline).await? else {
            return Ok(());
        };
        if self.is_stored().await? {
            return Ok(());
        }
        if let Some(newest) = newest_before(self.archive, missing).await?
            && (self.known(newest) || self.is_shown_elsewhere(newest).await?)
        {
            return Ok(());
        }
        // What could not be read may have shown it.
        noted?;
        Err(self.not_shown(format!(
            "segment {missing} is neither stored nor in pg_wal, {other} before it is stored, and nothing shows that this server wrote \
             what is stored before {}{}",
            self.name,
            self.same_server()
        )))
    }

    fn same_server(&self) -> String {
        format!(
            "\nHINT: If this server or a standby of it did, and pg_wal/{} was lost or names less, run \
             \"archive-agent push \
             --same-server {}\", and nothing else.",
            claim::FILE,
            self.wal.join(self.name.to_string()).display()
        )
    }
}
