//! Whose history an archive holds: one server's. Another one that writes under the same timeline number is a split brain,
//! and nothing of it is stored.
//!
//! Equal histories prove little: two standbys promoted at one position write the same file. So contents decide: the newest
//! segments that lie both in `pg_wal` and in the repository have to be the same. What is not finished, not sound or not there
//! proves nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use futures_util::TryStreamExt;
use walpoint_base::chain::{ChainEnd, ChainFacts};
use walpoint_base::{
    ClusterName, LineageId, Lsn, SegmentFacts, SegmentName, SegmentNo, SegmentSize, TimelineHistory,
    TimelineId, WalFileName,
};
use walpoint_pg::wal::Identity;
use walpoint_repo::RepoError;
use walpoint_repo::layout::WalEntry;
use walpoint_repo::lineage::Fork;
use walpoint_repo::object::{ContentHash, Sealer};
use walpoint_repo::wal::WalArchive;

use super::archiver::Archiver;
use super::check::{Verdict, history_in};
use super::fork;
use super::history;
use super::read::OpenFile;
use super::target::TargetError;
use super::unwritten::unwritten;
use super::upload::{Trouble, Uploader};

/// Segments that have to be the same on both sides.
const ENOUGH: usize = 2;

/// Segments that are the same before a fork, from which on no other is looked at.
const LOOKED_FOR: usize = 12;

/// How often to look again whether all is well.
const INTERVAL: Duration = Duration::from_secs(60);

/// How every message begins that tells of one.
pub(crate) const SPLIT_BRAIN: &str = "split brain";

/// Another server's WAL is where this one's would go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SplitBrain {
    repository: String,
    cluster: ClusterName,
    lineage: LineageId,
    timeline: TimelineId,
    what: String,
    /// Whether something shows that it is another server's; otherwise, nothing shows that it is this one's.
    shown: bool,
    /// Whether the timeline itself is another server's than the one it left, whichever server asks.
    of_the_timeline: bool,
}

impl SplitBrain {
    /// Of a timeline in an archive; `what` shows it.
    pub(crate) fn new(archive: &WalArchive, timeline: TimelineId, what: String) -> Self {
        Self {
            repository: archive.repository().name().to_owned(),
            cluster: archive.lineage().cluster.clone(),
            lineage: archive.lineage().id,
            timeline,
            what,
            shown: true,
            of_the_timeline: false,
        }
    }

    /// The same, where the timeline itself is another server's than the one that it left.
    pub(super) fn of_the_timeline(self) -> Self {
        Self { of_the_timeline: true, ..self }
    }

    /// The same, where nothing shows that what is stored is another server's.
    pub(crate) fn not_shown(self) -> Self {
        Self { shown: false, ..self }
    }

    /// Whether something shows that what is stored is another server's.
    pub(crate) fn is_shown(&self) -> bool {
        self.shown
    }

    /// The timeline that both claim.
    pub(crate) fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// What there is to do.
    pub(crate) fn advice(&self) -> String {
        if self.of_the_timeline {
            return format!(
                "on the server that writes timeline {0}, set archive_mode = off, or run \"archive-agent init --new-lineage --cluster {1}\" \
                 and then back it up; until then a restore has to name its timeline (--target-timeline). If timeline {0} is the one \
                 that counts, run \"archive-agent lineage settle --timeline {0} --reason TEXT\"",
                self.timeline, self.cluster
            );
        }
        let unless = if self.shown { "" } else { "unless that command applies, " };
        format!(
            "{unless}if this server is the one to archive from now on, run \"archive-agent init --new-lineage --cluster {}\" on it and \
             then back it up; if it is a copy, set archive_mode = off on it",
            self.cluster
        )
    }

    /// What was found, without the advice.
    pub(crate) fn found(&self) -> String {
        let Self { repository, lineage, timeline, what, .. } = self;
        if self.of_the_timeline {
            return format!(
                "{SPLIT_BRAIN}: timeline {timeline} in lineage {lineage} in repository {repository} is of another server than the timeline \
                 that it left, so nothing more is stored of it: {what}"
            );
        }
        format!(
            "{SPLIT_BRAIN}: lineage {lineage} in repository {repository} holds timeline {timeline} of another server, so nothing \
             of this server's timeline {timeline} is stored there: {what}"
        )
    }
}

impl fmt::Display for SplitBrain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; HINT: {}", self.found(), self.advice())
    }
}

/// What a comparison of a server's WAL with an archive showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// Nothing lies in both.
    Nothing,
    /// The same WAL up to this position, on this timeline.
    Same(TimelineId, Lsn),
    /// Another server's.
    Other(SplitBrain),
}

/// Compares the history of a timeline, and the newest segments on its path that a directory of WAL and an archive have.
pub(crate) async fn compare(
    archive: &WalArchive,
    cluster: &Identity,
    wal: &Path,
    timeline: TimelineId,
) -> Result<Evidence, RepoError> {
    let mut history = TimelineHistory::root(timeline);
    if timeline != TimelineId::FIRST {
        let name = WalFileName::History(timeline);
        let ours = tokio::fs::read(wal.join(name.to_string())).await.ok();
        let theirs = match archive.get(name).await {
            Ok(file) => file.map(|file| file.content),
            Err(RepoError::Corrupt { .. }) => None,
            Err(error) => return Err(error),
        };
        if let (Some(ours), Some(theirs)) = (&ours, &theirs)
            && ours != theirs
        {
            let what = other_history(archive, timeline, ours, theirs);
            return Ok(Evidence::Other(SplitBrain::new(archive, timeline, what)));
        }
        if let Some(parsed) = ours.or(theirs).and_then(|text| TimelineHistory::parse(timeline, &text).ok()) {
            history = parsed;
        }
    }
    let size = cluster.segment_size;
    let found = on_path(wal, history, size).await?;
    let (mut same, mut newest) = (0, Evidence::Nothing);
    for name in in_both(archive, found).await? {
        match segment(archive, cluster, wal, name).await? {
            Comparison::Unknown => {}
            Comparison::Same => {
                if let (Evidence::Nothing, Some(number)) = (&newest, name.number(size)) {
                    newest = Evidence::Same(name.timeline, number.end(size));
                }
                same += 1;
                if same == ENOUGH {
                    break;
                }
            }
            Comparison::Other(what) => {
                return Ok(Evidence::Other(SplitBrain::new(archive, name.timeline, what)));
            }
        }
    }
    Ok(newest)
}

/// Up to where the WAL of a directory and of an archive is the same on the path to a timeline: the end of the newest finished
/// segment that is, and before which none differs.
pub(crate) async fn fork(
    archive: &WalArchive,
    cluster: &Identity,
    wal: &Path,
    timeline: TimelineId,
) -> Result<Option<Fork>, RepoError> {
    let history =
        history_in(wal, timeline).map_or_else(|| TimelineHistory::root(timeline), |(history, _)| history);
    let size = cluster.segment_size;
    let found = on_path(wal, history, size).await?;
    let (mut fork, mut same) = (None, 0);
    for name in in_both(archive, found).await? {
        match segment(archive, cluster, wal, name).await? {
            Comparison::Unknown => {}
            Comparison::Same => {
                fork = fork.or(name
                    .number(size)
                    .map(|number| Fork { timeline: name.timeline, lsn: number.end(size) }));
                same += 1;
                if same == LOOKED_FOR {
                    break;
                }
            }
            // What is the same behind it was stored before the two servers met.
            Comparison::Other(_) => (fork, same) = (None, 0),
        }
    }
    Ok(fork)
}

/// What shows that a history is another server's.
pub(crate) fn other_history(
    archive: &WalArchive,
    timeline: TimelineId,
    ours: &[u8],
    theirs: &[u8],
) -> String {
    let hash = |content| archive.repository().sealer().content_hash(content);
    let (name, ours, theirs) = (WalFileName::History(timeline), hash(ours), hash(theirs));
    format!("{name} is stored with different content (stored: {theirs}, offered: {ours})")
}

/// How a segment of a directory compares with the one of the same name in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// It is missing on a side, or one of them proves nothing.
    Unknown,
    /// The same content.
    Same,
    /// Another content; what shows it.
    Other(String),
}

/// Compares a segment with the one that is stored.
pub(crate) async fn segment(
    archive: &WalArchive,
    cluster: &Identity,
    wal: &Path,
    name: SegmentName,
) -> Result<Comparison, RepoError> {
    match archive.header(name).await {
        Ok(Some(header)) if !header.damaged => Ok(content(archive, cluster, wal, name, header.hash).await),
        // What is damaged proves nothing, and verify tells of it.
        Ok(_) | Err(RepoError::Corrupt { .. }) => Ok(Comparison::Unknown),
        Err(error) => Err(error),
    }
}

/// What shows that a finished segment of a directory is not the one that is stored under its name, if anything does.
pub(crate) async fn another(
    archive: &WalArchive,
    wal: &Path,
    name: SegmentName,
) -> Result<Option<String>, RepoError> {
    let lineage = archive.lineage();
    let (system_id, major) = (lineage.system_id(), lineage.major);
    let cluster = Identity { system_id, major, segment_size: lineage.segment_size };
    match segment(archive, &cluster, wal, name).await? {
        Comparison::Other(what) => Ok(Some(what)),
        Comparison::Same | Comparison::Unknown => Ok(None),
    }
}

/// Compares the content of a segment with a stored one's hash.
pub(super) async fn content(
    archive: &WalArchive,
    cluster: &Identity,
    wal: &Path,
    name: SegmentName,
    theirs: ContentHash,
) -> Comparison {
    let (sealer, path) = (archive.repository().sealer().clone(), wal.join(name.to_string()));
    let hashed = tokio::task::spawn_blocking(move || hash(&sealer, &path)).await;
    let Ok(Ok(ours)) = hashed else { return Comparison::Unknown };
    if ours == theirs {
        return Comparison::Same;
    }
    let (sealer, path) = (archive.repository().sealer().clone(), wal.join(name.to_string()));
    let cluster = *cluster;
    // Between the two readings a segment may have been finished.
    let as_it_is =
        move || is_sound(&path, name, &cluster) && hash(&sealer, &path).is_ok_and(|again| again == ours);
    match tokio::task::spawn_blocking(as_it_is).await {
        Ok(true) => Comparison::Other(format!(
            "segment {name} has content {ours} here, and other content, {theirs}, is stored"
        )),
        _ => Comparison::Unknown,
    }
}

/// Whether PostgreSQL marked a segment of a directory as finished. In a directory that is not its own all are.
pub(crate) fn is_finished(wal: &Path, name: SegmentName) -> bool {
    let status = wal.join("archive_status");
    let marked = |mark: &str| status.join(format!("{name}.{mark}")).exists();
    wal.join(name.to_string()).exists() && (marked("done") || marked("ready") || !status.exists())
}

/// The segments of a directory that lie on a path and are not waiting to be used again, newest first; the newest one may not be
/// finished. What lies behind a fork on the timeline that was left there may be another server's. A server that does not archive
/// marks none as finished. Fails if the directory cannot be read: that it is empty would be evidence of nothing.
pub(super) async fn on_path(
    wal: &Path,
    history: TimelineHistory,
    size: SegmentSize,
) -> Result<Vec<SegmentName>, RepoError> {
    let directory = wal.to_owned();
    let listed = tokio::task::spawn_blocking(move || list_path(&directory, &history, size)).await;
    let listed = listed.map_err(|error| RepoError::Internal(error.to_string()))?;
    listed.map_err(|error| RepoError::Internal(format!("{} cannot be read: {error}", wal.display())))
}

fn list_path(wal: &Path, history: &TimelineHistory, size: SegmentSize) -> io::Result<Vec<SegmentName>> {
    let mut found: Vec<(SegmentNo, SegmentName)> = Vec::new();
    for entry in std::fs::read_dir(wal)? {
        let entry = entry?;
        let Some(Ok(name)) = entry.file_name().to_str().map(str::parse::<SegmentName>) else { continue };
        let Some(number) = name.number(size) else { continue };
        let leads = name.timeline == history.timeline()
            || history.end_of(name.timeline).is_some_and(|end| number < SegmentNo::of(end, size));
        if leads && has_begun(&entry.path(), number, size) {
            found.push((number, name));
        }
    }
    found.sort_unstable_by(|one, other| other.cmp(one));
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

/// Whether the first page of a file is that of a segment: one that waits to be used again has another address or none. Blocks.
pub(crate) fn has_begun(path: &Path, number: SegmentNo, size: SegmentSize) -> bool {
    // xlp_magic, xlp_info and xlp_tli, then xlp_pageaddr (src/include/access/xlog_internal.h).
    let mut header = [0; 16];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header.ends_with(&number.start(size).0.to_le_bytes())
}

/// Those of a directory's segments that are stored as well, in the same order: one listing for each timeline, no further than
/// they go.
pub(super) async fn in_both(
    archive: &WalArchive,
    names: Vec<SegmentName>,
) -> Result<Vec<SegmentName>, RepoError> {
    let (mut stored, wanted) = (BTreeSet::new(), names.iter().copied().collect::<BTreeSet<_>>());
    for run in names.chunk_by(|one, other| one.timeline == other.timeline) {
        let (Some(newest), Some(oldest)) = (run.first(), run.last()) else { continue };
        let mut listed = archive.list(oldest.timeline, Some(*oldest));
        while let Some((entry, _)) = listed.try_next().await? {
            match entry {
                WalEntry::File(WalFileName::Segment(segment)) if segment > *newest => break,
                WalEntry::File(WalFileName::Segment(segment)) if wanted.contains(&segment) => {
                    stored.insert(segment);
                }
                _ => {}
            }
        }
    }
    Ok(names.into_iter().filter(|name| stored.contains(name)).collect())
}

fn hash(sealer: &Sealer, path: &Path) -> io::Result<ContentHash> {
    let (mut file, mut hasher) = (std::fs::File::open(path)?, sealer.content_hasher());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(ContentHash(*hasher.finalize().as_bytes())),
            read => drop(hasher.update(buffer.get(..read).unwrap_or_default())),
        }
    }
}

/// Whether a file is a whole segment of that cluster and name.
fn is_sound(path: &Path, name: SegmentName, cluster: &Identity) -> bool {
    inspect(path, name, cluster).is_some_and(|facts| facts.whole)
}

/// The edges of a finished segment in a directory; `None` if it cannot be read or is damaged.
pub(super) async fn edges(wal: &Path, name: SegmentName, cluster: &Identity) -> Option<ChainFacts> {
    let (path, cluster) = (wal.join(name.to_string()), *cluster);
    let facts = tokio::task::spawn_blocking(move || inspect(&path, name, &cluster)).await.ok()??;
    let end = if facts.whole { facts.chain.end } else { ChainEnd::UNKNOWN };
    Some(ChainFacts { end, ..facts.chain })
}

/// What a sound segment says about itself. Blocks.
fn inspect(path: &Path, name: SegmentName, cluster: &Identity) -> Option<SegmentFacts> {
    let history = path.parent().and_then(|directory| history_in(directory, name.timeline));
    let file = OpenFile::open(path, WalFileName::Segment(name), cluster.segment_size.bytes()).ok()?;
    let mut verdict = Verdict::new(name, file.identity.size, history.as_ref().map(|(history, _)| history));
    let read = file.read(&mut vec![0; 1 << 20], |piece| {
        verdict.add(piece);
        ControlFlow::Continue(())
    });
    read.ok()?;
    verdict.pronounce(cluster).ok()
}

/// Compares a server with each of its repositories that can be read.
pub(crate) async fn split_brains(uploader: &Uploader) -> anyhow::Result<Vec<SplitBrain>> {
    let told = |Trouble { text, .. }| anyhow::anyhow!(text);
    let cluster = uploader.identity().await.map_err(told)?;
    let Some(timeline) = uploader.newest_timeline().await.map_err(told)? else { return Ok(Vec::new()) };
    let written = uploader.written_timeline().await.map_err(told)?;
    let wal = uploader.wal_directory();
    let writes = uploader.writes(timeline).await.map_err(told)?;
    let mut found = Vec::new();
    for target in uploader.targets() {
        // That a repository cannot be read is told elsewhere.
        let Ok(archive) = target.archive(&cluster).await else { continue };
        found.extend(fork::disputed(&archive).await.unwrap_or_default());
        let compared = compare(&archive, &cluster, &wal, timeline).await;
        if let Ok(Evidence::Other(split)) = compared {
            found.push(split);
        } else if writes
            && let Ok(Some(split)) = unwritten(&archive, &wal, timeline, cluster.segment_size).await
        {
            found.push(split);
        } else if written == Some(timeline) {
            let places = [wal.join(WalFileName::History(timeline).to_string())];
            let around = (wal.as_path(), uploader.targets());
            let history = history::find(target, &archive, &cluster, timeline, &places, around).await;
            if let Err(TargetError::SplitBrain(split)) = history {
                found.push(*split);
            }
        }
    }
    Ok(found)
}

/// Compares at the start, then looks whether anything was refused as another server's; `working` is called whenever nothing
/// was. An error names what was: it is started again.
pub(crate) async fn keep(archiver: Arc<Archiver>, working: impl Fn()) -> anyhow::Result<()> {
    let uploader = archiver.uploader();
    let found = split_brains(uploader).await?;
    let mut all: Vec<String> = found.iter().map(ToString::to_string).collect();
    loop {
        for target in uploader.targets() {
            all.extend(target.split_brains().iter().map(ToString::to_string));
            all.extend(target.disputed_timelines().iter().map(ToString::to_string));
            all.extend(target.damaged_histories());
        }
        if !all.is_empty() {
            all.sort_unstable();
            all.dedup();
            bail!("{}", all.join("; "));
        }
        working();
        tokio::time::timeout(INTERVAL, uploader.refused.notified()).await.ok();
    }
}

/// Where the history of a timeline may lie beside a file: in its own directory, then in `pg_wal`.
pub(super) fn places_of_history(file: &Path, name: WalFileName, wal: &Path) -> Vec<PathBuf> {
    let history = WalFileName::History(name.timeline());
    if name == history {
        return vec![file.to_owned()];
    }
    let beside = file.parent().map(|directory| directory.join(history.to_string()));
    beside.into_iter().chain([wal.join(history.to_string())]).collect()
}
