//! Whether WAL belongs behind what is stored before it, and before what is stored behind it.
//!
//! A neighbor that this process stored needs no look: both came out of the same `pg_wal`. Any other is compared with the file
//! in `pg_wal`, by hash, where there is one, and otherwise by the records on both sides of the boundary. Where segments wait
//! between the two, the first of them shows whether it continues what is stored: they are one server's. Where segments are
//! missing in between, what the directory remembers of this archive tells ([`claim`]). That takes one ranged
//! request for each: after the first segment of a timeline each finds the one before it known, and asks for the one behind.

use std::path::Path;

use futures_util::TryStreamExt;
use walpoint_base::chain::{ChainEnd, ChainFacts, Link};
use walpoint_base::{SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::wal::Identity;
use walpoint_repo::wal::{WalArchive, WalHeader};
use walpoint_storage::RepoError;
use walpoint_storage::layout::WalEntry;

use super::claim;
use super::comparison::{self, Comparison};
use super::disk;
use super::elsewhere;
use super::split_brain::SplitBrain;
use super::target::{Target, TargetError};
use super::unwritten::unwritten;

/// The segment before one: on its own timeline, or where that begins on the one that the byte before it belongs to.
pub(super) fn before(
    name: SegmentName,
    history: Option<&TimelineHistory>,
    size: SegmentSize,
) -> Option<SegmentName> {
    let number = name.number(size)?;
    let before = SegmentNo(number.0.checked_sub(1)?);
    let last_byte = number.start(size) - 1;
    let timeline = history.map_or(name.timeline, |history| history.timeline_at(last_byte));
    Some(before.name(timeline, size))
}

/// Segments that are asked for one by one before a listing says which of them is stored.
const ONE_BY_ONE: usize = 4;

/// A file that is being stored, and what it is compared with.
pub(super) struct Newcomer<'a> {
    pub(super) target: &'a Target,
    pub(super) archive: &'a WalArchive,
    /// Whose it is.
    pub(super) cluster: &'a Identity,
    /// Which one: what is no segment belongs to one.
    pub(super) file: WalFileName,
    /// That segment.
    pub(super) name: SegmentName,
    /// What it shows of what it continues, and of what continues it.
    pub(super) chain: Option<ChainFacts>,
    /// Of its timeline.
    pub(super) history: Option<&'a TimelineHistory>,
    /// The directory it lies in.
    pub(super) wal: &'a Path,
    /// Whether the server of that directory answers for it: then it has to show that what is stored before it is its own.
    pub(super) answers: bool,
    /// Whether that server writes the timeline, so that there is nothing of it that the server has not written.
    pub(super) writes: bool,
    /// Whether it is only asked whose WAL the archive holds: then what nothing is known of does not count.
    pub(super) witness: bool,
    /// The repositories of the cluster.
    pub(super) around: &'a [Target],
}

/// What is stored of a neighbor: how it compares with the file in the directory, and its edges, unless it is damaged.
type Neighbor = Option<(Comparison, Option<ChainFacts>)>;

/// The newest segment that is stored before one on its timeline.
pub(super) async fn newest_before(
    archive: &WalArchive,
    name: SegmentName,
) -> Result<Option<SegmentName>, RepoError> {
    let (mut newest, mut entries) = (None, archive.list(name.timeline, None));
    while let Some((entry, _)) = entries.try_next().await? {
        match entry {
            WalEntry::File(WalFileName::Segment(segment)) if segment >= name => break,
            WalEntry::File(WalFileName::Segment(segment)) => newest = Some(segment),
            _ => {}
        }
    }
    Ok(newest)
}

/// The first segment of a timeline that is stored behind one, or first of all, and before another one.
pub(super) async fn stored_between(
    archive: &WalArchive,
    from: Option<SegmentName>,
    to: Option<SegmentName>,
    timeline: TimelineId,
) -> Result<Option<SegmentName>, RepoError> {
    let mut entries = archive.list(timeline, from);
    while let Some((entry, _)) = entries.try_next().await? {
        if entry.segment().is_some_and(|segment| to.is_some_and(|to| segment >= to)) {
            break;
        }
        if let WalEntry::File(WalFileName::Segment(segment)) = entry
            && from.is_none_or(|from| segment > from)
        {
            return Ok(Some(segment));
        }
    }
    Ok(None)
}

impl Newcomer<'_> {
    /// Refuses what does not belong to the server whose WAL is stored around it.
    ///
    /// Where the segment before it is not stored and lies in the same directory, the one before that one counts, and so on,
    /// and as long as nothing shows whose the timeline is, those behind it as well: nothing is stored that follows what was
    /// refused. Two servers that begin at the same moment see nothing of each other, so the same is asked once more when
    /// the segment is stored and not yet acknowledged: the one of the two that looks second finds the other one's.
    pub(super) async fn admit(&self) -> Result<(), TargetError> {
        self.look_back().await?;
        // Of a timeline that is this server's, what stands in the way of the next segment is found behind this one.
        if self.has_claimed() {
            return Ok(());
        }
        self.look_forward().await?;
        self.look_beyond().await
    }

    /// Asks once more, when the segment is stored.
    pub(super) async fn confirm(&self) -> Result<(), TargetError> {
        self.look_back().await?;
        self.look_forward().await
    }

    fn has_claimed(&self) -> bool {
        let timeline = self.name.timeline;
        self.target.known(self.archive.lineage().id, |known| known.has_claimed(timeline))
    }

    fn known(&self, name: SegmentName) -> bool {
        self.target.known(self.archive.lineage().id, |known| known.vouches_for(name))
    }

    fn split(&self, what: String) -> TargetError {
        SplitBrain::new(self.archive, self.name.timeline, what).into()
    }

    /// As [`Self::split`], where nothing shows that it is one server's, and nothing that it is two.
    fn not_shown(&self, what: String) -> TargetError {
        SplitBrain::new(self.archive, self.name.timeline, what).not_shown().into()
    }

    /// Whether it is stored itself, with this content.
    async fn is_stored(&self) -> Result<bool, RepoError> {
        let compared = comparison::segment(self.archive, self.cluster, self.wal, self.name).await?;
        Ok(compared == Comparison::Same)
    }

    /// Whether a stored segment is this directory's as another repository shows.
    async fn is_shown_elsewhere(&self, stored: SegmentName) -> Result<bool, RepoError> {
        elsewhere::shows((self.target, self.archive), self.around, self.cluster, self.wal, stored).await
    }

    /// Whether it has to show that what is stored is its own.
    fn is_asked(&self) -> bool {
        self.answers && !self.witness && matches!(self.file, WalFileName::Segment(_))
    }

    fn size(&self) -> SegmentSize {
        self.cluster.segment_size
    }

    /// Whether the directory has a finished segment: one that PostgreSQL marked as such, or that lies before this one. A server
    /// that does not archive marks none, and files that wait to be used again have later names.
    fn is_here(&self, name: SegmentName) -> bool {
        let size = self.size();
        comparison::is_finished(self.wal, name)
            || name.number(size) < self.name.number(size) && self.wal.join(name.to_string()).exists()
    }

    async fn judge(&self, name: SegmentName) -> Result<Neighbor, TargetError> {
        let header = match header(self.archive, name).await? {
            Stored::Absent => return Ok(None),
            Stored::Damaged => return Ok(Some((Comparison::Unknown, None))),
            Stored::Sound(header) => header,
        };
        let compared = match self.is_here(name) {
            true => comparison::content(self.archive, self.cluster, self.wal, name, header.hash).await,
            false => Comparison::Unknown,
        };
        Ok(Some((compared, Some(header.chain))))
    }

    async fn look_back(&self) -> Result<(), TargetError> {
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
                None if self.is_here(name) => waiting.push(name),
                None => return self.behind_a_gap(name).await,
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
        while let Some(name) = next.filter(|name| self.is_here(*name)) {
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
        if end != ChainEnd::UNKNOWN
            && self.is_asked()
            && stored.timeline == self.name.timeline
            && !self.has_noted(stored).await?
            && !self.is_stored().await?
            && !self.is_shown_elsewhere(stored).await?
        {
            return Err(self.not_shown(format!(
                "segment {stored} is stored and not in pg_wal, and nothing shows that this server wrote it{}",
                self.same_server()
            )));
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

    /// The newest segment of a timeline that the directory remembers to have stored in this archive, if that is there with this
    /// content still.
    async fn noted(&self, timeline: TimelineId) -> Result<Option<SegmentName>, TargetError> {
        let (directory, archive) = (self.wal.to_owned(), self.archive.clone());
        let claim = disk::run(self.wal, move || claim::read(&directory, &archive, timeline))
            .await
            .map_err(RepoError::from)?;
        let Some(claim) = claim else { return Ok(None) };
        Ok(match header(self.archive, claim.segment).await? {
            Stored::Sound(header) if header.hash != claim.hash => None,
            // It may have expired, and what is damaged proves nothing.
            _ => Some(claim.segment),
        })
    }

    /// Whether the directory remembers that it stored a segment, or one behind it on its timeline.
    async fn has_noted(&self, stored: SegmentName) -> Result<bool, TargetError> {
        let noted = self.noted(stored.timeline).await?;
        Ok(noted.is_some_and(|claim| claim >= stored))
    }

    /// Refuses what a server wrote or received behind a segment that is missing here and there, while segments before that one are
    /// stored that are not known to be this server's: it may have come from elsewhere to this place.
    async fn behind_a_gap(&self, missing: SegmentName) -> Result<(), TargetError> {
        let timeline = self.name.timeline;
        if !self.is_asked() || missing.timeline != timeline {
            return Ok(());
        }
        let claim = self.noted(timeline).await?;
        let Some(other) = stored_between(self.archive, claim, Some(missing), timeline).await? else {
            return Ok(());
        };
        if self.is_stored().await? {
            return Ok(());
        }
        if let Some(newest) = newest_before(self.archive, missing).await?
            && self.is_shown_elsewhere(newest).await?
        {
            return Ok(());
        }
        Err(self.not_shown(format!(
            "segment {missing} is neither stored nor in pg_wal, {other} before it is stored, and nothing shows that this server wrote \
             what is stored before {}{}",
            self.name,
            self.same_server()
        )))
    }

    fn same_server(&self) -> String {
        format!(
            "; if it did, or a standby of it, and pg_wal/{} was lost or names less, run \"archive-agent push --same-server \
             {}\", and nothing else",
            claim::FILE,
            self.wal.join(self.name.to_string()).display()
        )
    }

    /// Refuses the WAL of a server that has not come to where what is stored ends.
    async fn look_beyond(&self) -> Result<(), TargetError> {
        if !self.writes || !matches!(self.file, WalFileName::Segment(_)) {
            return Ok(());
        }
        match unwritten(self.archive, self.wal, self.name.timeline, self.size()).await? {
            Some(split) => Err(split.into()),
            None => Ok(()),
        }
    }

    async fn look_forward(&self) -> Result<(), TargetError> {
        let (size, timeline) = (self.size(), self.name.timeline);
        let Some(next) = self.name.number(size).map(|number| number.next().name(timeline, size)) else {
            return Ok(());
        };
        if self.known(next) {
            return Ok(());
        }
        if let Some((compared, chain)) = self.judge(next).await? {
            let link = self.chain.zip(chain).map_or(Link::Continues, |(own, chain)| own.end.link(&chain));
            return self.is_followed(self.name, next, compared, link).await;
        }
        if self.has_claimed() || !comparison::is_finished(self.wal, next) {
            return Ok(());
        }
        // A backlog: one listing says whether there is anything to compare.
        let Some(stored) = stored_between(self.archive, Some(self.name), None, timeline).await? else {
            return Ok(());
        };
        let mut last = next;
        while let Some(next) = last.number(size).map(|number| number.next().name(timeline, size))
            && next < stored
        {
            if self.known(next) || !comparison::is_finished(self.wal, next) {
                return Ok(());
            }
            last = next;
        }
        let Some((compared, chain)) = self.judge(stored).await? else { return Ok(()) };
        let edges = comparison::edges(self.wal, last, self.cluster).await;
        let link = edges.zip(chain).map_or(Link::Continues, |(last, chain)| last.end.link(&chain));
        self.is_followed(last, stored, compared, link).await
    }

    /// Whether a stored segment continues one of this server's, which is this one or waits behind it.
    async fn is_followed(
        &self,
        last: SegmentName,
        stored: SegmentName,
        compared: Comparison,
        link: Link,
    ) -> Result<(), TargetError> {
        match (compared, link) {
            (Comparison::Other(what), _) => Err(self.split(what)),
            (Comparison::Unknown, Link::Broken(found)) => {
                Err(self
                    .split(format!("segment {stored}, which is stored, does not continue {last}: {found}")))
            }
            (Comparison::Same, Link::Broken(found)) if last == self.name => {
                self.record_gap(self.name, stored, &found.to_string()).await
            }
            _ => Ok(()),
        }
    }

    /// One server wrote both segments, and recovery cannot get from one to the other.
    async fn record_gap(
        &self,
        before: SegmentName,
        segment: SegmentName,
        what: &str,
    ) -> Result<(), TargetError> {
        self.archive.record_gap(before, segment, what).await?;
        tracing::error!(
            file = %segment,
            repository = self.target.name(),
            "it does not continue {before}, though both are this server's: {what}; recovery cannot pass it, and the gap is on \
             record. HINT: take a backup now"
        );
        Ok(())
    }
}

/// What is stored of a segment.
pub(super) enum Stored {
    Absent,
    /// Its object is, or it was accepted as such: it proves nothing.
    Damaged,
    Sound(Box<WalHeader>),
}

/// Looks at a segment that may be stored.
pub(super) async fn header(archive: &WalArchive, name: SegmentName) -> Result<Stored, RepoError> {
    match archive.header(name).await {
        Ok(None) => Ok(Stored::Absent),
        Ok(Some(header)) if header.damaged => Ok(Stored::Damaged),
        Ok(Some(header)) => Ok(Stored::Sound(Box::new(header))),
        Err(RepoError::Corrupt { .. }) => Ok(Stored::Damaged),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_segment_of_a_timeline_follows_one_of_its_parent() {
        let size = SegmentSize::DEFAULT;
        let history = TimelineHistory::parse(
            TimelineId::new(3).unwrap(),
            b"1\t0/5000060\tno recovery target specified\n2\t0/7000000\tno recovery target specified\n",
        )
        .unwrap();
        for (name, expected) in [
            ("000000030000000000000009", "000000030000000000000008"),
            ("000000030000000000000008", "000000030000000000000007"),
            ("000000030000000000000007", "000000020000000000000006"),
            ("000000030000000000000005", "000000010000000000000004"),
        ] {
            let found = before(name.parse().unwrap(), Some(&history), size).unwrap();
            assert_eq!(found.to_string(), expected, "{name}");
        }
        let first = before("000000010000000000000001".parse().unwrap(), None, size).unwrap();
        assert_eq!(first.to_string(), "000000010000000000000000");
        assert_eq!(before(first, None, size), None);
    }
}
