//! How a server is judged that has arrived: at the target, or where it stopped by itself. No IO here.

use anyhow::anyhow;
use walpoint_runtime::human;

use super::document::{ServerState, Verdict};
use crate::server::Reached;

/// A server that has arrived, and what its checks found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival<'a> {
    pub(super) state: ServerState,
    /// Whether it was to pause at the target.
    pub(super) pauses: bool,
    pub(super) reached: &'a Reached,
    /// How many checks were made, and how many of them failed.
    pub(super) checks: (usize, usize),
    pub(super) is_interrupted: bool,
}

impl Arrival<'_> {
    /// Whether the moment is the right one, if checks say so.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        match (self.reached, self.checks) {
            (Reached::Elsewhere(_), _) | (_, (0, _)) => None,
            (Reached::Target, (_, 0)) => Some(Verdict::Right),
            (Reached::Target, _) => Some(Verdict::NotRight),
        }
    }

    /// Whether recovery is paused where it may end. Where settings are too low, a server that is resumed shuts down.
    pub(super) fn may_be_accepted(&self) -> bool {
        self.state == ServerState::Paused && *self.reached == Reached::Target
    }

    /// What is wrong with it.
    pub(super) fn problem(&self) -> Option<anyhow::Error> {
        if let Reached::Elsewhere(where_it_ended) = self.reached {
            let settings = match self.state {
                ServerState::Paused => {
                    " If a setting is too low, set it in postgresql.auto.conf and restart the server: recovery continues."
                }
                _ => "",
            };
            return Some(anyhow!(
                "the cluster was restored, and its recovery has not reached the target: {where_it_ended}\nDETAIL: The server is left as \
                 it is, and no check was made.\nHINT: Its log says why.{settings}"
            ));
        }
        if self.pauses && self.state == ServerState::Promoted {
            return Some(self.promoted());
        }
        if self.is_interrupted {
            return Some(anyhow!(
                "interrupted: the checks were not made\nDETAIL: The server is left as it is."
            ));
        }
        let (_, failed) = self.checks;
        (failed > 0).then(|| {
            anyhow!(
                "the cluster was restored, and {} failed: the moment is not right\nDETAIL: The server is left as it is.",
                human::count(failed as u64, "check")
            )
        })
    }

    /// PostgreSQL pauses only where sessions could resume it (`recoveryPausesHere`): not before the data is consistent, nor while a snapshot
    /// is pending because a transaction has too many subtransactions.
    fn promoted(&self) -> anyhow::Error {
        let failed = match self.checks {
            (_, 0) => String::new(),
            (_, failed) => format!("\nDETAIL: {} failed there.", human::count(failed as u64, "check")),
        };
        anyhow!(
            "the cluster was restored, and its server did not pause at the target: it was promoted there{failed}\nDETAIL: PostgreSQL does \
             not pause at a target that it reaches before it takes sessions. The server accepts writes.\nHINT: If the moment is right, you \
             can use the server as it is. Otherwise stop it, and restore another moment."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_target(state: ServerState, pauses: bool) -> Arrival<'static> {
        Arrival { state, pauses, reached: &Reached::Target, checks: (0, 0), is_interrupted: false }
    }

    #[test]
    fn a_promotion_is_a_problem_where_a_pause_was_asked_for() {
        for (state, pauses, is_problem) in [
            (ServerState::Paused, true, false),
            (ServerState::Promoted, false, false),
            (ServerState::Standby, false, false),
            (ServerState::Promoted, true, true),
        ] {
            let problem = at_target(state, pauses).problem().map(|error| error.to_string());
            assert_eq!(problem.is_some(), is_problem, "{state:?} {pauses}");
            assert!(problem.is_none_or(|text| text.contains("did not pause at the target")), "{state:?}");
        }
        let failed = Arrival { checks: (3, 2), ..at_target(ServerState::Promoted, true) };
        assert!(failed.problem().unwrap().to_string().contains("DETAIL: 2 checks failed there."));
        let failed = Arrival { checks: (3, 2), ..at_target(ServerState::Paused, true) };
        assert!(failed.problem().unwrap().to_string().contains("2 checks failed: the moment is not right"));
    }

    #[test]
    fn only_the_target_is_judged_and_accepted() {
        let elsewhere = Reached::Elsewhere("recovery ended at 0/3000000".to_owned());
        for (state, may_be_accepted) in [(ServerState::Paused, true), (ServerState::Promoted, false)] {
            for (checks, verdict) in
                [((0, 0), None), ((2, 0), Some(Verdict::Right)), ((2, 1), Some(Verdict::NotRight))]
            {
                let there = Arrival { checks, ..at_target(state, false) };
                assert_eq!((there.verdict(), there.may_be_accepted()), (verdict, may_be_accepted));
                let away = Arrival { reached: &elsewhere, ..there };
                assert_eq!((away.verdict(), away.may_be_accepted()), (None, false));
                let problem = away.problem().unwrap().to_string();
                assert!(problem.contains("has not reached the target: recovery ended at"), "{problem}");
                assert_eq!(problem.contains("recovery continues"), may_be_accepted, "{problem}");
            }
        }
    }
}
