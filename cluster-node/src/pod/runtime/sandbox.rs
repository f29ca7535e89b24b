//! What belongs to a pod as a whole: its control group, its network, the namespaces its containers share, its hosts file.
//!
//! Always true: a mark under the run directory is the last thing made and the first taken away, so that a network that is
//! said to be ready is whole, and none is said to be there after a reboot.

use std::{io, net::IpAddr, path::PathBuf};

use container_engine::{
    container::{ShareOptions, UserNamespace},
    ledger::{Amount, Holder},
    owner::Owner,
};
use k8s_openapi::api::core::v1::Pod;

use super::{Runtime, blocking, of_error, problem};
use crate::{
    event::Type,
    pod::{
        decide::qos,
        model::{PodKey, Problem, Sandbox},
        spec::{self, Place, Surroundings, is_host_network, paths, sandbox_id},
    },
};

/// In a mark: the pod is on the host's network.
const HOST: &str = "host";
const OWN: &str = "own";
/// Behind either: its containers share process ids. The id of the network follows.
const PIDS: &str = "+pids";

impl Runtime {
    /// The network as it is; none where it was not made since the machine was started.
    pub(super) fn sandbox(&self, pod: &PodKey) -> Option<Sandbox> {
        let mark = std::fs::read_to_string(self.mark(&pod.uid)).ok()?;
        let (kind, id) = mark.split_once(' ').unwrap_or((&mark, ""));
        let id = id.to_owned();
        let (network, pids) = kind.strip_suffix(PIDS).map_or((kind, false), |network| (network, true));
        let name = sandbox_id(&pod.uid);
        // Who holds the process ids can be killed, and with it all of them.
        let shares = ShareOptions { pids, ..ShareOptions::default() };
        let is_shared = self.0.engine.containers().shared(&name, shares).is_some();
        if network == HOST {
            return Some(Sandbox { id, ready: is_shared, host_network: true, addresses: Vec::new() });
        }
        let attached = self.0.engine.networks().attached(&name);
        let addresses = attached.iter().flat_map(|it| &it.interfaces).flat_map(|it| &it.addresses);
        let addresses: Vec<IpAddr> = addresses.map(ipnet::IpNet::addr).collect();
        Some(Sandbox { id, ready: attached.is_some() && is_shared, host_network: false, addresses })
    }

    fn mark(&self, uid: &str) -> PathBuf {
        self.0.marks.join(sandbox_id(uid))
    }

    /// Makes it. Twice is as once.
    pub async fn create_sandbox(&self, pod: &Pod) -> Result<(), Problem> {
        let made = self.make(pod).await;
        if let Err(problem) = &made {
            let message = format!("Failed to create pod sandbox: {}", problem.message);
            self.0.recorder.pod(pod, Type::Warning, "FailedCreatePodSandBox", message, None);
        }
        made
    }

    async fn make(&self, pod: &Pod) -> Result<(), Problem> {
        let failed = |error: &(dyn std::error::Error + 'static)| of_error("CreatePodSandboxError", error);
        let node = (self.0.surroundings)();
        let engine = &self.0.engine;
        let (key, owner) = (PodKey::of(pod), spec::owner(pod)?);
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let admitted = engine.ledger().admit(Holder::whole(owner.clone()), priority, wanted(pod)).await;
        admitted.map_err(|it| failed(&it))?;
        engine.limit_owner(&owner, spec::pod_resources(pod, &node)).await.map_err(|it| failed(&it))?;
        let request = spec::attach_request(pod, &node)?;
        let attached = engine.networks().attach(request).await.map_err(|it| failed(&it))?;
        let name = sandbox_id(&key.uid);
        engine.containers().share(&name, share_options(pod)).await.map_err(|it| failed(&it))?;
        let addresses: Vec<IpAddr> =
            attached.interfaces.iter().flat_map(|it| &it.addresses).map(ipnet::IpNet::addr).collect();
        let names = spec::hostname(pod, &node)?;
        let hosts = spec::hosts_file(pod, &names, &addresses, &node);
        let (file, mark) = (paths::etc_hosts(&node.kubelet_dir, &key.uid), self.mark(&key.uid));
        let network = if is_host_network(pod) { HOST } else { OWN };
        // Unlike that of any before it: containers carry it.
        let id = jiff::Timestamp::now().as_nanosecond();
        let kind = format!("{network}{} {id:x}", if share_options(pod).pids { PIDS } else { "" });
        let written = blocking(move || {
            if let Some(hosts) = hosts {
                write(&file, &hosts)?;
            }
            write(&mark, &kind)
        });
        written.await.map_err(|error| problem("CreatePodSandboxError", format!("its files were not written: {error}")))
    }

    /// Takes it away: nothing of the pod runs any more. Twice is as once.
    pub async fn remove_sandbox(&self, pod: &PodKey) -> Result<(), Problem> {
        let failed = |error: &(dyn std::error::Error + 'static)| of_error("KillPodSandboxError", error);
        let name = sandbox_id(&pod.uid);
        match std::fs::remove_file(self.mark(&pod.uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&error)),
            _ => {}
        }
        self.0.engine.containers().unshare(&name).await.map_err(|it| failed(&it))?;
        self.0.engine.networks().detach(&name).await.map_err(|it| failed(&it))?;
        let holder = Holder::whole(Owner::Pod(pod.uid.clone()));
        self.0.engine.ledger().release(&holder).await.map_err(|it| failed(&it))
    }

    /// Where the pod's own things are, for its containers.
    pub(super) fn place(&self, pod: &Pod, node: &Surroundings) -> Place {
        let uid = PodKey::of(pod).uid;
        let name = sandbox_id(&uid);
        let shared = self.0.engine.containers().shared(&name, share_options(pod));
        let hosts = Some(paths::etc_hosts(&node.kubelet_dir, &uid)).filter(|path| path.is_file());
        let has_users = pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false);
        Place {
            netns: self.0.engine.networks().attached(&name).and_then(|it| it.netns),
            ipc: shared.as_ref().map(|it| it.ipc.clone()),
            shm: shared.as_ref().map(|it| it.shm.clone()),
            pid: shared.and_then(|it| it.pids),
            userns: if has_users { UserNamespace::Auto } else { UserNamespace::Host },
            hosts,
        }
    }

    /// What its network offers as resolvers.
    pub(super) fn resolvers(&self, pod: &Pod) -> Vec<IpAddr> {
        let attached = self.0.engine.networks().attached(&sandbox_id(&PodKey::of(pod).uid));
        attached.map(|it| it.dns).unwrap_or_default()
    }
}

fn share_options(pod: &Pod) -> ShareOptions {
    let pids = pod.spec.as_ref().and_then(|spec| spec.share_process_namespace) == Some(true);
    ShareOptions { pids, ..ShareOptions::default() }
}

/// What the board sets aside for a pod.
fn wanted(pod: &Pod) -> Amount {
    let Some(spec) = &pod.spec else { return Amount::default() };
    let whole = |amount: i64| u64::try_from(amount).unwrap_or(0);
    Amount {
        cpu_milli: whole(qos::pod_request(spec, "cpu").milli()),
        memory: whole(qos::pod_request(spec, "memory").value()),
        ..Amount::default()
    }
}

fn write(path: &std::path::Path, text: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(path, text)
}
