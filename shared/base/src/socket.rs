//! The messages between the thin clients and the processes that serve them, over a Unix socket.
//!
//! A message is a length (u32, little-endian, at most [`MAX_MESSAGE`]) and that many bytes. The bytes begin with the
//! protocol's version and the message's kind; integers are little-endian, texts have a u16 length before them. One
//! request and one reply for each connection; before the reply to a fetch there may be any number of
//! [`FetchOutcome::Working`], which tell that the server is alive and what it waits for.
//!
//! | module | owns |
//! |---|---|
//! | `connect` | connecting within a limit |
//! | `message` | what all messages have in common, and how fields are laid out |
//! | `identity` | which file both sides speak of |
//! | `push`, `fetch`, `health` | the messages |

mod connect;
mod fetch;
mod health;
mod identity;
mod message;
mod push;

pub use connect::connect;
pub use fetch::{FETCH_SOCKET, FetchOutcome, FetchReply, FetchRequest, HISTORY_CACHE, STOP_WITHOUT_HISTORY};
pub use health::{HealthProblem, HealthReply, HealthRequest, ProblemKind};
pub use identity::FileIdentity;
pub use message::{MAX_MESSAGE, Message, MessageInput, checked_length};
pub use push::{
    PUSH_ALIVE, PUSH_OUTCOME, PUSH_SILENCE, PushOutcome, PushReply, PushRequest, push_time_limit,
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::message::VERSION;
    use super::*;

    fn request() -> PushRequest {
        let identity = FileIdentity {
            system_id: 7,
            page_timeline: 1,
            page_address: 2 << 24,
            size: 16 << 20,
            inode: 5,
            mtime: -1,
            mtime_nsec: 9,
        };
        PushRequest { name: "000000010000000000000002".into(), identity }
    }

    #[test]
    fn messages_arrive_as_sent() {
        let sent = request();
        let mut wire = Vec::new();
        sent.write(&mut wire).unwrap();
        assert_eq!(PushRequest::read(&mut wire.as_slice()).unwrap(), sent);

        let reply = PushReply {
            outcome: PushOutcome::Failed,
            identity: sent.identity,
            message: "é".repeat(40_000),
            remember: vec!["a line".into(), "another".into()],
        };
        let got = PushReply::decode(&reply.encode().unwrap()[4..]).unwrap();
        assert_eq!((got.outcome, got.identity), (reply.outcome, reply.identity));
        assert!(reply.message.starts_with(&got.message) && got.message.len() > 16_000);
    }

    #[test]
    fn every_outcome_of_a_push_arrives_as_sent() {
        use PushOutcome::{Dropped, Failed, Retry, Stored, StoredAfterAll, Working};
        for outcome in [Stored, StoredAfterAll, Failed, Retry, Dropped, Working] {
            let (identity, message) = (request().identity, String::new());
            let reply = PushReply { outcome, identity, message, remember: Vec::new() };
            assert_eq!(PushReply::decode(&reply.encode().unwrap()[4..]).unwrap(), reply);
        }
    }

    #[test]
    fn health_arrives_as_sent_and_is_no_push() {
        let asked = HealthRequest.encode().unwrap();
        assert_eq!(HealthRequest::decode(&asked[4..]).unwrap(), HealthRequest);
        assert!(PushRequest::decode(&asked[4..]).is_err());
        assert!(HealthRequest::decode(&request().encode().unwrap()[4..]).is_err());
        let problem = |kind, text: String| HealthProblem {
            cluster: "main".parse().unwrap(),
            task: "look-ahead".into(),
            kind,
            text,
        };
        let kinds = [ProblemKind::SplitBrain, ProblemKind::Gap, ProblemKind::Other];
        let problems = kinds.map(|kind| problem(kind, "no disk\nHINT: Buy.".into())).into();
        let reply = HealthReply { problems };
        assert_eq!(HealthReply::decode(&reply.encode().unwrap()[4..]).unwrap(), reply);
        assert!(reply.problems[0].to_string().starts_with("main: look-ahead: no disk\n"));
        let many = HealthReply { problems: vec![problem(ProblemKind::Other, "x".repeat(20_000)); 9] };
        let read = HealthReply::decode(&many.encode().unwrap()[4..]).unwrap();
        assert_eq!(read.problems.len(), 7, "as many as fit");
        let long = HealthReply { problems: vec![problem(ProblemKind::Gap, "ä".repeat(100_000))] };
        let read = HealthReply::decode(&long.encode().unwrap()[4..]).unwrap();
        assert!(long.problems[0].text.starts_with(&read.problems[0].text), "a failing daemon is never well");
    }

    #[test]
    fn a_foreign_peer_is_an_error() {
        assert!(PushRequest::read(&mut b"GET / HTTP/1.1\r\n".as_slice()).is_err());
        assert!(PushReply::decode(&request().encode().unwrap()[4..]).is_err());
        let mut other = request().encode().unwrap();
        other[4] = 9;
        assert!(PushRequest::decode(&other[4..]).unwrap_err().to_string().contains("same release"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(mut bytes: Vec<u8>, kind in 1u8..8) {
            for (i, b) in [VERSION, kind].into_iter().enumerate() {
                if let Some(slot) = bytes.get_mut(i) { *slot = b; }
            }
            let _results = (
                PushRequest::decode(&bytes).is_ok(), PushReply::decode(&bytes).is_ok(),
                FetchRequest::decode(&bytes).is_ok(), FetchReply::decode(&bytes).is_ok(),
                HealthRequest::decode(&bytes).is_ok(), HealthReply::decode(&bytes).is_ok(),
            );
        }
    }
}
