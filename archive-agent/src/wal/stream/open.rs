//! The beginning of a session: a server that is proven to run on the data directory, a slot, and the position from which on nothing is
//! missing.
//!
//! The stream begins with the segment up to which the slot says that all is durable, or with an older one that PostgreSQL still waits to
//! archive. So what is reported as durable never lies behind WAL that is not, unless an operator decided to go on without that, or no commit
//! waits for the stream (`synchronous` is off). A slot does not show whether that was ever so: each process looks at what is stored, once,
//! and whenever the slot is a new one. A crash leaves the slot, and nothing else.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use walpoint_base::facts::HistoryHash;
use walpoint_base::{
    Lsn, SegmentName, SegmentNo, SegmentSize, SlotName, TimelineHistory, TimelineId, WalFileName,
};
use walpoint_pg::server::{Server, ServerError, SystemIdentity, Walsender};
use walpoint_pg::wal_stream::{StreamPlace, StreamStart, WalStream, place};
use walpoint_runtime::config::{ClusterSettings, StreamSettings};
use walpoint_runtime::human;

use super::segment::OpenSegment;
use super::session::{Rules, Session};
use super::slot::{self, Slot};
use super::store::{Earlier, Seen, SliceStore};
use super::{NextStart, StreamReports, gaps};
use crate::wal::archiver::Archiver;
use crate::wal::{check, disk};
use crate::{session, whose_files};

/// SQLSTATE of a slot that another session uses.
const IN_USE: &str = "55006";

/// How long a server may be silent that does not say how long a client may be.
const SILENCE: Duration = Duration::from_secs(60);

/// What became of an attempt to begin.
pub(super) enum Opening {
    /// A session that streams.
    Session(Box<Session>),
    /// The timeline ended where the session would have begun.
    Timeline(NextStart),
    /// Nothing is wrong, and it cannot begin; why.
    Waits(String),
    /// It cannot begin, which mostly passes by itself; why.
    Blocked(String),
    /// It does not begin because the server must not keep more WAL, or must not confirm commits that are in no repository; why.
    Held(String),
}

/// Where a session begins.
#[derive(Clone, Copy)]
pub(super) struct Start {
    pub(super) timeline: TimelineId,
    pub(super) number: SegmentNo,
}

/// Begins a session; `next`: on the timeline that follows the last one. `proven`: at which epoch it was seen that what lies before the
/// stream of this process is stored, with the slot that there is. A slot alone shows nothing: another process may have made it and died.
pub(super) async fn open(
    archiver: &Arc<Archiver>,
    settings: &ClusterSettings,
    reports: &Arc<StreamReports>,
    (next, proven): (Option<NextStart>, &mut Option<u64>),
) -> anyhow::Result<Opening> {
    let rules = settings.stream.clone().unwrap_or_default();
    let uploader = archiver.uploader();
    let size = uploader.identity().await?.segment_size;
    let mut server = session::connect(settings).await?;
    let standby = server.identity().await?.in_recovery;
    if standby && !rules.on_standby {
        return Ok(Opening::Waits(
            "the server is a standby\nDETAIL: Streaming begins with its promotion, or with on_standby = true.".to_owned(),
        ));
    }
    whose_files::prove(&mut server, uploader.pgdata()).await?;
    let mut asking = session::walsender(settings, &mut server).await?;
    let system = asking.identify_system().await?;
    let history = asking.timeline_history(system.timeline).await?;
    let history = history.map_or_else(|| TimelineHistory::root(system.timeline), |(_, history)| history);
    let slot = slot::ensure(&mut server, &mut asking, &rules.slot).await?;
    if !matches!(slot, Slot::Reserved(_)) {
        *proven = None;
    }
    let (slot, restart) = match slot {
        Slot::Reserved(restart) | Slot::Created(restart) => (Some(&rules.slot), restart),
        Slot::Used(process) => return Ok(Opening::Blocked(in_use(&rules.slot, Some(process)))),
        Slot::Unreserved => (Some(&rules.slot), system.position),
        Slot::None(why) => {
            tracing::warn!(
                "streaming without a replication slot: {why}\nDETAIL: While the stream is interrupted the server may remove WAL that it \
                 has not sent. Whole segments are archived all the same."
            );
            (None, system.position)
        }
    };
    let start = start(archiver, &history, size, (restart, next)).await?;
    let from = start.number.start(size);
    if rules.synchronous {
        if let Some(held) = gaps::unconfirmed(archiver, &history, size, from).await? {
            return Ok(Opening::Held(held));
        }
        let epoch = archiver.uploader().epoch();
        if *proven != Some(epoch) {
            if let Some(held) = gaps::unstored(archiver, &history, size, start.number).await? {
                return Ok(Opening::Held(held));
            }
            *proven = Some(epoch);
        }
    }
    asking.close().await;
    if let Some(held) =
        over_limit(settings, &mut server, (slot, restart), (from, system.position), size).await?
    {
        return Ok(Opening::Held(held));
    }
    if let Some(why) = misplaced(&system, &history, (start.timeline, from), standby)? {
        return Ok(Opening::Blocked(why));
    }
    let walsender = streaming(settings, &mut server, &system).await?;
    server.close().await;
    begin(archiver, (settings, &rules), reports, (walsender, slot), (start, size)).await
}

/// Where a stream begins whose slot keeps WAL from `restart` on, or that follows the timeline of the last one.
async fn start(
    archiver: &Archiver,
    history: &TimelineHistory,
    size: SegmentSize,
    (restart, next): (Lsn, Option<NextStart>),
) -> anyhow::Result<Start> {
    let start = match next {
        Some(next) => Start { timeline: next.timeline, number: SegmentNo::of(next.switch, size) },
        None => {
            let reserved =
                Start { timeline: history.timeline_at(restart), number: SegmentNo::of(restart, size) };
            oldest(archiver, history, size, reserved).await?
        }
    };
    gaps::behind_decided(archiver, history, size, start).await
}

fn in_use(slot: &SlotName, process: Option<i32>) -> String {
    let process = process.map(|process| format!(" (process {process})")).unwrap_or_default();
    format!(
        "another session uses replication slot \"{slot}\"{process}\nDETAIL: It is another daemon's, or that of an earlier connection, which \
         the server ends after wal_sender_timeout."
    )
}

/// The oldest segment on the server's path that PostgreSQL waits to archive, if that lies before the one where the slot begins.
async fn oldest(
    archiver: &Archiver,
    history: &TimelineHistory,
    size: SegmentSize,
    reserved: Start,
) -> anyhow::Result<Start> {
    let (directory, path) = (archiver.wal_directory(), history.clone());
    let status = directory.join("archive_status");
    let waiting = disk::look(&directory, move || oldest_waiting(&status, &path, size)).await??;
    Ok(match waiting.and_then(|name| Some((name.timeline, name.number(size)?))) {
        Some((timeline, number)) if number < reserved.number => Start { timeline, number },
        _ => reserved,
    })
}

fn oldest_waiting(
    status: &Path,
    history: &TimelineHistory,
    size: SegmentSize,
) -> std::io::Result<Option<SegmentName>> {
    let mut oldest: Option<SegmentName> = None;
    for entry in std::fs::read_dir(status)? {
        let name = entry?.file_name();
        let Some(Ok(WalFileName::Segment(name))) =
            name.to_str().and_then(|name| name.strip_suffix(".ready")).map(str::parse)
        else {
            continue;
        };
        let Some(start) = name.number(size).map(|number| number.start(size)) else { continue };
        let on_path =
            history.contains(name.timeline) && history.end_of(name.timeline).is_none_or(|end| start < end);
        let order = |name: SegmentName| (name.number(size), name.timeline);
        if on_path && oldest.is_none_or(|oldest| order(name) < order(oldest)) {
            oldest = Some(name);
        }
    }
    Ok(oldest)
}

/// How much WAL may wait before the slot lets go of it. With synchronous commit it never does: commits in that WAL wait to be confirmed,
/// and the next report would confirm them.
fn most(settings: &ClusterSettings) -> Option<u64> {
    let synchronous = settings.stream.as_ref().is_some_and(|stream| stream.synchronous);
    settings.queue_max.filter(|_| !synchronous).map(|max| max.as_u64())
}

/// Why the stream does not begin while more WAL waits than may wait. The slot lets go of it then.
async fn over_limit(
    settings: &ClusterSettings,
    server: &mut Server,
    (slot, restart): (Option<&SlotName>, Lsn),
    (from, position): (Lsn, Lsn),
    size: SegmentSize,
) -> Result<Option<String>, ServerError> {
    let waits = position.since(from);
    let Some(max) = most(settings).filter(|max| waits > *max) else {
        return Ok(None);
    };
    if let Some(slot) = slot {
        slot::give_up(server, slot, restart, SegmentNo::of(position, size).start(size)).await?;
    }
    Ok(Some(format!(
        "{} of WAL wait to be stored, more than queue_max ({})\nDETAIL: Streaming begins again when the segments that wait in pg_wal are \
         archived or dropped.",
        human::size(waits),
        human::size(max)
    )))
}

/// Why a standby cannot stream from there yet; an error if this server never will.
fn misplaced(
    system: &SystemIdentity,
    history: &TimelineHistory,
    (timeline, from): (TimelineId, Lsn),
    standby: bool,
) -> anyhow::Result<Option<String>> {
    match place(system, history, timeline, from) {
        StreamPlace::Behind => Ok(None),
        StreamPlace::Ahead { end } if standby => {
            Ok(Some(format!("the standby has replayed WAL up to {end}, and the stream continues at {from}")))
        }
        StreamPlace::Ahead { end } => bail!(
            "the WAL of this server ends at {end}, before {from}, up to where WAL of timeline {timeline} is durable: the server was \
             reset to an earlier state, or another one wrote that WAL"
        ),
        StreamPlace::OnBranch { switch } => bail!(
            "WAL of timeline {timeline} is durable up to {from}, and this server left that timeline before, at {switch}"
        ),
        StreamPlace::Elsewhere => bail!("timeline {timeline} is not in this server's history"),
    }
}

/// The connection that streams. It carries the plain name by which `synchronous_standby_names` knows it, so it is found by its process.
async fn streaming(
    settings: &ClusterSettings,
    server: &mut Server,
    system: &SystemIdentity,
) -> anyhow::Result<Walsender> {
    let info = session::conninfo(settings)?;
    let mut walsender = Walsender::connect(&info).await?;
    let process = walsender.connection().process_id();
    let same = walsender.identify_system().await?.system_id == system.system_id;
    if !same || !server.has_walsender(process, info.application_name()).await? {
        bail!(
            "conninfo leads to one server for queries ({}) and to another for replication\nHINT: Name one host in conninfo, and no \
             load balancer.",
            server.connection().host()
        );
    }
    Ok(walsender)
}

async fn begin(
    archiver: &Arc<Archiver>,
    (settings, rules): (&ClusterSettings, &StreamSettings),
    reports: &Arc<StreamReports>,
    (mut walsender, slot): (Walsender, Option<&SlotName>),
    (start, size): (Start, SegmentSize),
) -> anyhow::Result<Opening> {
    let uploader = archiver.uploader();
    let (name, from) = (start.number.name(start.timeline, size), start.number.start(size));
    let archives = uploader.admit_slices(name).await?;
    let epoch = uploader.epoch();
    let (wal, timeline) = (archiver.wal_directory(), start.timeline);
    let directory = wal.clone();
    let history = disk::look(&wal, move || check::history_in(&directory, timeline)).await?;
    let history = history.map_or(HistoryHash::NONE, |(_, hash)| hash);
    let empty: Vec<blake3::Hasher> = archives.iter().map(|archive| archive.content_hasher()).collect();
    // What comes after that look is compared by the next session.
    let seen = Seen::of(archives.clone(), name).await?;
    let earlier = Earlier::of(&archives, name).await?;
    let (before, proven) = earlier.map(|earlier| (earlier.before, earlier.slices)).unzip();
    let proven = proven.unwrap_or_default();
    let silence = walsender.sender_timeout().await?.unwrap_or(SILENCE);
    let stream = match WalStream::start(walsender, slot, timeline, from).await {
        Ok(StreamStart::Streaming(stream)) => *stream,
        Ok(StreamStart::TimelineEnd(next)) => {
            return Ok(Opening::Timeline(NextStart { timeline: next.timeline, switch: next.switch }));
        }
        Err(error) if error.sqlstate() == Some(IN_USE) && slot.is_some() => {
            return Ok(Opening::Blocked(in_use(&rules.slot, None)));
        }
        Err(error) => return Err(error.into()),
    };
    tracing::info!(%timeline, %from, slot = slot.map(SlotName::as_str), "streaming WAL");
    let segment = OpenSegment::at(from, timeline, size, empty.clone(), before);
    let store = SliceStore::new(archiver, reports, history, (seen, epoch));
    let rules = Rules {
        synchronous: rules.synchronous,
        flush_interval: walpoint_runtime::config::duration(rules.flush_interval),
        silence,
        most: most(settings),
    };
    Ok(Opening::Session(Box::new(Session::new(stream, store, (segment, empty), (size, proven), rules))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_synchronous_commit_the_slot_keeps_all_that_is_not_confirmed() {
        let mut settings = ClusterSettings::with_repositories(Vec::new());
        assert_eq!(most(&settings), None);
        settings.queue_max = Some(bytesize::ByteSize::gib(1));
        assert_eq!(most(&settings), Some(1 << 30));
        for (synchronous, expected) in [(false, Some(1 << 30)), (true, None)] {
            let stream = StreamSettings { synchronous, ..StreamSettings::default() };
            settings.stream = Some(stream);
            assert_eq!(most(&settings), expected);
        }
    }

    #[test]
    fn the_oldest_segment_that_waits_on_the_path_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let size = SegmentSize::DEFAULT;
        let history = TimelineHistory::parse(TimelineId::new(2).unwrap(), b"1\t0/6000100\tx\n").unwrap();
        let oldest =
            || oldest_waiting(directory.path(), &history, size).unwrap().map(|name| name.to_string());
        let file = |name: &str| std::fs::File::create(directory.path().join(name)).unwrap();
        for name in [
            "000000010000000000000002.done",
            "000000010000000000000007.ready",
            "000000030000000000000001.ready",
            "00000002.history.ready",
            "000000010000000000000001.partial.ready",
            "x.ready",
        ] {
            file(name);
        }
        assert_eq!(oldest(), None, "archived, left behind, another's, no segment");
        file("000000020000000000000006.ready");
        assert_eq!(oldest().as_deref(), Some("000000020000000000000006"));
        file("000000010000000000000006.ready");
        file("000000010000000000000005.ready");
        assert_eq!(oldest().as_deref(), Some("000000010000000000000005"));
    }
}
