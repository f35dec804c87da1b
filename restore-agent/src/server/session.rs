//! Sessions on a server that recovers, and where its recovery is.

use std::path::Path;

use jiff::Timestamp;
use walpoint_base::{Lsn, PgMajor};
use walpoint_pg::connect::{ConnInfo, Connection, Environment, Error};

use super::instance::Position;
use super::owner::Owner;

/// The first version in which triggers that fire at a login exist, and the parameter that switches them off.
pub(crate) const LOGIN_TRIGGERS: u8 = 17;

/// Databases in which the first session is tried: a cluster may lack either.
const FIRST: [&str; 2] = ["postgres", "template1"];

const STATE: &str = "SELECT pg_catalog.pg_is_in_recovery() AS recovering, \
     CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() ELSE false END AS paused, \
     pg_catalog.pg_last_wal_replay_lsn()::text AS lsn, \
     pg_catalog.to_char(pg_catalog.pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS last";

/// As whom a server's socket is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerUser {
    pub(crate) owner: Owner,
    /// The numbers of the other groups that this user is in: one of them may own the directory of the socket.
    pub(crate) groups: Vec<u32>,
}

/// How a server is reached.
#[derive(Debug, Clone)]
pub(crate) struct Reachable {
    /// The directory of its socket, or a host.
    pub(crate) host: String,
    /// The port, which names the socket, too.
    pub(crate) port: String,
    /// As whom its socket is opened, where that is not this process's user.
    pub(crate) peer: Option<PeerUser>,
    /// What else libpq's programs would find in their environment to get in: the names and values of its variables.
    pub(crate) secrets: Vec<(&'static str, String)>,
    /// What the server is called in messages.
    pub(crate) called: &'static str,
}

impl Reachable {
    /// A server by its socket, which lets in everyone who reaches it.
    pub(crate) fn open_to_all(socket_directory: &Path, port: &str, called: &'static str) -> Self {
        Self {
            host: socket_directory.display().to_string(),
            port: port.to_owned(),
            peer: None,
            secrets: Vec::new(),
            called,
        }
    }

    /// Opens a session as a role.
    pub(crate) async fn connect(
        &self,
        options: &str,
        role: &str,
        database: &str,
    ) -> Result<Connection, Error> {
        let value = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let text = format!(
            "host={} port={} user={} dbname={} options={} application_name=walpoint connect_timeout=10",
            value(&self.host),
            value(&self.port),
            value(role),
            value(database),
            value(options),
        );
        let environment = self
            .secrets
            .iter()
            .fold(Environment::empty(), |environment, (name, value)| environment.with(name, value.as_str()));
        let info = ConnInfo::parse_in(&text, &environment)?;
        Connection::open(&match &self.peer {
            Some(PeerUser { owner, groups }) => info.as_user(owner.uid, owner.gid, groups),
            None => info,
        })
        .await
    }

    /// The first session, as a superuser: of these roles the first one that gets in shows which one that is.
    pub(crate) async fn first_session(&self, major: PgMajor, roles: &[&str]) -> anyhow::Result<FirstSession> {
        let options = session_options(major, None);
        let mut refused = None;
        for (role, database) in roles.iter().flat_map(|role| FIRST.map(|database| (*role, database))) {
            match self.connect(&options, role, database).await {
                Ok(connection) => {
                    let opened = self.waiting_session(connection, &options, (role, database)).await;
                    return match opened {
                        Ok(session) => Ok(FirstSession::Open(Box::new(session))),
                        Err(error) => not_yet(error),
                    };
                }
                Err(error) if is_not_yet(&error) => return Ok(FirstSession::NotYet(Some(error))),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Ok(refused.map_or(FirstSession::NotYet(None), FirstSession::Refused))
    }

    /// The session that waits, by one that got in: with the rights of the sessions that follow.
    async fn waiting_session(
        &self,
        mut connection: Connection,
        options: &str,
        (role, database): (&str, &str),
    ) -> anyhow::Result<Session> {
        let position = state(&mut connection).await?.0;
        let superuser = superuser(&mut connection).await?.unwrap_or_else(|| role.to_owned());
        connection.close().await;
        let (connection, superuser) = match self.connect(options, &superuser, database).await {
            Ok(connection) => (connection, superuser),
            Err(error) if is_not_yet(&error) => return Err(error.into()),
            // Another superuser than the one that got in may not be let in from here.
            Err(_) => (self.connect(options, role, database).await?, role.to_owned()),
        };
        Ok(Session { connection, superuser, database: database.to_owned(), position })
    }
}

/// What a session means that broke before it could wait: where the server ended it, that shows next.
fn not_yet(error: anyhow::Error) -> anyhow::Result<FirstSession> {
    match error.downcast::<Error>() {
        Ok(error) if is_not_yet(&error) => Ok(FirstSession::NotYet(Some(error))),
        Ok(error) => Err(error.into()),
        Err(error) => Err(error),
    }
}

/// Whether a session broke, or was refused, as it is where its server ends or starts.
pub(crate) fn is_broken(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(is_not_yet)
}

/// What became of the first session.
#[derive(Debug)]
pub(crate) enum FirstSession {
    /// The server takes none yet; why, if one was tried.
    NotYet(Option<Error>),
    /// It takes none of these roles.
    Refused(Error),
    /// There it is.
    Open(Box<Session>),
}

/// A session that waits.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) superuser: String,
    pub(crate) database: String,
    pub(crate) position: Position,
}

/// What a session asks for, with the first version that knows it.
const SESSION: &[(u8, &str, &str)] = &[
    (0, "default_transaction_read_only", "on"),
    // While recovery is paused, no transaction can be serializable.
    (0, "default_transaction_isolation", "read committed"),
    (0, "default_transaction_deferrable", "off"),
    (0, "session_preload_libraries", ""),
    (0, "local_preload_libraries", ""),
    // What limits sessions in production would end a long query of a copy that no other session uses.
    (0, "statement_timeout", "0"),
    (0, "lock_timeout", "0"),
    (0, "idle_in_transaction_session_timeout", "0"),
    (14, "idle_session_timeout", "0"),
    (17, "transaction_timeout", "0"),
    (LOGIN_TRIGGERS, "event_triggers", "off"),
];

/// What a session asks for, over what the original has set for its databases and roles (`ALTER ROLE … SET`). Only a superuser may ask for
/// some of it. `role`: whose rights the session takes then.
pub(crate) fn session_options(major: PgMajor, role: Option<&str>) -> String {
    let known = SESSION.iter().filter(|(since, ..)| major.get() >= *since);
    let asked = known.map(|(_, name, value)| (*name, *value)).chain([("role", role.unwrap_or("none"))]);
    let options: Vec<String> = asked.map(|(name, value)| format!("-c {name}={}", escaped(value))).collect();
    options.join(" ")
}

/// A value in the options of a session, where spaces separate. Source of the syntax: `pg_split_opts` of PostgreSQL.
fn escaped(value: &str) -> String {
    let escape = |c: char| (c.is_ascii_whitespace() || c == '\u{b}' || c == '\\').then_some('\\');
    value.chars().flat_map(|c| escape(c).into_iter().chain([c])).collect()
}

/// Whether a server that starts may take the session later.
fn is_not_yet(error: &Error) -> bool {
    // 57P01, 57P02: it ends, or starts again after a crash. 57P03: it starts, or is not consistent. Class 53: it lacks what another session
    // may give back.
    let passes = |state: &str| matches!(state, "57P01" | "57P02" | "57P03") || state.starts_with("53");
    error.sqlstate().map_or_else(|| error.is_transient(), passes)
}

/// The superuser that `initdb` made, or the first other one that may log in.
async fn superuser(connection: &mut Connection) -> anyhow::Result<Option<String>> {
    let sql = "SELECT rolname FROM pg_catalog.pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1";
    let rows = connection.query(sql).await?;
    Ok(rows.iter().next().map(|row| row.get("rolname")).transpose()?)
}

/// Where the server is, and whether it is paused.
pub(crate) async fn state(connection: &mut Connection) -> anyhow::Result<(Position, bool)> {
    let row = connection.query(STATE).await?.one()?;
    let last: Option<String> = row.nullable("last")?;
    let position = Position {
        lsn: row.nullable("lsn")?.unwrap_or(Lsn::INVALID),
        last_commit: last.and_then(|last| last.parse::<Timestamp>().ok()),
        is_in_recovery: row.get("recovering")?,
    };
    Ok((position, row.get("paused")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_asks_for_what_its_version_knows() {
        let [old, new] = [13, 17].map(|major| session_options(PgMajor::new(major).unwrap(), None));
        for options in [&old, &new] {
            assert!(options.contains(r"-c default_transaction_isolation=read\ committed "), "{options}");
            assert!(options.contains("-c statement_timeout=0 "), "{options}");
        }
        let newer = ["event_triggers", "transaction_timeout", "idle_session_timeout"];
        assert_eq!(newer.map(|name| old.contains(&format!("-c {name}="))), [false; 3]);
        assert_eq!(newer.map(|name| new.contains(&format!("-c {name}="))), [true; 3]);
    }

    #[test]
    fn a_session_that_its_server_ended_is_tried_again() {
        use walpoint_pg::connect::ServerReport;
        let refused = |state: &str| Error::Server {
            host: "/run/pg".into(),
            report: Box::new(ServerReport { sqlstate: state.into(), ..ServerReport::default() }),
        };
        let lost = || Error::Lost { host: "/run/pg".into(), source: std::io::ErrorKind::BrokenPipe.into() };
        for error in [refused("57P01"), refused("57P02"), refused("57P03"), refused("53300"), lost()] {
            let error = anyhow::Error::from(error);
            assert!(is_broken(&error), "{error}");
            assert!(matches!(not_yet(error), Ok(FirstSession::NotYet(Some(_)))));
        }
        // What a damaged catalog says lasts.
        let lasting = ["58P01", "28000"].map(|state| anyhow::Error::from(refused(state)));
        for error in lasting.into_iter().chain([anyhow::anyhow!("no such column")]) {
            assert!(!is_broken(&error) && not_yet(error).is_err());
        }
    }

    #[test]
    fn a_role_is_one_word_of_the_options() {
        let major = PgMajor::new(17).unwrap();
        assert!(session_options(major, None).ends_with("-c role=none"));
        let options = session_options(major, Some(r"a b\c -c d"));
        assert!(options.ends_with(r"-c event_triggers=off -c role=a\ b\\c\ -c\ d"), "{options}");
    }
}
