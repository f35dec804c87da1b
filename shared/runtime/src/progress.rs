//! Progress of anything that takes longer than a second: a bar on a terminal, nothing elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A count of bytes towards a total, shown on standard error.
#[derive(Debug, Clone)]
pub struct ByteProgress(ProgressBar);

impl ByteProgress {
    /// A bar over `total` bytes; an invisible one unless `show` is set.
    pub fn bytes(what: &str, total: u64, show: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), target(show));
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }

    /// A spinner for a wait of unknown length; an invisible one unless `show` is set.
    pub fn waiting(what: &str, show: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, target(show));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }

    /// Counts `bytes` more.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Changes what is shown before the bar.
    pub fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    /// Removes the bar from the terminal.
    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}

fn target(show: bool) -> ProgressDrawTarget {
    if show { ProgressDrawTarget::stderr_with_hz(5) } else { ProgressDrawTarget::hidden() }
}
