//! Headers of WAL pages.
//!
//! Source: `src/include/access/xlog_internal.h`. Every page starts with a short header; the first page of a segment has
//! a long one, which also names the cluster and the sizes.

use walpoint_base::{Lsn, PgMajor, SystemId};

use crate::bytes;

/// Length of a page header: `SizeOfXLogShortPHD`.
pub const SHORT_HEADER: usize = 24;
/// Length of the header of a segment's first page: `SizeOfXLogLongPHD`.
pub const LONG_HEADER: usize = 40;

/// The page starts with the rest of a record that began on an earlier page.
const FIRST_IS_CONTRECORD: u16 = 0x0001;
const LONG: u16 = 0x0002;
/// The page was meant to start with the rest of a record, but the server crashed before it wrote that.
///
/// 19 gave it the bit of a flag that meant nothing any more (`XLP_BKP_REMOVABLE`): see [`overwrite_flag`].
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0004;
const FIRST_IS_OVERWRITE_CONTRECORD_BEFORE_19: u16 = 0x0008;

/// `XLOG_PAGE_MAGIC` of each version.
const MAGICS: [(u16, u32); 7] =
    [(0xD106, 13), (0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18), (MAGIC_OF_19, 19)];

/// Numbers only grow from version to version.
const MAGIC_OF_19: u16 = 0xD122;

/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD` of the version whose pages carry this magic number. It is the highest flag that
/// the version knows.
pub(super) fn overwrite_flag(magic: u16) -> u16 {
    if magic >= MAGIC_OF_19 { FIRST_IS_OVERWRITE_CONTRECORD } else { FIRST_IS_OVERWRITE_CONTRECORD_BEFORE_19 }
}

/// The version whose pages carry this magic number.
pub fn major_of_magic(magic: u16) -> Option<PgMajor> {
    MAGICS.iter().find(|(m, _)| *m == magic).and_then(|(_, major)| PgMajor::new(*major))
}

/// The magic number of a version's pages.
pub fn magic_of_major(major: PgMajor) -> u16 {
    MAGICS.iter().find(|(_, m)| *m == u32::from(major.get())).map_or(0, |(magic, _)| *magic)
}

/// `XLogPageHeaderData`: what every page says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageHeader {
    /// Names the version.
    pub magic: u16,
    /// Flags.
    pub info: u16,
    /// The timeline that was written when the page was begun.
    pub timeline: u32,
    /// The position of its first byte.
    pub address: Lsn,
    /// Bytes left of the record that continues here.
    pub remaining: u32,
}

impl PageHeader {
    /// Reads a header; `None` if there are fewer bytes than one has.
    pub fn parse(page: &[u8]) -> Option<Self> {
        let header: &[u8; SHORT_HEADER] = page.first_chunk()?;
        Some(Self {
            magic: bytes::u16(header, 0)?,
            info: bytes::u16(header, 2)?,
            timeline: bytes::u32(header, 4)?,
            address: Lsn(bytes::u64(header, 8)?),
            remaining: bytes::u32(header, 16)?,
        })
    }

    /// Whether it starts with the rest of a record.
    pub fn continues(&self) -> bool {
        self.info & FIRST_IS_CONTRECORD != 0
    }

    /// Whether it takes the place of the rest of a record that was never written.
    pub fn overwrites(&self) -> bool {
        self.info & overwrite_flag(self.magic) != 0
    }

    /// Whether this is the header of a segment's first page.
    pub fn is_long(&self) -> bool {
        self.info & LONG != 0
    }

    /// Whether it has only flags that its version of PostgreSQL knows (`XLP_ALL_FLAGS`).
    pub fn flags_known(&self) -> bool {
        self.info < overwrite_flag(self.magic) << 1
    }

    /// Its length.
    pub fn length(&self) -> usize {
        if self.is_long() { LONG_HEADER } else { SHORT_HEADER }
    }
}

/// `XLogLongPageHeaderData`: the first page of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongHeader {
    /// What every page has.
    pub page: PageHeader,
    /// The cluster.
    pub system_id: SystemId,
    /// Bytes of a segment, unchecked.
    pub segment_size: u32,
    /// Bytes of a page, unchecked.
    pub block_size: u32,
}

impl LongHeader {
    /// Reads a long header; `None` if there are fewer bytes than one has. The flag [`PageHeader::is_long`] is not looked at.
    pub fn parse(segment: &[u8]) -> Option<Self> {
        let header: &[u8; LONG_HEADER] = segment.first_chunk()?;
        Some(Self {
            page: PageHeader::parse(header)?,
            system_id: SystemId(bytes::u64(header, 24)?),
            segment_size: bytes::u32(header, 32)?,
            block_size: bytes::u32(header, 36)?,
        })
    }

    /// The page size, if it is one that PostgreSQL can be built with: a power of two from 1 to 64 KiB.
    pub fn valid_block_size(&self) -> Option<usize> {
        let size = self.block_size;
        let valid = size.is_power_of_two() && (1 << 10..=1 << 16).contains(&size);
        valid.then(|| usize::try_from(size).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_version_has_a_magic_of_its_own() {
        for major in PgMajor::ALL {
            assert_eq!(major_of_magic(magic_of_major(major)), Some(major));
        }
        assert_eq!(major_of_magic(0), None);
        assert_eq!(major_of_magic(0x06D1), None, "the other byte order");
    }

    #[test]
    fn a_flag_means_what_its_version_says() {
        let page = |major, info| {
            let magic = magic_of_major(PgMajor::new(major).unwrap());
            PageHeader { magic, info, timeline: 1, address: Lsn(0), remaining: 0 }
        };
        for (major, info, overwrites, known) in [
            (18, 0x8, true, true),
            (18, 0x4, false, true),
            (18, 0xF, true, true),
            (18, 0x10, false, false),
            (19, 0x4, true, true),
            (19, 0x7, true, true),
            (19, 0x8, false, false),
        ] {
            let page = page(major, info);
            assert_eq!((page.overwrites(), page.flags_known()), (overwrites, known), "{major} {info:#x}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_nothing(bytes: Vec<u8>) {
            prop_assert_eq!(PageHeader::parse(&bytes).is_some(), bytes.len() >= SHORT_HEADER);
            prop_assert_eq!(LongHeader::parse(&bytes).is_some(), bytes.len() >= LONG_HEADER);
        }
    }
}
