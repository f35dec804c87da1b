//! The answer to one statement, taken piece by piece: what streams gigabytes is never held as a whole.
//!
//! Always holds: a piece is given once, in the order in which the server sent it; waiting for the next one may be
//! abandoned and begun again. Dropping [`Pieces`] ends the session, and with it the command on the server.

use std::time::Duration;

use bytes::Bytes;
use postgres_protocol::message::backend::Message;

use super::connection::Connection;
use super::error::Error;
use super::report::ServerReport;
use super::rows::Rows;
use super::wire::Incoming;

/// More rows than these in one result of a streaming command are refused: they list tablespaces and positions.
const MAX_ROWS: usize = 1 << 16;

/// One CopyData of more bytes than this is refused. Servers send at most 128 KiB.
const MAX_DATA: usize = 1 << 20;

/// A piece of an answer.
#[derive(Debug)]
pub enum AnswerPiece {
    /// A whole result with rows.
    Rows(Rows),
    /// A stream of data begins.
    CopyBegin,
    /// A stream of data begins, and the server takes replies ([`AnswerPieces::reply`]).
    CopyBothBegin,
    /// Bytes of the stream, cut as the server liked.
    Data(Bytes),
    /// The stream ended.
    CopyEnd,
    /// A command is complete that gave no rows.
    Complete,
    /// The server refuses, or complains about what it did before. More may follow.
    Refused(ServerReport),
    /// The answer is complete; nothing comes after it.
    Ready,
}

/// A session that answers one statement.
#[derive(Debug)]
pub struct AnswerPieces {
    connection: Connection,
    /// A result of which more rows may come.
    open: Option<Rows>,
    /// Whether this side has ended a stream in both directions.
    replied: bool,
    time_limit: Duration,
}

impl Connection {
    /// Sends a statement or replication command, and gives its answer piece by piece. Each piece may take `time_limit`.
    pub async fn pieces(mut self, sql: &str, time_limit: Duration) -> Result<AnswerPieces, Error> {
        match tokio::time::timeout(time_limit, self.send(sql)).await {
            Ok(sent) => sent?,
            Err(_) => return Err(Error::Timeout { host: self.host().to_owned(), after: time_limit }),
        }
        Ok(AnswerPieces { connection: self, open: None, replied: false, time_limit })
    }
}

impl AnswerPieces {
    /// How long the server may be silent from now on.
    pub fn set_time_limit(&mut self, time_limit: Duration) {
        self.time_limit = time_limit;
    }

    /// What the server said besides, up to the last piece.
    pub fn take_notices(&mut self) -> Vec<ServerReport> {
        self.connection.take_notices()
    }

    /// The server, as messages name it.
    pub fn host(&self) -> &str {
        self.connection.host()
    }

    /// The role of the session.
    pub fn user(&self) -> &str {
        self.connection.user()
    }

    /// The database of the session, as it was asked for.
    pub fn database(&self) -> &str {
        self.connection.database()
    }

    /// The next piece.
    pub async fn next(&mut self) -> Result<AnswerPiece, Error> {
        match tokio::time::timeout(self.time_limit, self.take()).await {
            Ok(piece) => piece,
            Err(_) => Err(Error::Timeout { host: self.connection.host().to_owned(), after: self.time_limit }),
        }
    }

    /// Sends data to a server that streams in both directions. May be abandoned: what is not sent then is sent before the next reply.
    pub async fn reply(&mut self, data: &[u8]) -> Result<(), Error> {
        self.connection.send_data(data).await
    }

    /// Ends a stream in both directions from this side; once, however often it is called. The server ends it too, and answers the
    /// command.
    pub async fn end_replies(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.replied, true) {
            false => self.connection.end_data().await,
            true => self.connection.flush().await,
        }
    }

    async fn take(&mut self) -> Result<AnswerPiece, Error> {
        loop {
            let message = match self.connection.receive().await? {
                Incoming::Message(message) => message,
                Incoming::CopyBoth => return Ok(AnswerPiece::CopyBothBegin),
            };
            return Ok(match message {
                Message::RowDescription(body) => {
                    let rows = Rows::with_columns(&body);
                    self.open = Some(rows.map_err(|what| self.connection.unexpected(what))?);
                    continue;
                }
                Message::DataRow(body) => {
                    let Some(rows) = &mut self.open else {
                        return Err(self.unexpected("a row of no result"));
                    };
                    if rows.len() == MAX_ROWS {
                        return Err(self.unexpected("too many rows"));
                    }
                    rows.push(&body).map_err(|what| self.connection.unexpected(what))?;
                    continue;
                }
                Message::CommandComplete(_) => {
                    self.open.take().map_or(AnswerPiece::Complete, AnswerPiece::Rows)
                }
                Message::CopyOutResponse(_) => AnswerPiece::CopyBegin,
                Message::CopyData(body) => match body.into_bytes() {
                    data if data.len() > MAX_DATA => {
                        return Err(self.unexpected("a piece of data of more than 1 MiB"));
                    }
                    data => AnswerPiece::Data(data),
                },
                Message::CopyDone => AnswerPiece::CopyEnd,
                Message::ErrorResponse(body) => AnswerPiece::Refused(self.connection.refusal(&body)?),
                Message::ReadyForQuery(_) => AnswerPiece::Ready,
                Message::EmptyQueryResponse => continue,
                _ => return Err(self.unexpected("a message that no such statement is answered with")),
            });
        }
    }

    fn unexpected(&self, what: &str) -> Error {
        self.connection.unexpected(what.to_owned())
    }
}
