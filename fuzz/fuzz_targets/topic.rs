#![no_main]
//! Topic names and filters: `FILTER`, a line feed, `NAME`. Matching is compared with a plain recursive reading of the
//! specification.

use libfuzzer_sys::fuzz_target;
use telemetry::topic::{MAX_BYTES, MAX_LEVELS, check_filter, check_name, matches};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (filter, name) = text.split_once('\n').unwrap_or((text, text));
    let matched = matches(filter, name);
    if check_name(name).is_ok() {
        assert!(!name.contains(['+', '#', '\0']) && name.len() <= MAX_BYTES && name.split('/').count() <= MAX_LEVELS);
        assert_eq!(check_filter(name), Ok(()), "a name is a filter");
        assert!(matches(name, name), "a name matches itself");
        if check_filter(filter).is_ok() {
            assert_eq!(matched, by_the_book(filter, name), "{filter:?} on {name:?}");
        }
    }
});

/// Section 4.7, level by level.
fn by_the_book(filter: &str, name: &str) -> bool {
    fn levels(filter: &[&str], name: &[&str]) -> bool {
        match (filter, name) {
            (["#"], _) | ([], []) => true,
            (["+", filter @ ..], [_, name @ ..]) => levels(filter, name),
            ([want, filter @ ..], [level, name @ ..]) if want == level => levels(filter, name),
            _ => false,
        }
    }
    // Section 4.7.2: wildcards in front do not match names that begin with $.
    let hidden = name.starts_with('$') && filter.starts_with(['+', '#']);
    let (filter, name): (Vec<_>, Vec<_>) = (filter.split('/').collect(), name.split('/').collect());
    !hidden && levels(&filter, &name)
}
