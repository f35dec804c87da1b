//! The session that sends a base backup: where it starts and what will come, then the parts in their order.
//!
//! Dropping [`BaseBackup`] ends the session, and with it the backup on the server.

use std::collections::VecDeque;
use std::time::Duration;

use super::command::BaseBackupCommand;
use super::error::BaseBackupError;
use super::order::{Space, Start, StreamOrder, StreamPart, Unexpected, position, spaces};
use crate::connect::{AnswerPiece, AnswerPieces, RowError, Rows, ServerReport};
use crate::server::{Right, ServerError, Walsender, explain};

const ACTION: &str = "taking a base backup (BASE_BACKUP)";

/// How long a start without `fast` may wait for the next checkpoint, and one with it for its own.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(2 * 3600);

/// How long the server may be silent while it copies: it only reads files, and asks for the end of the backup.
const SILENCE_LIMIT: Duration = Duration::from_secs(600);

/// A base backup that a server is sending.
#[derive(Debug)]
pub struct BaseBackup {
    pieces: AnswerPieces,
    start: Start,
    order: StreamOrder,
    /// Read and not yet given.
    ready: VecDeque<StreamPart>,
}

impl BaseBackup {
    /// Starts a backup: waits for its checkpoint and learns where it starts and what will come.
    pub async fn start(
        walsender: Walsender,
        command: &BaseBackupCommand<'_>,
    ) -> Result<Self, BaseBackupError> {
        let major = walsender.major();
        let text = command.text(major).map_err(|why| ServerError::State { action: ACTION, why })?;
        let pieces = walsender.into_connection().pieces(&text, CHECKPOINT_LIMIT).await;
        let mut pieces = pieces.map_err(|source| ServerError::Connection { action: ACTION, source })?;
        let (lsn, timeline) = position(&rows(&mut pieces).await?).map_err(answer)?;
        let order = StreamOrder::new(major, spaces(&rows(&mut pieces).await?).map_err(answer)?)?;
        pieces.set_time_limit(SILENCE_LIMIT);
        Ok(Self { pieces, start: Start { lsn, timeline }, order, ready: VecDeque::new() })
    }

    /// Where it starts.
    pub fn started(&self) -> Start {
        self.start
    }

    /// What will be sent, in order.
    pub fn spaces(&self) -> &[Space] {
        self.order.spaces()
    }

    /// The next part; `None` after the end.
    pub async fn next(&mut self) -> Result<Option<StreamPart>, BaseBackupError> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                return Ok(Some(part));
            }
            if self.order.has_ended() {
                return Ok(None);
            }
            let piece = piece(&mut self.pieces).await?;
            // What the server said before this piece is about what it read for it.
            self.ready.extend(self.pieces.take_notices().into_iter().map(StreamPart::Notice));
            match self.order.part(piece) {
                Ok(part) => self.ready.extend(part),
                Err(Unexpected::Refused(report)) => return Err(refused(&self.pieces, report)),
                Err(Unexpected::Answer(source)) => return Err(answer(source)),
                Err(Unexpected::Error(error)) => return Err(error),
            }
        }
    }
}

async fn piece(pieces: &mut AnswerPieces) -> Result<AnswerPiece, BaseBackupError> {
    let piece = pieces.next().await;
    piece.map_err(|source| ServerError::Connection { action: ACTION, source }.into())
}

/// A result with rows, and nothing else.
async fn rows(pieces: &mut AnswerPieces) -> Result<Rows, BaseBackupError> {
    match piece(pieces).await? {
        AnswerPiece::Rows(rows) => Ok(rows),
        AnswerPiece::Refused(report) => Err(refused(pieces, report)),
        _ => Err(BaseBackupError::malformed("it does not begin with its position and its tablespaces")),
    }
}

fn refused(pieces: &AnswerPieces, report: ServerReport) -> BaseBackupError {
    let source = crate::connect::Error::Server { host: pieces.host().to_owned(), report: Box::new(report) };
    explain(ACTION, Right::Replication, pieces.user(), pieces.database(), source).into()
}

fn answer(source: RowError) -> BaseBackupError {
    ServerError::Answer { action: ACTION, source }.into()
}
