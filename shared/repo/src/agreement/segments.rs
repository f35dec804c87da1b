//! Segments of two archives: whole ones by their content, incomplete copies by what both hold.

use futures_util::TryStreamExt;
use futures_util::future::{join, try_join};
use walpoint_base::{Lsn, SegmentName, SegmentNo, TimelineHistory, TimelineId, WalFileName};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::WalEntry;

use super::{Agreement, COMPARED, begins_on, of_begins};
use crate::wal::partials::CopySurvey;
use crate::wal::prefix::{PrefixComparison, SegmentCopy, Surveyed};
use crate::wal::{WalArchive, WalHeader};

fn names<'a>(one: &'a WalArchive, other: &'a WalArchive) -> (&'a str, &'a str) {
    (one.repository().name(), other.repository().name())
}

/// Whether two archives hold the same content of the first of these segments of which both have a sound one: give the newest first.
/// No more than [`COMPARED`] are looked at. Two ranged requests for each; where each repository hashes with a key of its own, the
/// segment is read.
pub async fn newest(one: &WalArchive, other: &WalArchive, segments: &[SegmentName]) -> Result<Agreement> {
    Ok(newest_of(one, other, segments).await?.agreement)
}

async fn newest_of(one: &WalArchive, other: &WalArchive, segments: &[SegmentName]) -> Result<Around> {
    let (here, there) = names(one, other);
    for &name in segments.iter().take(COMPARED) {
        let agreement = match one.same_segment(other, name).await? {
            Some(true) => Agreement::Same,
            Some(false) => Agreement::Different(format!(
                "segment {name} of lineage {} has other content in repository \"{here}\" than in \"{there}\"",
                one.lineage().id
            )),
            // Missing or damaged in one of them: an older one shows it, too.
            None => continue,
        };
        return Ok(Around { agreement, compared: Some(name) });
    }
    let why =
        format!("repositories \"{here}\" and \"{there}\" have no sound segment in common that was looked at");
    Ok(Around { agreement: Agreement::Unknown(why), compared: None })
}

/// A segment and those before it on its timeline: what [`newest`] looks at where nothing is known of what the archives have.
pub fn older(archive: &WalArchive, name: SegmentName) -> Vec<SegmentName> {
    let size = archive.lineage().segment_size;
    let number = name.number(size);
    let older = (0..COMPARED as u64).map_while(move |back| number?.0.checked_sub(back).map(SegmentNo));
    older.map(|number| number.name(name.timeline, size)).collect()
}

/// What a comparison around a segment shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Around {
    /// Whether both hold one server's WAL there.
    pub agreement: Agreement,
    /// The whole segment that shows it.
    pub compared: Option<SegmentName>,
}

/// Whether two archives hold one server's WAL around a segment that the second one is about to give, and of which it says `header`,
/// after the first one gave what comes before: the segment itself, which is one ranged request; else where its timeline begins, the
/// newest segment around it that both have, and what the first one has of it that is incomplete: two histories, a listing of each and
/// two ranged requests.
pub async fn around(
    from: &WalArchive,
    to: &WalArchive,
    name: SegmentName,
    header: &WalHeader,
) -> Result<Around> {
    let size = to.lineage().segment_size;
    let unknown = |why| Around { agreement: Agreement::Unknown(why), compared: None };
    let Some(number) = name.number(size) else {
        return Ok(unknown(format!("no cluster with that segment size writes \"{name}\"")));
    };
    match from.header(name).await {
        Ok(Some(other)) if other.hash == header.hash => {
            return Ok(Around { agreement: Agreement::Same, compared: Some(name) });
        }
        Ok(_) | Err(RepoError::Corrupt { .. }) => {}
        Err(error) => return Err(error),
    }
    let first = SegmentNo(number.0.saturating_sub(COMPARED as u64)).name(name.timeline, size);
    let next = number.next().name(name.timeline, size);
    let (begins, listed) = join(
        of_histories(from, to, name.timeline),
        try_join(whole(from, first, next), whole(to, first, next)),
    )
    .await;
    let different = |agreement| Around { agreement, compared: None };
    if let Agreement::Different(what) = begins? {
        return Ok(different(Agreement::Different(what)));
    }
    let (ours, theirs) = listed?;
    let both: Vec<SegmentName> = ours.iter().rev().filter(|name| theirs.contains(name)).copied().collect();
    let newest = newest_of(from, to, &both).await?;
    if ours.contains(&name) || matches!(newest.agreement, Agreement::Different(_)) {
        return Ok(newest);
    }
    // The one that gave what comes before may have the beginning of this one.
    Ok(match incomplete(from, to, name, None).await? {
        Agreement::Different(what) => different(Agreement::Different(what)),
        Agreement::Same | Agreement::Unknown(_) => newest,
    })
}

/// Whether a timeline, and each on the path to it, begins at one position in two archives. A history that is missing or damaged shows
/// nothing. A request to each, at the same time.
pub async fn of_histories(from: &WalArchive, to: &WalArchive, timeline: TimelineId) -> Result<Agreement> {
    let (here, there) = names(from, to);
    Ok(match try_join(history(from, timeline), history(to, timeline)).await? {
        (Some(ours), Some(theirs)) => {
            of_begins(to.lineage(), (&begins_on(&ours), here), (&begins_on(&theirs), there))
        }
        _ if timeline == TimelineId::FIRST => Agreement::Same,
        _ => Agreement::Unknown(format!("the history of timeline {timeline} is not in both repositories")),
    })
}

async fn history(archive: &WalArchive, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
    match archive.history(timeline).await {
        Err(RepoError::Corrupt { .. }) => Ok(None),
        history => history,
    }
}

/// The whole segments of a timeline from one to another one, in order, but for what is inherited.
async fn whole(archive: &WalArchive, first: SegmentName, last: SegmentName) -> Result<Vec<SegmentName>> {
    let (mut found, mut entries) = (Vec::new(), archive.list(first.timeline, Some(first)));
    while let Some((entry, _)) = entries.try_next().await? {
        match entry {
            WalEntry::File(WalFileName::Segment(segment)) if segment > last => break,
            WalEntry::File(WalFileName::Segment(segment)) => found.push(segment),
            _ => {}
        }
    }
    Ok(found)
}

/// Whether what two archives hold of one segment is the same as far as both go, up to `until`, if that is given: the segment itself or
/// the incomplete copy that is read, and damaged ones as far as they show it. Whole segments of both are for [`newest`]. Copies that
/// contradict each other in one of them show nothing here: one of them may be what the other archive has. Two listings of each at the
/// same time, and what they show.
pub async fn incomplete(
    one: &WalArchive,
    other: &WalArchive,
    name: SegmentName,
    until: Option<Lsn>,
) -> Result<Agreement> {
    let copies = try_join(one.incomplete_copies(name), other.incomplete_copies(name)).await?;
    if copies.0.is_empty() && copies.1.is_empty() {
        return Ok(Agreement::Same);
    }
    let (ours, theirs) = try_join(ArchivedSegment::of(one, name), ArchivedSegment::of(other, name)).await?;
    let (here, there) = names(one, other);
    let start =
        name.number(one.lineage().segment_size).map(|number| number.start(one.lineage().segment_size));
    let limit = until.zip(start).map_or(u64::MAX, |(until, start)| until.since(start));
    if ours.whole && theirs.whole {
        return Ok(Agreement::Same);
    }
    let (mut agreement, lineage) = (Agreement::Same, one.lineage().id);
    let mut pairs: Vec<(&Surveyed, &Surveyed)> = Vec::new();
    pairs.extend(ours.read.iter().flat_map(|one| theirs.all().map(move |other| (one, other))));
    pairs.extend(theirs.read.iter().flat_map(|other| ours.damaged.iter().map(move |one| (other, one))));
    for (one, other) in pairs {
        let found = match one.compare(other, limit).await? {
            PrefixComparison::Same | PrefixComparison::Fits => Agreement::Same,
            PrefixComparison::Different => Agreement::Different(format!(
                "the incomplete copy of segment {name} of lineage {} has other content in repository \"{here}\" than in \"{there}\" \
                 (\"{}\", \"{}\")",
                lineage,
                one.key(),
                other.key()
            )),
            PrefixComparison::Unknown => Agreement::Unknown(format!(
                "it is not known whether \"{}\" in repository \"{}\" is the same server's as the copy in \"{}\", because that is \
                 damaged: {}",
                one.key(),
                one.repository(),
                other.repository(),
                other.fault().unwrap_or_default()
            )),
        };
        agreement = agreement.and(found);
    }
    Ok(agreement)
}

/// The incomplete copies of a segment in two archives that contradict each other, so that none of them is read; none where one of the
/// archives has the whole segment.
pub(super) async fn contradicting(
    one: &WalArchive,
    other: &WalArchive,
    name: SegmentName,
) -> Result<Vec<String>> {
    let joined = one.joined(vec![other.clone()]);
    match joined.header(name).await {
        Ok(Some(_)) => Ok(Vec::new()),
        Ok(None) | Err(RepoError::Corrupt { .. }) => joined.contradicting_copies(name).await,
        Err(error) => Err(error),
    }
}

/// What is wrong with a copy of a segment in an archive that may hold more than what another archive holds of it, which ends at
/// `until`. `None` if there is no such copy, or it is shown to hold no more.
pub(super) async fn damaged_beyond(
    read: &WalArchive,
    other: &WalArchive,
    name: SegmentName,
    until: Lsn,
) -> Result<Option<String>> {
    let (read, other) = try_join(ArchivedSegment::of(read, name), ArchivedSegment::of(other, name)).await?;
    for copy in other.damaged.iter().filter(|copy| copy.may_go_beyond(Some(until))) {
        let within = match &read.read {
            Some(read) => copy.is_beginning_of(read).await?,
            None => false,
        };
        if !within {
            let fault = copy.fault().unwrap_or_default();
            return Ok(Some(format!("in repository \"{}\": {fault}", copy.repository())));
        }
    }
    Ok(None)
}

/// What an archive has of one segment.
struct ArchivedSegment {
    whole: bool,
    read: Option<Surveyed>,
    damaged: Vec<Surveyed>,
}

impl ArchivedSegment {
    async fn of(archive: &WalArchive, name: SegmentName) -> Result<Self> {
        let header = match archive.header(name).await {
            // Then it is there.
            Err(RepoError::Corrupt { .. }) => true,
            header => header?.is_some(),
        };
        let CopySurvey { mut read, mut damaged, .. } = archive.read_and_damaged(name).await?;
        if header && let Some(whole) = archive.look_into(name, SegmentCopy::Whole).await? {
            match whole.fault() {
                None => read = Some(whole),
                Some(_) => damaged.push(whole),
            }
        }
        Ok(Self { whole: header, read, damaged })
    }

    fn all(&self) -> impl Iterator<Item = &Surveyed> {
        self.read.iter().chain(&self.damaged)
    }
}
