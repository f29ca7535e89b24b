//! Attaching and detaching sandboxes: reserve, record, build; and the way back.

use std::{os::fd::AsFd, sync::Arc};

use super::{
    AttachError, AttachRequest, Attached, Inner, Interface, NetworkError, Networks, blocking,
    book::Book,
    cni::Wish,
    host::{Host, lock},
    record::{Endpoint, Sandbox},
};
use crate::{
    container::{Attachment, NetworkMode},
    owner::Owner,
    sys::netns,
};

impl Networks {
    /// Makes the network of a sandbox: its namespace, interfaces, addresses and published ports.
    ///
    /// * Idempotent: what is attached already is returned as it is.
    /// * `Host`: nothing; `Container` and `Path`: the namespace of another, of which nothing is kept here.
    /// * What is made again, because the board restarted, gets the addresses it had, where they are still its network's.
    /// * Errors: afterwards nothing of the attempt remains; of a pod, its addresses stay reserved until `detach`.
    /// * Cancelled: may stop halfway; the next `attach` or `detach` of the same sandbox, or `recover`, undoes the rest.
    pub async fn attach(&self, mut request: AttachRequest) -> Result<Attached, AttachError> {
        match &request.mode {
            NetworkMode::Host => return Ok(Attached::default()),
            NetworkMode::Path(path) => return Ok(Attached { netns: Some(path.clone()), ..Attached::default() }),
            NetworkMode::Container(other) => {
                return self.attached(other).ok_or_else(|| AttachError::NoSandbox(other.clone()));
            }
            NetworkMode::None => request.ports.clear(), // As Docker does: there is nowhere to lead them.
            NetworkMode::Bridge | NetworkMode::Networks(_) => {}
        }
        let guard = self.gate(&request.sandbox).await;
        let former = lock(&self.0.book).sandboxes.get(&request.sandbox).cloned();
        let (former, guard) = match former {
            Some(former) if former.complete && netns::is_held(&former.netns) => {
                return Ok(self.0.told(&lock(&self.0.book), &former));
            }
            Some(former) => {
                let (former, guard) = self.tear_down(former, guard).await?;
                (Some(former), guard)
            }
            None => (None, guard),
        };
        let id = request.sandbox.clone();
        let cni = self.0.options.cni.is_some() && request.mode == NetworkMode::Bridge;
        let wish = Wish { args: request.cni_args.clone(), bandwidth: request.bandwidth, ..Wish::default() };
        let inner = self.0.clone();
        let reserve = move || {
            let reserved = lock(&inner.book).reserve_again(&request, former, &inner.options.run_dir, cni);
            Ok::<_, AttachError>((reserved, guard))
        };
        let (reserved, guard) = blocking(reserve).await?;
        let mut sandbox = match reserved {
            Ok(sandbox) => sandbox,
            Err(error) => {
                // Nothing of it is left, unless its addresses are kept for a pod.
                if !lock(&self.0.book).sandboxes.contains_key(&id) {
                    self.0.unnote(&id).await?;
                }
                return Err(error);
            }
        };
        if let Err(error) = self.0.note(&sandbox).await {
            self.0.drop_record(&sandbox.id);
            return Err(error.into());
        }
        let ready = self.ensure(&sandbox.endpoints).await;
        let inner = self.0.clone();
        let record = sandbox.clone();
        let build = move || Ok::<_, AttachError>((ready.and_then(|()| inner.build(&record)), guard));
        let (built, guard) = blocking(build).await?;
        let built = match built {
            Ok(()) if cni => self.plugins(&mut sandbox, wish).await,
            other => other.map_err(AttachError::from),
        };
        if let Err(error) = built {
            if let Err(again) = self.undo_or_keep(sandbox, guard).await {
                tracing::error!(error = %again, "what was left of a failed attachment cannot be removed yet");
            }
            return Err(error);
        }
        sandbox.complete = true;
        let mut book = lock(&self.0.book);
        let attached = self.0.told(&book, &sandbox);
        book.sandboxes.insert(sandbox.id.clone(), sandbox);
        drop(book);
        drop(guard);
        Ok(attached)
    }

    /// Takes back everything of a sandbox. One that is not attached is no error.
    pub async fn detach(&self, sandbox: &str) -> Result<(), AttachError> {
        let guard = self.gate(sandbox).await;
        let record = lock(&self.0.book).sandboxes.get(sandbox).cloned();
        match record {
            Some(record) => drop(self.undo(record, guard).await?),
            None => super::book::check_id(sandbox)?,
        }
        Ok(())
    }

    /// The network of a sandbox as it is.
    pub fn attached(&self, sandbox: &str) -> Option<Attached> {
        let book = lock(&self.0.book);
        book.sandboxes.get(sandbox).filter(|sandbox| sandbox.complete).map(|sandbox| self.0.told(&book, sandbox))
    }

    /// Every sandbox that is known, whole or not, and whose it is.
    pub fn sandboxes(&self) -> Vec<(String, crate::owner::Owner)> {
        let book = lock(&self.0.book);
        book.sandboxes.values().map(|sandbox| (sandbox.id.clone(), sandbox.owner.clone())).collect()
    }

    /// Puts a running sandbox on a further network of its owner.
    pub async fn connect(&self, sandbox: &str, to: Attachment) -> Result<Interface, AttachError> {
        let guard = self.gate(sandbox).await;
        let (mut record, endpoint) = {
            let mut book = lock(&self.0.book);
            let found = book.sandboxes.get(sandbox).filter(|sandbox| sandbox.complete && sandbox.cni.is_none());
            let record = found.cloned().ok_or_else(|| AttachError::NoSandbox(sandbox.to_owned()))?;
            let endpoint = book.endpoint(&record, &to)?;
            let mut after = record.clone();
            after.endpoints.push(endpoint.clone());
            book.sandboxes.insert(record.id.clone(), after);
            (record, endpoint)
        };
        let before = record.clone();
        record.endpoints.push(endpoint.clone());
        let work = async {
            self.0.put(&record.id, &record).await?;
            self.ensure(std::slice::from_ref(&endpoint)).await?;
            let (inner, old, new) = (self.0.clone(), before.clone(), record.clone());
            blocking(move || Ok::<_, NetworkError>((inner.plug_in(&old, &new), guard))).await
        };
        let (done, _guard) = match work.await {
            Ok((done, guard)) => (done, Some(guard)),
            Err(error) => (Err(error), None),
        };
        if let Err(error) = done {
            let inner = self.0.clone();
            let device = endpoint.device.clone();
            // The first error is the one to report; `recover` finds the device by its name.
            let _ = blocking(move || inner.host.delete_link(&device).map_err(NetworkError::kernel("undo"))).await;
            lock(&self.0.book).sandboxes.insert(before.id.clone(), before.clone());
            self.0.put(&before.id, &before).await?;
            return Err(error.into());
        }
        Ok(endpoint.interface)
    }

    /// Takes a running sandbox off a network.
    pub async fn disconnect(&self, sandbox: &str, network: &str) -> Result<(), AttachError> {
        let guard = self.gate(sandbox).await;
        let (before, after) = {
            let book = lock(&self.0.book);
            let found = book.sandboxes.get(sandbox).filter(|sandbox| sandbox.complete);
            let before = found.cloned().ok_or_else(|| AttachError::NoSandbox(sandbox.to_owned()))?;
            let key = book.resolve(&before.owner, network)?;
            let mut after = before.clone();
            after.endpoints.retain(|endpoint| endpoint.network != key);
            if after.endpoints.len() == before.endpoints.len() {
                return Err(NetworkError::NotFound(network.to_owned()).into());
            }
            (before, after)
        };
        let (inner, record) = (self.0.clone(), after.clone());
        let guard = blocking(move || inner.plug_out(&before, &record).map(|()| guard)).await?;
        lock(&self.0.book).sandboxes.insert(after.id.clone(), after.clone());
        self.0.put(&after.id, &after).await?;
        self.0.copy(&after.id, &after);
        drop(guard);
        Ok(())
    }

    /// Has the CNI plugins do their part for a sandbox whose namespace is there.
    async fn plugins(&self, sandbox: &mut Sandbox, wish: Wish) -> Result<(), AttachError> {
        let wish =
            Wish { sandbox: sandbox.id.clone(), netns: sandbox.netns.clone(), ports: sandbox.ports.clone(), ..wish };
        sandbox.cni = Some(self.0.cni.add(&wish).await?);
        self.0.put(&sandbox.id, sandbox).await?;
        self.0.copy(&sandbox.id, &Sandbox { complete: true, ..sandbox.clone() });
        Ok(())
    }

    /// Whether what CNI plugins made for a sandbox is still there, by their own CHECK; others are always well.
    pub async fn check(&self, sandbox: &str) -> Result<(), AttachError> {
        Ok(self.0.cni.check(sandbox).await?)
    }

    /// Makes the bridges that these endpoints need.
    pub(super) async fn ensure(&self, endpoints: &[Endpoint]) -> Result<(), NetworkError> {
        for endpoint in endpoints {
            let network = lock(&self.0.book).networks.get(&endpoint.network).cloned();
            let network = network.ok_or_else(|| NetworkError::NotFound(endpoint.interface.network.clone()))?;
            if self.0.host.is_ready(&network.device) {
                continue;
            }
            let guard = self.0.networks.clone().lock_owned().await;
            let inner = self.0.clone();
            let key = endpoint.network.clone();
            blocking(move || {
                if inner.host.ensure_bridge(&network)? {
                    inner.start_dns(&key, &network)?;
                    if let Err(error) = inner.rebuild() {
                        inner.host.forget_bridge(&network.device); // So that the next attempt comes here again.
                        return Err(error);
                    }
                }
                drop(guard);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Waits for sandboxes that are coming to a network or leaving it, and goes on taking away what was left halfway.
    pub(super) async fn settle(&self, owner: &Owner, network: &str) {
        let halfway: Vec<String> = {
            let book = lock(&self.0.book);
            let Ok(key) = book.resolve(owner, network) else { return };
            let on = |sandbox: &&Sandbox| sandbox.endpoints.iter().any(|endpoint| endpoint.network == key);
            book.sandboxes.values().filter(on).filter(|it| !it.complete).map(|it| it.id.clone()).collect()
        };
        for id in halfway {
            let guard = self.gate(&id).await;
            let left = lock(&self.0.book).sandboxes.get(&id).filter(|it| !it.complete).cloned();
            if let Some(left) = left
                && let Err(error) = self.undo(left, guard).await
            {
                tracing::warn!(error = %board::tasks::chain(&error), sandbox = id, "what is left of a sandbox's network stays");
            }
        }
    }

    /// Undoes what there is of a sandbox, and forgets it.
    pub(super) async fn undo(&self, sandbox: Sandbox, guard: super::Guard) -> Result<super::Guard, AttachError> {
        let (sandbox, guard) = self.tear_down(sandbox, guard).await?;
        self.0.unnote(&sandbox.id).await?;
        self.0.drop_record(&sandbox.id);
        Ok(guard)
    }

    /// The same, but of a pod the record stays, and with it the addresses: it ends by `detach`.
    pub(super) async fn undo_or_keep(
        &self,
        sandbox: Sandbox,
        guard: super::Guard,
    ) -> Result<super::Guard, AttachError> {
        if !sandbox.is_pods() {
            return self.undo(sandbox, guard).await;
        }
        let (sandbox, guard) = self.tear_down(sandbox, guard).await?;
        lock(&self.0.book).held.remove(&sandbox.id);
        Ok(guard)
    }

    /// Undoes what there is of a sandbox. It is known further on, as one that is not complete.
    async fn tear_down(&self, sandbox: Sandbox, guard: super::Guard) -> Result<(Sandbox, super::Guard), AttachError> {
        if let Some(record) = lock(&self.0.book).sandboxes.get_mut(&sandbox.id) {
            record.complete = false;
        }
        self.0.cni.delete(&sandbox.id).await?;
        let inner = self.0.clone();
        let (sandbox, guard) = blocking(move || {
            inner.take_down(&sandbox)?;
            Ok::<_, NetworkError>((sandbox, guard))
        })
        .await?;
        Ok((sandbox, guard))
    }
}

impl Inner {
    pub(super) fn drop_record(&self, id: &str) {
        let mut book = lock(&self.book);
        book.sandboxes.remove(id);
        book.held.remove(id);
    }

    /// A sandbox's network as it is told.
    fn told(&self, book: &Book, sandbox: &Sandbox) -> Attached {
        let mut attached = book.attached(sandbox);
        // As with Docker, containers on the default network have the host's resolvers and no names; but a resolver on
        // the host's loopback is out of their reach, so ours asks it for them.
        let gateway = attached.host_gateway.filter(|_| attached.dns.is_empty() && sandbox.cni.is_none());
        attached.dns.extend(gateway.filter(|_| self.dns.host_conf().servers.iter().any(std::net::IpAddr::is_loopback)));
        attached
    }

    /// Makes the table again, and looks whether another firewall is in the way.
    pub(super) fn rebuild(&self) -> Result<(), NetworkError> {
        self.host.rebuild(&self.book)?;
        let problem = self.host.forward_drops().then(|| {
            let device = &self.options.device;
            format!(
                "the FORWARD chain of iptables drops by policy (Docker or ufw set it), and with it what containers send: \
                run `iptables -I FORWARD -i {device} -j ACCEPT; iptables -I FORWARD -o {device} -j ACCEPT`, and the \
                same for each device of `network ls`, or `ufw default allow routed`"
            )
        });
        let mut known = lock(&self.problem);
        if let Some(problem) = problem.as_ref().filter(|_| known.is_none()) {
            tracing::warn!(problem, "containers may not reach the network");
        }
        *known = problem;
        Ok(())
    }

    /// Starts the name server of a network. In a thread of the runtime.
    fn start_dns(self: &Arc<Self>, key: &str, network: &super::Network) -> Result<(), NetworkError> {
        let gateways: Vec<_> =
            [Some(network.gateway.into()), network.gateway6.map(Into::into)].into_iter().flatten().collect();
        let names = Arc::new(super::directory::Registry(Arc::downgrade(self)));
        let step = format!("start the name server of network {:?}", network.name);
        let redirects = self.dns.start(key, &gateways, names).map_err(NetworkError::kernel(step))?;
        lock(&self.book).resolvers.insert(key.to_owned(), redirects);
        Ok(())
    }

    /// Makes namespace, interfaces and redirects of a sandbox that is in the book.
    fn build(self: &Arc<Self>, sandbox: &Sandbox) -> Result<(), NetworkError> {
        if !sandbox.endpoints.is_empty() {
            self.host.ensure_table(&self.book)?;
        }
        let ipv6 = has_ipv6(&sandbox.endpoints);
        let (namespace, mut inside) = Host::make_namespace(&sandbox.netns, ipv6)?;
        let default = sandbox.default_route();
        for (n, endpoint) in sandbox.endpoints.iter().enumerate() {
            let network = self.network(endpoint)?;
            self.host.plug(namespace.as_fd(), &mut inside, endpoint, &network, default == Some(n))?;
        }
        let redirects = sandbox.redirects();
        if !redirects.is_empty() {
            self.host.publish(&redirects)?;
        }
        self.copy(&sandbox.id, &Sandbox { complete: true, ..sandbox.clone() });
        Ok(())
    }

    /// Removes redirects, devices and namespace of a sandbox.
    pub(super) fn take_down(&self, sandbox: &Sandbox) -> Result<(), NetworkError> {
        let redirects = sandbox.redirects();
        if !redirects.is_empty() {
            // Out of the book first, or a table made again meanwhile would have them once more.
            if let Some(record) = lock(&self.book).sandboxes.get_mut(&sandbox.id) {
                record.ports.clear();
                record.complete = false;
            }
            self.host.unpublish(&redirects, &self.book)?;
        }
        self.host.unplug(sandbox)
    }

    fn network(&self, endpoint: &Endpoint) -> Result<super::Network, NetworkError> {
        let network = lock(&self.book).networks.get(&endpoint.network).cloned();
        network.ok_or_else(|| NetworkError::NotFound(endpoint.interface.network.clone()))
    }

    /// Makes the interfaces that `after` has more than `before`.
    pub(super) fn plug_in(&self, before: &Sandbox, after: &Sandbox) -> Result<(), NetworkError> {
        let new = |endpoint: &&Endpoint| !before.endpoints.contains(endpoint);
        let ipv6 = after.endpoints.iter().filter(new).any(|endpoint| has_ipv6(std::slice::from_ref(endpoint)));
        let (namespace, mut inside) = Host::open_namespace(&after.netns, Some(ipv6))?;
        let default = after.default_route();
        for (n, endpoint) in after.endpoints.iter().enumerate().filter(|(_, endpoint)| new(endpoint)) {
            let network = self.network(endpoint)?;
            self.host.plug(namespace.as_fd(), &mut inside, endpoint, &network, default == Some(n))?;
        }
        self.redirect(before, after)?;
        self.copy(&after.id, after);
        Ok(())
    }

    /// Removes the interfaces that `before` has more than `after`, and leads through what is left.
    fn plug_out(&self, before: &Sandbox, after: &Sandbox) -> Result<(), AttachError> {
        self.redirect(before, after)?;
        for endpoint in before.endpoints.iter().filter(|endpoint| !after.endpoints.contains(endpoint)) {
            let step = format!("remove device {:?}", endpoint.device);
            self.host.delete_link(&endpoint.device).map_err(NetworkError::kernel(step))?;
        }
        if let Some(endpoint) = after.default_route().and_then(|n| after.endpoints.get(n)) {
            let (_namespace, mut inside) = Host::open_namespace(&after.netns, None)?;
            let step = "set the default route";
            Host::route_through(&mut inside, endpoint).map_err(NetworkError::kernel(step))?;
        }
        Ok(())
    }

    fn redirect(&self, before: &Sandbox, after: &Sandbox) -> Result<(), NetworkError> {
        let (old, new) = (before.redirects(), after.redirects());
        let gone: Vec<_> = old.iter().filter(|redirect| !new.contains(redirect)).cloned().collect();
        let come: Vec<_> = new.iter().filter(|redirect| !old.contains(redirect)).cloned().collect();
        if !gone.is_empty() {
            self.host.unpublish(&gone, &self.book)?;
        }
        if come.is_empty() { Ok(()) } else { self.host.publish(&come) }
    }
}

pub(super) fn has_ipv6(endpoints: &[Endpoint]) -> bool {
    endpoints.iter().any(|endpoint| endpoint.interface.addresses.iter().any(|net| net.addr().is_ipv6()))
}
