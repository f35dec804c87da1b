//! Whether WAL belongs behind what is stored before it, and before what is stored behind it.
//!
//! A neighbor that this process stored needs no look: both came out of the same `pg_wal`. Any other is compared with the file
//! in `pg_wal`, by hash, where there is one, and otherwise by the records on both sides of the boundary. Where segments wait
//! between the two, the first of them shows whether it continues what is stored: they are one server's. Where segments are
//! missing in between, what the directory remembers of this archive tells ([`look_back`](super::look_back)). That takes one ranged
//! request for each: after the first segment of a timeline each finds the one before it known, and asks for the one behind.

use std::path::Path;

use futures_util::TryStreamExt;
use walpoint_base::chain::{ChainFacts, Link};
use walpoint_base::{SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::{WalArchive, WalHeader};
use walpoint_storage::RepoError;
use walpoint_storage::layout::WalEntry;

use super::comparison::{self, Comparison};
use super::disk;
use super::elsewhere;
use super::split_brain::SplitBrain;
use super::target::{TargetError, WalTarget};
use super::unreadable;
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

/// A file that is being stored, and what it is compared with.
pub(super) struct Newcomer<'a> {
    pub(super) target: &'a WalTarget,
    pub(super) archive: &'a WalArchive,
    /// Whose it is.
    pub(super) cluster: &'a WalIdentity,
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
    pub(super) around: &'a [WalTarget],
}

/// What is stored of a neighbor: how it compares with the file in the directory, and its edges, unless it is damaged.
pub(super) type Neighbor = Option<(Comparison, Option<ChainFacts>)>;

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

    pub(super) fn known(&self, name: SegmentName) -> bool {
        self.target.known(self.archive.lineage().id, |known| known.vouches_for(name))
    }

    pub(super) fn split(&self, what: String) -> TargetError {
        SplitBrain::new(self.archive, self.name.timeline, what).into()
    }

    /// As [`Self::split`], where nothing shows that it is one server's, and nothing that it is two.
    pub(super) fn not_shown(&self, what: String) -> TargetError {
        SplitBrain::new(self.archive, self.name.timeline, what).not_shown().into()
    }

    /// Whether it is stored itself, with this content.
    pub(super) async fn is_stored(&self) -> Result<bool, RepoError> {
        let compared = comparison::segment(self.archive, self.cluster, self.wal, self.name).await?;
        Ok(compared == Comparison::Same)
    }

    /// Whether a stored segment is this directory's as another repository shows.
    pub(super) async fn is_shown_elsewhere(&self, stored: SegmentName) -> Result<bool, RepoError> {
        elsewhere::shows((self.target, self.archive), self.around, self.cluster, self.wal, stored).await
    }

    /// Whether it has to show that what is stored is its own.
    pub(super) fn is_asked(&self) -> bool {
        self.answers && !self.witness && matches!(self.file, WalFileName::Segment(_))
    }

    pub(super) fn size(&self) -> SegmentSize {
        self.cluster.segment_size
    }

    /// Whether the directory has a finished segment: one that PostgreSQL marked as such, or that lies before this one. A server
    /// that does not archive marks none, and files that wait to be used again have later names.
    pub(super) async fn is_here(&self, name: SegmentName) -> Result<bool, RepoError> {
        let (size, wal) = (self.size(), self.wal.to_owned());
        let earlier = name.number(size) < self.name.number(size);
        let look =
            move || comparison::is_finished(&wal, name) || earlier && wal.join(name.to_string()).exists();
        Ok(disk::look(self.wal, look).await?)
    }

    pub(super) async fn judge(&self, name: SegmentName) -> Result<Neighbor, TargetError> {
        let header = match header(self.archive, name).await? {
            StoredNeighbor::Absent => return Ok(None),
            StoredNeighbor::Damaged => {
                self.is_noted_though_unreadable(name).await?;
                return Ok(Some((Comparison::Unknown, None)));
            }
            StoredNeighbor::Sound(header) => header,
        };
        let compared = match self.is_here(name).await? {
            true => comparison::content(self.archive, self.cluster, self.wal, name, header.hash).await?,
            false => Comparison::Unknown,
        };
        Ok(Some((compared, Some(header.chain))))
    }

    /// Refuses a segment behind one that cannot be read for long and that the directory does not remember to have stored: what is damaged
    /// stays so, and this one may be shown to be another server's when its disk is well again.
    async fn is_noted_though_unreadable(&self, stored: SegmentName) -> Result<(), TargetError> {
        let before = self.is_asked() && stored.timeline == self.name.timeline && stored < self.name;
        if !before || !unreadable::is_lasting(self.archive, stored) || self.has_noted(stored).await? {
            return Ok(());
        }
        Err(self.not_shown(format!(
            "segment {stored} is stored and cannot be read, although the repository answers, and nothing \
             shows that this server wrote \
             it\nHINT: Check the disk or the store, and run \"archive-agent verify\". If it stays \
             unreadable, move its object away."
        )))
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
        if self.has_claimed() || !comparison::finished(self.wal, next).await? {
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
            if self.known(next) || !comparison::finished(self.wal, next).await? {
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
    pub(super) async fn record_gap(
        &self,
        before: SegmentName,
        segment: SegmentName,
        what: &str,
    ) -> Result<(), TargetError> {
        self.archive.record_gap(before, segment, what).await?;
        tracing::error!(
            file = %segment,
            repository = self.target.name(),
            "it does not continue {before}, although both are this server's: {what}\nDETAIL: Recovery \
             cannot pass it, and the gap is recorded.\nHINT: Take a backup now."
        );
        Ok(())
    }
}

/// What is stored of a segment.
pub(super) enum StoredNeighbor {
    Absent,
    /// Its object is, or cannot be read for long, or it was accepted as such: it proves nothing.
    Damaged,
    Sound(Box<WalHeader>),
}

/// Looks at a segment that may be stored.
pub(super) async fn header(archive: &WalArchive, name: SegmentName) -> Result<StoredNeighbor, RepoError> {
    match unreadable::header(archive, name).await {
        Ok(None) => Ok(StoredNeighbor::Absent),
        Ok(Some(header)) if header.damaged => Ok(StoredNeighbor::Damaged),
        Ok(Some(header)) => Ok(StoredNeighbor::Sound(Box::new(header))),
        Err(RepoError::Corrupt { .. }) => Ok(StoredNeighbor::Damaged),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::claim::{self, SegmentClaim};
    use super::super::fixtures::{Bed, size};
    use super::super::known::Incarnation;
    use super::*;

    /// The cluster of a bed, and its repository for a process that has just begun.
    fn process(bed: &Bed) -> (WalTarget, WalIdentity, PathBuf) {
        let lineage = bed.archive.lineage();
        let cluster =
            WalIdentity { system_id: lineage.system_id(), major: lineage.major, segment_size: size() };
        (bed.target(true), cluster, bed.pgdata().join("pg_wal"))
    }

    /// A segment that its server offers.
    fn offered<'a>(
        bed: &'a Bed,
        (target, cluster, wal): &'a (WalTarget, WalIdentity, PathBuf),
        name: SegmentName,
    ) -> Newcomer<'a> {
        Newcomer {
            target,
            archive: &bed.archive,
            cluster,
            file: WalFileName::Segment(name),
            name,
            chain: None,
            history: None,
            wal,
            answers: true,
            writes: false,
            witness: false,
            around: &[],
        }
    }

    #[tokio::test]
    async fn behind_a_segment_that_cannot_be_read_for_long_only_its_own_server_archives() {
        let bed = Bed::new().await;
        let [stored, name]: [SegmentName; 2] =
            ["000000010000000000000001", "000000010000000000000002"].map(|name| name.parse().unwrap());
        bed.put(&stored.to_string(), 1).await;
        let hash = bed.archive.header(stored).await.unwrap().unwrap().hash;
        bed.make_unreadable(&stored.to_string());
        let process = process(&bed);
        let newcomer = offered(&bed, &process, name);
        for _ in 0..3 {
            assert!(newcomer.look_back().await.unwrap_err().is_transient(), "it may be an outage");
        }
        unreadable::age(&bed.archive);
        let refused = newcomer.look_back().await.unwrap_err().to_string();
        assert!(refused.contains("cannot be read") && refused.contains("archive-agent verify"), "{refused}");
        claim::note(&process.2, &bed.archive, SegmentClaim { segment: stored, hash }).unwrap();
        newcomer.look_back().await.unwrap();
    }

    /// Promises 1 and 12: where nothing could be noted, the content of a segment under the name that it was recycled for shows whose it is,
    /// and nothing of another content does.
    #[tokio::test]
    async fn a_recycled_segment_shows_whose_the_stored_one_is() {
        let bed = Bed::new().await;
        let [stored, name, later] =
            ["000000010000000000000001", "000000010000000000000002", "000000010000000000000009"];
        bed.put(stored, 1).await;
        let process = process(&bed);
        let newcomer = offered(&bed, &process, name.parse().unwrap());
        let refused = async || {
            let refused = newcomer.look_back().await.unwrap_err().to_string();
            assert!(refused.contains("nothing shows that this server wrote it"), "{refused}");
        };
        refused().await;
        let recycle = |seed| {
            bed.write(stored, seed);
            walpoint_base::durable::rename(&process.2.join(stored), &process.2.join(later)).unwrap();
        };
        recycle(2);
        refused().await;
        recycle(1);
        newcomer.look_back().await.unwrap();
    }

    /// Promise 1: what this process stored, or a person says is its own, needs no note.
    #[tokio::test]
    async fn what_could_not_be_noted_is_known_to_the_process() {
        for (stored, name) in [(1, 2), (1, 4)] {
            let bed = Bed::new().await;
            let [stored, name]: [SegmentName; 2] =
                [stored, name].map(|n| format!("00000001000000000000000{n}").parse().unwrap());
            bed.put(&stored.to_string(), 1).await;
            let process = process(&bed);
            let newcomer = offered(&bed, &process, name);
            newcomer.look_back().await.unwrap_err();
            process.0.take_for_own(bed.archive.lineage().id, stored, Incarnation::of(&bed.pgdata()));
            newcomer.look_back().await.unwrap();
        }
    }

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
