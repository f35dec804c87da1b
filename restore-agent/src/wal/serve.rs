//! The prefetcher's socket: one request and its reply for each connection.
//!
//! Only the owner of the data directory and root are answered. While a reply takes long, the client learns every second that
//! the prefetcher works on it, and why.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use walpoint_base::socket::{self, FetchOutcome, FetchReply, FetchRequest, Message};
use walpoint_base::{Recovery, TimelineHistory, TimelineId, WalFileName};
use walpoint_runtime::config::{self, ClusterSettings, HistoryOutage};

use crate::wal::archive::{FetchResult, Landed};
use crate::wal::atomic_file::{self, Durability};
use crate::wal::branch::{self, AskedSegment};
use crate::wal::histories::HistoryCache;
use crate::wal::prefetch::Prefetcher;
use crate::wal::refusal::Remedy;
use crate::wal::retry_budget::{self, STANDBY_ATTEMPT};
use crate::wal::{abandoned, creates, fetch, parents};

/// A client writes its request at once.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// How often a client hears that its request is being worked on.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Answers requests with what a prefetcher has.
#[derive(Debug)]
pub(crate) struct PrefetchServer {
    prefetcher: Arc<Prefetcher>,
    budget: Duration,
    policy: HistoryOutage,
    open: AtomicUsize,
    last: Mutex<Instant>,
}

/// A request that is being answered, until dropped: a panic ends it, too.
struct OpenRequest(Arc<PrefetchServer>);

impl OpenRequest {
    fn count(server: &Arc<PrefetchServer>) -> Self {
        server.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(server))
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PrefetchServer {
    /// A server for one prefetcher.
    pub(crate) fn new(prefetcher: Arc<Prefetcher>, settings: &ClusterSettings) -> Arc<Self> {
        Arc::new(Self {
            prefetcher,
            budget: config::duration(settings.fetch_timeout),
            policy: settings.standby_history_outage,
            open: AtomicUsize::new(0),
            last: Mutex::new(Instant::now()),
        })
    }

    /// For how long no client has asked for anything.
    pub(crate) fn idle(&self) -> Duration {
        if self.open.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Accepts connections for as long as the process lives.
    pub(crate) async fn accept(self: Arc<Self>, listener: UnixListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: others give theirs back.
                    tracing::warn!("a request could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let open = OpenRequest::count(&self);
            tokio::spawn(async move {
                if let Err(error) = open.0.converse(stream).await {
                    tracing::debug!("a request was not answered: {error}");
                }
            });
        }
    }

    async fn converse(self: &Arc<Self>, mut stream: UnixStream) -> io::Result<()> {
        let peer = stream.peer_cred()?.uid();
        let own = rustix::process::geteuid().as_raw();
        if peer != own && peer != 0 {
            return Err(io::Error::other(format!(
                "refused a request from uid {peer}\nDETAIL: This prefetcher serves only root and uid {own}."
            )));
        }
        let request = tokio::time::timeout(REQUEST_LIMIT, read_request(&mut stream)).await??;
        let why = Mutex::new(String::new());
        let mut answer = std::pin::pin!(self.answer(&request, &why));
        let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
        let reply = loop {
            tokio::select! {
                reply = &mut answer => break reply,
                _ = heartbeat.tick() => {
                    let message = why.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    stream.write_all(&reply(FetchOutcome::Working, message).encode()?).await?;
                }
            }
        };
        stream.write_all(&reply.encode()?).await
    }

    /// The final reply. `why` says at any time what is waited for.
    async fn answer(&self, request: &FetchRequest, why: &Mutex<String>) -> FetchReply {
        let name = match request.name.parse::<WalFileName>() {
            Ok(name) => name,
            Err(error) => return reply(FetchOutcome::Uncertain, error.to_string()),
        };
        let place = self.prefetcher.place();
        if let Some(elsewhere) = self.serves_another(request) {
            return reply(FetchOutcome::Elsewhere, elsewhere);
        }
        // Asked anew each time: a promotion ends it.
        let recovery = Recovery::of(&place.pgdata);
        let standby = recovery == Recovery::Standby && request.ahead;
        let cached = if request.ahead { self.known(recovery, name).await } else { None };
        let pass = if request.ahead { self.prefetcher.pass().ask(name) } else { None };
        let demand = || async {
            self.prefetcher.follow_binding().await;
            if let (WalFileName::Segment(segment), true) = (name, request.ahead) {
                self.prefetcher.check_ahead(segment).await;
            }
            self.prefetcher.demand(name, request.ahead).await
        };
        let outcome = if let Some(outcome) = cached {
            outcome
        } else if standby {
            retry_budget::at_once(STANDBY_ATTEMPT, demand()).await
        } else {
            let tell = |text: &str| text.clone_into(&mut why.lock().unwrap_or_else(PoisonError::into_inner));
            retry_budget::until_certain(self.budget, demand, tell).await
        };
        let outcome = match (outcome, name) {
            (FetchResult::Landed(landed), WalFileName::Segment(segment)) if request.ahead => {
                let asked = AskedSegment { name: segment, pass, standby };
                let cut = |until| self.prefetcher.cut(segment, until);
                branch::on_the_path(self.prefetcher.archive(), place, asked, landed, cut).await
            }
            (outcome, _) => outcome,
        };
        // Whoever fetches it directly answers the same question of the pass.
        if request.ahead && !matches!(outcome, FetchResult::Landed(_) | FetchResult::Unwritten(_)) {
            self.prefetcher.pass().refuse(name, pass);
        }
        match outcome {
            FetchResult::Landed(Landed { size, note, creates }) => {
                match name {
                    WalFileName::History(timeline) => self.learn(timeline, standby).await,
                    WalFileName::Segment(segment) if request.ahead => {
                        self.prefetcher.archive().hand_over(segment);
                        let path = self.prefetcher.spool().path(name);
                        parents::put(self.prefetcher.archive(), place, segment, &path).await;
                    }
                    _ => {}
                }
                FetchReply {
                    outcome: FetchOutcome::Ready,
                    file: self.prefetcher.spool().path_for_client(name, &place.wal),
                    size,
                    message: note,
                    tablespaces: if request.ahead { creates::replayed(place, creates) } else { Vec::new() },
                }
            }
            FetchResult::Absent(why) => reply(FetchOutcome::Absent, why),
            FetchResult::Uncertain(why) => self.unfetched(name, standby, &why, Remedy::Fix),
            FetchResult::Refused(why, remedy) => self.unfetched(name, standby, &why, remedy),
            FetchResult::Unwritten(why) => reply(FetchOutcome::Elsewhere, self.prefetcher.untold(&why)),
        }
    }

    /// The reply about a file that may exist.
    fn unfetched(&self, name: WalFileName, standby: bool, why: &str, remedy: Remedy) -> FetchReply {
        match standby && fetch::later(name, self.policy) {
            true => reply(FetchOutcome::Later, fetch::postponed(name, why, remedy)),
            false => reply(FetchOutcome::Uncertain, fetch::refusal(name, why, remedy)),
        }
    }

    /// Why the request is not for this prefetcher, if it is not.
    fn serves_another(&self, request: &FetchRequest) -> Option<String> {
        let place = self.prefetcher.place();
        if request.system_id != place.system_id || request.directory != place.inode {
            return Some(format!(
                "the prefetcher at this socket serves {} (system identifier {}), not {}\nHINT: Each data \
                 directory needs its own socket.",
                place.wal.display(),
                place.system_id,
                request.path
            ));
        }
        let is_current = self.prefetcher.archive().origin().is_current();
        (!is_current).then(|| {
            format!("the prefetcher at this socket served an earlier recovery in {}", place.wal.display())
        })
    }

    /// The answer to a question that needs no look for the file: a history that is passed over, or one that was seen before.
    async fn known(&self, recovery: Recovery, name: WalFileName) -> Option<FetchResult> {
        let (archive, place) = (self.prefetcher.archive(), self.prefetcher.place());
        match abandoned::passed_over(archive, place, name).await {
            Some(why) => Some(FetchResult::Absent(why)),
            None => self.cached(recovery, name).await,
        }
    }

    /// A history that need not be asked for, put into the spool.
    async fn cached(&self, recovery: Recovery, name: WalFileName) -> Option<FetchResult> {
        let WalFileName::History(timeline) = name else { return None };
        let content = HistoryCache::in_wal(&self.prefetcher.place().wal).get(recovery, timeline)?;
        atomic_file::land(&self.prefetcher.spool().path(name), &content, Durability::Readers).ok()?;
        let size = u64::try_from(content.len()).ok()?;
        let landed = Landed::of(size);
        self.prefetcher.place_known(name, landed.clone());
        Some(FetchResult::Landed(landed))
    }

    /// Takes from a history that is about to be handed over where recovery goes, and keeps it on a standby.
    async fn learn(&self, timeline: TimelineId, standby: bool) {
        let path = self.prefetcher.spool().path(WalFileName::History(timeline));
        let Ok(content) = std::fs::read(path) else { return };
        if let Ok(history) = TimelineHistory::parse(timeline, &content) {
            self.prefetcher.note_history(history);
        }
        if standby {
            let cache = HistoryCache::in_wal(&self.prefetcher.place().wal);
            let kept = cache.put(timeline, &content).and_then(|()| cache.leave_policy(self.policy));
            if let Err(error) = kept {
                tracing::warn!("the history of timeline {timeline} is not kept for the next outage: {error}");
            }
        }
    }
}

fn reply(outcome: FetchOutcome, message: String) -> FetchReply {
    FetchReply { outcome, file: String::new(), size: 0, message, tablespaces: Vec::new() }
}

async fn read_request(stream: &mut UnixStream) -> io::Result<FetchRequest> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let mut bytes = vec![0; socket::checked_length(length)?];
    stream.read_exact(&mut bytes).await?;
    FetchRequest::decode(&bytes)
}
