//! What all messages have in common: the length before them, version and kind, and how their fields are laid out.
//!
//! Reading is total: any bytes give a message or an error, and nothing longer than [`MAX_MESSAGE`] is allocated for them.

use std::io::{self, Read, Write};

/// No message is longer.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Changes when an old peer could misread a new one.
pub(super) const VERSION: u8 = 1;

/// A message that can be sent.
pub trait Message: Sized {
    /// Tells the kinds apart.
    const KIND: u8;
    /// Appends the fields.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads the fields. `None` if they are not there.
    fn take(input: &mut MessageInput<'_>) -> Option<Self>;

    /// The message with its length before it.
    fn encode(&self) -> io::Result<Vec<u8>> {
        let mut out = vec![0, 0, 0, 0, VERSION, Self::KIND];
        self.put(&mut out);
        let length = out.len() - 4;
        let length = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message too long"))?;
        for (to, from) in out.iter_mut().zip(length.to_le_bytes()) {
            *to = from;
        }
        Ok(out)
    }

    /// Reads what follows the length. Any bytes give a message or an error.
    fn decode(bytes: &[u8]) -> io::Result<Self> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut input = MessageInput(bytes);
        match (input.u8(), input.u8()) {
            (Some(VERSION), Some(kind)) if kind == Self::KIND => {}
            (Some(version), Some(kind)) => {
                return Err(invalid(format!(
                    "the peer speaks version {version} of the socket protocol, message {kind}; expected version {VERSION}, \
                     message {}\nHINT: Client and daemon must be of the same release.",
                    Self::KIND
                )));
            }
            _ => return Err(invalid("empty message".to_owned())),
        }
        let message = Self::take(&mut input).filter(|_| input.0.is_empty());
        message.ok_or_else(|| invalid("a message with missing or surplus bytes".to_owned()))
    }

    /// Sends the message.
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.encode()?)?;
        to.flush()
    }

    /// Receives a message.
    fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let mut bytes = vec![0; checked_length(length)?];
        from.read_exact(&mut bytes)?;
        Self::decode(&bytes)
    }
}

/// The length of a message, refused if it is over [`MAX_MESSAGE`].
pub fn checked_length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_MESSAGE {
        let text = format!("a message of {length} bytes: the peer does not speak this protocol");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(length)
}

/// The unread rest of a message.
pub struct MessageInput<'a>(&'a [u8]);

impl MessageInput<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn bytes(&mut self, length: usize) -> Option<&[u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    pub(super) fn text(&mut self) -> Option<String> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        String::from_utf8(self.bytes(length)?.to_vec()).ok()
    }
}

/// Appends a text, cut at a character boundary to what a length of 16 bits and the message can hold.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(16 << 10);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend(u16::try_from(end).unwrap_or_default().to_le_bytes());
    out.extend(&text.as_bytes()[..end]);
}
