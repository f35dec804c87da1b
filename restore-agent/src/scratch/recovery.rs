//! Waiting until the private server has reached the target.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use walpoint_base::Lsn;
use walpoint_runtime::human;
use walpoint_runtime::progress::ByteProgress;

use super::configuration::PORT;
use super::directory::ScratchDirectory;
use super::server::Server;
use crate::plan::Planned;
use crate::server::end::PlannedEnd;
use crate::server::session::{FirstSession, Session, state};
use crate::server::{Instance, Reachable, ServerUser, last_errors};

/// How often the server is asked.
const ASKED: Duration = Duration::from_millis(100);

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
            server: self.reachable(),
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
        let said: String = last_errors(server.log()).iter().map(|line| format!("\nDETAIL: {line}")).collect();
        anyhow!(
            "recovery did not reach the target within {}\nDETAIL: {so_far}{said}\nHINT: Give it longer with --recovery-timeout.",
            human::span(self.timeout)
        )
    }

    fn reachable(&self) -> Reachable {
        Reachable::open_to_all(&self.directory.socket(), PORT, "the scratch server")
    }

    /// The first session on the server, as a superuser; `None` while it takes none. The role of the checks is tried last: it may be the
    /// only superuser that is known here, and it need not exist before the target is reached.
    async fn first_session(&self) -> anyhow::Result<Option<Session>> {
        let own = self.user.name();
        let tried: Vec<&str> = own.as_deref().into_iter().chain(["postgres"]).chain(self.role).collect();
        match self.reachable().first_session(self.planned.lineage.major, &tried).await? {
            FirstSession::NotYet(_) => Ok(None),
            FirstSession::Open(session) => Ok(Some(*session)),
            FirstSession::Refused(error) => Err(anyhow::Error::from(error).context(
                "the scratch server takes no session\nHINT: If no superuser of the cluster is called like PostgreSQL's user or \
                 postgres, name one with --role.",
            )),
        }
    }
}
