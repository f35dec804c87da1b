//! An uploader that stores nothing: what an attempt comes to is written down beforehand, by file or for all.

use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use walpoint_base::{PgMajor, SegmentSize, SystemId};
use walpoint_pg::wal::WalIdentity;

use super::*;

/// What an attempt comes to, after so long.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    /// The file is stored.
    Stores(Duration),
    /// It is not, and may be in a moment.
    Fails(Duration),
    /// It is not, for good as it seems.
    Refuses(Duration),
    /// There is no answer.
    Hangs,
    /// A defect of the uploader.
    Panics,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    UnderWay,
    Stored,
    NotStored,
    Cancelled,
}

/// An attempt to store a file, since the script began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) name: WalFileName,
    pub(super) begun: Duration,
    pub(super) end: End,
}

#[derive(Debug)]
struct State {
    answers: HashMap<WalFileName, Answer>,
    answer: Answer,
    /// Whether the repositories are there; if not, whether that lasts.
    missing: Option<bool>,
    unreadable: bool,
    /// What is stored of these is damaged.
    damaged: Vec<WalFileName>,
    attempts: Vec<Attempt>,
}

#[derive(Debug)]
pub(super) struct Script {
    pgdata: TempDir,
    begun: Instant,
    epoch: AtomicU64,
    state: Mutex<State>,
}

/// An attempt that was cancelled if it is dropped under way.
struct Noted<'a>(&'a Script, usize);

impl Noted<'_> {
    fn end(&self, end: End) {
        lock(&self.0.state).attempts[self.1].end = end;
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        let attempt = &mut state.attempts[self.1];
        if attempt.end == End::UnderWay {
            attempt.end = End::Cancelled;
        }
    }
}

impl Script {
    /// Stores every file at once.
    pub(super) fn new() -> Self {
        let state = State {
            answers: HashMap::new(),
            answer: Answer::Stores(Duration::ZERO),
            missing: None,
            unreadable: false,
            damaged: Vec::new(),
            attempts: Vec::new(),
        };
        Self {
            pgdata: tempfile::tempdir().unwrap(),
            begun: Instant::now(),
            epoch: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    /// What attempts that begin from now on come to.
    pub(super) fn answers(&self, answer: Answer) {
        lock(&self.state).answer = answer;
    }

    /// The same for one file.
    pub(super) fn answers_for(&self, name: WalFileName, answer: Answer) {
        lock(&self.state).answers.insert(name, answer);
    }

    /// What was stored before counts no more: the data directory was bound to another lineage.
    pub(super) fn enters_another_lineage(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// The repositories are not there, for good (`true`) or for now.
    pub(super) fn misses_repositories(&self, permanent: bool) {
        lock(&self.state).missing = Some(permanent);
    }

    /// From now on the files of `pg_wal` cannot be read.
    pub(super) fn reads_nothing(&self) {
        lock(&self.state).unreadable = true;
    }

    /// What is stored of a file was accepted although it is damaged.
    pub(super) fn holds_damaged(&self, name: WalFileName) {
        lock(&self.state).damaged.push(name);
    }

    /// All attempts, or those for one file.
    pub(super) fn attempts(&self, name: Option<WalFileName>) -> Vec<Attempt> {
        let state = lock(&self.state);
        state.attempts.iter().filter(|one| name.is_none_or(|name| one.name == name)).copied().collect()
    }

    /// For which files attempts began, in that order.
    pub(super) fn begun(&self) -> Vec<WalFileName> {
        self.attempts(None).iter().map(|attempt| attempt.name).collect()
    }
}

impl Upload for Script {
    fn pgdata(&self) -> &Path {
        self.pgdata.path()
    }

    fn wal_directory(&self) -> PathBuf {
        self.pgdata.path().join("pg_wal")
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn waits_for(&self) -> String {
        "it waits for the script".to_owned()
    }

    fn to_remember(&self, name: WalFileName) -> Vec<String> {
        vec![format!("remember {name}")]
    }

    async fn identity(&self) -> Result<WalIdentity, UploadError> {
        let (system_id, major) = (SystemId(7), PgMajor::ALL[0]);
        Ok(WalIdentity { system_id, major, segment_size: SegmentSize::new(SEGMENT).unwrap() })
    }

    async fn are_still_there(&self, _name: WalFileName) -> Result<(), UploadError> {
        match lock(&self.state).missing {
            Some(permanent) => Err(UploadError { text: "the repository is not there".to_owned(), permanent }),
            None => Ok(()),
        }
    }

    async fn look(&self, name: WalFileName) -> Result<FileIdentity, UploadError> {
        let file = File::open(self.wal_directory().join(name.to_string()));
        match file {
            Ok(file) if !lock(&self.state).unreadable => Ok(FileIdentity::of(&file, false).unwrap()),
            _ => Err(UploadError { text: format!("\"{name}\" cannot be read"), permanent: true }),
        }
    }

    async fn holds_sound(&self, name: WalFileName) -> bool {
        !lock(&self.state).damaged.contains(&name)
    }

    async fn upload(&self, name: WalFileName) -> Result<FileIdentity, UploadError> {
        let (noted, answer) = {
            let mut state = lock(&self.state);
            let begun = self.begun.elapsed();
            state.attempts.push(Attempt { name, begun, end: End::UnderWay });
            let answer = state.answers.get(&name).copied().unwrap_or(state.answer);
            (Noted(self, state.attempts.len() - 1), answer)
        };
        let seen = self.look(name).await.inspect_err(|_| noted.end(End::NotStored))?;
        let (after, result) = match answer {
            Answer::Stores(after) => (after, Ok(seen)),
            Answer::Fails(after) => (after, Err(("503: try again", false))),
            Answer::Refuses(after) => (after, Err(("403: not allowed", true))),
            Answer::Hangs => std::future::pending().await,
            Answer::Panics => panic!("as the script has it"),
        };
        tokio::time::sleep(after).await;
        noted.end(if result.is_ok() { End::Stored } else { End::NotStored });
        result.map_err(|(text, permanent)| UploadError { text: text.to_owned(), permanent })
    }
}
