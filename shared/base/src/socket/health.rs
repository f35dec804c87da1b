//! The question whether the daemon of `archive-push` lives, and which of its tasks fail.

use std::fmt;

use super::message::{MAX_MESSAGE, Message, MessageInput, put_text};
use crate::ClusterName;

/// No problem's text is longer in a message: one that is cut is better than one that is left out.
const LONGEST_TEXT: usize = 8 << 10;

/// A client asks the daemon of `archive-push` how it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthRequest;

/// The daemon answers, so it lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthReply {
    /// Which of its tasks fail, and why; empty if none does. Long texts are cut, and what does not fit into a message is left out.
    pub problems: Vec<HealthProblem>,
}

/// A task of the daemon that fails.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HealthProblem {
    /// Whose task it is.
    pub cluster: ClusterName,
    /// Which of the cluster's tasks.
    pub task: String,
    /// What clients tell apart.
    pub kind: ProblemKind,
    /// Since when, and why: a line, then details and hints on lines of their own ([`crate::Diagnostic`]).
    pub text: String,
}

impl fmt::Display for HealthProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.cluster, self.task, self.text)
    }
}

/// The kind of a problem.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[cfg_attr(feature = "json", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum ProblemKind {
    /// Another server's WAL is where this one's would go.
    SplitBrain,
    /// WAL is missing that recovery cannot pass, and no backup makes up for it.
    Gap,
    /// Anything else.
    Other,
}

impl Message for HealthRequest {
    const KIND: u8 = 5;

    fn put(&self, _: &mut Vec<u8>) {}

    fn take(_: &mut MessageInput<'_>) -> Option<Self> {
        Some(Self)
    }
}

impl Message for HealthReply {
    const KIND: u8 = 7;

    fn put(&self, out: &mut Vec<u8>) {
        for problem in &self.problems {
            let mut one = vec![match problem.kind {
                ProblemKind::Other => 0,
                ProblemKind::SplitBrain => 1,
                ProblemKind::Gap => 2,
            }];
            put_text(&mut one, problem.cluster.as_str());
            put_text(&mut one, &problem.task);
            put_text(&mut one, &problem.text[..problem.text.floor_char_boundary(LONGEST_TEXT)]);
            if out.len() + one.len() <= MAX_MESSAGE {
                out.extend(one);
            }
        }
    }

    fn take(input: &mut MessageInput<'_>) -> Option<Self> {
        let mut problems = Vec::new();
        while !input.is_empty() {
            let kind = match input.u8()? {
                0 => ProblemKind::Other,
                1 => ProblemKind::SplitBrain,
                2 => ProblemKind::Gap,
                _ => return None,
            };
            let cluster = input.text()?.parse().ok()?;
            problems.push(HealthProblem { cluster, kind, task: input.text()?, text: input.text()? });
        }
        Some(Self { problems })
    }
}
