//! `-p [[ADDRESS:]HOST:]CONTAINER[/PROTOCOL]`, with ranges.

use std::net::IpAddr;

use container_engine::container::{PortMapping, Protocol};

/// Most ports that one flag may publish.
const MAX_RANGE: u16 = 4096;

/// The mappings that one `-p` means.
pub fn ports(text: &str) -> Result<Vec<PortMapping>, String> {
    let wrong = |why: &str| {
        format!(
            "{text:?} is no port: {why}; write it like 8080:80, 127.0.0.1:8080:80/udp, [::1]::80 or 8000-8009:8000-8009"
        )
    };
    let (rest, protocol) = split_protocol(text).map_err(|why| wrong(&why))?;
    let (address, rest) = match rest.strip_prefix('[') {
        Some(six) => {
            let (address, rest) = six.split_once("]:").ok_or_else(|| wrong("the bracket is not closed"))?;
            (Some(address), rest)
        }
        None if rest.matches(':').count() > 1 => rest.split_once(':').map_or((None, rest), |(a, b)| (Some(a), b)),
        None => (None, rest),
    };
    let host_address = match address {
        None | Some("") => None,
        Some(text) => Some(text.parse::<IpAddr>().map_err(|_| wrong(&format!("{text:?} is no address")))?),
    };
    let (host, container) = match rest.rsplit_once(':') {
        Some((host, container)) => (host, container),
        // An address alone leaves the choice of the host's port.
        None => ("", rest),
    };
    let (first, count) = range(container).ok_or_else(|| wrong("the container's port is not a number or a range"))?;
    let host_first = match host {
        "" => None,
        host => {
            let (first, hosts) = range(host).ok_or_else(|| wrong("the host's port is not a number or a range"))?;
            if hosts != count {
                return Err(wrong("both ranges need the same length"));
            }
            Some(first)
        }
    };
    let mapping = |n: u16| PortMapping {
        host_address,
        host_port: host_first.map_or(0, |first| first + n),
        container_port: first + n,
        protocol,
    };
    Ok((0..count).map(mapping).collect())
}

/// `80/tcp`, as an image exposes it: a free port of the host leads there.
pub fn exposed(text: &str) -> Result<Vec<PortMapping>, String> {
    ports(text)
}

fn split_protocol(text: &str) -> Result<(&str, Protocol), String> {
    match text.rsplit_once('/') {
        None => Ok((text, Protocol::Tcp)),
        Some((rest, "tcp")) => Ok((rest, Protocol::Tcp)),
        Some((rest, "udp")) => Ok((rest, Protocol::Udp)),
        Some((rest, "sctp")) => Ok((rest, Protocol::Sctp)),
        Some((_, other)) => Err(format!("there is no protocol {other:?}: there are tcp, udp, sctp")),
    }
}

/// First port and how many.
fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0 && !text.starts_with('+'));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    let count = last.checked_sub(first)?.checked_add(1)?;
    (count <= MAX_RANGE).then_some((first, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports() {
        type Row<'a> = (Option<&'a str>, u16, u16, Protocol);
        #[track_caller]
        fn check(text: &str, want: &[Row]) {
            let got: Vec<_> = ports(text).unwrap_or_default();
            let got: Vec<_> = got
                .iter()
                .map(|it| (it.host_address.map(|it| it.to_string()), it.host_port, it.container_port, it.protocol))
                .collect();
            let want: Vec<_> = want.iter().map(|(a, h, c, p)| (a.map(str::to_owned), *h, *c, *p)).collect();
            assert_eq!(got, want, "{text:?}");
        }
        use Protocol::{Sctp, Tcp, Udp};
        check("80", &[(None, 0, 80, Tcp)]);
        check("8080:80", &[(None, 8080, 80, Tcp)]);
        check("8080:80/udp", &[(None, 8080, 80, Udp)]);
        check("127.0.0.1:8080:80/udp", &[(Some("127.0.0.1"), 8080, 80, Udp)]);
        check("127.0.0.1::80", &[(Some("127.0.0.1"), 0, 80, Tcp)]);
        check("[::1]:8080:80/sctp", &[(Some("::1"), 8080, 80, Sctp)]);
        check(":8080:80", &[(None, 8080, 80, Tcp)]);
        check("8000-8001:9000-9001", &[(None, 8000, 9000, Tcp), (None, 8001, 9001, Tcp)]);
        check("9000-9001", &[(None, 0, 9000, Tcp), (None, 0, 9001, Tcp)]);
        for wrong in [
            "",
            "a",
            "0",
            "80:",
            "65536",
            "80/icmp",
            "1.2.3:1:2",
            "8000-8001:80",
            "8001-8000",
            "1-65535",
            "[::1:80",
            "-1:80",
            "host:80:80",
            "+80:80",
            "80:80:80",
        ] {
            assert!(ports(wrong).is_err(), "{wrong:?}");
        }
    }
}
