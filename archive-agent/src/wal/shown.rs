//! Which of several lineages the WAL of a data directory belongs to, by what lies in both.

use walpoint_base::{LineageId, Lsn};

#[derive(Debug, Clone, Copy)]
pub(super) struct SeenLineage {
    pub(super) id: LineageId,
    /// From here on its WAL is no other server's: 0 for one that was not split off; `None` if that is not known.
    pub(super) own: Option<Lsn>,
    /// Whether it holds something else than the directory. What was split off before that is another server's.
    pub(super) contradicted: bool,
    /// Where the newest segment begins that is the same in both.
    pub(super) same: Option<Lsn>,
}

impl SeenLineage {
    /// Whether the WAL shows that it belongs to this one and not to another one: what both servers had before they parted may be
    /// stored in either. One that is contradicted is out, however far its server had come when it parted; that does not make another
    /// one's own of what two servers had in common.
    fn is_shown_beside(&self, other: &Self) -> bool {
        let Some(same) = self.same else { return false };
        match (self.own, other.own) {
            (Some(own), Some(_)) if other.contradicted => same >= own,
            (Some(own), Some(others)) => same >= own.max(others),
            // Of a lineage whose fork is not known nothing before it is stored.
            _ => other.contradicted,
        }
    }
}

/// The only lineage that is not contradicted and is shown beside all others.
pub(super) fn shown(all: &[SeenLineage]) -> Option<LineageId> {
    let is_shown = |one: &&SeenLineage| {
        let mut others = all.iter().filter(|other| other.id != one.id);
        !one.contradicted && one.same.is_some() && others.all(|other| one.is_shown_beside(other))
    };
    let shown: Vec<&SeenLineage> = all.iter().filter(is_shown).collect();
    if let [only] = shown[..] { Some(only.id) } else { None }
}

#[cfg(test)]
mod tests {
    use walpoint_base::SystemId;

    use super::*;

    const FIRST: Option<u64> = Some(0);

    fn seen(n: u32, own: Option<u64>, contradicted: bool, same: Option<u64>) -> SeenLineage {
        let id = LineageId { system_id: SystemId(7), n };
        SeenLineage { id, own: own.map(Lsn), contradicted, same: same.map(Lsn) }
    }

    fn chosen(all: &[SeenLineage]) -> Option<u32> {
        shown(all).map(|id| id.n)
    }

    #[test]
    fn what_is_left_when_the_others_are_contradicted_is_the_directorys() {
        // The copy had come to 0x2800000 when it got a lineage of its own, and production to 0xD00000.
        let copys = seen(2, Some(0x280_0000), true, Some(0x80_0000));
        assert_eq!(chosen(&[seen(1, FIRST, false, Some(0xC0_0000)), copys]), Some(1));
        // As soon as nothing contradicts it, both are possible.
        let copys = SeenLineage { contradicted: false, ..copys };
        assert_eq!(chosen(&[seen(1, FIRST, false, Some(0xC0_0000)), copys]), None);
        assert_eq!(chosen(&[seen(1, FIRST, false, Some(0x280_0000)), copys]), Some(1));
        // A third one is another's until it is contradicted too.
        let two = [seen(1, FIRST, false, Some(0xC0_0000)), seen(2, Some(0x280_0000), true, None)];
        let third = seen(3, Some(0x300_0000), false, None);
        assert_eq!(chosen(&[two[0], two[1], third]), None);
        assert_eq!(chosen(&[two[0], two[1], SeenLineage { contradicted: true, ..third }]), Some(1));
    }

    #[test]
    fn what_two_servers_have_in_common_shows_neither() {
        // A third server, which the first one's lineage contradicts.
        let first = seen(1, FIRST, true, Some(0x80_0000));
        assert_eq!(chosen(&[first, seen(2, Some(0x100_0000), false, Some(0x80_0000))]), None);
        assert_eq!(chosen(&[first, seen(2, Some(0x100_0000), false, Some(0x100_0000))]), Some(2));
        assert_eq!(chosen(&[first, seen(2, Some(0x100_0000), false, None)]), None);
        // Nothing in common, or everything contradicted.
        assert_eq!(chosen(&[seen(1, FIRST, false, None), seen(2, Some(0x100_0000), true, None)]), None);
        assert_eq!(chosen(&[first, seen(2, Some(0x100_0000), true, Some(0x80_0000))]), None);
    }

    #[test]
    fn of_a_lineage_with_an_unknown_fork_only_content_tells() {
        let unknown = |contradicted| seen(2, None, contradicted, None);
        assert_eq!(chosen(&[seen(1, FIRST, false, Some(1)), unknown(false)]), None);
        assert_eq!(chosen(&[seen(1, FIRST, false, Some(1)), unknown(true)]), Some(1));
        assert_eq!(chosen(&[seen(1, FIRST, true, None), seen(2, None, false, Some(1))]), Some(2));
    }
}
