//! Restore planning: which backup, which WAL, which settings bring a cluster to a moment; which moments there are.
//!
//! Planning is pure: facts and a request in, a plan or a refusal out, no IO. A planner that needs a fact it was not given
//! returns the [`Question`] instead of a result; its driver fetches the answer and calls again. Nothing here writes to a
//! repository, so a crash leaves nothing behind.
//!
//! | module | owns |
//! |---|---|
//! | [`request`] | what a person asks for |
//! | [`facts`], `question` | what is known, and the questions |
//! | [`path`] | which file serves which segment on the way to a timeline, and how far they reach |
//! | `ending` | on which timeline recovery ends, and the segment that has to be built for it |
//! | `immediate` | recovery to the end of a backup |
//! | [`planner`] | from facts to a plan or a refusal |
//! | `latest` | which timeline is the latest, and whether that is known |
//! | `lost_history` | what can be recovered on a timeline whose history is lost |
//! | `build`, `notes` | the plan, once all that it needs is found; what a person should know of it |
//! | [`note`], [`hint`] | that, and what helps where there is no plan: facts, which the programs put into words |
//! | `newest` | the newest backup that lies before the target, also where commit times go backwards |
//! | `locks` | what is locked at the target |
//! | [`mod@unreachable`], `nearest`, `remedies` | why there is no plan; what can be reached instead; what helps |
//! | `minimal` | what recovery cannot pass although all WAL is there |
//! | [`consistency`] | the WAL without which a backup does not become consistent |
//! | [`windows`] | the moments that can be recovered, and the gaps |
//! | [`stop`] | PostgreSQL's stop rules, and the decoding they need |
//! | [`settings`] | the recovery settings as data |
//! | [`mod@likely`] | what will be asked for, so that it can be read at the same time |
//! | [`created`], [`required`] | the tablespaces that replay creates; the settings that it needs |
//! | `target_files`, `points` | targets that may occur more than once: transactions and restore points |
//! | [`decide`] | what of the content of WAL decides where recovery stops |

mod build;
pub mod consistency;
pub mod created;
pub mod decide;
mod ending;
pub mod estimate;
pub mod facts;
pub mod hint;
mod immediate;
mod latest;
pub mod likely;
mod locks;
mod lost_history;
mod minimal;
mod nearest;
mod newest;
pub mod note;
mod notes;
pub mod path;
pub mod planner;
mod points;
mod question;
mod remedies;
pub mod removal;
pub mod request;
pub mod required;
pub mod restore_plan;
pub mod settings;
pub mod stop;
mod target_files;
pub mod unreachable;
pub mod windows;

pub use consistency::Consistency;
pub use created::{PlannedSegment, TablespaceSearch};
pub use estimate::{Estimate, Rates};
pub use facts::{
    Abandoned, Answer, Asking, BackupFacts, BackupState, Doubt, Extent, ExtentQuestion, Facts, NamedPoint,
    PassedQuestion, Question, StopQuestion, Unusable,
};
pub use hint::Hint;
pub use likely::{Likely, likely};
pub use note::{DamageNote, Dropped, Locked, Note, WentOn};
pub use path::{Path, SegmentRange, missing_of};
pub use planner::{Verdict, plan};
pub use removal::{Removal, RemovalQuestion, RemovalSearch, RemovedBefore, UnlockedPosition};
pub use request::{RestoreRequest, TargetAction};
pub use required::{RequiredSearch, RequiredSettings};
pub use restore_plan::{ForkSegment, ForkSource, PathStep, RestorePlan, Unfollowed};
pub use settings::{RecoverySetting, Signal, quote};
pub use stop::{
    DatabaseDrop, HeldLock, PreparedTransaction, SearchState, SegmentDecoder, Stop, StopRule, StopSearch,
};
pub use unreachable::{
    DoubtfulEnd, InLineage, LineageMoment, Moment, MomentTarget, SharingLineage, Unreachable, Why, Youngest,
};
pub use walpoint_base::CreatedTablespace;
pub use windows::Window;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
