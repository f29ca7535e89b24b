//! At the agent's start: what belongs to no sandbox any more goes, what should be there is made again.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    NetworkError, Networks, RecoveryReport, blocking,
    host::lock,
    link::{Device, Link},
    ports,
    record::Sandbox,
};
use crate::sys::netns;

impl Networks {
    /// Takes back what belongs to no sandbox of `existing` and makes again what is missing of the others. Sandboxes of pods
    /// exist until they are detached, whoever of their containers runs: of those that a restart of the board took, the
    /// addresses stay reserved for the next `attach`. To be called once after [`Networks::open`], before anything is attached.
    pub async fn recover(&self, existing: &BTreeSet<String>) -> Result<RecoveryReport, NetworkError> {
        let mut report = RecoveryReport::default();
        let records: Vec<Sandbox> = lock(&self.0.book).sandboxes.values().cloned().collect();
        let mut kept = Vec::new();
        for sandbox in records {
            let wanted = sandbox.is_pods() || existing.contains(&sandbox.id);
            if wanted && sandbox.complete && netns::is_held(&sandbox.netns) {
                kept.push(sandbox);
                continue;
            }
            let id = sandbox.id.clone();
            let guard = self.gate(&id).await;
            match self.undo_or_keep(sandbox, guard).await {
                Ok(_) if wanted => report.lost.push(id),
                Ok(_) => report.released.push(id),
                Err(error) => report.problems.push(board::tasks::chain(&error)),
            }
        }
        self.clean_plugins(&kept, &mut report).await;
        for sandbox in &kept {
            if let Err(error) = self.ensure(&sandbox.endpoints).await {
                report.problems.push(board::tasks::chain(&error));
            }
        }
        let this = self.clone();
        let report = blocking(move || {
            this.0.host.remove_doomed();
            this.0.sweep(&mut report)?;
            for sandbox in kept {
                this.0.mend(&sandbox, &mut report);
                report.kept.push(sandbox.id);
            }
            if report.kept.is_empty() {
                this.0.host.clear().map_err(NetworkError::kernel("remove the rules of a former run (nf_tables)"))?;
            } else {
                this.0.rebuild()?;
            }
            Ok::<_, NetworkError>(report)
        })
        .await?;
        Ok(report)
    }
}

impl Networks {
    /// Has CNI plugins take back what belongs to nobody, also where our own records of it were lost.
    async fn clean_plugins(&self, kept: &[Sandbox], report: &mut RecoveryReport) {
        let alive: BTreeSet<String> = kept.iter().map(|sandbox| sandbox.id.clone()).collect();
        for id in self.0.cni.kept().difference(&alive) {
            match self.0.cni.delete(id).await {
                Ok(()) => report.removed.push(format!("CNI attachment {id}")),
                Err(error) => report.problems.push(format!("CNI attachment {id}: {}", board::tasks::chain(&error))),
            }
        }
        // Without a configuration there is nothing to collect, and `ready` says so to whoever attaches.
        if self.0.options.cni.is_some()
            && let Err(error) = self.0.cni.collect(&alive).await
        {
            tracing::debug!(%error, "CNI plugins collected no garbage");
        }
    }
}

impl super::Inner {
    /// Removes devices and namespaces that no record knows.
    fn sweep(&self, report: &mut RecoveryReport) -> Result<(), NetworkError> {
        let (devices, namespaces) = {
            let book = lock(&self.book);
            let endpoints = book.sandboxes.values().flat_map(|sandbox| &sandbox.endpoints);
            let mut devices: BTreeSet<String> = endpoints.map(|endpoint| endpoint.device.clone()).collect();
            devices.extend(book.networks.values().map(|network| network.device.clone()));
            let namespaces: BTreeSet<_> = book.sandboxes.values().map(|sandbox| sandbox.netns.clone()).collect();
            (devices, namespaces)
        };
        let links = self.host.links().map_err(NetworkError::kernel("list the host's devices"))?;
        let ours = |name: &str, link: &Link| {
            let named = |device: Device| device.is_named(&self.options.instance, name);
            (named(Device::Veth) && link.kind == "veth") || (named(Device::Bridge) && link.kind == "bridge")
        };
        for (name, _) in links.iter().filter(|(name, link)| ours(name, link) && !devices.contains(*name)) {
            match self.host.delete_link(name) {
                Ok(()) => report.removed.push(format!("device {name}")),
                Err(error) => report.problems.push(format!("device {name}: {error}")),
            }
        }
        let folder = self.options.run_dir.join("netns");
        let entries = std::fs::read_dir(&folder).into_iter().flatten();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| !namespaces.contains(path)) {
            match netns::release(&path) {
                Ok(()) => report.removed.push(format!("namespace {}", path.display())),
                Err(error) => report.problems.push(format!("namespace {}: {error}", path.display())),
            }
        }
        Ok(())
    }

    /// Makes again what is missing of a running sandbox: its ports held, its devices on their bridges.
    fn mend(&self, sandbox: &Sandbox, report: &mut RecoveryReport) {
        let v6 = super::sandbox::has_ipv6(&sandbox.endpoints);
        let mut held = Vec::new();
        for port in &sandbox.ports {
            match ports::hold(port.protocol, port.host_address, port.host_port, v6) {
                Ok((_, hold)) => held.push(hold),
                // The rules still lead it to the container; who bound it meanwhile just hears nothing.
                Err(error) => {
                    let holder = ports::holder(port.protocol, port.host_port).unwrap_or_else(|| error.to_string());
                    report.problems.push(format!("port {} of {}: {holder}", port.host_port, sandbox.label()));
                }
            }
        }
        lock(&self.book).held.insert(sandbox.id.clone(), held);
        let links = self.host.links().unwrap_or_default();
        let mut without = sandbox.clone();
        without.endpoints.retain(|endpoint| links.contains_key(&endpoint.device));
        let mended = self.enslave(&without, &links).and_then(|()| {
            if without.endpoints.len() < sandbox.endpoints.len() { self.plug_in(&without, sandbox) } else { Ok(()) }
        });
        if let Err(error) = mended {
            report.problems.push(board::tasks::chain(&error));
        }
    }

    /// Puts devices back on their bridges, which may have been made again.
    fn enslave(&self, sandbox: &Sandbox, links: &BTreeMap<String, Link>) -> Result<(), NetworkError> {
        for endpoint in &sandbox.endpoints {
            let bridge = lock(&self.book).networks.get(&endpoint.network).map(|network| network.device.clone());
            let bridge = bridge.and_then(|device| links.get(&device));
            let (Some(bridge), Some(link)) = (bridge, links.get(&endpoint.device)) else { continue };
            if link.master != Some(bridge.index) {
                let step = format!("put {:?} back on its bridge", endpoint.device);
                self.host.enslave(&endpoint.device, bridge.index).map_err(NetworkError::kernel(step))?;
            }
        }
        Ok(())
    }
}
