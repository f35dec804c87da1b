//! The second table, as text.

use std::fmt::Write as _;

use super::finding::BoundFinding;

/// Adds the table, and under it what a reader should know.
pub fn write(text: &mut String, findings: &[BoundFinding]) {
    if findings.is_empty() {
        return;
    }
    *text += "## Ourselves\n\nMedians and ranges of the counted rounds; ratios are of two measurements in one round.\n\n";
    *text += "| row | what | measured | range | bound | |\n|---|---|---|---|---|---|\n";
    let mut notes: Vec<(&str, &str)> = Vec::new();
    for found in findings {
        let cells = [&found.what, &found.measured(), &found.range(), &found.bound(), &found.verdict()];
        let cells = cells.map(|cell| cell.replace('|', "/"));
        writeln!(text, "| `{}` | {} |", found.row, cells.join(" | ")).expect("write to a string");
        if !found.note.is_empty() && !notes.contains(&(found.row, found.note.as_str())) {
            notes.push((found.row, found.note.as_str()));
        }
    }
    text.push('\n');
    for (row, note) in &notes {
        writeln!(text, "- `{row}`: {note}").expect("write to a string");
    }
    if !notes.is_empty() {
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::GoodSide;

    #[test]
    fn a_bound_is_a_line_and_a_note_is_told_once() {
        let found = |what: &str| BoundFinding {
            row: "r",
            ..BoundFinding::within(what, "×", GoodSide::AtMost, 0.5, &[0.25])
                .by("of a full one")
                .noting("small")
        };
        let mut text = String::new();
        write(&mut text, &[found("time"), found("more")]);
        assert!(text.contains("| `r` | time | 0.25× |  | ≤ 0.50× (of a full one) | met |"), "{text}");
        assert_eq!(text.matches("- `r`: small").count(), 1);
        let mut nothing = String::new();
        write(&mut nothing, &[]);
        assert_eq!(nothing, "");
    }
}
