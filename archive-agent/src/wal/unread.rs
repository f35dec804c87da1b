//! Dropped segments that are in the repositories by their headers, and that only a daemon reads there ([`super::read_back`]).
//!
//! A command that a person waits for reads none: it takes the answer of the daemon, and reports what that leaves open.

use std::fmt;

use walpoint_base::Diagnostic;
use walpoint_base::dropped::Dropped;
use walpoint_base::socket::{HealthReply, ProblemKind};
use walpoint_runtime::args::Selection;
use walpoint_runtime::human;
use walpoint_storage::store::StoreSettings;

use super::dropped::{Gap, Look};
use crate::health::{self, ALL_TASKS, QUEUE};

/// Dropped segments of which objects were not read that may be sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unread(Gap);

impl Unread {
    pub(super) fn of(dropped: &[Dropped]) -> Option<Self> {
        Gap::of(dropped).map(Self)
    }

    /// One of one segment.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self(Gap::example())
    }

    fn count(&self) -> u64 {
        self.0.file_count as u64
    }
}

/// For the health of a daemon, which reads them: the same words until all are read.
impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "segments that were dropped were archived afterwards and not all read back yet, so recovery may be \
             unable to pass them\nDETAIL: A damaged object may be why a segment was dropped: each is read \
             once.\nHINT: Wait until they are read, or take a new backup."
        )
    }
}

impl std::error::Error for Unread {}

/// What a daemon says of dropped WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// None answers.
    None,
    /// There is no gap.
    NoGap,
    /// There is one, in these words.
    Gap(String),
    /// It cannot say, for this reason.
    Unknown(String),
}

impl Answer {
    async fn of(selection: &Selection<StoreSettings>) -> Self {
        let socket = selection.settings.push_socket(&selection.cluster);
        let asked = tokio::task::spawn_blocking(move || health::ask(&socket)).await;
        match asked {
            Ok(Ok(reply)) => Self::from_reply(&reply, selection.cluster.as_str()),
            Ok(Err(_)) | Err(_) => Self::None,
        }
    }

    fn from_reply(reply: &HealthReply, cluster: &str) -> Self {
        let mut problems = reply.problems.iter().filter(|problem| problem.cluster.as_str() == cluster);
        match problems.find(|problem| [QUEUE, ALL_TASKS].contains(&problem.task.as_str())) {
            None => Self::NoGap,
            Some(problem) if problem.kind == ProblemKind::Gap => Self::Gap(problem.text.clone()),
            Some(problem) => Self::Unknown(problem.text.clone()),
        }
    }
}

/// What a command that reads no object knows of dropped WAL.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// What recovery cannot pass, for certain or as far as the daemon knows.
    pub(crate) gap: Option<Gap>,
    /// What is not known: a message.
    pub(crate) open: Option<String>,
    /// What was archived after all as far as the daemon knows: a message.
    pub(crate) archived: Option<String>,
}

impl Look {
    /// Takes the answer of the daemon where headers show too little.
    pub(crate) async fn settle(self, selection: &Selection<StoreSettings>) -> Settled {
        match self.unread {
            Some(unread) => settle(self.gap, &unread, &Answer::of(selection).await),
            None => Settled { gap: self.gap, ..Settled::default() },
        }
    }
}

fn settle(gap: Option<Gap>, unread: &Unread, answer: &Answer) -> Settled {
    let dropped = human::count(unread.count(), "dropped segment");
    let (has, was, them) = if unread.count() == 1 { ("has", "was", "it") } else { ("have", "were", "them") };
    let why = match answer {
        Answer::NoGap => {
            let archived = format!("{dropped} {was} archived afterwards, and the daemon reports no gap");
            return Settled { gap, open: None, archived: Some(archived) };
        }
        Answer::Gap(text) | Answer::Unknown(text) => {
            format!("The daemon, which reads them, reports: {}.", Diagnostic::new(text).message())
        }
        Answer::None => "No daemon answers, which would read them.".to_owned(),
    };
    let open = format!(
        "{dropped} {has} objects in the repositories that were not read, so recovery may be unable to pass \
         {them}\nDETAIL: {why}\nHINT: \"archive-agent verify\" reads them."
    );
    let by_daemon = matches!(answer, Answer::Gap(_)).then(|| unread.0.clone());
    Settled { gap: gap.or(by_daemon), open: Some(open), archived: None }
}

#[cfg(test)]
mod tests {
    use walpoint_base::dropped::DropReason;
    use walpoint_base::socket::HealthProblem;

    use super::*;

    fn dropped(names: &[&str]) -> Vec<Dropped> {
        let one = |name: &&str| Dropped { name: name.parse().unwrap(), at: 7, reason: DropReason::QueueMax };
        names.iter().map(one).collect()
    }

    fn reply(problems: &[(&str, &str, ProblemKind)]) -> HealthReply {
        let problem = |&(cluster, task, kind): &(&str, &str, ProblemKind)| HealthProblem {
            cluster: cluster.parse().unwrap(),
            task: task.to_owned(),
            kind,
            text: "failing since noon: bad\nHINT: Look.".to_owned(),
        };
        HealthReply { problems: problems.iter().map(problem).collect() }
    }

    #[test]
    fn only_the_task_that_looks_for_dropped_wal_of_the_cluster_answers() {
        let answer = |problems: &[_]| Answer::from_reply(&reply(problems), "main");
        let text = "failing since noon: bad\nHINT: Look.".to_owned();
        assert_eq!(answer(&[]), Answer::NoGap);
        let others = [("main", "identity", ProblemKind::Gap), ("other", "queue", ProblemKind::Gap)];
        assert_eq!(answer(&others), Answer::NoGap);
        assert_eq!(answer(&[("main", "queue", ProblemKind::Gap)]), Answer::Gap(text.clone()));
        for task in ["queue", "all tasks"] {
            assert_eq!(answer(&[("main", task, ProblemKind::Other)]), Answer::Unknown(text.clone()));
        }
    }

    #[test]
    fn what_a_command_did_not_read_is_neither_a_gap_nor_none_without_a_daemon() {
        let gap = Gap::of(&dropped(&["000000010000000000000005"]));
        let two = dropped(&["000000010000000000000006", "000000010000000000000007"]);
        let unread = Unread::of(&two).unwrap();
        let not_read = "2 dropped segments have objects in the repositories that were not read";
        for gap in [None, gap.clone()] {
            let Settled { gap: shown, open, archived } = settle(gap.clone(), &unread, &Answer::None);
            assert_eq!((shown, archived), (gap.clone(), None));
            let open = open.unwrap();
            assert!(open.starts_with(not_read) && open.contains("\"archive-agent verify\""), "{open}");

            let Settled { gap: shown, open, archived } = settle(gap.clone(), &unread, &Answer::NoGap);
            assert_eq!((shown, open), (gap, None));
            let says = "2 dropped segments were archived afterwards, and the daemon reports no gap";
            assert_eq!(archived.as_deref(), Some(says));
        }

        let answer = Answer::Gap("failing since noon: bad\nHINT: Look.".to_owned());
        let settled = settle(None, &unread, &answer);
        assert_eq!(settled.gap, Gap::of(&two));
        let open = settled.open.unwrap();
        assert!(open.contains("DETAIL: The daemon, which reads them, reports: failing since noon: bad.\n"));
        assert_eq!(settle(gap.clone(), &unread, &answer).gap, gap, "it is certain");

        let settled = settle(None, &unread, &Answer::Unknown("failing".to_owned()));
        assert!(settled.gap.is_none() && settled.open.is_some());
    }
}
