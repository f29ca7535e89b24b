//! `$(NAME)` in `subPathExpr`, as in commands; pure.

use std::collections::BTreeMap;

use super::{Problem, place};

/// Longest result.
const MAX: usize = 4096;

/// The sub-path. Every name must be in the environment, and the result must stay in the volume.
pub fn sub_path(expression: &str, env: &BTreeMap<String, String>) -> Result<String, Problem> {
    let mut out = String::new();
    let mut rest = expression;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|it| it.split_once(')')) {
            let missing = || Problem::Missing(format!("missing value for {name:?}"));
            out.push_str(env.get(name).ok_or_else(missing)?);
            rest = after;
        } else {
            out.push('$');
        }
        if out.len() > MAX {
            break;
        }
    }
    out.push_str(rest);
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
