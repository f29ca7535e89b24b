//! The kubelet's HTTPS API: logs, exec, attach, port-forward, statistics and metrics.
//!
//! The way of a request: `tls` makes a connection of a socket and knows the peer's certificate, `auth` says who asks and
//! whether he may, `route` what is asked for; `logs`, `remote`, `forward`, `stats` and `pods` answer.
//!
//! Always true:
//! - Nobody is anonymous: without a certificate of the cluster's CA or a token that the API server vouches for there is
//!   no answer but 401, for any path.
//! - Everything a peer can make grow has a bound: connections, headers, bodies, streams, windows, frames, caches.
//!
//! Elsewhere: what a pod is (`pod`); who has signed the serving certificate (`join`); containers (the engine).

mod answer;
mod auth;
mod directory;
mod door;
mod forward;
mod health;
mod listen;
mod logs;
mod pods;
mod query;
mod remote;
mod route;
mod runtime;
mod service;
mod spdy;
mod stats;
mod tls;
mod upgrade;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use board::tasks::Context;
use container_engine::engine::Engine;
use rustls::{ServerConfig, server::ResolvesServerCert};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;

pub use auth::{AccessReview, Delegate, DelegateError, User};
pub use directory::{Directory, Instance, Instances, NoNetwork, VolumeDir};
pub use listen::BindError;
pub use runtime::{Command, Input, Process, Runtime, Said};
pub use tls::TlsError;

use crate::options::Options;

use self::{
    auth::Judge,
    service::{Service, Sources},
    stats::{Observer, Places},
};

/// What the server is told.
pub struct Config {
    /// The node's name.
    pub node: String,
    /// Where the cluster asks: `0.0.0.0:10250`.
    pub listen: SocketAddr,
    /// Where the board itself asks for the health, in plain; nowhere where absent.
    pub healthz: Option<SocketAddr>,
    /// What is shown at each TLS connection.
    pub serving: Arc<dyn ResolvesServerCert>,
    /// Who signs the certificates of clients.
    pub client_ca: Vec<CertificateDer<'static>>,
    /// On the node's file system: `/var/lib/kubelet`.
    pub node_dir: PathBuf,
    /// On that of images and containers: the data directory.
    pub image_dir: PathBuf,
    /// `/var/log`.
    pub log_dir: PathBuf,
    /// A `KubeletConfiguration` as it is in force, for `/configz`.
    pub configuration: serde_json::Value,
    /// The agent's own metrics.
    pub metrics: board::metrics::Metrics,
    /// Those of probes, in the text format of Prometheus.
    pub probes: Arc<dyn Fn() -> String + Send + Sync>,
}

impl Config {
    /// Of the node's options; what the agent counts, and what its probes do, is given apart.
    pub fn of(
        options: &Options,
        serving: Arc<dyn ResolvesServerCert>,
        client_ca: Vec<CertificateDer<'static>>,
        configuration: serde_json::Value,
        metrics: board::metrics::Metrics,
        probes: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> Self {
        Self {
            node: options.name.clone(),
            listen: options.listen,
            healthz: options.healthz,
            serving,
            client_ca,
            node_dir: options.kubelet_dir.clone(),
            image_dir: options.data_dir.clone(),
            log_dir: options.log_dir.clone(),
            configuration,
            metrics,
            probes,
        }
    }
}

/// There is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A listener.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// The bound server; cheap to clone.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    node: String,
    listener: Arc<TcpListener>,
    plain: Option<Arc<TcpListener>>,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    configuration: serde_json::Value,
    directory: Arc<dyn Directory>,
    runtime: Arc<dyn Runtime>,
    delegate: Arc<dyn Delegate>,
    observer: Arc<Observer>,
}

/// How long sessions may take to end when the server stops.
const FAREWELL: Duration = Duration::from_secs(2);

impl Server {
    /// Binds, so that a mistake shows at start.
    pub async fn bind(
        config: Config,
        directory: Arc<dyn Directory>,
        engine: Engine,
        delegate: Arc<dyn Delegate>,
    ) -> Result<Self, ServerError> {
        Self::over(config, directory, Arc::new(engine), delegate).await
    }

    /// The same over whatever runs containers.
    pub async fn over(
        config: Config,
        directory: Arc<dyn Directory>,
        runtime: Arc<dyn Runtime>,
        delegate: Arc<dyn Delegate>,
    ) -> Result<Self, ServerError> {
        let tls = tls::config(config.serving, &config.client_ca)?;
        let listener = listen::bind(config.listen, "the node's API", "node.listen").await?;
        let address = listener.local_addr().unwrap_or(config.listen);
        let plain = match config.healthz {
            Some(healthz) => Some(Arc::new(listen::bind(healthz, "the node's health page", "node.healthz").await?)),
            None => None,
        };
        let places = Places {
            node: config.node.clone(),
            node_dir: config.node_dir,
            image_dir: config.image_dir,
            log_dir: config.log_dir,
            metrics: config.metrics,
            probes: config.probes,
        };
        let observer = Arc::new(Observer::new(directory.clone(), runtime.clone(), places));
        Ok(Self(Arc::new(Inner {
            node: config.node,
            listener: Arc::new(listener),
            plain,
            address,
            tls,
            configuration: config.configuration,
            directory,
            runtime,
            delegate,
            observer,
        })))
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.address
    }

    /// Serves until stopped; sessions end then.
    pub async fn run(self, context: Context) -> Result<(), std::convert::Infallible> {
        let inner = &self.0;
        let judge = Judge::new(inner.node.clone(), inner.delegate.clone());
        let sources = Sources {
            directory: inner.directory.clone(),
            runtime: inner.runtime.clone(),
            observer: inner.observer.clone(),
            configuration: inner.configuration.clone(),
        };
        let service = Arc::new(Service::new(judge, sources, context.stop.clone()));
        context.healthy(format!("https://{}/", inner.address));
        let plain = async {
            if let Some(listener) = &inner.plain {
                listen::plain(listener.clone(), service.clone(), &context).await;
            }
        };
        let https = listen::https(inner.listener.clone(), inner.tls.clone(), service.clone(), &context);
        tokio::join!(https, plain);
        if tokio::time::timeout(FAREWELL, service.ended()).await.is_err() {
            tracing::warn!("sessions with this node's pods did not end in time");
        }
        Ok(())
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
