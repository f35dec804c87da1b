//! Checksums of data pages.
//!
//! Source: `src/include/storage/checksum_impl.h`, `src/include/storage/bufpage.h`. The page is read as rows of 32
//! little-endian words; each column is hashed by an FNV-1a-like step, so that the compiler can do all columns at once.

use std::ops::RangeInclusive;

use walpoint_base::Lsn;

use crate::bytes;

const LANES: usize = 32;
const FNV_PRIME: u32 = 16_777_619;

/// Where each column starts: random numbers, part of the format.
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// Offset of `pd_checksum` in a page.
const CHECKSUM_AT: usize = 8;
/// Offset of `pd_upper`; 0 in a page that was never initialised.
const UPPER_AT: usize = 14;

/// Whether the pages of a cluster carry checksums. From 19 on that may change while the server runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksums {
    /// None does.
    Off,
    /// All do.
    On,
    /// They are being switched on or off: some pages do, and a wrong checksum means nothing.
    Changing,
}

impl Checksums {
    /// What `SHOW data_checksums` prints.
    pub fn from_setting(value: &str) -> Self {
        match value {
            "on" => Self::On,
            "off" => Self::Off,
            // `inprogress-on`, `inprogress-off`.
            _ => Self::Changing,
        }
    }
}

/// What verifying a page showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageState {
    /// All zero: allocated, never written. It has no checksum.
    New,
    /// The checksum is right.
    Ok,
    /// Written while the backup ran: it may be torn, and replay repairs it.
    NewerThanBackup,
    /// The checksum is wrong.
    Bad {
        /// In the page.
        stored: u16,
        /// Of its content.
        computed: u16,
    },
}

/// The checksum of a page whose number **within its relation** (over all its segment files) is `block_no`. The length
/// should be a block's: a multiple of 128 bytes; what is beyond the last whole 128 bytes is not counted.
pub fn page_checksum(page: &[u8], block_no: u32) -> u16 {
    let mut lanes = OFFSETS;
    let (rows, _) = page.as_chunks::<{ 4 * LANES }>();
    for (index, row) in rows.iter().enumerate() {
        let mut row = *row;
        if index == 0 {
            // The checksum itself counts as zero.
            row[CHECKSUM_AT] = 0;
            row[CHECKSUM_AT + 1] = 0;
        }
        for (lane, word) in lanes.iter_mut().zip(row.as_chunks::<4>().0) {
            mix(lane, u32::from_le_bytes(*word));
        }
    }
    for _ in 0..2 {
        lanes.iter_mut().for_each(|lane| mix(lane, 0));
    }
    let sum = lanes.iter().fold(0, |sum, lane| sum ^ lane) ^ block_no;
    // Never 0, and at most 65535.
    u16::try_from(sum % 65535 + 1).unwrap_or(u16::MAX)
}

fn mix(lane: &mut u32, word: u32) {
    let mixed = *lane ^ word;
    *lane = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
}

/// The position of the last WAL record that changed a page. It is stored as two halves, the upper one first.
pub fn page_lsn(page: &[u8]) -> Option<Lsn> {
    let (upper, lower) = (bytes::u32(page, 0)?, bytes::u32(page, 4)?);
    Some(Lsn(u64::from(upper) << 32 | u64::from(lower)))
}

/// Verifies a page as the server does when it reads one. `replayed` are the positions of the WAL that will be replayed over it, and
/// repairs a page that a backup read while it was written; `None` if nothing will. A page that is shorter than its header is bad.
///
/// `pg_checksums` takes any page without `pd_upper` for new; the server refuses it unless it is all zero, and so does this.
pub fn verify_page(page: &[u8], block_no: u32, replayed: Option<RangeInclusive<Lsn>>) -> PageState {
    let stored = bytes::u16(page, CHECKSUM_AT).unwrap_or(0);
    if bytes::u16(page, UPPER_AT) == Some(0) && bytes::len_before_zeros(page) == 0 {
        return PageState::New;
    }
    let computed = page_checksum(page, block_no);
    if computed == stored {
        PageState::Ok
    } else if page_lsn(page).zip(replayed).is_some_and(|(lsn, replayed)| replayed.contains(&lsn)) {
        PageState::NewerThanBackup
    } else {
        PageState::Bad { stored, computed }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(lsn: u64) -> Vec<u8> {
        let mut page: Vec<u8> = (0u32..8192).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
        page[0..4].copy_from_slice(&u32::try_from(lsn >> 32).unwrap().to_le_bytes());
        page[4..8].copy_from_slice(&u32::try_from(lsn & 0xFFFF_FFFF).unwrap().to_le_bytes());
        let sum = page_checksum(&page, 70_000);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn a_page_is_verified_at_its_place_only() {
        let while_it_ran = Some(Lsn(0x2_0000_0028)..=Lsn(0x2_0000_4000));
        let verify_page = |page: &[u8], block| verify_page(page, block, while_it_ran.clone());
        let good = page(0x1_FFFF_FFFF);
        assert_eq!(page_lsn(&good), Some(Lsn(0x1_FFFF_FFFF)));
        assert_eq!(verify_page(&good, 70_000), PageState::Ok);
        assert!(matches!(verify_page(&good, 70_001), PageState::Bad { .. }));
        let mut bad = good.clone();
        bad[5000] ^= 4;
        assert!(matches!(verify_page(&bad, 70_000), PageState::Bad { .. }));
        for (lsn, may_be_torn) in [
            (0x2_0000_0027, false),
            (0x2_0000_0028, true),
            (0x2_0000_4000, true),
            (0x2_0000_4001, false),
            (u64::MAX, false),
        ] {
            bad = page(lsn);
            bad[5000] ^= 4;
            assert_eq!(verify_page(&bad, 70_000) == PageState::NewerThanBackup, may_be_torn, "{lsn:X}");
            assert!(matches!(super::verify_page(&bad, 70_000, None), PageState::Bad { .. }), "{lsn:X}");
        }
    }

    #[test]
    fn a_page_of_ones_is_bad_whatever_is_replayed() {
        let erased = [0xFF; 8192];
        for replayed in [None, Some(Lsn(1000)..=Lsn(2000)), Some(Lsn(u64::MAX)..=Lsn(2000))] {
            let state = verify_page(&erased, 5, replayed.clone());
            assert!(matches!(state, PageState::Bad { stored: 0xFFFF, .. }), "{replayed:?}");
        }
    }

    #[test]
    fn only_on_is_on() {
        let states = ["on", "off", "inprogress-on", "inprogress-off", ""].map(Checksums::from_setting);
        let changing = Checksums::Changing;
        assert_eq!(states, [Checksums::On, Checksums::Off, changing, changing, changing]);
    }

    #[test]
    fn only_zero_pages_are_new() {
        let mut zero = vec![0; 8192];
        assert_eq!(verify_page(&zero, 3, None), PageState::New);
        zero[8000] = 1;
        assert!(matches!(verify_page(&zero, 3, None), PageState::Bad { stored: 0, .. }));
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_state(page: Vec<u8>, block: u32, start: u64, stop: u64) {
            let _state = verify_page(&page, block, Some(Lsn(start)..=Lsn(stop)));
        }

        #[test]
        fn the_stored_checksum_does_not_count(sum: u16) {
            let mut bytes = page(5);
            let expected = page_checksum(&bytes, 1);
            bytes[8..10].copy_from_slice(&sum.to_le_bytes());
            prop_assert_eq!(page_checksum(&bytes, 1), expected);
        }
    }
}
