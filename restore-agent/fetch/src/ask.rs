//! The conversation with the prefetcher: one request on a connection of its own, replies until one is final.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use walpoint_base::WalDirectory;
use walpoint_base::socket::{self, FetchOutcome, FetchReply, FetchRequest, Message};

use crate::agent;
use crate::arguments::Arguments;

/// How the conversation ended.
#[derive(Debug)]
pub(crate) enum FetchAnswer {
    /// The prefetcher's final word.
    Reply(FetchReply),
    /// Nobody answered, and why: nothing is known about the file.
    Unanswered(String),
    /// Somebody is there but says nothing, and nothing is known about the file.
    Mute(String),
}

/// A prefetcher that works says so every few seconds; one that has been silent for this long hangs.
const SILENCE: Duration = Duration::from_secs(30);

/// A prefetcher listens before it does anything else; starting it takes milliseconds unless the machine is overloaded.
const START: Duration = Duration::from_secs(5);

/// The same on a standby, which gets an answer within two seconds whatever happens.
const START_ON_STANDBY: Duration = Duration::from_millis(500);

/// How often a prefetcher may go away in mid-request before it is given up.
const RESTARTS: u32 = 3;

/// Why there is no reply.
enum Silence {
    /// Nobody listens there.
    Absent(String),
    /// It went away before it answered.
    Left(String),
    /// It is there and says nothing.
    Mute(String),
    /// It is there and cannot be talked to.
    Useless(String),
}

/// Asks until there is a final reply or no hope for one; starts a prefetcher for a server if there is none. `progress` is told what a
/// working prefetcher waits for. With a `deadline` no answer comes later than that.
pub(crate) fn ask(
    arguments: &Arguments,
    place: &WalDirectory,
    deadline: Option<Instant>,
    progress: &mut dyn FnMut(&str),
) -> FetchAnswer {
    let mut started: Option<(Child, Instant)> = None;
    let mut left = 0;
    loop {
        match attempt(arguments, place, deadline, progress) {
            Ok(reply) => return FetchAnswer::Reply(reply),
            Err(Silence::Mute(reason)) => return FetchAnswer::Mute(reason),
            Err(Silence::Useless(reason)) => return FetchAnswer::Unanswered(reason),
            Err(Silence::Left(reason)) => {
                left += 1;
                started = None;
                if left > RESTARTS {
                    return FetchAnswer::Unanswered(reason);
                }
            }
            Err(Silence::Absent(reason)) if !place.server => return FetchAnswer::Unanswered(reason),
            Err(Silence::Absent(reason)) => match &mut started {
                None => match agent::start_prefetcher(arguments, place) {
                    Ok(child) => started = Some((child, Instant::now())),
                    Err(problem) => return FetchAnswer::Unanswered(format!("{reason}: {problem}")),
                },
                Some((child, since)) => {
                    let limit = if deadline.is_some() { START_ON_STANDBY } else { START };
                    // Ended without an error: another one was faster and is about to listen.
                    if let Ok(Some(status)) = child.try_wait()
                        && !status.success()
                    {
                        return FetchAnswer::Unanswered(format!(
                            "the prefetcher exited right after it was started ({status})\nHINT: \
                             \"restore-agent prefetch \
                             --pgdata {} --socket {}\" shows why.",
                            place.pgdata.display(),
                            arguments.socket.display()
                        ));
                    }
                    if since.elapsed() > limit {
                        return FetchAnswer::Unanswered(format!(
                            "{reason}, {} ms after it was started",
                            limit.as_millis()
                        ));
                    }
                    sleep(Duration::from_millis(2));
                }
            },
        }
    }
}

fn attempt(
    arguments: &Arguments,
    place: &WalDirectory,
    deadline: Option<Instant>,
    progress: &mut dyn FnMut(&str),
) -> Result<FetchReply, Silence> {
    let time_left = || match deadline {
        None => SILENCE,
        // A timeout of zero would mean none at all.
        Some(at) => at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)),
    };
    let mut stream = connect(&arguments.socket, time_left())?;
    let shown = arguments.socket.display();
    let lost = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Silence::Mute(format!("the prefetcher at {shown} does not respond"))
        }
        io::ErrorKind::InvalidData => Silence::Useless(format!("{shown} sent an invalid answer: {error}")),
        _ => Silence::Left(format!("the prefetcher closed the connection: {error}")),
    };
    let request = FetchRequest {
        name: arguments.name.clone(),
        path: arguments.path.to_string_lossy().into_owned(),
        system_id: place.system_id,
        directory: place.inode,
        ahead: place.server,
    };
    stream.set_write_timeout(Some(time_left())).map_err(lost)?;
    request.write(&mut stream).map_err(lost)?;
    loop {
        stream.set_read_timeout(Some(time_left())).map_err(lost)?;
        let reply = FetchReply::read(&mut stream).map_err(lost)?;
        if reply.outcome != FetchOutcome::Working {
            return Ok(reply);
        }
        if deadline.is_some_and(|at| Instant::now() >= at) {
            return Err(Silence::Mute(format!(
                "the prefetcher at {shown} could not look the file up in time"
            )));
        }
        progress(&reply.message);
    }
}

fn connect(socket: &Path, limit: Duration) -> Result<UnixStream, Silence> {
    let shown = socket.display();
    let absent = |error: io::Error| Silence::Absent(format!("no prefetcher at {shown}: {error}"));
    // Anybody may listen in a directory like /tmp; only root and we ourselves may say what is in the archive.
    let owner = std::fs::metadata(socket).map_err(absent)?.uid();
    let own =
        std::fs::metadata("/proc/self").map_err(|e| Silence::Useless(format!("/proc/self: {e}")))?.uid();
    if owner != 0 && owner != own {
        return Err(Silence::Useless(format!(
            "the socket {shown} belongs to uid {owner}, neither to root nor to uid {own}, which runs restore-fetch"
        )));
    }
    socket::connect(socket, limit).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => absent(error),
        io::ErrorKind::TimedOut => {
            Silence::Mute(format!("the prefetcher at {shown} accepts no requests: {error}"))
        }
        _ => Silence::Useless(format!("cannot connect to {shown}: {error}")),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use walpoint_base::{Recovery, SystemId};

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("restore-fetch-ask-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn place() -> WalDirectory {
        WalDirectory {
            pgdata: "/d".into(),
            wal: "/d/pg_wal".into(),
            inode: 3,
            system_id: SystemId(7),
            server: true,
            recovery: Recovery::Archive,
        }
    }

    fn arguments(socket: PathBuf) -> Arguments {
        Arguments { socket, options: Vec::new(), name: "00000002.history".into(), path: "pg_wal/x".into() }
    }

    fn reply(outcome: FetchOutcome, message: &str) -> FetchReply {
        FetchReply {
            outcome,
            file: String::new(),
            size: 0,
            message: message.to_owned(),
            tablespaces: Vec::new(),
        }
    }

    /// Asks a prefetcher that gives these replies, then hangs up or stays silent.
    fn asked(
        name: &str,
        replies: Vec<FetchReply>,
        limit: Option<Duration>,
        stay: bool,
    ) -> (FetchAnswer, Vec<String>) {
        let dir = scratch(name);
        let listener = UnixListener::bind(dir.join("s")).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = FetchRequest::read(&mut stream).unwrap();
            assert_eq!((request.system_id, request.directory), (SystemId(7), 3));
            for reply in replies {
                // The client may have left.
                reply.write(&mut stream).ok();
            }
            if stay {
                sleep(Duration::from_millis(500));
            }
        });
        let mut told = Vec::new();
        let deadline = limit.map(|limit| Instant::now() + limit);
        let answer =
            ask(&arguments(dir.join("s")), &place(), deadline, &mut |text| told.push(text.to_owned()));
        server.join().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        (answer, told)
    }

    #[test]
    fn progress_is_told_until_the_final_reply() {
        let replies =
            vec![reply(FetchOutcome::Working, "store is slow"), reply(FetchOutcome::Absent, "gone")];
        let (answer, told) = asked("progress", replies, None, false);
        assert!(matches!(answer, FetchAnswer::Reply(r) if r.outcome == FetchOutcome::Absent));
        assert_eq!(told, ["store is slow"]);
    }

    #[test]
    fn a_standby_does_not_wait_for_a_mute_prefetcher() {
        let begun = Instant::now();
        let working = vec![reply(FetchOutcome::Working, "")];
        let (answer, _) = asked("mute", working, Some(Duration::from_millis(200)), true);
        assert!(matches!(answer, FetchAnswer::Mute(_)), "{answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_standby_does_not_wait_where_the_queue_is_full() {
        let dir = scratch("full");
        let _listener = UnixListener::bind(dir.join("s")).unwrap();
        while socket::connect(&dir.join("s"), Duration::from_millis(20)).is_ok() {}
        let begun = Instant::now();
        let deadline = Some(begun + Duration::from_millis(200));
        let answer = ask(&arguments(dir.join("s")), &place(), deadline, &mut |_| {});
        assert!(matches!(answer, FetchAnswer::Mute(_)), "{answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(2));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
