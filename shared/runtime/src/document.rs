//! The JSON documents that commands print, and their schemas (JSON Schema 2020-12) in `docs/schema`.
//!
//! A schema is made from the type that is printed, so it cannot say anything else; doc comments become descriptions. A document is
//! declared with [`document!`](crate::document!), which brings a test: the committed schema is the one of the type. `make schemas`
//! writes them anew.

use std::fs;
use std::path::{Path, PathBuf};

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::Value;

/// Set by `make schemas`: the schemas are written and not compared.
const WRITE: &str = "WALPOINT_WRITE_SCHEMAS";

/// A JSON document that a command prints.
pub trait Document: Serialize + JsonSchema {
    /// The command that prints it, such as `archive-agent status`.
    const COMMAND: &'static str;
}

/// Declares what a command prints, and a test that its schema is the committed one: one document in each module.
#[macro_export]
macro_rules! document {
    ($type:ty, $command:literal) => {
        impl $crate::document::Document for $type {
            const COMMAND: &'static str = $command;
        }

        #[cfg(test)]
        mod document_schema {
            use super::*;

            #[test]
            fn is_the_committed_one() {
                $crate::document::compare::<$type>(env!("CARGO_MANIFEST_DIR"));
            }
        }
    };
}

/// The schema of a document.
pub fn schema<T: Document>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with_transform(RecursiveTransform(tidy));
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), T::COMMAND.into());
    schema.to_value()
}

/// Takes out what documents do not have, null, and what only Rust has, sizes of numbers.
fn tidy(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.get("format").and_then(Value::as_str).is_some_and(|format| format != "date-time") {
        object.remove("format");
    }
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|one| one != "null");
        if let [only] = &types[..] {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(any)) = object.get_mut("anyOf") {
        any.retain(|one| one.get("type").is_none_or(|kind| kind != "null"));
        if let [Value::Object(only)] = &any[..] {
            let only = only.clone();
            object.remove("anyOf");
            for (key, value) in only {
                object.entry(key).or_insert(value);
            }
        }
    }
}

/// The file of a document's schema: named like the manual page of its command.
fn file(command: &str, source: &Path) -> PathBuf {
    let top = source.ancestors().find(|directory| directory.join("docs/json.md").is_file());
    top.unwrap_or(source).join(format!("docs/schema/{}.json", command.replace(' ', "-")))
}

/// Panics unless the committed schema of a document is the one of its type. For tests.
#[expect(clippy::disallowed_methods, reason = "make schemas writes source files")]
pub fn compare<T: Document>(source: &str) {
    let schema = schema::<T>();
    let file = file(T::COMMAND, Path::new(source));
    if std::env::var_os(WRITE).is_some() {
        let text = format!("{schema:#}\n");
        fs::create_dir_all(file.parent().unwrap_or(&file))
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    let committed =
        fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}: run make schemas", file.display()));
    let committed: Value = committed.parse().unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    assert_eq!(
        committed,
        schema,
        "{} is not the schema of what is printed: run make schemas",
        file.display()
    );
}
