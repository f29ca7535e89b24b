//! Lines, continuations, comments, directives, heredocs.

use proptest::prelude::*;

use super::*;

/// Name, flags and arguments of each instruction in one line.
fn lines(text: &str) -> Vec<String> {
    let show = |node: &Node| {
        let arguments = match &node.arguments {
            Arguments::Words(words) => format!("{words:?}"),
            Arguments::Json(words) => format!("json {words:?}"),
            Arguments::Pairs(pairs) => pairs.iter().map(|it| format!("({}|{})", it.name, it.value)).collect(),
            Arguments::Trigger(inner) => format!("on {:?}", inner.as_ref().map(|it| &it.name)),
        };
        format!("{}-{} {} {arguments}", node.lines.first, node.lines.last, node.name)
    };
    parse(text).unwrap().nodes.iter().map(show).collect()
}

#[test]
fn forms() {
    for (text, expected) in [
        ("RUN a  b", r#"1-1 RUN ["a  b"]"#),
        ("run [\"a\", \"b\"]", r#"1-1 run json ["a", "b"]"#),
        ("RUN ['a']", r#"1-1 RUN ["['a']"]"#),
        ("CMD []", "1-1 CMD json []"),
        ("CMD", "1-1 CMD []"),
        ("COPY a\tb  c", r#"1-1 COPY ["a", "b", "c"]"#),
        ("COPY [\"a b\", \"c\"]", r#"1-1 COPY json ["a b", "c"]"#),
        ("ENV a=\"b c\" d=e", "1-1 ENV (a|\"b c\")(d|e)"),
        ("LABEL a b c", "1-1 LABEL (a|b c)"),
        ("ARG a b=\"c d\"", r#"1-1 ARG ["a", "b=\"c d\""]"#),
        ("HEALTHCHECK --interval=5s CMD a b", r#"1-1 HEALTHCHECK ["a b"]"#),
        ("HEALTHCHECK CMD [\"a\"]", r#"1-1 HEALTHCHECK json ["a"]"#),
        ("ONBUILD RUN a", r#"1-1 ONBUILD on Some("RUN")"#),
        ("ONBUILD ONBUILD RUN a", r#"1-1 ONBUILD on Some("ONBUILD")"#),
        ("USER a b", r#"1-1 USER ["a b"]"#),
        ("NOSUCH a b", "1-1 NOSUCH []"),
    ] {
        assert_eq!(lines(text), [expected], "{text}");
    }
}

#[test]
fn continuations() {
    for (text, expected) in [
        ("RUN a \\\n  b\nRUN c", &[r#"1-2 RUN ["a   b"]"#, r#"3-3 RUN ["c"]"#][..]),
        ("RUN a \\  \n# note\n  # more\n b\r\n", &[r#"1-4 RUN ["a  b"]"#]),
        ("RUN a \\\n\n\n b", &[r#"1-4 RUN ["a  b"]"#]),
        ("RUN a \\", &[r#"1-1 RUN ["a"]"#]),
        ("RUN a \\\\\nRUN b", &[r#"1-1 RUN ["a \\\\"]"#, r#"2-2 RUN ["b"]"#]),
        ("# escape=`\nRUN a `\nb \\\nRUN c", &[r#"2-3 RUN ["a b \\"]"#, r#"4-4 RUN ["c"]"#]),
        ("\\\nRUN a", &[r#"1-2 RUN ["a"]"#]),
        ("\n\n  # x\n  RUN a\n\n", &[r#"4-4 RUN ["a"]"#]),
        ("\u{feff}RUN a", &[r#"1-1 RUN ["a"]"#]),
        // Too late for a directive.
        ("\n# escape=`\nRUN a \\\nb", &[r#"3-4 RUN ["a b"]"#]),
    ] {
        assert_eq!(lines(text), expected, "{text:?}");
    }
    let parsed = parse("FROM a\nRUN b \\\n\n c").unwrap();
    assert_eq!(parsed.empty_continuations, [Lines::new(4, 4)]);
}

#[test]
fn heredocs() {
    let parsed = parse("RUN <<A <<-B\na $x\n\tA\nA\n\tb\n\tB\nCOPY <<'C' /x\nc\r\nC\r\nRUN [\"<<D\"]").unwrap();
    let found: Vec<_> = parsed.nodes.iter().flat_map(|it| &it.heredocs).collect();
    let texts: Vec<_> = found.iter().map(|it| (&*it.name, &*it.content, it.expand)).collect();
    assert_eq!(texts, [("A", "a $x\n\tA\n", true), ("B", "\tb\n", true), ("C", "c\r\n", false)]);
    assert_eq!(parsed.nodes[0].lines, Lines::new(1, 6));
    assert_eq!(parsed.nodes[1].lines, Lines::new(7, 9));
    let on = parse("ONBUILD RUN <<A\nx\nA\nUSER <<B").unwrap();
    assert_eq!((on.nodes.len(), on.nodes[0].heredocs.len()), (2, 1));
}

#[test]
fn comments_above() {
    let parsed = parse("# syntax=x\n# one\n# two\nFROM a\n# gone\n#\n# three\nRUN b").unwrap();
    assert_eq!(parsed.nodes[0].comments, ["one", "two"]);
    assert_eq!(parsed.nodes[1].comments, ["three"]);
}

#[test]
fn what_is_wrong() {
    let long = format!("RUN {}", "x".repeat(70_000));
    let large = "RUN a\n".repeat(MAX_FILE / 6 + 1);
    let many = "RUN a\n".repeat(MAX_INSTRUCTIONS + 1);
    for (text, expected, first, last) in [
        ("", "file with no instructions", 0, 0),
        ("# only\n\n", "file with no instructions", 0, 0),
        ("FROM a\nRUN <<E\nx", "unterminated heredoc", 2, 3),
        ("# escape=x\nFROM a", "invalid escape token 'x' does not match ` or \\", 1, 1),
        ("# escape=`\n# escape=`", "only one escape parser directive can be used", 2, 2),
        ("FROM a\nENV x", "ENV must have two arguments", 2, 2),
        ("CMD [1]", "when using JSON array syntax, arrays must be comprised of strings only", 1, 1),
        (&long, "dockerfile line greater than max allowed size of 65535", 1, 1),
        (&large, "the Dockerfile is larger than 4194304 bytes", 0, 0),
        (&many, "the Dockerfile has more than 20000 instructions", 20_001, 20_001),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.to_string(), expected);
        let at = error.lines().first().map_or((0, 0), |it| (it.first, it.last));
        assert_eq!(at, (first, last), "{expected}");
    }
    // Many nested triggers do not exhaust the stack.
    assert_eq!(parse(&"ONBUILD ".repeat(8000)).unwrap().nodes.len(), 1);
}

proptest! {
    #[test]
    fn never_panics(text in "((RUN|COPY|ENV|ARG|CMD|ONBUILD|HEALTHCHECK|#) ?[a<-E=\\[\\]\"'\\\\`\n \t]{0,12}\n?){0,8}", any in "(?s).*") {
        let _ = parse(&text);
        let _ = parse(&any);
    }

    #[test]
    fn lines_are_in_order(text in "(RUN [a\\\\]{0,4}\n|#\n|\n| \\\\\n){0,12}") {
        if let Ok(parsed) = parse(&text) {
            let count = u32::try_from(text.lines().count()).unwrap();
            let mut before = 0;
            for node in parsed.nodes {
                prop_assert!(node.lines.first > before && node.lines.last >= node.lines.first && node.lines.last <= count);
                before = node.lines.last;
            }
        }
    }
}
