//! Plans and refusals in words. The planner returns facts; here is what they are called, and which option does what.
//!
//! | module | owns |
//! |---|---|
//! | [`command`] | the command line that was given, with another target |
//! | [`options`] | the options that ask for a plan again, or for a moment |
//! | [`mod@notes`], `locks` | what a person should know of a plan |
//! | [`refusals`] | why a target cannot be reached |
//! | [`hints`] | what helps then |

mod command;
mod drops;
pub(super) mod hints;
mod locks;
pub(super) mod notes;
pub(super) mod options;
mod refusals;

use walpoint_base::{Diagnostic, LineageId};
use walpoint_plan::restore::{LineageMoment, NamedPoint};

pub(crate) use self::command::CommandLine;
pub(crate) use self::notes::notes;
pub(crate) use self::refusals::{refusal, why};

/// When and where a restore point was made.
fn point(point: &NamedPoint) -> String {
    let time = point.time.map(|time| format!("{time}, ")).unwrap_or_default();
    format!("{time}at {}", point.lsn)
}

/// What damage to the facts of a lineage leaves open.
fn damaged_lineage(lineage: LineageId, what: &str) -> String {
    format!(
        "The metadata of lineage {lineage} is damaged ({}): it is unknown whether it has the target.",
        brief(what)
    )
}

/// A message without its details and hints, to stand inside a sentence.
fn brief(text: &str) -> String {
    Diagnostic::new(text).message().to_owned()
}

/// Where recovery would end in a lineage.
fn lineage_moment(moment: &LineageMoment) -> String {
    let LineageMoment { lineage, parent, timeline, until, time, .. } = moment;
    let parent = parent.map(|parent| format!(" (split off from {parent})")).unwrap_or_default();
    let time = time.map(|time| format!(", {time}")).unwrap_or_default();
    format!("{lineage}{parent} up to {until} on timeline {timeline}{time}")
}
