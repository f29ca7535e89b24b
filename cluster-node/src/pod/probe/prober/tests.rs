//! Tests of the tasks, with commands that answer as told.

use std::sync::atomic::{AtomicI32, Ordering};

use k8s_openapi::{
    api::core::v1::{ExecAction, PodSpec, Probe},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    super::{
        Before, Seen,
        exec::{Answer, Outcome},
    },
    *,
};

#[derive(Default)]
struct Told(AtomicI32);

impl Exec for Told {
    fn exec<'a>(&'a self, _: &'a str, _: &'a [String], _: Option<Duration>) -> Answer<'a> {
        let code = self.0.load(Ordering::SeqCst);
        Box::pin(async move { Ok(Outcome { code, output: format!("code {code}") }) })
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Witness for Heard {
    fn warning(&self, _: &Pod, field_path: &str, reason: &'static str, message: String) {
        self.0.lock().unwrap().push(format!("{field_path} {reason}: {message}"));
    }
}

fn pod(kinds: &[Kind]) -> Arc<Pod> {
    let exec = ExecAction { command: Some(vec!["check".into()]) };
    let probe = Probe { exec: Some(exec), failure_threshold: Some(2), ..Probe::default() };
    let probe = |kind| kinds.contains(&kind).then(|| probe.clone());
    let container = Container {
        name: "c".into(),
        liveness_probe: probe(Kind::Liveness),
        readiness_probe: probe(Kind::Readiness),
        startup_probe: probe(Kind::Startup),
        ..Container::default()
    };
    let spec = PodSpec { containers: vec![container], ..PodSpec::default() };
    Arc::new(Pod { metadata: ObjectMeta::default(), spec: Some(spec), status: None })
}

fn scene(pod: &Arc<Pod>, id: &str, before: Option<Before>) -> Scene {
    let seen = Seen { id: id.into(), life: Life::Running { started_ns: 0 }, before };
    Scene { pod: pod.clone(), ip: None, deleting: false, containers: [("c".to_owned(), seen)].into() }
}

async fn until(probes: &mut PodProbes, wanted: impl Fn(&View) -> bool) {
    let reached = async {
        while !wanted(&probes.view()) {
            probes.changed().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), reached).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_startup_probe_opens_the_way_for_the_others_and_failures_are_told() {
    let (told, heard) = (Arc::new(Told::default()), Arc::new(Heard::default()));
    let prober = Prober::new(told.clone(), heard.clone());
    let pod = pod(&Kind::ALL);
    let mut probes = prober.pod("u");
    told.0.store(1, Ordering::SeqCst);
    probes.sync(scene(&pod, "1", None));
    assert!(!probes.view().is_started("c", "1"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    told.0.store(0, Ordering::SeqCst);
    until(&mut probes, |view| view.is_started("c", "1") && view.is_ready("c", "1")).await;
    told.0.store(1, Ordering::SeqCst);
    until(&mut probes, |view| view.failed("c", "1") == Some(Kind::Liveness) && !view.is_ready("c", "1")).await;
    let heard = heard.0.lock().unwrap().clone();
    assert!(heard.contains(&"spec.containers{c} Unhealthy: Liveness probe failed: code 1".to_owned()), "{heard:?}");
    let counts = prober.counts();
    assert!(counts.iter().any(|count| count.kind == Kind::Startup && (count.successful, count.failed) == (1, 1)));
    // Another attempt begins anew.
    told.0.store(0, Ordering::SeqCst);
    probes.sync(scene(&pod, "2", None));
    assert_eq!(probes.view().failed("c", "2"), None);
    until(&mut probes, |view| view.is_ready("c", "2")).await;
    probes.close().await;
    assert!(prober.counts().is_empty(), "what is counted goes with the pod");
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_does_not_flip_readiness() {
    let told = Arc::new(Told::default());
    let prober = Prober::new(told.clone(), Arc::new(Heard::default()));
    let mut probes = prober.pod("u");
    let before = Some(Before { started: true, ready: true });
    probes.sync(scene(&pod(&Kind::ALL), "1", before));
    assert!(probes.view().is_ready("c", "1"));
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(probes.view().is_ready("c", "1"));
    }
    assert!(prober.counts().iter().any(|count| count.kind == Kind::Readiness && count.successful > 0));
}
