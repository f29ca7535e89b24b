//! What the downward API tells in files: names, labels and resources of the pod; pure.
//!
//! Elsewhere: the same in the environment (`pod::spec`).

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, DownwardAPIVolumeFile, Pod, ResourceFieldSelector, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{
    Problem,
    payload::{File, Payload, permissions},
    quantity::Amount,
};

/// Files of a downward API volume.
pub fn files(
    items: &[DownwardAPIVolumeFile],
    pod: &Pod,
    allocatable: &BTreeMap<String, Quantity>,
    mode: u32,
) -> Result<Payload, Problem> {
    let mut payload = Payload::default();
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => field_of(pod, &field.field_path)?,
            (None, Some(resource)) => resource_of(pod, resource, allocatable)?,
            (None, None) => String::new(),
        };
        let mode = item.mode.map_or(mode, permissions);
        payload.add(&item.path, File { data: text.into_bytes(), mode, owner: None })?;
    }
    Ok(payload)
}

/// A field that never changes while the pod lives.
pub(crate) fn field_of(pod: &Pod, path: &str) -> Result<String, Problem> {
    let metadata = &pod.metadata;
    let unsupported = || Problem::Invalid(format!("unsupported fieldPath: {path}"));
    let text = |it: &Option<String>| it.clone().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|it| it.split_once("['")) {
        let map = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(unsupported()),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    match path {
        "metadata.name" => Ok(text(&metadata.name)),
        "metadata.namespace" => Ok(text(&metadata.namespace)),
        "metadata.uid" => Ok(text(&metadata.uid)),
        "metadata.labels" => Ok(lines(metadata.labels.as_ref())),
        "metadata.annotations" => Ok(lines(metadata.annotations.as_ref())),
        _ => Err(unsupported()),
    }
}

/// `key="value"` a line, sorted.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

/// As Go's `%q` writes it: what does not print is escaped.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", c as u32)),
            // Controls and spaces beyond ASCII do not print in Go's sense.
            c if c.is_control() || (c.is_whitespace() && c != ' ') || matches!(c, '\u{ad}' | '\u{feff}') => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn resource_of(
    pod: &Pod,
    selector: &ResourceFieldSelector,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, Problem> {
    let name = selector.container_name.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let container = all.into_iter().find(|it| it.name == name);
    let container = container.ok_or_else(|| Problem::Invalid(format!("container {name} not found")))?;
    amount_of(pod, container, selector, allocatable)
}

/// A resource of a container, in whole divisors, rounded up. Where it has no limit, that of the pod, else all that the node
/// gives to pods.
pub(crate) fn amount_of(
    pod: &Pod,
    container: &Container,
    selector: &ResourceFieldSelector,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, Problem> {
    let wanted = &selector.resource;
    let none = ResourceRequirements::default();
    let resources = container.resources.as_ref().unwrap_or(&none);
    let whole = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()).and_then(|it| it.limits.as_ref());
    let unsupported = || Problem::Invalid(format!("unsupported container resource : {wanted}"));
    let (list, resource) = wanted.split_once('.').ok_or_else(unsupported)?;
    let is_known = matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    let amount = match list {
        _ if !is_known => return Err(unsupported()),
        "limits" => {
            let own = resources.limits.as_ref().and_then(|limits| limits.get(resource));
            let some = |it: &&Quantity| Amount::parse(&it.0).is_none_or(|it| it != Amount::ZERO);
            let whole = || whole.and_then(|limits| limits.get(resource)).filter(some);
            own.filter(some).or_else(whole).or_else(|| allocatable.get(resource))
        }
        "requests" => resources.requests.as_ref().and_then(|requests| requests.get(resource)),
        _ => return Err(unsupported()),
    };
    let read = |quantity: &Quantity| {
        Amount::parse(&quantity.0).ok_or_else(|| Problem::Invalid(format!("{:?} is no quantity", quantity.0)))
    };
    let amount = amount.map_or(Ok(Amount::ZERO), read)?;
    let divisor = selector.divisor.as_ref().map_or(Ok(Amount::ZERO), read)?;
    let divisor = if divisor == Amount::ZERO { Amount::ONE } else { divisor };
    // CPU is counted in thousandths, everything else in whole bytes.
    let divided = if resource == "cpu" {
        amount.milli().ceil_div(divisor.milli())
    } else {
        amount.whole().ceil_div(divisor.whole())
    };
    Ok(divided.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "ns", "uid": "u", "labels": { "b": "2", "a": "x\"y\\\n\u{1}é" },
                "annotations": { "k/x": "v" } },
            "spec": { "containers": [{ "name": "c", "resources": { "limits": { "cpu": "1500m", "memory": "64Mi" },
                "requests": { "cpu": "250m" } } }, { "name": "d" }] },
        }))
        .unwrap()
    }

    #[test]
    fn fields() {
        #[track_caller]
        fn check(path: &str, want: Option<&str>) {
            assert_eq!(field_of(&pod(), path).ok().as_deref(), want, "{path}");
        }
        check("metadata.name", Some("p"));
        check("metadata.namespace", Some("ns"));
        check("metadata.uid", Some("u"));
        check("metadata.labels", Some("a=\"x\\\"y\\\\\\n\\x01é\"\nb=\"2\""));
        check("metadata.labels['b']", Some("2"));
        check("metadata.labels['no']", Some(""));
        check("metadata.annotations['k/x']", Some("v"));
        check("metadata.annotations", Some("k/x=\"v\""));
        check("spec.nodeName", None);
        check("spec['x']", None);
        check("", None);
    }

    #[test]
    fn resources() {
        #[track_caller]
        fn check(container: &str, resource: &str, divisor: Option<&str>, want: Option<&str>) {
            let selector = ResourceFieldSelector {
                container_name: Some(container.to_owned()),
                resource: resource.to_owned(),
                divisor: divisor.map(|it| Quantity(it.to_owned())),
            };
            let node = [("cpu", "4"), ("memory", "1Gi")];
            let node = node.map(|(name, value)| (name.to_owned(), Quantity(value.to_owned()))).into();
            assert_eq!(
                resource_of(&pod(), &selector, &node).ok().as_deref(),
                want,
                "{container} {resource} {divisor:?}"
            );
        }
        check("c", "limits.cpu", None, Some("2")); // Rounded up.
        check("c", "limits.cpu", Some("1m"), Some("1500"));
        check("c", "limits.memory", Some("1Mi"), Some("64"));
        check("c", "limits.memory", Some("0"), Some("67108864"));
        check("c", "requests.cpu", Some("1m"), Some("250"));
        check("c", "requests.memory", None, Some("0"));
        check("d", "limits.cpu", None, Some("4")); // The node's.
        check("d", "limits.memory", Some("1Mi"), Some("1024"));
        check("d", "limits.hugepages-2Mi", None, Some("0"));
        check("e", "limits.cpu", None, None);
        check("c", "limits.gpu", None, None);
        check("c", "cpu", None, None);
        check("c", "limits.cpu", Some("many"), None);
    }
}
