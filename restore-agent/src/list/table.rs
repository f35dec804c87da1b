//! Tables for a terminal.

/// A row, and lines below it that fit into no column.
#[derive(Debug)]
pub(super) struct Row<const COLUMNS: usize> {
    pub(super) cells: [String; COLUMNS],
    pub(super) below: Vec<String>,
}

impl<const COLUMNS: usize> From<[String; COLUMNS]> for Row<COLUMNS> {
    fn from(cells: [String; COLUMNS]) -> Self {
        Self { cells, below: Vec::new() }
    }
}

/// A table whose columns are as wide as their widest cell. Lines are indented and end with a newline.
pub(super) fn table<const COLUMNS: usize>(head: [&str; COLUMNS], rows: &[Row<COLUMNS>]) -> String {
    let head = Row::from(head.map(str::to_owned));
    let all = || std::iter::once(&head).chain(rows);
    let mut widths = [0; COLUMNS];
    for row in all() {
        for (width, cell) in widths.iter_mut().zip(&row.cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in all() {
        let cells = row.cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(format!("    {}", cells.collect::<Vec<String>>().join("  ")).trim_end());
        text.push('\n');
        row.below.iter().for_each(|line| text.push_str(&format!("      {line}\n")));
    }
    text
}
