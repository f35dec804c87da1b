//! The answer to a query: rows of text, with typed access by column name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, RowDescriptionBody};
use walpoint_base::{Lsn, SystemId, TimelineId};

/// A value that is not what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct RowError {
    what: String,
}

impl RowError {
    fn new(what: String) -> Self {
        Self { what }
    }
}

/// All rows of one result.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    columns: Arc<[String]>,
    rows: Vec<Row>,
    pub(super) tag: String,
}

/// One row.
#[derive(Debug, Clone)]
pub struct Row {
    columns: Arc<[String]>,
    // Copies: slices would keep the connection's whole read buffer alive.
    values: Vec<Option<Box<[u8]>>>,
}

impl Rows {
    pub(super) fn with_columns(description: &RowDescriptionBody) -> Result<Self, String> {
        let mut columns = Vec::new();
        let mut fields = description.fields();
        while let Some(field) = fields.next().map_err(|e| format!("a malformed row description: {e}"))? {
            columns.push(field.name().to_owned());
        }
        Ok(Self { columns: columns.into(), ..Self::default() })
    }

    pub(super) fn push(&mut self, body: &DataRowBody) -> Result<(), String> {
        let mut values = Vec::with_capacity(self.columns.len());
        let mut ranges = body.ranges();
        while let Some(range) = ranges.next().map_err(|e| format!("a malformed row: {e}"))? {
            let bytes = range.map(|range| body.buffer().get(range).map(Box::from).ok_or("a malformed row"));
            values.push(bytes.transpose()?);
        }
        if values.len() != self.columns.len() {
            return Err(format!("a row of {} values for {} columns", values.len(), self.columns.len()));
        }
        self.rows.push(Row { columns: Arc::clone(&self.columns), values });
        Ok(())
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What the server says it did, such as `SELECT 1`.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// In the order sent.
    pub fn iter(&self) -> std::slice::Iter<'_, Row> {
        self.rows.iter()
    }

    /// The only row; an error if there is none or more.
    pub fn one(mut self) -> Result<Row, RowError> {
        match (self.rows.pop(), self.rows.len()) {
            (Some(row), 0) => Ok(row),
            (None, _) => Err(RowError::new("no row where one was expected".into())),
            (Some(_), more) => Err(RowError::new(format!("{} rows where one was expected", more + 1))),
        }
    }
}

#[cfg(test)]
impl Rows {
    /// A result with these columns and rows, as if a server had sent it.
    pub(crate) fn fixture(columns: &[&str], rows: &[&[Option<&str>]]) -> Self {
        let columns: Arc<[String]> = columns.iter().map(|&column| column.to_owned()).collect();
        let value = |value: &Option<&str>| value.map(|text| Box::from(text.as_bytes()));
        let row = |row: &&[Option<&str>]| Row {
            columns: Arc::clone(&columns),
            values: row.iter().map(value).collect(),
        };
        Self { rows: rows.iter().map(row).collect(), columns, tag: String::new() }
    }
}

impl IntoIterator for Rows {
    type Item = Row;
    type IntoIter = std::vec::IntoIter<Row>;

    fn into_iter(self) -> Self::IntoIter {
        self.rows.into_iter()
    }
}

impl<'a> IntoIterator for &'a Rows {
    type Item = &'a Row;
    type IntoIter = std::slice::Iter<'a, Row>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Row {
    /// The bytes of a column as sent, `None` for NULL. An error if there is no such column.
    pub fn bytes(&self, column: &str) -> Result<Option<&[u8]>, RowError> {
        let at = self.columns.iter().position(|name| name == column);
        let value = at.and_then(|at| self.values.get(at));
        let value = value.ok_or_else(|| RowError::new(format!("the answer has no column {column:?}")))?;
        Ok(value.as_deref())
    }

    /// The bytes of the first column as sent, `Some(None)` for NULL; `None` if there is no column.
    pub fn first(&self) -> Option<Option<&[u8]>> {
        self.values.first().map(|value| value.as_deref())
    }

    /// The value of a column that may be NULL.
    pub fn nullable<T: FromText>(&self, column: &str) -> Result<Option<T>, RowError> {
        let Some(bytes) = self.bytes(column)? else { return Ok(None) };
        let text = std::str::from_utf8(bytes).ok();
        let value = text.and_then(T::from_text);
        value.map(Some).ok_or_else(|| {
            let shown: String = String::from_utf8_lossy(bytes).chars().take(100).collect();
            RowError::new(format!("column {column:?} holds {shown:?}, which is not {}", T::EXPECTED))
        })
    }

    /// The value of a column that is never NULL.
    pub fn get<T: FromText>(&self, column: &str) -> Result<T, RowError> {
        self.nullable(column)?.ok_or_else(|| RowError::new(format!("column {column:?} is NULL")))
    }

    /// A path on the server's machine, whatever its encoding; `None` if it is NULL or empty.
    pub fn path(&self, column: &str) -> Result<Option<PathBuf>, RowError> {
        let bytes = self.bytes(column)?.filter(|bytes| !bytes.is_empty());
        Ok(bytes.map(|bytes| PathBuf::from(OsStr::from_bytes(bytes))))
    }
}

/// A type that PostgreSQL's text of a value can be read as.
pub trait FromText: Sized {
    /// What the text should be, in words that fit after "not".
    const EXPECTED: &'static str;

    /// Reads it.
    fn from_text(text: &str) -> Option<Self>;
}

macro_rules! by_parsing {
    ($($type:ty: $expected:literal),* $(,)?) => {
        $(impl FromText for $type {
            const EXPECTED: &'static str = $expected;

            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        })*
    };
}

by_parsing! {
    i32: "a whole number",
    i64: "a whole number",
    u16: "a whole number",
    u32: "a whole number from 0",
    u64: "a whole number from 0",
    f64: "a number",
    String: "text",
    Lsn: "an LSN",
    TimelineId: "a timeline id",
    SystemId: "a system identifier",
}

impl FromText for bool {
    const EXPECTED: &'static str = "a boolean";

    /// As a boolean column (`t`) or as a setting (`on`).
    fn from_text(text: &str) -> Option<Self> {
        match text {
            "t" | "on" | "true" => Some(true),
            "f" | "off" | "false" => Some(false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use postgres_protocol::message::backend::Message;
    use proptest::prelude::*;

    use super::*;

    /// Messages as the server would send them.
    fn message(tag: u8, count: u16, rest: &[u8]) -> Message {
        let mut bytes = BytesMut::new();
        bytes.extend_from_slice(&[tag]);
        bytes.extend_from_slice(&u32::try_from(rest.len() + 6).unwrap().to_be_bytes());
        bytes.extend_from_slice(&count.to_be_bytes());
        bytes.extend_from_slice(rest);
        Message::parse(&mut bytes).unwrap().unwrap()
    }

    fn rows(columns: &[&str], values: &[Option<&[u8]>]) -> Result<Rows, String> {
        let mut rest = Vec::new();
        for column in columns {
            rest.extend_from_slice(column.as_bytes());
            rest.extend_from_slice(&[0; 19]);
        }
        let Message::RowDescription(body) = message(b'T', u16::try_from(columns.len()).unwrap(), &rest)
        else {
            panic!()
        };
        let mut rows = Rows::with_columns(&body)?;
        let mut rest = Vec::new();
        for value in values {
            let length = value.map_or(-1, |v| i32::try_from(v.len()).unwrap());
            rest.extend_from_slice(&length.to_be_bytes());
            rest.extend_from_slice(value.unwrap_or_default());
        }
        let Message::DataRow(body) = message(b'D', u16::try_from(values.len()).unwrap(), &rest) else {
            panic!()
        };
        rows.push(&body)?;
        Ok(rows)
    }

    #[test]
    fn values_by_name_and_type() {
        let values: [Option<&[u8]>; 5] = [Some(b"0/1A"), None, Some(b"t"), Some(b"\xff/x"), Some(b"")];
        let row = rows(&["lsn", "none", "yes", "path", "empty"], &values).unwrap().one().unwrap();
        assert_eq!(row.get::<Lsn>("lsn"), Ok(Lsn(0x1A)));
        assert_eq!(row.nullable::<u32>("none"), Ok(None));
        assert_eq!(row.get::<bool>("yes"), Ok(true));
        assert_eq!(row.path("path").unwrap().unwrap().as_os_str().as_bytes(), b"\xff/x");
        assert_eq!(row.path("empty"), Ok(None));
        for (column, expected) in [("none", "NULL"), ("missing", "no column"), ("lsn", "0/1A")] {
            let error = row.get::<u32>(column).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(row.get::<String>("path").is_err());
    }

    #[test]
    fn rows_that_do_not_fit_are_errors() {
        assert!(rows(&["a"], &[]).is_err());
        assert!(rows(&["a"], &[None, None]).is_err());
        assert!(Rows::default().one().is_err());
    }

    proptest! {
        #[test]
        fn any_body_is_a_row_or_an_error(count: u16, rest: Vec<u8>) {
            let Message::RowDescription(body) = message(b'T', count, &rest) else { panic!() };
            let _result = Rows::with_columns(&body);
            let Message::DataRow(body) = message(b'D', count, &rest) else { panic!() };
            let _result = Rows::default().push(&body);
        }
    }
}
