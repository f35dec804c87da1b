//! Exit statuses, and how an error is told to a person.

use std::fmt;
use std::process::ExitCode;

/// It was done.
pub const DONE: u8 = 0;
/// It failed.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub const USAGE: u8 = 2;
/// `verify` or `check` found something.
pub const FINDINGS: u8 = 3;

/// An error and the status that the process ends with.
pub struct Failure {
    /// The exit status.
    pub status: u8,
    /// What failed, on what, what it means, and what to do; the causes follow.
    pub error: anyhow::Error,
}

impl Failure {
    /// The command line or the configuration is wrong.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { status: USAGE, error: error.into() }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { status: FAILED, error: error.into() }
    }
}

impl fmt::Display for Failure {
    /// The error and its causes in one line. A cause that only repeats what was said is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&told(&self.error))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} (exit {})", self.status)
    }
}

/// An error and its causes in one line. A cause that only repeats what was said is left out.
pub fn told(error: &anyhow::Error) -> String {
    chain(error, |cause| cause.to_string())
}

/// An error and its causes in one line, each in the words of the caller. A cause that only repeats what was said is left out.
pub fn chain(error: &anyhow::Error, words: impl Fn(&(dyn std::error::Error + 'static)) -> String) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = words(cause);
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

/// The exit status of a command, after its error was logged. This is the one place where a command's error is told.
pub fn report(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(DONE),
        Err(failure) => {
            tracing::error!("{failure}");
            ExitCode::from(failure.status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_without_repetition() {
        let error =
            anyhow::anyhow!("disk full").context("cannot write x: disk full").context("backup failed");
        let failure = Failure::from(error);
        assert_eq!(failure.to_string(), "backup failed: cannot write x: disk full");
        assert_eq!(failure.status, FAILED);
    }
}
