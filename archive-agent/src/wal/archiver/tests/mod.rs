//! The archiver without servers: what stores for it follows a script, the clock is paused, and the data directory is one of small
//! files. A call into the directory holds the clock until it returns.
//!
//! | module | owns |
//! |---|---|
//! | [`script`] | an uploader that follows a script, and notes what it was asked for |
//! | [`states`] | how far a file is, against what happens then |
//! | [`trying`] | how long a file is tried, and what a push is answered |
//! | [`dropping`] | what `queue_max` and `push --skip` drop |
//! | [`ahead`] | the look-ahead |
//! | [`ending`] | clients that go, and the end of the daemon |

mod ahead;
mod dropping;
mod ending;
mod script;
mod states;
mod trying;

use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use tokio::task::JoinHandle;
use walpoint_base::durable;

use self::script::{Answer, Script};
use super::*;

/// What one push may take, but for the size of its file.
const PUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a segment.
const SEGMENT: u64 = 16 << 20;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A segment of the first timeline.
fn segment(number: u32) -> WalFileName {
    format!("0000000100000000{number:08X}").parse().unwrap()
}

/// An archiver, its data directory and its script.
struct Bed {
    archiver: Arc<Archiver<Script>>,
}

impl Bed {
    fn new() -> Self {
        Self::with_queue_max(None)
    }

    fn with_queue_max(queue_max: Option<u64>) -> Self {
        let script = Script::new();
        std::fs::create_dir_all(script.wal_directory().join("archive_status")).unwrap();
        let bed = Self { archiver: Arc::new(Archiver::new(script, PUSH_TIMEOUT, queue_max)) };
        bed.server_is(1_700_000_000, "ready");
        bed
    }

    /// The server was started then, and that is its status.
    fn server_is(&self, start: u64, status: &str) {
        let text = format!("1\n/data\n{start}\n5432\n/tmp\n*\n  1  2\n{status}\n");
        durable::replace(&self.script().pgdata().join("postmaster.pid"), text.as_bytes(), 0o600).unwrap();
    }

    fn script(&self) -> &Script {
        self.archiver.uploader()
    }

    fn mark(&self, name: WalFileName) -> PathBuf {
        self.archiver.wal_directory().join(format!("archive_status/{name}.ready"))
    }

    /// PostgreSQL finishes a file; what it will ask.
    fn finish(&self, name: WalFileName) -> PushRequest {
        let request = self.write(name);
        File::create(self.mark(name)).unwrap();
        request
    }

    /// A file of `pg_wal` that PostgreSQL does not wait for, in place of what lies there.
    fn write(&self, name: WalFileName) -> PushRequest {
        let path = self.archiver.wal_directory().join(name.to_string());
        let before = File::open(&path).ok();
        if before.is_some() {
            std::fs::remove_file(&path).unwrap();
        }
        let file = File::create(&path).unwrap();
        file.set_len(SEGMENT).unwrap();
        // Another time, and while the one before is open, another inode.
        file.set_modified(SystemTime::now() + secs(u64::from(before.is_some()))).unwrap();
        PushRequest { name: name.to_string(), identity: FileIdentity::of(&file, false).unwrap() }
    }

    /// PostgreSQL heard that a file was archived.
    fn done(&self, name: WalFileName) {
        std::fs::remove_file(self.mark(name)).unwrap();
    }

    /// A file goes from `pg_wal`.
    fn remove(&self, name: WalFileName) {
        std::fs::remove_file(self.archiver.wal_directory().join(name.to_string())).unwrap();
    }

    /// A push under way.
    fn push(&self, request: &PushRequest) -> JoinHandle<PushReply> {
        let (archiver, request) = (Arc::clone(&self.archiver), request.clone());
        tokio::spawn(async move { archiver.push(&request).await })
    }

    /// A push, and how long it took.
    async fn pushed(&self, request: &PushRequest) -> (PushReply, Duration) {
        let begun = Instant::now();
        let reply = self.archiver.push(request).await;
        (reply, begun.elapsed())
    }
}
