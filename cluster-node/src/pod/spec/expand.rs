//! `$(NAME)` in values, commands and arguments, as Kubernetes expands it.
//!
//! Always true: what is unknown stays as it is written; the result is never longer than the kernel takes in one word.

use std::collections::BTreeMap;

use super::SpecError;

/// Longest word of a command line or environment (`MAX_ARG_STRLEN`).
const MAX_WORD: usize = 131_071;

/// `text` with what `lookup` knows put in.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> Result<String, SpecError> {
    let known = |name: &str| Some(lookup(name).map_or_else(|| format!("$({name})").into(), Into::into));
    crate::volume::expand(text, MAX_WORD, known).ok_or_else(|| {
        let shown: String = text.chars().take(64).collect();
        SpecError::config(format!("{shown:?} is longer than {MAX_WORD} bytes once its variables are put in"))
    })
}

/// Words of a command with the variables of the container put in.
pub fn words(words: &[String], env: &BTreeMap<String, String>) -> Result<Vec<String>, SpecError> {
    words.iter().map(|word| expand(word, |name| env.get(name).map(String::as_str))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_kubernetes_does() {
        #[track_caller]
        fn check(text: &str, want: &str) {
            let env = [("A", "a"), ("B", "$(A)"), ("EMPTY", ""), ("x y", "odd")];
            let lookup = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
            assert_eq!(expand(text, lookup).unwrap(), want, "{text}");
        }
        check("", "");
        check("plain", "plain");
        check("$(A)", "a");
        check("-$(A)-$(EMPTY)-", "-a--");
        check("$(B)", "$(A)"); // Once.
        check("$(NO)", "$(NO)");
        check("$$(A)", "$(A)");
        check("$$$(A)", "$a");
        check("$$$$", "$$");
        check("$A ${A}", "$A ${A}");
        check("$(A", "$(A");
        check("$", "$");
        check("a$", "a$");
        check("$()", "$()");
        check("$(x y)", "odd");
        check("ü$(A)ü", "üaü");
    }

    #[test]
    fn growth_has_an_end() {
        let long = "x".repeat(70_000);
        assert!(expand("$(L)$(L)", |_| Some(&long)).is_err());
        assert!(expand(&"x".repeat(MAX_WORD + 1), |_| None).is_err());
        assert_eq!(expand(&"x".repeat(MAX_WORD), |_| None).unwrap().len(), MAX_WORD);
    }
}
