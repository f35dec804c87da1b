//! Waiting until the private server has reached the target, and whether it has.
//!
//! A server that is paused, or has ended recovery, has not necessarily reached what was planned: it also pauses where its settings are
//! too low to continue. So the position is compared with the plan.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use jiff::Timestamp;
use walpoint_base::{Lsn, RecoveryTarget};
use walpoint_pg::connect::{Connection, Error};
use walpoint_runtime::human;
use walpoint_runtime::progress::ByteProgress;

use super::configuration;
use super::directory::ScratchDirectory;
use super::instance::{self, Instance, Position};
use super::process::ServerUser;
use super::server::{self, Server};
use crate::plan::Planned;

/// How often the server is asked.
const ASKED: Duration = Duration::from_millis(100);

/// A page of WAL.
const PAGE: u64 = 8192;

/// The longest header of a page, that of the first page of a segment: it may lie between the end of a record and the next record.
const HEADER: u64 = 40;

/// Databases in which the first session is tried: a cluster may lack either.
const FIRST: [&str; 2] = ["postgres", "template1"];

const STATE: &str = "SELECT pg_catalog.pg_is_in_recovery() AS recovering, \
     CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() ELSE false END AS paused, \
     pg_catalog.pg_last_wal_replay_lsn()::text AS lsn, \
     pg_catalog.to_char(pg_catalog.pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS last";

/// Whether recovery ended where it was planned to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reached {
    /// It did.
    Target,
    /// It ended elsewhere; how, in words.
    Elsewhere(String),
}

/// What is waited for.
pub(super) struct Waiting<'a> {
    pub(super) planned: &'a Planned,
    pub(super) directory: &'a ScratchDirectory,
    pub(super) user: &'a ServerUser,
    /// The role whose rights a person's checks have, if one was given.
    pub(super) role: Option<&'a str>,
    pub(super) timeout: Duration,
    pub(super) show_progress: bool,
}

impl Waiting<'_> {
    /// Waits until the server has reached the target and takes sessions.
    pub(super) async fn wait(&self, server: &mut Server) -> anyhow::Result<Instance> {
        let plan = &self.planned.plan;
        let from = plan.backup.id.start();
        let progress = ByteProgress::bytes("recovering", plan.until.since(from), self.show_progress);
        let instance = self.wait_with(server, &progress, from).await;
        progress.end();
        instance
    }

    async fn wait_with(
        &self,
        server: &mut Server,
        progress: &ByteProgress,
        from: Lsn,
    ) -> anyhow::Result<Instance> {
        let until = Instant::now() + self.timeout;
        let (mut session, mut shown) = (None::<Session>, from);
        loop {
            server.require_alive()?;
            if Instant::now() > until {
                return Err(self.too_late(session.as_ref().map(|session| session.position.lsn), server));
            }
            let asked = match &mut session {
                None => None,
                Some(open) => Some(state(&mut open.connection).await),
            };
            match asked {
                None => session = self.first_session().await?,
                // The end of recovery ends no session; the end of the server does, which is noticed next.
                Some(Err(error)) => {
                    tracing::debug!("the scratch server did not say where it is: {error:#}");
                    session = None;
                }
                Some(Ok((position, paused))) => {
                    progress.add(position.lsn.0.saturating_sub(shown.0));
                    shown = shown.max(position.lsn);
                    if let Some(open) = &mut session {
                        open.position = position;
                    }
                    if let Some(session) = session.take_if(|_| paused || !position.is_in_recovery) {
                        return Ok(self.instance(session));
                    }
                }
            }
            tokio::time::sleep(ASKED).await;
        }
    }

    fn instance(&self, session: Session) -> Instance {
        let Session { superuser, database, position, .. } = session;
        Instance {
            socket_directory: self.directory.socket(),
            major: self.planned.lineage.major,
            superuser,
            role: self.role.map(str::to_owned),
            database,
            position,
            reached: PlannedEnd::of(self.planned)
                .judge(position.lsn, self.planned.lineage.segment_size.bytes()),
        }
    }

    fn too_late(&self, lsn: Option<Lsn>, server: &Server) -> anyhow::Error {
        let so_far = lsn.map_or_else(
            || "It was not consistent yet.".to_owned(),
            |lsn| format!("It had replayed WAL to {lsn}; the target is at {}.", self.planned.plan.until),
        );
        let said: String =
            server::last_errors(server.log()).iter().map(|line| format!("\nDETAIL: {line}")).collect();
        anyhow!(
            "recovery did not reach the target within {}\nDETAIL: {so_far}{said}\nHINT: Give it longer with --recovery-timeout.",
            human::span(self.timeout)
        )
    }

    /// The first session on the server, as a superuser; `None` while it takes none. The role of the checks is tried last: it may be the
    /// only superuser that is known here, and it need not exist before the target is reached.
    async fn first_session(&self) -> anyhow::Result<Option<Session>> {
        let socket = self.directory.socket();
        let options = configuration::session_options(self.planned.lineage.major, None);
        let own = self.user.name();
        let tried: Vec<&str> = own.as_deref().into_iter().chain(["postgres"]).chain(self.role).collect();
        let mut refused = None;
        for (role, database) in tried.iter().flat_map(|role| FIRST.map(|database| (*role, database))) {
            match instance::connect(&socket, &options, role, database).await {
                Ok(mut connection) => {
                    let position = state(&mut connection).await?.0;
                    let database = database.to_owned();
                    let superuser = superuser(&mut connection).await?.unwrap_or_else(|| role.to_owned());
                    // The session that waits has the rights of the ones that follow.
                    connection.close().await;
                    let connection = instance::connect(&socket, &options, &superuser, &database).await?;
                    return Ok(Some(Session { connection, superuser, database, position }));
                }
                Err(error) if is_not_yet(&error) => return Ok(None),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        match refused {
            Some(error) => Err(anyhow::Error::from(error).context(
                "the scratch server takes no session\nHINT: If no superuser of the cluster is called like PostgreSQL's user or \
                 postgres, name one with --role.",
            )),
            None => Ok(None),
        }
    }
}

/// A session that waits.
struct Session {
    connection: Connection,
    superuser: String,
    database: String,
    position: Position,
}

/// Whether a server that starts may take the session later.
fn is_not_yet(error: &Error) -> bool {
    // 57P03: it starts, or is not consistent.
    error.sqlstate().map_or_else(|| error.is_transient(), |state| state == "57P03")
}

/// The superuser that `initdb` made, or the first other one that may log in.
async fn superuser(connection: &mut Connection) -> anyhow::Result<Option<String>> {
    let sql = "SELECT rolname FROM pg_catalog.pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1";
    let rows = connection.query(sql).await?;
    Ok(rows.iter().next().map(|row| row.get("rolname")).transpose()?)
}

/// Where the server is, and whether it is paused.
async fn state(connection: &mut Connection) -> anyhow::Result<(Position, bool)> {
    let row = connection.query(STATE).await?.one()?;
    let last: Option<String> = row.nullable("last")?;
    let position = Position {
        lsn: row.nullable("lsn")?.unwrap_or(Lsn::INVALID),
        last_commit: last.and_then(|last| last.parse::<Timestamp>().ok()),
        is_in_recovery: row.get("recovering")?,
    };
    Ok((position, row.get("paused")?))
}

/// Where a recovery has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlannedEnd {
    /// Before the record that starts here, which is not replayed.
    Before(Lsn),
    /// With the record between these positions.
    With { record: Lsn, end: Lsn },
    /// Where the backup is consistent, which ends here.
    Consistent(Lsn),
    /// Where the archive ends. `last_record`: where the last complete record starts, if that is known.
    Archive { last_record: Option<Lsn>, until: Lsn },
}

impl PlannedEnd {
    fn of(planned: &Planned) -> Self {
        let plan = &planned.plan;
        match &plan.stop {
            Some(stop) if plan.replayed_until() == stop.record => Self::Before(stop.record),
            Some(stop) => Self::With { record: stop.record, end: stop.end },
            None if plan.target == RecoveryTarget::Immediate => Self::Consistent(plan.backup.end),
            None => Self::Archive { last_record: planned.last_record, until: plan.until },
        }
    }

    /// Compares it with the end of the last record that was replayed. `segment`: the size of a segment of WAL.
    fn judge(self, lsn: Lsn, segment: u64) -> Reached {
        let (planned, right) = match self {
            Self::Before(record) => (record, is_right_before(lsn, record)),
            Self::With { record, end } => (end, lsn > record && lsn < end + PAGE),
            // PostgreSQL itself decides which record is the first one there.
            Self::Consistent(end) => (end, lsn + PAGE >= end),
            // Commit times do not always grow with the WAL, so the position alone decides. A later record may have been archived since.
            Self::Archive { last_record: Some(record), .. } => (record + 1, lsn > record),
            // The last record of the archive may begin in an earlier segment than it would end in.
            Self::Archive { last_record: None, until } => (until, lsn + segment.saturating_mul(2) >= until),
        };
        match (right, self) {
            (true, _) => Reached::Target,
            (false, Self::Archive { last_record: Some(record), .. }) => Reached::Elsewhere(format!(
                "recovery ended at {lsn}, and the archive has more: its last record starts at {record}"
            )),
            (false, _) => {
                Reached::Elsewhere(format!("recovery ended at {lsn}, and the plan leads to {planned}"))
            }
        }
    }
}

/// Whether no record lies between the end of one and the start of another: only the header of a page may.
fn is_right_before(end: Lsn, start: Lsn) -> bool {
    let between = start.0.checked_sub(end.0);
    between == Some(0) || end.0.is_multiple_of(PAGE) && between.is_some_and(|between| between <= HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 20;

    #[test]
    fn a_recovery_that_ends_before_or_after_what_was_planned_has_not_reached_it() {
        // A record of 48 bytes in a page, and one behind the header of a segment.
        let (record, end, first) = (Lsn(0x0320_1000), Lsn(0x0320_1030), Lsn(0x0330_0028));
        let before = PlannedEnd::Before(record);
        let with = PlannedEnd::With { record, end };
        let archive = PlannedEnd::Archive { last_record: Some(record), until: Lsn(0x0330_0000) };
        let unknown = PlannedEnd::Archive { last_record: None, until: Lsn(0x0330_0000) };
        for (what, planned, lsn, right) in [
            ("exclusive: right before", before, record, true),
            ("exclusive: a record of 24 bytes early", before, record - 24, false),
            ("exclusive: a record too many", before, end, false),
            ("exclusive: before the header of a segment", PlannedEnd::Before(first), first - 40, true),
            ("exclusive: one record before that", PlannedEnd::Before(first), first - 64, false),
            (
                "exclusive: before the header of a page",
                PlannedEnd::Before(Lsn(0x0320_2018)),
                Lsn(0x0320_2000),
                true,
            ),
            ("inclusive: right", with, end, true),
            ("inclusive: a record early", with, record, false),
            ("archive: right", archive, end, true),
            ("archive: with what was archived since", archive, Lsn(0x0340_0000), true),
            ("archive: a record early", archive, record, false),
            ("archive: a segment early", archive, record - SEGMENT, false),
            ("archive: last record unknown", unknown, Lsn(0x0330_0000) - 2 * SEGMENT, true),
            ("archive: further away", unknown, Lsn(0x0330_0000) - 2 * SEGMENT - 8, false),
            ("immediate: right", PlannedEnd::Consistent(end), end, true),
            ("immediate: a segment early", PlannedEnd::Consistent(end), end - SEGMENT, false),
        ] {
            assert_eq!(planned.judge(lsn, SEGMENT) == Reached::Target, right, "{what}");
        }
    }
}
