//! A server that should take sessions, and does not: why, and for how long. No IO here.
//!
//! Its `postmaster.pid` says that it takes sessions. So what keeps one from being opened passes within moments, or lasts: a socket that this
//! process cannot reach stays out of reach.

use std::time::{Duration, Instant};

use walpoint_base::Diagnostic;
use walpoint_base::diagnostic::shown;
use walpoint_pg::connect::Error;

/// How long that may last.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server starts, is not consistent, or takes no sessions during recovery (`hot_standby = off`): it says so by itself.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// Every session is taken, which ends with one of them.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// The failed tries since the server last answered.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    since: Option<Instant>,
    reason: Option<String>,
}

impl Unanswered {
    /// Notes what came of a try that opened no session; the error if it was the last one to be made.
    pub(super) fn note(&mut self, error: Option<Error>, now: Instant) -> Option<Error> {
        let error = error.filter(|error| error.sqlstate() != Some(CANNOT_CONNECT_NOW));
        let Some(error) = error else {
            *self = Self::default();
            return None;
        };
        self.reason = Some(shown(&Diagnostic::new(error.to_string()).message().replace('\n', " ")));
        if error.sqlstate() == Some(TOO_MANY_CONNECTIONS) {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        (now.saturating_duration_since(since) >= PATIENCE).then_some(error)
    }

    /// Why there is no session, if that is not to be expected.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use walpoint_pg::connect::{ConnectAttempt, ConnectAttempts, ConnectFailure, ServerReport};

    use super::*;

    fn failed(failure: ConnectFailure) -> Option<Error> {
        let attempts = ConnectAttempts(vec![ConnectAttempt { host: "/run/pg".to_owned(), failure }]);
        Some(Error::Connect { attempts })
    }

    fn refused(sqlstate: &str) -> Option<Error> {
        let report = ServerReport { sqlstate: sqlstate.to_owned(), ..ServerReport::default() };
        failed(ConnectFailure::Server(Box::new(report)))
    }

    fn denied() -> Option<Error> {
        failed(ConnectFailure::Network(io::Error::from(io::ErrorKind::PermissionDenied)))
    }

    #[test]
    fn a_server_that_cannot_be_reached_is_waited_for_half_a_minute_with_its_reason() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut unanswered = Unanswered::default();
        assert!(unanswered.note(denied(), at(0)).is_none() && unanswered.note(denied(), at(29)).is_none());
        assert!(unanswered.reason().unwrap().contains("/run/pg"), "{unanswered:?}");
        assert!(unanswered.note(denied(), at(30)).is_some());

        // What the server says of itself, or that it does not take sessions yet, starts the wait over.
        for expected in [refused("57P03"), None] {
            let mut unanswered = Unanswered::default();
            unanswered.note(denied(), at(0));
            assert!(unanswered.note(expected, at(20)).is_none() && unanswered.reason().is_none());
            assert!(unanswered.note(denied(), at(40)).is_none() && unanswered.reason().is_some());
        }

        // Sessions of others end, however long that takes.
        let mut unanswered = Unanswered::default();
        for seconds in [0, 30, 3600] {
            assert!(unanswered.note(refused("53300"), at(seconds)).is_none());
            assert!(unanswered.reason().is_some());
        }
        assert!(unanswered.note(refused("53200"), at(3600)).is_none());
        assert!(unanswered.note(refused("53200"), at(3630)).is_some());
    }
}
