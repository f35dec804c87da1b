//! Entries that describe the next one: pax records, and GNU tar's long names and links.
//!
//! PostgreSQL writes none of them; other programs that speak its protocol may.

use ::tar::EntryType;

use super::error::shown;

/// An extension that is longer is refused.
const MAX_EXTENSION: u64 = 64 << 10;

/// What is known about the next entry.
#[derive(Default, Debug)]
pub(super) struct Extension {
    /// Its name.
    pub(super) path: Option<Vec<u8>>,
    /// Where its link leads.
    pub(super) link: Option<Vec<u8>>,
    /// Its length.
    pub(super) size: Option<u64>,
    kind: Option<EntryType>,
    content: Vec<u8>,
}

impl Extension {
    /// Whether an entry of this kind describes others.
    pub(super) fn is_one(kind: EntryType) -> bool {
        kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions()
            || kind.is_gnu_longname()
            || kind.is_gnu_longlink()
    }

    /// An entry of that kind begins; so many bytes follow.
    pub(super) fn begin(&mut self, kind: EntryType, size: u64) -> Result<(), String> {
        if size > MAX_EXTENSION {
            return Err(format!("an extension of {size} bytes"));
        }
        self.kind = Some(kind);
        self.content.clear();
        Ok(())
    }

    /// The next of them.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.content.extend_from_slice(bytes);
    }

    /// All are there.
    pub(super) fn complete(&mut self) -> Result<(), String> {
        let Some(kind) = self.kind.take() else { return Ok(()) };
        let content = std::mem::take(&mut self.content);
        if kind.is_gnu_longname() || kind.is_gnu_longlink() {
            let name = content.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
            *if kind.is_gnu_longname() { &mut self.path } else { &mut self.link } = Some(name);
            return Ok(());
        }
        // Global ones are about what no restore needs.
        if kind.is_pax_local_extensions() { self.pax(&content) } else { Ok(()) }
    }

    /// Whether nothing was said about an entry that did not come.
    pub(super) fn is_empty(&self) -> bool {
        self.path.is_none() && self.link.is_none() && self.size.is_none()
    }

    /// Records `LENGTH KEY=VALUE\n`; the length counts the whole record.
    fn pax(&mut self, mut content: &[u8]) -> Result<(), String> {
        let bad = || "a pax record that cannot be understood".to_owned();
        while !content.is_empty() {
            let blank = content.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length = content.get(..blank).and_then(|digits| std::str::from_utf8(digits).ok());
            let length: usize = length.and_then(|digits| digits.parse().ok()).ok_or_else(bad)?;
            let record = content.get(blank + 1..length).ok_or_else(bad)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = (record.get(..equals), record.get(equals + 1..).unwrap_or_default());
            match key.unwrap_or_default() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                    self.size = Some(size.ok_or_else(|| format!("a pax record of size {}", shown(value)))?);
                }
                _ => {}
            }
            content = content.get(length..).unwrap_or_default();
        }
        Ok(())
    }
}
