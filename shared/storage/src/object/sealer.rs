//! Keys: what a repository's objects are checked with, and encrypted with if it was created so.
//!
//! From the master key, HKDF-SHA256 gives each object keys of its own (salt: the object's random salt; info: purpose and
//! kind), so no key is ever used with the same nonce twice, even if a name is written twice. The key for content hashes
//! is one for the repository: equality of content is decided by them across objects. Unencrypted, the checks are the
//! same computations without keys.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use zeroize::Zeroizing;

use super::codec::PooledCodec;
use super::{Codec, Level, ObjectKind};
use crate::ids::{ContentHash, RepositoryId};
use crate::layout::Key;

/// The secret from which all keys of an encrypted repository come. Wiped when dropped, never printed.
#[derive(Clone)]
pub struct MasterKey(Arc<Zeroizing<[u8; 32]>>);

impl MasterKey {
    /// From its 32 bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// A new one from the system's random source.
    pub fn random() -> Result<Self, SealError> {
        let mut bytes = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(bytes.as_mut_slice()).map_err(|_| SealError)?;
        Ok(Self(Arc::new(bytes)))
    }

    /// The bytes, to be wrapped into a key slot.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(***)")
    }
}

/// The cryptographic library failed: no random bytes, or an impossible length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cryptographic library failed")]
pub struct SealError;

/// How a repository's objects are sealed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sealer {
    repository: RepositoryId,
    master: Option<MasterKey>,
    /// The key of content hashes; `None` where they are not keyed.
    content: Option<Arc<Zeroizing<[u8; 32]>>>,
    /// The key of block hashes.
    block: Arc<Zeroizing<[u8; 32]>>,
    /// How it compresses; nothing that reads depends on it.
    level: Level,
}

impl Sealer {
    /// Checks, but no secrecy: CRC32 and unkeyed BLAKE3.
    pub fn plain(repository: RepositoryId) -> Self {
        // Block hashes are short, so they are keyed even here: nobody without the repository can make two blocks collide.
        let block = blake3::derive_key("walpoint 1 block", &repository.0);
        Self {
            repository,
            master: None,
            content: None,
            block: Arc::new(Zeroizing::new(block)),
            level: Level::default(),
        }
    }

    /// AES-256-GCM under keys derived from `master`.
    pub fn encrypted(repository: RepositoryId, master: MasterKey) -> Result<Self, SealError> {
        let derive =
            |info: &[u8]| derive(&master, &repository.0, &[info]).map(|k| Arc::new(Zeroizing::new(k)));
        let (content, block) = (derive(b"walpoint 1 content")?, derive(b"walpoint 1 block")?);
        Ok(Self { repository, content: Some(content), block, master: Some(master), level: Level::default() })
    }

    /// The same, compressing at another level.
    pub fn at(self, level: Level) -> Self {
        Self { level, ..self }
    }

    /// The level at which it compresses.
    pub fn level(&self) -> Level {
        self.level
    }

    /// One that compresses for it.
    pub fn codec(&self) -> PooledCodec {
        Codec::take(self.level)
    }

    /// The repository whose objects it seals.
    pub fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// Whether bodies are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.master.is_some()
    }

    /// A hasher whose result is comparable with the content hash in any object's header of this repository.
    pub fn content_hasher(&self) -> blake3::Hasher {
        self.content.as_ref().map_or_else(blake3::Hasher::new, |key| blake3::Hasher::new_keyed(key))
    }

    /// The content hash of `bytes`.
    pub fn content_hash(&self, bytes: &[u8]) -> ContentHash {
        ContentHash(*self.content_hasher().update(bytes).finalize().as_bytes())
    }

    /// The key for the 64-bit hashes of blocks in base backups: `blake3::keyed_hash`, the first 8 bytes. Keyed with a
    /// secret of this repository whether it is encrypted or not.
    pub fn block_key(&self) -> &[u8; 32] {
        &self.block
    }

    /// Another key for a purpose of its own; unencrypted repositories get one that is no secret.
    pub fn derive_key(&self, purpose: &str) -> Result<[u8; 32], SealError> {
        match &self.master {
            Some(master) => derive(master, &self.repository.0, &[b"walpoint 1 ", purpose.as_bytes()]),
            None => Ok(blake3::derive_key(&format!("walpoint 1 {purpose}"), &self.repository.0)),
        }
    }

    /// The keys of one object. To open frames got by ranged requests, `salt` comes from the object's header or from
    /// whoever remembers it.
    pub fn object_keys(&self, kind: ObjectKind, key: &Key, salt: Salt) -> Result<ObjectKeys, SealError> {
        let Some(master) = &self.master else {
            return Ok(ObjectKeys { kind, key: key.clone(), salt, secret: None });
        };
        let number = kind.number().to_le_bytes();
        let frame = Zeroizing::new(derive(master, &salt.0, &[b"walpoint 1 frame", &number])?);
        let header = Zeroizing::new(derive(master, &salt.0, &[b"walpoint 1 header", &number])?);
        let aead = UnboundKey::new(&AES_256_GCM, frame.as_slice()).map_err(|_| SealError)?;
        let secret = Some(Arc::new((LessSafeKey::new(aead), header)));
        Ok(ObjectKeys { kind, key: key.clone(), salt, secret })
    }
}

fn derive(master: &MasterKey, salt: &[u8], info: &[&[u8]]) -> Result<[u8; 32], SealError> {
    hkdf_sha256(master.expose(), salt, info)
}

/// HKDF-SHA256 (RFC 5869): 32 bytes of a secret; the parts of `info` are joined.
pub(crate) fn hkdf_sha256(secret: &[u8], salt: &[u8], info: &[&[u8]]) -> Result<[u8; 32], SealError> {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let okm = prk.expand(info, hkdf::HKDF_SHA256).map_err(|_| SealError)?;
    let mut key = [0; 32];
    okm.fill(&mut key).map_err(|_| SealError)?;
    Ok(key)
}

/// An object's random salt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Salt(pub [u8; 16]);

impl Salt {
    /// A new one from the system's random source.
    pub fn random() -> Result<Self, SealError> {
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| SealError)?;
        Ok(Self(salt))
    }
}

/// What one object's header and frames are checked and opened with. Cheap to clone, usable from several threads.
#[derive(Clone)]
pub struct ObjectKeys {
    kind: ObjectKind,
    key: Key,
    salt: Salt,
    /// For bodies, and for headers.
    secret: Option<Arc<(LessSafeKey, Zeroizing<[u8; 32]>)>>,
}

/// Length of the check behind a body.
const TAG: usize = 16;
const CRC: usize = 4;

impl ObjectKeys {
    /// The kind of the object.
    pub fn kind(&self) -> ObjectKind {
        self.kind
    }

    /// The object's name.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The object's salt.
    pub fn salt(&self) -> Salt {
        self.salt
    }

    /// Whether bodies are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.secret.is_some()
    }

    /// Bytes that follow each body: an AES-GCM tag or a CRC32.
    pub fn check_len(&self) -> usize {
        if self.is_encrypted() { TAG } else { CRC }
    }

    /// The check of an object's or frame's header: over the salt, the kind, the header without its check, and
    /// the object's name.
    pub(super) fn header_check<const N: usize>(&self, header: &[u8]) -> [u8; N] {
        let mut hasher = match &self.secret {
            Some(secret) => blake3::Hasher::new_keyed(&secret.1),
            None => blake3::Hasher::new(),
        };
        hasher.update(&self.salt.0).update(&self.kind.number().to_le_bytes()).update(header);
        hasher.update(self.key.as_str().as_bytes());
        let mut check = [0; N];
        hasher.finalize_xof().fill(&mut check);
        check
    }

    /// Gives `out` the sealed body, encrypted in `scratch` where that is needed, and its check.
    pub(super) fn seal_body(
        &self,
        index: u32,
        header: &[u8],
        body: &[u8],
        scratch: &mut Vec<u8>,
        mut out: impl FnMut(&[u8]),
    ) -> Result<(), SealError> {
        match &self.secret {
            None => {
                out(body);
                out(&crc(header, body).to_le_bytes());
            }
            Some(secret) => {
                scratch.clear();
                scratch.extend_from_slice(body);
                let aad = Aad::from(self.aad(header));
                let tag = secret.0.seal_in_place_separate_tag(nonce(index), aad, scratch);
                let tag = tag.map_err(|_| SealError)?;
                out(scratch);
                out(tag.as_ref());
            }
        }
        Ok(())
    }

    /// Checks a body; gives its plain bytes, decrypted into `scratch` where that is needed. `None` if it is damaged.
    pub(super) fn open_body<'a>(
        &self,
        index: u32,
        header: &[u8],
        body: &'a [u8],
        check: &[u8],
        scratch: &'a mut Vec<u8>,
    ) -> Option<&'a [u8]> {
        match &self.secret {
            None => (crc(header, body).to_le_bytes() == check).then_some(body),
            Some(secret) => {
                if scratch.len() < body.len() {
                    scratch.resize(body.len(), 0);
                }
                let plain = scratch.get_mut(..body.len())?;
                let aad = Aad::from(self.aad(header));
                secret.0.open_separate_gather(nonce(index), aad, body, check, plain).ok()?;
                Some(plain)
            }
        }
    }

    fn aad(&self, header: &[u8]) -> Vec<u8> {
        [header, self.key.as_str().as_bytes()].concat()
    }
}

impl fmt::Debug for ObjectKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectKeys({:?} {})", self.kind, self.key)
    }
}

/// The frame's index as a 96-bit big-endian number.
fn nonce(index: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[8..].copy_from_slice(&index.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn crc(header: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header);
    crc.update(body);
    crc.finalize()
}
