//! The question whether the daemon of `archive-push` lives, and which of its tasks fail.

use super::message::{Message, MessageInput, put_text};

/// A client asks the daemon of `archive-push` how it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthRequest;

/// The daemon answers, so it lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthReply {
    /// Which of its tasks fail, and why, a line each before its details and hints ([`crate::Diagnostic::each`]); empty if none does.
    pub problems: String,
}

impl Message for HealthRequest {
    const KIND: u8 = 5;

    fn put(&self, _: &mut Vec<u8>) {}

    fn take(_: &mut MessageInput<'_>) -> Option<Self> {
        Some(Self)
    }
}

impl Message for HealthReply {
    const KIND: u8 = 6;

    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, &self.problems);
    }

    fn take(input: &mut MessageInput<'_>) -> Option<Self> {
        Some(Self { problems: input.text()? })
    }
}
