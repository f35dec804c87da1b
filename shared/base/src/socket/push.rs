//! A push: `archive-push` asks the daemon that a file be made durable, and how long it waits for the answer.

use std::time::Duration;

use super::identity::{FileIdentity, put_identity, take_identity};
use super::message::{Message, MessageInput, put_text};

/// `archive-push` asks that a file of `pg_wal` be made durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushRequest {
    /// The file's name, without a directory.
    pub name: String,
    /// What the client found there.
    pub identity: FileIdentity,
}

/// How long a client waits for the reply about a file of that many bytes from a daemon that says now and then that it is at
/// work. The daemon gives up on a store, and says so, after half of that at the latest.
pub fn push_time_limit(size: u64) -> Duration {
    Duration::from_secs(120 + size / (512 << 10))
}

/// How often the daemon says that a push is under way, until its reply.
pub const PUSH_ALIVE: Duration = Duration::from_secs(4);

/// A daemon that has said nothing about a push for so long hangs: the client archives without it.
pub const PUSH_SILENCE: Duration = Duration::from_secs(15);

/// Set for the `archive-agent push` that stands in for the daemon: it writes its exit status to its standard output, as a line, when it
/// is done. A process cannot end as long as one of its threads is in a filesystem that hangs.
pub const PUSH_OUTCOME: &str = "WALPOINT_PUSH_OUTCOME";

/// What became of a push.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushReply {
    /// Stored in every repository that has to acknowledge, or not.
    pub outcome: PushOutcome,
    /// The identity of the file that the daemon read.
    pub identity: FileIdentity,
    /// For PostgreSQL's log: empty, or what failed and what to do.
    pub message: String,
    /// Lines to be remembered in `pg_wal` ([`crate::archived`]), where the daemon may not write there.
    pub remember: Vec<String>,
}

/// The outcome of a push.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PushOutcome {
    /// Durable in every repository that has to acknowledge.
    Stored,
    /// [`Self::Stored`], of a file that is on record as dropped ([`crate::dropped`]) and was judged sound: the client adds that it was
    /// archived after all.
    StoredAfterAll,
    /// Not stored. The message says why.
    Failed,
    /// The daemon is going away: ask again.
    Retry,
    /// Not stored and dropped: too much waits (`queue_max`), or an operator skipped it. The message says so.
    Dropped,
    /// No answer yet; another reply follows.
    Working,
}

impl Message for PushRequest {
    const KIND: u8 = 1;

    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, &self.name);
        put_identity(out, &self.identity);
    }

    fn take(input: &mut MessageInput<'_>) -> Option<Self> {
        Some(Self { name: input.text()?, identity: take_identity(input)? })
    }
}

impl Message for PushReply {
    const KIND: u8 = 2;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self.outcome {
            PushOutcome::Stored => 0,
            PushOutcome::Failed => 1,
            PushOutcome::Retry => 2,
            PushOutcome::Dropped => 3,
            PushOutcome::Working => 4,
            PushOutcome::StoredAfterAll => 5,
        });
        put_identity(out, &self.identity);
        put_text(out, &self.message);
        out.extend(u32::try_from(self.remember.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.remember.iter().for_each(|line| put_text(out, line));
    }

    fn take(input: &mut MessageInput<'_>) -> Option<Self> {
        let outcome = match input.u8()? {
            0 => PushOutcome::Stored,
            1 => PushOutcome::Failed,
            2 => PushOutcome::Retry,
            3 => PushOutcome::Dropped,
            4 => PushOutcome::Working,
            5 => PushOutcome::StoredAfterAll,
            _ => return None,
        };
        let (identity, message) = (take_identity(input)?, input.text()?);
        // Each is longer than a byte, so a count that is not true soon finds the end.
        let mut remember = Vec::new();
        for _ in 0..input.u32()? {
            remember.push(input.text()?);
        }
        Some(Self { outcome, identity, message, remember })
    }
}
