//! What goes wrong on the way to the core, and what to do about it: one line of each for `status`.
//!
//! Always true: nothing secret is in it.

use std::io;

use board::tls::TlsError;
use rustls::{AlertDescription, CertificateError};
use store::log::ReadError;

use super::packet::Malformed;

/// Why a connection did not come about, or ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// A file of ours.
    #[error(transparent)]
    Files(#[from] TlsError),
    /// No TCP, or no address for the name.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// TLS is not agreed on; also when the broker does not like our certificate and says so later.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    /// The end before a CONNACK.
    #[error("the broker hung up before it let the board in ({0})")]
    HungUp(io::Error),
    /// A CONNACK that says no.
    #[error("the broker refuses the board: {}", refusal(*.0))]
    Refused(u8),
    /// Another packet than a CONNACK.
    #[error("the broker did not greet the board as MQTT 3.1.1 has it")]
    NotGreeted,
    /// Silence.
    #[error("the broker does not answer")]
    NoAnswer,
    /// Nonsense.
    #[error("the broker is no MQTT broker: {0}")]
    Malformed(#[from] Malformed),
    /// The end of a connection that stood.
    #[error("the connection broke: {0}")]
    Io(io::Error),
    /// The outbox cannot be read.
    #[error("cannot read the outbox: {}", board::tasks::chain(.0))]
    Outbox(#[from] ReadError),
}

fn refusal(code: u8) -> String {
    match code {
        1 => "it does not speak MQTT 3.1.1".into(),
        2 => "it does not like the client identifier".into(),
        3 => "it is not available now".into(),
        4 => "bad user name or password".into(),
        5 => "not authorized".into(),
        other => format!("code {other}"),
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

impl Problem {
    /// Before the CONNACK. With TLS 1.3 the broker looks at our certificate only after the handshake.
    pub fn before_greeting(error: io::Error) -> Self {
        tls_error(&error).cloned().map_or_else(|| Self::HungUp(error), Self::Tls)
    }

    /// After it.
    pub fn broke(error: io::Error) -> Self {
        tls_error(&error).cloned().map_or_else(|| Self::Io(error), Self::Tls)
    }

    /// What to do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Files(_) => "mend the file that [relay.mqtt] names; it is read again for the next try",
            Self::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                "readings are kept; start the broker, or check the port in relay.mqtt.url"
            }
            Self::Connect(_) => "readings are kept; check the network, and the name in relay.mqtt.url",
            Self::Tls(error) => tls_remedy(error),
            Self::HungUp(_) => {
                "the broker's log says why; look at relay.mqtt.cert_file and ca_file, and whether the port wants TLS"
            }
            Self::Refused(4 | 5) => {
                "check relay.mqtt.username and password, the certificate in cert_file, and the broker's rules"
            }
            Self::Refused(3) | Self::NoAnswer | Self::Io(_) => "readings are kept; it will be tried again",
            Self::Refused(_) | Self::NotGreeted | Self::Malformed(_) => {
                "check relay.mqtt.url: host, port, and mqtt:// or mqtts://"
            }
            Self::Outbox(_) => "look at the disk with `edge-agent doctor`",
        }
    }
}

fn tls_remedy(error: &rustls::Error) -> &'static str {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(bad) => match bad {
            // A CA made anew under its old name gives a bad signature.
            Bad::UnknownIssuer | Bad::BadSignature => {
                "the broker's certificate is of an unknown CA: put that CA into relay.mqtt.ca_file"
            }
            Bad::Expired | Bad::ExpiredContext { .. } => {
                "the broker's certificate has run out: renew it there, and check the board's clock"
            }
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => "the board's clock is behind: see `edge-agent doctor`",
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                "the broker's certificate has another name: use that name in relay.mqtt.url"
            }
            _ => "the broker's certificate is not usable: check it, and relay.mqtt.ca_file",
        },
        rustls::Error::AlertReceived(Alert::CertificateExpired) => {
            "the board's certificate has run out: put a renewed one into relay.mqtt.cert_file"
        }
        rustls::Error::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) => {
            "the broker wants a client certificate: set relay.mqtt.cert_file and key_file"
        }
        rustls::Error::AlertReceived(_) => {
            "the broker does not take the board's certificate: check relay.mqtt.cert_file, and the CA that the broker trusts"
        }
        rustls::Error::InvalidMessage(_) => "that port does not speak TLS: check relay.mqtt.url",
        _ => "check relay.mqtt.url, ca_file, cert_file and key_file",
    }
}
