//! One at a time has a lease: two ask for it, renew it and give it back, beside what a third one left that died.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use object_store::memory::InMemory;
use walpoint_storage::object::Sealer;
use walpoint_storage::object::testing::sealers;
use walpoint_storage::store::Store;

use super::explore::{Program, World};
use super::store::{Scheduled, Shared, Status};
use super::{explored, plain, soak};
use crate::lease::{Holder, LeaseAnswer, Leases, Renewed};

/// The process that died before all began.
const DEAD: u32 = 99;

fn holder(process: u32) -> Holder {
    let (host, agent, boot) = ("db1".to_owned(), "0.1.0".to_owned(), "b".to_owned());
    Holder { host, agent, boot, process, process_start: 7, pid_namespace: String::new() }
}

fn leases(store: &Store, sealer: &Sealer) -> Leases {
    Leases::new(store, sealer, &"main".parse().unwrap(), "backup")
}

/// Asks, works while it renews `renewals` times, and gives the lease back; `times` over.
fn actor(
    n: usize,
    sealer: &Sealer,
    working: &Arc<Mutex<BTreeSet<usize>>>,
    renewals: u32,
    times: u32,
) -> Program {
    let (sealer, working) = (sealer.clone(), Arc::clone(working));
    Arc::new(move |scheduled: Scheduled, shared: Shared| {
        let (sealer, working) = (sealer.clone(), Arc::clone(&working));
        // A run begins.
        working.lock().unwrap().remove(&n);
        async move {
            let leases = leases(&scheduled.store(), &sealer);
            scheduled.begin();
            let is_dead = |holder: &Holder| {
                let crashed =
                    |n: usize| shared.lock().actors.get(n).is_none_or(|a| a.status == Status::Crashed);
                holder.process == DEAD || crashed(usize::try_from(holder.process).unwrap())
            };
            let mut told = Vec::new();
            for _ in 0..times {
                let process = u32::try_from(n).unwrap();
                let mut held = match leases.ask(&holder(process), 900, false, is_dead).await {
                    Ok(LeaseAnswer::Held(held, before)) => {
                        assert_eq!(before, None, "taken from one that lives");
                        held
                    }
                    Ok(LeaseAnswer::Busy(_)) => {
                        told.push("busy");
                        continue;
                    }
                    Ok(LeaseAnswer::Unreadable { key, what, .. }) => panic!("{key}: {what}"),
                    Err(error) => panic!("{error}"),
                };
                working.lock().unwrap().insert(n);
                let mut lost = false;
                for _ in 0..renewals {
                    lost = lost || held.renew().await.unwrap() == Renewed::Lost;
                }
                working.lock().unwrap().remove(&n);
                if !lost {
                    held.release().await.unwrap();
                }
                told.push(if lost { "lost" } else { "held" });
            }
            told.join(" ")
        }
        .boxed_local()
    })
}

async fn world(
    name: &'static str,
    (renewals, times): (u32, u32),
    actors: usize,
    (crashes, lost): (usize, usize),
) -> World {
    let sealer = sealers().remove(0);
    let initial = Arc::new(InMemory::new());
    let store = plain(Arc::clone(&initial));
    leases(&store, &sealer).ask(&holder(DEAD), 900, false, |_| false).await.unwrap();
    let working = Arc::new(Mutex::new(BTreeSet::new()));
    let check = {
        let working = Arc::clone(&working);
        Arc::new(move |_: Arc<InMemory>, statuses: Vec<Status>| {
            let working = working.lock().unwrap().clone();
            let at_work = working.into_iter().filter(|n| statuses[*n] == Status::Runs).collect::<Vec<_>>();
            let result = match at_work.len() {
                0 | 1 => Ok(()),
                _ => Err(format!("{at_work:?} have the lease at the same time")),
            };
            std::future::ready(result).boxed_local()
        })
    };
    let actors = (0..actors).map(|n| actor(n, &sealer, &working, renewals, times)).collect();
    World { name, initial, actors, check, crashes, lost, changes: &["clusters/main/leases"] }
}

/// Two backups at once cost time and space, so two never have the lease while nobody took it by force.
#[test]
fn one_at_a_time_has_the_lease() {
    explored(async || world("lease, two that renew", (2, 1), 2, (1, 0)).await);
    explored(async || world("lease, two that come again", (0, 2), 2, (0, 0)).await);
    if soak() {
        explored(async || world("lease, two that renew, answers lost", (2, 1), 2, (1, 1)).await);
        explored(async || world("lease, two that come again, one crashes", (0, 2), 2, (1, 0)).await);
        explored(async || world("lease, three", (1, 1), 3, (0, 0)).await);
    }
}
