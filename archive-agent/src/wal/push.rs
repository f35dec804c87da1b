//! `archive-agent push`: one file, without a daemon. What `archive-push` becomes when no daemon answers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use walpoint_base::dropped::{self, DropReason, Recorded};
use walpoint_base::{Diagnostic, SegmentName, SegmentNo, TimelineHistory, WalFileName};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::backoff::Backoff;
use walpoint_runtime::config::duration;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::human;
use walpoint_runtime::owner;
use walpoint_storage::store::StoreSettings;

use super::check::history_in;
use super::dropped::is_archived_after_all;
use super::handed_over::{self, Giver};
use super::known::Incarnation;
use super::postmaster::time_limit;
use super::queue::{Overflow, Queue};
use super::upload::{UploadError, Uploader};
use super::{ancestry, claim, disk};
use crate::selection::{pgdata, selections};

/// How long a cluster's directory may take to say where it is, before its file is taken for another cluster's.
const CANONICAL: Duration = Duration::from_secs(3);

/// Makes a file durable in every repository that has to acknowledge, trying as long as a push may.
pub(crate) async fn push(common: &CommonArgs, path: &Path, accept_damaged: bool) -> Result<(), Failure> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let name: WalFileName = file.parse().with_context(|| format!("cannot archive {}", path.display()))?;
    let path = std::path::absolute(path).with_context(|| format!("cannot archive {}", path.display()))?;
    let selection = choose(common, &path).await?;
    let pgdata = pgdata(&selection)?;
    owner::require(pgdata)?;
    handed_over::require_own(Giver::of_this_process(), &selection, pgdata, &path).await?;
    push_by(&Uploader::new(&selection, pgdata), &selection, (name, path), accept_damaged).await
}

/// [`push`], by an uploader that may know more than is stored.
async fn push_by(
    uploader: &Uploader,
    selection: &Selection<StoreSettings>,
    (name, path): (WalFileName, PathBuf),
    accept_damaged: bool,
) -> Result<(), Failure> {
    let push_timeout = duration(selection.settings.push_timeout);
    let queue = Queue::new(&uploader.wal_directory(), selection.settings.queue_max.map(|max| max.as_u64()));
    uploader.rest_as_noted().await;
    let overflow = overflow(uploader, &queue, &path, name).await;
    let size = std::fs::metadata(&path).map_or(0, |meta| meta.len());
    let limit = match &overflow {
        Some(overflow) => queue.retry_budget(size, Some(overflow)),
        None => time_limit(push_timeout, size, uploader.pgdata()).await,
    };
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), limit);
    let deadline = backoff.deadline();
    let mut last = None;
    let problem = loop {
        let attempt = uploader.upload_from(name, path.clone(), accept_damaged);
        match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Ok(_)) => {
                if accept_damaged {
                    note_damage(uploader, name).await?;
                } else if Giver::of_this_process() == Giver::Person {
                    warn_of_gap(uploader, name).await;
                }
                note_archived(uploader, &path, name).await;
                return Ok(());
            }
            // What is refused for good now may be taken in a moment, so nothing is dropped for that at once.
            Ok(Err(UploadError { text, permanent: true })) if overflow.is_none() => break text,
            Ok(Err(UploadError { text, .. })) => last = Some(text),
            Err(_) => {}
        }
        if !backoff.wait().await {
            let why = last.unwrap_or_else(|| uploader.waits_for());
            break format!("not stored within {}: {why}", human::span(limit));
        }
    };
    let Some(overflow) = overflow else {
        if waits_here(uploader, &queue, &path, name).await && queue.is_skipped(name) {
            queue.skip(name, &problem);
            return Ok(());
        }
        return Err(anyhow!("could not archive \"{name}\": {problem}").into());
    };
    // On record before PostgreSQL hears.
    match dropped::record(&uploader.wal_directory(), name, DropReason::QueueMax) {
        Err(error) => {
            let record = uploader.wal_directory().join(dropped::FILE);
            let lead = format!(
                "could not archive \"{name}\", and it is not dropped, because that cannot be recorded in {}",
                record.display()
            );
            let texts = [error.to_string(), problem.to_string()];
            Err(anyhow!("{}", Diagnostic::gather(&lead, texts)).into())
        }
        Ok(recorded) => {
            if recorded == Recorded::DiskFull {
                tracing::warn!(file = %name, "not recorded as dropped: the disk is full");
            }
            queue.drop_file(name, &overflow, &problem);
            Ok(())
        }
    }
}

/// Says so if a person archived an incomplete segment and no repository has the one before it, which recovery cannot pass.
async fn warn_of_gap(uploader: &Uploader, name: WalFileName) {
    let (WalFileName::Segment(segment) | WalFileName::Partial(segment)) = name else { return };
    match missing_before(uploader, segment).await {
        Ok(Some(before)) => tracing::warn!(
            file = %name,
            "\"{before}\" is not in the archive: recovery cannot reach \"{segment}\"\nHINT: Archive what is missing before it with \
             \"archive-agent push\", in order. Until then only moments before that gap can be restored."
        ),
        Ok(None) => {}
        Err(error) => {
            let why = walpoint_runtime::exit::format_chain(&error);
            tracing::warn!(
                "could not determine whether the segment before \"{segment}\" is in the archive: {why}"
            );
        }
    }
}

/// The segment before one that is in no repository whole, if no repository has that either.
async fn missing_before(uploader: &Uploader, segment: SegmentName) -> anyhow::Result<Option<SegmentName>> {
    let cluster = uploader.identity().await.map_err(|error| anyhow!(error.text))?;
    let mut missing = None;
    for target in uploader.targets() {
        let archive = target.archive_at(&cluster, segment.timeline).await?;
        let size = archive.lineage().segment_size;
        let number = segment.number(size).and_then(|number| number.0.checked_sub(1)).map(SegmentNo);
        let Some(number) = number else { return Ok(None) };
        let history = archive.history(segment.timeline).await?;
        let history = history.unwrap_or_else(|| TimelineHistory::root(segment.timeline));
        let before = number.name(history.timeline_at(number.end(size) - 1), size);
        if archive.header(segment).await?.is_some() || archive.header(before).await?.is_some() {
            return Ok(None);
        }
        missing = Some(before);
    }
    Ok(missing)
}

/// Puts a segment on record that was stored although it is damaged: recovery cannot pass it.
async fn note_damage(uploader: &Uploader, name: WalFileName) -> Result<(), Failure> {
    let stored = format!("\"{name}\" is stored");
    let damaged = uploader.holds_damaged(name).await;
    if !damaged.map_err(|UploadError { text, .. }| {
        anyhow!("{stored}, but it is unknown whether it was stored as damaged: {text}")
    })? {
        return Ok(());
    }
    let record = uploader.wal_directory().join(dropped::FILE);
    let recorded = dropped::record(&uploader.wal_directory(), name, DropReason::Damaged);
    match recorded.with_context(|| {
        format!("{stored}, but that it is damaged cannot be recorded in {}", record.display())
    })? {
        Recorded::Yes => {}
        Recorded::DiskFull => {
            tracing::warn!("{}: the disk is full, so it is not recorded there", record.display())
        }
    }
    tracing::warn!(
        "{stored} although it is damaged: recovery cannot pass this file\nHINT: Take a new backup now (archive-agent backup)."
    );
    Ok(())
}

/// Adds to the record that a file of `pg_wal` which stood there as dropped is stored, sound. The push succeeded, whether or not that can
/// be written.
async fn note_archived(uploader: &Uploader, path: &Path, name: WalFileName) {
    if lies_in_wal(uploader, path) && is_archived_after_all(uploader, name).await {
        let wal = uploader.wal_directory();
        if let Err(error) = dropped::record_archived(&wal, name) {
            tracing::debug!(file = %name, "{} cannot be written: {error}", wal.join(dropped::FILE).display());
        }
    }
}

/// Notes that the newest segment that is stored before one of `pg_wal` on its path, in each repository, is this server's; then makes the
/// segment durable. Where the disk is full, that counts for this segment, which makes room when it is archived.
pub(crate) async fn push_of_same_server(common: &CommonArgs, path: &Path) -> Result<(), Failure> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let name: WalFileName = file.parse().with_context(|| format!("cannot archive {}", path.display()))?;
    let WalFileName::Segment(segment) = name else {
        return Err(Failure::usage(anyhow!("--same-server: \"{name}\" is not the name of a WAL segment")));
    };
    let absolute = std::path::absolute(path).with_context(|| format!("cannot archive {}", path.display()))?;
    let selection = choose(common, &absolute).await?;
    let pgdata = pgdata(&selection)?;
    owner::require(pgdata)?;
    handed_over::require_own(Giver::Person, &selection, pgdata, &absolute).await?;
    let uploader = Uploader::new(&selection, pgdata);
    let wal = uploader.wal_directory();
    if !wal.join(name.to_string()).exists() {
        return Err(anyhow!("\"{name}\" is not in {}, and nothing was changed", wal.display()).into());
    }
    let (cluster, incarnation) = (uploader.identity().await?, Incarnation::of(pgdata));
    let history = history_in(&wal, segment.timeline)
        .map_or_else(|| TimelineHistory::root(segment.timeline), |(history, _)| history);
    for target in uploader.targets() {
        let archive = target.archive_at(&cluster, segment.timeline).await.map_err(anyhow::Error::from)?;
        let noted =
            ancestry::note_as_own(&archive, &wal, segment, &history).await.map_err(anyhow::Error::from)?;
        let Some((newest, full)) = noted else { continue };
        match full {
            None => tracing::warn!(repository = target.name(), "recorded that {newest} is this server's"),
            Some(full) => {
                target.take_for_own(archive.lineage().id, newest, incarnation);
                tracing::warn!(
                    repository = target.name(),
                    "that {newest} is this server's counts for this push only: {} cannot be written: {full}",
                    wal.join(claim::FILE).display()
                );
            }
        }
    }
    push_by(&uploader, &selection, (name, absolute), false).await
}

/// Stores an empty history in every repository that has none of that timeline: PostgreSQL's own meaning of a timeline without
/// ancestors.
pub(crate) async fn push_without_ancestors(common: &CommonArgs, path: &Path) -> Result<(), Failure> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let name: WalFileName = file.parse().with_context(|| format!("cannot archive {}", path.display()))?;
    let WalFileName::History(timeline) = name else {
        return Err(Failure::usage(anyhow!(
            "--no-ancestors: \"{name}\" is not the name of a history (00000005.history)"
        )));
    };
    let selection = common.select::<StoreSettings>()?;
    let pgdata = pgdata(&selection)?;
    owner::require(pgdata)?;
    if handed_over::names_a_directory(path) {
        let absolute =
            std::path::absolute(path).with_context(|| format!("cannot archive {}", path.display()))?;
        handed_over::require_own(Giver::Person, &selection, pgdata, &absolute).await?;
    }
    let uploader = Uploader::new(&selection, pgdata);
    let own = uploader.wal_directory().join(name.to_string());
    if own.exists() {
        return Err(anyhow!(
            "could not store an empty history for timeline {timeline}: {} exists\nHINT: Archive that one (archive-agent push).",
            own.display()
        )
        .into());
    }
    let cluster = uploader.identity().await?;
    for target in uploader.targets() {
        let archive = target.archive(&cluster).await.map_err(anyhow::Error::from)?;
        archive.put_file(name, Vec::new()).await.map_err(anyhow::Error::from).with_context(|| {
            format!(
                "could not store an empty history for timeline {timeline} in repository {}",
                target.name()
            )
        })?;
        tracing::warn!(
            repository = target.name(),
            "timeline {timeline} has an empty history: recovery knows no timeline before it"
        );
    }
    Ok(())
}

/// What is too much of what waits, if the file is one that waits. The queue knows then whether the file before it was dropped.
async fn overflow(uploader: &Uploader, queue: &Queue, path: &Path, name: WalFileName) -> Option<Overflow> {
    if !waits_here(uploader, queue, path, name).await {
        return None;
    }
    let segment = uploader.identity().await.ok()?.segment_size;
    let overflow = queue.overflow(segment.bytes()).await?;
    queue.take_over(name, segment);
    Some(overflow)
}

/// Whether a path is that of a file in the cluster's `pg_wal` that PostgreSQL waits for.
async fn waits_here(uploader: &Uploader, queue: &Queue, path: &Path, name: WalFileName) -> bool {
    queue.holds(name).await.unwrap_or(false) && lies_in_wal(uploader, path)
}

/// Whether a path is that of a file in the cluster's `pg_wal`.
fn lies_in_wal(uploader: &Uploader, path: &Path) -> bool {
    let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
    directory.is_some() && directory == uploader.wal_directory().canonicalize().ok()
}

/// Puts a file on record that archiving shall go on without. PostgreSQL hears at its next question that it was archived, unless
/// it can be stored by then.
pub(crate) async fn skip(common: &CommonArgs, path: &Path) -> Result<(), Failure> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let name: WalFileName = file.parse().with_context(|| format!("cannot skip {}", path.display()))?;
    let path = std::path::absolute(path).with_context(|| format!("cannot skip {}", path.display()))?;
    let selection = choose(common, &path).await?;
    let pgdata = pgdata(&selection)?;
    owner::require(pgdata)?;
    let uploader = Uploader::new(&selection, pgdata);
    let wal = uploader.wal_directory();
    if !waits_here(&uploader, &Queue::new(&wal, None), &path, name).await {
        return Err(anyhow!(
            "\"{name}\" is not waiting to be archived in {}: there is no archive_status/{name}.ready; \
             nothing was changed\nHINT: \"archive-agent status\" names the file at which archiving is stuck.",
            wal.display()
        )
        .into());
    }
    let recorded = dropped::record(&wal, name, DropReason::Skipped);
    match recorded
        .with_context(|| format!("\"{name}\" cannot be recorded in {}", wal.join(dropped::FILE).display()))?
    {
        Recorded::Yes => {
            tracing::warn!(
                "PostgreSQL's next attempt will report that \"{name}\" was archived, unless it can be stored: recovery cannot \
                 pass this file\nHINT: Take a new backup now (archive-agent backup)."
            );
            Ok(())
        }
        Recorded::DiskFull => Err(anyhow!(
            "\"{name}\" is not skipped: the disk is full, so the skip cannot be recorded in {}",
            wal.display()
        )
        .into()),
    }
}

/// The cluster that is meant: the one asked for, or else the one of several whose `pg_wal` the file lies in. By the names alone, if one
/// of them shows it: the directories of the others may hang. Else all are asked at once.
async fn choose(common: &CommonArgs, path: &Path) -> Result<Selection<StoreSettings>, Failure> {
    let mut all = selections(common)?;
    if all.len() == 1 {
        return Ok(all.remove(0));
    }
    let wals: Vec<Option<PathBuf>> =
        all.iter().map(|one| one.settings.pgdata.as_ref().map(|pgdata| pgdata.join("pg_wal"))).collect();
    let Some(directory) = path.parent() else { return common.select() };
    let named = wals.iter().position(|wal| wal.as_deref() == Some(directory));
    let chosen = match named {
        Some(named) => Some(named),
        None => leads_to(&wals, directory).await,
    };
    match chosen {
        Some(chosen) => Ok(all.swap_remove(chosen)),
        None => common.select(),
    }
}

/// The first of these directories that is found to be the same one as another.
async fn leads_to(wals: &[Option<PathBuf>], directory: &Path) -> Option<usize> {
    let real = async |path: &Path| {
        let asked = path.to_owned();
        disk::look_within(CANONICAL, path, move || asked.canonicalize()).await.ok()?.ok()
    };
    let directory = real(directory).await?;
    let look = async |(n, wal): (usize, &Option<PathBuf>)| {
        let found = real(wal.as_deref()?).await?;
        (found == directory).then_some(n)
    };
    let mut looks: FuturesUnordered<_> = wals.iter().enumerate().map(look).collect();
    while let Some(found) = looks.next().await {
        if found.is_some() {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_directory_of_a_file_is_found_behind_links() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let wals = [None, Some(dir.path().join("nowhere")), Some(link)];
        assert_eq!(leads_to(&wals, &real).await, Some(2));
        assert_eq!(leads_to(&wals, dir.path()).await, None);
    }
}
