//! Reading and writing the binary tables of a backup: little-endian integers and counted bytes.
//!
//! [`Input`] is total: whatever the bytes, it gives values or [`Malformed`], never reads past the end, and hands out
//! slices of what is there instead of allocating for what a length claims.

/// Bytes that are not what the format says, and in what way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    /// For a fixed text.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Bytes that are being read from the front.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes are left. A count of things of at least `n` bytes each cannot exceed this divided by `n`.
    pub(super) fn len(self) -> usize {
        self.0.len()
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let Some((head, tail)) = self.0.split_at_checked(n) else {
            return Err(Malformed(format!("it ends {} bytes early", n - self.0.len())));
        };
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some((head, tail)) = self.0.split_first_chunk::<N>() else {
            return Err(Malformed(format!("it ends {} bytes early", N - self.0.len())));
        };
        self.0 = tail;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_le_bytes)
    }

    pub(super) fn hash(&mut self) -> Result<[u8; 32], Malformed> {
        self.array()
    }

    /// Bytes after a 16-bit length.
    pub(super) fn short_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// A 32-bit count of things that take at least `each` bytes: more than fit in the rest is an error, so what is
    /// allocated for them is in proportion to what was read.
    pub(super) fn count(&mut self, each: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if count > self.len() / each.max(1) {
            return Err(Malformed(format!("{count} entries are announced, {} bytes are left", self.len())));
        }
        Ok(count)
    }

    /// An error if anything is left.
    pub(super) fn end(self) -> Result<(), Malformed> {
        match self.0.len() {
            0 => Ok(()),
            n => Err(Malformed(format!("{n} bytes too many"))),
        }
    }
}

/// What is appended to a buffer.
pub(super) trait Output {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn put_i64(&mut self, value: i64) {
        self.put(&value.to_le_bytes());
    }

    /// A 16-bit length and the bytes. Callers bound what they write: paths, link targets.
    fn put_short_bytes(&mut self, bytes: &[u8]) {
        let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.put_u16(len);
        self.put(bytes.get(..usize::from(len)).unwrap_or(bytes));
    }

    /// A 32-bit count. Callers bound what they count.
    fn put_count(&mut self, count: usize) {
        self.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

impl Output for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_nothing_beyond() {
        let mut bytes = Vec::new();
        bytes.put_u8(1);
        bytes.put_u16(2);
        bytes.put_u32(3);
        bytes.put_u64(4);
        bytes.put_i64(-5);
        bytes.put_short_bytes(b"six");
        let mut input = Input::new(&bytes);
        assert_eq!(input.u8(), Ok(1));
        assert_eq!(input.u16(), Ok(2));
        assert_eq!(input.u32(), Ok(3));
        assert_eq!(input.u64(), Ok(4));
        assert_eq!(input.i64(), Ok(-5));
        assert!(input.end().is_err());
        assert_eq!(input.short_bytes(), Ok(&b"six"[..]));
        assert!(input.u8().is_err() && input.end().is_ok());
    }

    #[test]
    fn a_count_that_cannot_be_true_is_refused_before_anything_is_allocated() {
        let mut bytes = Vec::new();
        bytes.put_u32(u32::MAX);
        bytes.extend([0; 100]);
        assert!(Input::new(&bytes).count(1).is_err());
        assert!(Input::new(&[3, 0, 0, 0, 9, 9, 9]).count(1).is_ok());
    }
}
