//! Random histories of several servers on one archive, and the truth about them.
//!
//! A history is a seed: which chapters come, what clients do in them, which moments are restored. The tester keeps its
//! own record of every committed row, position and time ([`oracle`]) and compares whatever Walpoint restores, plans and
//! reports with it. A failing history prints its seed and its steps in an order that a person can follow.
//!
//! `WALPOINT_SEED` repeats one seed; `WALPOINT_PROGRAMS` names a directory of other programs to try.

pub mod chapters;
pub mod load;
pub mod oracle;
pub mod server;
pub mod template;
pub mod truth;
pub mod world;

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use chapters::Chapter;
use world::{Outcome, World};

/// The majors that histories run on: below 16, where promotion asks less of the archive, and above.
pub const MAJORS: [u32; 4] = [14, 16, 18, 19];

/// Runs the history of a seed; panics with its steps when Walpoint did not keep a promise.
#[track_caller]
pub fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let major = MAJORS[rng.random_range(0..MAJORS.len())];
    let chapters: Vec<Chapter> = (0..rng.random_range(2..5)).map(|_| Chapter::random(&mut rng)).collect();
    let damage = rng.random_bool(0.3);
    play(seed, major, &chapters, damage, rng);
}

/// Runs a history whose chapters are given.
#[track_caller]
pub fn run_chapters(seed: u64, major: u32, chapters: &[Chapter]) {
    play(seed, major, chapters, false, StdRng::seed_from_u64(seed));
}

/// The same, and at the end the newest history is damaged or lost.
#[track_caller]
pub fn run_chapters_with_damage(seed: u64, major: u32, chapters: &[Chapter]) {
    play(seed, major, chapters, true, StdRng::seed_from_u64(seed));
}

#[track_caller]
fn play(seed: u64, major: u32, chapters: &[Chapter], damage: bool, rng: StdRng) {
    let begun = Instant::now();
    println!("seed {seed}: PostgreSQL {major}, {chapters:?}");
    let mut world = World::begin(major, rng).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    // What the harness itself panics about needs the steps as well.
    let outcome =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| all(&mut world, chapters, damage)));
    let why = match outcome {
        Ok(Ok(())) => {
            println!("{}\nseed {seed}: {:.1} s", world.steps(), begun.elapsed().as_secs_f64());
            return;
        }
        Ok(Err(why)) => why,
        Err(panic) => {
            eprintln!("seed {seed}, PostgreSQL {major}, {chapters:?}\n{}", world.steps());
            std::panic::resume_unwind(panic);
        }
    };
    panic!(
        "seed {seed}, PostgreSQL {major}, {chapters:?}\n{}\n\nFOUND: {why}\n\n\
         To repeat a random one: WALPOINT_SEED={seed} WALPOINT_HISTORIES=1 cargo nextest run --test histories random_0",
        world.steps()
    );
}

fn all(world: &mut World, chapters: &[Chapter], damage: bool) -> Outcome<()> {
    for chapter in chapters {
        chapter.play(world)?;
    }
    world.truth()?;
    if damage && world.owners.len() > 1 { world.damaged_history() } else { Ok(()) }
}

/// Runs the histories of several seeds. `WALPOINT_HISTORIES` changes how many a case runs, `WALPOINT_SEED` names the first of
/// the first case; those of the next case follow.
#[track_caller]
pub fn run_case(case: u64, count: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let count = number("WALPOINT_HISTORIES").unwrap_or(count);
    let first =
        number("WALPOINT_SEED").map_or_else(|| u64::from(rand::random::<u32>()), |seed| seed + case * count);
    (first..first + count).for_each(run);
}
