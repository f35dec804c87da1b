//! The messages inside the one CopyOut of 15 and later.
//!
//! Source: "Streaming Replication Protocol" of the manual, `BASE_BACKUP`. Each CopyData begins with a byte that says what it
//! is: `n` a new archive (its name and a tablespace's path, both ended by a zero), `d` data of the archive or of the
//! manifest, `p` the server's progress (64 bits), `m` the manifest begins.

use bytes::Bytes;

/// A message of the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Framed {
    /// An archive begins.
    Archive {
        /// `base.tar`, or `<oid>.tar` of a tablespace.
        name: Vec<u8>,
    },
    /// Data of what began last.
    Data(Bytes),
    /// Bytes that the server has read.
    Progress,
    /// The manifest begins.
    Manifest,
}

/// Reads one CopyData.
pub(super) fn decode(message: &Bytes) -> Result<Framed, String> {
    let (kind, body) = message.split_first().ok_or("an empty message")?;
    match (kind, body) {
        (b'd', _) => Ok(Framed::Data(message.slice(1..))),
        (b'n', body) => {
            let mut strings = body.split(|byte| *byte == 0);
            let (name, path, rest) = (strings.next(), strings.next(), strings.next());
            match (name, path, rest, strings.next()) {
                (Some(name), Some(_), Some([]), None) => Ok(Framed::Archive { name: name.to_vec() }),
                _ => Err("the beginning of an archive without name and path".to_owned()),
            }
        }
        (b'p', [_, _, _, _, _, _, _, _]) => Ok(Framed::Progress),
        (b'm', []) => Ok(Framed::Manifest),
        (kind, body) => {
            Err(format!("a message of kind \"{}\" with {} bytes", kind.escape_ascii(), body.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &'static [u8]) -> Result<Framed, String> {
        decode(&Bytes::from_static(bytes))
    }

    #[test]
    fn each_kind() {
        assert_eq!(read(b"nbase.tar\0\0"), Ok(Framed::Archive { name: b"base.tar".to_vec() }));
        assert_eq!(read(b"n16384.tar\0/space\0"), Ok(Framed::Archive { name: b"16384.tar".to_vec() }));
        assert_eq!(read(b"dabc"), Ok(Framed::Data(Bytes::from_static(b"abc"))));
        assert_eq!(read(b"p\0\0\0\0\0\0\0\x01"), Ok(Framed::Progress));
        assert_eq!(read(b"m"), Ok(Framed::Manifest));
        for bad in [&b""[..], b"nbase.tar\0", b"nbase.tar", b"nbase.tar\0\0x", b"p\0", b"mx", b"x"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            let _result = decode(&Bytes::from(bytes));
        }
    }
}
