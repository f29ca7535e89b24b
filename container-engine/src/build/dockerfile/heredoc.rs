//! Heredocs: `<<EOF`, `3<<-'EOF'`.

use super::error::{Result, syntax};
use super::shell::{Empty, Shell};

/// A heredoc, with its content once the lines were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// What ends it.
    pub name: String,
    /// The number before `<<`; 0 where there is none.
    pub descriptor: u32,
    /// Variables are expanded: no part of the name was quoted.
    pub expand: bool,
    /// `<<-`: leading tabs go.
    pub chomp: bool,
    /// Its lines.
    pub content: String,
}

/// The heredoc that a word is.
pub fn parse(word: &str) -> Result<Option<Heredoc>> {
    let digits = word.len() - word.trim_start_matches(|it: char| it.is_ascii_digit()).len();
    let Some(rest) = word[digits..].strip_prefix("<<") else { return Ok(None) };
    let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    let rest = rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let plain = Shell { keep_unset: true, ..Shell::new('\\') };
    let words = plain.expand(rest, &Empty)?.words;
    let [name] = &words[..] else { return Ok(None) };
    let raw = Shell { raw_quotes: true, ..plain }.expand(rest, &Empty)?.words;
    let [raw] = &raw[..] else {
        return Err(syntax(format!("the name of the heredoc {rest} cannot be read")));
    };
    let quotes = |text: &str| text.chars().filter(|it| matches!(it, '\'' | '"')).count();
    Ok(Some(Heredoc {
        expand: quotes(name) == quotes(raw),
        name: name.clone(),
        descriptor: word[..digits].parse().unwrap_or_default(),
        chomp,
        content: String::new(),
    }))
}

/// The heredocs that a line begins, in order.
pub fn in_line(line: &str) -> Result<Vec<Heredoc>> {
    let shell = Shell { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Shell::new('\\') };
    // A line that the shell would not read has none.
    let words = shell.expand(line, &Empty).map(|it| it.words).unwrap_or_default();
    words.iter().filter_map(|word| parse(word).transpose()).collect()
}

/// The content without the tabs that its lines begin with.
pub fn chomp(content: &str) -> String {
    content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

/// What a step is called by: the first line, and dots where there are more.
pub fn summary(content: &str) -> String {
    let mut lines = content.trim().lines();
    let first = lines.next().unwrap_or_default();
    if lines.next().is_some() { format!("{first}...") } else { first.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (word, expected) in [
            ("<<EOF", Some(("EOF", 0, true, false))),
            ("<< EOF", Some(("EOF", 0, true, false))),
            ("<<-EOF", Some(("EOF", 0, true, true))),
            ("3<<-'EOF'", Some(("EOF", 3, false, true))),
            ("<<\"E O F\"", Some(("E O F", 0, false, false))),
            ("<<E\"O\"F", Some(("EOF", 0, false, false))),
            ("<<\\EOF", Some(("EOF", 0, true, false))),
            ("<<E\\'F", Some(("E'F", 0, true, false))),
            ("<<$EOF", Some(("$EOF", 0, true, false))),
            ("<<", None),
            ("<<<EOF", None),
            ("x<<EOF", None),
            ("<<a b", None),
            ("EOF", None),
        ] {
            let got = parse(word).unwrap();
            let got = got.as_ref().map(|it| (it.name.as_str(), it.descriptor, it.expand, it.chomp));
            assert_eq!(got, expected, "{word}");
        }
        assert!(parse("<<'EOF").is_err());
    }

    #[test]
    fn lines() {
        let names = |line: &str| in_line(line).unwrap().into_iter().map(|it| it.name).collect::<Vec<_>>();
        assert_eq!(names("COPY <<one <<\"two 2\" /x"), ["one", "two 2"]);
        assert_eq!(names("RUN cat <<A 3<<B ; echo $((1<<2))"), ["A", "B"]);
        assert_eq!(names("RUN echo \"<<EOF\" '<<X' \\<<Y"), [""; 0]);
        assert_eq!(chomp("\t\ta\n\tb\tc\nd"), "a\nb\tc\nd");
        assert_eq!(summary("\n a\r\n b\n"), "a...");
        assert_eq!(summary(" a\n"), "a");
    }
}
