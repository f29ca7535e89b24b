//! Namespaces, networks, hosts, filters, detach keys.

use std::{collections::BTreeMap, net::IpAddr};

use container_engine::container::{Attachment, NamespaceMode, NetworkMode, Restart, UserNamespace};

/// `no`, `on-failure`, `on-failure:TIMES`, `always`, `unless-stopped`.
pub fn restart(text: &str) -> Result<Restart, String> {
    let wrong =
        || format!("{text:?} is no restart policy: write no, on-failure, on-failure:3, always or unless-stopped");
    match text.split_once(':') {
        Some(("on-failure", times)) => Ok(Restart::OnFailure { max: times.parse().map_err(|_| wrong())? }),
        Some(_) => Err(wrong()),
        None => match text {
            "no" | "" => Ok(Restart::No),
            "on-failure" => Ok(Restart::OnFailure { max: 0 }),
            "always" => Ok(Restart::Always),
            "unless-stopped" => Ok(Restart::UnlessStopped),
            _ => Err(wrong()),
        },
    }
}

/// `--network` (several make several places), `--network-alias`, `--ip`.
pub fn network(networks: &[String], aliases: &[String], address: Option<IpAddr>) -> Result<NetworkMode, String> {
    let mode = match networks {
        [] => NetworkMode::Bridge,
        [one] => match one.split_once(':') {
            Some(("container", name)) if !name.is_empty() => NetworkMode::Container(name.to_owned()),
            Some(("ns", path)) if path.starts_with('/') => NetworkMode::Path(path.into()),
            Some(_) => return Err(format!("{one:?} is no network: write container:NAME, ns:/PATH or a name")),
            None if one == "bridge" || one == "default" => NetworkMode::Bridge,
            None if one == "host" => NetworkMode::Host,
            None if one == "none" => NetworkMode::None,
            None => NetworkMode::Networks(vec![attachment(one)?]),
        },
        several => NetworkMode::Networks(several.iter().map(|name| attachment(name)).collect::<Result<_, _>>()?),
    };
    with_places(mode, aliases, address)
}

fn with_places(mode: NetworkMode, aliases: &[String], address: Option<IpAddr>) -> Result<NetworkMode, String> {
    match mode {
        NetworkMode::Networks(mut places) => {
            for place in &mut places {
                place.aliases.extend(aliases.iter().cloned());
            }
            match (address, &mut places[..]) {
                (None, _) => {}
                (Some(address), [place]) => place.address = Some(address),
                (Some(_), _) => return Err("--ip goes with one network; write name=NET,ip=ADDRESS for each".to_owned()),
            }
            Ok(NetworkMode::Networks(places))
        }
        _ if !aliases.is_empty() => Err("--network-alias goes with a network made by `network create`".to_owned()),
        NetworkMode::Bridge if address.is_some() => {
            Ok(NetworkMode::Networks(vec![Attachment { network: "bridge".into(), aliases: Vec::new(), address }]))
        }
        _ if address.is_some() => Err("--ip goes with the default network or a named one".to_owned()),
        mode => Ok(mode),
    }
}

/// `NAME`, or `name=NAME,alias=A,ip=ADDRESS`.
fn attachment(text: &str) -> Result<Attachment, String> {
    if !text.contains('=') {
        return Ok(Attachment { network: text.to_owned(), ..Attachment::default() });
    }
    let wrong = |field: &str| format!("--network {text}: {field:?} is none of name=, alias=, ip=");
    let mut place = Attachment::default();
    for field in text.split(',') {
        match field.split_once('=').ok_or_else(|| wrong(field))? {
            ("name", name) => name.clone_into(&mut place.network),
            ("alias", alias) => place.aliases.push(alias.to_owned()),
            ("ip" | "ip6", ip) => place.address = Some(ip.parse().map_err(|_| format!("{ip:?} is no address"))?),
            _ => return Err(wrong(field)),
        }
    }
    if place.network.is_empty() { Err(format!("--network {text}: it needs name=")) } else { Ok(place) }
}

/// `--pid`, `--uts`: nothing, `private`, `host`, `container:NAME`, `ns:/PATH`.
pub fn namespace(text: &str) -> Result<NamespaceMode, String> {
    match text.split_once(':') {
        None if text.is_empty() || text == "private" => Ok(NamespaceMode::Private),
        None if text == "host" => Ok(NamespaceMode::Host),
        Some(("container", name)) if !name.is_empty() => Ok(NamespaceMode::Container(name.to_owned())),
        Some(("ns", path)) if path.starts_with('/') => Ok(NamespaceMode::Path(path.into())),
        _ => Err(format!("{text:?} is no namespace: write private, host, container:NAME or ns:/PATH")),
    }
}

/// `--ipc`, which has `shareable` too: another container may join any namespace here.
pub fn ipc(text: &str) -> Result<NamespaceMode, String> {
    namespace(if text == "shareable" { "" } else { text })
}

/// `--userns`: `host`, `auto` or `FIRST:SIZE`.
pub fn userns(text: &str) -> Result<UserNamespace, String> {
    let wrong = || format!("{text:?} is no user namespace: write host, auto or FIRST:SIZE such as 100000:65536");
    match text {
        "" | "host" => Ok(UserNamespace::Host),
        "auto" | "private" => Ok(UserNamespace::Auto),
        _ => {
            let (host, size) = text.split_once(':').ok_or_else(wrong)?;
            let (host, size) = (host.parse().map_err(|_| wrong())?, size.parse().map_err(|_| wrong())?);
            if size == 0 || u32::checked_add(host, size).is_none() {
                Err(wrong())
            } else {
                Ok(UserNamespace::Mapped { host, size })
            }
        }
    }
}

/// `--add-host`: `NAME:ADDRESS` or `NAME=ADDRESS`.
pub fn host_entry(text: &str) -> Result<String, String> {
    let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).unwrap_or((text, ""));
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    if name.is_empty() || (bare != "host-gateway" && bare.parse::<IpAddr>().is_err()) {
        return Err(format!("{text:?} is no host: write NAME:ADDRESS or NAME:host-gateway"));
    }
    Ok(format!("{name}:{bare}"))
}

/// `--filter KEY=VALUE`, checked against the keys that there are.
pub fn filters(texts: &[String], known: &[&str]) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut all = BTreeMap::<String, Vec<String>>::new();
    for text in texts {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no filter: write KEY=VALUE"))?;
        if !known.contains(&key) {
            return Err(format!("there is no filter {key:?} here: there are {}", known.join(", ")));
        }
        all.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    Ok(all)
}

/// `ctrl-p,ctrl-q`: the bytes that leave a terminal.
pub fn detach_keys(text: &str) -> Result<Vec<u8>, String> {
    let wrong = |key: &str| format!("{key:?} is no key: write a letter or ctrl- and one of a to z, @, [, \\, ], ^, _");
    let key = |key: &str| {
        let control = key.strip_prefix("ctrl-").or_else(|| key.strip_prefix("CTRL-"));
        match (control.map(str::as_bytes), key.as_bytes()) {
            (Some([c]), _) if c.is_ascii_alphabetic() || b"@[\\]^_".contains(c) => Ok(c.to_ascii_uppercase() & 0x1f),
            (None, [c]) if c.is_ascii_graphic() => Ok(*c),
            _ => Err(wrong(key)),
        }
    };
    if text.is_empty() { Ok(Vec::new()) } else { text.split(',').map(key).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, aliases: &[&str], address: Option<&str>) -> Attachment {
        let aliases = aliases.iter().map(|it| (*it).to_owned()).collect();
        Attachment { network: name.into(), aliases, address: address.map(|it| it.parse().unwrap()) }
    }

    #[test]
    fn networks() {
        #[track_caller]
        fn check(names: &[&str], aliases: &[&str], address: Option<&str>, want: Option<NetworkMode>) {
            let owned = |all: &[&str]| all.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
            let address = address.map(|it| it.parse().unwrap());
            assert_eq!(
                network(&owned(names), &owned(aliases), address).ok(),
                want,
                "{names:?} {aliases:?} {address:?}"
            );
        }
        check(&[], &[], None, Some(NetworkMode::Bridge));
        check(&["bridge"], &[], None, Some(NetworkMode::Bridge));
        check(&["host"], &[], None, Some(NetworkMode::Host));
        check(&["none"], &[], None, Some(NetworkMode::None));
        check(&["container:db"], &[], None, Some(NetworkMode::Container("db".into())));
        check(&["ns:/run/netns/a"], &[], None, Some(NetworkMode::Path("/run/netns/a".into())));
        let one = NetworkMode::Networks(vec![named("lab", &["db"], Some("10.1.0.9"))]);
        check(&["lab"], &["db"], Some("10.1.0.9"), Some(one));
        let two = NetworkMode::Networks(vec![named("a", &[], None), named("b", &["x"], Some("10.1.0.9"))]);
        check(&["a", "name=b,alias=x,ip=10.1.0.9"], &[], None, Some(two));
        check(&["container:"], &[], None, None);
        check(&["other:x"], &[], None, None);
        check(&["host"], &["db"], None, None);
        check(&["host"], &[], Some("10.1.0.9"), None);
        check(&["a", "b"], &[], Some("10.1.0.9"), None);
        check(&["alias=x"], &[], None, None);
        check(&["name=b,mac=1"], &[], None, None);
    }

    #[test]
    fn restart_policies() {
        assert_eq!(restart("no"), Ok(Restart::No));
        assert_eq!(restart("on-failure"), Ok(Restart::OnFailure { max: 0 }));
        assert_eq!(restart("on-failure:5"), Ok(Restart::OnFailure { max: 5 }));
        assert_eq!(restart("always"), Ok(Restart::Always));
        assert_eq!(restart("unless-stopped"), Ok(Restart::UnlessStopped));
        for wrong in ["Always", "always:1", "on-failure:", "on-failure:-1", "on-failure:x"] {
            assert!(restart(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn namespaces() {
        assert_eq!(namespace(""), Ok(NamespaceMode::Private));
        assert_eq!(namespace("host"), Ok(NamespaceMode::Host));
        assert_eq!(namespace("container:db"), Ok(NamespaceMode::Container("db".into())));
        assert!(namespace("container:").is_err() && namespace("ns:x").is_err() && namespace("hosts").is_err());
        assert_eq!(ipc("shareable"), Ok(NamespaceMode::Private));
        assert_eq!(userns("auto"), Ok(UserNamespace::Auto));
        assert_eq!(userns("100000:65536"), Ok(UserNamespace::Mapped { host: 100_000, size: 65536 }));
        assert!(userns("100000").is_err() && userns("1:0").is_err() && userns("4294967295:2").is_err());
    }

    #[test]
    fn hosts_filters_and_keys() {
        assert_eq!(host_entry("db:10.0.0.1"), Ok("db:10.0.0.1".into()));
        assert_eq!(host_entry("db=[::1]"), Ok("db:::1".into()));
        assert_eq!(host_entry("db:host-gateway"), Ok("db:host-gateway".into()));
        assert!(host_entry("db").is_err() && host_entry(":10.0.0.1").is_err() && host_entry("db:x").is_err());
        let some = ["name=a".to_owned(), "name=b".to_owned(), "label=x=y".to_owned()];
        let all = filters(&some, &["name", "label"]).unwrap();
        assert_eq!(all["name"], ["a", "b"]);
        assert_eq!(all["label"], ["x=y"]);
        assert!(filters(&["size=1".to_owned()], &["name"]).unwrap_err().contains("name"));
        assert!(filters(&["name".to_owned()], &["name"]).is_err());
        assert_eq!(detach_keys("ctrl-p,ctrl-q"), Ok(vec![0x10, 0x11]));
        assert_eq!(detach_keys("a,ctrl-@,ctrl-["), Ok(vec![b'a', 0, 0x1b]));
        assert_eq!(detach_keys(""), Ok(vec![]));
        assert!(detach_keys("ctrl-1").is_err() && detach_keys("ab").is_err() && detach_keys("a,").is_err());
    }
}
