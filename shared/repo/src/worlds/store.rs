//! The store of one run: every request of an actor waits until the scheduler carries it out.
//!
//! A request is carried out as a whole, in one step. What its actor knows afterwards is a number that depends on all that the
//! actor asked and was answered: objects are known by who made them and what that one knew, not by their bytes, in which there
//! are random salts and times.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::oneshot;

use walpoint_storage::store::Store;

/// What an actor asks of the store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) key: String,
}

/// Reads first: those of one actor are carried out in the order in which they are asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Kind {
    Get,
    List,
    Put,
    Delete,
}

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It is carried out and answered.
    Answered,
    /// It is carried out, and the answer is lost.
    AnswerLost,
}

type Act = Box<dyn FnOnce(&mut State, Verdict) -> u128 + Send>;

/// A request that waits.
pub(super) struct Pending {
    pub(super) actor: usize,
    pub(super) request: Request,
    act: Act,
}

/// How far an actor is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Status {
    Runs,
    Crashed,
    /// It ended, and says how.
    Ended(String),
}

/// An actor, seen from here.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) status: Status,
    /// All that it asked and was answered. A sum: an actor that asks one thing after the other asks the same again when it is
    /// answered the same, so the order says nothing.
    pub(super) knows: u128,
    asked: BTreeMap<Request, u32>,
}

/// The store and the actors of a run.
pub(super) struct State {
    pub(super) inner: Arc<InMemory>,
    pub(super) labels: BTreeMap<String, u128>,
    pub(super) actors: Vec<Actor>,
    pub(super) pending: Vec<Pending>,
    /// Nothing is carried out any more.
    over: bool,
}

/// Shared by the scheduler and the actors' stores.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<State>>);

impl Shared {
    /// A run that begins with these objects.
    pub(super) fn new(initial: &InMemory, actors: usize) -> Self {
        let inner = Arc::new(initial.fork());
        let keys = inner.list(None).map_ok(|meta| meta.location.to_string()).try_collect::<Vec<_>>();
        let keys = keys.now_or_never().unwrap().unwrap();
        let labels = keys.into_iter().map(|key| (key.clone(), hash(&[key.as_bytes()]))).collect();
        let actor = || Actor { status: Status::Runs, knows: 0, asked: BTreeMap::new() };
        let actors = (0..actors).map(|_| actor()).collect();
        Self(Arc::new(Mutex::new(State { inner, labels, actors, pending: Vec::new(), over: false })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Ends the run: whatever still asks is refused.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        let pending = std::mem::take(&mut state.pending);
        drop(state);
        drop(pending);
    }

    /// The store of an actor.
    pub(super) fn store(&self, actor: usize) -> Scheduled {
        Scheduled { shared: self.clone(), actor, free: Arc::new(AtomicBool::new(true)) }
    }
}

impl State {
    /// Carries a request out.
    pub(super) fn perform(&mut self, at: usize, verdict: Verdict) {
        let Pending { actor, request, act } = self.pending.remove(at);
        let answer = act(self, verdict);
        let crashed =
            self.actors.iter().map(|actor| u8::from(actor.status == Status::Crashed)).collect::<Vec<_>>();
        let actor = &mut self.actors[actor];
        let nth = actor.asked.entry(request.clone()).or_default();
        *nth += 1;
        let text = format!("{request:?} {nth} {verdict:?}");
        // Some look whether another process still lives.
        let known = hash(&[text.as_bytes(), &answer.to_le_bytes(), &crashed]);
        actor.knows = actor.knows.wrapping_add(known);
    }

    /// What tells this state from others.
    pub(super) fn identity(&self) -> u128 {
        let mut parts = Vec::new();
        for (key, label) in &self.labels {
            parts.extend_from_slice(key.as_bytes());
            parts.extend_from_slice(&label.to_le_bytes());
        }
        for actor in &self.actors {
            parts.extend_from_slice(format!("{:?}", actor.status).as_bytes());
            // What a dead actor knew is lost.
            let knows = if actor.status == Status::Crashed { 0 } else { actor.knows };
            parts.extend_from_slice(&knows.to_le_bytes());
        }
        hash(&[&parts])
    }

    fn label(&self, key: &str) -> u128 {
        self.labels.get(key).copied().unwrap_or_default()
    }

    fn labels_below(&self, prefix: &str) -> u128 {
        let below = self.labels.iter().filter(|(key, _)| key.starts_with(prefix));
        below.fold(0, |sum, (key, label)| sum.wrapping_add(hash(&[key.as_bytes(), &label.to_le_bytes()])))
    }
}

/// The store of one actor.
#[derive(Clone)]
pub(super) struct Scheduled {
    shared: Shared,
    actor: usize,
    /// Nothing waits: while the actor is set up.
    free: Arc<AtomicBool>,
}

impl Scheduled {
    /// As the programs use it.
    pub(super) fn store(&self) -> Store {
        let store = Store::over("world", Arc::new(self.clone()));
        store.with_limits(store.limits().without_pauses())
    }

    /// The set-up is over: from now on requests wait.
    pub(super) fn begin(&self) {
        self.free.store(false, SeqCst);
    }

    async fn request<T: Send + 'static>(
        &self,
        kind: Kind,
        key: &str,
        act: impl FnOnce(&mut State) -> (Result<T>, u128) + Send + 'static,
    ) -> Result<T> {
        if self.free.load(SeqCst) {
            return act(&mut self.shared.lock()).0;
        }
        let (answer, answered) = oneshot::channel();
        let lost = || Error::Generic { store: "world", source: "the answer was lost".into() };
        let act = move |state: &mut State, verdict| {
            let (result, known) = act(state);
            match verdict {
                Verdict::Answered => {
                    answer.send(result).ok();
                    known
                }
                Verdict::AnswerLost => {
                    answer.send(Err(lost())).ok();
                    0
                }
            }
        };
        let request = Request { kind, key: if is_probe(key) { PROBE } else { key }.to_owned() };
        {
            let mut state = self.shared.lock();
            if state.over || state.actors[self.actor].status != Status::Runs {
                return Err(lost());
            }
            state.pending.push(Pending { actor: self.actor, request, act: Box::new(act) });
        }
        answered.await.unwrap_or_else(|_| Err(lost()))
    }
}

/// What is done at once, as everything in memory is.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory does not wait")
}

/// Every probe.
pub(super) const PROBE: &str = "probe";

/// What is created under a random name to look at the store's clock. Nobody else looks at it.
fn is_probe(key: &str) -> bool {
    key.starts_with("probe/")
}

fn hash(parts: &[&[u8]]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    u128::from_le_bytes(hasher.finalize().as_bytes()[..16].try_into().unwrap())
}

impl fmt::Display for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "actor {}", self.actor)
    }
}

impl fmt::Debug for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "actor {}", self.actor)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Scheduled {
    async fn put_opts(&self, at: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let (at, actor) = (at.clone(), self.actor);
        let key = at.to_string();
        let name = key.clone();
        let act = move |state: &mut State| {
            let knew = state.actors[actor].knows;
            let result = now(state.inner.put_opts(&at, payload, opts));
            if result.is_ok() && !is_probe(&name) {
                let by = hash(&[name.as_bytes(), &actor.to_le_bytes(), &knew.to_le_bytes()]);
                state.labels.insert(name, by);
            }
            let known = u128::from(result.is_ok());
            (result, known)
        };
        self.request(Kind::Put, &key, act).await
    }

    async fn get_opts(&self, at: &Path, opts: GetOptions) -> Result<GetResult> {
        let at = at.clone();
        let key = at.to_string();
        let act = move |state: &mut State| (now(state.inner.get_opts(&at, opts)), state.label(at.as_ref()));
        self.request(Kind::Get, &key, act).await
    }

    async fn get_ranges(&self, _: &Path, _: &[Range<u64>]) -> Result<Vec<Bytes>> {
        unreachable!("nothing asks for several ranges at once")
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        unreachable!("an object is one request")
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        unreachable!("nothing is copied")
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete = move |path: Result<Path>| {
            let this = this.clone();
            async move {
                let path = path?;
                let (key, gone) = (path.to_string(), path.clone());
                let act = move |state: &mut State| {
                    let was = state.labels.remove(path.as_ref());
                    (now(state.inner.delete(&path)), was.unwrap_or_default())
                };
                this.request(Kind::Delete, &key, act).await.map(|()| gone)
            }
        };
        at.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let key = prefix.as_ref().map_or_else(String::new, Path::to_string);
            let act = move |state: &mut State| {
                let known = state.labels_below(prefix.as_ref().map_or("", AsRef::as_ref));
                (now(state.inner.list(prefix.as_ref()).try_collect::<Vec<_>>()), known)
            };
            let mut all = this.request(Kind::List, &key, act).await?;
            all.sort_unstable_by(|a, b| a.location.cmp(&b.location));
            Ok::<_, Error>(stream::iter(all.into_iter().map(Ok)))
        };
        stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned();
        let key = prefix.as_ref().map_or_else(String::new, Path::to_string);
        let act = move |state: &mut State| {
            let known = state.labels_below(prefix.as_ref().map_or("", AsRef::as_ref));
            (now(state.inner.list_with_delimiter(prefix.as_ref())), known)
        };
        self.request(Kind::List, &key, act).await
    }
}
