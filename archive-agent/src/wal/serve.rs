//! The push socket's conversation: one request and one reply for each connection, about a file or about the daemon's health.
//! Before a reply that takes long come others, which say that the daemon is at work.
//!
//! A connection that breaks leaves nothing behind but an upload that goes on. When the daemon stops, the socket's name goes
//! first, unless another task of the process answers on it from now on; then the requests under way are finished or, at the
//! end of the drain, answered with "ask again". A socket whose name leads elsewhere is found by no client: then this ends with an error,
//! and the requests under way are still answered.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use walpoint_base::socket::{
    HealthProblem, HealthReply, HealthRequest, Message, PUSH_ALIVE, PushOutcome, PushReply, PushRequest,
    checked_length,
};

use super::archiver::Archiver;
use super::socket::{PushSocket, SocketName};
use super::upload::Upload;

/// A request is a hundred bytes: a client that needs longer for it hangs.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// How often to look whether clients still find the socket.
const NAME_INTERVAL: Duration = Duration::from_secs(1);

/// Connections at the same time. PostgreSQL has one archiver, a person a few shells.
const CONNECTIONS: usize = 64;

/// Answers until `stop`, then finishes what is under way within `drain`. `problems` tells what fails in the daemon. An error as soon as
/// the socket has lost its name.
///
/// `owner` is the only user beside root that is answered: anybody else could learn what is archived, and keep the daemon
/// busy.
pub(crate) async fn serve<U: Upload>(
    socket: Arc<PushSocket>,
    archiver: Arc<Archiver<U>>,
    owner: u32,
    stop: CancellationToken,
    drain: Duration,
    problems: impl Fn() -> Vec<HealthProblem> + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let leave = CancellationToken::new();
    let conversations = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut lost = pin!(lost(socket.name()));
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await?;
            anyhow::Ok((slot, socket.listener.accept().await?.0))
        };
        let (slot, stream) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            path = &mut lost => {
                // Dropped at once: its lock is for the daemon that clients find.
                drop(socket);
                conversations.close();
                tokio::spawn(finish(conversations, leave, stop));
                bail!("the name {} leads to no socket, or to another daemon's", path.display());
            }
            next = next => next?,
        };
        let (archiver, leave, problems) = (Arc::clone(&archiver), leave.clone(), problems.clone());
        conversations.spawn(async move {
            if let Err(error) = converse(stream, &archiver, owner, &leave, problems).await {
                tracing::debug!("a client of the push socket closed the connection: {error}");
            }
            drop(slot);
        });
    }
    drop(socket);
    conversations.close();
    if tokio::time::timeout(drain, conversations.wait()).await.is_err() {
        leave.cancel();
        conversations.wait().await;
    }
    Ok(())
}

/// Waits until clients no longer find a socket; its path.
async fn lost(name: SocketName) -> PathBuf {
    loop {
        tokio::time::sleep(NAME_INTERVAL).await;
        let asked = name.clone();
        if tokio::task::spawn_blocking(move || asked.is_lost()).await.unwrap_or(false) {
            return name.path;
        }
    }
}

/// Waits until the requests under way are answered; with "ask again" from `stop` on.
async fn finish(conversations: TaskTracker, leave: CancellationToken, stop: CancellationToken) {
    tokio::select! {
        () = conversations.wait() => {}
        () = stop.cancelled() => leave.cancel(),
    }
}

async fn converse<U: Upload>(
    mut stream: UnixStream,
    archiver: &Arc<Archiver<U>>,
    owner: u32,
    leave: &CancellationToken,
    problems: impl Fn() -> Vec<HealthProblem>,
) -> std::io::Result<()> {
    let request = tokio::time::timeout(REQUEST_LIMIT, receive(&mut stream)).await??;
    let uid = stream.peer_cred()?.uid();
    let allowed = uid == 0 || uid == owner;
    if allowed && HealthRequest::decode(&request).is_ok() {
        stream.write_all(&HealthReply { problems: problems() }.encode()?).await?;
        return stream.shutdown().await;
    }
    let request = PushRequest::decode(&request)?;
    let reply = if allowed {
        let mut push = pin!(archiver.push(&request));
        let mut alive = tokio::time::interval_at(Instant::now() + PUSH_ALIVE, PUSH_ALIVE);
        loop {
            tokio::select! {
                reply = &mut push => break reply,
                () = leave.cancelled() => break answer(PushOutcome::Retry, &request, "the daemon stopped".to_owned()),
                _ = alive.tick() => {
                    stream.write_all(&answer(PushOutcome::Working, &request, String::new()).encode()?).await?;
                }
            }
        }
    } else {
        tracing::warn!(uid, "a push by another user than PostgreSQL's was refused");
        let why =
            format!("uid {uid} may not push to this daemon, only PostgreSQL's user (uid {owner}) and root");
        answer(PushOutcome::Failed, &request, why)
    };
    stream.write_all(&reply.encode()?).await?;
    stream.shutdown().await
}

fn answer(outcome: PushOutcome, request: &PushRequest, message: String) -> PushReply {
    PushReply { outcome, identity: request.identity, message, remember: Vec::new() }
}

/// The bytes of a request.
async fn receive(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let mut bytes = vec![0; checked_length(length)?];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
