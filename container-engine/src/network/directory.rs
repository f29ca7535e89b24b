//! The records as the name servers see them.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, Weak},
};

use super::{
    Inner,
    book::Book,
    dns::{Directory, Names},
    host::lock,
    record::Sandbox,
    types::DEFAULT_NETWORK,
};

/// The book, as long as it is there.
pub(super) struct Registry(pub Weak<Inner>);

struct View {
    inner: Arc<Inner>,
    /// Keys of the networks that the asker is on and that have names.
    networks: Vec<String>,
    outside: bool,
}

impl Directory for Registry {
    fn names_for(&self, network: &str, source: IpAddr) -> Option<Box<dyn Names>> {
        let inner = self.0.upgrade()?;
        let (networks, outside) = view(&inner.book, network, source)?;
        Some(Box::new(View { inner, networks, outside }))
    }
}

fn view(book: &Mutex<Book>, network: &str, source: IpAddr) -> Option<(Vec<String>, bool)> {
    let book = lock(book);
    let here = |sandbox: &&Sandbox| {
        let mut endpoints = sandbox.endpoints.iter().filter(|endpoint| endpoint.network == network);
        endpoints.any(|endpoint| endpoint.interface.addresses.iter().any(|net| net.addr() == source))
    };
    let asker = book.sandboxes.values().find(here)?;
    let outside = asker.endpoints.iter().any(|endpoint| !endpoint.internal);
    let named = asker.endpoints.iter().filter(|endpoint| endpoint.interface.network != DEFAULT_NETWORK);
    Some((named.map(|endpoint| endpoint.network.clone()).collect(), outside))
}

impl Names for View {
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let book = lock(&self.inner.book);
        let mut found = Vec::new();
        for sandbox in book.sandboxes.values() {
            let here = sandbox.endpoints.iter().filter(|endpoint| self.networks.contains(&endpoint.network));
            for endpoint in here.filter(|endpoint| sandbox.answers_to(name) || answers(&endpoint.aliases, name)) {
                found.extend(endpoint.interface.addresses.iter().map(ipnet::IpNet::addr));
            }
        }
        (!found.is_empty()).then_some(found)
    }

    fn name(&self, address: IpAddr) -> Option<Option<String>> {
        let book = lock(&self.inner.book);
        let ours = self.networks.iter().filter_map(|key| book.networks.get(key)).any(|network| match address {
            IpAddr::V4(four) => network.subnet.contains(&four),
            IpAddr::V6(six) => network.ipv6.is_some_and(|net| net.contains(&six)),
        });
        let holder = book.sandboxes.values().find(|sandbox| {
            let here = sandbox.endpoints.iter().filter(|endpoint| self.networks.contains(&endpoint.network));
            here.flat_map(|endpoint| &endpoint.interface.addresses).any(|net| net.addr() == address)
        });
        ours.then(|| holder.map(|sandbox| sandbox.label().to_owned()))
    }

    fn may_ask_outside(&self) -> bool {
        self.outside
    }
}

fn answers(names: &[String], name: &str) -> bool {
    names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

impl Sandbox {
    /// Names, host name, and the id short and long, as Docker has them.
    fn answers_to(&self, name: &str) -> bool {
        let short = self.id.get(..12).is_some_and(|short| short.eq_ignore_ascii_case(name));
        answers(&self.names, name)
            || self.hostname.eq_ignore_ascii_case(name)
            || short
            || self.id.eq_ignore_ascii_case(name)
    }
}
