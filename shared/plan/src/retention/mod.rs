//! Retention: which backups stay, and how much WAL with each of them.
//!
//! | module | owns |
//! |---|---|
//! | `policy` | what a configuration asks for |
//! | `facts` | what deciding depends on |
//! | `family` | which lineages are one cluster's lives, one after the other |
//! | `window` | which backups a recovery window needs, over lineages and the timeline graph |
//! | `decide` | a decision for each backup |
//! | `in_use` | the backups without which a lineage cannot be recovered on its newest timeline |
//! | `request` | what was asked to be deleted by name, and what protects it |
//! | `reason` | the sentences that explain it |
//!
//! All of it is pure: facts, a policy and the time in, decisions out. What always holds: of each family at least
//! [`Policy::minimum`] backups stay, the newest ones, and so many sound ones if it has them; of each lineage in use one stays that
//! leads to its newest timeline with WAL, if it has one, and one that leads to each timeline written beside that, and to each later one
//! that has a history only; a backup under a hold stays (a request by name can override each); without a policy everything stays; and as
//! time passes, what was dropped is never wanted again. Which objects go with a decision is [`crate::reach`]'s to say.

mod decide;
mod facts;
mod family;
mod in_use;
mod policy;
mod reason;
mod request;
#[cfg(test)]
mod tests;
mod window;

pub use self::decide::{CLOCK_LIMIT, Decision, RetentionVerdict, decide};
pub use self::facts::{
    Candidate, Damage, HoldFacts, RetainedLineage, RetainedTimeline, RetentionFacts, Soundness,
};
pub use self::family::{LineageStanding, RegisteredLineage, standings};
pub use self::policy::{Policy, Rule, since};
pub use self::reason::{Base, Period, RetentionReason};
pub use self::request::{DeletionRequest, Protection, protections};
