#![no_main]
//! Dockerfiles and `.dockerignore`, as repositories that nobody vouches for bring them. The first byte: which of them.

use container_engine::build::{
    args::Options,
    dockerfile::{lexer, parse},
    graph::Bases,
    ignore::{self, Matcher},
    outline,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    if kind % 2 == 1 {
        let (patterns, path) = text.split_once("\n\n").unwrap_or((&text, "a/b"));
        let Ok(patterns) = ignore::read(patterns) else { return };
        if let Ok(matcher) = Matcher::new(&patterns) {
            // What may be passed over has nothing in it that is there.
            if matcher.ignores(path) && matcher.can_skip(path) {
                assert!(matcher.ignores(&format!("{path}/x")), "{patterns:?} {path:?}");
            }
        }
        return;
    }
    let lines = u32::try_from(text.lines().count()).unwrap_or(u32::MAX);
    if let Ok(parsed) = lexer::parse(&text) {
        assert!(!parsed.nodes.is_empty() && parsed.nodes.len() <= lexer::MAX_INSTRUCTIONS);
        assert!(parsed.nodes.iter().all(|it| it.lines.first >= 1 && it.lines.last <= lines));
    }
    if let Err(error) = parse::dockerfile(&text) {
        assert!(error.lines().iter().all(|it| it.last <= lines), "{error} {:?}", error.lines());
        assert!(error.show("Dockerfile", &text).contains(&error.to_string()));
    }
    let options = Options::new("linux/arm64".parse().expect("a platform"));
    let report = outline::check(&text, options.clone(), &Bases::new());
    assert!(report.warnings.0.iter().all(|it| it.lines.first >= 1 && it.lines.last <= lines));
    let _ = (report.show("Dockerfile", &text), report.json("Dockerfile", &text));
    if let Ok(outline) = outline::outline(&text, options, &Bases::new()) {
        assert!(!outline.show().contains('\0') || text.contains('\0'));
    }
});
