//! A task of the daemon: restarted when it fails or panics, without touching the others.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use walpoint_words::format_chain;

use super::health::Health;

/// The waits between restarts grow from the first to the second.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// A task that ran this long was well: the next wait is a short one again.
const WELL: Duration = Duration::from_secs(60);

/// Runs what `start` makes until `stop`, over and over. The future is expected to end soon after `stop`, and to report its
/// own good health.
pub(crate) async fn keep_running<F>(health: &Health, stop: &CancellationToken, mut start: impl FnMut() -> F)
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut wait = WAITS.0;
    while !stop.is_cancelled() {
        let begun = tokio::time::Instant::now();
        let problem = match tokio::spawn(start()).await {
            Ok(Ok(())) if stop.is_cancelled() => return,
            Ok(Ok(())) => "it ended by itself".to_owned(),
            Ok(Err(error)) => format_chain(&error),
            Err(join) => format!("internal error: {join}"),
        };
        health.failing(&problem);
        if begun.elapsed() > WELL {
            wait = WAITS.0;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => {}
        }
        wait = (wait * 2).min(WAITS.1);
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
        let health = Arc::new(board.add("task".to_owned()));
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
        assert_eq!(board.all()["task"], TaskState::Working);
    }
}
