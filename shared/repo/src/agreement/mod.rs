//! Whether two repositories hold one server's WAL of a lineage along a timeline path.
//!
//! Names and positions do not show it: two servers that go on from one write the same ones. So before WAL of one repository is used
//! beside that of another, they are compared here, for every use: a plan over several repositories, recovery that changes from one
//! to the other, catching up. Compared is, the cheapest first:
//!
//! | what | differs if | costs |
//! |---|---|---|
//! | the lineage's life | a lineage of that name was split off at another time | nothing: both were read |
//! | where each timeline of the path begins, as far as both know it | two servers took the same number | nothing where the catalogs are at hand, else a history each |
//! | the newest whole segment of the path that both have | its content is another one | two ranged requests at the same time |
//! | older ones, at most [`COMPARED`], while one of the two is damaged | the same | the same again for each |
//! | segments behind it of which one has an incomplete copy and the other anything | what both hold of it is not the same | the copies |
//!
//! What lies before a segment that both have is on the way to it, so nothing older needs to be compared.
//!
//! What it cannot tell: whether WAL of which the other repository has nothing is that server's. That the first segment of it continues
//! what lies before it is for the chain of records to show ([`gaps`](crate::wal::gaps)). A damaged copy that is longer than a sound one
//! is compared by its frames before the damage, and by what its header says of its records: a copy of another server that parted
//! from this one only behind the first transaction in that segment may pass.
//!
//! | module | owns |
//! |---|---|
//! | `segments` | whole segments, and incomplete copies of one segment, of two archives |
//! | `path` | all of it along the path of a plan, by what two catalogs know |

mod path;
mod segments;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use walpoint_base::{Lsn, TimelineHistory, TimelineId};

pub use self::path::{Along, along, newest_in_common};
pub use self::segments::{Around, around, incomplete, newest, of_histories, older};
use crate::lineage::Lineage;

/// How many segments are looked at until two archives have one that shows whether they agree.
pub const COMPARED: usize = 16;

/// Whether two archives of one lineage hold one server's WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Agreement {
    /// What both have is the same.
    Same,
    /// It is not: what differs, for a person.
    Different(String),
    /// Nothing shows it: why.
    Unknown(String),
}

impl Agreement {
    /// What differs, if that is shown.
    pub fn difference(self) -> Option<String> {
        match self {
            Self::Different(what) => Some(what),
            Self::Same | Self::Unknown(_) => None,
        }
    }

    /// What two comparisons of the same archives show together: a difference is one whatever else is the same.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Different(what), _) | (_, Self::Different(what)) => Self::Different(what),
            (Self::Unknown(why), _) | (_, Self::Unknown(why)) => Self::Unknown(why),
            (Self::Same, Self::Same) => Self::Same,
        }
    }
}

/// Whether a lineage of one name is one server's in two repositories, which are called so.
pub fn of_lives((one, here): (&Lineage, &str), (other, there): (&Lineage, &str)) -> Agreement {
    if one.is_same_life(other) {
        return Agreement::Same;
    }
    Agreement::Different(format!(
        "lineage {} is one server's in repository \"{here}\" and another server's in \"{there}\"",
        one.id
    ))
}

/// Where the timelines begin that have WAL of their own on the path to a timeline. A later one whose history is lost is not among
/// them: where it begins is not known.
pub fn begins_on(history: &TimelineHistory) -> BTreeMap<TimelineId, Lsn> {
    let begin = |timeline: TimelineId| {
        let begin = history.begin_of(timeline)?;
        let own = history.end_of(timeline).is_none_or(|end| end > begin);
        let known = begin.is_valid() || timeline == TimelineId::FIRST;
        (own && known).then_some((timeline, begin))
    };
    history.path().filter_map(begin).collect()
}

/// Whether each timeline begins where it does in another repository, as far as both know it.
pub fn of_begins(
    lineage: &Lineage,
    (ours, here): (&BTreeMap<TimelineId, Lsn>, &str),
    (theirs, there): (&BTreeMap<TimelineId, Lsn>, &str),
) -> Agreement {
    let both = ours.iter().filter_map(|(timeline, begin)| Some((timeline, begin, theirs.get(timeline)?)));
    match both.into_iter().find(|(_, begin, other)| begin != other) {
        None => Agreement::Same,
        Some((timeline, begin, other)) => Agreement::Different(format!(
            "timeline {timeline} of lineage {} begins at {begin} in repository \"{here}\" and at {other} in \"{there}\"",
            lineage.id
        )),
    }
}
