//! The messages inside a stream of WAL, in both directions.
//!
//! Source: "Streaming Replication Protocol" in PostgreSQL's manual; `src/backend/replication/walsender.c`
//! (`XLogSendPhysical`, `WalSndKeepalive`, `ProcessStandbyReplyMessage`). Numbers are in network byte order.

use bytes::{Buf, Bytes};
use walpoint_base::{Lsn, PgTimestamp};

/// `w`: a type, three 64-bit fields.
const WAL_HEADER: usize = 1 + 3 * 8;
/// `k`: a type, two 64-bit fields, a flag.
const KEEPALIVE: usize = 1 + 2 * 8 + 1;
/// `r`: a type, four 64-bit fields, a flag.
const STATUS_UPDATE: usize = 1 + 4 * 8 + 1;

/// What a server says in a stream of WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamMessage {
    /// WAL.
    Wal(WalPiece),
    /// It is alive, and says how far it is.
    Keepalive(Keepalive),
}

/// Bytes of WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalPiece {
    /// The position of the first byte.
    pub start: Lsn,
    /// The bytes. A slice of the connection's buffer: copy what is kept.
    pub bytes: Bytes,
    /// The end of WAL on the server.
    pub server_end: Lsn,
    /// When it was sent, by the server's clock.
    pub sent: PgTimestamp,
}

/// A sign of life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keepalive {
    /// Up to where the server has sent WAL.
    pub server_end: Lsn,
    /// When it was sent, by the server's clock.
    pub sent: PgTimestamp,
    /// Whether the server waits for a status update: without one it ends the session soon, or does not shut down.
    pub wants_reply: bool,
}

impl StreamMessage {
    /// Reads the content of a CopyData message. `None` if the protocol has no such message.
    pub(super) fn parse(mut message: Bytes) -> Option<Self> {
        match *message.first()? {
            b'w' if message.len() >= WAL_HEADER => {
                message.advance(1);
                let (start, server_end) = (Lsn(message.get_u64()), Lsn(message.get_u64()));
                let sent = PgTimestamp(message.get_i64());
                Some(Self::Wal(WalPiece { start, bytes: message, server_end, sent }))
            }
            b'k' if message.len() == KEEPALIVE => {
                message.advance(1);
                let (server_end, sent) = (Lsn(message.get_u64()), PgTimestamp(message.get_i64()));
                let wants_reply = message.get_u8() != 0;
                Some(Self::Keepalive(Keepalive { server_end, sent, wants_reply }))
            }
            _ => None,
        }
    }
}

/// What a client tells a server: up to where WAL is durable. What it has received beyond that does not count, and it applies none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StatusUpdate {
    /// Up to where all WAL is durable; 0/0 says nothing.
    pub(super) durable: Lsn,
    /// When it is sent, by this machine's clock.
    pub(super) sent: PgTimestamp,
    /// Whether the server is to answer with a keepalive.
    pub(super) wants_reply: bool,
}

impl StatusUpdate {
    /// The content of its CopyData message.
    pub(super) fn encode(self) -> [u8; STATUS_UPDATE] {
        let mut bytes = [0; STATUS_UPDATE];
        let applied = Lsn::default();
        let fields = [self.durable.0, self.durable.0, applied.0].map(u64::to_be_bytes);
        let fields = fields.into_iter().chain([self.sent.0.to_be_bytes()]).flatten();
        let content = [b'r'].into_iter().chain(fields).chain([u8::from(self.wants_reply)]);
        for (to, from) in bytes.iter_mut().zip(content) {
            *to = from;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wal_and_keepalives_are_read_as_they_are_sent() {
        let mut wal = vec![b'w'];
        for field in [0x0300_0028_u64, 0x0300_0100, 77] {
            wal.extend(field.to_be_bytes());
        }
        wal.extend(b"records");
        let piece = WalPiece {
            start: Lsn(0x0300_0028),
            bytes: Bytes::from_static(b"records"),
            server_end: Lsn(0x0300_0100),
            sent: PgTimestamp(77),
        };
        assert_eq!(StreamMessage::parse(wal.into()), Some(StreamMessage::Wal(piece)));
        let mut alive = vec![b'k'];
        alive.extend(5_u64.to_be_bytes());
        alive.extend((-7_i64).to_be_bytes());
        alive.push(1);
        let keepalive = Keepalive { server_end: Lsn(5), sent: PgTimestamp(-7), wants_reply: true };
        assert_eq!(
            StreamMessage::parse(Bytes::from(alive.clone())),
            Some(StreamMessage::Keepalive(keepalive))
        );
        alive.push(0);
        assert_eq!(StreamMessage::parse(alive.into()), None, "longer than it is");
    }

    #[test]
    fn nothing_is_ever_said_to_be_applied() {
        let update = StatusUpdate { durable: Lsn(0x0102), sent: PgTimestamp(3), wants_reply: true };
        let bytes = update.encode();
        assert_eq!((bytes[0], bytes[33]), (b'r', 1));
        let field = |n: usize| u64::from_be_bytes(bytes[1 + 8 * n..9 + 8 * n].try_into().unwrap());
        assert_eq!([0, 1, 2, 3].map(field), [0x0102, 0x0102, 0, 3], "written, flushed, applied, when");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let read = StreamMessage::parse(bytes.clone().into());
            prop_assert!(read.is_none() || matches!(bytes.first(), Some(b'w' | b'k')));
        }
    }
}
