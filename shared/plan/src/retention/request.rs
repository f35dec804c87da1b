//! Requests to delete one backup, whatever the rules say, and what protects a backup from them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use walpoint_base::diagnostic::shown;
use walpoint_base::{BackupId, LineageId, TimelineId};

use super::facts::{Candidate, HoldFacts, RetentionFacts};
use super::family::families;
use super::in_use;

/// A request to delete a backup. It holds until the backup is deleted, or something protects it that the request does not
/// override: a hold that was placed since, or that it is the last sound backup by now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeletionRequest {
    /// The backup.
    pub backup: BackupId,
    /// Who asked.
    pub who: String,
    /// When.
    pub at: Timestamp,
    /// The numbers of the holds that it overrides.
    pub despite_holds: BTreeSet<u64>,
    /// Whether it overrides that nothing else can be restored without the backup.
    pub even_if_last: bool,
}

/// Why a backup is not deleted on request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Protection {
    /// A hold: number, reason, who, until when.
    Hold(u64, String, String, Option<Timestamp>),
    /// Its family has no other backup of which so much can be had.
    Last,
    /// A lineage that was split off behind it can only be restored from it.
    Base(LineageId),
    /// Whether a lineage that was split off is restored from it is not known.
    MaybeBase(LineageId),
    /// No other sound backup leads to a timeline in use: the newest one that a lineage in use has WAL of, one beside that, or one behind
    /// it that has a history only.
    Path(LineageId, TimelineId),
}

impl Protection {
    /// Whether a request overrides it.
    pub fn is_overridden(&self, request: &DeletionRequest) -> bool {
        match self {
            Self::Hold(number, ..) => request.despite_holds.contains(number),
            Self::Last | Self::Base(_) | Self::MaybeBase(_) | Self::Path(..) => request.even_if_last,
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hold(number, reason, who, until) => {
                let (reason, who) = (shown(reason), shown(who));
                write!(f, "hold {number} by {who} keeps it ")?;
                match until {
                    Some(until) => write!(f, "until {until}: {reason}"),
                    None => write!(f, "until it is removed: {reason}"),
                }
            }
            Self::Last => write!(f, "it is the last sound backup: without it nothing can be restored"),
            Self::Base(lineage) => {
                write!(f, "lineage {lineage}, which was split off after it, has no backup of its own")
            }
            Self::MaybeBase(lineage) => write!(
                f,
                "it is unknown whether lineage {lineage}, which was split off, needs it: the history of the timeline on which it \
                 was split off is damaged or missing"
            ),
            Self::Path(lineage, timeline) => write!(
                f,
                "no other sound backup leads to timeline {timeline}, on which lineage {lineage} may still be written: without it \
                 nothing on that timeline can be restored"
            ),
        }
    }
}

/// What protects a backup from deletion at `now`, with the backups of `gone` deleted. Nothing if it is not among the facts.
pub fn protections(
    facts: &RetentionFacts,
    id: BackupId,
    gone: &BTreeSet<BackupId>,
    now: Timestamp,
) -> Vec<Protection> {
    let Some(backup) = facts.backups.iter().find(|backup| backup.id == id) else { return Vec::new() };
    let holds = facts.holds.iter().filter(|hold| hold.keeps(backup, now));
    let of =
        |hold: &HoldFacts| Protection::Hold(hold.number, hold.reason.clone(), hold.who.clone(), hold.until);
    let mut found: Vec<Protection> = holds.map(of).collect();
    let families = families(&facts.lives);
    let family = |backup: &Candidate| families.get(&backup.lineage).copied().unwrap_or(backup.lineage);
    let others = facts.backups.iter().filter(|other| other.id != id && !gone.contains(&other.id));
    let beside: Vec<&Candidate> = others.filter(|other| family(other) == family(backup)).collect();
    if beside.iter().all(|other| other.soundness() < backup.soundness()) {
        found.push(Protection::Last);
    } else {
        let paths = in_use::reached_only_from(facts, backup, gone);
        found.extend(paths.map(|(lineage, timeline)| Protection::Path(lineage, timeline)));
    }
    found.extend(in_use::begin_with(facts, id).map(Protection::Base));
    found.extend(in_use::may_begin_with(facts, id).map(Protection::MaybeBase));
    found
}

/// The requests that nothing stands against, the oldest first heard.
pub(super) fn granted(facts: &RetentionFacts, now: Timestamp) -> BTreeMap<BackupId, &DeletionRequest> {
    let mut requests: Vec<&DeletionRequest> = facts.requests.iter().collect();
    requests.sort_by_key(|request| request.at);
    let (mut granted, mut gone) = (BTreeMap::new(), BTreeSet::new());
    for request in requests {
        let protections = protections(facts, request.backup, &gone, now);
        if protections.iter().all(|protection| protection.is_overridden(request)) {
            gone.insert(request.backup);
            granted.insert(request.backup, request);
        }
    }
    granted
}
