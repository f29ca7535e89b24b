//! What people write behind Docker's flags, read by pure functions. Every refusal says what was written and what would do.

mod amounts;
mod environment;
mod limits;
mod mounts;
mod names;
mod ports;
mod times;

pub use amounts::{bytes, cpus, swap};
pub use environment::{env_file, env_of, label};
pub use limits::{device, device_rate, security, ulimit};
pub use mounts::{mount, tmpfs, volume};
pub use names::{detach_keys, filters, host_entry, ipc, namespace, network, restart, userns};
pub use ports::{exposed, ports};
pub use times::{moment, seconds};
