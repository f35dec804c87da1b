//! A record's hash with its number, which stand for all records up to it, and the copy of the last one's.
//!
//! `evidence/head` saves a writer from looking for the end of the chain. Nothing rests on it: who finds none, one that cannot be read
//! or one that is out of date lists the records. It is replaced with each record, in one attempt.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use walpoint_storage::error::{RepoError, Result, error_chain, found};
use walpoint_storage::object::{ObjectKind, ObjectReader, ObjectWriter};

use super::Evidence;

/// No copy is longer than this many plain bytes.
const MAX_HEAD: usize = 1024;

/// SHA-256 of a record's content.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RecordHash(pub [u8; 32]);

/// The hash and the number of a record: `HASH:NUMBER`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// The record's hash.
    pub hash: RecordHash,
    /// Its number, from 1.
    pub number: u64,
}

/// The copy, as JSON has it.
#[derive(Serialize, Deserialize)]
struct HeadCopy {
    number: u64,
    hash: RecordHash,
}

impl RecordHash {
    /// Of these bytes.
    pub fn of(content: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.iter_mut()
            .zip(digest::digest(&digest::SHA256, content).as_ref())
            .for_each(|(to, from)| *to = *from);
        Self(hash)
    }
}

impl fmt::Display for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RecordHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a hash is 64 lower-case hexadecimal digits".to_owned();
        if text.len() != 64 || !text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(hash))
    }
}

impl TryFrom<String> for RecordHash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RecordHash> for String {
    fn from(hash: RecordHash) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.hash, self.number)
    }
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a head has the form HASH:NUMBER".to_owned();
        let (hash, number) = text.trim().split_once(':').ok_or_else(wrong)?;
        let number = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
        Ok(Self { hash: hash.parse()?, number })
    }
}

impl Evidence {
    /// What the copy says: the end of the chain as some writer knew it. `None` if there is none, or it cannot be read.
    pub(super) async fn head_copy(&self) -> Result<Option<Head>> {
        let key = self.paths.evidence_head();
        let Some(bytes) = found(self.store.get(&key).await)? else { return Ok(None) };
        let mut json = Vec::new();
        let read = ObjectReader::open(&self.sealer, &[ObjectKind::Evidence], &key, bytes)
            .and_then(|reader| reader.read_all(MAX_HEAD, &mut json));
        if let Err(error) = read {
            tracing::debug!("{key} is not used: {error}");
            return Ok(None);
        }
        let copy = serde_json::from_slice(&json).ok().filter(|copy: &HeadCopy| copy.number > 0);
        Ok(copy.map(|HeadCopy { number, hash }| Head { hash, number }))
    }

    /// Has the copy say this. That it fails costs the next writer a listing.
    pub(super) async fn copy_head(&self, head: Head) {
        if let Err(error) = self.try_copy_head(head).await {
            tracing::debug!("{} was not written: {}", self.paths.evidence_head(), error_chain(&error));
        }
    }

    async fn try_copy_head(&self, Head { hash, number }: Head) -> Result<()> {
        let key = self.paths.evidence_head();
        let json = serde_json::to_vec(&HeadCopy { number, hash })
            .map_err(|error| RepoError::Internal(format!("{key} cannot be written: {error}")))?;
        let sealed = ObjectWriter::new(&self.sealer, ObjectKind::Evidence, &key).and_then(|mut writer| {
            writer.frame(&json)?;
            writer.finish()
        });
        self.store.replace_copy(&sealed.map_err(RepoError::sealing)?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_and_heads_are_read_as_they_are_printed() {
        let hash = RecordHash::of(b"abc");
        assert_eq!(hash.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let head = Head { hash, number: 7 };
        assert_eq!(head.to_string().parse(), Ok(head));
        let upper = head.to_string().to_uppercase();
        for bad in [
            "",
            ":",
            "7",
            "abc:1",
            &format!("{hash}:0"),
            &format!("{hash}:x"),
            &format!("{hash}"),
            &upper,
            "ü:1",
        ] {
            assert!(bad.parse::<Head>().is_err(), "{bad}");
        }
    }
}
