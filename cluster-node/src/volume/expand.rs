//! `$(NAME)` in `subPathExpr`, as in commands; pure.

use std::{borrow::Cow, collections::BTreeMap};

use super::{Problem, place};

/// Longest result.
const MAX: usize = 4096;

/// `text` with each `$(NAME)` replaced by what `lookup` says; `$$` is a dollar, any other dollar stands for itself. `None`:
/// `lookup` said so, or the result is longer than `max` bytes.
pub(crate) fn expand<'a>(
    text: &str,
    max: usize,
    mut lookup: impl FnMut(&str) -> Option<Cow<'a, str>>,
) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|it| it.split_once(')')) {
            out.push_str(&lookup(name)?);
            rest = after;
        } else {
            out.push('$');
        }
        if out.len() > max {
            return None;
        }
    }
    out.push_str(rest);
    (out.len() <= max).then_some(out)
}

/// The sub-path. Every name must be in the environment, and the result must stay in the volume.
pub fn sub_path(expression: &str, env: &BTreeMap<String, String>) -> Result<String, Problem> {
    let mut missing = None;
    let lookup = |name: &str| {
        let value = env.get(name);
        if value.is_none() {
            missing = Some(name.to_owned());
        }
        value.map(Cow::from)
    };
    let Some(out) = expand(expression, MAX, lookup) else {
        return Err(match missing {
            Some(name) => Problem::Missing(format!("missing value for {name:?}")),
            None => Problem::Invalid(format!("subPathExpr gives a path of more than {MAX} bytes")),
        });
    };
    if out.contains('`') {
        return Err(Problem::Invalid("subPathExpr must not give a path with a backtick".to_owned()));
    }
    if out.is_empty() {
        return Err(Problem::Invalid("subPathExpr gives an empty path".to_owned()));
    }
    place::inside(&out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        #[track_caller]
        fn check(expression: &str, want: Option<&str>) {
            let env = [("POD", "p-1"), ("UP", "../x"), ("ROOT", "/etc"), ("EMPTY", ""), ("TICK", "a`b")];
            let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            assert_eq!(sub_path(expression, &env).ok().as_deref(), want, "{expression}");
        }
        check("plain/path", Some("plain/path"));
        check("$(POD)/logs", Some("p-1/logs"));
        check("a$(EMPTY)b", Some("ab"));
        check("$$(POD)", Some("$(POD)"));
        check("$POD", Some("$POD"));
        check("$(POD", Some("$(POD"));
        check("a$", Some("a$"));
        check("$(NO)", None);
        check("$(UP)", None);
        check("$(ROOT)", None);
        check("$(EMPTY)", None);
        check("$(TICK)", None);
        check(&"$(POD)".repeat(5000), None);
    }
}
