//! An incomplete copy of a segment behind others that are missing: its server had finished those.

use walpoint_base::{Lsn, RecoveryTarget, SegmentNo};

use crate::restore::testing::forked::{mb, on, world};
use crate::restore::testing::world::*;
use crate::restore::{windows, *};

/// Promise 7: archiving stopped after segment 12, and what there is of segment 14 was archived after its server died. That is a gap to the
/// plan, to the windows and to the list of gaps; it ends when segment 13 is archived.
#[test]
fn what_is_missing_before_an_incomplete_copy_is_a_gap() {
    let (mut world, _) = world();
    world.files.remove(&(tli(2), SegmentNo(13)));
    world.files.remove(&(tli(2), SegmentNo(14)));
    let held = Lsn(mb(14) + SIZE / 2);
    world.partials.insert((tli(2), SegmentNo(14)), held);
    let gap = SegmentRange { timeline: tli(2), first: SegmentNo(13), last: SegmentNo(13) };
    let gaps = |world: &World| world.ask(|facts| windows::gaps(facts, tli(2)));
    let latest = |use_partial| RestoreRequest { use_partial, ..on(2, RecoveryTarget::Latest) };
    let last = Lsn(mb(12) + SIZE / 2);
    for use_partial in [false, true] {
        let refused = world.plan(&latest(use_partial)).unwrap_err();
        assert!(matches!(refused.why, Why::MissingWal { .. }), "{refused:?}");
        assert_eq!(refused.missing, [gap]);
        assert_eq!(refused.nearest[0].target, MomentTarget::Record(last), "{refused:?}");
    }
    // What is offered works. Where a transaction is looked for, too, the end of the archive is not offered as such.
    assert_eq!(world.plan(&on(2, RecoveryTarget::Lsn(last))).unwrap().until, Lsn(mb(13)));
    let refused = world.plan(&on(2, RecoveryTarget::Xid(9999))).unwrap_err();
    assert_eq!(refused.missing, [gap]);
    assert!(refused.nearest.iter().all(|moment| moment.target != MomentTarget::End), "{refused:?}");
    assert_eq!(gaps(&world), [gap]);
    let windows = world.ask(|facts| windows::of_timeline(facts, tli(2)));
    assert_eq!(windows.iter().map(|window| window.until).max(), Some(Lsn(mb(13))));

    world.files.insert((tli(2), SegmentNo(13)));
    assert_eq!(gaps(&world), []);
    assert_eq!(world.plan(&latest(true)).unwrap().until, held);
    let refused = world.plan(&latest(false)).unwrap_err();
    assert!(matches!(refused.why, Why::EndsIncomplete { .. }), "{refused:?}");
}
