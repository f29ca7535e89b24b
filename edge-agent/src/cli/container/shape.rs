//! Containers in the shape of Docker's JSON, which is what people's templates and `jq` lines ask for.

use container_engine::{
    container::{
        Inspect, MountPoint, NamespaceMode, NetworkMode, Propagation, Protocol, Restart, Seccomp, State, Status,
        Summary,
    },
    network::{Attached, BoundPort},
};
use serde_json::{Map, Value, json};

use crate::cli::format::human;

/// `80/tcp`.
pub fn port_name(port: u16, protocol: Protocol) -> String {
    let protocol = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    format!("{port}/{protocol}")
}

/// `0.0.0.0:8080`.
pub fn host_side(port: &BoundPort) -> String {
    match port.host_address {
        Some(address) => std::net::SocketAddr::new(address, port.host_port).to_string(),
        None => format!("0.0.0.0:{}", port.host_port),
    }
}

/// `Up 3 minutes`, `Exited (0) 5 seconds ago`.
pub fn status(state: &State, now_ns: i64) -> String {
    let up = || human::since(state.started_ns.unwrap_or(now_ns), now_ns);
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {}", up()),
        Status::Paused => format!("Up {} (Paused)", up()),
        Status::Removing => "Removal In Progress".to_owned(),
        Status::Exited if state.restarting => {
            let ago = human::since(state.finished_ns.unwrap_or(now_ns), now_ns);
            format!("Restarting ({}) {ago} ago", state.exit_code.unwrap_or(-1))
        }
        Status::Exited => {
            let ago = human::since(state.finished_ns.unwrap_or(now_ns), now_ns);
            format!("Exited ({}) {ago} ago", state.exit_code.unwrap_or(-1))
        }
    }
}

fn ports(network: Option<&Attached>) -> String {
    let ports = network.iter().flat_map(|network| &network.ports);
    let text = |port: &BoundPort| format!("{}->{}", host_side(port), port_name(port.container_port, port.protocol));
    ports.map(text).collect::<Vec<_>>().join(", ")
}

/// One line of `container ls`.
pub fn row(it: &Summary, no_trunc: bool, now_ns: i64) -> Value {
    let command = format!("\"{}\"", it.command.join(" "));
    let mounts = it.mounts.iter().map(mount_name).collect::<Vec<_>>().join(",");
    let networks = it.network.iter().flat_map(|network| &network.interfaces);
    let networks = networks.map(|interface| interface.network.clone()).collect::<Vec<_>>().join(",");
    let labels = it.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    json!({
        "ID": if no_trunc { it.id.as_str() } else { it.id.short() },
        "Image": it.image.name,
        "Command": if no_trunc { command } else { cut_command(&command) },
        "RunningFor": format!("{} ago", human::since(it.created_ns, now_ns)),
        "Status": status(&it.state, now_ns),
        "Ports": ports(it.network.as_ref()),
        "Names": it.name,
        "CreatedAt": human::list_time(it.created_ns),
        "State": it.state.status.name(),
        "Labels": labels,
        "Mounts": if no_trunc { mounts } else { human::cut(&mounts, 15) },
        "Networks": networks,
        "LocalVolumes": it.mounts.iter().filter(|mount| mount.name.is_some()).count().to_string(),
        "Owner": it.owner.to_string(),
        "ImageID": it.image.id,
        "ExitCode": it.state.exit_code,
    })
}

fn cut_command(command: &str) -> String {
    if command.chars().count() <= 20 { command.to_owned() } else { format!("{}\"", human::cut(command, 19)) }
}

fn mount_name(mount: &MountPoint) -> String {
    mount.name.clone().unwrap_or_else(|| mount.source.display().to_string())
}

/// `container inspect`.
pub fn inspect(it: &Inspect) -> Value {
    json!({
        "Id": it.id.as_str(),
        "Created": human::rfc3339(Some(it.created_ns)),
        "Path": it.path,
        "Args": it.args,
        "State": state(&it.state),
        "Image": it.image.id,
        "LogPath": it.log_path,
        "Name": format!("/{}", it.name),
        "RestartCount": it.state.restarts,
        "Driver": "overlay",
        "Platform": "linux",
        "AppArmorProfile": it.spec.security.apparmor.clone().unwrap_or_default(),
        "ExecIDs": it.execs,
        "HostConfig": host_config(it),
        "Mounts": it.mounts.iter().map(mount).collect::<Vec<_>>(),
        "Config": config(it),
        "NetworkSettings": network_settings(it.network.as_ref()),
        "Owner": it.owner.to_string(),
        "Cgroup": it.cgroup,
        "UserNamespace": it.userns.map(|(host, size)| json!({ "Host": host, "Size": size })),
    })
}

fn state(it: &State) -> Value {
    json!({
        "Status": it.status.name(),
        "Running": it.status.is_alive(),
        "Paused": it.status == Status::Paused,
        "Restarting": it.restarting,
        "OOMKilled": it.oom_killed,
        "Dead": false,
        "Pid": it.pid.unwrap_or(0),
        "ExitCode": it.exit_code.unwrap_or(0),
        "Error": it.error.clone().unwrap_or_default(),
        "StartedAt": human::rfc3339(it.started_ns),
        "FinishedAt": human::rfc3339(it.finished_ns),
    })
}

fn restart(policy: Restart) -> Value {
    let (name, max) = match policy {
        Restart::No => ("no", 0),
        Restart::OnFailure { max } => ("on-failure", max),
        Restart::Always => ("always", 0),
        Restart::UnlessStopped => ("unless-stopped", 0),
    };
    json!({ "Name": name, "MaximumRetryCount": max })
}

fn mount(it: &MountPoint) -> Value {
    let propagation = match it.propagation {
        Propagation::Rprivate => "rprivate",
        Propagation::Rslave => "rslave",
        Propagation::Rshared => "rshared",
    };
    let mut value = json!({
        "Type": it.kind,
        "Source": it.source,
        "Destination": it.target,
        "Mode": if it.read_only { "ro" } else { "" },
        "RW": !it.read_only,
        "Propagation": propagation,
    });
    if let Some(name) = &it.name {
        value["Name"] = name.as_str().into();
        value["Driver"] = "local".into();
    }
    value
}

fn config(it: &Inspect) -> Value {
    let spec = &it.spec;
    json!({
        "Hostname": spec.hostname.clone().unwrap_or_else(|| it.id.short().to_owned()),
        "Domainname": spec.domainname.clone().unwrap_or_default(),
        "User": spec.user.clone().unwrap_or_default(),
        "Tty": spec.tty,
        "OpenStdin": spec.stdin,
        "Env": spec.env,
        "Cmd": spec.command,
        "Image": it.image.name,
        "WorkingDir": spec.working_dir.clone().unwrap_or_default(),
        "Entrypoint": spec.entrypoint,
        "Labels": spec.labels,
        "StopSignal": spec.stop_signal.clone().unwrap_or_default(),
        "StopTimeout": spec.stop_timeout_s,
    })
}

fn host_config(it: &Inspect) -> Value {
    let (spec, limits) = (&it.spec, &it.spec.resources);
    let mut bindings = Map::new();
    for port in &spec.ports {
        let bound = json!({
            "HostIp": port.host_address.map(|it| it.to_string()).unwrap_or_default(),
            "HostPort": if port.host_port == 0 { String::new() } else { port.host_port.to_string() },
        });
        push(&mut bindings, port_name(port.container_port, port.protocol), bound);
    }
    let mut options = Vec::new();
    if spec.security.no_new_privileges {
        options.push("no-new-privileges".to_owned());
    }
    if spec.security.seccomp == Seccomp::Unconfined {
        options.push("seccomp=unconfined".to_owned());
    }
    options.extend(spec.security.apparmor.iter().map(|name| format!("apparmor={name}")));
    json!({
        "NetworkMode": network_mode(&spec.network),
        "PortBindings": bindings,
        "AutoRemove": spec.auto_remove,
        "RestartPolicy": restart(spec.restart),
        "Privileged": spec.security.privileged,
        "ReadonlyRootfs": spec.security.read_only_rootfs,
        "CapAdd": spec.security.cap_add,
        "CapDrop": spec.security.cap_drop,
        "SecurityOpt": options,
        "GroupAdd": spec.groups,
        "PidMode": namespace(&spec.pid),
        "IpcMode": namespace(&spec.ipc),
        "UTSMode": namespace(&spec.uts),
        "Dns": spec.dns.servers,
        "DnsSearch": spec.dns.search,
        "DnsOptions": spec.dns.options,
        "ExtraHosts": spec.extra_hosts,
        "Init": spec.init,
        "ShmSize": spec.shm_size.unwrap_or(64 << 20),
        "Sysctls": spec.sysctls,
        "Ulimits": spec.rlimits.iter().map(|it| json!({ "Name": it.name, "Soft": it.soft, "Hard": it.hard })).collect::<Vec<_>>(),
        "Memory": limits.memory.unwrap_or(0),
        "MemorySwap": limits.memory_swap.unwrap_or(0),
        "MemoryReservation": limits.memory_reservation.unwrap_or(0),
        "NanoCpus": limits.cpu_milli.unwrap_or(0) * 1_000_000,
        "CpuShares": limits.cpu_shares.unwrap_or(0),
        "CpusetCpus": limits.cpuset_cpus.clone().unwrap_or_default(),
        "CpusetMems": limits.cpuset_mems.clone().unwrap_or_default(),
        "PidsLimit": limits.pids,
        "BlkioWeight": limits.blkio_weight.unwrap_or(0),
        "OomScoreAdj": limits.oom_score_adj.unwrap_or(0),
        "LogConfig": { "Type": "cri", "Config": {
            "max-size": spec.log.max_bytes.to_string(), "max-file": spec.log.max_files.to_string(),
        } },
    })
}

fn network_mode(mode: &NetworkMode) -> String {
    match mode {
        NetworkMode::Bridge => "bridge".to_owned(),
        NetworkMode::Host => "host".to_owned(),
        NetworkMode::None => "none".to_owned(),
        NetworkMode::Container(name) => format!("container:{name}"),
        NetworkMode::Path(path) => format!("ns:{}", path.display()),
        NetworkMode::Networks(all) => all.first().map(|it| it.network.clone()).unwrap_or_default(),
    }
}

fn namespace(mode: &NamespaceMode) -> String {
    match mode {
        NamespaceMode::Private => String::new(),
        NamespaceMode::Host => "host".to_owned(),
        NamespaceMode::Container(name) => format!("container:{name}"),
        NamespaceMode::Path(path) => format!("ns:{}", path.display()),
    }
}

fn push(map: &mut Map<String, Value>, key: String, value: Value) {
    let list = map.entry(key).or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(items) = list {
        items.push(value);
    }
}

fn network_settings(network: Option<&Attached>) -> Value {
    let (mut ports, mut networks) = (Map::new(), Map::new());
    for port in network.iter().flat_map(|network| &network.ports) {
        let host = port.host_address.map_or_else(|| "0.0.0.0".to_owned(), |it| it.to_string());
        let bound = json!({ "HostIp": host, "HostPort": port.host_port.to_string() });
        push(&mut ports, port_name(port.container_port, port.protocol), bound);
    }
    let interfaces = || network.iter().flat_map(|network| &network.interfaces);
    let place = |interface: &container_engine::network::Interface| {
        let of = |four: bool| interface.addresses.iter().find(move |it| it.addr().is_ipv4() == four);
        let gateway = |four: bool| interface.gateways.iter().find(|it| it.is_ipv4() == four);
        json!({
            "IPAddress": of(true).map(|it| it.addr().to_string()).unwrap_or_default(),
            "IPPrefixLen": of(true).map_or(0, ipnet::IpNet::prefix_len),
            "Gateway": gateway(true).map(ToString::to_string).unwrap_or_default(),
            "GlobalIPv6Address": of(false).map(|it| it.addr().to_string()).unwrap_or_default(),
            "GlobalIPv6PrefixLen": of(false).map_or(0, ipnet::IpNet::prefix_len),
            "IPv6Gateway": gateway(false).map(ToString::to_string).unwrap_or_default(),
            "MacAddress": interface.mac,
        })
    };
    for interface in interfaces() {
        networks.insert(interface.network.clone(), place(interface));
    }
    // Those of the first network, as Docker has them of its default one.
    let mut value = interfaces().next().map_or_else(|| place(&container_engine::network::Interface::default()), place);
    value["SandboxKey"] =
        network.and_then(|it| it.netns.clone()).map_or_else(String::new, |it| it.display().to_string()).into();
    value["Ports"] = ports.into();
    value["Networks"] = networks.into();
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    #[test]
    fn states_in_words() {
        let now = 10_000 * S;
        let with = |status, exit_code| State {
            status,
            exit_code,
            started_ns: Some(now - 180 * S),
            finished_ns: Some(now - 5 * S),
            ..State::default()
        };
        assert_eq!(status(&with(Status::Created, None), now), "Created");
        assert_eq!(status(&with(Status::Running, None), now), "Up 3 minutes");
        assert_eq!(status(&with(Status::Paused, None), now), "Up 3 minutes (Paused)");
        assert_eq!(status(&with(Status::Exited, Some(137)), now), "Exited (137) 5 seconds ago");
    }

    #[test]
    fn ports_in_words() {
        let port = |host_address: Option<&str>| BoundPort {
            host_address: host_address.map(|it| it.parse().unwrap()),
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Udp,
        };
        let network = Attached { ports: vec![port(None), port(Some("::1"))], ..Attached::default() };
        assert_eq!(ports(Some(&network)), "0.0.0.0:8080->80/udp, [::1]:8080->80/udp");
        let settings = network_settings(Some(&network));
        assert_eq!(settings["Ports"]["80/udp"][1]["HostPort"], "8080");
        assert_eq!(settings["IPAddress"], "");
        assert_eq!(cut_command("\"sh -c echo hello world\""), "\"sh -c echo hello …\"");
    }
}
