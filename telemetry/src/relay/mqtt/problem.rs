//! What is wrong with the way to the core, and what to do: one line each, for `status`.

use std::{error::Error, io};

use board::tasks::chain;
use rumqttc::{ConnectReturnCode, ConnectionError};
use rustls::{AlertDescription, CertificateError};

use super::session::SessionError;

/// Problem and remedy.
pub(super) fn explain(error: &SessionError, address: &str) -> (String, String) {
    if let Some(tls) = find_tls(error) {
        return explain_tls(tls, address);
    }
    match error {
        SessionError::Tls(_) => (chain(error), "correct relay.mqtt's ca_file, cert_file and key_file".into()),
        SessionError::Subscription(_) => {
            (error.to_string(), "allow it in the core's access list, or correct relay.mqtt.downlink".into())
        }
        SessionError::Silent => {
            (format!("{address}: {error}"), "look at the core's log: it may be out of disk or memory".into())
        }
        SessionError::Read(_) | SessionError::Save(_) | SessionError::Encode(_) => {
            (chain(error), "check the disk with `edge-agent doctor`".into())
        }
        SessionError::Closed => (format!("{address} closed the connection"), "look at the core's log".into()),
        SessionError::Connection(inner) => explain_connection(inner, address),
    }
}

fn explain_connection(error: &ConnectionError, address: &str) -> (String, String) {
    use ConnectReturnCode as Code;
    match error {
        ConnectionError::ConnectionRefused(Code::BadUserNamePassword | Code::NotAuthorized) => (
            format!("{address} refuses this board's login"),
            "correct relay.mqtt.username and password, or the client certificate".into(),
        ),
        ConnectionError::ConnectionRefused(code) => {
            (format!("{address} refuses the connection: {code:?}"), "look at the core's log".into())
        }
        ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => {
            (format!("{address} does not answer"), "check the link, and that a firewall lets this port through".into())
        }
        _ => match find_io(error).map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => {
                (format!("nothing listens on {address}"), "start the core's broker, or correct relay.mqtt.url".into())
            }
            _ => (
                format!("no connection to {address}: {}", chain(error)),
                "check the link and relay.mqtt.url; it is tried again by itself".into(),
            ),
        },
    }
}

fn explain_tls(error: &rustls::Error, address: &str) -> (String, String) {
    use AlertDescription as Alert;
    let (problem, remedy) = match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            ("shows a certificate of an unknown CA".to_owned(), "give the CA that signed it as relay.mqtt.ca_file")
        }
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            ("shows an expired certificate".to_owned(), "renew it at the core; check this board's clock too")
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => ("shows a certificate that is not valid yet".to_owned(), "check this board's clock"),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => ("shows a certificate for another name".to_owned(), "correct the host in relay.mqtt.url"),
        rustls::Error::AlertReceived(Alert::CertificateExpired) => {
            ("says that this board's certificate has expired".to_owned(), "renew relay.mqtt.cert_file")
        }
        rustls::Error::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) => (
            "wants a client certificate".to_owned(),
            "give one as relay.mqtt.cert_file and key_file, signed by a CA that the core knows",
        ),
        rustls::Error::AlertReceived(
            Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown | Alert::AccessDenied,
        ) => (
            format!("does not accept this board's certificate ({error})"),
            "give one signed by a CA that the core knows as relay.mqtt.cert_file",
        ),
        _ => (format!("does not agree on TLS: {error}"), "check that this port speaks TLS 1.2 or 1.3"),
    };
    (format!("{address} {problem}"), remedy.to_owned())
}

/// The TLS error among the causes. It may sit inside an I/O error, which does not name it as its source.
fn find_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>())
}

fn find_io<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    causes(error).find_map(|cause| cause.downcast_ref::<io::Error>())
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| next_cause(*error))
}

fn next_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return Some(inner);
    }
    match error.downcast_ref::<Box<ConnectionError>>() {
        Some(boxed) => Some(&**boxed),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use rumqttc::StateError;

    use super::*;

    #[track_caller]
    fn check(error: ConnectionError, problem: &str, remedy: &str) {
        let (said, told) = explain(&error.into(), "core:8883");
        assert!(said.contains(problem), "{said}");
        assert!(told.contains(remedy), "{told}");
    }

    fn tls(error: rustls::Error) -> ConnectionError {
        io::Error::new(io::ErrorKind::InvalidData, error).into()
    }

    #[test]
    fn every_problem_has_its_remedy() {
        check(
            ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized),
            "refuses this board's login",
            "username",
        );
        check(io::Error::from(io::ErrorKind::ConnectionRefused).into(), "nothing listens", "start");
        check(ConnectionError::NetworkTimeout, "does not answer", "firewall");
        check(StateError::ConnectionAborted.into(), "no connection to core:8883", "check the link");
        check(tls(CertificateError::UnknownIssuer.into()), "unknown CA", "ca_file");
        check(tls(CertificateError::Expired.into()), "expired", "renew");
        check(
            tls(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)),
            "board's certificate",
            "cert_file",
        );
    }

    #[test]
    fn a_tls_alert_after_the_handshake_is_found() {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        let io = io::Error::new(io::ErrorKind::InvalidData, alert);
        let state = StateError::Deserialization(rumqttc::Error::Io(io));
        check(state.into(), "wants a client certificate", "cert_file");
    }
}
