//! Streaming WAL from a server, as a standby's WAL receiver does: `START_REPLICATION PHYSICAL`.
//!
//! | module | owns |
//! |---|---|
//! | [`message`] | the messages inside the stream |
//! | `place` | whether a server has what is asked for |
//!
//! Always holds: the bytes that a stream gives follow each other without a gap, from where it was started to where its timeline
//! ends. A server sends only WAL that it has flushed. It is told that WAL is durable, never that it was applied, and never more
//! than [`WalStream::report`] was called with. Waiting for any of it may be abandoned and begun again. Dropping [`WalStream`] ends
//! the session, and with it the stream on the server.

pub mod message;
mod place;

use std::time::Duration;

use bytes::Bytes;
use walpoint_base::{Lsn, PgTimestamp, SlotName, TimelineId};

pub use self::message::{Keepalive, WalPiece};
use self::message::{StatusUpdate, StreamMessage};
pub use self::place::{StreamPlace, place};
use crate::connect::{self, AnswerPiece, AnswerPieces, Rows, ServerReport};
use crate::server::{Right, ServerError, Walsender, explain};

const ACTION: &str = "streaming WAL (START_REPLICATION)";

/// How long a server may take to begin, and to answer the end of a stream.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// How long the connection may take no bytes. A server that lives reads them even while it sends.
const REPORT_LIMIT: Duration = Duration::from_secs(10);

/// A stream of one timeline's WAL.
#[derive(Debug)]
pub struct WalStream {
    pieces: AnswerPieces,
    timeline: TimelineId,
    /// Up to where bytes were given.
    position: Lsn,
    /// Whether the server has ended the stream, and what it has said of the next timeline.
    ended: bool,
    next_timeline: Option<NextTimeline>,
}

/// What became of the start of a stream.
#[derive(Debug)]
pub enum StreamStart {
    /// It streams.
    Streaming(Box<WalStream>),
    /// The timeline has no WAL from there on: the server continued with another one at that very position.
    TimelineEnd(NextTimeline),
}

/// What a stream gives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamEvent {
    /// The next bytes of WAL.
    Wal(WalPiece),
    /// A sign of life.
    Keepalive(Keepalive),
    /// The server has sent all that it will ever have of this timeline. The stream is over.
    TimelineEnd(NextTimeline),
    /// The server is shutting down, and knows that everything it had is durable. The stream is over.
    ServerShutdown,
}

/// Where a server's WAL continues after the end of a timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextTimeline {
    /// The next timeline on the server's path.
    pub timeline: TimelineId,
    /// Where it begins.
    pub switch: Lsn,
}

impl WalStream {
    /// Starts to stream a timeline's WAL from a position on, which the server must have ([`place`]). With a slot, the server keeps
    /// the WAL that was not reported as durable.
    pub async fn start(
        mut walsender: Walsender,
        slot: Option<&SlotName>,
        timeline: TimelineId,
        from: Lsn,
    ) -> Result<StreamStart, ServerError> {
        // A standby does not know its timeline before that.
        walsender.identify_system().await?;
        let slot = slot.map(|slot| format!("SLOT \"{slot}\" ")).unwrap_or_default();
        let sql = format!("START_REPLICATION {slot}PHYSICAL {from} TIMELINE {timeline}");
        let pieces = walsender.into_connection().pieces(&sql, ANSWER_LIMIT).await;
        let pieces = pieces.map_err(|source| ServerError::Connection { action: ACTION, source })?;
        let mut stream = Self { pieces, timeline, position: from, ended: false, next_timeline: None };
        match stream.piece().await? {
            AnswerPiece::CopyBothBegin => Ok(StreamStart::Streaming(Box::new(stream))),
            AnswerPiece::Rows(rows) => {
                stream.next_timeline = Some(next_timeline(rows)?);
                stream.what_follows().await.map(StreamStart::TimelineEnd)
            }
            AnswerPiece::Refused(report) => Err(stream.refused(report)),
            _ => Err(unexpected("it does not begin with a stream")),
        }
    }

    /// The timeline that it streams.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Up to where it gave bytes.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// How long the server may be silent. It sends a sign of life after half its `wal_sender_timeout`, unless that is 0.
    pub fn set_silence_limit(&mut self, limit: Duration) {
        self.pieces.set_time_limit(limit);
    }

    /// What the server sends next.
    pub async fn next(&mut self) -> Result<StreamEvent, ServerError> {
        if self.ended {
            return self.end().await.map(StreamEvent::TimelineEnd);
        }
        match self.piece().await? {
            AnswerPiece::Data(data) => match StreamMessage::parse(data) {
                Some(StreamMessage::Wal(wal)) => self.take(wal),
                Some(StreamMessage::Keepalive(keepalive)) => Ok(StreamEvent::Keepalive(keepalive)),
                None => Err(unexpected("a message that is neither WAL nor a keepalive")),
            },
            AnswerPiece::CopyEnd => {
                self.ended = true;
                self.end().await.map(StreamEvent::TimelineEnd)
            }
            // The last words of a walsender before its server is shut down.
            AnswerPiece::Complete => Ok(StreamEvent::ServerShutdown),
            AnswerPiece::Refused(report) => Err(self.refused(report)),
            _ => Err(unexpected("a piece that no stream of WAL has")),
        }
    }

    /// Tells the server up to where WAL is durable; 0/0 tells only that this side is alive. `wants_reply`: the server answers with a
    /// keepalive.
    pub async fn report(
        &mut self,
        durable: Lsn,
        now: PgTimestamp,
        wants_reply: bool,
    ) -> Result<(), ServerError> {
        let update = StatusUpdate { durable, sent: now, wants_reply };
        match tokio::time::timeout(REPORT_LIMIT, self.pieces.reply(&update.encode())).await {
            Ok(sent) => sent.map_err(failed),
            Err(_) => {
                let host = self.pieces.host().to_owned();
                Err(failed(connect::Error::Timeout { host, after: REPORT_LIMIT }))
            }
        }
    }

    /// Ends the stream from this side. What the server sends until it reads that is dropped.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        self.pieces.set_time_limit(ANSWER_LIMIT);
        self.pieces.end_replies().await.map_err(failed)?;
        loop {
            match self.piece().await? {
                AnswerPiece::Ready => return Ok(()),
                AnswerPiece::Refused(report) => return Err(self.refused(report)),
                _ => {}
            }
        }
    }

    fn take(&mut self, wal: WalPiece) -> Result<StreamEvent, ServerError> {
        let WalPiece { start, bytes, .. } = &wal;
        if *start != self.position {
            return Err(unexpected(format!("WAL from {start} on, where {} follows", self.position)));
        }
        let end = length(bytes).and_then(|length| self.position.0.checked_add(length));
        self.position = Lsn(end.ok_or_else(|| unexpected("WAL behind the last position that there is"))?);
        Ok(StreamEvent::Wal(wal))
    }

    /// The end of a timeline: the server ended the stream, and answers the command once this side has ended it, too.
    async fn end(&mut self) -> Result<NextTimeline, ServerError> {
        self.pieces.set_time_limit(ANSWER_LIMIT);
        self.pieces.end_replies().await.map_err(failed)?;
        self.what_follows().await
    }

    /// Reads to the end of the answer: which timeline follows.
    async fn what_follows(&mut self) -> Result<NextTimeline, ServerError> {
        loop {
            match (self.piece().await?, self.next_timeline) {
                (AnswerPiece::Rows(rows), None) => self.next_timeline = Some(next_timeline(rows)?),
                (AnswerPiece::Complete, Some(_)) => {}
                (AnswerPiece::Ready, Some(next)) => return Ok(next),
                (AnswerPiece::Refused(report), _) => return Err(self.refused(report)),
                _ => return Err(unexpected("the end of a timeline without the next one")),
            }
        }
    }

    async fn piece(&mut self) -> Result<AnswerPiece, ServerError> {
        self.pieces.next().await.map_err(failed)
    }

    fn refused(&self, report: ServerReport) -> ServerError {
        let pieces = &self.pieces;
        let source = connect::Error::Server { host: pieces.host().to_owned(), report: Box::new(report) };
        explain(ACTION, Right::Replication, pieces.user(), pieces.database(), source)
    }
}

fn failed(source: connect::Error) -> ServerError {
    ServerError::Connection { action: ACTION, source }
}

fn unexpected(why: impl Into<String>) -> ServerError {
    ServerError::State { action: ACTION, why: why.into() }
}

fn length(bytes: &Bytes) -> Option<u64> {
    u64::try_from(bytes.len()).ok()
}

/// Reads the result that follows the end of a timeline (`next_tli`, `next_tli_startpos`).
fn next_timeline(rows: Rows) -> Result<NextTimeline, ServerError> {
    let answer = |source| ServerError::Answer { action: ACTION, source };
    let row = rows.one().map_err(answer)?;
    Ok(NextTimeline {
        timeline: row.get("next_tli").map_err(answer)?,
        switch: row.get("next_tli_startpos").map_err(answer)?,
    })
}
