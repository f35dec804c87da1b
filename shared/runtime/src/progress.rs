//! Progress of anything that takes longer than a second: a bar on a terminal, nothing elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A count of bytes towards a total, shown on standard error.
#[derive(Debug, Clone)]
pub struct Progress(ProgressBar);

impl Progress {
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

/// Bytes for a person: `12.3 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A span for a person: `1.8 s`, `2 min 05 s`, `3 h 12 min`.
pub fn human_duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", span.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_for_a_person() {
        assert_eq!(human_bytes(3 << 20), "3.00 MiB");
        assert_eq!(human_duration(Duration::from_millis(1840)), "1.8 s");
        assert_eq!(human_duration(Duration::from_secs(125)), "2 min 05 s");
        assert_eq!(human_duration(Duration::from_secs(11_525)), "3 h 12 min");
    }
}
