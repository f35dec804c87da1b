//! A task of the daemon: restarted when it fails or panics, without touching the others.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use walpoint_base::socket::ProblemKind;
use walpoint_words::format_chain;

use super::health::Health;
use crate::wal::dropped::Gap;
use crate::wal::reach::UnreachedIn;
use crate::wal::split_brain::SplitBrains;
use crate::wal::target::TargetError;

/// The waits between restarts grow from the first to the second.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// The longest wait while WAL is on record that a backup makes up for: a person who took one soon looks whether that is settled. A look
/// costs each repository that acknowledges a listing of its backups.
const GAP_WAIT: Duration = Duration::from_secs(10);

/// A task that ran this long was well: the next wait is a short one again.
const WELL: Duration = Duration::from_secs(60);

/// Runs what `start` makes until `stop`, over and over. The future is expected to end soon after `stop`, and to report its
/// own good health. It is aborted when this is dropped: what is started in its place does not run beside it.
pub(crate) async fn keep_running<F>(health: &Health, stop: &CancellationToken, mut start: impl FnMut() -> F)
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut wait = WAITS.0;
    while !stop.is_cancelled() {
        let begun = tokio::time::Instant::now();
        let mut task = JoinSet::new();
        task.spawn(start());
        let Some(ended) = task.join_next().await else { return };
        let (kind, problem, longest) = match ended {
            Ok(Ok(())) if stop.is_cancelled() => return,
            Ok(Ok(())) => (ProblemKind::Other, "it ended by itself".to_owned(), WAITS.1),
            Ok(Err(error)) => (kind_of(&error), format_chain(&error), longest_wait(&error)),
            Err(join) => (ProblemKind::Other, format!("internal error: {join}"), WAITS.1),
        };
        health.failing(kind, &problem);
        if begun.elapsed() > WELL {
            wait = WAITS.0;
        }
        tokio::select! {
            () = tokio::time::sleep(wait.min(longest)) => {}
            () = stop.cancelled() => {}
        }
        wait = (wait * 2).min(WAITS.1);
    }
}

fn longest_wait(error: &anyhow::Error) -> Duration {
    if error.chain().any(|cause| cause.is::<Gap>()) { GAP_WAIT } else { WAITS.1 }
}

/// What those who ask after a task's health tell apart.
fn kind_of(error: &anyhow::Error) -> ProblemKind {
    let split = |cause: &(dyn Error + 'static)| {
        cause.is::<SplitBrains>()
            || matches!(cause.downcast_ref::<TargetError>(), Some(TargetError::SplitBrain(_)))
    };
    let gap = |cause: &(dyn Error + 'static)| cause.is::<Gap>() || cause.is::<UnreachedIn>();
    if error.chain().any(split) {
        ProblemKind::SplitBrain
    } else if error.chain().any(gap) {
        ProblemKind::Gap
    } else {
        ProblemKind::Other
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::health::{Board, TaskState};
    use super::*;

    #[tokio::test]
    async fn errors_and_panics_are_survived() {
        let board = Board::default();
        let health = Arc::new(board.add(&"main".parse().unwrap(), "task".to_owned()));
        let stop = CancellationToken::new();
        let starts = Arc::new(AtomicUsize::new(0));
        keep_running(&health, &stop, || {
            let (n, stop, health) =
                (starts.fetch_add(1, Ordering::SeqCst), stop.clone(), Arc::clone(&health));
            async move {
                match n {
                    0 => anyhow::bail!("broken"),
                    1 => panic!("a bug"),
                    2 => Ok(()),
                    _ => {
                        health.working();
                        stop.cancel();
                        Ok(())
                    }
                }
            }
        })
        .await;
        assert_eq!(starts.load(Ordering::SeqCst), 4);
        assert_eq!(board.all().into_values().collect::<Vec<_>>(), [TaskState::Working]);
    }

    #[tokio::test]
    async fn a_panic_around_tasks_ends_them_is_reported_and_starts_all_anew() {
        let (board, stop) = (Board::default(), CancellationToken::new());
        let outer = board.add(&"main".parse().unwrap(), "tasks".to_owned());
        let (starts, running) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let (tell, told) = std::sync::mpsc::channel();
        keep_running(&outer, &stop, || {
            let (n, running) = (starts.fetch_add(1, Ordering::SeqCst), Arc::clone(&running));
            let (board, stop, tell) = (board.clone(), stop.clone(), tell.clone());
            async move {
                if n > 0 {
                    let failing =
                        board.problems().into_iter().map(|problem| problem.task).collect::<Vec<_>>();
                    tell.send((failing, Arc::strong_count(&running))).unwrap();
                    stop.cancel();
                    return Ok(());
                }
                let inner = board.add(&"main".parse().unwrap(), "inner".to_owned());
                let hangs = keep_running(&inner, &stop, || {
                    let held = Arc::clone(&running);
                    async move {
                        std::future::pending::<()>().await;
                        drop(held);
                        Ok(())
                    }
                });
                let panics = async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    panic!("a bug")
                };
                tokio::join!(hangs, panics);
                Ok(())
            }
        })
        .await;
        let (failing, held) = told.recv().unwrap();
        assert_eq!(failing, ["tasks"]);
        assert_eq!(held, 2, "the tasks from before have ended: one is held here, one by what runs now");
    }

    /// A12: a gap that a backup ended stays reported for seconds, however long it was there.
    #[tokio::test(start_paused = true)]
    async fn what_a_backup_ends_is_looked_at_soon() {
        let cases: [(fn() -> anyhow::Error, Duration); 2] =
            [(|| Gap::example().into(), GAP_WAIT), (|| anyhow::anyhow!("no network"), WAITS.1)];
        for (error, longest) in cases {
            let (board, stop) = (Board::default(), CancellationToken::new());
            let health = board.add(&"main".parse().unwrap(), "queue".to_owned());
            let starts = Arc::new(std::sync::Mutex::new(Vec::new()));
            keep_running(&health, &stop, || {
                let (starts, stop) = (Arc::clone(&starts), stop.clone());
                async move {
                    let mut starts = starts.lock().unwrap();
                    starts.push(tokio::time::Instant::now());
                    if starts.len() == 20 {
                        stop.cancel();
                        return Ok(());
                    }
                    Err(error())
                }
            })
            .await;
            let starts = starts.lock().unwrap();
            let waits = starts.windows(2).map(|two| two[1] - two[0]);
            let most = waits.max().unwrap();
            assert!(most >= longest && most < longest + Duration::from_secs(1), "{most:?}");
        }
    }

    #[test]
    fn the_kind_of_a_problem_is_that_of_its_error_whatever_the_words() {
        let split = SplitBrains::new("split brain: lineage x".into());
        let error = anyhow::Error::from(split).context("comparing");
        assert_eq!(kind_of(&error), ProblemKind::SplitBrain);
        assert_eq!(kind_of(&anyhow::anyhow!("split brain: lineage x")), ProblemKind::Other);
        let gap = UnreachedIn::of("000000010000000000000003", "000000010000000000000009");
        assert_eq!(kind_of(&anyhow::Error::from(gap).context("queue")), ProblemKind::Gap);
        assert_eq!(kind_of(&Gap::example().into()), ProblemKind::Gap);
    }
}
