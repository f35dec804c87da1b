//! The conversation with the daemon: one request, one reply, on a connection of its own.
//!
//! A daemon that hangs costs the first file as long as it may be silent. It is [remembered](crate::hung), and asked in a second how it is
//! before it gets the next one.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use walpoint_base::socket::{
    HealthReply, HealthRequest, Message, PUSH_SILENCE, PushOutcome, PushReply, PushRequest, connect,
    push_time_limit,
};

use crate::file::WalFile;
use crate::hung::{self, HungMark};

/// How a push ended.
#[derive(Debug)]
pub(crate) enum PushAnswer {
    /// Durable in every repository that has to acknowledge.
    Stored {
        /// What `pg_wal` has to remember of it.
        remember: Vec<String>,
        /// Whether the record of dropped WAL has to say that it was archived after all.
        after_all: bool,
    },
    /// The daemon says why not.
    Failed(String),
    /// Dropped: PostgreSQL takes it for archived. What its log says.
    Dropped(String),
    /// No daemon answered, and why: nothing is known about the file.
    Unanswered(String),
}

/// A daemon that went away in mid-request is given this long to come back.
const RESTART: Duration = Duration::from_secs(5);

/// A daemon that hung a moment ago is asked for so long how it is: nothing that it is asked then needs a store.
const AGAIN: Duration = Duration::from_secs(1);

/// Why there is no reply.
enum Silence {
    /// Nobody listens there.
    Absent(String),
    /// The daemon went away, or said that it is about to.
    Leaving(String),
    /// It is there and cannot be talked to.
    Useless(String),
}

/// Asks until there is an answer or no hope for one. The file lies in `directory`.
pub(crate) fn ask(socket: &Path, directory: &Path, file: &WalFile) -> PushAnswer {
    let mut left_at: Option<Instant> = None;
    loop {
        let (reason, wait) = match attempt(socket, directory, file) {
            Ok(reply) => return judge(reply, file),
            // The first attempt: there is no daemon. Later: it is not back yet.
            Err(Silence::Absent(reason)) => (reason, left_at.is_some()),
            Err(Silence::Leaving(reason)) => (reason, true),
            Err(Silence::Useless(reason)) => (reason, false),
        };
        let left = *left_at.get_or_insert_with(Instant::now);
        if !wait || left.elapsed() > RESTART {
            return PushAnswer::Unanswered(reason);
        }
        sleep(Duration::from_millis(100));
    }
}

fn judge(reply: PushReply, file: &WalFile) -> PushAnswer {
    match reply.outcome {
        PushOutcome::Stored | PushOutcome::StoredAfterAll if reply.identity == file.identity => {
            let after_all = reply.outcome == PushOutcome::StoredAfterAll;
            PushAnswer::Stored { remember: reply.remember, after_all }
        }
        PushOutcome::Stored | PushOutcome::StoredAfterAll => PushAnswer::Failed(format!(
            "the daemon archived another file of that name (inode {}, PostgreSQL's is {})\nHINT: pgdata of this cluster in \
             the daemon's configuration must be this server's data directory.",
            reply.identity.inode, file.identity.inode
        )),
        PushOutcome::Dropped if reply.identity == file.identity => PushAnswer::Dropped(reply.message),
        PushOutcome::Dropped | PushOutcome::Failed | PushOutcome::Retry | PushOutcome::Working => {
            PushAnswer::Failed(reply.message)
        }
    }
}

fn attempt(socket: &Path, directory: &Path, file: &WalFile) -> Result<PushReply, Silence> {
    let shown = socket.display();
    let absent = |error: io::Error| Silence::Absent(format!("no daemon at {shown}: {error}"));
    // Anybody may listen in a directory like /tmp; only these two may say "stored".
    let meta = std::fs::metadata(socket).map_err(absent)?;
    let owner = meta.uid();
    if owner != 0 && owner != file.owner {
        return Err(Silence::Useless(format!(
            "the socket {shown} belongs to uid {owner}, neither to root nor to the owner of the file (uid {})",
            file.owner
        )));
    }
    let mark = HungMark::of(&meta, directory);
    let hangs = |again: &str| {
        let unnoted = mark.as_ref().and_then(|mark| mark.set().err()).map(|error| {
            format!(
                "\nDETAIL: The next file will wait as long, because {}/{} cannot be written: {error}.",
                directory.display(),
                hung::FILE
            )
        });
        Silence::Useless(format!(
            "the daemon at {shown} hangs: it has not responded for {} s{again}{}\nHINT: Restart it.",
            PUSH_SILENCE.as_secs(),
            unnoted.unwrap_or_default()
        ))
    };
    if let Some(mark) = mark.as_ref().filter(|mark| mark.is_set()) {
        if is_silent(socket) {
            return Err(hangs(&format!(" before, nor for {} s now", AGAIN.as_secs())));
        }
        mark.clear();
    }
    let mut stream = connect(socket, PUSH_SILENCE).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => absent(error),
        io::ErrorKind::TimedOut => hangs(""),
        _ => Silence::Useless(format!("cannot connect to {shown}: {error}")),
    })?;

    let (asked, limit) = (Instant::now(), push_time_limit(file.identity.size));
    let request = PushRequest { name: file.name.to_string(), identity: file.identity };
    let mut reply = request.write(&mut stream).and_then(|()| PushReply::read(&mut stream));
    while matches!(reply, Ok(PushReply { outcome: PushOutcome::Working, .. })) {
        if asked.elapsed() > limit {
            let limit = limit.as_secs();
            return Err(Silence::Useless(format!("the daemon at {shown} did not finish within {limit} s")));
        }
        reply = PushReply::read(&mut stream);
    }
    match reply {
        Ok(PushReply { outcome: PushOutcome::Retry, message, .. }) => Err(Silence::Leaving(message)),
        Ok(reply) => Ok(reply),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => hangs(""),
            io::ErrorKind::InvalidData => {
                Silence::Useless(format!("{shown} sent an invalid answer: {error}"))
            }
            _ => Silence::Leaving(format!("the daemon closed the connection: {error}")),
        }),
    }
}

/// Whether a daemon that hung still gives no answer. One that went away does not hang.
fn is_silent(socket: &Path) -> bool {
    let asked = connect(socket, AGAIN).and_then(|mut stream| {
        HealthRequest.write(&mut stream)?;
        HealthReply::read(&mut stream)
    });
    asked.is_err_and(|error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::thread::JoinHandle;

    use walpoint_base::socket::FileIdentity;

    use super::*;

    /// A daemon that gives one reply for each connection, `None` meaning that it hangs up, and then goes away.
    fn daemon(path: PathBuf, replies: Vec<Option<PushReply>>) -> JoinHandle<()> {
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for reply in replies {
                let (mut stream, _) = listener.accept().unwrap();
                let request = PushRequest::read(&mut stream).unwrap();
                assert_eq!(request.name, "000000010000000000000001");
                if let Some(reply) = reply {
                    reply.write(&mut stream).unwrap();
                }
            }
            std::fs::remove_file(path).unwrap();
        })
    }

    fn file(dir: &Path) -> WalFile {
        let owner = dir.metadata().unwrap().uid();
        let identity = FileIdentity { inode: 7, size: 1 << 20, ..FileIdentity::default() };
        WalFile { name: "000000010000000000000001".parse().unwrap(), identity, owner }
    }

    fn reply(outcome: PushOutcome, file: &WalFile, message: &str) -> PushReply {
        PushReply { outcome, identity: file.identity, message: message.to_owned(), remember: Vec::new() }
    }

    fn asked(replies: impl FnOnce(&WalFile) -> Vec<Option<PushReply>>) -> PushAnswer {
        let dir = std::env::temp_dir().join(format!(
            "archive-push-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::create_dir_all(&dir).unwrap();
        let (socket, file) = (dir.join("push"), file(&dir));
        let daemon = daemon(socket.clone(), replies(&file));
        let answer = ask(&socket, &dir, &file);
        daemon.join().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        answer
    }

    #[test]
    fn stored_counts_only_for_the_same_file() {
        for (outcome, expected) in [(PushOutcome::Stored, false), (PushOutcome::StoredAfterAll, true)] {
            let stored = asked(|f| {
                vec![Some(PushReply { remember: vec!["a line".to_owned()], ..reply(outcome, f, "") })]
            });
            assert!(matches!(stored, PushAnswer::Stored { remember, after_all }
                if remember == ["a line"] && after_all == expected));
            let other = asked(|f| {
                let mut other = reply(outcome, f, "");
                other.identity.inode += 1;
                vec![Some(other)]
            });
            assert!(matches!(other, PushAnswer::Failed(text) if text.contains("another file")));
        }
    }

    #[test]
    fn a_failure_carries_the_daemons_words() {
        let failed = asked(|f| vec![Some(reply(PushOutcome::Failed, f, "the store is on fire"))]);
        assert!(matches!(failed, PushAnswer::Failed(text) if text == "the store is on fire"));
    }

    #[test]
    fn a_dropped_file_counts_for_the_same_file_only() {
        let dropped = asked(|f| vec![Some(reply(PushOutcome::Dropped, f, "too much waits"))]);
        assert!(matches!(dropped, PushAnswer::Dropped(text) if text == "too much waits"));
        let other = asked(|f| {
            let mut other = reply(PushOutcome::Dropped, f, "too much waits");
            other.identity.inode += 1;
            vec![Some(other)]
        });
        assert!(matches!(other, PushAnswer::Failed(_)));
    }

    #[test]
    fn a_daemon_that_leaves_is_asked_again() {
        let answer = asked(|f| {
            vec![None, Some(reply(PushOutcome::Retry, f, "")), Some(reply(PushOutcome::Stored, f, ""))]
        });
        assert!(matches!(answer, PushAnswer::Stored { .. }));
    }

    #[test]
    fn a_daemon_that_does_not_come_back_is_not_waited_for_forever() {
        let begun = Instant::now();
        assert!(matches!(asked(|_| vec![None]), PushAnswer::Unanswered(_)));
        assert!(begun.elapsed() >= RESTART);
    }

    #[test]
    fn no_daemon_is_known_at_once() {
        let begun = Instant::now();
        let answer = ask(Path::new("/nowhere/main.push"), Path::new("/"), &file(Path::new("/")));
        assert!(matches!(answer, PushAnswer::Unanswered(text) if text.contains("/nowhere/main.push")));
        assert!(begun.elapsed() < RESTART);
    }

    #[test]
    fn a_daemon_that_hung_is_asked_for_a_second_how_it_is() {
        let dir = std::env::temp_dir().join(format!("archive-push-again-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("archive_status")).unwrap();
        let (socket, file) = (dir.join("push"), file(&dir));
        let listener = UnixListener::bind(&socket).unwrap();
        let mark = HungMark::of(&socket.metadata().unwrap(), &dir).unwrap();
        mark.set().unwrap();
        for _ in 0..3 {
            let begun = Instant::now();
            let answer = ask(&socket, &dir, &file);
            assert!(matches!(&answer, PushAnswer::Unanswered(text) if text.contains("hangs")), "{answer:?}");
            assert!((AGAIN..PUSH_SILENCE / 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        }
        // It gets on: it answers how it is, and gets the file, with all the time that this takes.
        let stored = reply(PushOutcome::Stored, &file, "");
        let daemon = std::thread::spawn(move || {
            for _ in 0..3 {
                drop(listener.accept().unwrap());
            }
            let (mut stream, _) = listener.accept().unwrap();
            HealthRequest::read(&mut stream).unwrap();
            HealthReply { problems: Vec::new() }.write(&mut stream).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            PushRequest::read(&mut stream).unwrap();
            sleep(AGAIN * 2);
            stored.write(&mut stream).unwrap();
        });
        assert!(matches!(ask(&socket, &dir, &file), PushAnswer::Stored { .. }));
        assert!(!mark.is_set());
        daemon.join().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
