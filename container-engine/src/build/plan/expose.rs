//! Ports of EXPOSE: `80`, `80/udp`, `8000-8010/tcp`; addresses and ports of the host are passed over, and told.

use crate::build::dockerfile::lint::{Linter, Rule, Warnings};
use crate::build::dockerfile::{Lines, Result, argument, quote};

/// All there are.
pub(super) const MAX_PORTS: usize = 65_536;

/// The ports that a word stands for.
pub(super) fn ports(word: &str, lines: Lines, lint: &Linter, warnings: &mut Warnings) -> Result<Vec<String>> {
    let (address, host, rest) = split(word);
    let (port, protocol) = rest.split_once('/').unwrap_or((rest, ""));
    let invalid = |why: &str| argument(format!("invalid port: {}: {why}", quote(word)));
    if port.is_empty() {
        return Err(invalid("no port specified"));
    }
    let lower = match &*protocol.to_lowercase() {
        "" | "tcp" => "tcp",
        "udp" => "udp",
        "sctp" => "sctp",
        _ => return Err(invalid(&format!("invalid proto: {protocol}"))),
    };
    if protocol != protocol.to_lowercase() {
        lint.tell(warnings, Rule::ExposeProtoCasing, lines, || {
            format!("Defined protocol '{word}' in EXPOSE instruction should be lowercase")
        });
    }
    if !address.is_empty() || !host.is_empty() {
        lint.tell(warnings, Rule::ExposeInvalidFormat, lines, || {
            format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'")
        });
    }
    let plain = address.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(address);
    if !plain.is_empty() && plain.parse::<std::net::IpAddr>().is_err() {
        return Err(argument(format!("invalid IP address: {plain}")));
    }
    let (first, last) = range(port).ok_or_else(|| argument(format!("invalid containerPort: {port}")))?;
    if !host.is_empty() {
        let (from, to) = range(host).ok_or_else(|| argument(format!("invalid hostPort: {host}")))?;
        if last - first != to - from && last != first {
            return Err(argument(format!("invalid ranges specified for container and host Ports: {port} and {host}")));
        }
    }
    Ok((first..=last).map(|it| format!("{it}/{lower}")).collect())
}

/// Address, port of the host, and the rest.
fn split(word: &str) -> (&str, &str, &str) {
    let Some((before, port)) = word.rsplit_once(':') else { return ("", "", word) };
    match before.rsplit_once(':') {
        Some((address, host)) => (address, host, port),
        None => ("", before, port),
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let number = |it: &str| it.parse::<u16>().ok();
    match text.split_once('-') {
        None => number(text).map(|it| (it, it)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some((first, last))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read() {
        let here = Lines::new(1, 1);
        let all = |word: &str| {
            let mut warnings = Warnings::default();
            let ports = ports(word, here, &Linter::default(), &mut warnings).map_err(|it| it.to_string());
            (ports, warnings.0.into_iter().map(|it| it.rule.name()).collect::<Vec<_>>())
        };
        for (word, expected, rules) in [
            ("80", &["80/tcp"][..], &[][..]),
            ("80/UDP", &["80/udp"], &["ExposeProtoCasing"]),
            ("80-82/sctp", &["80/sctp", "81/sctp", "82/sctp"], &[]),
            ("127.0.0.1:8080:80", &["80/tcp"], &["ExposeInvalidFormat"]),
            ("[::1]::80", &["80/tcp"], &["ExposeInvalidFormat"]),
            ("8080-8090:80", &["80/tcp"], &["ExposeInvalidFormat"]),
        ] {
            assert_eq!(all(word), (Ok(expected.iter().map(ToString::to_string).collect()), rules.to_vec()), "{word}");
        }
        for (word, expected) in [
            ("/udp", "invalid port: \"/udp\": no port specified"),
            ("80/http", "invalid port: \"80/http\": invalid proto: http"),
            ("99999", "invalid containerPort: 99999"),
            ("82-80", "invalid containerPort: 82-80"),
            ("a:80", "invalid hostPort: a"),
            ("1-3:1-2", "invalid ranges specified for container and host Ports: 1-2 and 1-3"),
            ("x::80", "invalid IP address: x"),
        ] {
            assert_eq!(all(word).0.unwrap_err(), expected);
        }
    }
}
