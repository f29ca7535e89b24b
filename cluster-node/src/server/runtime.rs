//! What this server needs of the container engine, and no more.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use container_engine::{
    cgroup::Usage,
    container::{ContainerId, ExecSpec, Inspect, Stats},
    engine::Engine,
    logs::{ReadOptions, Reader},
    owner::Owner,
    shim::{Attach, Output, SessionInput, SessionOutput},
    sys::netns,
};
use futures_util::future::BoxFuture;
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Longest wait for a port of a pod.
const CONNECT: Duration = Duration::from_secs(10);

/// Where a process reads from.
pub trait Input: Send {
    /// Writes all of it; waits when the process does not read.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, io::Result<()>>;
    /// Its standard input ends.
    fn close(&mut self) -> BoxFuture<'_, io::Result<()>>;
    /// Its terminal has another size.
    fn resize(&mut self, rows: u16, columns: u16) -> BoxFuture<'_, io::Result<()>>;
}

/// What a process says.
pub trait Said: Send {
    /// The next piece; `None` after its end. An error is in words. Cancel-safe.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Output>, String>>;
}

/// A process with its stdio.
pub struct Process {
    /// Its standard input and terminal.
    pub input: Box<dyn Input>,
    /// Its output and end.
    pub output: Box<dyn Said>,
    /// What to do when whoever asked for it has gone away.
    pub hang_up: Option<BoxFuture<'static, ()>>,
}

/// A process to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Standard input stays open.
    pub stdin: bool,
    /// With a terminal.
    pub tty: bool,
}

/// Containers, as this server uses them. Errors are in words: they go to whoever asked.
pub trait Runtime: Send + Sync + 'static {
    /// Runs a process.
    fn exec(&self, id: ContainerId, command: Command) -> BoxFuture<'_, Result<Process, String>>;
    /// The container's own stdio.
    fn attach(&self, id: ContainerId, attach: Attach) -> BoxFuture<'_, Result<Process, String>>;
    /// Its log. When following it ends with the container.
    fn log(&self, id: ContainerId, options: ReadOptions) -> BoxFuture<'_, Result<Reader, String>>;
    /// What it uses; with `disk` its writable part too, which takes a while.
    fn usage(&self, id: ContainerId, disk: bool) -> BoxFuture<'_, Result<Stats, String>>;
    /// What a pod uses, all of it together; `None` where it has no group.
    fn pod_usage(&self, uid: String) -> BoxFuture<'_, Option<Usage>>;
    /// All about it.
    fn inspect(&self, id: &ContainerId) -> Option<Inspect>;
    /// A connection to a port on the loopback of a network namespace; none: the host's.
    fn connect(&self, netns: Option<PathBuf>, port: u16) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(dial(netns, port))
    }
    /// Bytes of all images.
    fn image_bytes(&self) -> BoxFuture<'_, u64>;
}

impl Runtime for Engine {
    fn exec(&self, id: ContainerId, command: Command) -> BoxFuture<'_, Result<Process, String>> {
        Box::pin(async move {
            let failed = |error: &(dyn std::error::Error + 'static)| failure("failed to exec in container", &id, error);
            let containers = self.containers().clone();
            let Command { words, stdin, tty } = command;
            let spec = ExecSpec { command: words, stdin, tty, ..ExecSpec::default() };
            let (exec, session) = containers.exec(&id, spec).await.map_err(|error| failed(&error))?;
            let (input, output) = session.split();
            // What a terminal does when it is switched off: else a shell would wait for ever for somebody to type.
            let hang_up = async move {
                if let Err(error) = containers.exec_kill(&exec, "SIGHUP").await {
                    tracing::debug!(%error, "a process whose user has gone could not be told");
                }
            };
            let hang_up = tty.then(|| Box::pin(hang_up) as BoxFuture<'static, ()>);
            Ok(Process { input: Box::new(input), output: Box::new(output), hang_up })
        })
    }

    fn attach(&self, id: ContainerId, attach: Attach) -> BoxFuture<'_, Result<Process, String>> {
        Box::pin(async move {
            let failed =
                |error: &(dyn std::error::Error + 'static)| failure("failed to attach to container", &id, error);
            let attaching = self.containers().attach(&id, attach).await.map_err(|error| failed(&error))?;
            let (input, output) = attaching.session().await.map_err(|error| failed(&error))?.split();
            Ok(Process { input: Box::new(input), output: Box::new(output), hang_up: None })
        })
    }

    fn log(&self, id: ContainerId, options: ReadOptions) -> BoxFuture<'_, Result<Reader, String>> {
        Box::pin(async move {
            let failed =
                |error: &(dyn std::error::Error + 'static)| failure("failed to read the log of container", &id, error);
            self.containers().logs(&id, options).await.map_err(|error| failed(&error))
        })
    }

    fn usage(&self, id: ContainerId, disk: bool) -> BoxFuture<'_, Result<Stats, String>> {
        Box::pin(async move {
            let failed = |error: &(dyn std::error::Error + 'static)| failure("failed to measure container", &id, error);
            self.containers().stats(&id, disk).await.map_err(|error| failed(&error))
        })
    }

    fn pod_usage(&self, uid: String) -> BoxFuture<'_, Option<Usage>> {
        Box::pin(async move { self.owner_usage(&Owner::Pod(uid)).await.ok() })
    }

    fn inspect(&self, id: &ContainerId) -> Option<Inspect> {
        self.containers().inspect(id).ok()
    }

    fn image_bytes(&self) -> BoxFuture<'_, u64> {
        Box::pin(self.images().used())
    }
}

fn failure(what: &str, id: &ContainerId, error: &(dyn std::error::Error + 'static)) -> String {
    format!("{what} \"{}\": {}", id.short(), board::tasks::chain(error))
}

impl Input for SessionInput {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.write_all(&bytes).await?;
            self.flush().await
        })
    }

    fn close(&mut self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(self.shutdown())
    }

    fn resize(&mut self, rows: u16, columns: u16) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(SessionInput::resize(self, rows, columns))
    }
}

impl Said for SessionOutput {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Output>, String>> {
        Box::pin(async move { SessionOutput::next(self).await.map_err(|error| board::tasks::chain(&error)) })
    }
}

/// Connects to a server that listens on the loopback, or on all addresses, of a namespace: IPv4 first.
async fn dial(netns: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    let connected = tokio::task::spawn_blocking(move || match netns {
        Some(path) => connect_within(&path, port),
        None => connect_here(port),
    });
    let stream = connected.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    let stream = TcpStream::from_std(stream)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn connect_within(path: &Path, port: u16) -> io::Result<std::net::TcpStream> {
    let namespace = File::open(path).map_err(|error| {
        io::Error::new(error.kind(), format!("failed to open network namespace {}: {error}", path.display()))
    })?;
    netns::within(namespace.as_fd(), || connect_here(port))
}

/// A socket belongs to the namespace in which it was made, whoever uses it then.
fn connect_here(port: u16) -> io::Result<std::net::TcpStream> {
    let connect = |address: SocketAddr| std::net::TcpStream::connect_timeout(&address, CONNECT);
    let v4 = match connect((Ipv4Addr::LOCALHOST, port).into()) {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    connect((Ipv6Addr::LOCALHOST, port).into()).map_err(|v6| {
        let text = format!(
            "failed to connect to localhost:{port} inside namespace, IPv4: dial 127.0.0.1:{port}: {v4}, \
             IPv6: dial [::1]:{port}: {v6}"
        );
        io::Error::new(v4.kind(), text)
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener, process::Command as Program};

    use tokio::io::AsyncReadExt;

    use super::*;

    /// Needs root and `ip`, as all tests of networks do.
    #[tokio::test]
    async fn a_server_on_the_loopback_of_a_pod_is_reached_and_only_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("pod");
        let made = netns::create(Some(&at), |_| {
            Program::new("ip").args(["link", "set", "lo", "up"]).status()?;
            TcpListener::bind("127.0.0.1:0")
        });
        let (_namespace, listener) = made.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving =
            tokio::task::spawn_blocking(move || listener.accept().and_then(|(mut it, _)| it.write_all(b"pod")));
        let mut said = String::new();
        dial(Some(at.clone()), port).await.unwrap().read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "pod");
        serving.await.unwrap().unwrap();
        let error = dial(None, port).await.unwrap_err().to_string();
        assert!(error.contains(&format!("failed to connect to localhost:{port} inside namespace")), "{error}");
        netns::release(&at).unwrap();
        let error = dial(Some(at), port).await.unwrap_err().to_string();
        assert!(error.contains("failed to open network namespace"), "{error}");
    }
}
