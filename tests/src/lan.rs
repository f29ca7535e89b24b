//! A board and its neighbour on a LAN of their own: two network namespaces, far from the machine's network.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use container_engine::{
    container::{NetworkMode, PortMapping},
    network::{AttachRequest, Attached, Networks, Options},
    sys::netns,
};

use crate::wait_until;

/// The board's address on its LAN.
pub const BOARD: &str = "192.0.2.2";
/// The neighbour's.
pub const NEIGHBOUR: &str = "192.0.2.1";

/// Runs `test` on a board of its own, in a thread that lives in its network namespace.
pub fn on_a_board(test: impl FnOnce(&mut Lan) -> Result<()> + Send) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let neighbour = dir.path().join("neighbour");
    netns::create(Some(&neighbour), |_| Ok(()))?;
    let path = dir.path().to_owned();
    let result = netns::create(None, move |_| {
        let run = || -> Result<()> {
            let mut lan = Lan::new(&path, &neighbour)?;
            test(&mut lan)
        };
        Ok(run())
    });
    for held in std::fs::read_dir(dir.path().join("run/netns")).into_iter().flatten() {
        netns::release(&held?.path())?;
    }
    netns::release(&dir.path().join("neighbour"))?;
    result?.1
}

/// The board, and what of it a test uses.
pub struct Lan {
    /// Its folders are in here.
    pub dir: PathBuf,
    /// The neighbour's namespace.
    pub neighbour: PathBuf,
    /// Runs what is async; its threads live in the board's namespace.
    pub runtime: tokio::runtime::Runtime,
    /// What is tested.
    pub networks: Networks,
    state: store::state::State,
    states: u32,
}

/// A program that is stopped when dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Lan {
    fn new(dir: &Path, neighbour: &Path) -> Result<Self> {
        let far = format!("--net={}", neighbour.display());
        sh("ip link set lo up")?;
        sh("ip link add eth0 type veth peer name far")?;
        sh(&format!("ip link set far netns {}", neighbour.display()))?;
        sh(&format!("ip addr add {BOARD}/24 dev eth0 && ip link set eth0 up && ip route add default via {NEIGHBOUR}"))?;
        sh(&format!(
            "nsenter {far} sh -c 'ip link set lo up; ip addr add {NEIGHBOUR}/24 dev far; ip link set far up'"
        ))?;
        std::fs::write(dir.join("resolv.conf"), "nameserver 192.0.2.1\nsearch lan.example\n")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (state, _) = store::state::State::open(&dir.join("data/state"))?;
        let networks = runtime.block_on(Networks::open(options(dir), state.clone()))?;
        runtime.block_on(networks.recover(&std::collections::BTreeSet::new()))?;
        Ok(Self { dir: dir.to_owned(), neighbour: neighbour.to_owned(), runtime, networks, state, states: 0 })
    }

    /// Opens the networks anew on the same records, as an agent that was killed does; `change` may change its options.
    pub fn reopen(&mut self, change: impl FnOnce(&mut Options)) -> Result<()> {
        let mut options = options(&self.dir);
        change(&mut options);
        self.networks = self.runtime.block_on(Networks::open(options, self.state.clone()))?;
        Ok(())
    }

    /// The options that its networks are opened with.
    pub fn options(&self) -> Options {
        options(&self.dir)
    }

    /// The state's database is gone, as after damage.
    pub fn lose_the_state(&mut self) -> Result<()> {
        self.states += 1;
        let dir = self.dir.join(format!("data/state{}", self.states));
        self.state = store::state::State::open(&dir)?.0;
        Ok(())
    }

    /// Attaches a sandbox of the local owner.
    pub fn attach(&self, id: &str, mode: NetworkMode, ports: Vec<PortMapping>) -> Result<Attached> {
        Ok(self.runtime.block_on(self.networks.attach(request(id, mode, ports)))?)
    }

    /// The first IPv4 address of a sandbox.
    pub fn address(attached: &Attached) -> Result<String> {
        let nets = attached.interfaces.iter().flat_map(|interface| &interface.addresses);
        let mut four = nets.filter(|net| net.addr().is_ipv4());
        Ok(four.next().context("no address")?.addr().to_string())
    }

    /// Runs a shell command in a sandbox.
    pub fn inside(attached: &Attached, command: &str) -> Result<String> {
        let netns = attached.netns.as_ref().context("no namespace")?;
        Self::within(netns, command)
    }

    /// Runs a shell command in a namespace.
    pub fn within(netns: &Path, command: &str) -> Result<String> {
        checked(Command::new("nsenter").arg(format!("--net={}", netns.display())).args(["sh", "-c", command]), command)
    }

    /// Starts a shell command in a namespace.
    pub fn start(netns: &Path, command: &str) -> Result<Running> {
        let mut program = Command::new("nsenter");
        program.arg(format!("--net={}", netns.display())).args(["sh", "-c", command]).stdin(Stdio::null());
        Ok(Running(program.spawn()?))
    }

    /// Starts a server in a sandbox that answers every TCP connection, or UDP packet, with `text`.
    pub fn serve(netns: &Path, protocol: &str, port: u16, text: &str) -> Result<Running> {
        let (listen, flag) = match protocol {
            "tcp" => (format!("TCP-LISTEN:{port},fork,reuseaddr"), "-ltn"),
            "udp" => (format!("UDP-RECVFROM:{port},fork"), "-lun"),
            "tcp6" => (format!("TCP6-LISTEN:{port},fork,reuseaddr"), "-ltn"),
            other => bail!("no server for {other}"),
        };
        let running = Self::start(netns, &format!("exec socat '{listen}' 'SYSTEM:echo {text}' 2>/dev/null"))?;
        wait_until("socat listens", Duration::from_secs(10), || {
            Self::within(netns, &format!("ss -H {flag} sport = {port}")).is_ok_and(|out| !out.trim().is_empty())
        })?;
        Ok(running)
    }
}

/// Opens the networks of a board whose folders are in `dir`, in the namespace of the calling thread.
pub fn open(dir: &Path) -> Result<(tokio::runtime::Runtime, Networks)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (state, _) = store::state::State::open(&dir.join("data/state"))?;
    let networks = runtime.block_on(Networks::open(options(dir), state))?;
    Ok((runtime, networks))
}

/// The options of the board whose folders are in `dir`.
pub fn options(dir: &Path) -> Options {
    Options {
        run_dir: dir.join("run"),
        data_dir: dir.join("data"),
        resolv_conf: dir.join("resolv.conf"),
        ..Options::default()
    }
}

/// A sandbox of the local owner with its id as name.
pub fn request(id: &str, mode: NetworkMode, ports: Vec<PortMapping>) -> AttachRequest {
    AttachRequest {
        sandbox: id.into(),
        owner: container_engine::owner::Owner::Local,
        mode,
        ports,
        hostname: id.into(),
        names: vec![id.into()],
        cni_args: BTreeMap::new(),
        bandwidth: None,
    }
}

/// Asks a TCP server; what it says.
pub const ASK_TCP: &str = "socat -T3 - TCP:";
/// Asks a UDP server, again where it says nothing: packets may be lost on a busy machine. What it says.
pub fn ask_udp(address: &str) -> String {
    let ask = format!("echo hello | socat -t1 - UDP:{address}");
    format!("for n in 1 2 3 4 5; do out=$({ask}); [ -n \"$out\" ] && break; done; echo $out")
}

/// Runs a shell command on the board.
pub fn sh(command: &str) -> Result<String> {
    checked(Command::new("sh").args(["-c", command]), command)
}

fn checked(command: &mut Command, shown: &str) -> Result<String> {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output()?;
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(status.success(), "{shown}: {status}\n{out}{err}");
    Ok(out.into_owned())
}
