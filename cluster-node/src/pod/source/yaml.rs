//! One YAML or JSON document, as the API machinery reads it: 1.1's octal numbers, quantities that look like numbers.
//!
//! Elsewhere: what must be in it (`manifest`).

use serde_json::Value;

use super::manifest::ManifestError;

/// Depth of a document.
const DEPTH: usize = 64;
/// Values in it.
const NODES: usize = 100_000;

/// Reads a document.
pub(super) fn read(bytes: &[u8]) -> Result<Value, ManifestError> {
    let text = std::str::from_utf8(bytes).map_err(|error| ManifestError::Text(error.valid_up_to()))?;
    let text = text.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with('{')
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(value);
    }
    // No snippet: what is around an error may be somebody's password.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH,
            max_nodes: NODES,
            max_events: 4 * NODES,
            max_aliases: 1000,
            max_anchors: 1000,
            max_documents: 2,
            max_merge_keys: 1000,
        },
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| ManifestError::Yaml(cut(&error.to_string())))
}

/// Quantities may be written as numbers; the API's types want text.
pub(super) fn mend_quantities(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), &mut *value) {
                    ("limits" | "requests" | "overhead", Value::Object(amounts)) => {
                        amounts.values_mut().for_each(as_text);
                    }
                    ("sizeLimit" | "divisor", value) => as_text(value),
                    _ => mend_quantities(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mend_quantities),
        _ => {}
    }
}

fn as_text(value: &mut Value) {
    if let Value::Number(number) = value {
        *value = Value::String(number.to_string());
    }
}

/// Not at any length.
pub(super) fn cut(text: &str) -> String {
    const MOST: usize = 512;
    text.char_indices().nth(MOST).map_or_else(|| text.to_owned(), |(at, _)| format!("{}…", &text[..at]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_read_as_the_api_machinery_does() {
        #[track_caller]
        fn check(text: &str, want: Value) {
            assert_eq!(read(text.as_bytes()).unwrap(), want, "{text}");
        }
        check("a: 1\nb: [x, 'y', \"0\"]\n", json!({"a": 1, "b": ["x", "y", "0"]}));
        check("mode: 0644\n", json!({"mode": 420}));
        check("mode: 0o644\n", json!({"mode": 420}));
        check("---\na: true\nb: null\nc: ~\n", json!({"a": true, "b": null, "c": null}));
        check("{\"a\":\t1.5}", json!({"a": 1.5}));
        check("\u{feff}a: x: y\n".replace("x: y", "xy").as_str(), json!({"a": "xy"}));
        check("d: &d {x: 1}\ne: *d\n", json!({"d": {"x": 1}, "e": {"x": 1}}));
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = "[".repeat(100_000);
        let bomb = {
            let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
            for n in 1..12 {
                let refs = vec![format!("*a{}", n - 1); 10].join(", ");
                text.push_str(&format!("a{n}: &a{n} [{refs}]\n"));
            }
            text
        };
        for text in [deep.as_str(), bomb.as_str(), "a: 1\n---\nb: 2\n", "a: [1", "a: 1\na: 2\n"] {
            let problem = read(text.as_bytes()).unwrap_err().to_string();
            assert!(problem.len() < 1024, "{problem}");
        }
        assert!(matches!(read(b"a: \xff"), Err(ManifestError::Text(3))));
        let quoted = read(b"password: hush-hush\nb: [").unwrap_err().to_string();
        assert!(!quoted.contains("hush"), "{quoted}");
    }

    #[test]
    fn quantities_become_text() {
        let mut value = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": 1, "memory": "1Gi"}, "requests":
            {"cpu": 0.5}}, "env": [{"valueFrom": {"resourceFieldRef": {"divisor": 1}}}]}], "volumes": [{"emptyDir":
            {"sizeLimit": 1000}}], "terminationGracePeriodSeconds": 5}});
        mend_quantities(&mut value);
        assert_eq!(
            value,
            json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests":
            {"cpu": "0.5"}}, "env": [{"valueFrom": {"resourceFieldRef": {"divisor": "1"}}}]}], "volumes": [{"emptyDir":
            {"sizeLimit": "1000"}}], "terminationGracePeriodSeconds": 5}})
        );
    }
}
