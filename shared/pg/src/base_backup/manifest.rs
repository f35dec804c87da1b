//! The server's backup manifest: a list of the files it sent, with sizes and checksums, and a checksum of its own.
//!
//! Source: "Backup Manifest Format" of the manual, `src/common/parse_manifest.c`. It is compared with what was received while
//! it is read, file by file in the order of the stream, so that neither list is ever in memory. Its own SHA-256 covers every
//! line but the last.

use std::fmt;
use std::io::{self, ErrorKind, Read};

use aws_lc_rs::digest::{Context, SHA256};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use walpoint_base::{Lsn, SystemId, TimelineId};

use super::error::{BaseBackupError, shown};
use super::ledger::{LedgerReader, Received, ReceivedFiles};

/// A line that is longer is refused: it describes one file.
const MAX_LINE: usize = 64 << 10;

/// No history has more timelines.
const MAX_RANGES: usize = 10_000;

/// What a manifest says besides its files.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ServerManifest {
    /// Which cluster; from 17 on.
    pub system_id: Option<SystemId>,
    /// How many files it lists.
    pub files: u64,
    /// The WAL that the backup needs: timeline, begin and end of each range.
    pub wal: Vec<(TimelineId, Lsn, Lsn)>,
}

/// One file of a manifest, as it is written there.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ManifestFile {
    /// Its path, if that is UTF-8.
    #[serde(rename = "Path")]
    path: Option<String>,
    /// Its path in hexadecimal otherwise.
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

#[derive(Deserialize)]
struct Range {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl ManifestFile {
    /// What should have been received.
    pub fn expected(&self) -> Result<Received, String> {
        let path = match (&self.path, &self.encoded_path) {
            (Some(path), None) => path.clone().into_bytes(),
            (None, Some(encoded)) => hex(encoded).ok_or("a path that is not hexadecimal")?,
            _ => return Err("a file with no path, or with two".to_owned()),
        };
        let named = || shown(&path);
        if self.algorithm.as_deref() != Some("CRC32C") {
            let algorithm = self.algorithm.as_deref().unwrap_or("none");
            return Err(format!("the checksum of {} is of the kind {algorithm}, not CRC32C", named()));
        }
        // The four bytes of the number as the server has them in memory.
        let crc = self.checksum.as_deref().and_then(hex).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        let crc = crc.map(u32::from_le_bytes).ok_or_else(|| format!("{} has no CRC32C", named()))?;
        Ok(Received { path, size: self.size, crc })
    }
}

/// Reads a manifest to its end and compares it with what was received; both have to hold the same files.
pub fn check(manifest: impl Read, ledger: ReceivedFiles) -> Result<ServerManifest, BaseBackupError> {
    let mut ledger = ledger.read()?;
    let mut lines = Lines::new(manifest);
    let mut differs = None;
    let parsed = {
        // From an unbuffered reader every byte would be a call.
        let mut json =
            serde_json::Deserializer::from_reader(io::BufReader::with_capacity(1 << 16, &mut lines));
        let comparison = Comparison { ledger: &mut ledger, differs: &mut differs };
        Whole(comparison).deserialize(&mut json).and_then(|parsed| json.end().map(|()| parsed))
    };
    if let Some(differs) = differs {
        return Err(differs);
    }
    let (manifest, stated) = parsed.map_err(|error| match error.is_io() {
        true => BaseBackupError::Io(error.into()),
        false => BaseBackupError::malformed(format!("its manifest: {error}")),
    })?;
    if let Some(more) = ledger.next()? {
        let path = shown(&more.path);
        return Err(BaseBackupError::Differs(format!("{path} was received and is not in the manifest")));
    }
    let computed = lines.digest()?;
    match stated.as_deref().and_then(hex) {
        Some(stated) if stated == computed => Ok(manifest),
        Some(_) => Err(BaseBackupError::Differs("the manifest has another checksum than it says".to_owned())),
        None => Err(BaseBackupError::malformed("its manifest has no checksum of its own")),
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let pairs = digits.chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// Compares one file after the other.
struct Comparison<'a> {
    ledger: &'a mut LedgerReader,
    /// Why both are not the same; the parser's own error would hide it.
    differs: &'a mut Option<BaseBackupError>,
}

impl Comparison<'_> {
    fn file(&mut self, file: &ManifestFile) -> Result<(), BaseBackupError> {
        let expected =
            file.expected().map_err(|what| BaseBackupError::malformed(format!("its manifest: {what}")))?;
        let path = shown(&expected.path);
        let differs = |what: String| Err(BaseBackupError::Differs(what));
        match self.ledger.next()? {
            None => differs(format!("{path} is in the manifest and was not received")),
            Some(received) if received.path != expected.path => {
                differs(format!("{path} is next in the manifest, and {} was received", shown(&received.path)))
            }
            Some(received) if received.size != expected.size => differs(format!(
                "{path} has {} bytes in the manifest, {} were received",
                expected.size, received.size
            )),
            Some(received) if received.crc != expected.crc => differs(format!(
                "{path} has the CRC-32C {:08X} in the manifest and {:08X} as received",
                expected.crc, received.crc
            )),
            Some(_) => Ok(()),
        }
    }
}

/// The whole manifest; what it says, and its own checksum.
struct Whole<'a>(Comparison<'a>);

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = (ServerManifest, Option<String>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = (ServerManifest, Option<String>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut manifest, mut checksum) = (ServerManifest::default(), None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "PostgreSQL-Backup-Manifest-Version" => match map.next_value::<u64>()? {
                    1 | 2 => {}
                    other => return Err(A::Error::custom(format!("version {other} is not known"))),
                },
                "System-Identifier" => manifest.system_id = Some(SystemId(map.next_value()?)),
                "Files" => manifest.files += map.next_value_seed(Files(&mut self.0))?,
                "WAL-Ranges" => manifest.wal = map.next_value_seed(Ranges)?,
                "Manifest-Checksum" => checksum = Some(map.next_value::<String>()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok((manifest, checksum))
    }
}

/// The list of files.
struct Files<'a, 'b>(&'a mut Comparison<'b>);

impl<'de> DeserializeSeed<'de> for Files<'_, '_> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Files<'_, '_> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<u64, A::Error> {
        let mut files = 0;
        while let Some(file) = seq.next_element::<ManifestFile>()? {
            if let Err(differs) = self.0.file(&file) {
                *self.0.differs = Some(differs);
                return Err(A::Error::custom("the comparison ended"));
            }
            files += 1;
        }
        Ok(files)
    }
}

/// The list of ranges of WAL.
struct Ranges;

impl<'de> DeserializeSeed<'de> for Ranges {
    type Value = Vec<(TimelineId, Lsn, Lsn)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Ranges {
    type Value = Vec<(TimelineId, Lsn, Lsn)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of ranges of WAL")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut ranges = Vec::new();
        while let Some(range) = seq.next_element::<Range>()? {
            let read = || {
                Some((TimelineId::new(range.timeline)?, range.start.parse().ok()?, range.end.parse().ok()?))
            };
            let range = read().filter(|_| ranges.len() < MAX_RANGES);
            ranges.push(range.ok_or_else(|| A::Error::custom("a range of WAL that is none"))?);
        }
        Ok(ranges)
    }
}

/// Passes bytes on and hashes every line but the last. No line is long.
struct Lines<R> {
    inner: R,
    digest: Context,
    /// The last whole line, not hashed yet.
    last: Vec<u8>,
    /// The line that is being read.
    line: Vec<u8>,
}

impl<R: Read> Lines<R> {
    fn new(inner: R) -> Self {
        Self { inner, digest: Context::new(&SHA256), last: Vec::new(), line: Vec::new() }
    }

    fn digest(self) -> Result<Vec<u8>, BaseBackupError> {
        if !self.line.is_empty() || self.last.is_empty() {
            return Err(BaseBackupError::malformed("its manifest does not end with a line"));
        }
        Ok(self.digest.finish().as_ref().to_vec())
    }
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        for piece in buffer.get(..n).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() > MAX_LINE {
                return Err(io::Error::new(ErrorKind::InvalidData, "a line of the manifest is too long"));
            }
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.digest.update(&self.last);
                std::mem::swap(&mut self.last, &mut self.line);
                self.line.clear();
            }
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
