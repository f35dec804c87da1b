use proptest::prelude::*;

use super::*;

fn major(number: u8) -> PgMajor {
    PgMajor::new(number.into()).unwrap()
}

fn announced() -> Vec<Space> {
    let space = |archive| Space { archive, location: PathBuf::new(), bytes: 1 };
    vec![space(StreamArchive::Tablespace(16400)), space(StreamArchive::Data)]
}

fn stop() -> AnswerPiece {
    AnswerPiece::Rows(Rows::fixture(&["recptr", "tli"], &[&[Some("0/3000100"), Some("1")]]))
}

fn data(text: &'static str) -> AnswerPiece {
    AnswerPiece::Data(Bytes::from_static(text.as_bytes()))
}

fn error(sqlstate: &str) -> AnswerPiece {
    let (sqlstate, message) = (sqlstate.to_owned(), "told".to_owned());
    AnswerPiece::Refused(ServerReport { sqlstate, message, ..ServerReport::default() })
}

/// What the pieces are.
fn follow(number: u8, pieces: Vec<AnswerPiece>) -> Result<Vec<StreamPart>, Unexpected> {
    let mut order = StreamOrder::new(major(number), announced()).unwrap();
    let mut parts = Vec::new();
    for piece in pieces {
        parts.extend(order.part(piece)?);
    }
    Ok(parts)
}

/// All that a server of that version sends.
fn good(number: u8) -> Vec<AnswerPiece> {
    let mut pieces = match number {
        ..15 => vec![
            AnswerPiece::CopyBegin,
            data("one"),
            AnswerPiece::CopyEnd,
            AnswerPiece::CopyBegin,
            data("two"),
            AnswerPiece::CopyEnd,
            AnswerPiece::CopyBegin,
            data("list"),
            AnswerPiece::CopyEnd,
        ],
        _ => vec![
            AnswerPiece::CopyBegin,
            data("n16400.tar\0/space\0"),
            data("done"),
            data("p\0\0\0\0\0\0\0\u{1}"),
            data("nbase.tar\0\0"),
            data("dtwo"),
            data("m"),
            data("dlist"),
            AnswerPiece::CopyEnd,
        ],
    };
    pieces.extend([stop(), AnswerPiece::Complete, AnswerPiece::Ready]);
    pieces
}

#[test]
fn both_dialects_give_the_same_parts() {
    let data = |text: &'static str| StreamPart::Data(Bytes::from_static(text.as_bytes()));
    for number in [13, 14, 15, 18] {
        let parts = follow(number, good(number)).unwrap();
        let end = StreamEnd { lsn: Lsn(0x300_0100), timeline: TimelineId::FIRST, damage: None };
        let expected = [
            StreamPart::Archive(StreamArchive::Tablespace(16400)),
            data("one"),
            StreamPart::Archive(StreamArchive::Data),
            data("two"),
            StreamPart::Manifest,
            data("list"),
            StreamPart::End(end),
        ];
        assert_eq!(parts, expected, "{number}");
    }
}

#[test]
fn damage_is_told_after_everything_and_anything_else_is_an_error() {
    for number in [13, 15] {
        let with = |at_end: usize, piece: AnswerPiece| {
            let mut pieces = good(number);
            let at = pieces.len() - at_end;
            pieces.insert(at, piece);
            follow(number, pieces)
        };
        let parts = with(1, error("XX001")).unwrap();
        assert!(
            matches!(parts.last(), Some(StreamPart::End(StreamEnd { damage: Some(told), .. })) if told == "told")
        );
        // Before the stop position is known, nothing is complete.
        assert!(matches!(with(3, error("XX001")), Err(Unexpected::Refused(_))));
        assert!(matches!(with(1, error("XX000")), Err(Unexpected::Refused(_))));
    }
}

#[test]
fn without_exactly_one_data_directory_there_is_none() {
    let mut spaces = announced();
    spaces.pop();
    assert!(StreamOrder::new(major(17), spaces).is_err());
    assert!(StreamOrder::new(major(17), [announced(), announced()].concat()).is_err());
}

proptest! {
    #[test]
    fn with_anything_missing_twice_or_out_of_order_there_is_no_end(
        old: bool,
        at in any::<prop::sample::Index>(),
        other in any::<prop::sample::Index>(),
        what in 0..3u8,
    ) {
        let number = if old { 14 } else { 16 };
        // The last three are the position, the end of the command, and of the answer.
        let essential = good(number).len() - 2;
        let (at, other) = (at.index(essential), other.index(essential));
        let mut pieces = good(number);
        let is_content = |piece: &AnswerPiece| match piece {
            AnswerPiece::Data(bytes) => old || matches!(bytes.first(), Some(b'd' | b'p')),
            _ => false,
        };
        let harmless = match what {
            0 => {
                is_content(&pieces.remove(at))
            }
            1 => {
                let again = good(number).swap_remove(at);
                let content = is_content(&again);
                pieces.insert(at, again);
                content
            }
            _ => {
                pieces.swap(at, other);
                // Content may be anywhere where content belongs; only the manifest's own checksum would tell.
                let same = format!("{:?}", pieces[at]) == format!("{:?}", pieces[other]);
                same || is_content(&pieces[at]) || is_content(&pieces[other])
            }
        };
        let ended = follow(number, pieces).is_ok_and(|parts| matches!(parts.last(), Some(StreamPart::End(_))));
        prop_assert!(harmless || !ended, "{} {} {}", at, other, what);
    }
}
