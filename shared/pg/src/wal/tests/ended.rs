//! Content that ends early is told from content that is damaged.

use super::{full, only};
use crate::wal::fixtures::{BLOCK, WalFixture};
use crate::wal::*;

#[test]
fn content_that_ends_early_is_not_damage() {
    let fixture = full(16);
    let (name, content) = only(&fixture);
    // Zeros from a page boundary, from the end of a record, and from within a record that goes over a page.
    let whole = inspect(name, &content).unwrap();
    for cut in [BLOCK, 5 * BLOCK, 100 * BLOCK, 40, 4096 + 512] {
        let mut short = content.clone();
        short[cut..].fill(0);
        let found = inspect(name, &short).unwrap();
        assert!(!found.whole && found.end <= fixture.start() + cut as u64, "{cut}");
        assert!(found.records < whole.records);
    }
    // What a recycled file held before: other records, of an earlier position.
    let mut old = WalFixture::at(16, 1, 1);
    old.commit(50, 500);
    old.fill_segment_but(48);
    let (_, stale) = only(&old);
    let records: Vec<_> = RecordReader::new().segment(name, &content).unwrap().map(Result::unwrap).collect();
    for record in
        records.iter().step_by(7).filter(|record| record.next < fixture.start() + (127 * BLOCK) as u64)
    {
        let cut = usize::try_from(record.next.0 - fixture.start().0).unwrap();
        let mut short = content.clone();
        short[cut..].copy_from_slice(&stale[cut..]);
        let found = inspect(name, &short).unwrap();
        assert!(!found.whole, "{}", record.next);
        assert_eq!(found.end, record.end);
    }
}

#[test]
fn any_flipped_bit_of_a_whole_record_is_damage() {
    let fixture = full(18);
    let (name, content) = only(&fixture);
    let end = content.len() - 24;
    for at in (LONG_HEADER..end).step_by(1009).filter(|at| !(16..24).contains(&(at % BLOCK))) {
        // Left out: bytes of page headers that mean nothing where no record is continued.
        let mut bad = content.clone();
        bad[at] ^= 0x10;
        let result = inspect(name, &bad);
        assert!(result.as_ref().is_err_and(WalError::is_damage), "{at}: {result:?}");
    }
}

#[test]
fn damage_before_a_switch_is_not_an_end() {
    // The switch in the last page, and in the first one with nothing but zeros behind.
    for last_page in [true, false] {
        let mut fixture = WalFixture::new(16, 1);
        if last_page {
            fixture.fill_segment_but(4096);
        }
        fixture.commit(8, 8);
        fixture.filler(72);
        fixture.switch();
        let (name, content) = only(&fixture);
        let used = crate::bytes::len_before_zeros(&content);
        for at in used / BLOCK * BLOCK..used {
            for bit in 0..8 {
                let mut bad = content.clone();
                bad[at] ^= 1 << bit;
                // What nothing protects, padding and rests of headers, may pass, but never as an end.
                if let Ok(found) = inspect(name, &bad) {
                    assert!(found.whole, "bit {bit} of byte {at} of {used} made an end of it: {found:?}");
                }
            }
        }
    }
}

/// A recycled file that held a small segment: what is left of it ends in the page in which the new content ends.
#[test]
fn leftovers_that_end_in_the_same_page_are_an_end() {
    // Both as a quiet server writes them: a few records, then a switch, then zeros. Pages are counted from 0.
    for pages in [0, 1, 2] {
        for old_pages in [pages, pages + 1] {
            let mut old = WalFixture::at(16, 16, 2);
            old.filler(old_pages * BLOCK + 2000);
            for n in 0..8 {
                old.commit(30 + n, 500);
            }
            old.filler(777);
            old.switch();
            let (_, stale) = only(&old);
            let mut new = WalFixture::at(16, 16, 5);
            new.filler(pages * BLOCK + 600);
            for n in 0..40 {
                new.commit(60 + n, 900);
            }
            let (name, mut content) = only(&new);
            let records: Vec<_> =
                RecordReader::new().segment(name, &content).unwrap().map(Result::unwrap).collect();
            for record in &records {
                let cut = usize::try_from(record.next.0 - new.start().0).unwrap();
                content[cut..].copy_from_slice(&stale[cut..]);
                let found = inspect(name, &content);
                let found = found.unwrap_or_else(|error| panic!("{pages} {old_pages} {cut}: {error}"));
                assert_eq!((found.whole, found.end), (false, record.end), "{pages} {old_pages}");
                let (_, fresh) = only(&new);
                content.copy_from_slice(&fresh);
            }
        }
    }
}

/// In the last page of a segment nothing follows that could say what is behind the end.
#[test]
fn leftovers_in_the_last_page_are_an_end() {
    let mut old = WalFixture::at(17, 1, 1);
    old.filler(64);
    old.fill_segment_but(0);
    let (_, stale) = only(&old);
    for left in [4096, 2048, 96, 24, 16, 8] {
        let mut new = WalFixture::new(17, 1);
        new.fill_segment_but(left);
        let end = new.position();
        let (name, mut content) = only(&new);
        let cut = content.len() - left;
        content[cut..].copy_from_slice(&stale[cut..]);
        let found = inspect(name, &content).unwrap_or_else(|error| panic!("{left}: {error}"));
        // What fits into no header may be the beginning of a record that goes on in the next segment.
        assert!(!found.whole || left < 24, "{left}: {found:?}");
        assert_eq!(found.end, end, "{left}");
    }
}
