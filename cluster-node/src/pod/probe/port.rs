//! Ports of probes and hooks: numbers, or names of the container's ports.

use k8s_openapi::{api::core::v1::Container, apimachinery::pkg::util::intstr::IntOrString};

/// No port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// A number outside 1 to 65535.
    #[error("invalid port number: {0}")]
    Number(i64),
    /// No port of the container has that name, and it is no number.
    #[error("port {0} not found: name a port of the container, or write its number")]
    Name(String),
}

/// The number of a port.
pub fn resolve(port: &IntOrString, container: &Container) -> Result<u16, PortError> {
    let number = match port {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(name) => {
            let mut named = container.ports.iter().flatten().filter(|port| port.name.as_deref() == Some(name));
            match named.next() {
                Some(port) => i64::from(port.container_port),
                // A number in quotes is still one.
                None => name.parse().map_err(|_| PortError::Name(name.chars().take(63).collect()))?,
            }
        }
    };
    number_of(number)
}

/// A port that can only be a number.
pub fn number_of(number: i64) -> Result<u16, PortError> {
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or(PortError::Number(number))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ContainerPort;

    use super::*;

    #[test]
    fn ports_are_found_by_name_and_number() {
        #[track_caller]
        fn check(port: IntOrString, want: Result<u16, PortError>) {
            let http = ContainerPort { name: Some("http".into()), container_port: 8080, ..ContainerPort::default() };
            let wrong = ContainerPort { name: Some("big".into()), container_port: 70000, ..ContainerPort::default() };
            let container = Container { ports: Some(vec![http, wrong]), ..Container::default() };
            assert_eq!(resolve(&port, &container), want);
        }
        let text = |text: &str| IntOrString::String(text.into());
        check(IntOrString::Int(80), Ok(80));
        check(IntOrString::Int(0), Err(PortError::Number(0)));
        check(IntOrString::Int(-1), Err(PortError::Number(-1)));
        check(IntOrString::Int(65536), Err(PortError::Number(65536)));
        check(text("http"), Ok(8080));
        check(text("big"), Err(PortError::Number(70000)));
        check(text("81"), Ok(81));
        check(text("https"), Err(PortError::Name("https".into())));
    }
}
