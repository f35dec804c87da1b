//! Whether a server has the WAL that a stream is to start with. The server refuses the others itself, in words of its language and
//! without a code that tells them apart.

use walpoint_base::{Lsn, TimelineHistory, TimelineId};

use crate::server::SystemIdentity;

/// Where a position on a timeline is, as a server sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamPlace {
    /// In WAL that the server has, or had: it may have removed it.
    Behind,
    /// On the server's path, beyond the end of its WAL: of a standby, that it is not there yet; of a primary, that another server wrote
    /// it, or that this one lost it.
    Ahead {
        /// The end of its WAL.
        end: Lsn,
    },
    /// On a timeline that the server's path leaves before.
    OnBranch {
        /// Where its path leaves that timeline.
        switch: Lsn,
    },
    /// On a timeline that its path never comes to.
    Elsewhere,
}

/// Where a position on a timeline is for a server that identifies itself like this, and whose own timeline has this history.
pub fn place(
    server: &SystemIdentity,
    history: &TimelineHistory,
    timeline: TimelineId,
    position: Lsn,
) -> StreamPlace {
    if !history.contains(timeline) {
        return StreamPlace::Elsewhere;
    }
    match history.end_of(timeline) {
        Some(switch) if position > switch => StreamPlace::OnBranch { switch },
        Some(_) => StreamPlace::Behind,
        None if timeline != server.timeline => StreamPlace::Elsewhere,
        None if position > server.position => StreamPlace::Ahead { end: server.position },
        None => StreamPlace::Behind,
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::SystemId;

    use super::*;

    fn timeline(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    #[test]
    fn a_position_is_judged_by_the_servers_path() {
        let history = TimelineHistory::parse(timeline(4), b"1\t0/3000000\tx\n3\t0/5000000\tx\n").unwrap();
        let server = SystemIdentity {
            system_id: SystemId(7),
            timeline: timeline(4),
            position: Lsn(0x700_0000),
            database: None,
        };
        let place = |id, position| place(&server, &history, timeline(id), Lsn(position));
        assert_eq!(place(1, 0x300_0000), StreamPlace::Behind, "where the next timeline begins");
        assert_eq!(place(1, 0x300_0001), StreamPlace::OnBranch { switch: Lsn(0x300_0000) });
        assert_eq!(place(2, 0x300_0000), StreamPlace::Elsewhere);
        assert_eq!(place(3, 0x400_0000), StreamPlace::Behind);
        assert_eq!(place(4, 0x700_0000), StreamPlace::Behind, "at the end of what there is");
        assert_eq!(place(4, 0x700_0001), StreamPlace::Ahead { end: Lsn(0x700_0000) });
        assert_eq!(place(5, 0x100_0000), StreamPlace::Elsewhere);
    }
}
