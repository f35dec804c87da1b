//! Valid though odd, ended early, damaged: each told from the others.

mod ended;
mod stops;

use proptest::prelude::*;
use walpoint_base::crossing::Crossing;
use walpoint_base::{Lsn, PgTimestamp, SegmentFacts, SegmentName, TimelineHistory, TimelineId};

use super::fixtures::{BLOCK, FIRST, WalFixture};
use super::*;

fn only(fixture: &WalFixture) -> (SegmentName, Vec<u8>) {
    fixture.segments().swap_remove(0)
}

fn facts(fixture: &WalFixture) -> Vec<SegmentFacts> {
    fixture.segments().iter().map(|(name, content)| inspect(*name, content).unwrap()).collect()
}

fn full(major: u32) -> WalFixture {
    let mut fixture = WalFixture::new(major, 1);
    fixture.commit(100, 1000);
    fixture.restore_point("before", 1100);
    fixture.abort(101, 900);
    fixture.commit_prepared(99, 1200);
    fixture.fill_segment_but(24);
    fixture.filler(200);
    fixture
}

#[test]
fn a_full_segment_states_its_facts() {
    for major in 13..=19 {
        let fixture = full(major);
        let found = facts(&fixture);
        let first = &found[0];
        assert_eq!((u32::from(first.major.get()), first.system_id.0), (major, fixtures::SYSTEM_ID));
        assert_eq!(first.first_record, Some(fixture.start() + FIRST));
        assert!(first.whole && !first.switched);
        assert_eq!(first.last_record, Some(fixture.start() + (1 << 20) - 24));
        assert_eq!(first.end, fixture.start() + (1 << 20) - 24, "the last record ends in the next segment");
        let range = first.transactions.unwrap();
        assert_eq!((range.count, range.earliest, range.latest), (3, PgTimestamp(900), PgTimestamp(1200)));
        assert_eq!((range.lowest_xid, range.highest_xid), (99, 101));
        let point = &first.restore_points[0];
        assert_eq!((point.name.as_str(), point.time), ("before", PgTimestamp(1100)));
        assert_eq!(point.end.0 % 8, 0);
        let second = &found[1];
        assert_eq!((second.records, second.first_record, second.whole), (0, None, false), "zeros follow");
        assert_eq!(second.end, second.name.number(second.size).unwrap().start(second.size) + FIRST + 176);
    }
}

#[test]
fn every_split_of_a_record_between_segments_is_read() {
    for left in (0..=152).step_by(8) {
        let mut fixture = WalFixture::new(16, 1);
        fixture.fill_segment_but(left);
        fixture.commit_prepared(4242, 5);
        fixture.restore_point("split", 6);
        fixture.fill_segment_but(0);
        let segments = fixture.segments();
        assert!(facts(&fixture).iter().take(2).all(|facts| facts.whole), "{left}");
        let mut reader = RecordReader::new();
        let mut kinds = Vec::new();
        for (name, content) in &segments {
            let records = reader.segment(*name, content).unwrap();
            kinds
                .extend(records.map(|record| record.unwrap().kind).filter(|kind| *kind != RecordKind::Other));
        }
        let (xid, time) = (4242, PgTimestamp(5));
        let end = TransactionEnd { xid, time, prepared: true, subtransactions: Vec::new(), removes: false };
        let point = RecordKind::RestorePoint { name: "split".to_owned(), time: PgTimestamp(6) };
        assert_eq!(kinds, [RecordKind::Commit(end), point], "{left}");
    }
}

#[test]
fn a_record_that_may_end_a_transaction_in_the_next_segment_is_flagged() {
    let open = |left: usize, last: &dyn Fn(&mut WalFixture) -> Lsn| {
        let mut fixture = WalFixture::new(16, 1);
        fixture.fill_segment_but(left);
        last(&mut fixture);
        facts(&fixture)[0].crossing.open.is_some()
    };
    for left in [8, 16, 24, 32] {
        assert!(open(left, &|fixture| fixture.commit(7, 7)), "{left}");
        assert!(open(left, &|fixture| fixture.restore_point("p", 7)), "{left}");
        assert_eq!(
            open(left, &|fixture| fixture.filler(64)),
            left < 24,
            "{left}: unreadable headers may be anything"
        );
    }
    assert!(!open(64, &|fixture| fixture.commit(7, 7)), "it ends here");
}

#[test]
fn both_pieces_of_a_crossing_record_say_what_it_is() {
    let end = |xid| Crossing::End { time: PgTimestamp(-5_000), xid: Some(xid) };
    for left in (8..=64).step_by(8) {
        let crossing = |last: &dyn Fn(&mut WalFixture) -> Lsn| {
            let mut fixture = WalFixture::new(16, 1);
            fixture.fill_segment_but(left);
            last(&mut fixture);
            fixture.filler(64);
            let found = facts(&fixture);
            found.get(1).map(|next| {
                let open = found[0].crossing.open.as_ref();
                Crossing::between(open, &next.crossing, &next.chain.begin)
            })
        };
        let commit = crossing(&|fixture| fixture.commit(7, -5_000));
        assert_eq!(commit, Some(if left < 40 { end(7) } else { Crossing::Nothing }), "{left}");
        let abort = crossing(&|fixture| fixture.abort(8, -5_000));
        assert_eq!(abort, commit.map(|c| if c == end(7) { end(8) } else { c }), "{left}");
        let prepared = crossing(&|fixture| fixture.commit_prepared(9, -5_000));
        assert_eq!(prepared, Some(if left < 48 { end(9) } else { Crossing::Nothing }), "{left}");
        let with_more = crossing(&|fixture| fixture.commit_with(10, 11, -5_000));
        assert_eq!(with_more, Some(if left < 48 { end(10) } else { Crossing::Nothing }), "{left}");
        let point = crossing(&|fixture| fixture.restore_point("p", 7)).unwrap();
        assert!(point.may_be_named("p") && !point.may_be_named("q"), "{left} {point:?}");
        let filler = crossing(&|fixture| fixture.filler(200));
        assert_eq!(filler, Some(Crossing::Nothing), "{left}");
    }
}

#[test]
fn a_record_over_three_segments_leaves_one_without_a_start() {
    let mut fixture = WalFixture::new(17, 1);
    fixture.fill_segment_but(64);
    fixture.filler(2_000_000);
    fixture.switch();
    let found = facts(&fixture);
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|facts| facts.whole));
    assert_eq!((found[1].records, found[1].first_record, found[1].last_record), (0, None, None));
    assert_eq!(found[1].end, found[0].end + 64, "no record ends in it: its start");
    assert!(found[2].switched && found[2].content_len < 1 << 20);
}

#[test]
fn a_switch_may_begin_in_the_segment_before() {
    for left in [8, 16, 24, 32] {
        let mut fixture = WalFixture::new(14, 1);
        fixture.fill_segment_but(left);
        fixture.switch();
        let found = facts(&fixture);
        assert_eq!(found.len(), if left < 24 { 2 } else { 1 });
        assert!(found.iter().all(|facts| facts.whole), "{left}");
        assert!(found.last().unwrap().switched, "{left}");
    }
}

#[test]
fn a_broken_record_and_the_page_in_its_place_are_valid() {
    for (before, boundaries) in [(0, 1), (0, 2), (8, 1), (16, 1), (4096, 1), (8000, 1)] {
        let mut fixture = WalFixture::new(15, 1);
        fixture.commit(3, 3);
        if before > 0 {
            let at = usize::try_from(fixture.position().0).unwrap() % BLOCK;
            fixture.filler(BLOCK - at - before);
        }
        let broken = fixture.abandon(3 * BLOCK, boundaries);
        fixture.commit(4, 4);
        fixture.fill_segment_but(0);
        let found = &facts(&fixture)[0];
        assert!(found.whole);
        assert_eq!(found.transactions.unwrap().count, 2);
        let (name, content) = only(&fixture);
        let records: Vec<_> =
            RecordReader::new().segment(name, &content).unwrap().collect::<Result<_, _>>().unwrap();
        assert!(records.iter().all(|record| record.start != broken));
        let overwrite = RecordKind::OverwriteContrecord { overwritten: broken, time: PgTimestamp(77) };
        assert!(records.iter().any(|record| record.kind == overwrite));
    }
}

#[test]
fn a_record_may_be_broken_off_at_the_end_of_a_segment() {
    for major in [18, 19] {
        let mut fixture = WalFixture::new(major, 1);
        fixture.fill_segment_but(4096);
        fixture.abandon(BLOCK, 0);
        fixture.fill_segment_but(0);
        assert!(facts(&fixture).iter().all(|facts| facts.whole));
        let mut reader = RecordReader::new();
        for (name, content) in fixture.segments() {
            assert!(reader.segment(name, &content).unwrap().all(|record| record.is_ok()));
        }
    }
}

#[test]
fn a_new_timeline_begins_with_pages_of_its_parent() {
    let mut fixture = WalFixture::new(16, 1);
    fixture.filler(3 * BLOCK);
    let switch = fixture.position();
    fixture.timeline = 3;
    fixture.fill_segment_but(0);
    let (name, content) = only(&fixture);
    assert_eq!(name.timeline.get(), 3);
    let found = inspect(name, &content).unwrap();
    assert_eq!((found.first_page_timeline.get(), found.whole), (1, true));

    let history = |at: Lsn| TimelineHistory::parse(name.timeline, format!("1\t{at}\tx").as_bytes()).unwrap();
    assert_eq!(inspect_on_path(name, &content, &history(switch)), Ok(found));
    let elsewhere = inspect_on_path(name, &content, &history(switch + 2 * BLOCK as u64));
    assert!(matches!(elsewhere, Err(WalError::WrongTimeline { found: 3, expected: 1, .. })), "{elsewhere:?}");

    let as_parent = SegmentName { timeline: TimelineId::new(2).unwrap(), ..name };
    let refused = inspect(as_parent, &content);
    assert!(matches!(refused, Err(WalError::WrongTimeline { found: 3, expected: 2, .. })), "{refused:?}");
}

#[test]
fn the_wrong_file_is_refused_with_the_reason() {
    let fixture = full(17);
    let (name, content) = only(&fixture);
    let text = |name, content: &[u8]| inspect(name, content).unwrap_err().to_string();
    assert!(text(name, &[]).contains("it is empty"));
    assert!(text(name, &vec![0; 1 << 20]).contains("all its bytes are zero"));
    assert!(text(name, &[7; 5000]).contains("does not start with the header"));
    assert!(text(name, &content[..1 << 19]).contains("524288 bytes instead of 1048576"));
    assert!(text(name, &[&content[..], &[0]].concat()).contains("instead of 1048576"));
    let other = SegmentName { segment: name.segment + 1, ..name };
    assert!(text(other, &content).contains("holds the WAL of another segment, from 0/500000 on"));
    let mut newer = content.clone();
    newer[0] = 0x19;
    assert!(text(name, &newer).contains("unknown version"));

    let found = inspect(name, &content).unwrap();
    let ours = WalIdentity { system_id: found.system_id, major: found.major, segment_size: found.size };
    assert_eq!(ours.check(&found), Ok(()));
    for other in [
        WalIdentity { system_id: walpoint_base::SystemId(1), ..ours },
        WalIdentity { major: walpoint_base::PgMajor::new(13).unwrap(), ..ours },
        WalIdentity { segment_size: walpoint_base::SegmentSize::DEFAULT, ..ours },
    ] {
        assert!(other.check(&found).unwrap_err().to_string().contains("not from this cluster"));
    }
}

#[test]
fn segments_must_follow_each_other() {
    let mut fixture = full(16);
    fixture.fill_segment_but(0);
    fixture.filler(100);
    let segments = fixture.segments();
    let mut reader = RecordReader::new();
    assert!(reader.segment(segments[0].0, &segments[0].1).unwrap().all(|record| record.is_ok()));
    let gap = reader.segment(segments[2].0, &segments[2].1).err();
    assert!(matches!(gap, Some(WalError::NotConsecutive { .. })));

    let mut other = WalFixture::new(16, 1);
    other.fill_segment_but(0);
    other.filler(100);
    let foreign = &other.segments()[1];
    let results: Vec<_> = reader.segment(foreign.0, &foreign.1).unwrap().collect();
    assert!(
        matches!(results[..], [Err(WalError::Damaged { .. })]),
        "its first page does not go on: {results:?}"
    );
}

#[test]
fn fewer_or_more_bytes_than_the_length_says_are_refused() {
    let (name, content) = only(&full(16));
    let fed = |pieces: &[&[u8]]| {
        let mut inspector = Inspector::new(name, content.len() as u64, None);
        pieces.iter().try_for_each(|piece| inspector.feed(piece))?;
        inspector.finish()
    };
    assert!(fed(&[&content]).is_ok());
    for pieces in [&[&content[..BLOCK]][..], &[&content, &[0]], &[&content[..3]], &[&[0; 100]], &[]] {
        assert!(matches!(fed(pieces), Err(WalError::WrongLength { .. } | WalError::NotWal { .. })));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn mutated_segments_give_facts_or_errors(
        major in 13u32..=19,
        edits in proptest::collection::vec((0usize..(1 << 20), any::<u8>()), 1..8),
        cut in proptest::option::of(0usize..=(1 << 20)),
    ) {
        let (name, mut content) = only(&full(major));
        for (at, byte) in edits {
            // Half of the edits go to the headers at the start of pages, where they matter most.
            let at = if byte % 2 == 0 { at - at % BLOCK + at % 40 } else { at };
            content[at] = byte;
        }
        content.truncate(cut.unwrap_or(content.len()));
        let facts = inspect(name, &content);
        if let Ok(facts) = &facts {
            prop_assert!(facts.end.0 - (5 << 20) <= 1 << 20);
            prop_assert!(facts.content_len <= 1 << 20);
        }
        let mut reader = RecordReader::new();
        let read = match reader.segment(name, &content) {
            Ok(records) => records.filter(|record| record.is_ok()).count(),
            Err(_) => 0,
        };
        if let Ok(facts) = facts {
            prop_assert!(facts.records as usize - read <= 1, "all but an unfinished one");
        }
    }

    #[test]
    fn random_bytes_are_refused(mut content in proptest::collection::vec(any::<u8>(), 0..20_000), header: bool) {
        let (name, good) = only(&full(16));
        if header && content.len() > 40 {
            content[..40].copy_from_slice(&good[..40]);
            content.resize(1 << 20, 0);
        }
        let _result = inspect(name, &content);
    }

    #[test]
    fn it_does_not_matter_in_which_pieces_a_segment_comes(
        edits in proptest::collection::vec((0usize..(1 << 20), any::<u8>()), 0..6),
        tail in proptest::option::of(0usize..(1 << 20)),
        cuts in proptest::collection::vec(1usize..40_000, 1..60),
        cut in proptest::option::weighted(0.1, 0usize..20_000),
    ) {
        let (name, mut content) = only(&full(17));
        if let Some(tail) = tail {
            content[tail..].fill(0);
        }
        for (at, byte) in edits {
            let at = if byte % 2 == 0 { at - at % BLOCK + at % 40 } else { at };
            content[at] = byte;
        }
        content.truncate(cut.unwrap_or(content.len()));
        let mut inspector = Inspector::new(name, content.len() as u64, None);
        let mut rest = content.as_slice();
        let mut fed = Ok(());
        for cut in cuts.iter().cycle() {
            let (piece, behind) = rest.split_at(rest.len().min(*cut));
            rest = behind;
            fed = inspector.feed(piece);
            if fed.is_err() || rest.is_empty() {
                break;
            }
        }
        let in_pieces = fed.and_then(|()| inspector.finish());
        prop_assert_eq!(in_pieces, inspect(name, &content));
    }
}

/// However many restore points a segment has, a bounded number is in memory, and all can be had.
#[test]
fn the_first_of_masses_of_restore_points_are_kept_and_all_can_be_taken() {
    const ALL: usize = 9500;
    let mut fixture = WalFixture::new(17, 1);
    for n in 0..ALL {
        fixture.restore_point(&format!("point {n}"), 0);
    }
    fixture.switch();
    let (name, content) = fixture.segments().remove(0);
    let found = inspect(name, &content).unwrap();
    let kept = found.restore_points.len();
    assert_eq!((kept, found.further_points as usize), (SegmentFacts::POINTS, ALL - SegmentFacts::POINTS));
    let mut inspector = Inspector::new(name, content.len() as u64, None);
    let mut taken = Vec::new();
    for piece in content.chunks(64 << 10) {
        inspector.feed(piece).unwrap();
        taken.extend(inspector.take_points());
    }
    assert_eq!(taken.len(), ALL);
    assert_eq!(taken[..kept], found.restore_points);
    assert_eq!(taken[ALL - 1].name, format!("point {}", ALL - 1));
    let rest = inspector.finish().unwrap();
    assert_eq!((rest.restore_points.len(), rest.further_points), (0, 0));
}
