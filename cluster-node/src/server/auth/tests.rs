//! Decisions, against a delegate that counts what it is asked.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper::Method;

use super::{AccessReview, Delegate, DelegateError, Judge, User, Verdict, subresources, verb};

#[derive(Default)]
struct Fake {
    tokens: BTreeMap<String, String>,
    allowed: Mutex<Vec<(String, &'static str, &'static str)>>,
    down: AtomicBool,
    asked: AtomicUsize,
}

impl Fake {
    fn ask(&self) -> Result<(), DelegateError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(DelegateError::Unreachable("no route".into()));
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

struct Handle(Arc<Fake>);

impl Delegate for Handle {
    fn token(&self, token: String) -> BoxFuture<'_, Result<Option<User>, DelegateError>> {
        Box::pin(async move {
            self.0.ask()?;
            let name = self.0.tokens.get(&token);
            Ok(name.map(|name| User { name: name.clone(), ..User::default() }))
        })
    }

    fn access(&self, user: User, review: AccessReview) -> BoxFuture<'_, Result<bool, DelegateError>> {
        Box::pin(async move {
            self.0.ask()?;
            assert_eq!(review.node, "board-1");
            Ok(self.0.allowed.lock().unwrap().contains(&(user.name, review.verb, review.subresource)))
        })
    }
}

fn judge(fake: Fake) -> (Judge, Arc<Fake>) {
    let fake = Arc::new(fake);
    (Judge::new("board-1".into(), Arc::new(Handle(fake.clone()))), fake)
}

fn user(name: &str, groups: &[&str]) -> User {
    User { name: name.into(), groups: groups.iter().map(|group| (*group).to_owned()).collect(), ..User::default() }
}

#[test]
fn paths_have_subresources() {
    #[track_caller]
    fn check(path: &str, want: &[&str]) {
        assert_eq!(subresources(path), want, "{path}");
    }
    check("/pods", &["pods", "proxy"]);
    check("/pods/", &["pods", "proxy"]);
    check("/podsy", &["proxy"]);
    check("/runningpods/", &["pods", "proxy"]);
    check("/healthz", &["healthz", "proxy"]);
    check("/healthz/syncloop", &["healthz", "proxy"]);
    check("/configz", &["configz", "proxy"]);
    check("/flagz", &["configz"]);
    check("/statusz", &["statusz"]);
    check("/stats/summary", &["stats"]);
    check("/metrics", &["metrics"]);
    check("/metrics/cadvisor", &["metrics"]);
    check("/logs/syslog", &["log"]);
    check("/checkpoint/a/b/c", &["checkpoint"]);
    check("/exec/a/b/c", &["proxy"]);
    check("/containerLogs/a/b/c", &["proxy"]);
    check("/", &["proxy"]);
    check("", &["proxy"]);
}

#[test]
fn methods_have_verbs() {
    assert_eq!(verb(&Method::GET), Some("get"));
    assert_eq!(verb(&Method::POST), Some("create"));
    assert_eq!(verb(&Method::DELETE), Some("delete"));
    assert_eq!(verb(&Method::OPTIONS), None);
    assert_eq!(verb(&Method::from_bytes(b"BREW").unwrap()), None);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_reviewed_once_in_two_minutes_and_stands_while_nobody_can_be_asked() {
    let tokens = [("good".to_owned(), "ann".to_owned())].into();
    let (judge, fake) = judge(Fake { tokens, ..Fake::default() });
    for _ in 0..3 {
        assert_eq!(judge.bearer(Some("Bearer good")).await.unwrap().name, "ann");
        assert_eq!(judge.bearer(Some("Bearer bad")).await, None);
    }
    assert_eq!(fake.asked.load(Ordering::SeqCst), 2);
    assert_eq!(judge.bearer(None).await, None);
    tokio::time::advance(Duration::from_secs(121)).await;
    assert!(judge.bearer(Some("Bearer good")).await.is_some());
    assert_eq!(fake.asked.load(Ordering::SeqCst), 3);
    fake.down.store(true, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert!(judge.bearer(Some("Bearer good")).await.is_some());
    assert_eq!(judge.bearer(Some("Bearer bad")).await, None);
    assert_eq!(judge.bearer(Some("Bearer never seen")).await, None);
}

#[tokio::test(start_paused = true)]
async fn access_is_what_the_cluster_says() {
    let allowed = vec![("ann".into(), "get", "metrics"), ("bob".into(), "get", "proxy"), ("eve".into(), "get", "pods")];
    let (judge, fake) = judge(Fake { allowed: Mutex::new(allowed), ..Fake::default() });
    let may = async |name: &str, groups: &[&str], method: Method, path: &str| {
        let verdict = judge.access(&user(name, groups), verb(&method).unwrap(), subresources(path)).await;
        verdict == Verdict::Allowed
    };
    assert!(may("ann", &[], Method::GET, "/metrics/resource").await);
    assert!(!may("ann", &[], Method::POST, "/metrics/resource").await);
    assert!(!may("ann", &[], Method::GET, "/pods").await);
    assert!(may("bob", &[], Method::GET, "/pods").await, "proxy is everything");
    assert!(!may("bob", &[], Method::GET, "/stats/summary").await, "but what has a name of its own");
    assert!(may("eve", &[], Method::GET, "/runningpods/").await);
    assert!(!may("eve", &[], Method::GET, "/exec/a/b/c").await);
    let asked = fake.asked.load(Ordering::SeqCst);
    assert!(may("root", &["system:masters"], Method::POST, "/exec/a/b/c").await);
    assert_eq!(fake.asked.load(Ordering::SeqCst), asked, "masters are not asked about");
}

#[tokio::test(start_paused = true)]
async fn permissions_stand_five_minutes_and_refusals_half_a_minute() {
    let (judge, fake) = judge(Fake { allowed: Mutex::new(vec![("ann".into(), "get", "metrics")]), ..Fake::default() });
    let ann = user("ann", &[]);
    let ask = async || judge.access(&ann, "get", &["metrics"]).await;
    let refused = async || judge.access(&ann, "get", &["log"]).await;
    assert_eq!((ask().await, refused().await), (Verdict::Allowed, Verdict::Denied));
    fake.allowed.lock().unwrap().clear();
    fake.allowed.lock().unwrap().push(("ann".into(), "get", "log"));
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!((ask().await, refused().await), (Verdict::Allowed, Verdict::Denied));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!((ask().await, refused().await), (Verdict::Allowed, Verdict::Allowed));
    tokio::time::advance(Duration::from_secs(300)).await;
    assert_eq!((ask().await, refused().await), (Verdict::Denied, Verdict::Allowed));
}

#[tokio::test(start_paused = true)]
async fn without_the_api_server_its_own_identity_and_the_last_verdicts_stand() {
    let (judge, fake) = judge(Fake { allowed: Mutex::new(vec![("ann".into(), "get", "metrics")]), ..Fake::default() });
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    judge.access(&ann, "get", &["metrics"]).await;
    judge.access(&ann, "get", &["log"]).await;
    fake.down.store(true, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(judge.access(&ann, "get", &["metrics"]).await, Verdict::Allowed);
    assert_eq!(judge.access(&ann, "get", &["log"]).await, Verdict::Denied);
    assert_eq!(judge.access(&bob, "get", &["metrics"]).await, Verdict::Denied);
    let server = user("kube-apiserver-kubelet-client", &["kubeadm:cluster-admins"]);
    assert_eq!(judge.access(&server, "create", &["proxy"]).await, Verdict::Allowed);
    fake.down.store(false, Ordering::SeqCst);
    assert_eq!(judge.access(&server, "create", &["proxy"]).await, Verdict::Denied, "asked again, the cluster says no");
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_bounded() {
    let mut cache = super::cache::Cache::new(3);
    for number in 0..10 {
        tokio::time::advance(Duration::from_secs(1)).await;
        cache.put(number, number, Duration::from_secs(100), tokio::time::Instant::now());
    }
    let left: Vec<i32> = (0..10).filter(|key| cache.get(key, tokio::time::Instant::now()).is_some()).collect();
    assert_eq!(left, [7, 8, 9]);
}
