//! Asking several repositories: one after the other, and the next one too when one does not begin to answer.
//!
//! A repository that hangs, such as a directory whose file server is gone, holds up nothing that another one has: it is passed
//! by after [`SLOW`], asked last for a while, and at the end waited for no longer than [`LAST`], unless it has begun to answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use crate::wal::source::FetchSource;

/// A repository that has not begun to answer by then is not waited for alone. A standby waits for little longer.
const SLOW: Duration = Duration::from_millis(800);

/// The same for one that has begun to send a file.
const SENDING: Duration = Duration::from_secs(15);

/// What is still missing when all others have answered is not waited for longer.
const LAST: Duration = Duration::from_secs(5);

/// Set once a repository has begun to send what was asked for.
pub(crate) type Began = Arc<AtomicBool>;

type Ask<'a, T> = Box<dyn Fn(&'a FetchSource, Began) -> BoxFuture<'a, T> + Send + 'a>;

/// Questions under way.
pub(crate) struct PendingQuestions<'a, T> {
    ask: Ask<'a, T>,
    waiting: VecDeque<&'a FetchSource>,
    running: FuturesUnordered<BoxFuture<'a, (&'a FetchSource, T)>>,
    unanswered: Vec<(&'a FetchSource, Began)>,
    several: bool,
}

impl<'a, T: 'a> PendingQuestions<'a, T> {
    /// Asks `sources` in this order, but for the one that is asked `first`, and those that were late last.
    pub(crate) fn of(
        sources: &'a [FetchSource],
        first: impl Fn(&FetchSource) -> bool,
        ask: impl Fn(&'a FetchSource, Began) -> BoxFuture<'a, T> + Send + 'a,
    ) -> Self {
        let (late, prompt): (Vec<&FetchSource>, Vec<&FetchSource>) =
            sources.iter().partition(|source| source.is_late());
        let (first, prompt): (Vec<&FetchSource>, Vec<&FetchSource>) =
            prompt.into_iter().partition(|one| first(one));
        let waiting = first.into_iter().chain(prompt).chain(late).collect();
        Self {
            ask: Box::new(ask),
            waiting,
            running: FuturesUnordered::new(),
            unanswered: Vec::new(),
            several: sources.len() > 1,
        }
    }

    /// The next answer; `None` if no other is to be expected.
    pub(crate) async fn next(&mut self) -> Option<(&'a FetchSource, T)> {
        // What one repository alone may have takes as long as it takes.
        let mut limited = self.several;
        self.begin();
        loop {
            if self.running.is_empty() {
                return None;
            }
            let began = self.unanswered.last().map(|(_, began)| Arc::clone(began)).unwrap_or_default();
            let limit = if self.waiting.is_empty() { LAST } else { SLOW };
            tokio::select! {
                answer = self.running.next() => {
                    let (source, answer) = answer?;
                    self.unanswered.retain(|(other, _)| !std::ptr::eq(*other, source));
                    return Some((source, answer));
                }
                () = time_limit(&began, limit), if limited => {
                    if let Some((source, _)) = self.unanswered.last() {
                        source.set_late();
                    }
                    if self.waiting.is_empty() {
                        if self.unanswered.iter().all(|(_, began)| !began.load(Ordering::Relaxed)) {
                            return None;
                        }
                        limited = false;
                    }
                    self.begin();
                }
            }
        }
    }

    /// The repositories that were asked and have not answered.
    pub(crate) fn unanswered(&self) -> impl Iterator<Item = &'a FetchSource> + '_ {
        self.unanswered.iter().map(|(source, _)| *source)
    }

    fn begin(&mut self) {
        let Some(source) = self.waiting.pop_front() else { return };
        let began = Began::default();
        let answer = (self.ask)(source, Arc::clone(&began));
        self.running.push(Box::pin(async move { (source, answer.await) }));
        self.unanswered.push((source, began));
    }
}

/// Ends when a repository is not worth waiting for alone.
async fn time_limit(began: &Began, limit: Duration) {
    tokio::time::sleep(limit).await;
    if began.load(Ordering::Relaxed) {
        tokio::time::sleep(SENDING).await;
    }
}
