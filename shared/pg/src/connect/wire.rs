//! Messages in both directions over one socket.
//!
//! Always holds: both buffers survive a dropped future. What was queued and not yet sent is sent by the next flush, and
//! half a message that was received is completed by the next receive, so whoever waits here may be cancelled.
//! No message longer than the current limit is ever waited for or allocated.

use std::io;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::socket::Socket;

/// Longest message before the server has authenticated us: longer ones are not PostgreSQL's. libpq has 30,000 for errors.
pub(super) const LIMIT_BEFORE_LOGIN: usize = 64 << 10;

/// Longest message of a session: rows, notices, CopyData of base backups (up to 128 KiB) and WAL (up to 128 KiB).
pub(super) const LIMIT_IN_SESSION: usize = 16 << 20;

const COPY_BOTH_RESPONSE_TAG: u8 = b'W';
const NEGOTIATE_PROTOCOL_VERSION_TAG: u8 = b'v';
const READ_SIZE: usize = 64 << 10;

/// What a server sent.
pub(super) enum Incoming {
    /// A message that postgres-protocol knows.
    Message(Message),
    /// CopyBothResponse, which it does not: the server streams and takes replies from here on.
    CopyBoth,
}

/// Why no message came.
#[derive(Debug)]
pub(super) enum Fault {
    /// The connection broke or ended.
    Lost(io::Error),
    /// The bytes are not PostgreSQL's protocol.
    Garbage(String),
}

/// A socket with its buffers.
pub(super) struct Wire {
    socket: Socket,
    received: BytesMut,
    /// Messages to send. Callers append whole ones.
    pub(super) outgoing: BytesMut,
    limit: usize,
}

impl Wire {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, received: BytesMut::new(), outgoing: BytesMut::new(), limit: LIMIT_BEFORE_LOGIN }
    }

    /// From here on messages may be as long as a session needs.
    pub(super) fn logged_in(&mut self) {
        self.limit = LIMIT_IN_SESSION;
    }

    /// Sends what is queued.
    pub(super) async fn flush(&mut self) -> Result<(), Fault> {
        while self.outgoing.has_remaining() {
            if self.socket.write_buf(&mut self.outgoing).await.map_err(Fault::Lost)? == 0 {
                return Err(Fault::Lost(io::ErrorKind::WriteZero.into()));
            }
        }
        self.socket.flush().await.map_err(Fault::Lost)
    }

    /// The next message.
    pub(super) async fn receive(&mut self) -> Result<Incoming, Fault> {
        loop {
            if let Some(message) = next(&mut self.received, self.limit).map_err(Fault::Garbage)? {
                return Ok(message);
            }
            self.received.reserve(READ_SIZE);
            if self.socket.read_buf(&mut self.received).await.map_err(Fault::Lost)? == 0 {
                let what = "the server closed the connection";
                return Err(Fault::Lost(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
            }
        }
    }

    /// Waits until the server closes the connection.
    pub(super) async fn closed(&mut self) {
        self.received.clear();
        while matches!(self.socket.read_buf(&mut self.received).await, Ok(1..)) {
            self.received.clear();
        }
    }
}

/// Takes the next whole message out of `buffer`; `None` if more bytes are needed.
fn next(buffer: &mut BytesMut, limit: usize) -> Result<Option<Incoming>, String> {
    loop {
        let header = Header::parse(buffer).map_err(|e| e.to_string())?;
        let Some(header) = header else { return Ok(None) };
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX).saturating_add(1);
        if length > limit {
            let tag = char::from(header.tag());
            return Err(format!(
                "a message {tag:?} of {length} bytes, more than the {limit} that are accepted here"
            ));
        }
        if buffer.len() < length {
            buffer.reserve(length - buffer.len());
            return Ok(None);
        }
        match header.tag() {
            COPY_BOTH_RESPONSE_TAG => {
                buffer.advance(length);
                return Ok(Some(Incoming::CopyBoth));
            }
            // The server speaks 3.0 only or ignores an option; both are what is wanted.
            NEGOTIATE_PROTOCOL_VERSION_TAG => buffer.advance(length),
            _ => return Message::parse(buffer).map(|m| m.map(Incoming::Message)).map_err(|e| e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tags(bytes: &[u8], limit: usize) -> Result<Vec<&'static str>, String> {
        let mut buffer = BytesMut::from(bytes);
        let mut found = Vec::new();
        while let Some(message) = next(&mut buffer, limit)? {
            found.push(match message {
                Incoming::CopyBoth => "W",
                Incoming::Message(Message::ReadyForQuery(_)) => "Z",
                Incoming::Message(Message::CommandComplete(_)) => "C",
                Incoming::Message(_) => "other",
            });
        }
        Ok(found)
    }

    #[test]
    fn steps_over_what_the_library_does_not_know() {
        let bytes = b"v\0\0\0\x0c\0\0\0\0\0\0\0\0W\0\0\0\x07\0\0\0Z\0\0\0\x05I";
        assert_eq!(tags(bytes, 100).unwrap(), ["W", "Z"]);
        for end in 0..bytes.len() {
            assert!(tags(&bytes[..end], 100).unwrap().len() < 2, "{end} bytes");
        }
    }

    #[test]
    fn a_long_message_is_refused_before_it_is_there() {
        assert!(tags(b"C\x7f\xff\xff\xff", LIMIT_IN_SESSION).unwrap_err().contains("more than"));
        assert!(tags(b"C\0\0\0\x64", 100).is_err());
        assert!(tags(b"C\0\0\0\x63", 100).unwrap().is_empty());
        assert!(tags(b"C\0\0\0\x03", 100).is_err());
        assert!(tags(b"C\xff\xff\xff\xff", 100).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_an_error(bytes: Vec<u8>) {
            let _result = tags(&bytes, 1000);
        }

        #[test]
        fn any_body_is_a_message_or_an_error(tag: u8, body: Vec<u8>) {
            let mut bytes = vec![tag];
            bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
            bytes.extend(body);
            let _result = tags(&bytes, 1000);
        }
    }
}
