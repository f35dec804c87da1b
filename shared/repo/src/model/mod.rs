//! Base backups, expiry, holds and verification against a model of them, by random sequences of steps.
//!
//! | module | owns |
//! |---|---|
//! | `cluster` | a data directory in miniature, and what happens to it |
//! | `world` | the repository in a directory, its clock, and what should be in it |
//! | `writing` | backups: begun, stopped, resumed, cut off by a crash |
//! | `expiry` | expiry, holds, and what must be there after it |
//! | `damage` | damage, and verification |
//! | `reading` | restores, whole and over what is there |
//! | `oracle` | what must stay, in the plainest words |
//!
//! What is held against the model after every step: each backup that is listed restores to the bytes of that moment, or
//! fails because of damage that the model did; nothing goes that must stay, and what may go is gone after the grace period;
//! `verify` finds damage and nothing else. A life is a sequence of steps by a seed; its journal is printed when it fails, and
//! `WALPOINT_MODEL_SEED` plays it again, and `WALPOINT_MODEL_FIRST` is the first seed of several. Requests that run beside each other may come in another order then.

mod cluster;
mod damage;
mod expiry;
mod oracle;
mod reading;
mod world;
mod writing;

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use rand::Rng;

use self::world::World;

/// Steps of one life.
const STEPS: usize = 90;

/// One life of a repository, from its beginning.
async fn live(seed: u64) -> usize {
    let mut world = World::new(seed).await;
    for n in 0..STEPS {
        world.journal.step(n);
        step(&mut world).await;
    }
    world.journal.step(STEPS);
    while !world.asleep.is_empty() {
        world.wake().await;
    }
    world.restore_all().await;
    world.settle().await;
    world.restore_all().await;
    STEPS
}

/// Whatever comes next.
async fn step(world: &mut World) {
    let next: LocalBoxFuture<'_, ()> = match world.rng.random_range(0..100) {
        0..22 => return world.load(),
        22..38 => world.back_up().boxed_local(),
        38..45 => world.back_up_and_crash().boxed_local(),
        45..49 => world.begin_and_sleep().boxed_local(),
        49..53 => world.wake().boxed_local(),
        53..62 => world.expire().boxed_local(),
        62..68 => world.expire_and_crash().boxed_local(),
        68..71 => world.settle().boxed_local(),
        71..74 => world.back_up_beside_expiry().boxed_local(),
        74..78 => world.hold().boxed_local(),
        78..80 => world.release().boxed_local(),
        80..86 => return world.time_goes_by(),
        86..90 => world.verify().boxed_local(),
        90..93 => world.damage().boxed_local(),
        93..99 => world.restore_one().boxed_local(),
        _ => world.restore_all().boxed_local(),
    };
    next.await;
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Lives, one after the other, for about so many seconds.
fn lives(seconds: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Some(seed) = from_environment("WALPOINT_MODEL_SEED") {
        runtime.block_on(live(seed));
        return;
    }
    let seconds = from_environment("WALPOINT_MODEL_SECONDS").unwrap_or(seconds);
    let first =
        from_environment("WALPOINT_MODEL_FIRST").unwrap_or_else(|| rand::rng().random::<u32>().into());
    let began = Instant::now();
    let (mut lives, mut steps) = (0u64, 0);
    while lives == 0 || began.elapsed() < Duration::from_secs(seconds) {
        steps += runtime.block_on(live(first + lives));
        lives += 1;
    }
    println!("{lives} lives of {steps} steps in {:.1} s", began.elapsed().as_secs_f64());
}

/// B4, B7, K1 to K4 and promise 11 at once.
#[test]
fn every_life_of_a_repository_keeps_its_promises() {
    lives(12);
}

/// The same for minutes.
#[test]
#[ignore = "takes five minutes"]
fn every_life_of_a_repository_keeps_its_promises_for_minutes() {
    lives(300);
}
