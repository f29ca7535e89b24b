//! Files of `fileKeyRef`: `NAME='value'` lines, a small part of the shell's language.
//!
//! Elsewhere: who reads them out of volumes (`pod::runtime`).

/// What is wrong with such a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct EnvFileError {
    line: usize,
    problem: &'static str,
}

/// The value of `key`; empty where the file does not have it. What comes after it is not looked at.
pub fn value(text: &str, key: &str) -> Result<String, EnvFileError> {
    let mut lines = text.lines().enumerate().map(|(n, line)| (n + 1, line));
    while let Some((number, line)) = lines.next() {
        let wrong = |problem| EnvFileError { line: number, problem };
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once('=').ok_or(wrong("it has no '='"))?;
        if name.is_empty() || name.ends_with([' ', '\t']) {
            return Err(wrong("there must be a name right before the '='"));
        }
        // As in a shell: what follows after a space is no value any more.
        if rest.starts_with([' ', '\t']) {
            if name == key {
                return Ok(String::new());
            }
            continue;
        }
        let mut rest = rest.strip_prefix('\'').ok_or(wrong("the value must be in single quotes"))?;
        let mut value = String::new();
        loop {
            if let Some((end, after)) = rest.split_once('\'') {
                value.push_str(end);
                let after = after.trim_start_matches([' ', '\t']);
                if !after.is_empty() && !after.starts_with('#') {
                    return Err(wrong("there is something after the closing quote"));
                }
                break;
            }
            value.push_str(rest);
            value.push('\n');
            rest = lines.next().ok_or(wrong("the quote is never closed"))?.1;
        }
        if name == key {
            return Ok(value);
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        #[track_caller]
        fn check(text: &str, want: Option<&str>) {
            assert_eq!(value(text, "K").ok().as_deref(), want, "{text:?}");
        }
        check("", Some(""));
        check("K='v'", Some("v"));
        check("\n  # note\nA='1'\n\tK='v' # why\nbroken", Some("v"));
        check("K='two\nlines'", Some("two\nlines"));
        check("K=''\nK='second'", Some(""));
        check("K= 'v'", Some(""));
        check("A= b\nK='v'", Some("v"));
        check("K='$(x) \\n'", Some("$(x) \\n"));
        check("K='a=b'", Some("a=b"));
        check("A='1'", Some(""));
        check("K='v'\r\nA='1'\r\n", Some("v"));
        check("K=v", None);
        check("K =v", None);
        check("='v'", None);
        check("broken\nK='v'", None);
        check("K='v'x", None);
        check("K='v", None);
    }
}
