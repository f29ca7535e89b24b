//! Why a plugin, or the configuration for it, failed.

use std::io;

/// Why a plugin, or the configuration for it, failed.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no configuration.
    #[error("{dir} has no valid CNI configuration{}: put a .conflist there, or take [engine.cni] out of the configuration", .problem.as_deref().map(|why| format!(" ({why})")).unwrap_or_default())]
    NotConfigured {
        /// Where.
        dir: String,
        /// What is wrong with the first file.
        problem: Option<String>,
    },
    /// No such program.
    #[error("CNI plugin {plugin:?} is in none of {dirs}: install it")]
    NoPlugin {
        /// `type` in the configuration.
        plugin: String,
        /// Where it was looked for.
        dirs: String,
    },
    /// It said why.
    #[error("CNI plugin {plugin:?} of network {network:?} refused {command}: {message} (code {code})")]
    Refused {
        /// `type` in the configuration.
        plugin: String,
        /// Name of the list.
        network: String,
        /// ADD, DEL, …
        command: &'static str,
        /// The plugin's words.
        message: String,
        /// The plugin's code.
        code: u32,
    },
    /// It took too long.
    #[error("CNI plugin {plugin:?} did not finish {command} within {seconds} s and was killed")]
    TimedOut {
        /// `type` in the configuration.
        plugin: String,
        /// ADD, DEL, …
        command: &'static str,
        /// How long.
        seconds: u64,
    },
    /// What it printed is no result.
    #[error("CNI plugin {plugin:?} answered {command} with what is no result: {problem}")]
    Nonsense {
        /// `type` in the configuration.
        plugin: String,
        /// ADD, DEL, …
        command: &'static str,
        /// Why.
        problem: String,
    },
    /// A file or process could not be had.
    #[error("cannot {step}")]
    Io {
        /// What was attempted.
        step: String,
        /// Why.
        source: io::Error,
    },
}

impl CniError {
    /// The code told over the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotConfigured { .. } | Self::TimedOut { .. } => "unavailable",
            Self::NoPlugin { .. } => "not_found",
            Self::Refused { .. } | Self::Nonsense { .. } | Self::Io { .. } => "platform",
        }
    }

    /// Whether the same call, unchanged, may succeed later; CNI code 11 means "try again".
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NotConfigured { .. } | Self::TimedOut { .. } | Self::Refused { code: 11 | 50 | 51, .. })
    }
}
