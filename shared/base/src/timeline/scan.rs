//! The lines of a history file as PostgreSQL reads them: `readTimeLineHistory` in `src/backend/access/transam/timeline.c`.
//!
//! It takes a line with `fgets` into a buffer of [`LINE`] bytes, skips it if it is blank or begins with `#`, and reads
//! `sscanf(line, "%u\t%X/%X")`. What follows the switch point is free text in any encoding. A history that PostgreSQL
//! accepts and we refuse would stop archiving for good, so the scanner takes exactly what that call takes: a tab in the
//! format is any white space or none, and numbers may be signed, prefixed with `0x`, and too large.

/// `MAXPGPATH`: the buffer, its terminating zero included.
const LINE: usize = 1024;

/// The pieces of a file that `fgets` returns, each cut at its first zero byte, as C's string functions see it.
pub(super) fn lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = content.split_inclusive(|byte| *byte == b'\n').flat_map(|line| line.chunks(LINE - 1));
    lines.map(|line| line.split(|byte| *byte == 0).next().unwrap_or_default())
}

/// Whether the line says nothing: blank, or a comment.
pub(super) fn is_skipped(line: &[u8]) -> bool {
    line.iter().find(|byte| !is_space(**byte)).is_none_or(|byte| *byte == b'#')
}

/// The timeline, the two halves of the switch point, and what follows them; `None` where `sscanf` reads fewer than three.
pub(super) fn fields(line: &[u8]) -> Option<(u32, u32, u32, &[u8])> {
    let (timeline, rest) = number(line, 10)?;
    let (high, rest) = number(rest, 16)?;
    let (low, rest) = number(rest.strip_prefix(b"/")?, 16)?;
    Some((timeline, high, low, rest))
}

/// White space of the C locale, in which PostgreSQL's `isspace` and `sscanf` work here.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0B | 0x0C | b'\r')
}

/// `%u` or `%X`: leading white space, an optional sign, digits; the value as `strtoul` makes it, cut to 32 bits.
fn number(text: &[u8], radix: u32) -> Option<(u32, &[u8])> {
    let text = text.get(text.iter().position(|byte| !is_space(*byte))?..)?;
    let (negative, text) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    let prefix = text.strip_prefix(b"0x").or_else(|| text.strip_prefix(b"0X"));
    let text = prefix.filter(|_| radix == 16).unwrap_or(text);
    let digit = |byte: &u8| char::from(*byte).to_digit(radix);
    let length = text.iter().take_while(|byte| digit(byte).is_some()).count();
    let (digits, rest) = text.split_at_checked(length).filter(|(digits, _)| !digits.is_empty())?;
    let value = digits
        .iter()
        .filter_map(digit)
        .try_fold(0u64, |value, digit| value.checked_mul(u64::from(radix))?.checked_add(u64::from(digit)));
    let value = match value {
        None => u64::MAX,
        Some(value) if negative => value.wrapping_neg(),
        Some(value) => value,
    };
    #[expect(clippy::cast_possible_truncation, reason = "as sscanf stores it in an unsigned int")]
    Some((value as u32, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_sscanf_reads_them() {
        for (line, expected) in [
            ("1\t0/5000060\tno recovery target specified\n", Some((1, 0, 0x500_0060))),
            (" \t 12  A/ff", Some((12, 10, 255))),
            // The tab of the format matches nothing, too.
            ("1A/5", Some((1, 10, 5))),
            ("+7 0x1/0XfFx", Some((7, 1, 255))),
            ("1 0/ 5", Some((1, 0, 5))),
            ("-1 0/5", Some((u32::MAX, 0, 5))),
            ("99999999999999999999 0/5", Some((u32::MAX, 0, 5))),
            ("4294967298 0/100000005", Some((2, 0, 5))),
            ("1 0 /5", None),
            ("1 0/", None),
            ("1 5", None),
            ("1", None),
            ("1 0x/5", None),
            ("x 0/5", None),
            ("- 0/5", None),
        ] {
            let fields = fields(line.as_bytes()).map(|(timeline, high, low, _)| (timeline, high, low));
            assert_eq!(fields, expected, "{line:?}");
        }
    }

    #[test]
    fn lines_are_those_of_fgets() {
        let long = [vec![b'#'; 1023], b"1 0/5\n2 0/6".to_vec()].concat();
        let found: Vec<&[u8]> = lines(&long).collect();
        assert_eq!(found[1..], [b"1 0/5\n".as_slice(), b"2 0/6"]);
        assert_eq!(lines(b"1 0/5\0rubbish\n\0\n").collect::<Vec<_>>(), [b"1 0/5".as_slice(), b""]);
        for skipped in [b"".as_slice(), b" \r\n", b"\x0b\x0c # 1 0/5", b"#"] {
            assert!(is_skipped(skipped), "{skipped:?}");
        }
        assert!(!is_skipped(b" 1 0/5 # reason"));
    }
}
