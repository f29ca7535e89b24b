//! "Did you mean": the nearest of what would have been right.

/// Edits up to which a word counts as mistyped.
const NEAR: usize = 3;

/// The option nearest to `value`, fewer than three edits away; none where `value` is one of them.
pub fn nearest<'a>(value: &str, options: impl IntoIterator<Item = &'a str>, exact_case: bool) -> Option<String> {
    let fold = |text: &str| if exact_case { text.to_owned() } else { text.to_lowercase() };
    let wanted = fold(value);
    let (mut best, mut distance) = (None, NEAR);
    for option in options {
        let option = fold(option);
        if option == wanted {
            return None;
        }
        // What is much longer or shorter is not near, and long words cost time.
        if option.len().abs_diff(wanted.len()) > 4 * NEAR {
            continue;
        }
        let edits = edits(&wanted, &option);
        if edits < distance {
            (best, distance) = (Some(option), edits);
        }
    }
    let best = best?;
    if exact_case {
        return Some(best);
    }
    let shout = value == value.to_uppercase() && value != value.to_lowercase();
    Some(if shout { best.to_uppercase() } else { best })
}

/// Levenshtein's distance in characters; what is longer than 256, or of quite another length, is far.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(257).collect(), b.chars().take(257).collect());
    if a.len() > 256 || b.len() > 256 || a.len().abs_diff(b.len()) >= NEAR {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let change = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_of_some() {
        let names = ["FROM", "RUN", "COPY", "ENTRYPOINT"];
        for (value, expected) in [
            ("FORM", Some("FROM")),
            ("from", None),
            ("entrypont", Some("entrypoint")),
            ("COYP", Some("COPY")),
            ("NOTHING", None),
            ("Cpy", Some("copy")),
        ] {
            assert_eq!(nearest(value, names, false).as_deref(), expected, "{value}");
        }
        assert_eq!(nearest("chonw", ["chown", "chmod"], true).as_deref(), Some("chown"));
        assert_eq!(nearest("CHOWN", ["chown"], true), None);
        assert_eq!(nearest(&"x".repeat(300), [&*"x".repeat(301)], true), None);
    }
}
