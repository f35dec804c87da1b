//! Tablespaces that replay of a segment creates: a restore knew those that the archive held when it planned, what is archived
//! later is met here.
//!
//! A record counts in the segment in which it ends, because only then it is replayed. It may have begun in the segment
//! before, which then carries the mark, or both do if its header is cut there.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, anyhow};
use walpoint_base::{CreatedTablespace, Lsn, SegmentName, SegmentNo, WalDirectory, WalFileName};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_pg::label::{BACKUP_LABEL_FILE, BackupLabel};
use walpoint_plan::restore::{ForkSegment, SegmentDecoder};
use walpoint_repo::wal::{WalArchive, WalHeader};

use crate::decoder::WalDecoder;
use crate::settings;
use crate::wal::archive::ClusterArchive;
use crate::wal::lost_history::history_or_younger;
use crate::wal::note::TargetNote;
use crate::wal::spool;

/// No record of a tablespace is longer: a location has less than 1,024 bytes (`MAXPGPATH`), the headers less than 40.
const LONGEST: u32 = 1100;

/// How many segments [`Marked`] remembers.
const REMEMBERED: usize = 256;

/// Which of the segments read lately are marked for a tablespace.
#[derive(Debug, Default)]
pub(crate) struct Marked(BTreeMap<SegmentName, bool>);

impl Marked {
    fn remember(&mut self, name: SegmentName, marked: bool) {
        self.0.insert(name, marked);
        if self.0.len() > REMEMBERED {
            self.0.pop_first();
        }
    }
}

/// The tablespaces that replay of a segment creates, in LSN order. `header`: of the object that has its bytes, if that is
/// a segment; `fork`: how it is built, if it is.
pub(crate) async fn by_segment(
    archive: &ClusterArchive,
    wal: &WalArchive,
    name: SegmentName,
    header: Option<&WalHeader>,
    fork: Option<ForkSegment>,
) -> anyhow::Result<Vec<CreatedTablespace>> {
    let size = wal.lineage().segment_size;
    let Some(number) = name.number(size) else { return Ok(Vec::new()) };
    // What is built of something else is not what a header describes.
    let described = header.filter(|_| fork.is_none());
    let marked = described.is_none_or(|header| header.marks.tablespace);
    if let Some(header) = described {
        archive.marked().remember(name, header.marks.tablespace);
    }
    let enters = header.is_none_or(|header| (1..=LONGEST).contains(&header.chain.begin.carried));
    let before = if enters { before(archive, wal, name, number, marked).await? } else { None };
    if !marked && before.is_none() {
        return Ok(Vec::new());
    }
    let damaged = header.is_some_and(|header| header.damaged);
    match decode(wal, before, name, fork).await {
        // It is handed out because the configuration says so (fetch_damaged).
        Err(error) if damaged => {
            tracing::warn!(
                "could not determine whether replay of \"{name}\" creates tablespaces: {}",
                walpoint_words::format_chain(&error)
            );
            Ok(Vec::new())
        }
        created => created,
    }
}

/// The segment before one in which a record begins that ends in this one, if that may create a tablespace. `whatever`: also if it
/// is not marked.
async fn before(
    archive: &ClusterArchive,
    wal: &WalArchive,
    name: SegmentName,
    number: SegmentNo,
    whatever: bool,
) -> anyhow::Result<Option<SegmentName>> {
    let size = wal.lineage().segment_size;
    let Some(before) = number.0.checked_sub(1).map(SegmentNo) else { return Ok(None) };
    let mut candidates = vec![before.name(name.timeline, size)];
    if let Some(history) = history_or_younger(archive, wal, name.timeline).await? {
        candidates = history.candidates(before, size).map(|timeline| before.name(timeline, size)).collect();
    }
    for candidate in candidates {
        let known = archive.marked().0.get(&candidate).copied();
        let marked = match known {
            Some(marked) => marked,
            None => match wal.header(candidate).await? {
                Some(header) => header.marks.tablespace,
                None => continue,
            },
        };
        archive.marked().remember(candidate, marked);
        return Ok((marked || whatever).then_some(candidate));
    }
    Ok(None)
}

/// Decodes a segment, with the one before it, for the records that end in it.
async fn decode(
    wal: &WalArchive,
    before: Option<SegmentName>,
    name: SegmentName,
    fork: Option<ForkSegment>,
) -> anyhow::Result<Vec<CreatedTablespace>> {
    let undecodable = |name: SegmentName| move |what: String| anyhow!("\"{name}\" cannot be decoded: {what}");
    let mut search = WalDecoder.tablespaces();
    if let Some(before) = before
        && let Some(file) = wal.get(WalFileName::Segment(before)).await?
    {
        search = blocking(move || search.feed(before, &file.content).map(|_| search))
            .await?
            .map_err(undecodable(before))?;
    }
    let stored = fork.map_or(WalFileName::Segment(name), |fork| fork.source_name());
    let file = match stored {
        WalFileName::Partial(copy) => wal.get_incomplete(copy).await?,
        _ => wal.get(stored).await?,
    };
    let file = file.with_context(|| format!("\"{stored}\" has just vanished"))?;
    let mut content = file.content;
    if let Some(fork) = fork {
        let size = wal.lineage().segment_size;
        let start = fork.name.number(size).map(|number| number.start(size));
        let keep = fork.cut.since(start.unwrap_or(fork.cut));
        content.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        content.resize(usize::try_from(size.bytes())?, 0);
    }
    blocking(move || search.feed(name, &content)).await?.map_err(undecodable(name))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("internal error: a worker ended before its work")
}

/// Those that a recovery in that data directory replays: the others lie before the position at which it begins, or behind
/// its end.
pub(crate) fn replayed(place: &WalDirectory, mut created: Vec<CreatedTablespace>) -> Vec<CreatedTablespace> {
    if !created.is_empty() {
        let (redo, until) = (redo(place), until(place));
        created.retain(|one| {
            redo.is_none_or(|redo| redo <= one.record) && until.is_none_or(|until| one.record < until)
        });
    }
    created
}

/// Where recovery begins: where the label says until PostgreSQL has noted it in `pg_control`. `None` if that is not known.
fn redo(place: &WalDirectory) -> Option<Lsn> {
    match fs::read(place.pgdata.join(BACKUP_LABEL_FILE)) {
        Ok(label) => BackupLabel::parse(&label).ok().map(|label| label.start),
        Err(_) => {
            let control = fs::read(place.pgdata.join(CONTROL_FILE)).ok()?;
            ControlFile::parse(&control).ok().map(|control| control.checkpoint.redo)
        }
    }
}

/// The position from which on no record is replayed: the restore knew it for the settings that it wrote, and an exclusive
/// LSN says it by itself. `None` if that is not known.
pub(crate) fn until(place: &WalDirectory) -> Option<Lsn> {
    let text = settings::text(&place.pgdata.join("postgresql.auto.conf")).ok()?;
    let mut targets = settings::targets(&text);
    if let Some(note) = TargetNote::read(&place.wal.join(spool::DIRECTORY))
        && note.settings == targets
    {
        return note.until;
    }
    targets.remove("recovery_target_timeline");
    let plain = |value: String| value.trim_matches('\'').to_owned();
    let inclusive = plain(targets.remove("recovery_target_inclusive")?);
    let lsn = plain(targets.remove("recovery_target_lsn")?);
    let exclusive = ["off", "false", "no", "0"].contains(&inclusive.to_ascii_lowercase().as_str());
    // PostgreSQL refuses two targets.
    (exclusive && targets.is_empty()).then(|| lsn.parse().ok()).flatten()
}
