//! Connecting to a process that may hang: no wait is without a limit.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// Connects to the process that listens at `path`. Connecting waits for `limit` at most; so does each read and write of the
/// stream until it is given other limits.
///
/// A process that hangs accepts nothing, and its queue keeps the connections that earlier clients have long closed. Once it is
/// full, connecting waits until there is room: without a limit, for ever. That is [`io::ErrorKind::TimedOut`] here.
pub fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let begun = Instant::now();
    loop {
        // A timeout of zero would mean none at all.
        let left = limit.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
        // The one for sending is also the one for connecting (unix(7)).
        set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            Err(Errno::INTR) if begun.elapsed() < limit => {}
            Err(Errno::INTR | Errno::AGAIN) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its queue of connections is full"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(Some(limit))?;
    stream.set_read_timeout(Some(limit))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::super::{HealthReply, Message};
    use super::*;

    #[test]
    fn connecting_ends_where_a_queue_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // Room for one.
        rustix::net::listen(&listener, 0).unwrap();
        let limit = Duration::from_millis(200);
        // It keeps its place in the queue.
        drop(connect(&path, limit).unwrap());
        let begun = Instant::now();
        assert_eq!(connect(&path, limit).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!((limit..limit * 20).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        listener.accept().unwrap();
        let mut stream = connect(&path, limit).unwrap();
        let begun = Instant::now();
        assert_eq!(HealthReply::read(&mut stream).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!((limit..limit * 20).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        drop(listener);
        assert_eq!(connect(&path, limit).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let nowhere = dir.path().join("nowhere");
        assert_eq!(connect(&nowhere, limit).unwrap_err().kind(), io::ErrorKind::NotFound);
        let long = dir.path().join("l".repeat(108));
        assert!(connect(&long, limit).is_err());
    }
}
