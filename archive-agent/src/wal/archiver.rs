//! Archiving the WAL of one cluster: each file is uploaded once at a time, whoever asks, and what is stored is remembered.
//!
//! A push and the look-ahead meet here. Whoever comes first starts the upload of a file; the other joins it. An upload goes
//! on when the client that asked for it is gone: the next one finds it done. Nothing counts as stored before every
//! repository that has to acknowledge holds it, and nothing here survives a crash, so a crash can only forget.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walpoint_base::WalFileName;
use walpoint_base::socket::{FileIdentity, PushOutcome, PushReply, PushRequest, push_time_limit};
use walpoint_runtime::backoff::Backoff;
use walpoint_runtime::human;
use walpoint_storage::object::Codec;

use super::asking::OpenQuestions;
use super::disk;
use super::dropped::is_archived_after_all;
use super::postmaster::{time_limit, within};
use super::queue::{AT_ONCE, Overflow, Queue};
use super::stored::LastStored;
use super::upload::{Upload, UploadError, Uploader};

/// After a failure a file is left alone for so long, unless PostgreSQL asks for it.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(20);

/// The pause before another try of a file that is dropped unless it can be stored.
const PAUSE: Duration = Duration::from_millis(500);

/// How often to look whether nothing is being uploaded.
const QUIET: Duration = Duration::from_secs(2);

/// How far an upload is.
#[derive(Debug, Clone)]
pub(crate) enum UploadProgress {
    /// Under way; what went wrong last, if anything did.
    Running(Option<Arc<str>>),
    /// Ended: the identity of the file that is durable, or why it is not.
    Ended(Result<FileIdentity, Arc<str>>),
}

/// Why a file was not stored, for PostgreSQL's log.
#[derive(Debug)]
enum NotStored {
    /// What lies there is not known to be the file that PostgreSQL means.
    OtherFile(String),
    /// It could not be stored.
    Failed(String),
}

/// The archiving of one cluster.
#[derive(Debug)]
pub(crate) struct Archiver<U = Uploader> {
    uploader: U,
    push_timeout: Duration,
    queue: Queue,
    asking: OpenQuestions,
    stored: Mutex<LastStored>,
    /// Invariant: an entry is removed by the task that fills it, panic or not.
    active: Mutex<HashMap<WalFileName, watch::Receiver<UploadProgress>>>,
    /// What failed lately, and when.
    failed: Mutex<HashMap<WalFileName, Instant>>,
    /// The file that PostgreSQL heard last could not be archived, and why; nothing after one was.
    refused: watch::Sender<Option<(WalFileName, Arc<str>)>>,
    abandoned: CancellationToken,
    /// Told after every acknowledged push: the window of the look-ahead moves.
    pub(crate) acknowledged: Notify,
}

fn reply(outcome: PushOutcome, identity: FileIdentity, message: String) -> PushReply {
    PushReply { outcome, identity, message, remember: Vec::new() }
}

impl<U: Upload> Archiver<U> {
    /// Archives with `uploader`; one push may take `push_timeout` and a little more for large segments. No more than `queue_max`
    /// bytes of WAL may wait, if anything is said.
    pub(crate) fn new(uploader: U, push_timeout: Duration, queue_max: Option<u64>) -> Self {
        Self {
            queue: Queue::new(&uploader.wal_directory(), queue_max),
            asking: OpenQuestions::new(uploader.pgdata()),
            uploader,
            push_timeout,
            stored: Mutex::default(),
            active: Mutex::default(),
            failed: Mutex::default(),
            refused: watch::Sender::default(),
            abandoned: CancellationToken::new(),
            acknowledged: Notify::new(),
        }
    }

    /// Where PostgreSQL keeps its WAL.
    pub(crate) fn wal_directory(&self) -> PathBuf {
        self.uploader.wal_directory()
    }

    /// What uploads for it.
    pub(crate) fn uploader(&self) -> &U {
        &self.uploader
    }

    /// What waits for it.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Whether PostgreSQL asks for its WAL to be archived.
    pub(crate) fn asking(&self) -> &OpenQuestions {
        &self.asking
    }

    /// Answers `archive-push`.
    pub(crate) async fn push(self: &Arc<Self>, request: &PushRequest) -> PushReply {
        let begun = Instant::now();
        let mut question = self.asking.ask().await;
        let failed = |identity, message: String| reply(PushOutcome::Failed, identity, message);
        let name: WalFileName = match request.name.parse() {
            Ok(name) => name,
            Err(problem) => return failed(request.identity, format!("{problem}")),
        };
        let (result, overflow) =
            match self.queue.is_limited() && self.queue.holds(name).await.unwrap_or(false) {
                true => self.store_or_drop(name, request.identity, begun).await,
                false => (self.make_durable(name, request.identity, begun).await, None),
            };
        match (result, overflow) {
            (Ok(identity), _) => {
                self.refused.send_replace(None);
                self.acknowledged.notify_one();
                tracing::debug!(file = %name, took_ms = begun.elapsed().as_millis(), "acknowledged");
                question.stored(name);
                let remember = self.uploader.to_remember(name);
                let outcome = match is_archived_after_all(&self.uploader, name).await {
                    true => PushOutcome::StoredAfterAll,
                    false => PushOutcome::Stored,
                };
                PushReply { remember, ..reply(outcome, identity, String::new()) }
            }
            (Err(NotStored::Failed(problem)), Some(overflow)) => {
                let message = self.queue.drop_file(name, &overflow, &problem);
                self.acknowledged.notify_one();
                reply(PushOutcome::Dropped, request.identity, message)
            }
            (Err(NotStored::Failed(problem) | NotStored::OtherFile(problem)), None)
                if self.is_skipped(name, request.identity).await =>
            {
                let message = self.queue.skip(name, &problem);
                self.acknowledged.notify_one();
                reply(PushOutcome::Dropped, request.identity, message)
            }
            (Err(NotStored::Failed(message) | NotStored::OtherFile(message)), _) => {
                tracing::warn!(file = %name, took_ms = begun.elapsed().as_millis(), "not archived: {message}");
                self.refused.send_replace(Some((name, message.as_str().into())));
                failed(request.identity, message)
            }
        }
    }

    /// Whether the very file that is asked for is one that an operator skipped.
    async fn is_skipped(self: &Arc<Self>, name: WalFileName, wanted: FileIdentity) -> bool {
        let archiver = Arc::clone(self);
        self.lies_here(name, wanted).await
            && disk::run(&self.wal_directory(), move || archiver.queue.is_skipped(name))
                .await
                .unwrap_or(false)
    }

    /// Whether a file of `pg_wal` is the one that is meant, by what shows without reading it: the client of another server, whose
    /// names are the same, may have come to this socket.
    async fn lies_here(&self, name: WalFileName, wanted: FileIdentity) -> bool {
        let directory = self.wal_directory();
        let path = directory.join(name.to_string());
        let looked = disk::run(&directory, move || std::fs::metadata(path)).await;
        matches!(looked, Ok(Ok(own)) if (own.ino(), own.len(), own.mtime()) == (wanted.inode, wanted.size, wanted.mtime))
    }

    /// Makes a file durable, or tells how much too much waits if that did not succeed in a while.
    async fn store_or_drop(
        self: &Arc<Self>,
        name: WalFileName,
        wanted: FileIdentity,
        begun: Instant,
    ) -> (Result<FileIdentity, NotStored>, Option<Overflow>) {
        let segment = match self.uploader.identity().await {
            Ok(cluster) => cluster.segment_size.bytes(),
            Err(UploadError { text, .. }) => return (Err(NotStored::OtherFile(text)), None),
        };
        let mut storing = pin!(self.make_durable(name, wanted, begun));
        let (mut overflow, mut until) = (None, None::<Instant>);
        let mut budget = AT_ONCE;
        loop {
            let failed = match tokio::time::timeout(budget, &mut storing).await {
                Ok(Ok(identity)) => return (Ok(identity), None),
                Ok(Err(NotStored::OtherFile(problem))) => return (Err(NotStored::OtherFile(problem)), None),
                Ok(Err(problem)) => Some(problem),
                Err(_) if until.is_some_and(|until| Instant::now() >= until) => {
                    let problem = format!("not stored within {}", human::span(begun.elapsed()));
                    return (Err(NotStored::Failed(problem)), overflow);
                }
                Err(_) => None,
            };
            overflow = self.queue.overflow(segment).await;
            budget = self.queue.retry_budget(wanted.size, overflow.as_ref());
            until = overflow.map(|_| until.unwrap_or_else(|| Instant::now() + budget));
            if let Some(until) = until {
                budget = until.saturating_duration_since(Instant::now());
            }
            match (failed, until) {
                (None, _) => {}
                // What is refused for good now may be taken in a moment: keys are renewed, directories mounted.
                (Some(_), Some(_)) if !budget.is_zero() => {
                    tokio::time::sleep(budget.min(PAUSE)).await;
                    storing.set(self.make_durable(name, wanted, Instant::now()));
                }
                (Some(problem), _) => return (Err(problem), overflow),
            }
        }
    }

    async fn make_durable(
        self: &Arc<Self>,
        name: WalFileName,
        wanted: FileIdentity,
        begun: Instant,
    ) -> Result<FileIdentity, NotStored> {
        if self.is_stored(name, &wanted).await? {
            return Ok(wanted);
        }
        let limit = self.reply_limit(wanted.size).await;
        loop {
            // Before anything is uploaded: is what lies here the file that PostgreSQL means?
            let seen = match self.uploader.look(name).await {
                Ok(seen) => seen,
                // It is that file, and cannot be read: why it is not stored makes no difference to what is dropped.
                Err(error) if self.lies_here(name, wanted).await => {
                    return Err(NotStored::Failed(error.text));
                }
                Err(error) => return Err(NotStored::OtherFile(error.text)),
            };
            if seen != wanted {
                return Err(NotStored::OtherFile(self.other_file(&seen, &wanted)));
            }
            // The look-ahead may have ended while the file was looked at.
            if self.is_stored(name, &wanted).await? {
                return Ok(wanted);
            }
            let upload = self.start(name);
            let identity = self.outcome(upload, begun, limit).await.map_err(NotStored::Failed)?;
            // Nothing is remembered of an upload into a lineage, or a repository, that was left since it began.
            if identity == wanted && self.remembered().holds(name, &wanted) {
                return Ok(identity);
            }
            // Or it began before the file was what it is; what is stored under the name decides about the rest.
            tracing::debug!(file = %name, "the file or its lineage changed since its upload began: once more");
        }
    }

    /// Whether this very file is known to be stored, in repositories that are still there, and in the lineages that the data directory
    /// is bound to now: PostgreSQL hands over no file twice, so memory answers for no other.
    async fn is_stored(&self, name: WalFileName, wanted: &FileIdentity) -> Result<bool, NotStored> {
        if !self.remembered().holds(name, wanted) {
            return Ok(false);
        }
        match self.uploader.are_still_there(name).await {
            // What another repository, or lineage, had was forgotten meanwhile.
            Ok(()) => Ok(self.remembered().holds(name, wanted)),
            Err(UploadError { text, permanent: true }) => Err(NotStored::Failed(text)),
            // Storing it once more tries until the store answers.
            Err(_) => Ok(false),
        }
    }

    async fn outcome(
        &self,
        mut upload: watch::Receiver<UploadProgress>,
        begun: Instant,
        limit: Duration,
    ) -> Result<FileIdentity, String> {
        match within(begun + limit, self.uploader.pgdata(), ended(&mut upload)).await {
            Ok(result) => result,
            Err(over) => Err(format!(
                "not stored within {}{}\nDETAIL: The daemon keeps trying.",
                human::span(over.saturating_duration_since(begun)),
                match &*upload.borrow() {
                    UploadProgress::Running(Some(problem)) => format!(": {problem}"),
                    _ => format!(": {}", self.uploader.waits_for()),
                }
            )),
        }
    }

    /// [`time_limit`], but half of the client's time limit at the most, so that the client hears why.
    async fn reply_limit(&self, size: u64) -> Duration {
        let limit = time_limit(self.push_timeout, size, self.uploader.pgdata()).await;
        limit.min(push_time_limit(size) / 2)
    }

    fn other_file(&self, seen: &FileIdentity, wanted: &FileIdentity) -> String {
        let directory = self.wal_directory();
        if seen.system_id != wanted.system_id {
            return format!(
                "the daemon serves {}, a cluster with system identifier {}, and this file comes from \
                 {}\nHINT: Each cluster needs its own push socket, and pgdata in the daemon's \
                 configuration must be this server's.",
                directory.display(),
                seen.system_id,
                wanted.system_id
            );
        }
        format!(
            "the file in {} is not the one that PostgreSQL archives (inode {} and {}, {} and {} bytes)\nHINT: pgdata in the \
             daemon's configuration must be this server's data directory.",
            directory.display(),
            seen.inode,
            wanted.inode,
            seen.size,
            wanted.size
        )
    }

    /// The upload of a file: the one under way, or a new one.
    pub(crate) fn start(self: &Arc<Self>, name: WalFileName) -> watch::Receiver<UploadProgress> {
        let mut active = lock(&self.active);
        if let Some(upload) = active.get(&name) {
            return upload.clone();
        }
        let (progress, upload) = watch::channel(UploadProgress::Running(None));
        active.insert(name, upload.clone());
        let entry = Entry { archiver: Arc::clone(self), name };
        tokio::spawn(async move {
            let archiver = &entry.archiver;
            let epoch = archiver.uploader.epoch();
            let result = tokio::select! {
                result = archiver.upload(name, &progress) => result,
                () = archiver.abandoned.cancelled() => Err("the daemon is stopping".into()),
            };
            archiver.note(name, epoch, &result);
            drop(entry);
            progress.send_replace(UploadProgress::Ended(result));
        });
        upload
    }

    /// What is known to be stored in the repositories that are there and in the lineages that the data directory is bound to now.
    fn remembered(&self) -> MutexGuard<'_, LastStored> {
        let mut stored = lock(&self.stored);
        stored.begin(self.uploader.epoch());
        stored
    }

    /// Remembers how an upload ended.
    fn note(&self, name: WalFileName, epoch: u64, result: &Result<FileIdentity, Arc<str>>) {
        let mut failed = lock(&self.failed);
        failed.retain(|_, since| since.elapsed() < REST_AFTER_FAILURE);
        match result {
            Ok(identity) => {
                self.queue.stored(name);
                failed.remove(&name);
                // Begun in a lineage that was left since, it may be there and not here.
                let mut stored = self.remembered();
                if epoch == self.uploader.epoch() {
                    stored.insert(name, *identity);
                }
            }
            Err(_) => {
                failed.insert(name, Instant::now());
            }
        }
    }

    /// Uploads a file ahead of PostgreSQL's question, unless it is stored, under way, or failed a moment ago.
    pub(crate) fn start_ahead(self: &Arc<Self>, name: WalFileName) {
        let failed_lately =
            lock(&self.failed).get(&name).is_some_and(|since| since.elapsed() < REST_AFTER_FAILURE);
        if !failed_lately && !self.remembered().knows(name) {
            self.start(name);
        }
    }

    /// Tries until it is stored, it cannot be, or the time is spent.
    async fn upload(
        &self,
        name: WalFileName,
        progress: &watch::Sender<UploadProgress>,
    ) -> Result<FileIdentity, Arc<str>> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), self.push_timeout);
        loop {
            let problem = match self.uploader.upload(name).await {
                Ok(identity) => return Ok(identity),
                Err(UploadError { text, permanent: true }) => return Err(text.into()),
                Err(UploadError { text, permanent: false }) => Arc::<str>::from(text),
            };
            progress.send_replace(UploadProgress::Running(Some(Arc::clone(&problem))));
            if !backoff.wait().await {
                return Err(problem);
            }
        }
    }

    /// Uploads a file and waits for the end.
    pub(crate) async fn finished(self: &Arc<Self>, name: WalFileName) -> Result<FileIdentity, String> {
        ended(&mut self.start(name)).await
    }

    /// Looks whether PostgreSQL is told that its WAL cannot be archived; `working` is called whenever it is not. An error names the
    /// file and the reason: it is started again.
    pub(crate) async fn tell_refusals(
        self: Arc<Self>,
        working: impl Fn(),
        failing: impl Fn(&str),
    ) -> anyhow::Result<()> {
        let mut refused = self.refused.subscribe();
        loop {
            let last = refused.borrow_and_update().clone();
            let waits = match &last {
                // A file without `.ready` was pushed by hand, or dropped. Where the directory does not answer nothing was.
                Some((name, _)) => self.queue.holds(*name).await.unwrap_or(true),
                None => false,
            };
            let held = match last {
                Some((name, problem)) if waits => {
                    failing(&format!("\"{name}\": {problem}"));
                    true
                }
                _ => {
                    working();
                    false
                }
            };
            tokio::select! {
                changed = refused.changed() => changed?,
                () = tokio::time::sleep(PAUSE), if held => {}
            }
        }
    }

    /// Gives memory back whenever nothing is being uploaded, until `stop`.
    pub(crate) async fn stay_small(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(QUIET) => {}
                () = stop.cancelled() => return,
            }
            if lock(&self.active).is_empty() {
                Codec::release_spare();
            }
        }
    }

    /// Abandons every upload under way. What they were about to store may or may not be stored.
    pub(crate) fn abandon(&self) {
        self.abandoned.cancel();
    }
}

/// Waits for the end of an upload.
async fn ended(upload: &mut watch::Receiver<UploadProgress>) -> Result<FileIdentity, String> {
    loop {
        if let UploadProgress::Ended(result) = &*upload.borrow_and_update() {
            return result.clone().map_err(|problem| problem.to_string());
        }
        if upload.changed().await.is_err() {
            return Err(
                "internal error: the upload ended without a result\nDETAIL: The daemon's log has more."
                    .to_owned(),
            );
        }
    }
}

/// The state behind a lock is whole between any two statements, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An entry of the uploads under way, removed when dropped.
struct Entry<U> {
    archiver: Arc<Archiver<U>>,
    name: WalFileName,
}

impl<U> Drop for Entry<U> {
    fn drop(&mut self) {
        lock(&self.archiver.active).remove(&self.name);
    }
}

#[cfg(test)]
mod tests;
