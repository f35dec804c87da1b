//! Documents: the few objects that are JSON text, so that a person finds them readable in many years' time.
//!
//! The descriptor, lineages and key slots. The text ends with `,"check":"<64 hex digits>"}` and a newline; the check is
//! the BLAKE3 of the key, a zero byte and everything before that ending, keyed in an encrypted repository except for
//! the descriptor and key slots, which are read before there is a key. Unknown members are ignored.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{RepoError, Result};
use crate::layout::Key;
use crate::object::{ContentHash, Sealer};

/// No document is longer.
pub const MAX_DOCUMENT: usize = 64 << 10;

const ENDING: &str = ",\"check\":\"";
const ENDING_LEN: usize = ENDING.len() + 64 + 3;

/// A document that is complete and not yet stored.
#[derive(Clone, Debug)]
pub struct SealedDocument {
    /// Its name.
    pub key: Key,
    /// Its text.
    pub bytes: Bytes,
    /// Its check.
    pub check: ContentHash,
}

/// The text of `value`, which must serialise to a JSON object with at least one member.
pub fn seal(sealer: Option<&Sealer>, key: &Key, value: &impl Serialize) -> Result<SealedDocument> {
    let internal = |what: String| RepoError::Internal(format!("{key} cannot be written: {what}"));
    let text = serde_json::to_string(value).map_err(|e| internal(e.to_string()))?;
    let body = text.strip_suffix('}').ok_or_else(|| internal("it is no JSON object".to_owned()))?;
    let check = check(sealer, key, body)?;
    let bytes = Bytes::from(format!("{body}{ENDING}{check}\"}}\n"));
    Ok(SealedDocument { key: key.clone(), bytes, check })
}

/// Checks and reads a document.
pub fn open<T: DeserializeOwned>(sealer: Option<&Sealer>, key: &Key, bytes: &[u8]) -> Result<T> {
    let corrupt = |what: String| RepoError::corrupt(key, what);
    if bytes.len() > MAX_DOCUMENT {
        return Err(corrupt(format!("{} bytes are too many", bytes.len())));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| corrupt(e.to_string()))?;
    let told = written_check(text).ok_or_else(|| corrupt("it does not end with a check".to_owned()))?;
    let body = text.get(..text.len().saturating_sub(ENDING_LEN)).unwrap_or_default();
    if check(sealer, key, body)? != told {
        let hint = if sealer.is_some_and(Sealer::is_encrypted) { ", or the key is wrong" } else { "" };
        return Err(corrupt(format!("its text does not match its check{hint}")));
    }
    serde_json::from_str(text).map_err(|e| corrupt(e.to_string()))
}

/// The check at a document's end, unverified: decides whether two documents are the same.
pub fn written_check(text: &str) -> Option<ContentHash> {
    let ending = text.get(text.len().checked_sub(ENDING_LEN)?..)?;
    ending.strip_prefix(ENDING)?.strip_suffix("\"}\n")?.parse().ok()
}

fn check(sealer: Option<&Sealer>, key: &Key, body: &str) -> Result<ContentHash> {
    let mut hasher = match sealer.filter(|s| s.is_encrypted()) {
        Some(sealer) => {
            let secret = sealer.derive_key("document");
            blake3::Hasher::new_keyed(&secret.map_err(|e| RepoError::Internal(e.to_string()))?)
        }
        None => blake3::Hasher::new(),
    };
    hasher.update(key.as_str().as_bytes()).update(&[0]).update(body.as_bytes());
    Ok(ContentHash(*hasher.finalize().as_bytes()))
}

/// Values that a document holds as the text they print.
pub mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes the text.
    pub fn serialize<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads the text.
    pub fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: Display>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// As [`as_text`], where there may be no value.
pub mod as_text_or_none {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes the text.
    pub fn serialize<S: Serializer>(value: &Option<impl Display>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    /// Reads the text.
    pub fn deserialize<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: Display>,
    {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::object::testing::sealers;

    fn document() -> BTreeMap<String, u64> {
        BTreeMap::from([("format".to_owned(), 1), ("a".to_owned(), u64::MAX)])
    }

    #[test]
    fn is_json_and_comes_back() {
        let key = "walpoint.json".parse().unwrap();
        for sealer in sealers().iter().map(Some).chain([None]) {
            let sealed = seal(sealer, &key, &document()).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&sealed.bytes).unwrap();
            assert_eq!(json["check"], sealed.check.to_string());
            #[derive(serde::Deserialize, PartialEq, Debug)]
            struct Document {
                format: u64,
                a: u64,
            }
            let read: Document = open(sealer, &key, &sealed.bytes).unwrap();
            assert_eq!(read, Document { format: 1, a: u64::MAX });
            assert!(open::<Document>(sealer, &"other.json".parse().unwrap(), &sealed.bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_change_is_found(at: usize, byte: u8) {
            let key = "walpoint.json".parse().unwrap();
            for sealer in sealers() {
                let sealed = seal(Some(&sealer), &key, &document()).unwrap();
                let mut bytes = sealed.bytes.to_vec();
                let at = at % bytes.len();
                prop_assume!(bytes[at] != byte);
                bytes[at] = byte;
                prop_assert!(open::<serde_json::Value>(Some(&sealer), &key, &bytes).is_err());
            }
        }

        #[test]
        fn any_bytes_are_a_document_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let key = "walpoint.json".parse().unwrap();
            prop_assert!(open::<serde_json::Value>(None, &key, &bytes).is_err());
        }
    }
}
