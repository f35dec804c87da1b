//! Reachability: which objects of a cluster somebody may still need.
//!
//! | module | owns |
//! |---|---|
//! | `roots` | everything that is needed, and what that means for one object |
//!
//! Pure: what stays ([`walpoint_plan::retention`]) and what is under way go in, and each object that a listing shows is judged by
//! what it is, never by how its name sorts. What always holds: what is not known (a lineage, timeline or backup that
//! appeared meanwhile, a name that is none of ours) is needed.

mod roots;
#[cfg(test)]
mod tests;

pub use self::roots::{Class, Judgement, LineageSegments, Roots};
