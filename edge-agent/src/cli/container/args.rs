//! Docker's flags of `run` and `create`, and the specification that they mean.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use container_engine::{
    container::{
        BlkioLimit, ContainerSpec, Dns, LogOptions, NamespaceMode, Resources, Restart, Rlimit, Security, UserNamespace,
    },
    owner::Owner,
};

use crate::cli::parse;

/// Largest seccomp profile.
const MAX_PROFILE: u64 = 4 << 20;

/// What `run` and `create` share.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct CreateArgs {
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    security: SecurityArgs,
    /// Name of the container; made up where absent
    #[arg(long)]
    pub name: Option<String>,
    /// Removed by itself at its end
    #[arg(long)]
    pub rm: bool,
    /// Started again at its end: no, on-failure[:TIMES], always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no", value_parser = parse::restart)]
    restart: Restart,
    /// For people and filters: KEY=VALUE
    #[arg(long, short = 'l', value_name = "KEY=VALUE", value_parser = parse::label)]
    label: Vec<(String, String)>,
    /// Goes into the OCI configuration: KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::label)]
    annotation: Vec<(String, String)>,
    /// Options of the log: max-size=10m, max-file=5
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::label)]
    log_opt: Vec<(String, String)>,
    /// Platform of the image, such as linux/arm64
    #[arg(long)]
    pub platform: Option<String>,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t)]
    pub pull: Pull,
    /// No progress while pulling
    #[arg(long, short)]
    pub quiet: bool,
    /// Write the container's id into this file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Image, then the command with its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [COMMAND]")]
    words: Vec<String>,
}

/// When `run` and `create` pull.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Pull {
    /// Every time
    Always,
    /// When the image is not here
    #[default]
    Missing,
    /// Not at all
    Never,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
struct ProcessArgs {
    /// Keep standard input open
    #[arg(long, short)]
    interactive: bool,
    /// With a terminal
    #[arg(long, short)]
    tty: bool,
    /// Variable: NAME=VALUE, or NAME for the value it has here
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// File of variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Directory in the container
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// User: NAME|UID[:GROUP|GID]
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Further groups
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Instead of the image's entrypoint; "" clears it
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// An init process reaps orphans
    #[arg(long)]
    init: bool,
    /// Signal that stops it
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL
    #[arg(long, value_name = "SECONDS", value_parser = parse::seconds)]
    stop_timeout: Option<u32>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
struct FileArgs {
    /// Volume or path of the host: [SOURCE:]TARGET[:ro]
    #[arg(long, short, value_name = "VOLUME")]
    volume: Vec<String>,
    /// Mount: type=bind|volume|tmpfs,src=…,dst=…[,ro]
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<String>,
    /// Memory as a file system: PATH[:size=64m,mode=1777]
    #[arg(long, value_name = "PATH")]
    tmpfs: Vec<String>,
    /// Device of the host: HOST[:CONTAINER[:rwm]]
    #[arg(long, value_name = "DEVICE", value_parser = parse::device)]
    device: Vec<container_engine::container::Device>,
    /// The root file system is read-only
    #[arg(long)]
    read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", value_parser = parse::bytes)]
    shm_size: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
struct NetworkArgs {
    /// bridge, host, none, container:NAME, or a network's name
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Vec<String>,
    /// Further name on its networks
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// A certain address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// A certain IPv6 address
    #[arg(long, value_name = "ADDRESS", conflicts_with = "ip")]
    ip6: Option<IpAddr>,
    /// Port of the host that leads to it: [[ADDRESS:]HOST:]CONTAINER[/udp]
    #[arg(long, short, value_name = "PORT")]
    publish: Vec<String>,
    /// All ports that the image exposes, on free ports of the host
    #[arg(long, short = 'P')]
    publish_all: bool,
    /// Host name
    #[arg(long, short = 'h', value_name = "NAME")]
    hostname: Option<String>,
    /// NIS domain name
    #[arg(long, value_name = "NAME")]
    domainname: Option<String>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Resolver option
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Line of /etc/hosts: NAME:ADDRESS
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = parse::host_entry)]
    add_host: Vec<String>,
}

/// Limits, which `update` shares.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct ResourceArgs {
    /// Memory, such as 512m
    #[arg(long, short, value_name = "BYTES", value_parser = parse::bytes)]
    memory: Option<u64>,
    /// Memory and swap together; -1: no limit
    #[arg(long, value_name = "BYTES", value_parser = parse::swap, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Memory that the kernel tries to leave it
    #[arg(long, value_name = "BYTES", value_parser = parse::bytes)]
    memory_reservation: Option<u64>,
    /// Cores, such as 1.5
    #[arg(long, value_name = "CORES", value_parser = parse::cpus)]
    cpus: Option<u64>,
    /// Period of the processor's accounting, µs
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(1000..=1_000_000))]
    cpu_period: Option<u64>,
    /// Processor time in each period, µs
    #[arg(long, value_name = "US", conflicts_with = "cpus", value_parser = clap::value_parser!(u64).range(1000..))]
    cpu_quota: Option<u64>,
    /// Share of the processor under contention; 1024 is one
    #[arg(long, short, value_name = "SHARES", value_parser = clap::value_parser!(u64).range(2..=262_144))]
    cpu_shares: Option<u64>,
    /// Cores that may be used: 0-1,3
    #[arg(long, value_name = "CORES")]
    cpuset_cpus: Option<String>,
    /// Memory nodes that may be used
    #[arg(long, value_name = "NODES")]
    cpuset_mems: Option<String>,
    /// Processes and threads; -1: no limit
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u16).range(10..=1000))]
    blkio_weight: Option<u16>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    #[command(flatten)]
    resources: ResourceArgs,
    /// Bytes a second read from a device: DEVICE:RATE
    #[arg(long, value_name = "DEVICE:RATE")]
    device_read_bps: Vec<String>,
    /// Bytes a second written to a device
    #[arg(long, value_name = "DEVICE:RATE")]
    device_write_bps: Vec<String>,
    /// Reads a second from a device
    #[arg(long, value_name = "DEVICE:RATE")]
    device_read_iops: Vec<String>,
    /// Writes a second to a device
    #[arg(long, value_name = "DEVICE:RATE")]
    device_write_iops: Vec<String>,
    /// Who is killed first when memory runs out: -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
    /// Limit of each process: nofile=1024:4096
    #[arg(long, value_name = "LIMIT", value_parser = parse::ulimit)]
    ulimit: Vec<Rlimit>,
    /// Kernel setting of its namespaces: net.core.somaxconn=1024
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::label)]
    sysctl: Vec<(String, String)>,
    /// Higher ones are admitted first and killed last
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true, default_value_t = 0)]
    priority: i32,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Rights")]
struct SecurityArgs {
    /// Further capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Capability that it shall not have, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// All capabilities and devices, no filter
    #[arg(long)]
    privileged: bool,
    /// seccomp=FILE|unconfined, apparmor=NAME, no-new-privileges
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Process ids: host, container:NAME
    #[arg(long, value_name = "MODE", value_parser = parse::namespace)]
    pid: Option<NamespaceMode>,
    /// System V IPC and /dev/shm: host, container:NAME
    #[arg(long, value_name = "MODE", value_parser = parse::ipc)]
    ipc: Option<NamespaceMode>,
    /// Host name: host
    #[arg(long, value_name = "MODE", value_parser = parse::namespace)]
    uts: Option<NamespaceMode>,
    /// User ids: host, auto, FIRST:SIZE
    #[arg(long, value_name = "MODE", value_parser = parse::userns)]
    userns: Option<UserNamespace>,
}

impl ResourceArgs {
    /// The limits.
    pub fn resources(&self) -> anyhow::Result<Resources> {
        // A quota is what cores mean: thousandths of the period.
        let of_quota = |quota: u64| quota * 1000 / self.cpu_period.unwrap_or(100_000);
        if let (Some(memory), Some(swap)) = (self.memory, self.memory_swap)
            && swap >= 0
            && u64::try_from(swap).is_ok_and(|swap| swap != 0 && swap < memory)
        {
            bail!("--memory-swap counts memory and swap together: it cannot be below --memory");
        }
        Ok(Resources {
            memory: self.memory.filter(|bytes| *bytes != 0),
            memory_swap: self.memory_swap.filter(|bytes| *bytes != 0),
            memory_reservation: self.memory_reservation.filter(|bytes| *bytes != 0),
            cpu_milli: self.cpus.or_else(|| self.cpu_quota.map(of_quota)),
            cpu_period_us: self.cpu_period,
            cpu_shares: self.cpu_shares,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            pids: self.pids_limit.filter(|pids| *pids != 0),
            blkio_weight: self.blkio_weight,
            ..Resources::default()
        })
    }
}

/// One of a device's limits.
type Field = fn(&mut BlkioLimit) -> &mut Option<u64>;

impl LimitArgs {
    fn resources(&self) -> anyhow::Result<Resources> {
        let mut devices = BTreeMap::<PathBuf, BlkioLimit>::new();
        let flags: [(&[String], bool, Field); 4] = [
            (&self.device_read_bps, true, |it| &mut it.read_bps),
            (&self.device_write_bps, true, |it| &mut it.write_bps),
            (&self.device_read_iops, false, |it| &mut it.read_iops),
            (&self.device_write_iops, false, |it| &mut it.write_iops),
        ];
        for (texts, is_bytes, field) in flags {
            for text in texts {
                let (device, rate) = parse::device_rate(text, is_bytes).map_err(anyhow::Error::msg)?;
                *field(devices.entry(device).or_default()) = Some(rate);
            }
        }
        let blkio = devices.into_iter().map(|(device, limit)| BlkioLimit { device, ..limit }).collect();
        Ok(Resources { blkio, oom_score_adj: self.oom_score_adj, ..self.resources.resources()? })
    }
}

impl CreateArgs {
    /// The image as it was written.
    pub fn image(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Whether all exposed ports are wanted; they are known when the image is.
    pub fn publishes_all(&self) -> bool {
        self.network.publish_all
    }

    /// Whether standard input and a terminal are wanted.
    pub fn stdio(&self) -> (bool, bool) {
        (self.process.interactive, self.process.tty)
    }

    /// What is asked for, ports of `-P` left out.
    pub fn spec(&self, owner: Owner) -> anyhow::Result<ContainerSpec> {
        if self.rm && self.restart != Restart::No {
            bail!("--restart is of no use with --rm, which removes the container at its end: leave one of the two out");
        }
        let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let process = &self.process;
        let spec = ContainerSpec {
            name: self.name.clone(),
            owner,
            image: self.image().to_owned(),
            entrypoint: process.entrypoint.as_ref().map(|it| if it.is_empty() { Vec::new() } else { vec![it.clone()] }),
            command: (self.words.len() > 1).then(|| self.words[1..].to_vec()),
            env: process.env()?,
            working_dir: process.workdir.clone(),
            user: process.user.clone(),
            groups: process.group_add.clone(),
            tty: process.tty,
            stdin: process.interactive,
            labels: self.label.iter().cloned().collect(),
            annotations: self.annotation.iter().cloned().collect(),
            mounts: self.files.mounts(&here)?,
            devices: self.files.device.clone(),
            resources: self.limits.resources()?,
            security: self.security.security(self.files.read_only)?,
            pid: self.security.pid.clone().unwrap_or_default(),
            ipc: self.security.ipc.clone().unwrap_or_default(),
            uts: self.security.uts.clone().unwrap_or_default(),
            userns: self.security.userns.clone().unwrap_or_default(),
            sysctls: self.limits.sysctl.iter().cloned().collect(),
            rlimits: self.limits.ulimit.clone(),
            shm_size: self.files.shm_size.filter(|bytes| *bytes != 0),
            stop_signal: process.stop_signal.clone(),
            stop_timeout_s: process.stop_timeout,
            init: process.init,
            log: log_options(&self.log_opt)?,
            auto_remove: self.rm,
            restart: self.restart,
            priority: self.limits.priority,
            ..ContainerSpec::default()
        };
        self.network.apply(spec)
    }
}

impl ProcessArgs {
    fn env(&self) -> anyhow::Result<Vec<String>> {
        let here = |name: &str| std::env::var(name).ok();
        let mut env = Vec::new();
        for file in &self.env_file {
            env.extend(parse::env_file(file, here).map_err(anyhow::Error::msg)?);
        }
        for text in &self.env {
            env.extend(parse::env_of(text, here).map_err(anyhow::Error::msg)?);
        }
        Ok(env)
    }
}

impl FileArgs {
    fn mounts(&self, here: &Path) -> anyhow::Result<Vec<container_engine::container::Mount>> {
        let volumes = self.volume.iter().map(|text| parse::volume(text, here));
        let mounts = self.mount.iter().map(|text| parse::mount(text, here));
        let memory = self.tmpfs.iter().map(|text| parse::tmpfs(text));
        volumes.chain(mounts).chain(memory).collect::<Result<_, _>>().map_err(anyhow::Error::msg)
    }
}

impl NetworkArgs {
    fn apply(&self, mut spec: ContainerSpec) -> anyhow::Result<ContainerSpec> {
        let network = parse::network(&self.network, &self.network_alias, self.ip.or(self.ip6));
        spec.network = network.map_err(anyhow::Error::msg)?;
        for text in &self.publish {
            spec.ports.extend(parse::ports(text).map_err(anyhow::Error::msg)?);
        }
        spec.hostname.clone_from(&self.hostname);
        spec.domainname.clone_from(&self.domainname);
        spec.dns = Dns { servers: self.dns.clone(), search: self.dns_search.clone(), options: self.dns_option.clone() };
        spec.extra_hosts.clone_from(&self.add_host);
        Ok(spec)
    }
}

impl SecurityArgs {
    fn security(&self, read_only_rootfs: bool) -> anyhow::Result<Security> {
        let mut security = Security {
            privileged: self.privileged,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            read_only_rootfs,
            ..Security::default()
        };
        let read = |path: &Path| {
            board::durable::read(path, MAX_PROFILE).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        for text in &self.security_opt {
            parse::security(text, &mut security, read).map_err(anyhow::Error::msg)?;
        }
        Ok(security)
    }
}

fn log_options(options: &[(String, String)]) -> anyhow::Result<LogOptions> {
    let mut log = LogOptions::default();
    for (key, value) in options {
        match key.as_str() {
            "max-size" => log.max_bytes = parse::bytes(value).map_err(anyhow::Error::msg)?,
            "max-file" => log.max_files = value.parse().with_context(|| format!("--log-opt max-file={value}"))?,
            // Rotated files are compressed anyway.
            "compress" => {}
            _ => bail!("--log-opt {key}: there are max-size and max-file"),
        }
    }
    if log.max_bytes < 4096 || log.max_files == 0 {
        bail!("--log-opt: max-size is at least 4k, max-file at least 1");
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use container_engine::container::{MountSource, NetworkMode, Seccomp};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn spec(line: &str) -> Result<ContainerSpec, String> {
        let cli = Cli::try_parse_from(["run"].into_iter().chain(line.split(' '))).map_err(|error| error.to_string())?;
        cli.args.spec(Owner::Local).map_err(|error| error.to_string())
    }

    #[test]
    fn as_docker_users_type_it() {
        let it = spec(
            "-it --rm --name web -e A=1 -v data:/data -v /srv:/srv:ro -p 127.0.0.1:8080:80 -u 1000:1000 -w /tmp -m 64m --cpus 0.5 \
             -h box --network lab --network-alias db --cap-drop ALL --cap-add NET_ADMIN --security-opt seccomp=unconfined \
             --ulimit nofile=1024 --tmpfs /run --device-read-bps /dev/sda:1mb --device-write-bps /dev/sda:2mb -l a=b \
             --log-opt max-size=1m --pids-limit -1 --oom-score-adj -500 busybox sh -c ls",
        )
        .unwrap();
        assert!(it.tty && it.stdin && it.auto_remove);
        assert_eq!(it.name.as_deref(), Some("web"));
        assert_eq!(it.image, "busybox");
        assert_eq!(it.command, Some(vec!["sh".into(), "-c".into(), "ls".into()]));
        assert_eq!(it.env, ["A=1"]);
        assert_eq!(it.mounts.len(), 3);
        assert_eq!(it.mounts[2].source, MountSource::Tmpfs { size: None, mode: None });
        assert_eq!((it.ports[0].host_port, it.ports[0].container_port), (8080, 80));
        assert_eq!(
            (it.resources.memory, it.resources.cpu_milli, it.resources.pids),
            (Some(64 << 20), Some(500), Some(-1))
        );
        assert_eq!(it.resources.oom_score_adj, Some(-500));
        assert_eq!(it.resources.blkio.len(), 1);
        assert_eq!((it.resources.blkio[0].read_bps, it.resources.blkio[0].write_bps), (Some(1 << 20), Some(2 << 20)));
        assert!(
            matches!(&it.network, NetworkMode::Networks(all) if all[0].network == "lab" && all[0].aliases == ["db"])
        );
        assert_eq!(it.security.seccomp, Seccomp::Unconfined);
        assert_eq!(it.labels["a"], "b");
        assert_eq!(it.log.max_bytes, 1 << 20);
    }

    #[test]
    fn flags_behind_the_image_are_the_commands() {
        let it = spec("busybox ls --rm -e -v --json").unwrap();
        assert_eq!(it.command.unwrap(), ["ls", "--rm", "-e", "-v", "--json"]);
        assert!(!it.auto_remove && it.env.is_empty());
        assert_eq!(it.restart, Restart::No);
        assert_eq!(spec("--restart on-failure:3 busybox").unwrap().restart, Restart::OnFailure { max: 3 });
        assert!(spec("--rm --restart no busybox").unwrap().auto_remove);
        let it = spec("--entrypoint sh busybox -c true").unwrap();
        assert_eq!(it.entrypoint.unwrap(), ["sh"]);
        assert_eq!(it.command.unwrap(), ["-c", "true"]);
        let it = Cli::try_parse_from(["run", "--entrypoint", "", "busybox"]).unwrap().args.spec(Owner::Local).unwrap();
        assert_eq!(it.entrypoint, Some(vec![]));
        assert_eq!(it.command, None);
    }

    #[test]
    fn mistakes_are_told() {
        for (line, word) in [
            ("--memory lots busybox", "512m"),
            ("-p x:y busybox", "8080:80"),
            ("-v data busybox", "absolute"),
            ("--network host --network-alias a busybox", "network create"),
            ("--ulimit files=1 busybox", "nofile"),
            ("--memory 64m --memory-swap 32m busybox", "--memory-swap"),
            ("--log-opt size=1 busybox", "max-size"),
            ("--cpus 0 busybox", "cores"),
            ("--nmae x busybox", "--name"),
            ("--rm", "IMAGE"),
            ("--rm --restart always busybox", "--restart"),
            ("--restart sometimes busybox", "unless-stopped"),
            ("--env-file /nonexistent busybox", "/nonexistent"),
        ] {
            let error = spec(line).expect_err(line);
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
