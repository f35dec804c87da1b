//! Clients that go, and the end of the daemon, at the push socket.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use walpoint_base::socket::Message;

use super::script::End;
use super::*;
use crate::wal::serve::serve;
use crate::wal::socket::Sockets;

/// How long a daemon that stops finishes what is under way.
const DRAIN: Duration = secs(5);

/// A daemon's socket.
struct Served {
    path: PathBuf,
    stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

fn served(bed: &Bed) -> Served {
    let (path, stop) = (bed.script().pgdata().join("push.sock"), CancellationToken::new());
    let owner = rustix::process::geteuid().as_raw();
    let socket = Sockets::default().listen(&path, owner).unwrap().unwrap();
    let serving = serve(socket, Arc::clone(&bed.archiver), owner, stop.clone(), DRAIN, Vec::new);
    Served { path, stop, serving: tokio::spawn(serving) }
}

impl Served {
    async fn ask(&self, request: &PushRequest) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        stream.write_all(&request.encode().unwrap()).await.unwrap();
        stream
    }
}

/// The next reply.
async fn reply(stream: &mut UnixStream) -> PushReply {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.unwrap();
    let mut bytes = vec![0; usize::try_from(u32::from_le_bytes(length)).unwrap()];
    stream.read_exact(&mut bytes).await.unwrap();
    PushReply::decode(&bytes).unwrap()
}

/// The last reply, and how many said before it that the daemon is at work.
async fn last_reply(mut stream: UnixStream) -> (PushReply, usize) {
    let mut working = 0;
    loop {
        match reply(&mut stream).await {
            PushReply { outcome: PushOutcome::Working, .. } => working += 1,
            last => return (last, working),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_leaves_an_upload_that_the_next_one_finds_done() {
    let bed = Bed::new();
    let request = bed.finish(segment(1));
    bed.script().answers(Answer::Stores(secs(10)));
    let served = served(&bed);
    let mut stream = served.ask(&request).await;
    assert_eq!(reply(&mut stream).await.outcome, PushOutcome::Working);
    drop(stream);
    tokio::time::sleep(secs(20)).await;
    assert_eq!(bed.script().attempts(None)[0].end, End::Stored);
    let (reply, working) = last_reply(served.ask(&request).await).await;
    assert_eq!((reply.outcome, working), (PushOutcome::Stored, 0));
    assert_eq!(bed.script().attempts(None).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_client_that_goes_takes_nothing_from_another() {
    let bed = Bed::new();
    let request = bed.finish(segment(1));
    bed.script().answers(Answer::Stores(secs(10)));
    let served = served(&bed);
    let (first, second) = (served.ask(&request).await, served.ask(&request).await);
    tokio::time::sleep(secs(1)).await;
    drop(first);
    let (reply, working) = last_reply(second).await;
    assert_eq!((reply.outcome, working), (PushOutcome::Stored, 2), "a word every four seconds");
    assert_eq!(bed.script().attempts(None).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_stops_answers_what_ends_in_its_drain_and_sends_the_rest_to_the_next() {
    let bed = Bed::new();
    let (soon, late) = (bed.finish(segment(1)), bed.finish(segment(2)));
    bed.script().answers_for(segment(1), Answer::Stores(secs(4)));
    bed.script().answers_for(segment(2), Answer::Hangs);
    let served = served(&bed);
    let (soon, late) = (served.ask(&soon).await, served.ask(&late).await);
    tokio::time::sleep(secs(1)).await;
    let begun = Instant::now();
    served.stop.cancel();
    assert_eq!(last_reply(soon).await.0.outcome, PushOutcome::Stored);
    let (reply, _) = last_reply(late).await;
    assert_eq!((reply.outcome, reply.message.as_str()), (PushOutcome::Retry, "the daemon stopped"));
    assert!(begun.elapsed() >= DRAIN && begun.elapsed() < DRAIN + secs(1), "{:?}", begun.elapsed());
    served.serving.await.unwrap().unwrap();
    assert!(!served.path.exists(), "no client finds it");
    assert_eq!(bed.script().attempts(Some(segment(2)))[0].end, End::UnderWay);

    bed.archiver.abandon();
    tokio::time::sleep(secs(1)).await;
    assert_eq!(bed.script().attempts(Some(segment(2)))[0].end, End::Cancelled);
    assert!(lock(&bed.archiver.active).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_abandoned_is_answered_and_not_remembered_as_stored() {
    let bed = Bed::new();
    let (slow, failing) = (bed.finish(segment(1)), bed.finish(segment(2)));
    bed.script().answers_for(segment(1), Answer::Stores(secs(9)));
    bed.script().answers_for(segment(2), Answer::Fails(Duration::ZERO));
    let pushes = [bed.push(&slow), bed.push(&failing), bed.push(&slow)];
    tokio::time::sleep(secs(2)).await;
    bed.archiver.abandon();
    for push in pushes {
        let reply = push.await.unwrap();
        assert_eq!((reply.outcome, reply.message.as_str()), (PushOutcome::Failed, "the daemon is stopping"));
    }
    assert!(!bed.archiver.remembered().knows(segment(1)));
    let attempts = bed.script().attempts(None).len();
    tokio::time::sleep(secs(60)).await;
    assert_eq!(bed.script().attempts(None).len(), attempts, "nothing is tried again");
}
