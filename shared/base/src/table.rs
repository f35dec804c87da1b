//! Settings that come from a table of the configuration.
//!
//! What the keys of a table mean together is known to the crate whose settings they are; in which file and line a key stands,
//! to the crate that reads the file. Neither depends on the other: this is what passes between them.

/// Settings that are made of the keys of a table.
pub trait FromTable: Sized {
    /// The keys, each of its own type.
    type Table;

    /// The settings, or the key that does not go with the others.
    fn from_table(table: Self::Table) -> Result<Self, WrongKey>;

    /// The place that the settings lead to, as far as they alone show it: two tables with the same one are one. `None` if they do not.
    fn place(&self) -> Option<String> {
        None
    }
}

/// A key that does not go with the others of its table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}\nHINT: {hint}")]
pub struct WrongKey {
    /// The key.
    pub key: &'static str,
    /// What is wrong with it: a line that names it, without a full stop.
    pub what: String,
    /// What to do: whole sentences.
    pub hint: String,
}
