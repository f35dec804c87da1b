//! What was stored stays, whoever else stores under its name: segments and histories of two servers that believe to be the
//! same one, and of one server that tries again after a crash.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use object_store::memory::InMemory;
use walpoint_base::{SegmentName, TimelineId, WalFileName};
use walpoint_storage::error::RepoError;
use walpoint_storage::store::Store;

use super::expiry::copy;
use super::explore::{Check, Program, World};
use super::store::{Scheduled, Shared, Status};
use super::{explored, plain, soak};
use crate::Repository;
use crate::index::tests::bed;
use crate::lineage::Lineage;
use crate::wal::tests::facts_of_size;
use crate::wal::{Stored, WalArchive, WalFlags};

/// The first segment of the second timeline.
const SEGMENT: &str = "000000020000000000000003";

fn second() -> TimelineId {
    TimelineId::new(2).unwrap()
}

fn segment() -> SegmentName {
    SEGMENT.parse().unwrap()
}

/// A segment's content, as a server wrote it. `ended`: what is not there yet is zero.
fn content(lineage: &Lineage, server: u8, ended: bool) -> Bytes {
    let mut bytes = vec![server; lineage.segment_size.as_usize()];
    if ended {
        bytes[4096..].fill(0);
    }
    bytes.into()
}

fn history(server: u8) -> Bytes {
    Bytes::from(format!("1\t0/3{server:06X}\tno recovery target specified\n"))
}

async fn archive(store: Store, lineage: &Lineage) -> WalArchive {
    Repository::over("world", store, None).await.unwrap().wal(lineage)
}

/// What a server stores.
#[derive(Clone, Copy)]
struct Server {
    /// Servers of the same number write the same.
    writes: u8,
    /// Whether it stores the history of the timeline first, and nothing if that is refused.
    history_first: bool,
    /// Whether its segment is not whole.
    ended: bool,
}

/// What is acknowledged, if anything is.
async fn store(archive: &WalArchive, lineage: &Lineage, server: Server) -> Result<Stored, RepoError> {
    if server.history_first {
        archive.put_file(WalFileName::History(second()), history(server.writes)).await?;
    }
    let facts = facts_of_size(SEGMENT, !server.ended, lineage.segment_size);
    let content = content(lineage, server.writes, server.ended);
    archive.put_segment(&facts, content, WalFlags::default()).await
}

fn storing(lineage: Lineage, server: Server) -> Program {
    Arc::new(move |scheduled: Scheduled, _: Shared| {
        let lineage = lineage.clone();
        async move {
            let archive = archive(scheduled.store(), &lineage).await;
            scheduled.begin();
            match store(&archive, &lineage, server).await {
                Ok(Stored::New | Stored::Same) => "stored".to_owned(),
                Ok(Stored::Ended(_)) => "ended".to_owned(),
                Err(RepoError::Conflict { .. }) => "refused".to_owned(),
                Err(error) => panic!("{error}"),
            }
        }
        .boxed_local()
    })
}

/// Whose content is there is one server's, and it is there once that server heard so, with its restore point.
fn stays(lineage: Lineage, servers: Vec<Server>) -> Check {
    Arc::new(move |inner: Arc<InMemory>, statuses: Vec<Status>| {
        let (lineage, servers) = (lineage.clone(), servers.clone());
        async move {
            let archive = archive(plain(inner), &lineage).await;
            let wrong = |error: RepoError| error.to_string();
            let stored = archive.get(WalFileName::Segment(segment())).await.map_err(wrong)?;
            let claimed = archive.get(WalFileName::History(second())).await.map_err(wrong)?;
            for (server, status) in servers.iter().zip(&statuses) {
                let is = |text: &str| *status == Status::Ended(text.to_owned());
                let own = content(&lineage, server.writes, false);
                let has = stored.as_ref().is_some_and(|file| file.content == own);
                if is("stored") && !has {
                    return Err(format!(
                        "the segment of server {} was acknowledged and is not there",
                        server.writes
                    ));
                }
                if is("ended")
                    && stored
                        .as_ref()
                        .is_some_and(|file| file.content == content(&lineage, server.writes, true))
                {
                    return Err("a segment that is not whole is served as one".to_owned());
                }
                let claims = claimed.as_ref().is_some_and(|file| file.content == history(server.writes));
                if server.history_first && has && !claims {
                    return Err(format!(
                        "a segment of server {} lies on the timeline of another",
                        server.writes
                    ));
                }
            }
            if stored.is_some() && archive.points().await.map_err(wrong)?.points.is_empty() {
                return Err("a segment is there, and its restore point is not".to_owned());
            }
            Ok(())
        }
        .boxed_local()
    })
}

async fn world(name: &'static str, servers: Vec<Server>, lost: usize) -> World {
    let bed = bed().await;
    let lineage = bed.archive.lineage().clone();
    let initial = Arc::new(InMemory::new());
    copy(bed.dir.path(), &initial).await;
    let actors = servers.iter().map(|server| storing(lineage.clone(), *server)).collect();
    World {
        name,
        initial,
        actors,
        check: stays(lineage, servers),
        crashes: 1,
        lost,
        changes: &["clusters/main"],
    }
}

/// Promises 1 and 2.
#[test]
fn what_was_acknowledged_stays() {
    let one = Server { writes: 1, history_first: false, ended: false };
    let other = Server { writes: 2, ..one };
    explored(async || world("two servers, one segment", vec![one, other], 1).await);
    explored(async || world("one segment, tried again", vec![one, one], 1).await);
    explored(async || {
        world("a segment and its beginning", vec![one, Server { ended: true, ..one }], 1).await
    });
    if soak() {
        explored(async || world("two servers and one that tries again", vec![one, other, one], 2).await);
    }
}

/// Promise 12: the history of a timeline comes first, and decides whose segments the timeline has.
#[test]
fn a_timeline_has_the_segments_of_who_claimed_it() {
    let one = Server { writes: 1, history_first: true, ended: false };
    let other = Server { writes: 2, ..one };
    explored(async || world("two servers claim a timeline", vec![one, other], 1).await);
    if soak() {
        explored(async || world("two claim a timeline, one tries again", vec![one, other, one], 1).await);
    }
}
