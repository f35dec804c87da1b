//! The chain over real layouts of records: nothing valid breaks it, and another server's segment does.

use proptest::prelude::*;
use walpoint_base::chain::{Break, ChainEnd, Link};
use walpoint_base::facts::SegmentMarks;
use walpoint_base::{Lsn, SegmentFacts};

use super::fixtures::{BLOCK, WalFixture};
use super::*;

fn facts(fixture: &WalFixture) -> Vec<SegmentFacts> {
    fixture.segments().iter().map(|(name, content)| inspect(*name, content).unwrap()).collect()
}

/// The first link that is none, in the order of the segments.
fn broken(facts: &[SegmentFacts]) -> Option<(usize, Link)> {
    let mut end = ChainEnd::UNKNOWN;
    for (at, facts) in facts.iter().enumerate() {
        match end.link(&facts.chain) {
            Link::Continues => end = end.after(&facts.chain),
            link => return Some((at, link)),
        }
    }
    None
}

/// Whether the check of the record that crosses the first boundary was known on both sides.
fn was_compared(facts: &[SegmentFacts]) -> bool {
    facts[0].chain.end.due.is_some() && facts[1].chain.begin.rest.is_some()
}

#[test]
fn every_split_of_a_record_continues_and_no_other_rest_does() {
    for left in (8..=48).step_by(8) {
        let with = |xid: u32| {
            let mut fixture = WalFixture::new(16, 1);
            fixture.fill_segment_but(left);
            fixture.record(10, 0, xid, &[u8::try_from(xid % 251).unwrap(); 30]);
            fixture.filler(200);
            fixture.fill_segment_but(0);
            fixture.filler(40);
            facts(&fixture)
        };
        let (ours, theirs) = (with(4242), with(4243));
        assert_eq!(broken(&ours), None, "{left}");
        assert!(was_compared(&ours), "{left}");
        // The same lengths and pointers: only the check of the crossing record tells one from the other.
        let mixed = [ours[0].clone(), theirs[1].clone()];
        let expected = Link::Broken(Break::Content { record: ours[0].last_record });
        assert_eq!(broken(&mixed), Some((1, expected)), "{left}");
    }
}

#[test]
fn a_record_over_many_segments_is_compared_at_its_end() {
    for left in [8, 16, 24, 64, 4096] {
        for len in [1_500_000, 2_000_000, 4_000_000] {
            let with = |byte: u8| {
                let mut fixture = WalFixture::new(17, 1);
                fixture.fill_segment_but(left);
                let mut body = vec![7; len];
                // In the second segment.
                body[500_000] = byte;
                fixture.record(10, 0, u32::from(byte), &body);
                fixture.filler(100);
                fixture.switch();
                fixture.filler(100);
                facts(&fixture)
            };
            let (ours, theirs) = (with(1), with(2));
            assert_eq!(broken(&ours), None, "{left} {len}");
            assert!(was_compared(&ours));
            let mut mixed = ours.clone();
            mixed[1] = theirs[1].clone();
            let at = ours.len() - 2;
            assert_eq!(
                broken(&mixed),
                Some((at, Link::Broken(Break::Content { record: ours[0].last_record }))),
                "{left} {len}"
            );
        }
    }
}

#[test]
fn a_switch_at_a_boundary_continues() {
    for left in [8, 16, 24, 32] {
        let mut fixture = WalFixture::new(14, 1);
        fixture.fill_segment_but(left);
        fixture.switch();
        fixture.commit(7, 7);
        fixture.switch();
        fixture.commit(8, 8);
        let facts = facts(&fixture);
        assert_eq!(broken(&facts), None, "{left}");
        assert!(facts.iter().take(facts.len() - 1).all(|facts| facts.whole), "{left}");
    }
}

#[test]
fn an_abandoned_record_is_followed_by_one_that_points_before_it() {
    // Abandoned at the boundary, one page behind it, and after all of a segment.
    for (len, boundaries) in [(BLOCK, 0), (3 * BLOCK, 1), (3 << 20, 128), (3 << 20, 130)] {
        for left in [8, 16, 24, 4096] {
            let mut fixture = WalFixture::new(18, 1);
            fixture.commit(3, 3);
            fixture.fill_segment_but(left);
            fixture.abandon(len, boundaries);
            fixture.commit(4, 4);
            fixture.fill_segment_but(0);
            fixture.filler(100);
            let facts = facts(&fixture);
            assert_eq!(broken(&facts), None, "{len} {boundaries} {left}");
            let over = facts.iter().position(|facts| facts.chain.begin.overwritten).unwrap();
            assert_ne!(facts[over].chain.begin.previous, facts[0].last_record, "{len} {boundaries} {left}");
            assert_eq!(facts[over].chain.begin.previous, facts[0].chain.end.complete);
        }
    }
}

#[test]
fn what_another_server_wrote_breaks_the_chain() {
    let (mut ours, mut theirs) = (WalFixture::new(16, 1), WalFixture::new(16, 1));
    for (fixture, size) in [(&mut ours, 200), (&mut theirs, 264)] {
        fixture.fill_segment_but(4096);
        fixture.filler(4096 - size);
        fixture.filler(size);
        fixture.filler(100);
    }
    let mixed = [facts(&ours)[0].clone(), facts(&theirs)[1].clone()];
    let broken = broken(&mixed);
    let end = ours.start() + (1 << 20);
    let expected = Break::Previous { expected: end - 200, found: end - 264 };
    assert_eq!(broken, Some((1, Link::Broken(expected))));
    let text = expected.to_string();
    assert!(text.contains("follows one at 0/5FFEF8") && text.contains("0/5FFF38"), "{text}");
}

#[test]
fn what_a_restore_has_to_know_of_is_marked_wherever_a_boundary_lies() {
    let location = b"\0\0\x40\0/srv/space\0";
    let tablespace = |fixture: &mut WalFixture| fixture.record(5, 0x00, 7, &WalFixture::data(location));
    let dropped = |fixture: &mut WalFixture| fixture.record(5, 0x10, 7, &WalFixture::data(&location[..4]));
    let parameters = |level: u8| {
        let mut data = vec![0; 28];
        (data[0], data[20]) = (100, level);
        move |fixture: &mut WalFixture| fixture.record(0, 0x60, 0, &WalFixture::data(&data))
    };
    let marked = |left: usize, last: &dyn Fn(&mut WalFixture) -> Lsn| {
        let mut fixture = WalFixture::new(16, 1);
        fixture.fill_segment_but(left);
        last(&mut fixture);
        fixture.filler(200);
        fixture.fill_segment_but(0);
        fixture.filler(64);
        facts(&fixture).iter().fold(SegmentMarks::default(), |marks, facts| marks.or(facts.marks))
    };
    let only = |tablespace, parameters, minimal| SegmentMarks {
        tablespace,
        parameters,
        minimal,
        database_copy: false,
    };
    let copied = |fixture: &mut WalFixture| fixture.record(4, 0x01, 7, &WalFixture::data(&[7; 16]));
    for left in (8..=104).step_by(8) {
        assert_eq!(marked(left, &tablespace), only(true, false, false), "{left}");
        assert_eq!(
            marked(left, &copied),
            SegmentMarks { database_copy: true, ..SegmentMarks::default() },
            "{left}"
        );
        assert_eq!(marked(left, &dropped), only(false, false, false), "{left}");
        assert_eq!(marked(left, &|fixture| fixture.commit(7, 7)), only(false, false, false), "{left}");
        assert_eq!(marked(left, &|fixture| fixture.filler(2_000_000)), only(false, false, false), "{left}");
        // Where its values lie in the next segment, they may be anything.
        let crosses = left < 54;
        assert_eq!(marked(left, &parameters(1)), only(false, true, crosses), "{left}");
        assert_eq!(marked(left, &parameters(0)), only(false, true, true), "{left}");
    }
}

#[test]
fn the_location_of_a_tablespace_is_read() {
    for left in [16, 24, 40, 200] {
        let mut fixture = WalFixture::new(13, 1);
        fixture.fill_segment_but(left);
        fixture.record(5, 0x00, 7, &WalFixture::data(b"\x02\x40\0\0/srv/space\0"));
        fixture.fill_segment_but(0);
        let mut reader = RecordReader::new();
        let mut kinds = Vec::new();
        for (name, content) in fixture.segments() {
            kinds.extend(reader.segment(name, &content).unwrap().map(|record| record.unwrap().kind));
        }
        let location = b"/srv/space".to_vec();
        assert!(kinds.contains(&RecordKind::TablespaceCreate { oid: 0x4002, location }), "{left}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn valid_wal_never_breaks_the_chain(
        records in prop::collection::vec((0u8..10, 24usize..400_000, 1usize..140), 10..60),
    ) {
        let mut fixture = WalFixture::new(16, 1);
        for (kind, len, boundaries) in records {
            match kind {
                0 => { fixture.switch(); }
                1 => { fixture.commit(7, 7); }
                2 => {
                    // As long as it has to be to reach that boundary.
                    fixture.abandon(len + boundaries * BLOCK + BLOCK, boundaries);
                }
                3 if fixture.left_in_segment() > 2 * BLOCK => fixture.fill_segment_but(len % 64 * 8),
                4 => { fixture.filler(len * 8); }
                _ => { fixture.filler(len); }
            }
        }
        prop_assert_eq!(broken(&facts(&fixture)), None);
    }
}
