//! Values in a template: what Go would print, and its functions.

use serde_json::Value;

use super::template::{Result, fault};

/// As Go prints a value without quotes: `[a b]`, `map[k:v]`, `<nil>`.
pub fn print(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(print).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let entries: Vec<_> = map.iter().map(|(key, value)| format!("{key}:{}", print(value))).collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

/// Whether `if` takes it for true: not empty, not zero.
pub fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(it) => *it,
        Value::Number(it) => it.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A function of the template language.
pub fn call(name: &str, arguments: &[Value]) -> Result<Value> {
    let text = |at: usize| arguments.get(at).map(print).unwrap_or_default();
    let value = match (name, arguments) {
        // Of a row, whose labels are one text as Docker has them.
        (".Label", [Value::Object(row), Value::String(key)]) => {
            let labels = row.get("Labels").and_then(Value::as_str).unwrap_or_default();
            let found = labels.split(',').find_map(|label| label.split_once('=').filter(|(name, _)| name == key));
            found.map(|(_, value)| value).unwrap_or_default().into()
        }
        ("json", [value]) => Value::String(value.to_string()),
        ("len", [Value::String(text)]) => text.len().into(),
        ("len", [Value::Array(items)]) => items.len().into(),
        ("len", [Value::Object(map)]) => map.len().into(),
        ("len", [Value::Null]) => 0.into(),
        ("index", [of, keys @ ..]) if !keys.is_empty() => return index(of, keys),
        ("join", [Value::Array(items), by]) => {
            Value::String(items.iter().map(print).collect::<Vec<_>>().join(&print(by)))
        }
        ("join", [Value::Null, _]) => Value::String(String::new()),
        ("split", [text, by]) => print(text).split(&print(by)).map(Value::from).collect::<Vec<_>>().into(),
        ("upper", [text]) => print(text).to_uppercase().into(),
        ("lower", [text]) => print(text).to_lowercase().into(),
        ("title", [text]) => {
            let text = print(text);
            let mut chars = text.chars();
            chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect()).into()
        }
        ("truncate", [text, Value::Number(most)]) => {
            let most = usize::try_from(most.as_u64().unwrap_or(0)).unwrap_or(0);
            print(text).chars().take(most).collect::<String>().into()
        }
        ("println", _) => format!("{}\n", arguments.iter().map(print).collect::<Vec<_>>().join(" ")).into(),
        ("print", _) => arguments.iter().map(print).collect::<String>().into(),
        ("printf", [Value::String(format), rest @ ..]) => printf(format, rest).into(),
        ("eq", [first, others @ ..]) if !others.is_empty() => others.iter().any(|other| other == first).into(),
        ("ne", [first, second]) => (first != second).into(),
        ("not", [value]) => (!truth(value)).into(),
        ("and", [.., last]) => arguments.iter().find(|it| !truth(it)).unwrap_or(last).clone(),
        ("or", [.., last]) => arguments.iter().find(|it| truth(it)).unwrap_or(last).clone(),
        (
            "json" | "len" | "index" | "join" | "split" | "upper" | "lower" | "title" | "truncate" | "printf" | "eq"
            | "ne" | "not" | "and" | "or",
            _,
        ) => return fault(format!("{name} does not take {:?}", text(0))),
        _ => return fault(format!("there is no function {name}")),
    };
    Ok(value)
}

/// An item by number, or an entry by key; what is not in a map is empty, as in Go.
fn index(of: &Value, keys: &[Value]) -> Result<Value> {
    let mut value = of.clone();
    for key in keys {
        value = match (&value, key) {
            (Value::Array(items), Value::Number(at)) => {
                let found = at.as_u64().and_then(|at| items.get(usize::try_from(at).ok()?));
                match found {
                    Some(item) => item.clone(),
                    None => return fault(format!("index {at} is outside: there are {} items", items.len())),
                }
            }
            (Value::Object(map), Value::String(key)) => map.get(key).cloned().unwrap_or_else(|| "".into()),
            (Value::Null, _) => Value::Null,
            (other, key) => return fault(format!("index {} does not go with {}", print(key), print(other))),
        };
    }
    Ok(value)
}

/// `%s`, `%v`, `%d`, `%q` and widths such as `%-10s`; the rest as it is.
fn printf(format: &str, arguments: &[Value]) -> String {
    let mut out = String::new();
    let mut values = arguments.iter();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let verb = after.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(after.len());
        let width = after[..verb].trim_start_matches('-').parse::<usize>().unwrap_or(0).min(1000);
        let is_left = after.starts_with('-');
        let c = after[verb..].chars().next();
        let text = match c {
            None | Some('%') => "%".to_owned(),
            Some('q') => values.next().map_or_else(String::new, |it| format!("{:?}", print(it))),
            Some(_) => values.next().map_or_else(|| "%!(MISSING)".to_owned(), print),
        };
        out.push_str(&if is_left { format!("{text:<width$}") } else { format!("{text:>width$}") });
        rest = &after[verb + c.map_or(0, char::len_utf8)..];
    }
    out.push_str(rest);
    out
}
