//! Why something about networks failed.

use std::{io, net::IpAddr};

use super::cni::CniError;
use crate::container::Protocol;

/// Why creating, listing or removing a network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No such network.
    #[error("there is no network {0:?}: create it first, or use `bridge`, `host` or `none`")]
    NotFound(String),
    /// The name is taken.
    #[error("a network {0:?} exists already: choose another name, or remove it first")]
    Exists(String),
    /// Somebody uses it.
    #[error("network {name:?} is in use by {}: disconnect or remove them first", .holders.join(", "))]
    InUse {
        /// Which.
        name: String,
        /// By whom.
        holders: Vec<String>,
    },
    /// The input makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Every subnet of the pool is taken.
    #[error("no subnet is free in 10.89.0.0/16 to 10.127.0.0/16: name one with --subnet")]
    NoSubnet,
    /// The subnet overlaps another.
    #[error("subnet {subnet} overlaps {with}: choose another")]
    Overlap {
        /// Which.
        subnet: String,
        /// A network or a route of the host.
        with: String,
    },
    /// The kernel refused.
    #[error("cannot {step}")]
    Kernel {
        /// What was attempted.
        step: String,
        /// Why.
        source: io::Error,
    },
    /// The records could not be written.
    #[error("cannot record the networks")]
    State(#[from] store::state::StateError),
}

/// Why attaching or detaching failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// No such sandbox, or it has no network of its own.
    #[error("{0:?} has no network here: it does not run, or uses the host's network")]
    NoSandbox(String),
    /// It is there already.
    #[error("{sandbox:?} is already on network {network:?}")]
    AlreadyThere {
        /// Who.
        sandbox: String,
        /// Where.
        network: String,
    },
    /// No address left.
    #[error("network {network:?} has no free address in {subnet}: remove containers, or create a larger network")]
    Exhausted {
        /// Which.
        network: String,
        /// Its subnet.
        subnet: String,
    },
    /// The requested address is another's.
    #[error("address {address} on network {network:?} is in use by {holder}: choose another")]
    AddressTaken {
        /// Which.
        address: IpAddr,
        /// Where.
        network: String,
        /// By whom.
        holder: String,
    },
    /// The requested address is not of the subnet.
    #[error("address {address} is not one that network {network:?} can give: its subnet is {subnet}")]
    AddressOutside {
        /// Which.
        address: IpAddr,
        /// Where.
        network: String,
        /// Its subnet.
        subnet: String,
    },
    /// The port is another's.
    #[error("port {port}/{protocol} of {address} is held by {holder}: choose another host port, or stop {holder}")]
    PortTaken {
        /// Which.
        port: u16,
        /// tcp, udp, sctp.
        protocol: &'static str,
        /// Where.
        address: String,
        /// A container, or a process of the host.
        holder: String,
    },
    /// The port cannot be bound for another reason.
    #[error("port {port}/{protocol} of {address} cannot be published")]
    PortRefused {
        /// Which.
        port: u16,
        /// tcp, udp, sctp.
        protocol: &'static str,
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// A plugin failed.
    #[error(transparent)]
    Cni(#[from] CniError),
}

impl NetworkError {
    pub(super) fn kernel(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Kernel { step, source }
    }

    /// The code told over the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Exists(_) | Self::InUse { .. } | Self::Overlap { .. } => "conflict",
            Self::Invalid(_) => "invalid",
            Self::NoSubnet => "unavailable",
            Self::Kernel { .. } => "platform",
            Self::State(_) => "internal",
        }
    }

    /// Whether the same call, unchanged, may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NoSubnet | Self::InUse { .. })
    }
}

impl AttachError {
    /// The code told over the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Network(error) => error.code(),
            Self::NoSandbox(_) => "not_found",
            Self::AlreadyThere { .. } | Self::AddressTaken { .. } | Self::PortTaken { .. } => "conflict",
            Self::AddressOutside { .. } => "invalid",
            Self::Exhausted { .. } => "unavailable",
            Self::PortRefused { .. } => "platform",
            Self::Cni(error) => error.code(),
        }
    }

    /// Whether the same call, unchanged, may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Network(error) => error.is_transient(),
            Self::Cni(error) => error.is_transient(),
            Self::Exhausted { .. } | Self::AddressTaken { .. } | Self::PortTaken { .. } => true,
            _ => false,
        }
    }
}

/// `tcp`, `udp` or `sctp`.
pub(super) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}
