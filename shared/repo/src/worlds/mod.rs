//! Small worlds, explored to the end: two or three actors, a few objects, every order in which their requests may reach the
//! store, a crash at every moment, and an answer that is lost. The actors are the functions that the programs call; nothing
//! of them is modelled.
//!
//! | module | owns |
//! |---|---|
//! | `store` | a store whose every request waits for the scheduler |
//! | `explore` | the scheduler: depth first over all choices, a state once |
//! | `lease` | one at a time has a lease |
//! | `acknowledgement` | what was stored stays, whoever else stores under its name |
//! | `expiry` | what is listed as a backup restores, whatever is deleted beside it |
//!
//! Bounds: requests are carried out one at a time and as a whole; the reads that one actor has under way together are carried
//! out in the order in which it asked; clocks stand still. `WALPOINT_SOAK` makes the worlds larger.

mod acknowledgement;
mod expiry;
mod explore;
mod lease;
mod store;

use object_store::memory::InMemory;
use std::sync::Arc;

use walpoint_storage::store::Store;

use self::explore::{Explored, World, explore};

/// Whether there is time for the large worlds.
fn soak() -> bool {
    std::env::var_os("WALPOINT_SOAK").is_some()
}

/// Explores a world; what is wrong fails the test with the steps that lead there.
fn explored(make: impl AsyncFnOnce() -> World) -> Explored {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let world = make().await;
        explore(&world).await.unwrap_or_else(|what| panic!("{what}"))
    })
}

/// A store in memory that nobody schedules.
fn plain(inner: Arc<InMemory>) -> Store {
    Store::over("world", inner)
}
