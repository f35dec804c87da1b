//! A checkpoint's record, read where a backup label or `pg_control` says it starts.
//!
//! Source: `src/include/catalog/pg_control.h` (`CheckPoint`), `src/include/access/xlogrecord.h`. The record holds the very
//! structure of which `pg_control` keeps a copy, so the two say the same if the WAL is that server's.

use walpoint_base::{Lsn, PgMajor, TimelineId};

use super::kind::{XLOG_CHECKPOINT_ONLINE, XLOG_CHECKPOINT_SHUTDOWN, next_xid_in_checkpoint};
use super::page::{PageHeader, major_of_magic};
use super::record::{RECORD_HEADER, RecordCrc, RecordHeader, Rmgr, main_data};
use crate::bytes;
use crate::control::CheckpointCopy;

/// The record of a checkpoint has 114 bytes, from 19 on 122; one of a later version may have a few more.
const LONGEST: u32 = 512;

/// Bytes from the beginning of its page within which a checkpoint's record ends, whatever headers lie between.
pub fn checkpoint_window(page_size: u32) -> u64 {
    2 * u64::from(page_size)
}

/// The checkpoint whose record starts at `lsn`. `wal` begins with the page that holds `lsn` and goes on for
/// [`checkpoint_window`] bytes, or as far as there is WAL. The error says what is there instead.
pub fn checkpoint_at(lsn: Lsn, page_size: u32, wal: &[u8]) -> Result<CheckpointCopy, String> {
    let page_size = u64::from(page_size.max(1));
    let page = Lsn(lsn.0 - lsn.0 % page_size);
    let header = PageHeader::parse(wal).filter(|header| header.address == page);
    let header = header.ok_or_else(|| format!("there is no page of WAL at {page}"))?;
    let major = major_of_magic(header.magic)
        .ok_or_else(|| format!("the page of WAL at {page} is of no known version of PostgreSQL"))?;
    let mut cursor = Cursor { wal, page_size, at: lsn.0 - page.0 };
    if cursor.at < u64::try_from(header.length()).unwrap_or(u64::MAX) {
        return Err(format!("no record starts at {lsn}"));
    }
    let none = || format!("no checkpoint starts at {lsn}");
    let raw = cursor.take(RECORD_HEADER).ok_or_else(none)?;
    let raw: &[u8; RECORD_HEADER] = raw.first_chunk().ok_or_else(none)?;
    let header = RecordHeader::parse(raw);
    let operation = header.info & 0xF0;
    let is_checkpoint = matches!(operation, XLOG_CHECKPOINT_SHUTDOWN | XLOG_CHECKPOINT_ONLINE);
    if header.rmgr != Rmgr::XLOG || !is_checkpoint || header.total > LONGEST {
        return Err(none());
    }
    let body = usize::try_from(header.total).ok().and_then(|total| total.checked_sub(RECORD_HEADER));
    let body = body.and_then(|length| cursor.take(length)).ok_or_else(none)?;
    if RecordCrc::default().body(&body).finish(raw) != header.crc {
        return Err(none());
    }
    main_data(&body).and_then(|data| parse(lsn, data, major)).ok_or_else(none)
}

fn parse(lsn: Lsn, data: &[u8], major: PgMajor) -> Option<CheckpointCopy> {
    let next_xid = next_xid_in_checkpoint(major);
    // 19 has offsets of multixacts of twice the length.
    let oldest_xid = next_xid + if major.get() >= 19 { 24 } else { 20 };
    Some(CheckpointCopy {
        lsn,
        redo: Lsn(bytes::u64(data, 0)?),
        timeline: TimelineId::new(bytes::u32(data, 8)?),
        previous_timeline: TimelineId::new(bytes::u32(data, 12)?),
        next_xid: bytes::u64(data, next_xid)?,
        oldest_xid: bytes::u32(data, oldest_xid)?,
        // Three more ids lie between, then padding.
        time: bytes::i64(data, (oldest_xid + 16).next_multiple_of(8))?,
    })
}

/// Reads over the headers of pages.
pub(super) struct Cursor<'a> {
    /// WAL from the beginning of a page on.
    pub(super) wal: &'a [u8],
    pub(super) page_size: u64,
    /// Where in it the next byte is.
    pub(super) at: u64,
}

impl Cursor<'_> {
    /// So many bytes of records; `None` if there are fewer.
    pub(super) fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        let mut taken = Vec::new();
        while taken.len() < length {
            let rest = self.wal.get(usize::try_from(self.at).ok()?..)?;
            if self.at.is_multiple_of(self.page_size) {
                let header = PageHeader::parse(rest).filter(PageHeader::continues)?;
                self.at += u64::try_from(header.length()).ok()?;
                continue;
            }
            let left_in_page = usize::try_from(self.page_size - self.at % self.page_size).ok()?;
            let piece = rest.get(..left_in_page.min(length - taken.len()))?;
            taken.extend_from_slice(piece);
            self.at += u64::try_from(piece.len()).ok()?;
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::WalFixture;
    use super::*;

    const PAGE: u32 = 8192;

    fn checkpoint(major: u32, redo: u64, time: i64) -> Vec<u8> {
        let (next_xid, oldest_xid, made, length) =
            if major < 19 { (24, 44, 64, 88) } else { (32, 56, 72, 96) };
        let mut data = vec![0; length];
        data[..8].copy_from_slice(&redo.to_le_bytes());
        data[8] = 3;
        data[12] = 2;
        data[next_xid..next_xid + 8].copy_from_slice(&(5u64 << 32 | 777).to_le_bytes());
        data[oldest_xid] = 9;
        data[made..made + 8].copy_from_slice(&time.to_le_bytes());
        WalFixture::data(&data)
    }

    fn window(fixture: &WalFixture, lsn: Lsn) -> Vec<u8> {
        let all: Vec<u8> = fixture.segments().into_iter().flat_map(|(_, content)| content).collect();
        let page = (lsn.0 - lsn.0 % u64::from(PAGE)) - fixture.start().0;
        let begin = usize::try_from(page).unwrap();
        let end = begin + usize::try_from(checkpoint_window(PAGE)).unwrap();
        all[begin..end.min(all.len())].to_vec()
    }

    #[test]
    fn a_checkpoint_is_read_where_it_starts_and_nowhere_else() {
        for (major, left) in
            [17, 19].into_iter().flat_map(|major| [4000, 64, 24, 40, 104].map(|left| (major, left)))
        {
            let mut fixture = WalFixture::new(major, 1);
            // So that it ends on the next page, or in the next segment.
            fixture.fill_segment_but(left);
            let lsn = fixture.record(0, XLOG_CHECKPOINT_ONLINE, 0, &checkpoint(major, 0x123, 42));
            let next = fixture.commit(7, 8);
            let wal = window(&fixture, lsn);
            let found = checkpoint_at(lsn, PAGE, &wal).unwrap();
            assert_eq!(
                (found.lsn, found.redo, found.timeline, found.previous_timeline, found.next_xid, found.time),
                (lsn, Lsn(0x123), TimelineId::new(3), TimelineId::new(2), 5 << 32 | 777, 42),
                "{major} {left}"
            );
            assert_eq!(found.oldest_xid, 9);
            let told = checkpoint_at(next, PAGE, &window(&fixture, next)).unwrap_err();
            assert_eq!(told, format!("no checkpoint starts at {next}"));
            assert!(checkpoint_at(lsn + 8, PAGE, &wal).is_err());
            assert!(checkpoint_at(lsn, PAGE, &[]).is_err());
            let mut flipped = wal.clone();
            let at = usize::try_from(lsn.0 % u64::from(PAGE)).unwrap();
            flipped[at + 21] ^= 1;
            assert!(checkpoint_at(lsn, PAGE, &flipped).is_err(), "its check is wrong");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_checkpoint_or_none(wal: Vec<u8>, lsn in 0u64..20_000) {
            let _result = checkpoint_at(Lsn(lsn), PAGE, &wal);
        }
    }
}
