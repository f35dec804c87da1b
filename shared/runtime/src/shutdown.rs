//! Signals and the service manager: SIGTERM and SIGINT drain, SIGHUP reloads.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by SIGTERM or SIGINT. A second signal ends the process at once, as if there were no handler.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
        tracing::info!("{name}: finishing the work in progress; send it again to stop immediately");
        cancelled.cancel();
        let number = tokio::select! { _ = terminate.recv() => 15, _ = interrupt.recv() => 2 };
        abandon(number);
    });
    Ok(token)
}

#[allow(clippy::disallowed_methods, reason = "a person asked twice: nothing may delay the end")]
fn abandon(signal: i32) {
    std::process::exit(128 + signal);
}

/// SIGHUP, as a stream of requests to reload.
pub fn reloads() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Tells the service manager that the daemon is ready.
pub fn notify_ready() {
    notify(&[sd_notify::NotifyState::Ready]);
}

/// Tells the service manager that the daemon is reloading, and then that it has.
pub fn notify_reloaded() {
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let usec = i128::from(since.tv_sec) * 1_000_000 + i128::from(since.tv_nsec) / 1000;
    notify(&[sd_notify::NotifyState::Reloading, sd_notify::NotifyState::MonotonicUsec(usec)]);
    notify(&[sd_notify::NotifyState::Ready]);
}

/// Tells the service manager that the daemon is draining.
pub fn notify_stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

/// Tells the service manager now and then that the daemon lives, if it wants to know (`WatchdogSec=`); else it ends at once.
/// Runs among the daemon's other tasks, so a daemon whose tasks do not get their turn is silent.
pub async fn watchdog() {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    loop {
        notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(within / 3).await;
    }
}

/// Without a service manager there is nobody to tell; with one that does not listen there is nothing to do.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager was not notified: {error}");
    }
}
