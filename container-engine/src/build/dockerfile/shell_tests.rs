//! The rules as BuildKit's own tests state them, and some of ours.

use proptest::prelude::*;

use super::*;

fn variables(name: &str) -> Option<&'static str> {
    Some(match name {
        "PWD" => "/home",
        "SHELL" => "bash",
        "KOREAN" => "한국어",
        "NULL" => "",
        "space" => "abc  def",
        "lead" => "  ab c",
        "trail" => "ab c   ",
        "file" => "dir/sub/name.tar.gz",
        "star" => "a*b",
        _ => return None,
    })
}

fn word(text: &str) -> Result<String> {
    Shell::new('\\').expand(text, &variables).map(|it| it.text)
}

#[test]
fn quotes_and_escapes() {
    for (text, expected) in [
        ("hello", "hello"),
        ("he'll'o", "hello"),
        (r"he\'llo", "he'llo"),
        (r"abc\tdef", "abctdef"),
        (r#""abc\tdef""#, r"abc\tdef"),
        (r#""abc\\tdef""#, r"abc\tdef"),
        (r"'abc\tdef'", r"abc\tdef"),
        ("hello\\", "hello"),
        (r"hello\\", "hello\\"),
        (r#""hel'lo""#, "hel'lo"),
        (r"'hello\'", "hello\\"),
        (r"'hello\\there'", r"hello\\there"),
        (r#""''""#, "''"),
        ("안'녕'하세요", "안녕하세요"),
        (r"안녕\'하", "안녕'하"),
        (r#"'"hello"'"#, "\"hello\""),
        ("a < b << c", "a < b << c"),
    ] {
        assert_eq!(word(text).as_deref(), Ok(expected), "{text}");
    }
    for text in ["he'llo", r"he\\'llo", "\"hello", r#""hello\""#, "'hello"] {
        assert!(word(text).is_err(), "{text}");
    }
}

#[test]
fn plain_variables() {
    for (text, expected) in [
        ("$.", "$."),
        ("he$1x", "hex"),
        ("he$.x", "he$.x"),
        ("he$pwd.", "he."),
        ("he$PWD", "he/home"),
        (r"he\$PWD", "he$PWD"),
        (r"he\\$PWD", r"he\/home"),
        (r#""he\$PWD""#, "he$PWD"),
        (r"\${}aaa", "${}aaa"),
        ("he${hi}xx", "hexx"),
        ("he${PWD}", "he/home"),
        ("'he${XX}'", "he${XX}"),
        (r#""he'$PWD'""#, "he'/home'"),
        ("안녕$KOREAN", "안녕한국어"),
        ("${aaa}}", "}"),
        ("$999aaa", "aaa"),
        ("$001", ""),
        ("$@@@", "@@"),
        ("$", "$"),
        ("$$", ""),
        ("${!}", ""),
    ] {
        assert_eq!(word(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn modifiers() {
    for (text, expected) in [
        ("he${XXX:-000}xx", "he000xx"),
        ("he${PWD:-000}xx", "he/homexx"),
        ("he${XXX:-${YYY:-yyy}}xx", "heyyyxx"),
        ("he${PWD?}", "he/home"),
        ("he${NULL?}", "he"),
        ("${NULL-x}${NULL:-y}", "y"),
        ("${NULL+x}${NULL:+y}", "x"),
        ("he${PWD:+${SHELL}}xx", "hebashxx"),
        ("he${PWD:+${PWD}:}xx", "he/home:xx"),
        (r"he${XXX:-\$PWD:}xx", "he$PWD:xx"),
        (r"he${XXX:-\${PWD}z}xx", "he${PWDz}xx"),
        ("${aaa:-bbb {foo}", "bbb {foo"),
        ("${1:-bbb}", "bbb"),
        ("${@:-bbb}aaa", "bbbaaa"),
        ("${-:+bbb}", ""),
        ("${file#*/}", "sub/name.tar.gz"),
        ("${file##*/}", "name.tar.gz"),
        ("${file%.*}", "dir/sub/name.tar"),
        ("${file%%.*}", "dir/sub/name"),
        ("${file/a/A}", "dir/sub/nAme.tar.gz"),
        ("${file//a/A}", "dir/sub/nAme.tAr.gz"),
        (r"${file//\//-}", "dir-sub-name.tar.gz"),
        ("${file/nothing/x}", "dir/sub/name.tar.gz"),
        (r"${star/\*/-}", "a-b"),
        (r#"${star#"a*"}"#, "*b"),
        ("${unset#x}", ""),
        ("${unset/a/b}", ""),
    ] {
        assert_eq!(word(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_wrong() {
    let failed = |text: &str| format!("failed to process {}: ", quote(text));
    for (text, expected) in [
        ("${}", "syntax error: bad substitution"),
        ("${{aaa}", "syntax error: bad substitution"),
        ("${:-bbb}", "syntax error: bad substitution"),
        ("he${.}", "unsupported modifier (.) in substitution"),
        ("${XXX:YYY}", "unsupported modifier (:Y) in substitution"),
        ("${PWD:=000}", "unsupported modifier (:=) in substitution"),
        ("${PWD:#a}", "unsupported modifier (:#) in substitution"),
        ("${PWD", "unsupported modifier (\u{fffd}) in substitution"),
        ("${", "syntax error: missing '}'"),
        ("${aaa:-bbb", "syntax error: missing '}'"),
        ("${aaa:-bbb ${foo}", "syntax error: missing '}'"),
        ("${PWD/a", "syntax error: missing '/' in ${}"),
        ("${PWD/a/b", "syntax error: missing '}'"),
        ("${XXX?}", "XXX: is not allowed to be unset"),
        ("${XXX:?}", "XXX: is not allowed to be unset"),
        ("${NULL:?}", "NULL: is not allowed to be empty"),
        ("${XXX:?set it}", "XXX: set it"),
        (r"${PWD#\a}", r"invalid pattern (\a) in substitution: invalid escape '\a'"),
    ] {
        assert_eq!(word(text).unwrap_err().to_string(), failed(text) + expected, "{text}");
    }
}

#[test]
fn words() {
    let words = |text: &str| Shell::new('\\').expand(text, &variables).map(|it| it.words);
    for (text, expected) in [
        ("hello there", &["hello", "there"][..]),
        ("hello\\ there", &["hello there"]),
        ("hello${space}bye", &["helloabc", "defbye"]),
        ("hello\"${space}\"bye", &["helloabc  defbye"]),
        ("hello${lead}def", &["hello", "ab", "cdef"]),
        ("hello\"${lead}\" def", &["hello  ab c", "def"]),
        ("hello${trail}", &["helloab", "c"]),
        ("hello\" there  \"", &["hello there  "]),
        ("hello\\\" there", &["hello\"", "there"]),
        ("80${unset:-81}", &["8081"]),
        ("cat << EOF", &["cat", "<< EOF"]),
        ("", &[]),
    ] {
        assert_eq!(words(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn raw() {
    let shell = Shell { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Shell::new('\\') };
    for (text, expected) in [
        (r#"a "b c" 'd' \$x"#, r#"a "b c" 'd' \$x"#),
        ("$PWD $unset ${unset} ${unset:-a b}", "/home $unset ${unset} ${unset:-a b}"),
        ("${unset/a/b}", "${unset/a/b}"),
    ] {
        assert_eq!(shell.expand(text, &variables).unwrap().text, expected, "{text}");
    }
    let plain = Shell { plain_quotes: true, ..Shell::new('\\') };
    assert_eq!(plain.expand("it's $PWD", &variables).unwrap().text, "it's /home");
    let tick = Shell::new('`');
    assert_eq!(tick.expand("c:\\a`$b", &variables).unwrap().text, "c:\\a$b");
}

#[test]
fn names_that_were_asked_for() {
    let it = Shell::new('\\').expand("$PWD ${no} ${NULL:-$other}", &variables).unwrap();
    assert_eq!(it.matched, BTreeSet::from(["PWD".to_owned(), "NULL".to_owned()]));
    assert_eq!(it.unmatched, BTreeSet::from(["no".to_owned(), "other".to_owned()]));
}

#[test]
fn bounded() {
    let deep = "${a:-".repeat(5000) + &"}".repeat(5000);
    assert!(word(&deep).unwrap_err().to_string().ends_with("nested deeper than 100"));
    let long = "x".repeat(1 << 16);
    struct Long(String);
    impl Variables for Long {
        fn get(&self, _: &str) -> Option<&str> {
            Some(&self.0)
        }
    }
    let error = Shell::new('\\').expand(&"$a".repeat(100), &Long(long)).unwrap_err();
    assert!(error.to_string().ends_with("longer than 1048576 bytes"));
}

proptest! {
    #[test]
    fn never_panics(text in "[a${}:?+#%/*'\"\\\\ <-]{0,60}", any in ".*") {
        let _ = word(&text);
        let _ = word(&any);
    }

    #[test]
    fn plain_text_stays(text in "[a-z0-9 ._/=-]*") {
        prop_assert_eq!(word(&text).unwrap(), text);
    }

    #[test]
    fn single_quotes_keep_everything(text in "[^']*") {
        prop_assert_eq!(word(&format!("'{text}'")).unwrap(), text);
    }
}
