//! Fixed-width little-endian fields at an offset of a byte slice. Every read is checked: `None` where the slice is too
//! short. PostgreSQL writes in the byte order of its machine; every Linux machine it is built for is little-endian in
//! practice, and a file from another one fails the checks of its magic numbers.

/// The `N` bytes at `offset`.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The `u16` at `offset`.
pub(crate) fn u16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

/// The `u32` at `offset`.
pub(crate) fn u32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// The `u64` at `offset`.
pub(crate) fn u64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// The `i32` at `offset`.
pub(crate) fn i32(bytes: &[u8], offset: usize) -> Option<i32> {
    array(bytes, offset).map(i32::from_le_bytes)
}

/// The `i64` at `offset`.
pub(crate) fn i64(bytes: &[u8], offset: usize) -> Option<i64> {
    array(bytes, offset).map(i64::from_le_bytes)
}

/// Bytes before the trailing zeros: 0 if all are zero.
pub(crate) fn len_before_zeros(bytes: &[u8]) -> usize {
    // Whole blocks first: comparing 256 bytes at a time runs at memory speed, which counts for a switched 1 GiB segment.
    const ZERO: [u8; 256] = [0; 256];
    let mut rest = bytes;
    while let Some((front, ZERO)) = rest.split_last_chunk::<256>().map(|(front, last)| (front, *last)) {
        rest = front;
    }
    rest.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_end_with_the_slice() {
        let bytes = [1, 0, 0, 0, 2, 0, 0, 0, 3];
        assert_eq!(
            (u32(&bytes, 0), u32(&bytes, 4), u32(&bytes, 5), u64(&bytes, 1)),
            (Some(1), Some(2), Some(0x0300_0000), Some(0x0300_0000_0200_0000))
        );
        assert_eq!((u32(&bytes, 6), u64(&bytes, 2), u16(&bytes, usize::MAX)), (None, None, None));
    }

    proptest! {
        #[test]
        fn the_zero_tail_is_exact(mut front in proptest::collection::vec(any::<u8>(), 0..600), zeros in 0usize..1200) {
            if let Some(last) = front.last_mut() {
                *last |= 1;
            }
            let len = front.len();
            front.resize(len + zeros, 0);
            prop_assert_eq!(len_before_zeros(&front), len);
        }
    }
}
