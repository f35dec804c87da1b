//! One key slot, `keys/<slot>`: a document that holds the master key under a key made of a secret.
//!
//! The secret is 32 bytes: stretched from a passphrase, read from a key file, or what a command (a key management service)
//! makes of the slot's blob. HKDF with the slot's salt makes the wrapping key of it, so that key is never used twice and the
//! nonce can be zero. Everything the slot says before the wrapped key is authenticated by it.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::stretch::Cost;
use crate::descriptor::now;
use crate::document::{self, SealedDocument, as_text};
use crate::error::{RepoError, Result};
use crate::ids::parse_hex;
use crate::layout::{self, Key};
use crate::object::sealer::hkdf_sha256;
use crate::object::{FORMAT_VERSION, MasterKey, RepositoryId, Salt, SealError};

/// The longest blob that a command may make; a document has 64 KiB.
pub const MAX_BLOB: usize = 16 << 10;
/// The longest comment, in bytes.
pub const MAX_COMMENT: usize = 200;

const TAG: usize = 16;
const WRAPPED: usize = 32 + TAG;
/// What precedes the wrapped key in the text: quotes within strings are escaped, so it stands nowhere else.
const WRAPPED_MEMBER: &str = ",\"wrapped\":";

/// What opens a slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SlotKind {
    /// A passphrase, stretched at this cost.
    Passphrase(Cost),
    /// A key file.
    Key,
    /// A command that turns this blob into the secret.
    Command {
        /// What the wrapping command printed.
        blob: Vec<u8>,
    },
}

impl SlotKind {
    /// As the document has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Passphrase(_) => "passphrase",
            Self::Key => "key",
            Self::Command { .. } => "command",
        }
    }
}

/// A slot that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// The repository it was made for.
    pub repository: RepositoryId,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// What somebody wrote beside it.
    pub comment: String,
    /// What opens it.
    pub kind: SlotKind,
    /// Makes its wrapping key its own.
    pub salt: Salt,
    /// The master key, encrypted, and the tag.
    wrapped: [u8; WRAPPED],
    /// What is authenticated: the document's name, a zero byte, its text up to the wrapped key.
    authenticated: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct SlotDocument {
    format: u16,
    #[serde(with = "as_text")]
    repository: RepositoryId,
    created: jiff::Timestamp,
    comment: String,
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_kib: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lanes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blob: Option<String>,
    salt: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wrapped: Option<String>,
}

/// A slot that is not made yet.
#[derive(Clone, Debug)]
pub struct NewSlot<'a> {
    /// Its number.
    pub number: u32,
    /// The repository it is for.
    pub repository: RepositoryId,
    /// A note for people, of at most [`MAX_COMMENT`] bytes.
    pub comment: &'a str,
    /// What shall open it.
    pub kind: SlotKind,
    /// Random, used for this slot only; a passphrase is stretched with it.
    pub salt: Salt,
}

impl NewSlot<'_> {
    /// The document that holds `master` under `secret`.
    pub fn wrap(self, secret: &[u8; 32], master: &MasterKey) -> Result<SealedDocument> {
        let key = layout::key_slot(self.number);
        if self.comment.len() > MAX_COMMENT {
            return Err(RepoError::settings(
                "comment",
                format!("is longer than {MAX_COMMENT} bytes: shorten it"),
            ));
        }
        let mut document = SlotDocument {
            format: FORMAT_VERSION,
            repository: self.repository,
            created: now(),
            comment: self.comment.to_owned(),
            kind: self.kind.name().to_owned(),
            memory_kib: None,
            passes: None,
            lanes: None,
            blob: None,
            salt: hex(&self.salt.0),
            wrapped: None,
        };
        match &self.kind {
            SlotKind::Passphrase(cost) => {
                (document.memory_kib, document.passes, document.lanes) =
                    (Some(cost.memory_kib), Some(cost.passes), Some(cost.lanes));
            }
            SlotKind::Key => {}
            SlotKind::Command { blob } => document.blob = Some(hex(blob)),
        }
        let head = serde_json::to_string(&document).map_err(|e| RepoError::Internal(e.to_string()))?;
        let authenticated = authenticated(&key, head.strip_suffix('}').unwrap_or(&head));
        let mut wrapped = Zeroizing::new(master.expose().to_vec());
        let sealing = wrapping_key(secret, self.salt).map_err(RepoError::sealing)?;
        let tag =
            sealing.seal_in_place_separate_tag(zero(), Aad::from(&authenticated), wrapped.as_mut_slice());
        wrapped.extend_from_slice(tag.map_err(|_| RepoError::sealing(SealError))?.as_ref());
        document.wrapped = Some(hex(&wrapped));
        document::seal(None, &key, &document)
    }
}

impl Slot {
    /// Reads the document of the slot with that number. Any bytes give a slot or an error.
    pub fn parse(number: u32, bytes: &[u8]) -> Result<Self> {
        let key = layout::key_slot(number);
        let corrupt = |what: &str| RepoError::corrupt(&key, what);
        let document: SlotDocument = document::open(None, &key, bytes)?;
        if document.format != FORMAT_VERSION {
            return Err(corrupt("it is of a newer format version\nHINT: Use a newer Walpoint."));
        }
        let kind = match document.kind.as_str() {
            "passphrase" => {
                let cost = (document.memory_kib, document.passes, document.lanes);
                let (Some(memory_kib), Some(passes), Some(lanes)) = cost else {
                    return Err(corrupt("it does not say what Argon2id costs"));
                };
                let cost = Cost { memory_kib, passes, lanes };
                if !cost.is_acceptable() {
                    return Err(corrupt(
                        "it asks for more memory or time for its passphrase than is reasonable, or for none: it was not made \
                         by this program",
                    ));
                }
                SlotKind::Passphrase(cost)
            }
            "key" => SlotKind::Key,
            "command" => {
                let blob = document.blob.as_deref().and_then(unhex);
                let blob = blob.filter(|blob| (1..=MAX_BLOB).contains(&blob.len()));
                SlotKind::Command { blob: blob.ok_or_else(|| corrupt("its blob is missing or too long"))? }
            }
            _ => {
                return Err(corrupt(
                    "it is of a kind that this program does not know\nHINT: Use a newer Walpoint.",
                ));
            }
        };
        if document.comment.len() > MAX_COMMENT {
            return Err(corrupt("its comment is too long"));
        }
        let salt = parse_hex(&document.salt).map(Salt).ok_or_else(|| corrupt("its salt is not 16 bytes"))?;
        let wrapped = document.wrapped.as_deref().and_then(parse_hex);
        let text = std::str::from_utf8(bytes).map_err(|_| corrupt("it is not text"))?;
        let head = text.split_once(WRAPPED_MEMBER).map(|(head, _)| head);
        let (Some(wrapped), Some(head)) = (wrapped, head) else {
            return Err(corrupt("it holds no wrapped key"));
        };
        Ok(Self {
            number,
            repository: document.repository,
            created: document.created,
            comment: document.comment,
            kind,
            salt,
            wrapped,
            authenticated: authenticated(&key, head),
        })
    }

    /// The key in it; `None` if the secret is another one, or the slot was tampered with.
    pub fn unwrap(&self, secret: &[u8; 32]) -> Result<Option<MasterKey>> {
        let (sealed, tag) = self.wrapped.split_at(32);
        let mut master = Zeroizing::new([0; 32]);
        let key = wrapping_key(secret, self.salt).map_err(RepoError::sealing)?;
        let opened = key.open_separate_gather(
            zero(),
            Aad::from(&self.authenticated),
            sealed,
            tag,
            master.as_mut_slice(),
        );
        Ok(opened.is_ok().then(|| MasterKey::new(*master)))
    }
}

fn wrapping_key(secret: &[u8; 32], salt: Salt) -> Result<LessSafeKey, SealError> {
    let key = Zeroizing::new(hkdf_sha256(secret, &salt.0, &[b"walpoint 1 slot"])?);
    let key = UnboundKey::new(&AES_256_GCM, key.as_slice()).map_err(|_| SealError)?;
    Ok(LessSafeKey::new(key))
}

/// The wrapping key seals one message only.
fn zero() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn authenticated(key: &Key, head: &str) -> Vec<u8> {
    [key.as_str().as_bytes(), &[0], head.as_bytes()].concat()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 * bytes.len());
    // Writing to a String cannot fail.
    bytes.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap_or_default());
    text
}

/// Lower-case hexadecimal digits as bytes.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| parse_hex::<1>(std::str::from_utf8(pair).ok()?).map(|[byte]| byte)).collect()
}
