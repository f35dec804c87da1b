//! Proving to the letter that a file is not in the archive; the rules are in [`super::absence`].
//!
//! A store's "no such object" counts only from the right repository. So its descriptor and the lineage are read before and
//! after everything else that this attempt asks: a directory that was unmounted, or a bucket that was replaced, in between
//! is noticed. They are what the recovery began with, or the repository would not have been opened ([`super::origin`]), and
//! what it was seen to hold has to be there still: an older copy of it, at the same place, proves nothing.

use std::sync::Arc;

use anyhow::{Context, bail};
use futures_util::TryStreamExt;
use walpoint_base::diagnostic::shown;
use walpoint_base::{Diagnostic, Lsn, SegmentName, SegmentSize, TimelineId, WalFileName};
use walpoint_plan::restore::{ForkSegment, SegmentDecoder};
use walpoint_repo::index::TimelineIndex;
use walpoint_repo::lineage::AckMember;
use walpoint_repo::wal::WalArchive;
use walpoint_repo::{Acknowledging, is_among};
use walpoint_storage::RepoError;
use walpoint_storage::layout::WalEntry;
use walpoint_storage::object::RepositoryId;
use walpoint_words::format_chain;

use crate::decoder::WalDecoder;
use crate::wal::absence::{self, Surroundings};
use crate::wal::archive::{ClusterArchive, FetchResult, Missing};
use crate::wal::lost_history::{history_or_younger, is_damaged};
use crate::wal::refusal::Unproven;
use crate::wal::source::{Failed, listed};

/// Judges whether a file is absent that the repositories in `missing` do not have, while others failed.
pub(crate) async fn absence(
    archive: &ClusterArchive,
    name: WalFileName,
    missing: &[Missing<'_>],
    failures: Vec<Failed>,
) -> FetchResult {
    let (mut around, names) = match surroundings(archive, Look::Around(name), missing, failures).await {
        Ok(found) => found,
        Err(why) => return why.into(),
    };
    if let WalFileName::Segment(segment) = name
        && archive.segment_size().is_some_and(|size| absence::hinges_on_copy(segment, size, &around))
    {
        let proven: Vec<&Missing<'_>> =
            missing.iter().filter(|source| names.contains(&source.name)).collect();
        match copied_until(&proven, segment).await {
            Ok(Some(_)) => {}
            Ok(None) => around.incomplete = None,
            Err(error) => return FetchResult::Uncertain(format_chain(&error)),
        }
    }
    let judged = match name {
        WalFileName::Segment(segment) => of_size(archive)
            .and_then(|size| absence::of_segment(segment, size, &around))
            .map_err(Unproven::from)
            .and_then(|()| absence::of_younger(archive.youngest_planned(), &around)),
        // A higher number is in use without this one where a lineage was split off, or a timeline's history was lost.
        WalFileName::History(timeline) if archive.goal() > Some(timeline) || archive.stays_on(timeline) => {
            Ok(())
        }
        WalFileName::History(timeline) => absence::of_history(timeline, &around).map_err(Unproven::from),
        // Nothing follows from these, and recovery asks for neither.
        WalFileName::Backup(..) | WalFileName::Partial(_) => Ok(()),
    };
    match judged {
        Ok(()) => FetchResult::Absent(format!("\"{name}\" is not in the archive ({})", names.join(", "))),
        Err(why) => why.into(),
    }
}

/// Whether recovery may end in a segment that is built: nothing shows that more of its timeline was written. The repositories in
/// `missing` do not have it under its own name, others failed. `seen`: of what was streamed of it, all was looked at that was there when
/// recovery asked, and what came since is not asked for.
pub(crate) async fn unfinished(
    archive: &ClusterArchive,
    segment: &ForkSegment,
    (missing, seen): (&[Missing<'_>], bool),
    failures: Vec<Failed>,
) -> Result<(), Unproven> {
    let look = Look::Around(WalFileName::Segment(segment.name));
    let (mut around, proven) = surroundings(archive, look, missing, failures).await?;
    let proven: Vec<&Missing<'_>> = missing.iter().filter(|source| proven.contains(&source.name)).collect();
    let size = of_size(archive)?;
    let copied = copied_until(&proven, segment.name).await.map_err(|e| format_chain(&e))?;
    around.copied_until = copied.filter(|_| !seen);
    absence::of_rest(segment.name, segment.cut, size, &around)?;
    absence::of_younger(archive.youngest_planned(), &around)
}

/// Where the last record ends that the incomplete copies of a segment hold, as a plan would find it now: in all repositories together;
/// `None` if no record is complete in them. An error if a damaged one may hold more.
async fn copied_until(proven: &[&Missing<'_>], name: SegmentName) -> anyhow::Result<Option<Lsn>> {
    let Some(wal) = joined(proven) else { return Ok(None) };
    let until = wal.copied_until(name, &decoder()).await?;
    if let Some(damaged) = wal.damaged_copy_beyond(name, until).await? {
        bail!(damaged);
    }
    for source in proven {
        confirm(&source.wal).await?;
    }
    Ok(until)
}

/// Whether a record is complete behind a position in these copies. An error if a damaged one may hold one.
async fn is_copied_beyond(proven: &[&Missing<'_>], name: SegmentName, at: Lsn) -> anyhow::Result<bool> {
    let Some(wal) = joined(proven) else { return Ok(false) };
    let is_beyond = wal.copied_until(name, &decoder()).await? > Some(at);
    if !is_beyond && let Some(damaged) = wal.damaged_copy_beyond(name, Some(at)).await? {
        bail!(damaged);
    }
    for source in proven {
        confirm(&source.wal).await?;
    }
    Ok(is_beyond)
}

/// What these repositories have, read as one archive.
fn joined(proven: &[&Missing<'_>]) -> Option<WalArchive> {
    let (first, others) = proven.split_first()?;
    Some(first.wal.joined(others.iter().map(|other| other.wal.clone()).collect()))
}

/// Whether recovery may end in a segment that is built, up to where the path to the latest moment leaves its timeline (`at`): nothing of
/// a younger timeline that left it there or later is in the archive, or nothing of `heir`, if that is the one the path leads to.
pub(crate) async fn left(
    archive: &ClusterArchive,
    segment: SegmentName,
    at: Lsn,
    heir: Option<TimelineId>,
) -> Result<(), Unproven> {
    let (opened, failures) = archive.open_all().await;
    let (mut around, names) = surroundings(archive, Look::Younger(segment, at), &opened, failures).await?;
    let proven: Vec<&Missing<'_>> = opened.iter().filter(|source| names.contains(&source.name)).collect();
    for sliced in std::mem::take(&mut around.sliced) {
        if is_copied_beyond(&proven, sliced, at).await.map_err(|error| format_chain(&error))? {
            around.heirs.push(sliced.timeline);
        }
    }
    absence::of_heirs(heir, &around)?;
    absence::of_younger(archive.youngest_planned(), &around)
}

fn decoder() -> Arc<dyn SegmentDecoder> {
    Arc::new(WalDecoder)
}

fn of_size(archive: &ClusterArchive) -> Result<SegmentSize, String> {
    archive.segment_size().ok_or_else(|| "no repository has reported the size of segments".to_owned())
}

/// What is looked at in a repository.
#[derive(Clone, Copy, Debug)]
enum Look {
    /// What bears on the absence of a file.
    Around(WalFileName),
    /// Only what timelines that left this one there or later have of a segment and behind it, incomplete copies included.
    Younger(SegmentName, Lsn),
}

/// What a repository knows of those that acknowledge.
enum Word {
    Known(Acknowledging),
    /// It cannot be read.
    Damaged(RepoError),
}

/// What the repositories show, and the names of those that did; else why that is not enough.
async fn surroundings<'a>(
    archive: &ClusterArchive,
    look: Look,
    sources: &[Missing<'a>],
    mut failures: Vec<Failed>,
) -> Result<(Surroundings, Vec<&'a str>), Unproven> {
    let mut around = Surroundings::default();
    let mut proven: Vec<(&str, RepositoryId)> = Vec::new();
    let (mut members, mut replaced) = (Vec::new(), Vec::new());
    let (mut unread, mut known) = (Vec::new(), Vec::new());
    for source in sources {
        match look_around(archive, &source.wal, look, &mut around).await {
            Ok(Word::Known(acknowledging)) => {
                proven.push((source.name, source.wal.repository().id()));
                members.extend(acknowledging.members);
                replaced.extend(acknowledging.replaced);
                known.push(source.wal.repository().id());
            }
            Ok(Word::Damaged(damage)) => unread.push((source, damage)),
            Err(error) => {
                // Another repository may be in its place by now.
                archive.close(source.name);
                let repository = source.name.to_owned();
                failures.push(Failed { repository, why: format_chain(&error), refused: false });
                members.extend(source.wal.lineage().ack.iter().cloned());
            }
        }
    }
    // Another one of those that acknowledge knows which ones do. A repository beside them may not have heard of all.
    let is_known = known.iter().any(|id| is_among(&members, *id));
    for (source, damage) in unread {
        if is_known {
            proven.push((source.name, source.wal.repository().id()));
            continue;
        }
        members.extend(source.wal.lineage().ack.iter().cloned());
        failures.push(Failed {
            repository: source.name.to_owned(),
            why: walpoint_words::error(&damage).into(),
            refused: false,
        });
    }
    let unproven = unproven(archive, (&members, &replaced), &proven);
    if !unproven.is_empty() {
        let why = not_enough(&unproven, archive.left_out(), &failures, !proven.is_empty());
        return Err(Unproven::by(&failures, why));
    }
    Ok((around, proven.into_iter().map(|(name, _)| name).collect()))
}

/// Why what the repositories say is no proof, and what to do: some have not said it. `left_out`: by `--repo`. `any`: whether one has said
/// it.
fn not_enough(unproven: &[String], left_out: &[String], failures: &[Failed], any: bool) -> String {
    let names: Vec<String> = unproven.iter().map(|name| shown(name)).collect();
    let (names, mut why) = (names.join(", "), listed(failures));
    if why.is_empty() {
        let read = if left_out.is_empty() { "are configured here" } else { "--repo names" };
        why = format!(
            "none of the repositories that {read} has it, but {names} must confirm that too and is not among them"
        );
    }
    if !any {
        return why;
    }
    let lost = format!(
        "Only if {names} is lost for good, with everything that it alone held, name it in \
         lost_repositories in the cluster's configuration: recovery then ends without it."
    );
    let to_name: Vec<String> =
        unproven.iter().filter(|name| left_out.contains(name)).map(|name| shown(name)).collect();
    let hint = match to_name.is_empty() {
        true => lost,
        false => {
            let to_name = to_name.join(" --repo ");
            format!("Add \"--repo {to_name}\" to restore_command, or remove --repo there. {lost}")
        }
    };
    Diagnostic::new(why).hint(hint).into()
}

/// The repositories that acknowledge and have not proven that they do not have the file.
fn unproven(
    archive: &ClusterArchive,
    (members, replaced): (&[AckMember], &[RepositoryId]),
    proven: &[(&str, RepositoryId)],
) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let configured = archive.acknowledging().iter().filter(|name| !proven.iter().any(|(p, _)| p == name));
    names.extend(configured.cloned());
    // In the place of one that was lost another one acknowledges.
    let is_settled = |id: RepositoryId| replaced.contains(&id) || proven.iter().any(|(_, p)| *p == id);
    for member in members.iter().filter(|member| !is_settled(member.repository)) {
        if !names.contains(&member.name) {
            names.push(member.name.clone());
        }
    }
    for (name, _) in archive.origin().acknowledging().into_iter().filter(|(_, id)| !is_settled(*id)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.retain(|name| !archive.without().contains(name));
    if names.is_empty() && proven.is_empty() {
        names.push("a repository".to_owned());
    }
    names
}

/// Reads everything in a repository that bears on the absence of a file.
async fn look_around(
    archive: &ClusterArchive,
    wal: &WalArchive,
    look: Look,
    around: &mut Surroundings,
) -> anyhow::Result<Word> {
    confirm(wal).await?;
    confirm_newest(archive, wal).await?;
    let name = match look {
        Look::Around(name) => name,
        Look::Younger(segment, at) => {
            on_younger_timelines(archive, wal, segment, Some(at), around).await?;
            return confirm(wal).await;
        }
    };
    if wal.repository().store().head(&wal.paths().file(name)).await?.is_some() {
        bail!("\"{name}\" has just arrived");
    }
    match name {
        WalFileName::Segment(segment) => around_segment(archive, wal, segment, around).await?,
        WalFileName::History(timeline) => around_history(wal, timeline, around).await?,
        WalFileName::Backup(..) | WalFileName::Partial(_) => {}
    }
    confirm(wal).await
}

/// Reads descriptor and lineage and holds them against what they were; the repositories that acknowledge by now.
async fn confirm(wal: &WalArchive) -> anyhow::Result<Word> {
    wal.repository().read_descriptor_again().await?;
    let known = wal.lineage();
    let found = wal.repository().read_lineage(&known.cluster, known.id).await?;
    let found =
        found.with_context(|| format!("lineage {} of cluster {} is gone", known.id, known.cluster))?;
    if found != *known {
        bail!("lineage {} of cluster {} is not what it was", known.id, known.cluster);
    }
    match wal.repository().acknowledging(known).await {
        Ok(acknowledging) => Ok(Word::Known(acknowledging)),
        Err(damage @ RepoError::Corrupt { .. }) => Ok(Word::Damaged(damage)),
        Err(error) => Err(error.into()),
    }
}

/// Looks for the newest segment that the repository was seen to hold, or what shows that it went on from there: something
/// later on that timeline, or a timeline that left it later, after `expire` has removed the segment itself.
async fn confirm_newest(archive: &ClusterArchive, wal: &WalArchive) -> anyhow::Result<()> {
    let Some(newest) = archive.origin().newest(wal.repository().id()) else { return Ok(()) };
    let mut entries = wal.list(newest.timeline, Some(newest));
    while let Some((entry, _)) = entries.try_next().await? {
        if !matches!(entry, WalEntry::Part(_) | WalEntry::Gap(_)) {
            return Ok(());
        }
    }
    let start = newest.number(wal.lineage().segment_size).map(|n| n.start(wal.lineage().segment_size));
    for timeline in wal.histories().await?.into_iter().filter(|timeline| *timeline > newest.timeline) {
        let history = archive.history_in(wal, timeline).await?;
        if history.and_then(|history| history.end_of(newest.timeline)) >= start {
            return Ok(());
        }
    }
    bail!(
        "\"{newest}\", which it held earlier in this recovery, is gone, and so is all WAL after it: this is an older \
         copy of the repository, or one that lost WAL\nHINT: Check that everything is mounted."
    )
}

async fn around_segment(
    archive: &ClusterArchive,
    wal: &WalArchive,
    name: SegmentName,
    around: &mut Surroundings,
) -> anyhow::Result<()> {
    if wal.inherits(name) {
        bail!(
            "\"{name}\" is before the fork from the parent of lineage {}, which should have it",
            wal.lineage().id
        );
    }
    let mut looked = false;
    let mut entries = wal.list(name.timeline, Some(name));
    while let Some((entry, object)) = entries.try_next().await? {
        match entry {
            // What an upload left that never finished was not acknowledged.
            WalEntry::Part(_)
            | WalEntry::Gap(_)
            | WalEntry::RefusedHistory(..)
            | WalEntry::AbandonedTimeline(_)
            | WalEntry::SettledHistory(..) => {}
            WalEntry::File(WalFileName::Segment(found)) if found == name => {
                bail!("\"{name}\" has just arrived")
            }
            WalEntry::Partial(found, _) | WalEntry::Ended(found, ..) if found == name => {
                around.incomplete.get_or_insert_with(|| object.key.to_string());
            }
            WalEntry::Slice(found, ..) if found == name => {
                around.incomplete.get_or_insert_with(|| object.key.to_string());
                // What counts of the first one counts of all.
                if !std::mem::replace(&mut looked, true) {
                    around.streamed |= wal.is_streamed(name).await?;
                }
            }
            WalEntry::File(_) | WalEntry::Partial(..) | WalEntry::Ended(..) | WalEntry::Slice(..) => {
                around.later.get_or_insert_with(|| object.key.file_name().to_owned());
                return Ok(());
            }
        }
    }
    // What the index names was stored. `expire` takes out of it what it deletes.
    let (indexed, size) = (TimelineIndex::load(wal, name.timeline).await?.last(), wal.lineage().segment_size);
    if let Some(indexed) = indexed.filter(|indexed| Some(*indexed) >= name.number(size)) {
        around.indexed.get_or_insert(indexed.name(name.timeline, size));
        return Ok(());
    }
    on_younger_timelines(archive, wal, name, None, around).await
}

/// Reads the histories of all younger timelines, and which of them have a segment of the same number, whole. `left_at`: which of those
/// that left this one there or later have any WAL of their own.
async fn on_younger_timelines(
    archive: &ClusterArchive,
    wal: &WalArchive,
    name: SegmentName,
    left_at: Option<Lsn>,
    around: &mut Surroundings,
) -> anyhow::Result<()> {
    for timeline in wal.histories().await? {
        if timeline <= name.timeline {
            continue;
        }
        let history = match archive.history_in(wal, timeline).await {
            Err(error) if is_damaged(&error) => match archive.history(timeline).await {
                Ok(Some(history)) => Some(history),
                // The plan knew that.
                _ if archive.is_without(timeline) => continue,
                _ => history_or_younger(archive, wal, timeline).await?,
            },
            other => other?,
        };
        let history =
            history.with_context(|| format!("the history of timeline {timeline} was listed and is gone"))?;
        let own_copy = SegmentName { timeline, ..name };
        let shown = match left_at {
            None => {
                let is_heir = history.contains(name.timeline)
                    && wal.repository().store().head(&wal.paths().segment(own_copy)).await?.is_some();
                if is_heir { WalBehind::Some } else { WalBehind::None }
            }
            Some(at) if history.end_of(name.timeline) >= Some(at) => wal_behind(wal, own_copy, at).await?,
            Some(_) => WalBehind::None,
        };
        match shown {
            WalBehind::None => {}
            WalBehind::Slices => drop(around.sliced.insert(own_copy)),
            WalBehind::Some => around.heirs.push(timeline),
        }
        around.histories.push(history);
        around.younger.push((timeline, wal.repository().name().to_owned()));
    }
    Ok(())
}

/// What a listing shows of a timeline behind a position in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum WalBehind {
    None,
    /// Slices of that segment: only what they hold shows whether there is more.
    Slices,
    Some,
}

/// Whether anything shows that a timeline has WAL behind a position in that segment: the segment, a part of it that reaches further,
/// or anything later. A plan counts on the same.
async fn wal_behind(wal: &WalArchive, segment: SegmentName, at: Lsn) -> anyhow::Result<WalBehind> {
    let mut entries = wal.list(segment.timeline, Some(segment));
    let mut behind = WalBehind::None;
    while let Some((entry, _)) = entries.try_next().await? {
        match entry {
            WalEntry::Part(_)
            | WalEntry::Gap(_)
            | WalEntry::RefusedHistory(..)
            | WalEntry::AbandonedTimeline(_)
            | WalEntry::SettledHistory(..) => {}
            WalEntry::Ended(found, end, _) if found == segment && end <= at => {}
            WalEntry::Slice(found, ..) if found == segment => behind = WalBehind::Slices,
            // Its server was promoted, or it was streamed from one that had begun the timeline.
            WalEntry::File(_) | WalEntry::Partial(..) | WalEntry::Ended(..) | WalEntry::Slice(..) => {
                return Ok(WalBehind::Some);
            }
        }
    }
    Ok(behind)
}

async fn around_history(
    wal: &WalArchive,
    timeline: TimelineId,
    around: &mut Surroundings,
) -> anyhow::Result<()> {
    around.later_timelines.extend(wal.histories().await?.into_iter().filter(|other| *other > timeline));
    let mut entries = wal.list(timeline, None);
    while let Some((entry, object)) = entries.try_next().await? {
        if !matches!(entry, WalEntry::Part(_) | WalEntry::Gap(_)) {
            around.later.get_or_insert_with(|| object.key.file_name().to_owned());
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
