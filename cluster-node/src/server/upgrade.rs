//! From HTTP to another protocol: which one, and in which version.

use hyper::{
    HeaderMap, StatusCode,
    header::{
        CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
    },
};

use super::answer::{self, Answer};

/// Versions that the client offers, and the one that was chosen.
const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Versions that would have been accepted.
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// Most offers that are looked at.
const MAX_OFFERS: usize = 32;

/// What a client wants to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// SPDY/3.1.
    Spdy,
    /// WebSocket.
    WebSocket,
}

/// A protocol that both speak.
#[derive(Debug)]
pub struct Agreed {
    /// Its version: one of those offered; empty where the client named none and none is needed.
    pub version: &'static str,
    /// The answer with which it begins.
    pub answer: Answer,
}

/// What the client wants; an answer where that is nothing we speak.
pub fn wants(headers: &HeaderMap) -> Result<Wants, Answer> {
    let has = |name: HeaderName, word: &str| {
        headers
            .get_all(name)
            .iter()
            .any(|value| value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains(word)))
    };
    if has(CONNECTION, "upgrade") && has(UPGRADE, "websocket") {
        return Ok(Wants::WebSocket);
    }
    if has(CONNECTION, "upgrade") && has(UPGRADE, "spdy/3.1") {
        return Ok(Wants::Spdy);
    }
    let problem = "unable to upgrade: missing upgrade headers in request: SPDY/3.1 and websocket are spoken here";
    Err(answer::text(StatusCode::BAD_REQUEST, problem))
}

/// Agrees on a version of what runs over SPDY: the first of the client's that we speak.
pub fn spdy(headers: &HeaderMap, spoken: &[&'static str]) -> Result<Agreed, Answer> {
    let offers = offers(headers, VERSION);
    if offers.is_empty() {
        let problem = format!(
            "unable to upgrade: header X-Stream-Protocol-Version does not name a protocol; {spoken:?} are spoken here"
        );
        return Err(answer::text(StatusCode::BAD_REQUEST, problem));
    }
    let Some(version) = common(&offers, spoken) else {
        let problem = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offers:?}, server accepts {spoken:?}"
        );
        let mut refusal = answer::text(StatusCode::FORBIDDEN, problem);
        for version in spoken {
            refusal.headers_mut().append(ACCEPTED, HeaderValue::from_static(version));
        }
        return Err(refusal);
    };
    let answer = answer::switching(&[
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("SPDY/3.1")),
        (VERSION, HeaderValue::from_static(version)),
    ]);
    Ok(Agreed { version, answer })
}

/// The same over WebSocket. A client that offers nothing is spoken to in the oldest way.
pub fn websocket(headers: &HeaderMap, spoken: &[&'static str]) -> Result<Agreed, Answer> {
    let refuse = |problem: String| Err(answer::text(StatusCode::BAD_REQUEST, problem));
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return refuse("unable to upgrade websocket connection: there is no Sec-WebSocket-Key".to_owned());
    };
    if headers.get("sec-websocket-version").is_none_or(|version| version != "13") {
        return refuse("unable to upgrade websocket connection: version 13 is spoken here".to_owned());
    }
    let offers = offers(headers, SEC_WEBSOCKET_PROTOCOL);
    let version = if offers.is_empty() { Some("") } else { common(&offers, spoken) };
    let Some(version) = version else {
        return refuse(format!(
            "unable to upgrade websocket connection: requested protocol(s) are not supported: {offers:?}; supports {spoken:?}"
        ));
    };
    let Ok(accept) = HeaderValue::from_str(&accept_key(key.as_bytes())) else {
        return refuse("unable to upgrade websocket connection: the Sec-WebSocket-Key is not one".to_owned());
    };
    let mut reply = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
    ];
    if !version.is_empty() {
        reply.push((SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(version)));
    }
    Ok(Agreed { version, answer: answer::switching(&reply) })
}

/// RFC 6455, 4.2.2.
fn accept_key(key: &[u8]) -> String {
    use base64::Engine as _;
    let mut context = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(context.finish().as_ref())
}

fn offers(headers: &HeaderMap, name: HeaderName) -> Vec<String> {
    let values = headers.get_all(name);
    let words = values.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    words.map(str::trim).filter(|word| !word.is_empty()).take(MAX_OFFERS).map(str::to_owned).collect()
}

fn common(offers: &[String], spoken: &[&'static str]) -> Option<&'static str> {
    offers.iter().find_map(|offer| spoken.iter().find(|spoken| *spoken == offer)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    const SPOKEN: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io"];

    #[test]
    fn wishes_are_understood() {
        let of = |connection, upgrade| wants(&headers(&[("connection", connection), ("upgrade", upgrade)])).ok();
        assert_eq!(of("Upgrade", "SPDY/3.1"), Some(Wants::Spdy));
        assert_eq!(of("keep-alive, Upgrade", "websocket"), Some(Wants::WebSocket));
        assert_eq!(of("close", "websocket"), None);
        assert_eq!(of("Upgrade", "h2c"), None);
        assert_eq!(wants(&HeaderMap::new()).unwrap_err().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn versions_are_agreed_on() {
        #[track_caller]
        fn check(offers: &[&str], want: Result<&str, u16>) {
            let pairs: Vec<_> = offers.iter().map(|offer| ("x-stream-protocol-version", *offer)).collect();
            let got = spdy(&headers(&pairs), SPOKEN);
            assert_eq!(got.map(|agreed| agreed.version).map_err(|answer| answer.status().as_u16()), want);
        }
        check(&["v4.channel.k8s.io"], Ok("v4.channel.k8s.io"));
        check(&["v5.channel.k8s.io", "v3.channel.k8s.io, v4.channel.k8s.io"], Ok("v3.channel.k8s.io"));
        check(&["v9"], Err(403));
        check(&[], Err(400));
        check(&[" , "], Err(400));
        let refusal = spdy(&headers(&[("x-stream-protocol-version", "v9")]), SPOKEN).unwrap_err();
        assert_eq!(refusal.headers().get_all(ACCEPTED).iter().count(), 2);
    }

    #[test]
    fn a_websocket_is_answered_as_the_standard_says() {
        let request = [
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io"),
        ];
        let agreed = websocket(&headers(&request), SPOKEN).unwrap();
        assert_eq!(agreed.version, "v4.channel.k8s.io");
        assert_eq!(agreed.answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(agreed.answer.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(agreed.answer.headers()[SEC_WEBSOCKET_PROTOCOL], "v4.channel.k8s.io");
        let plain = websocket(&headers(&request[..2]), SPOKEN).unwrap();
        assert_eq!((plain.version, plain.answer.headers().get(SEC_WEBSOCKET_PROTOCOL)), ("", None));
        assert!(websocket(&headers(&request[1..]), SPOKEN).is_err());
        assert!(websocket(&headers(&[request[0], ("sec-websocket-version", "8")]), SPOKEN).is_err());
        assert!(websocket(&headers(&[request[0], request[1], ("sec-websocket-protocol", "chat")]), SPOKEN).is_err());
    }
}
