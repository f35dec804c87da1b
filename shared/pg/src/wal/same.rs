//! Whether two files hold the same records of a segment, whatever the bytes say that nothing checks and PostgreSQL never reads.
//!
//! | bytes that mean nothing | because |
//! |---|---|
//! | the last 4 of a page's short header | padding of the structure |
//! | `xlp_rem_len` of a page on which no record goes on | only `XLP_FIRST_IS_CONTRECORD` gives it a meaning |
//! | up to the next multiple of 8 behind a record | padding |
//! | all behind a segment switch | no record is looked for there |
//!
//! One such byte that a disk changed makes the hash of a segment another, and another server of nobody.

use std::ops::Range;

use walpoint_base::SegmentName;

use super::page::{LongHeader, PageHeader, SHORT_HEADER};
use super::reader::RecordReader;

/// Where `xlp_rem_len` lies in a page's header.
const REMAINING: Range<usize> = 16..20;

/// Bytes that mean nothing are changed one by one: of more that differ it is not asked what they mean.
const DIFFERING: usize = 1024;

/// Whether two contents of a segment differ in their first bytes, so many, at most in those that mean nothing.
pub fn same_records(name: SegmentName, ours: &[u8], other: &[u8], length: usize) -> bool {
    let (Some(ours_read), Some(other_read)) = (ours.get(..length), other.get(..length)) else {
        return false;
    };
    let Some(block) = LongHeader::parse(ours).and_then(|header| header.valid_block_size()) else {
        return ours_read == other_read;
    };
    let mut differing = Vec::new();
    for (number, (page, theirs)) in ours_read.chunks(block).zip(other_read.chunks(block)).enumerate() {
        if page == theirs {
            continue;
        }
        let goes_on = PageHeader::parse(page).is_none_or(|header| header.continues());
        let means_something =
            |at: &usize| !(REMAINING.end..SHORT_HEADER).contains(at) && (goes_on || !REMAINING.contains(at));
        let differs = page.iter().zip(theirs).enumerate().filter(|(_, (ours, theirs))| ours != theirs);
        let page_start = number.saturating_mul(block);
        let found = differs.map(|(at, _)| at).filter(means_something).map(|at| page_start.saturating_add(at));
        differing.extend(found.take(DIFFERING));
        if differing.len() >= DIFFERING {
            return false;
        }
    }
    differing.is_empty() || lie_between_records(name, ours, &differing)
}

/// Whether positions in a segment, in order, all lie behind a record and before the next one.
fn lie_between_records(name: SegmentName, content: &[u8], positions: &[usize]) -> bool {
    let (mut reader, mut left) = (RecordReader::new(), positions);
    let Ok(records) = reader.segment(name, content) else { return false };
    let start = LongHeader::parse(content).map(|header| header.page.address).unwrap_or_default();
    let offset = |lsn: walpoint_base::Lsn| usize::try_from(lsn.since(start)).unwrap_or(usize::MAX);
    for record in records.map_while(Result::ok) {
        let (end, next) = (offset(record.end), offset(record.next));
        while let Some((first, rest)) = left.split_first().filter(|(first, _)| **first < next) {
            if *first < end {
                return false;
            }
            left = rest;
        }
        if left.is_empty() {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{BLOCK, WalFixture};
    use super::*;

    #[test]
    fn what_no_record_has_makes_no_other_segment() {
        let mut fixture = WalFixture::new(17, 1);
        let first = fixture.filler(27 + 40);
        fixture.filler(40);
        fixture.fill_segment_but(0);
        let (name, content) = fixture.segments().remove(0);
        let start = fixture.start();
        let behind = usize::try_from(first.since(start)).unwrap() + 27 + 40;
        let page = |wanted: bool| {
            let pages = content
                .chunks(BLOCK)
                .skip(1)
                .position(|page| PageHeader::parse(page).unwrap().continues() == wanted);
            (pages.unwrap() + 1) * BLOCK
        };
        let same = |changed: &[usize]| {
            let mut other = content.clone();
            changed.iter().for_each(|at| other[*at] ^= 1);
            let forth = same_records(name, &content, &other, content.len());
            assert!(changed.is_empty() || content != other);
            forth
        };
        for (says, at, expected) in [
            ("padding of the first page's header", 20, true),
            ("padding of a page's header", page(true) + 23, true),
            ("a length that means something", page(true) + 16, false),
            ("a length that means nothing", page(false) + 16, true),
            ("the address of a page", page(false) + 8, false),
            ("the last byte of a record", behind - 1, false),
            ("the first byte behind it", behind, true),
            ("the last one before the next", behind.next_multiple_of(8) - 1, true),
            ("the next record", behind.next_multiple_of(8), false),
        ] {
            assert_eq!(same(&[at]), expected, "{says}");
        }
        assert!(same(&[]) && same(&[20, behind]) && !same(&[20, behind, behind - 1]));
        let short = &content[..BLOCK];
        assert!(
            same_records(name, &content, short, BLOCK) && !same_records(name, &content, short, BLOCK + 1)
        );
    }
}
