//! The headers in the body of a record: which blocks it refers to, and how long its main data is.
//!
//! Source: `DecodeXLogRecord` in `src/backend/access/transam/xlogreader.c`.

use walpoint_base::PgMajor;

use crate::bytes;

/// A block that a record refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BlockRef {
    /// Its number among the record's blocks, from 0 on.
    pub(super) id: u8,
    /// 0 is the fork of the rows.
    pub(super) fork: u8,
    pub(super) tablespace: u32,
    pub(super) database: u32,
    /// The number of the relation's file.
    pub(super) relation: u32,
    /// The block in it.
    pub(super) block: u32,
}

/// What stands in a body before the images and the data of its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Headers {
    /// Where they end.
    pub(super) end: usize,
    /// How long the main data is, which is the last thing in the body; 0 if there is none.
    pub(super) main: usize,
}

impl Headers {
    /// Reads them from the beginning of a body of `length` bytes; calls `act` for each block. `None` if what is there makes no sense, or
    /// is not all of them.
    pub(super) fn read(
        head: &[u8],
        length: usize,
        major: PgMajor,
        act: &mut dyn FnMut(BlockRef),
    ) -> Option<Self> {
        const SHORT: u8 = 255;
        const LONG: u8 = 254;
        const ORIGIN: u8 = 253;
        const TOP_LEVEL: u8 = 252;
        const LAST_BLOCK: u8 = 32;
        const FORK: u8 = 0x0F;
        const HAS_IMAGE: u8 = 0x10;
        const SAME_RELATION: u8 = 0x80;
        const HAS_HOLE: u8 = 0x01;
        let compressed: u8 = if major.get() >= 15 { 0x1C } else { 0x02 };
        let (mut at, mut announced, mut last) = (0usize, 0usize, None);
        // Behind the headers lies what they announce, and nothing else.
        while length.checked_sub(at)? > announced {
            match *head.get(at)? {
                SHORT => return Some(Self { end: at + 2, main: usize::from(*head.get(at + 1)?) }),
                LONG => {
                    let main = usize::try_from(bytes::u32(head, at + 1)?).ok()?;
                    return Some(Self { end: at + 5, main });
                }
                ORIGIN => at += 3,
                TOP_LEVEL => at += 5,
                id @ 0..=LAST_BLOCK => {
                    let flags = *head.get(at + 1)?;
                    announced = announced.checked_add(usize::from(bytes::u16(head, at + 2)?))?;
                    at += 4;
                    if flags & HAS_IMAGE != 0 {
                        announced = announced.checked_add(usize::from(bytes::u16(head, at)?))?;
                        let info = *head.get(at + 4)?;
                        at += if info & HAS_HOLE != 0 && info & compressed != 0 { 7 } else { 5 };
                    }
                    if flags & SAME_RELATION == 0 {
                        let word = |n: usize| bytes::u32(head, at + 4 * n);
                        last = Some((word(0)?, word(1)?, word(2)?));
                        at += 12;
                    }
                    let (tablespace, database, relation) = last?;
                    let block = bytes::u32(head, at)?;
                    act(BlockRef { id, fork: flags & FORK, tablespace, database, relation, block });
                    at += 4;
                }
                _ => return None,
            }
        }
        Some(Self { end: at, main: 0 })
    }

    /// The main data of a body that is there as a whole. `None` if there is none.
    pub(super) fn main_data<'b>(&self, body: &'b [u8]) -> Option<&'b [u8]> {
        let begin = body.len().checked_sub(self.main).filter(|begin| *begin >= self.end && self.main > 0)?;
        body.get(begin..)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::words;
    use super::*;

    fn read(body: &[u8], major: u32) -> Option<(Headers, Vec<BlockRef>)> {
        let mut blocks = Vec::new();
        let major = PgMajor::new(major).unwrap();
        let headers = Headers::read(body, body.len(), major, &mut |block| blocks.push(block))?;
        Some((headers, blocks))
    }

    /// Two blocks of one relation, the first with an image, data of the second, and main data behind an origin.
    fn body(image: &[u8]) -> Vec<u8> {
        let mut body = [&[0, 0x10, 0, 0][..], image].concat();
        body.extend(words(&[1663, 5, 16384, 7]));
        body.extend([1, 0x82, 3, 0]);
        body.extend(words(&[9]));
        body.extend([253, 1, 0, 255, 2]);
        body.extend([8; 40 + 3]);
        body.extend([1, 2]);
        body
    }

    #[test]
    fn blocks_and_main_data_are_found_whatever_the_image() {
        let first = BlockRef { id: 0, fork: 0, tablespace: 1663, database: 5, relation: 16384, block: 7 };
        let second = BlockRef { id: 1, fork: 2, block: 9, ..first };
        // The hole's length is there only where the image is compressed; how that is marked depends on the version.
        let (short, long) = ([40, 0, 24, 0, 0x01], |mark: u8| [40, 0, 24, 0, 0x01 | mark, 9, 0]);
        for (image, major) in
            [(&short[..], 13), (&short, 19), (&long(0x02), 14), (&long(0x04), 15), (&long(0x10), 19)]
        {
            let body = body(image);
            let (headers, blocks) = read(&body, major).unwrap();
            assert_eq!(blocks, [first, second], "{image:?} {major}");
            assert_eq!(headers.main_data(&body), Some(&[1, 2][..]));
        }
    }

    #[test]
    fn a_body_without_main_data_ends_with_what_its_blocks_announce() {
        let mut body = vec![0, 0x20, 3, 0];
        body.extend(words(&[1663, 5, 16384, 7]));
        body.extend([255; 3]);
        let (headers, blocks) = read(&body, 17).unwrap();
        assert_eq!((headers, blocks.len()), (Headers { end: 20, main: 0 }, 1));
        assert_eq!(headers.main_data(&body), None);
        assert_eq!(read(&[0, 0x80, 0, 0, 7, 0, 0, 0, 255, 1, 9], 17), None, "the same relation as none");
        assert_eq!(read(&body[..10], 17), None, "cut");
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(body: Vec<u8>, major in 13u32..=19) {
            if let Some((headers, _)) = read(&body, major) {
                let _data = headers.main_data(&body);
            }
        }
    }
}
