//! A session on a server, in the simple query protocol.
//!
//! Always holds: every method may be cancelled by dropping its future. What the abandoned statement still sends is read
//! and thrown away, and the statement itself cancelled, before the next one is sent. A connection that broke, or on
//! which the server ended the session, gives errors from then on. Dropping a connection ends the session, and with it
//! whatever the session held: a backup in progress, locks, a temporary slot.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use postgres_protocol::message::backend::{ErrorResponseBody, Message};
use postgres_protocol::message::frontend;

use super::cancel::Cancel;
use super::error::{ConnectFailure, Error};
use super::report::ServerReport;
use super::rows::Rows;
use super::settings::{ConnInfo, Host, Replication, SessionTarget};
use super::wire::{Fault, Incoming, Wire};

/// How long a statement may take unless [`Connection::set_limit`] says otherwise. Catalog queries take milliseconds.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// Longest wait for a cancelled statement to end and for a farewell to be sent.
const FAREWELL: Duration = Duration::from_secs(5);

/// More notices than these are not kept, the oldest going first.
const MAX_NOTICES: usize = 100;

/// An answer of more bytes than this is refused: nothing asked for here is near.
const MAX_ANSWER: usize = 64 << 20;

/// What is known when a session begins.
pub(super) struct Established {
    pub(super) host: String,
    pub(super) server: Host,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) replication: Replication,
    pub(super) encrypted: bool,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) cancel: Cancel,
}

/// A session. Dropping it closes the socket, which ends the session; [`Connection::close`] is the polite way.
pub struct Connection {
    wire: Wire,
    session: Established,
    notices: VecDeque<ServerReport>,
    limit: Option<Duration>,
    /// Statements sent whose ReadyForQuery has not come.
    unanswered: u32,
    /// Why nothing can be sent any more.
    broken: Option<String>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({}@{}/{})", self.session.user, self.session.host, self.session.database)
    }
}

impl Connection {
    /// Opens a session: hosts in order, TLS, authentication and session target as the settings say. For SQL sessions
    /// the search path is emptied, so that nothing in a schema others may write to is called by accident.
    pub async fn open(info: &ConnInfo) -> Result<Self, Error> {
        super::open::open(info).await
    }

    pub(super) fn new(wire: Wire, session: Established) -> Self {
        Self {
            wire,
            session,
            notices: VecDeque::new(),
            limit: Some(DEFAULT_LIMIT),
            unanswered: 0,
            broken: None,
        }
    }

    /// The server, as messages name it.
    pub fn host(&self) -> &str {
        &self.session.host
    }

    /// The server as it was reached: of several hosts that one, and of several addresses of its name that one.
    pub fn server(&self) -> &Host {
        &self.session.server
    }

    /// The role of the session.
    pub fn user(&self) -> &str {
        &self.session.user
    }

    /// The database of the session.
    pub fn database(&self) -> &str {
        &self.session.database
    }

    /// Whether the session uses TLS.
    pub fn is_encrypted(&self) -> bool {
        self.session.encrypted
    }

    /// The kind of session.
    pub fn replication(&self) -> Replication {
        self.session.replication
    }

    /// What the server last reported for one of the settings it reports by itself, such as `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.session.parameters.get(name).map(String::as_str)
    }

    /// The server process of this session, as in `pg_stat_activity`.
    pub fn process_id(&self) -> i32 {
        self.session.cancel.process_id
    }

    /// A way to cancel what the session does, from elsewhere.
    pub fn cancel(&self) -> Cancel {
        self.session.cancel.clone()
    }

    /// How long a statement may take from now on; `None` for ever. A minute at first.
    pub fn set_limit(&mut self, limit: Option<Duration>) {
        self.limit = limit;
    }

    /// The notices and warnings since the last call, at most the latest 100.
    pub fn take_notices(&mut self) -> Vec<ServerReport> {
        self.notices.drain(..).collect()
    }

    /// Executes one statement and gives its rows. An error if the text holds several that give rows.
    pub async fn query(&mut self, sql: &str) -> Result<Rows, Error> {
        let mut results = self.batch(sql).await?;
        match (results.pop(), results.len()) {
            (Some(rows), 0) => Ok(rows),
            (None, _) => Ok(Rows::default()),
            (Some(_), more) => Err(self.unexpected(format!("{} results for one statement", more + 1))),
        }
    }

    /// Executes statements for their effect.
    pub async fn execute(&mut self, sql: &str) -> Result<(), Error> {
        self.batch(sql).await.map(drop)
    }

    /// Executes statements (in one transaction, unless they say otherwise) or a replication command, and gives every
    /// result that has rows.
    pub async fn batch(&mut self, sql: &str) -> Result<Vec<Rows>, Error> {
        let Some(limit) = self.limit else { return self.exchange(sql).await };
        match tokio::time::timeout(limit, self.exchange(sql)).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { host: self.session.host.clone(), after: limit }),
        }
    }

    /// Says goodbye and waits briefly for the server to end the session.
    pub async fn close(mut self) {
        if self.broken.is_some() {
            return;
        }
        frontend::terminate(&mut self.wire.outgoing);
        let farewell = async {
            if self.wire.flush().await.is_ok() {
                self.wire.closed().await;
            }
        };
        // A server that does not answer has lost the session anyway when the socket is closed.
        drop(tokio::time::timeout(FAREWELL, farewell).await);
    }

    async fn exchange(&mut self, sql: &str) -> Result<Vec<Rows>, Error> {
        self.send(sql).await?;
        self.answer().await
    }

    /// Sends a statement whose answer is read next, after whatever abandoned ones still answer.
    pub(super) async fn send(&mut self, sql: &str) -> Result<(), Error> {
        self.settle().await?;
        frontend::query(sql, &mut self.wire.outgoing)
            .map_err(|e| self.unexpected(format!("the statement {e}")))?;
        self.unanswered = self.unanswered.saturating_add(1);
        self.flush().await
    }

    /// Collects the answer to one statement, to its ReadyForQuery.
    async fn answer(&mut self) -> Result<Vec<Rows>, Error> {
        let (mut results, mut open) = (Vec::new(), None::<Rows>);
        let (mut refusal, mut problem) = (None, None);
        let mut bytes = 0usize;
        loop {
            let message = match self.receive().await {
                Ok(message) => message,
                // A server that ends the session says why first.
                Err(error) => return Err(refusal.unwrap_or(error)),
            };
            match message {
                Incoming::Message(Message::RowDescription(body)) => match Rows::with_columns(&body) {
                    Ok(rows) => open = Some(rows),
                    Err(what) => problem = Some(what),
                },
                Incoming::Message(Message::DataRow(body)) => {
                    bytes = bytes.saturating_add(body.buffer().len());
                    if bytes > MAX_ANSWER {
                        open = None;
                        problem = Some(format!("more than {MAX_ANSWER} bytes"));
                    } else if let Some(rows) = &mut open {
                        problem = rows.push(&body).err().or(problem);
                    }
                }
                Incoming::Message(Message::CommandComplete(body)) => {
                    if let Some(mut rows) = open.take() {
                        body.tag().unwrap_or_default().clone_into(&mut rows.tag);
                        results.push(rows);
                    }
                }
                Incoming::Message(Message::ErrorResponse(body)) => {
                    let report = Box::new(self.refusal(&body)?);
                    refusal = Some(Error::Server { host: self.session.host.clone(), report });
                }
                Incoming::Message(Message::ReadyForQuery(_)) => break,
                other => {
                    if self.refuse_copy(&other).await? {
                        problem = Some("a stream of data, which this statement should not give".to_owned());
                    }
                }
            }
        }
        match (refusal, problem) {
            (Some(error), _) => Err(error),
            (None, Some(what)) => Err(self.unexpected(what)),
            (None, None) => Ok(results),
        }
    }

    /// Reads to the end of what abandoned statements still answer, after asking the server to cancel them.
    async fn settle(&mut self) -> Result<(), Error> {
        if let Some(why) = &self.broken {
            let source = io::Error::new(io::ErrorKind::NotConnected, why.clone());
            return Err(Error::Lost { host: self.session.host.clone(), source });
        }
        if self.unanswered == 0 {
            return Ok(());
        }
        self.flush().await?;
        let cancel = self.cancel();
        let drain = async {
            if let Err(error) = cancel.send().await {
                tracing::debug!(%error, "the request to cancel an abandoned statement did not arrive");
            }
            while self.unanswered > 0 {
                let message = self.receive().await?;
                self.refuse_copy(&message).await?;
            }
            Ok(())
        };
        drain.await
    }

    /// What the server refuses, and whether it ends the session with it.
    pub(super) fn refusal(&mut self, body: &ErrorResponseBody) -> Result<ServerReport, Error> {
        let report = ServerReport::read(body.fields()).map_err(|what| self.garbage(what))?;
        if report.is_fatal() {
            self.broken = Some(report.to_string());
        }
        Ok(report)
    }

    /// Ends a COPY that nobody asked for. Whether the message was about one.
    async fn refuse_copy(&mut self, message: &Incoming) -> Result<bool, Error> {
        match message {
            Incoming::Message(Message::CopyInResponse(_)) => {
                let text = frontend::copy_fail("not wanted", &mut self.wire.outgoing);
                text.map_err(|e| self.unexpected(e.to_string()))?;
                self.flush().await?;
                Ok(true)
            }
            Incoming::CopyBoth => {
                frontend::copy_done(&mut self.wire.outgoing);
                self.flush().await?;
                Ok(true)
            }
            Incoming::Message(Message::CopyOutResponse(_) | Message::CopyData(_) | Message::CopyDone) => {
                Ok(true)
            }
            Incoming::Message(_) => Ok(false),
        }
    }

    /// The next message that is not about the session as such: notices and settings are noted here, and the end of a
    /// statement is counted.
    pub(super) async fn receive(&mut self) -> Result<Incoming, Error> {
        loop {
            let message = self.wire.receive().await.map_err(|fault| self.fault(fault))?;
            match &message {
                Incoming::Message(Message::NoticeResponse(body)) => {
                    let report = ServerReport::read(body.fields()).map_err(|what| self.garbage(what))?;
                    if self.notices.len() == MAX_NOTICES {
                        self.notices.pop_front();
                    }
                    self.notices.push_back(report);
                }
                Incoming::Message(Message::ParameterStatus(body)) => {
                    if let (Ok(name), Ok(value)) = (body.name(), body.value()) {
                        self.session.parameters.insert(name.to_owned(), value.to_owned());
                    }
                }
                Incoming::Message(Message::NotificationResponse(_)) => {}
                Incoming::Message(Message::ReadyForQuery(_)) => {
                    self.unanswered = self.unanswered.saturating_sub(1);
                    return Ok(message);
                }
                _ => return Ok(message),
            }
        }
    }

    /// Sends data of a COPY.
    pub(super) async fn send_data(&mut self, data: &[u8]) -> Result<(), Error> {
        let copy = frontend::CopyData::new(data).map_err(|e| self.unexpected(e.to_string()))?;
        copy.write(&mut self.wire.outgoing);
        self.flush().await
    }

    /// Ends a COPY from this side.
    pub(super) async fn end_data(&mut self) -> Result<(), Error> {
        frontend::copy_done(&mut self.wire.outgoing);
        self.flush().await
    }

    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        self.wire.flush().await.map_err(|fault| self.fault(fault))
    }

    fn fault(&mut self, fault: Fault) -> Error {
        match fault {
            Fault::Garbage(what) => self.garbage(what),
            Fault::Lost(source) => {
                self.broken.get_or_insert_with(|| source.to_string());
                Error::Lost { host: self.session.host.clone(), source }
            }
        }
    }

    /// The stream can no longer be followed.
    fn garbage(&mut self, what: String) -> Error {
        self.broken.get_or_insert_with(|| what.clone());
        self.unexpected(what)
    }

    pub(super) fn unexpected(&self, what: String) -> Error {
        Error::Unexpected { host: self.session.host.clone(), what }
    }

    /// Whether this is a session of the kind wanted; then makes it safe to use.
    pub(super) async fn check_target(&mut self, target: SessionTarget) -> Result<(), ConnectFailure> {
        let wrong = match target {
            SessionTarget::Any | SessionTarget::PreferStandby => None,
            SessionTarget::ReadWrite => self.is_read_only().await?.then_some("read-only, not read-write"),
            SessionTarget::ReadOnly => (!self.is_read_only().await?).then_some("read-write, not read-only"),
            SessionTarget::Primary => self.is_in_recovery().await?.then_some("a standby, not a primary"),
            SessionTarget::Standby => (!self.is_in_recovery().await?).then_some("a primary, not a standby"),
        };
        if let Some(wrong) = wrong {
            return Err(ConnectFailure::Target(format!("{wrong} as target_session_attrs asks")));
        }
        if self.session.replication != Replication::Physical {
            self.exchange("SELECT pg_catalog.set_config('search_path', '', false)").await.map_err(failure)?;
        }
        Ok(())
    }

    async fn is_read_only(&mut self) -> Result<bool, ConnectFailure> {
        match (self.parameter("default_transaction_read_only"), self.parameter("in_hot_standby")) {
            (Some(read_only), Some(standby)) => Ok(read_only == "on" || standby == "on"),
            // 13 does not report them.
            _ => self.ask("SHOW transaction_read_only").await,
        }
    }

    async fn is_in_recovery(&mut self) -> Result<bool, ConnectFailure> {
        match self.parameter("in_hot_standby") {
            Some(standby) => Ok(standby == "on"),
            // A walsender of 13 without a database has no SQL; sessions on a standby are read-only.
            None if self.session.replication == Replication::Physical => {
                self.ask("SHOW transaction_read_only").await
            }
            None => self.ask("SELECT pg_catalog.pg_is_in_recovery() AS transaction_read_only").await,
        }
    }

    async fn ask(&mut self, sql: &str) -> Result<bool, ConnectFailure> {
        let rows = self.exchange(sql).await.map_err(failure)?;
        let row = rows.into_iter().next().unwrap_or_default().one();
        row.and_then(|row| row.get("transaction_read_only"))
            .map_err(|e| ConnectFailure::Protocol(e.to_string()))
    }
}

/// An error of the first statements of a session, as a failed try to connect.
fn failure(error: Error) -> ConnectFailure {
    match error {
        Error::Server { report, .. } => ConnectFailure::Server(report),
        Error::Lost { source, .. } => ConnectFailure::Network(source),
        other => ConnectFailure::Protocol(other.to_string()),
    }
}
