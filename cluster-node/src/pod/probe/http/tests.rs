//! Tests of requests and redirects, and of answers over the loopback.

use k8s_openapi::{api::core::v1::HTTPHeader, apimachinery::pkg::util::intstr::IntOrString};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use super::*;

fn action(path: &str, headers: &[(&str, &str)]) -> HTTPGetAction {
    let header = |(name, value): &(&str, &str)| HTTPHeader { name: (*name).into(), value: (*value).into() };
    HTTPGetAction {
        path: Some(path.into()),
        port: IntOrString::Int(8080),
        http_headers: Some(headers.iter().map(header).collect()),
        ..HTTPGetAction::default()
    }
}

fn asked(path: &str, headers: &[(&str, &str)]) -> Get {
    Get::of(&action(path, headers), &Container::default(), "10.0.0.1", Purpose::Probe).unwrap()
}

#[test]
fn paths_become_targets() {
    #[track_caller]
    fn check(path: &str, want: &str) {
        assert_eq!(target(path), want);
    }
    check("", "/");
    check("healthz", "/healthz");
    check("/a?b=c&d#e", "/a?b=c&d");
    check("/a b", "/a%20b");
    check("/a\r\nX: y", "/a%0D%0AX:%20y");
    check("http://other/x", "/x");
    check("http://other", "/");
    check("/redirect?to=http://other/x", "/redirect?to=http://other/x");
}

#[test]
fn headers_are_those_of_the_kubelet() {
    let get = asked("/", &[]);
    assert_eq!(get.headers[header::USER_AGENT], "kube-probe/1.36");
    assert_eq!(get.headers[header::ACCEPT], "*/*");
    assert_eq!(get.url(), "http://10.0.0.1:8080/");
    let get = asked("/", &[("Host", "a.b"), ("user-agent", "mine"), ("Accept", ""), ("X", "1"), ("X", "2")]);
    assert_eq!(get.host_header.as_deref(), Some("a.b"));
    assert_eq!(get.headers[header::USER_AGENT], "mine");
    assert!(!get.headers.contains_key(header::ACCEPT), "an empty one takes the default away");
    assert_eq!(get.headers.get_all("x").iter().count(), 2);
    let wrong = Get::of(&action("/", &[("a b", "c")]), &Container::default(), "::1", Purpose::Probe);
    assert!(matches!(wrong, Err(HttpError::Header(_))));
    let six = Get::of(&action("/", &[]), &Container::default(), "::1", Purpose::Lifecycle).unwrap();
    assert_eq!(six.url(), "http://[::1]:8080/");
}

#[test]
fn redirects_stay_on_the_host() {
    #[track_caller]
    fn check(location: &str, want: Option<&str>) {
        let from = asked("/a/b?c", &[]);
        assert_eq!(from.redirected(location).map(|get| get.url()).as_deref(), want, "{location}");
    }
    check("/x", Some("http://10.0.0.1:8080/x"));
    check("x", Some("http://10.0.0.1:8080/a/x"));
    check("?x", Some("http://10.0.0.1:8080/a/b?x"));
    check("http://10.0.0.1:81/x", Some("http://10.0.0.1:81/x"));
    check("https://10.0.0.1/x", Some("https://10.0.0.1:443/x"));
    check("//10.0.0.1/x", Some("http://10.0.0.1:80/x"));
    check("http://elsewhere/x", None);
    check("//elsewhere/x", None);
    check("file:///etc/passwd", None);
}

/// A server that gives `answer` to each connection, and what it was sent.
async fn server(answer: String) -> (u16, JoinSet<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut heads = Vec::new();
        while let Ok(Ok((mut socket, _))) = tokio::time::timeout(Duration::from_millis(500), listener.accept()).await {
            let (mut head, mut piece) = (Vec::new(), [0; 1024]);
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                match socket.read(&mut piece).await {
                    Ok(read) if read > 0 => head.extend_from_slice(&piece[..read]),
                    _ => break,
                }
                if head.first() == Some(&0x16) {
                    break; // A TLS greeting.
                }
            }
            heads.push(String::from_utf8_lossy(&head).into_owned());
            let _ = socket.write_all(answer.as_bytes()).await;
            let _ = socket.shutdown().await;
        }
        heads
    });
    (port, tasks)
}

fn to(port: u16) -> Get {
    Get { host: "127.0.0.1".into(), port, ..asked("/healthz", &[("Host", "board.example")]) }
}

const LIMIT: Option<Duration> = Some(Duration::from_secs(5));

#[tokio::test]
async fn an_answer_is_read_up_to_its_limit() {
    let body = "x".repeat(3 * MAX_OUTPUT);
    let (port, mut served) = server(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    let answer = get(&to(port), LIMIT).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, MAX_OUTPUT));
    let heads = served.join_next().await.unwrap().unwrap();
    let head = heads[0].to_lowercase();
    for line in ["get /healthz http/1.1", "host: board.example", "user-agent: kube-probe/1.36", "connection: close"] {
        assert!(head.contains(line), "{line} in {head}");
    }
}

#[tokio::test]
async fn circles_and_strangers_are_not_followed() {
    let (port, mut served) = server("HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n".into()).await;
    assert!(matches!(get(&to(port), LIMIT).await, Err(HttpError::Redirects { .. })));
    assert_eq!(served.join_next().await.unwrap().unwrap().len(), MAX_REQUESTS);
    let (port, mut served) = server("HTTP/1.1 302 Found\r\nLocation: http://stranger.example/\r\n\r\nhi".into()).await;
    let answer = get(&to(port), LIMIT).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (302, "hi"));
    assert_eq!(served.join_next().await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn plain_answers_to_tls_are_told_apart() {
    let (port, _served) = server("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".into()).await;
    let error = get(&Get { tls: true, ..to(port) }, LIMIT).await.unwrap_err();
    assert!(matches!(error, HttpError::Plain { .. }), "{error}");
}

#[tokio::test]
async fn nobody_there_and_nobody_answering() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = get(&to(port), Some(Duration::from_millis(100))).await.unwrap_err();
    assert!(error.to_string().ends_with("(Client.Timeout exceeded while awaiting headers)"), "{error}");
    drop(listener);
    let error = get(&to(port), LIMIT).await.unwrap_err().to_string();
    assert!(error.ends_with(&format!("dial tcp 127.0.0.1:{port}: connect: connection refused")), "{error}");
}
