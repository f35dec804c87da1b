//! Every interleaving: runs are played again from the beginning, each with the first choice that was not tried yet.
//!
//! A state that was met before is not gone on from: what follows depends on nothing but the objects, on what each actor knows,
//! and on which faults are left.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;
use object_store::memory::InMemory;
use tokio::task::JoinSet;

use super::store::{Kind, PROBE, Request, Scheduled, Shared, State, Status, Verdict};

/// An actor: from its store to how it ended.
pub(super) type Program = Arc<dyn Fn(Scheduled, Shared) -> LocalBoxFuture<'static, String>>;

/// Looks at a state in which everything might stop: the objects, and how each actor ended.
pub(super) type Check =
    Arc<dyn Fn(Arc<InMemory>, Vec<Status>) -> LocalBoxFuture<'static, Result<(), String>>>;

/// What is explored.
pub(super) struct World {
    pub(super) name: &'static str,
    pub(super) initial: Arc<InMemory>,
    pub(super) actors: Vec<Program>,
    pub(super) check: Check,
    /// How many of them may crash.
    pub(super) crashes: usize,
    /// How many answers may be lost.
    pub(super) lost: usize,
    /// Where the actors change anything. A request about anything else is carried out at once: when makes no difference.
    pub(super) changes: &'static [&'static str],
}

/// What the scheduler may do next.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Choice {
    Perform(usize, Request, Verdict),
    Crash(usize),
}

/// A state on the way, and what is tried from it.
struct Node {
    choices: Vec<Choice>,
    next: usize,
}

/// What an exploration came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Explored {
    pub(super) states: usize,
    pub(super) runs: usize,
    pub(super) time: Duration,
}

/// How a run ended.
enum Ended {
    /// Everything was done, or known.
    Here,
    Wrong(String),
}

/// No actor takes longer to ask for something.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Explores all of it. `Err` is what is wrong, and how it comes about.
pub(super) async fn explore(world: &World) -> Result<Explored, String> {
    let began = Instant::now();
    let (mut path, mut known, mut runs) = (Vec::<Node>::new(), HashSet::new(), 0);
    loop {
        runs += 1;
        if let Ended::Wrong(what) = run(world, &mut path, &mut known).await {
            let steps =
                path.iter().enumerate().map(|(n, node)| format!("{n:4} {:?}", node.choices[node.next]));
            let steps: Vec<String> = steps.collect();
            return Err(format!("{}: {what}\nafter these steps:\n{}", world.name, steps.join("\n")));
        }
        while path.last().is_some_and(|node| node.next + 1 >= node.choices.len()) {
            path.pop();
        }
        match path.last_mut() {
            Some(node) => node.next += 1,
            None => break,
        }
    }
    let explored = Explored { states: known.len(), runs, time: began.elapsed() };
    println!(
        "{}: {} states, {} runs, {:.1} s",
        world.name,
        explored.states,
        explored.runs,
        explored.time.as_secs_f64()
    );
    Ok(explored)
}

/// One run, and its end.
async fn run(world: &World, path: &mut Vec<Node>, known: &mut HashSet<u128>) -> Ended {
    let shared = Shared::new(&world.initial, world.actors.len());
    let ended = play(world, &shared, path, known).await;
    shared.end();
    ended
}

/// One run: along `path`, and on from its end until nothing new comes.
async fn play(world: &World, shared: &Shared, path: &mut Vec<Node>, known: &mut HashSet<u128>) -> Ended {
    let mut tasks = JoinSet::new();
    let mut handles = Vec::new();
    for (n, program) in world.actors.iter().enumerate() {
        let (work, shared) = (program(shared.store(n), shared.clone()), shared.clone());
        handles.push(tasks.spawn_local(async move {
            let ended = work.await;
            shared.lock().actors[n].status = Status::Ended(ended);
        }));
    }
    let (mut crashes, mut lost) = (world.crashes, world.lost);
    let mut depth = 0;
    loop {
        if let Err(what) = settle(shared, &mut tasks).await {
            return Ended::Wrong(what);
        }
        if depth == path.len() {
            let (identity, inner, statuses) = {
                let state = shared.lock();
                let statuses = state.actors.iter().map(|actor| actor.status.clone()).collect();
                (state.identity(), Arc::new(state.inner.fork()), statuses)
            };
            let faults = ((crashes as u128) << 8) | (lost as u128);
            if !known.insert(identity.wrapping_add(faults.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_0c3b))) {
                return Ended::Here;
            }
            if let Err(what) = (world.check)(inner, statuses).await {
                return Ended::Wrong(what);
            }
            let choices = choices(world, shared, crashes, lost);
            if choices.is_empty() {
                return Ended::Here;
            }
            path.push(Node { choices, next: 0 });
        }
        let choice = path[depth].choices[path[depth].next].clone();
        depth += 1;
        match choice {
            Choice::Crash(actor) => {
                crashes -= 1;
                handles[actor].abort();
                let mut state = shared.lock();
                state.actors[actor].status = Status::Crashed;
                let (gone, left) = state.pending.drain(..).partition(|pending| pending.actor == actor);
                state.pending = left;
                drop(state);
                drop::<Vec<super::store::Pending>>(gone);
            }
            Choice::Perform(actor, request, verdict) => {
                lost -= usize::from(verdict == Verdict::AnswerLost);
                let began = Instant::now();
                loop {
                    if performed(&mut shared.lock(), actor, &request, verdict) {
                        break;
                    }
                    if began.elapsed() > TIME_LIMIT {
                        return Ended::Wrong(format!("actor {actor} does not ask again for {request:?}"));
                    }
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// Carries out a request of an actor, if the actor asks for it.
fn performed(state: &mut State, actor: usize, request: &Request, verdict: Verdict) -> bool {
    let asked = state.pending.iter().position(|asked| asked.actor == actor && asked.request == *request);
    if let Some(at) = asked {
        state.perform(at, verdict);
    }
    asked.is_some()
}

/// Waits until every actor waits for the store, or has ended.
async fn settle(shared: &Shared, tasks: &mut JoinSet<()>) -> Result<(), String> {
    let began = Instant::now();
    loop {
        while let Some(ended) = tasks.try_join_next() {
            match ended {
                Err(error) if error.is_panic() => return Err(format!("an actor panicked: {error}")),
                _ => {}
            }
        }
        // What one task asks at once is asked before it is our turn again.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        let state = shared.lock();
        let busy = state.actors.iter().enumerate().filter(|(n, actor)| {
            actor.status == Status::Runs && !state.pending.iter().any(|pending| pending.actor == *n)
        });
        let busy: Vec<usize> = busy.map(|(n, _)| n).collect();
        if busy.is_empty() {
            return Ok(());
        }
        if began.elapsed() > TIME_LIMIT {
            return Err(format!("actors {busy:?} neither ask nor end"));
        }
        drop(state);
        // A thread of theirs may want this core.
        std::thread::yield_now();
    }
}

/// Whether a request is about what some actor changes.
fn matters(world: &World, request: &Request) -> bool {
    let key = request.key.as_str();
    let here = world.changes.iter().any(|place| key.starts_with(place) || place.starts_with(key));
    let changes = matches!(request.kind, Kind::Put | Kind::Delete);
    assert!(here || !changes || key == PROBE, "{}: an actor changes {key}", world.name);
    here
}

/// What may happen next: each actor's writes, and the first of its reads; a crash of each; a lost answer.
fn choices(world: &World, shared: &Shared, crashes: usize, lost: usize) -> Vec<Choice> {
    let state = shared.lock();
    let runs = |actor: usize| state.actors[actor].status == Status::Runs;
    let aside = state.pending.iter().find(|pending| runs(pending.actor) && !matters(world, &pending.request));
    if let Some(pending) = aside {
        return vec![Choice::Perform(pending.actor, pending.request.clone(), Verdict::Answered)];
    }
    let mut choices = Vec::new();
    for actor in 0..state.actors.len() {
        if !runs(actor) {
            continue;
        }
        let of_it = state.pending.iter().filter(|pending| pending.actor == actor);
        let mut requests: Vec<&Request> = of_it.map(|pending| &pending.request).collect();
        requests.sort();
        requests.dedup();
        let reads = requests.iter().filter(|request| matches!(request.kind, Kind::Get | Kind::List)).count();
        let skip = reads.saturating_sub(1);
        for request in requests.into_iter().skip(skip) {
            choices.push(Choice::Perform(actor, request.clone(), Verdict::Answered));
            if lost > 0 && request.kind == Kind::Put {
                choices.push(Choice::Perform(actor, request.clone(), Verdict::AnswerLost));
            }
        }
        if crashes > 0 {
            choices.push(Choice::Crash(actor));
        }
    }
    choices
}
