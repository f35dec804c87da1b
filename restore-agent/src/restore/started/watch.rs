//! Watching a restored server recover, until it is where it was to stop, or has stopped by itself.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use walpoint_base::{TimelineId, WalFileName};
use walpoint_pg::connect::Error;
use walpoint_runtime::progress::ByteProgress;

use super::launch::{Address, Launched};
use super::pace::{Pace, Seen, Sessions};
use super::unanswered::Unanswered;
use super::{LaunchPlan, unseen};
use crate::plan::Planned;
use crate::server::end::PlannedEnd;
use crate::server::session::{FirstSession, PeerUser, Session, is_broken, state};
use crate::server::{Instance, Position, Reachable, Reached, ServerUser};

/// How often it is looked at.
const LOOKED: Duration = Duration::from_millis(200);

/// How often a log says how far it is.
const LOGGED: Duration = Duration::from_secs(5);

/// A server that is watched.
pub(super) struct Watch<'a> {
    pub(super) planned: &'a Planned,
    pub(super) plan: &'a LaunchPlan,
    pub(super) user: &'a ServerUser,
    /// As whom its socket is opened, where that is not this process's user.
    pub(super) peer: Option<PeerUser>,
    /// When waiting ends.
    pub(super) until: Option<Instant>,
    pub(super) show_progress: bool,
}

/// What came of watching.
pub(super) enum Watched {
    /// It is where it was to stop, and takes sessions.
    Arrived(Box<Arrived>),
    /// A standby that takes no sessions is consistent.
    Consistent,
    /// It has ended.
    Ended(ExitStatus),
    /// It takes no session of ours.
    Refused(Error),
    /// The time for waiting is over.
    Late,
}

/// A server that has arrived.
pub(super) struct Arrived {
    pub(super) instance: Instance,
    pub(super) timeline: TimelineId,
}

/// What is known of it, also if watching is interrupted.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) seen: Seen,
    pub(super) address: Option<Address>,
}

/// How it is shown.
struct Shown {
    line: ByteProgress,
    pace: Pace,
    began: Instant,
    logged: Instant,
    unanswered: Unanswered,
}

impl Watch<'_> {
    /// Watches it; `known` has what was seen last.
    pub(super) async fn watch(&self, server: &mut Launched, known: &mut Known) -> anyhow::Result<Watched> {
        let now = Instant::now();
        let mut shown = Shown {
            line: ByteProgress::waiting("recovering", self.show_progress),
            pace: Pace::towards(self.planned.plan.until),
            began: now,
            logged: now,
            unanswered: Unanswered::default(),
        };
        let watched = self.look(server, known, &mut shown).await;
        shown.line.end();
        watched
    }

    async fn look(
        &self,
        server: &mut Launched,
        known: &mut Known,
        shown: &mut Shown,
    ) -> anyhow::Result<Watched> {
        let mut session = None::<Session>;
        loop {
            if let Some(status) = server.status()? {
                return Ok(Watched::Ended(status));
            }
            if self.until.is_some_and(|until| Instant::now() > until) {
                return Ok(Watched::Late);
            }
            let asked = match &mut session {
                None => None,
                Some(open) => Some(state(&mut open.connection).await),
            };
            match asked {
                None => {
                    let address = server.address();
                    let takes_sessions = address.as_ref().is_some_and(|(_, takes)| *takes);
                    known.address = address.map(|(address, _)| address).or(known.address.take());
                    match self.first_session(known.address.as_ref().filter(|_| takes_sessions)).await? {
                        FirstSession::NotYet(_) if self.has_arrived_unseen() => {
                            return Ok(Watched::Consistent);
                        }
                        FirstSession::NotYet(error) => {
                            if let Some(error) = shown.unanswered.note(error, Instant::now()) {
                                return Ok(Watched::Refused(error));
                            }
                            self.look_from_outside(server, known);
                        }
                        FirstSession::Open(open) => {
                            shown.unanswered = Unanswered::default();
                            session = Some(*open);
                        }
                        FirstSession::Refused(error) => return Ok(Watched::Refused(error)),
                    }
                }
                // The end of recovery ends no session; the end of the server does, which is noticed next.
                Some(Err(error)) => {
                    tracing::debug!("the restored server did not say where it is: {error:#}");
                    session = None;
                }
                Some(Ok((position, is_paused))) => {
                    let lsn = Some(position.lsn).filter(|lsn| lsn.is_valid());
                    known.seen = Seen { lsn, last_commit: position.last_commit, by_server: true };
                    let is_there = is_paused || !position.is_in_recovery || self.plan.is_standby;
                    if let Some(session) = session.take_if(|_| is_there) {
                        match self.arrived(session, position, known).await {
                            Err(error) if is_broken(&error) => {
                                tracing::debug!("the restored server did not say where it is: {error:#}");
                            }
                            arrived => return arrived,
                        }
                    }
                }
            }
            self.show(&known.seen, shown);
            tokio::time::sleep(LOOKED).await;
        }
    }

    fn has_arrived_unseen(&self) -> bool {
        self.plan.is_standby && !self.plan.takes_sessions && unseen::is_consistent(self.data())
    }

    fn data(&self) -> unseen::Data<'_> {
        (&self.plan.pgdata, self.plan.owner)
    }

    fn look_from_outside(&self, server: &Launched, known: &mut Known) {
        let size = self.planned.lineage.segment_size;
        let lsn = unseen::replayed(self.data(), server.pid, size);
        known.seen.lsn = lsn.max(known.seen.lsn);
        known.seen.by_server = false;
    }

    fn show(&self, seen: &Seen, shown: &mut Shown) {
        if let Some(lsn) = seen.lsn {
            shown.pace.note(shown.began.elapsed(), lsn);
        }
        let sessions = Sessions {
            from: self.planned.plan.backup.end,
            are_taken: self.plan.takes_sessions,
            unanswered: shown.unanswered.reason(),
        };
        let line = shown.pace.line(seen, sessions);
        if self.show_progress {
            shown.line.say(&line);
        } else if shown.logged.elapsed() >= LOGGED {
            shown.logged = Instant::now();
            tracing::info!("{line}");
        }
    }

    fn reachable(&self, address: &Address) -> Reachable {
        Reachable {
            host: address.host.clone(),
            port: address.port.clone(),
            peer: self.peer.clone(),
            // The file that says where it takes sessions is its user's to write. What root has is not for whatever host that names.
            secrets: if self.plan.owner.is_none() || address.is_socket() { secrets() } else { Vec::new() },
            called: "the restored server",
        }
    }

    /// The first session, as a superuser: the role that libpq would take, or one of the usual ones.
    async fn first_session(&self, address: Option<&Address>) -> anyhow::Result<FirstSession> {
        let Some(address) = address else { return Ok(FirstSession::NotYet(None)) };
        let given = std::env::var("PGUSER").ok();
        let own = self.user.name().filter(|name| name != "postgres");
        let roles: Vec<&str> =
            given.as_deref().into_iter().chain(own.as_deref()).chain(["postgres"]).collect();
        self.reachable(address).first_session(self.planned.lineage.major, &roles).await
    }

    async fn arrived(&self, session: Session, position: Position, known: &Known) -> anyhow::Result<Watched> {
        let Session { mut connection, superuser, database, .. } = session;
        let timeline = match position.is_in_recovery {
            true => self.planned.plan.timeline,
            false => {
                let sql = "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) AS file";
                let file: String = connection.query(sql).await?.one()?.get("file")?;
                file.parse::<WalFileName>().map_or(self.planned.plan.timeline, WalFileName::timeline)
            }
        };
        connection.close().await;
        let address = known.address.as_ref().ok_or_else(super::launch::gone)?;
        let reached = match self.plan.is_standby {
            true => Reached::Target,
            false => {
                let size = self.planned.lineage.segment_size.bytes();
                PlannedEnd::of(self.planned).judge(position.lsn, size)
            }
        };
        let instance = Instance {
            server: self.reachable(address),
            major: self.planned.lineage.major,
            superuser,
            role: None,
            database,
            position,
            reached,
        };
        Ok(Watched::Arrived(Box::new(Arrived { instance, timeline })))
    }
}

/// What libpq's programs would find in the environment to get in, beside the role.
fn secrets() -> Vec<(&'static str, String)> {
    let given = ["PGPASSWORD", "PGPASSFILE"].map(|name| Some((name, std::env::var(name).ok()?)));
    given.into_iter().flatten().collect()
}
