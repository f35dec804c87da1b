//! The known word that was meant by one that is not known: an option, a key of the configuration.

/// The known word that is nearest to what was typed, if it is near enough to have been meant: a third of its letters may differ.
/// Two neighbors that changed places count as one.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed: Vec<char> = typed.chars().collect();
    let measured = known.into_iter().map(|word| {
        let letters: Vec<char> = word.chars().collect();
        (distance(&typed, &letters), letters.len().max(typed.len()), word)
    });
    let near = measured.filter(|(distance, length, _)| *distance * 3 <= *length);
    near.min_by_key(|(distance, ..)| *distance).map(|(.., word)| word)
}

/// How many letters are added, removed, changed or swapped with their neighbor (optimal string alignment).
fn distance(one: &[char], other: &[char]) -> usize {
    let first: Vec<usize> = (0..=other.len()).collect();
    let (mut before, mut last) = (Vec::new(), first);
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX / 2);
            let changed = cell(&last, j) + usize::from(a != b);
            let mut best = changed.min(cell(&last, j + 1) + 1).min(cell(&row, j) + 1);
            let swapped = i > 0 && j > 0 && one.get(i - 1) == Some(b) && other.get(j - 1) == Some(a);
            if swapped {
                best = best.min(cell(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found_and_nothing_else() {
        let known = ["socket", "config", "look_ahead", "region", "repo", "retry_timeout"];
        for (typed, meant) in [
            ("sokcet", Some("socket")),
            ("look_ahed", Some("look_ahead")),
            ("regoin", Some("region")),
            ("conf", Some("config")),
            ("retrytimeout", Some("retry_timeout")),
            ("socket", Some("socket")),
            ("repos", Some("repo")),
            ("help", None),
            ("bucket_name", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn distances() {
        let distance = |a: &str, b: &str| {
            let letters = |text: &str| text.chars().collect::<Vec<char>>();
            distance(&letters(a), &letters(b))
        };
        for (one, other, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "acb", 1),
            ("kitten", "sitting", 3),
            ("ä", "a", 1),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }
}
