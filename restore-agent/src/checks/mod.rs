//! Checks of what was recovered, as a person asks for them: queries and commands, with what they have to answer.
//!
//! | module | owns |
//! |---|---|
//! | [`check_file`], [`expectation`] | the checks that a person asks for, and whether an answer is what they expect |
//! | [`run_check`] | making them |
//! | [`outcome`] | what became of a check |

mod check_file;
mod expectation;
mod outcome;
mod run_check;

pub(crate) use self::check_file::{Check, read};
pub(crate) use self::expectation::quoted;
pub(crate) use self::outcome::{CheckDocument, CheckKind, CheckOutcome, CheckResult, Outcome};
pub(crate) use self::run_check::{output, run_all};
