//! What is listed as a backup restores, whatever is deleted beside it: a backup that builds on the oldest one is made while
//! another one is finished, after which retention drops the oldest, without a grace period.

use std::sync::Arc;

use futures_util::FutureExt;
use jiff::SignedDuration;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use walpoint_base::{BackupId, SegmentNo, SegmentSize, TimelineId};
use walpoint_plan::retention::{Policy, Rule};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::store::Store;

use super::explore::{Check, Program, World};
use super::store::{Scheduled, Shared, Status};
use super::{explored, plain, soak};
use crate::Repository;
use crate::backup::tests::{attributes, facts, restore};
use crate::backup::{
    BackupDescription, Backups, BlockSize, Draft, Intent, ListedState, ReusableBackups, TablePath, WalStored,
    WindowLimits, WriteOptions,
};
use crate::expire::tests::{ago, cluster};
use crate::expire::{ExpireOptions, expire};
use crate::index::tests::bed;
use crate::lineage::Lineage;

/// Where backups and expiry change anything in this world, which has no WAL.
const CHANGES: &[&str] = &["clusters/main/backups", "clusters/main/data", "clusters/main/announcements"];

/// Hours since the backups ended: the oldest, the one that is finished meanwhile, the one that builds on the oldest.
const AGES: [i64; 3] = [72, 48, 24];

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

/// The backup of that number.
fn id(number: usize) -> BackupId {
    let start = SegmentNo(number as u64 + 3).start(size()) + 40;
    BackupId::new(
        "2026-11-21T10:00:00Z".parse().unwrap(),
        TimelineId::FIRST,
        start,
        u32::try_from(number).unwrap(),
    )
}

/// What it holds: a file that all of them share, and one of its own.
fn files(number: usize) -> [(&'static str, Vec<u8>); 2] {
    let noise = |seed: u64| {
        let mut bytes = vec![0; 20_000];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    };
    [("shared", noise(0)), ("own", noise(number as u64 + 1))]
}

async fn open(store: Store) -> Repository {
    Repository::over("world", store, None).await.unwrap()
}

/// What a backup builds on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Base {
    Nothing,
    /// What a listing said was the newest, before the second one was finished.
    Oldest,
    /// What a listing says.
    Listed,
}

/// Everything of a backup but its manifest.
async fn write(repository: &Repository, lineage: &Lineage, number: usize, base: Base) -> Result<Draft> {
    let backups = Backups::of(repository, &cluster());
    let base = match base {
        Base::Nothing => ReusableBackups::default(),
        Base::Oldest => ReusableBackups { parents: vec![id(0)], resumed: Vec::new() },
        Base::Listed => ReusableBackups::choose(&backups.list().await?),
    };
    let ended = ago(AGES[number]);
    let intent = Intent {
        id: id(number),
        lineage: lineage.id,
        started: ended,
        host: String::new(),
        agent: String::new(),
        label: String::new(),
        parents: base.parents,
        resumed: base.resumed,
    };
    let writer = backups.begin(intent, BlockSize::new(8192).unwrap(), &WriteOptions::default()).await?;
    let mut stream = writer.stream();
    let work = move || {
        stream.directory(TablePath::data("").unwrap(), attributes(b""))?;
        for (path, bytes) in files(number) {
            let mut file = stream.file(TablePath::data(path).unwrap());
            file.write(&bytes)?;
            file.finish(attributes(path.as_bytes()))?;
        }
        stream.finish()
    };
    tokio::task::spawn_blocking(work).await.unwrap()?;
    let start = id(number).start();
    writer
        .finish(BackupDescription {
            started: ended,
            ended,
            lineage: lineage.id,
            major: lineage.major,
            wal_segment_size: size().bytes(),
            start_lsn: start,
            stop_lsn: start + 200,
            ..facts(8192)
        })
        .await
}

async fn publish(draft: Draft) -> Result<()> {
    let (first, last) = draft.needs_wal()?;
    draft.publish(WalStored { first, last }).await.map(drop)
}

/// What a backup may come to beside an expiry: it is made, or it says that what it builds on is going.
fn outcome(result: Result<()>) -> String {
    match result {
        Ok(()) => "made".to_owned(),
        Err(RepoError::Refused { .. } | RepoError::NotFound { .. }) => "refused".to_owned(),
        Err(error) => panic!("a backup failed: {error}"),
    }
}

/// Makes the backup that builds on the oldest.
fn backing_up(lineage: Lineage, base: Base) -> Program {
    Arc::new(move |scheduled: Scheduled, _: Shared| {
        let lineage = lineage.clone();
        async move {
            let repository = open(scheduled.store()).await;
            scheduled.begin();
            let made = async { publish(write(&repository, &lineage, 2, base).await?).await };
            outcome(made.await)
        }
        .boxed_local()
    })
}

/// Expires; first the backup that makes the oldest superfluous is announced, where that is to be `announced`.
fn expiring(lineage: Lineage, announced: bool) -> Program {
    Arc::new(move |scheduled: Scheduled, _: Shared| {
        let lineage = lineage.clone();
        async move {
            let repository = open(scheduled.store()).await;
            let draft = match announced {
                true => Some(write(&repository, &lineage, 1, Base::Nothing).await.unwrap()),
                false => None,
            };
            scheduled.begin();
            if let Some(draft) = draft {
                publish(draft).await.unwrap();
            }
            let rule = Rule { count: Some(1), ..Rule::default() };
            let options = ExpireOptions {
                policy: Policy { rule, ..Policy::default() },
                grace: SignedDuration::ZERO,
                named: None,
                dry_run: false,
                host: String::new(),
                agent: String::new(),
            };
            expire(&repository, &cluster(), &options).await.unwrap();
            "expired".to_owned()
        }
        .boxed_local()
    })
}

/// Every backup that is listed restores to what it holds; one that was made is listed.
fn restores() -> Check {
    Arc::new(|inner: Arc<InMemory>, statuses: Vec<Status>| {
        async move {
            let backups = Backups::of(&open(plain(inner)).await, &cluster());
            let listed = backups.list().await.map_err(|error| error.to_string())?;
            let finished = listed.iter().filter(|one| matches!(one.state, ListedState::Finished(_)));
            let finished: Vec<BackupId> = finished.map(|one| one.id).collect();
            for number in (0..AGES.len()).filter(|number| finished.contains(&id(*number))) {
                let wrong =
                    |error: RepoError| format!("backup {number} is listed and does not restore: {error}");
                let reader = backups.open(id(number)).await.map_err(wrong)?;
                let restored = restore(&reader, WindowLimits::default()).await.map_err(wrong)?;
                for (path, bytes) in files(number) {
                    if restored.get(path.as_bytes()) != Some(&bytes) {
                        return Err(format!("backup {number} restores another \"{path}\""));
                    }
                }
            }
            if statuses[0] == Status::Ended("made".to_owned()) && !finished.contains(&id(2)) {
                return Err("the backup was made and is not there".to_owned());
            }
            Ok(())
        }
        .boxed_local()
    })
}

/// With `listed` the backup chooses what it builds on while the second one is announced; else it has chosen before.
async fn world(name: &'static str, listed: bool, crashes: usize, expiries: usize) -> World {
    let bed = bed().await;
    let lineage = bed.archive.lineage().clone();
    for number in 0..if listed { 1 } else { 2 } {
        publish(write(bed.archive.repository(), &lineage, number, Base::Nothing).await.unwrap())
            .await
            .unwrap();
    }
    let initial = Arc::new(InMemory::new());
    copy(bed.dir.path(), &initial).await;
    let base = if listed { Base::Listed } else { Base::Oldest };
    let mut actors = vec![backing_up(lineage.clone(), base), expiring(lineage.clone(), listed)];
    actors.extend((1..expiries).map(|_| expiring(lineage.clone(), false)));
    World { name, initial, actors, check: restores(), crashes, lost: 0, changes: CHANGES }
}

/// Copies a repository in a directory.
pub(super) async fn copy(from: &std::path::Path, to: &InMemory) {
    let mut left = vec![from.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
                continue;
            }
            let key = Path::from(path.strip_prefix(from).unwrap().to_str().unwrap());
            to.put(&key, PutPayload::from(std::fs::read(&path).unwrap())).await.unwrap();
        }
    }
}

/// Promises 6 and 11.
#[test]
fn what_is_listed_restores_beside_an_expiry() {
    explored(async || world("backup beside an expiry", false, 0, 1).await);
    if soak() {
        explored(async || world("backup beside an expiry, with a crash", true, 1, 1).await);
        explored(async || world("backup beside two expiries", false, 0, 2).await);
    }
}
