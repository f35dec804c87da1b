//! What a moment holds, for a person at a terminal.

use walpoint_base::diagnostic::shown;
use walpoint_runtime::human;

use super::contents::{Table, TableKind};
use super::document::ListReport;

/// The list.
pub(super) fn list(report: &ListReport) -> String {
    let mut text = format!("{}\ndatabases:\n", report.moment);
    for database in &report.databases {
        let closed = if database.accepts_connections { "" } else { "  (accepts no connections)" };
        text.push_str(&format!("  {:>10}  {}{closed}\n", size(database.total_bytes), shown(&database.name)));
    }
    let (Some(database), Some(schemas), Some(tables)) = (&report.database, &report.schemas, &report.tables)
    else {
        return text;
    };
    text.push_str(&format!("schemas of database {}:\n", shown(database)));
    for schema in schemas {
        let own = tables.iter().filter(|table| table.schema == *schema);
        let (count, bytes) = own
            .fold((0, 0), |(count, bytes), table| (count + 1, bytes + table.total_bytes.unwrap_or_default()));
        text.push_str(&format!(
            "  {:>10}  {}, {}\n",
            human::size(bytes),
            shown(schema),
            human::count(count, "table")
        ));
    }
    text.push_str(&format!("tables of database {}:\n", shown(database)));
    for table in tables {
        text.push_str(&self::table(table));
    }
    for note in &report.notes {
        text.push_str(&format!("{}\n", human::hanging("note: ", note)));
    }
    text
}

fn table(table: &Table) -> String {
    let rows = match (table.kind, table.estimated_row_count) {
        (TableKind::PartitionedTable | TableKind::ForeignTable, _) => String::new(),
        (_, Some(rows)) => format!(", about {}", human::count(rows, "row")),
        (_, None) => ", rows unknown".to_owned(),
    };
    let kind = match table.kind {
        TableKind::Table => "",
        TableKind::PartitionedTable => ", partitioned",
        TableKind::MaterializedView => ", materialized view",
        TableKind::ForeignTable => ", foreign table",
    };
    let partition = table.partition_of.as_ref();
    let partition = partition.map_or(String::new(), |of| format!(", partition of {}", shown(of)));
    format!("  {:>10}  {}{kind}{partition}{rows}\n", size(table.total_bytes), shown(&table.quoted_name))
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), human::size)
}
