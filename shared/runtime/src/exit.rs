//! Exit statuses, and how an error of a command is reported.

use std::fmt;
use std::process::ExitCode;

use walpoint_base::Diagnostic;

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
    /// What failed, and on what; the causes follow. Any of them may carry details and hints ([`Diagnostic`]).
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
    /// The error and its causes, as [`format_chain`] has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_chain(&self.error))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} (exit {})", self.status)
    }
}

/// An error and its causes: the messages in one line, each detail and each hint in a line of its own. A cause that only repeats what
/// is there already is left out.
pub fn format_chain(error: &anyhow::Error) -> String {
    chain(error, |cause| Diagnostic::new(cause.to_string())).to_string()
}

/// An error and its causes, each in the words of the caller. A cause that only repeats what is there already is left out.
pub fn chain(
    error: &anyhow::Error,
    words: impl Fn(&(dyn std::error::Error + 'static)) -> Diagnostic,
) -> Diagnostic {
    let mut all = Diagnostic::default();
    error.chain().for_each(|cause| all.add_cause(&words(cause)));
    all
}

/// The exit status of a command, after its error was logged. This is the one place where a command's error is reported.
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
            anyhow::anyhow!("disk full").context("could not write x: disk full").context("backup failed");
        let failure = Failure::from(error);
        assert_eq!(failure.to_string(), "backup failed: could not write x: disk full");
        assert_eq!(failure.status, FAILED);
    }

    #[test]
    fn details_and_hints_follow_the_whole_chain() {
        let missing = std::io::Error::from_raw_os_error(2);
        let error = anyhow::Error::from(missing)
            .context("could not read x\nDETAIL: It was there.\nHINT: Put it back.")
            .context(Diagnostic::new("repository \"main\"").hint("Look into it.").hint("Put it back."));
        assert_eq!(
            format_chain(&error),
            "repository \"main\": could not read x: No such file or directory (os error 2)\nDETAIL: It was there.\nHINT: Look into \
             it.\nHINT: Put it back."
        );
        assert_eq!(error.downcast_ref::<std::io::Error>().unwrap().raw_os_error(), Some(2));
    }
}
