//! The WAL stream: a physical replication client that stores what its server has flushed before the segment is complete.
//!
//! | module | owns |
//! |---|---|
//! | [`open`] | a session: which server, which slot, from where on |
//! | [`gaps`] | WAL that the stream does without |
//! | [`slot`] | the replication slot that keeps WAL for the stream |
//! | [`segment`] | what was received of the open segment and is not stored; no IO |
//! | [`merge`] | which slices are put together, so that a slow segment has few; no IO |
//! | [`store`] | slices and whole segments in every repository that has to acknowledge |
//! | [`session`] | one stream, from its start to the end of a timeline or of the connection |
//!
//! What always holds: the position that is reported as durable is one before which every byte is stored in each repository of
//! `ack`: as whole segments, which the archiver stores as it stores those that PostgreSQL hands over, and behind the last of them as
//! slices. Slices of a segment are stored only when the segment before it is stored as a whole, so at any time one segment of a timeline
//! has slices, and recovery needs no others. A crash leaves slices; the next session continues behind them if they are what the server
//! sends, and stores the bytes once more if they are not there. Slices are replaced only by one that holds all their bytes, and that was read
//! back from each repository: a crash in between leaves both. A segment that an operator skipped, or accepted although damaged, counts as
//! stored, and keeps its slices. Before a segment's first slice, and every few seconds, it is looked for what others have stored of it: a
//! session that finds some ends, and the next one begins with that segment and confirms nothing that differs.

mod gaps;
mod merge;
mod open;
mod segment;
mod session;
mod slot;
mod store;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use walpoint_base::{Lsn, TimelineId};
use walpoint_pg::server::ServerError;
use walpoint_runtime::backoff::Backoff;
use walpoint_runtime::config::ClusterSettings;

use self::open::Opening;
use self::session::Ended;
use super::archiver::Archiver;

/// The waits before another try to connect grow from the first to the second.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// A stream that lasted this long was well: the next wait is a short one again.
const WELL: Duration = Duration::from_secs(30);

/// What keeps the stream from beginning for longer than this is a problem.
const PASSING: Duration = Duration::from_secs(60);

/// No end to the tries: servers are away for weeks.
const EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Where the task says how it is.
pub(crate) struct StreamReports {
    /// It streams.
    pub(crate) working: Box<dyn Fn() + Send + Sync>,
    /// It cannot stream yet, and nothing is wrong.
    pub(crate) waiting: Box<dyn Fn(&str) + Send + Sync>,
    /// What was received cannot be stored, and is tried again.
    pub(crate) failing: Box<dyn Fn(&str) + Send + Sync>,
}

/// Where the next session begins: the timeline that follows one that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NextStart {
    timeline: TimelineId,
    switch: Lsn,
}

/// Streams until dropped. An error is worth another try later, after it was reported.
pub(crate) async fn keep(
    archiver: Arc<Archiver>,
    settings: Arc<ClusterSettings>,
    reports: Arc<StreamReports>,
) -> anyhow::Result<()> {
    let (mut next, mut backoff, mut away) = (None, Backoff::new(WAITS.0, WAITS.1, EVER), None);
    let mut proven = None;
    loop {
        let begun = Instant::now();
        let ended = match open::open(&archiver, &settings, &reports, (next, &mut proven)).await {
            Ok(Opening::Session(session)) => {
                (next, away) = (None, None);
                session.run().await
            }
            Ok(Opening::Timeline(start)) => Ok(Ended::Timeline(start)),
            Ok(Opening::Waits(why)) => {
                (reports.waiting)(&why);
                Ok(Ended::Behind)
            }
            Ok(Opening::Blocked(why)) => {
                blocked(&reports, &mut away, &why);
                Ok(Ended::Behind)
            }
            Ok(Opening::Held(why)) => {
                (reports.failing)(&why);
                Ok(Ended::Behind)
            }
            Err(error) if is_passing(&error) => {
                let why = walpoint_words::format_chain(&error);
                blocked(&reports, &mut away, &format!("the server cannot be reached: {why}"));
                Ok(Ended::Behind)
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok(Ended::Timeline(start)) => {
                tracing::info!(timeline = %start.timeline, switch = %start.switch, "the WAL stream follows the next timeline");
                next = Some(start);
                // The server has to let go of the slot.
                tokio::time::sleep(WAITS.0).await;
                continue;
            }
            Ok(Ended::Begun(start)) => {
                tracing::info!(position = %start.switch, "comparing what is stored of a segment with what the server sends");
                next = Some(start);
                tokio::time::sleep(WAITS.0).await;
                continue;
            }
            Ok(Ended::Shutdown) => (reports.waiting)("the server is shutting down"),
            Ok(Ended::Behind) => {}
            Err(error) if is_passing(&error) => {
                tracing::warn!("the WAL stream was interrupted: {}", walpoint_words::format_chain(&error));
            }
            Err(error) => return Err(error),
        }
        if begun.elapsed() > WELL {
            backoff = Backoff::new(WAITS.0, WAITS.1, EVER);
        }
        backoff.wait().await;
    }
}

/// Reports what mostly passes by itself, a server's restart for example: a problem if it lasts.
fn blocked(reports: &StreamReports, since: &mut Option<Instant>, why: &str) {
    let long = since.get_or_insert_with(Instant::now).elapsed() > PASSING;
    if long { (reports.failing)(why) } else { (reports.waiting)(why) }
}

/// Whether the server, or the way to it, is away: a restart is no fault of the stream.
fn is_passing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ServerError>().is_some_and(ServerError::is_transient)
}
