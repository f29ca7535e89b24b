//! Networks of containers: bridges, addresses, published ports, names; or the host's CNI plugins.

pub mod cni;
mod error;
mod types;

use std::collections::BTreeSet;

pub use error::{AttachError, NetworkError};
pub use types::*;

use crate::{container::Attachment, owner::Owner};

/// All networks of this board; cheap to clone.
#[derive(Clone)]
pub struct Networks {
    options: std::sync::Arc<Options>,
}

impl Networks {
    /// Reads the records. Touches nothing of the host: devices and rules are made when first needed, or by `recover`.
    #[expect(clippy::unused_async, reason = "the shape first")]
    pub async fn open(options: Options, _state: store::state::State) -> Result<Self, NetworkError> {
        Ok(Self { options: std::sync::Arc::new(options) })
    }

    fn missing(&self) -> NetworkError {
        NetworkError::Invalid(format!("networks under {} are not served yet", self.options.run_dir.display()))
    }

    /// Creates a network of `owner`.
    #[expect(clippy::unused_async, reason = "the shape first")]
    pub async fn create(&self, _owner: &Owner, _spec: NetworkSpec) -> Result<Network, NetworkError> {
        Err(self.missing())
    }

    /// Removes a network that nothing is on.
    #[expect(clippy::unused_async, reason = "the shape first")]
    pub async fn remove(&self, _owner: &Owner, _name: &str) -> Result<(), NetworkError> {
        Err(self.missing())
    }

    /// One network: of `owner`, or the default one.
    pub fn inspect(&self, _owner: &Owner, _name: &str) -> Result<NetworkInfo, NetworkError> {
        Err(self.missing())
    }

    /// All networks of `owner` and the default one; everybody's where absent.
    pub fn list(&self, _owner: Option<&Owner>) -> Vec<NetworkInfo> {
        Vec::new()
    }

    /// Makes the network of a sandbox. Idempotent: what is attached already is returned as it is.
    #[expect(clippy::unused_async, reason = "the shape first")]
    pub async fn attach(&self, _request: AttachRequest) -> Result<Attached, AttachError> {
        Err(self.missing().into())
    }

    /// Takes back everything of a sandbox. Idempotent.
    #[expect(clippy::unused_async, reason = "the shape first")]
    pub async fn detach(&self, _sandbox: &str) -> Result<(), AttachError> {
        Err(self.missing().into())
    }

    /// The network of a sandbox as it is.
    pub fn attached(&self, _sandbox: &str) -> Option<Attached> {
        None
    }

    /// Puts a running sandbox on a further network of its owner.
    #[expect(clippy::unused_async, reason = "the shape first")]
    pub async fn connect(&self, _sandbox: &str, _to: Attachment) -> Result<Interface, AttachError> {
        Err(self.missing().into())
    }

    /// Takes a running sandbox off a network.
    #[expect(clippy::unused_async, reason = "the shape first")]
    pub async fn disconnect(&self, _sandbox: &str, _network: &str) -> Result<(), AttachError> {
        Err(self.missing().into())
    }

    /// At the agent's start: takes back what belongs to no sandbox of `existing`, makes again what is missing.
    #[expect(clippy::unused_async, reason = "the shape first")]
    pub async fn recover(&self, _existing: &BTreeSet<String>) -> Result<RecoveryReport, NetworkError> {
        Err(self.missing())
    }

    /// At the agent's end: stops the name servers; containers keep their networks.
    #[expect(clippy::unused_async, reason = "the shape first")]
    pub async fn close(&self) {}
}
