//! Patterns and paths as moby's own tests have them, and the walk against the plain question.

use proptest::prelude::*;

use super::*;

fn matcher(patterns: &[&str]) -> Result<Matcher, IgnoreError> {
    Matcher::new(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>())
}

#[test]
fn single_patterns() {
    for (pattern, path, expected) in [
        ("**", "file", true),
        ("**/", "dir/file", true),
        ("**/**", "dir/file", true),
        ("dir/**", "dir/dir2/file", true),
        ("dir/**", "dir", false),
        ("**/dir", "dir", true),
        ("**/dir", "dir/file", true),
        ("**/dir2/*", "dir/dir2/file", true),
        ("**/dir2/**", "dir/dir2/dir3/file", true),
        ("**file", "file", true),
        ("**file", "dir/afile", true),
        ("**/file", "dir/dir/file", true),
        ("**/file*.txt*", "dir/dir/file.txt", true),
        ("**/**/*.txt", "dir/dir/file.txt", true),
        ("**/**/*.txt2", "dir/dir/file.txt", false),
        ("**/**/*.txt", "file.txt", true),
        ("a**/*.txt", "a/file.txt", true),
        ("a**/*.txt", "a/dir/dir/file.txt", true),
        ("a/*.txt", "a/dir/file.txt", false),
        ("a/*.txt**", "a/file.txt", true),
        ("a[b-d]e", "ae", false),
        ("a[b-d]e", "ace", true),
        ("a[^b-d]e", "aze", true),
        (".*", ".foo", true),
        (".*", "foo", false),
        ("abc.def", "abcZdef", false),
        ("abc?def", "abcZdef", true),
        ("a\\\\", "a\\", true),
        ("**/foo/bar", "dir/dir2/foo/bar", true),
        ("**/.foo", "bar.foo", false),
        ("**/foo?", "barfoox", false),
        ("**/foo?", "bar/foox", true),
        ("a(b)c/def", "a(b)c/def", true),
        ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
        ("*", "abc", true),
        ("a*", "ab/c", true),
        ("a*/b", "a/c/b", false),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
        ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
        ("a*b?c*x", "abxbbxdbxebxczzx", true),
        ("a*b?c*x", "abxbbxdbxebxczzy", false),
        ("ab[^e-g]", "abc", true),
        ("a\\*b", "a*b", true),
        ("a\\*b", "ab", false),
        ("a?b", "a☺b", true),
        ("[a-ζ]*", "α", true),
        ("*[a-ζ]", "A", false),
        ("a?b", "a/b", false),
        ("[\\]a]", "]", true),
        ("[x\\-]", "-", true),
        ("*x", "xxx", true),
        ("docs/", "docs/a", true),
        ("./a/../b", "b", true),
    ] {
        assert_eq!(matcher(&[pattern]).unwrap().ignores(path), expected, "{pattern} {path}");
    }
    for pattern in ["[]a]", "[-]", "[x-]", "[-x]", "\\", "[a-b-c]", "[", "[^", "[^bc", "a["] {
        assert_eq!(matcher(&[pattern]).unwrap_err(), IgnoreError::Syntax(pattern.to_owned()));
    }
    assert_eq!(matcher(&["!"]).unwrap_err().to_string(), "illegal exclusion pattern: \"!\"");
}

#[test]
fn the_last_decides() {
    for (patterns, path, expected) in [
        (&["**", "!util/docker/web"][..], "util/docker/web/foo", false),
        (&["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", true),
        (&["!fileutils.go", "*.go"], "fileutils.go", true),
        (&["*.go", "!fileutils.go"], "fileutils.go", false),
        (&["docs", "!docs/README.md"], "docs/README.md", false),
        (&["docs/*", "!docs/README.md"], "docs/README.md", false),
        (&["docs", "  !docs/README.md  "], "docs/other", true),
        (&[], "x", false),
    ] {
        assert_eq!(matcher(patterns).unwrap().ignores(path), expected, "{patterns:?} {path}");
    }
}

#[test]
fn files() {
    let text = "\u{feff}# comment\r\n /a/b/ \n\n!  /c/./d\n  # kept\n!\n/\n../x\n";
    assert_eq!(read(text).unwrap(), ["a/b", "!c/d", "# kept", "!", "/", "../x"]);
    assert_eq!(read(&"a\n".repeat(MAX_PATTERNS + 1)), Err(IgnoreError::TooLarge));
    assert_eq!(read(&" ".repeat(MAX_FILE + 1)), Err(IgnoreError::TooLarge));
    for (path, cleaned) in
        [("a//b/./c/..", "a/b"), ("", "."), ("/..", "/"), ("../..", "../.."), ("/a/", "/a"), ("a/..", ".")]
    {
        assert_eq!(clean(path), cleaned, "{path}");
    }
}

#[test]
fn walks() {
    let it = matcher(&["node_modules", "*.log", "docs", "!docs/keep/*.md", "!**/x"]).unwrap();
    assert!(it.has_exceptions() && !it.ignores_root() && !it.is_empty());
    let it = matcher(&["docs", "!docs/keep/*.md"]).unwrap();
    for (path, expected) in [("docs", false), ("docs/keep", false), ("docs/other", true), ("src", true)] {
        assert_eq!(it.can_skip(path), expected, "{path}");
    }
    assert!(!matcher(&["docs", "!**/x"]).unwrap().can_skip("docs"));
    // An exception that fits a folder which was not ignored does not reach what is in it, in a walk.
    let it = matcher(&["*/*", "!*"]).unwrap();
    let (_, parent) = it.ignores_in("a", &Fits::default());
    assert_eq!((it.ignores_in("a/b", &parent).0, it.ignores("a/b")), (true, false));
    for pattern in ["*", "**", "**/*"] {
        assert!(matcher(&[pattern]).unwrap().ignores_root());
    }
}

/// The pattern by the book: every way to read it is tried.
fn slow(pattern: &[char], path: &[char]) -> bool {
    match pattern {
        [] => path.is_empty(),
        ['*', '*', '/', rest @ ..] if !rest.is_empty() => slow_folders(rest, path),
        ['*', '*'] | ['*', '*', '/'] => true,
        ['*', '*', rest @ ..] => slow_folders(rest, path),
        ['*', rest @ ..] => {
            let end = path.iter().position(|it| *it == '/').unwrap_or(path.len());
            (0..=end).any(|at| slow(rest, &path[at..]))
        }
        ['?', rest @ ..] => path.first().is_some_and(|it| *it != '/') && slow(rest, &path[1..]),
        [ch, rest @ ..] => path.first() == Some(ch) && slow(rest, &path[1..]),
    }
}

fn slow_folders(rest: &[char], path: &[char]) -> bool {
    let behind = path.iter().enumerate().filter(|it| *it.1 == '/').map(|it| it.0 + 1);
    std::iter::once(0).chain(behind).any(|at| slow(rest, &path[at..]))
}

proptest! {
    #[test]
    fn as_by_the_book(pattern in "a{0,1}(\\*\\*/|\\*|\\?|a|b|/a){1,6}", path in "[ab](/?[ab]){0,6}") {
        let cleaned = clean(&pattern);
        // What begins with `**` and no slash is the end of a path, which is another rule.
        prop_assume!(!cleaned.starts_with("**") || cleaned.starts_with("**/"));
        let expected = slow(&cleaned.chars().collect::<Vec<_>>(), &path.chars().collect::<Vec<_>>());
        prop_assert_eq!(Glob::new(&cleaned).unwrap().fits(&path), expected);
    }

    #[test]
    fn a_walk_says_the_same(patterns in prop::collection::vec("[ab*](/?[ab*?]){0,4}", 0..5), path in "[ab](/[ab]){0,4}") {
        let it = Matcher::new(&patterns).unwrap();
        let mut fits = Fits::default();
        let mut ignored = false;
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            (ignored, fits) = it.ignores_in(&path[..at], &fits);
        }
        prop_assert_eq!(ignored, it.ignores(&path));
    }

    #[test]
    fn what_may_be_skipped_is_ignored(patterns in prop::collection::vec("!?[ab*](/?[ab*?]){0,4}", 0..5), path in "[ab](/[ab]){0,2}", below in "[ab](/[ab]){0,2}") {
        let it = Matcher::new(&patterns).unwrap();
        if it.ignores(&path) && it.can_skip(&path) {
            let file = format!("{path}/{below}");
            prop_assert!(it.ignores(&file), "{}", file);
        }
    }

    #[test]
    fn never_panics(pattern in "[a\\[\\]\\\\*?^!/-]{0,12}", path in ".*") {
        if let Ok(it) = Matcher::new(&[pattern]) {
            it.ignores(&path);
            it.can_skip(&path);
        }
    }
}
