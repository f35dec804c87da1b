//! How the vocabulary appears in the JSON that commands print, and in its schema. One form for each type, in all documents.
//!
//! Numbers that JSON readers round are text: system identifiers have up to 20 digits, and a double holds 15.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use crate::{
    BackupId, ClusterName, LineageId, Lsn, PgMajor, ScenarioName, SegmentName, SystemId, TimelineId,
};

/// Implements both traits for a type that JSON has as the text that it prints.
macro_rules! as_text {
    ($type:ident, $pattern:literal, $description:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "description": $description, "type": "string", "pattern": $pattern })
            }
        }
    };
}

as_text!(
    Lsn,
    "^[0-9A-F]{1,8}/[0-9A-F]{1,8}$",
    "A position in the WAL, as PostgreSQL writes it: `16/B374D848`."
);
as_text!(SystemId, "^[0-9]{1,20}$", "A system identifier, in decimal digits.");
as_text!(ClusterName, "^[a-z0-9][a-z0-9._-]{0,62}$", "The name of a cluster.");
as_text!(ScenarioName, "^[a-z0-9][a-z0-9._-]{0,62}$", "The name of a configured drill.");
as_text!(LineageId, "^[0-9]{1,20}-[0-9]{1,10}$", "The id of a lineage.");
as_text!(
    BackupId,
    "^[0-9]{8}T[0-9]{6}Z-[0-9A-F]{8}-[0-9A-F]{16}-[0-9a-f]{8}$",
    "The id of a base backup: `20261121T101500Z-00000001-0000000002000028-9f3a0c11`."
);
as_text!(SegmentName, "^[0-9A-F]{24}$", "The name of a WAL segment's file.");

/// Implements both traits for a type that JSON has as a number.
macro_rules! as_number {
    ($type:ident, $minimum:literal, $description:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.get().serialize(serializer)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "description": $description, "type": "integer", "minimum": $minimum })
            }
        }
    };
}

as_number!(TimelineId, 1, "The id of a timeline.");
as_number!(PgMajor, 13, "A major version of PostgreSQL.");

#[cfg(feature = "time")]
impl Serialize for crate::PgTimestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.to_time())
    }
}

#[cfg(feature = "time")]
impl JsonSchema for crate::PgTimestamp {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_one_form() {
        let lineage: LineageId = "7400000000000000001-2".parse().unwrap();
        let backup: BackupId = "20261121T101500Z-00000001-0000000002000028-9f3a0c11".parse().unwrap();
        let all =
            (Lsn(0x16_B374_D848), SystemId(u64::MAX), TimelineId::FIRST, PgMajor::ALL[0], lineage, backup);
        assert_eq!(
            serde_json::to_string(&all).unwrap(),
            r#"["16/B374D848","18446744073709551615",1,13,"7400000000000000001-2","20261121T101500Z-00000001-0000000002000028-9f3a0c11"]"#
        );
        #[cfg(feature = "time")]
        assert_eq!(serde_json::to_string(&crate::PgTimestamp(1)).unwrap(), "\"2000-01-01T00:00:00.000001Z\"");
    }
}
