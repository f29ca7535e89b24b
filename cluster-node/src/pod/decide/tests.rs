//! Plans and statuses by table: a pod, what the engine has of it, and what follows.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};

use super::{is_finished, next_look, plan, status};
use crate::pod::{
    model::{
        Action, Desired, EndCause, Ending, Exited, Facts, Instance, KillReason, Kind, Life, Memory, Observed, Problem,
        Sandbox,
    },
    probe::{Kind as Probe, View},
    spec::hash,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn pod(spec: Value) -> Desired {
    let whole = json!({ "metadata": { "name": "p", "namespace": "n", "uid": "u", "generation": 1 }, "spec": spec });
    Desired { pod: Arc::new(serde_json::from_value::<Pod>(whole).unwrap()), is_static: false, ending: None }
}

fn deleted(desired: &Desired, grace_s: i64) -> Desired {
    let ending = Ending { cause: EndCause::Deleted, since: at(0), grace_s: Some(grace_s) };
    Desired { ending: Some(ending), ..desired.clone() }
}

/// `name:attempt:life[:code]`, where life is r(unning), x (exited), c(reated), u(nknown), X (exited before the
/// present network), d (stopped so that it is started again).
fn instance(desired: &Desired, text: &str) -> Instance {
    let parts: Vec<&str> = text.split(':').collect();
    let (kind, container) = crate::pod::spec::find(&desired.pod, parts[0]).unwrap();
    let code = parts.get(3).map_or(0, |code| code.parse().unwrap());
    let exited = Exited { code, reason: "Error".into(), started: Some(at(0)), finished: at(10), ..Exited::default() };
    Instance {
        id: format!("{}-{}", parts[0], parts[1]),
        name: parts[0].into(),
        kind,
        attempt: parts[1].parse().unwrap(),
        hash: hash(&container),
        image: "i".into(),
        image_id: "sha256:1".into(),
        created: at(0),
        life: match parts[2] {
            "r" => Life::Running { started: at(0) },
            "c" => Life::Created,
            "u" => Life::Unknown,
            _ => Life::Exited(exited),
        },
        resources: super::qos::resources(&desired.pod, &container, FACTS_MEMORY),
        before_sandbox: parts[2] == "X",
        is_due: parts[2] == "d",
    }
}

const FACTS_MEMORY: u64 = 1 << 30;

fn facts() -> Facts {
    Facts { host_addresses: vec!["10.0.0.1".parse().unwrap()], memory: FACTS_MEMORY, max_backoff_s: 0 }
}

fn observed(desired: &Desired, instances: &[&str]) -> Observed {
    let sandbox =
        Sandbox { id: "1".into(), ready: true, host_network: false, addresses: vec!["10.88.0.2".parse().unwrap()] };
    Observed { sandbox: Some(sandbox), instances: instances.iter().map(|it| instance(desired, it)).collect() }
}

fn words(actions: &[Action]) -> String {
    let word = |action: &Action| match action {
        Action::CreateSandbox => "sandbox".to_owned(),
        Action::RemoveSandbox => "no sandbox".to_owned(),
        Action::Start { container, attempt, .. } => format!("start {container} {attempt}"),
        Action::Wait { container, .. } => format!("wait {container}"),
        Action::Kill { id, grace_s, .. } => format!("kill {id} {grace_s}"),
        Action::Resize { id, .. } => format!("resize {id}"),
        Action::Remove { id } => format!("remove {id}"),
    };
    actions.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn planned(desired: &Desired, observed: &Observed, memory: &Memory, second: i64) -> Vec<Action> {
    plan(desired, observed, memory, &View::default(), &facts(), at(second))
}

fn two() -> Desired {
    pod(json!({ "containers": [{ "name": "a", "image": "i" }, { "name": "b", "image": "i" }] }))
}

fn with_init(policy: &str) -> Desired {
    pod(json!({
        "restartPolicy": policy,
        "initContainers": [
            { "name": "first", "image": "i" },
            { "name": "side", "image": "i", "restartPolicy": "Always" },
            { "name": "second", "image": "i" },
        ],
        "containers": [{ "name": "a", "image": "i" }],
    }))
}

fn of_policy(policy: &str) -> Desired {
    pod(json!({ "restartPolicy": policy, "containers": [{ "name": "a", "image": "i" }] }))
}

#[test]
fn containers_start_in_their_order() {
    #[track_caller]
    fn check(desired: &Desired, instances: &[&str], want: &str) {
        let observed = observed(desired, instances);
        assert_eq!(words(&planned(desired, &observed, &Memory::default(), 100)), want, "{instances:?}");
    }
    let nothing = Observed::default();
    assert_eq!(words(&planned(&two(), &nothing, &Memory::default(), 0)), "sandbox");
    check(&two(), &[], "start a 0, start b 0");
    check(&two(), &["a:0:r"], "start b 0");
    check(&two(), &["a:0:r", "b:0:r"], "");
    check(&two(), &["a:0:x:1", "b:0:r"], "start a 1");
    check(&two(), &["a:0:c", "b:0:r"], "remove a-0");
    check(&two(), &["a:0:x", "a:1:x", "a:2:r", "b:0:r"], "remove a-0");
    let init = with_init("Always");
    check(&init, &[], "start first 0");
    check(&init, &["first:0:r"], "");
    check(&init, &["first:0:x:1"], "start first 1");
    check(&init, &["first:0:x"], "start side 0");
    check(&init, &["first:0:x", "side:0:r"], "start second 0");
    check(&init, &["first:0:x", "side:0:r", "second:0:x"], "start a 0");
    check(&init, &["first:0:x", "side:0:x:1", "second:0:x", "a:0:r"], "start side 1");
    check(&init, &["side:0:r", "a:0:r"], "");
    // The machine was started again: init containers have to do their work once more.
    check(&init, &["first:0:X", "side:0:X", "second:0:X", "a:0:X"], "start first 1");
    check(&init, &["first:0:X", "first:1:x", "side:0:X", "second:0:X", "a:0:X"], "start side 1");
    // One that failed for good ends the pod.
    check(&with_init("Never"), &["first:0:x:1"], "");
}

#[test]
fn policies_say_what_is_started_again() {
    #[track_caller]
    fn check(policy: &str, code: i32, want: &str, finished: bool) {
        let desired = of_policy(policy);
        let observed = observed(&desired, &[&format!("a:0:x:{code}")]);
        let memory = Memory::default();
        assert_eq!(words(&planned(&desired, &observed, &memory, 100)), want, "{policy} {code}");
        assert_eq!(is_finished(&desired, &observed, &memory, at(100)), finished, "{policy} {code}");
    }
    check("Always", 0, "start a 1", false);
    check("OnFailure", 0, "", true);
    check("OnFailure", 1, "start a 1", false);
    check("Never", 1, "", true);
}

#[test]
fn what_crashes_waits_longer_each_time() {
    let desired = of_policy("Always");
    let observed = observed(&desired, &["a:3:x:1"]);
    let container = desired.pod.spec.as_ref().unwrap().containers[0].clone();
    let key = super::backoff::key(&crate::pod::model::PodKey::of(&desired.pod), &container);
    let known = super::backoff::Backoff { wait_s: 40, updated: at(0) };
    let memory = Memory { backoffs: BTreeMap::from([(key, known)]), ..Memory::default() };
    let actions = planned(&desired, &observed, &memory, 20);
    let Action::Wait { problem, .. } = &actions[0] else { panic!("{actions:?}") };
    assert_eq!(problem.message, "back-off 40s restarting failed container=a pod=p_n(u)");
    assert_eq!(problem.retry, Some(at(50)));
    assert_eq!(words(&planned(&desired, &observed, &memory, 51)), "start a 4");
    let told = Memory { problems: BTreeMap::from([("a".into(), problem.clone())]), ..memory };
    assert_eq!(next_look(&desired, &told, at(20)), Some(at(50)));
    let status = status(&desired, &observed, &told, &View::default(), &facts(), at(20));
    let container = &status.container_statuses.as_ref().unwrap()[0];
    let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    assert_eq!((container.restart_count, status.phase.as_deref()), (3, Some("Running")));
}

#[test]
fn a_pod_ends_sidecars_last() {
    #[track_caller]
    fn check(desired: &Desired, instances: &[&str], second: i64, stopping: &[(&str, i64)], want: &str) {
        let stopping = stopping.iter().map(|(id, grace)| ((*id).to_owned(), *grace)).collect();
        let memory = Memory { stopping, ..Memory::default() };
        assert_eq!(words(&planned(desired, &observed(desired, instances), &memory, second)), want);
    }
    let desired = deleted(&with_init("Always"), 30);
    check(&desired, &["side:0:r", "a:0:r"], 0, &[], "kill a-0 30");
    check(&desired, &["side:0:r", "a:0:r"], 1, &[("a-0", 30)], "");
    check(&desired, &["side:0:r", "a:0:x"], 10, &[], "kill side-0 20");
    check(&desired, &["side:0:r"], 100, &[], "kill side-0 2");
    check(&deleted(&two(), 0), &["a:0:r", "b:0:r"], 0, &[("a-0", 30)], "kill a-0 2, kill b-0 2");
    // A shorter grace reaches one that is stopping already.
    check(&desired, &["side:0:r"], 10, &[("side-0", 25)], "");
    check(&deleted(&with_init("Always"), 1), &["side:0:r"], 0, &[("side-0", 300)], "kill side-0 2");
    // The work is done: what runs beside it ends too.
    check(&with_init("Never"), &["first:0:x", "side:0:r", "second:0:x", "a:0:x"], 0, &[], "kill side-0 30");
}

#[test]
fn a_change_of_the_image_or_of_limits_is_followed() {
    let old = of_policy("Always");
    let has = observed(&old, &["a:0:r"]);
    let new = pod(json!({ "containers": [{ "name": "a", "image": "other" }] }));
    let actions = planned(&new, &has, &Memory::default(), 0);
    assert!(matches!(&actions[0], Action::Kill { reason: KillReason::Changed, .. }), "{actions:?}");
    let limited = |policy: &str| {
        let resources = json!({ "limits": { "cpu": "500m" } });
        let policies = json!([{ "resourceName": "cpu", "restartPolicy": policy }]);
        pod(json!({ "containers": [{ "name": "a", "image": "i", "resources": resources, "resizePolicy": policies }] }))
    };
    assert_eq!(words(&planned(&limited("NotRequired"), &has, &Memory::default(), 0)), "resize a-0");
    assert_eq!(words(&planned(&limited("RestartContainer"), &has, &Memory::default(), 0)), "kill a-0 30");
}

#[test]
fn what_cannot_start_is_tried_again_later() {
    let desired = of_policy("Always");
    let problem = Problem { reason: "ErrImagePull".into(), message: "no".into(), retry: Some(at(50)) };
    let memory = Memory { problems: BTreeMap::from([("a".into(), problem)]), ..Memory::default() };
    let observed = observed(&desired, &[]);
    assert_eq!(words(&planned(&desired, &observed, &memory, 49)), "");
    assert_eq!(words(&planned(&desired, &observed, &memory, 51)), "start a 0");
    let starting = Memory { starting: Some("a".into()), ..Memory::default() };
    assert_eq!(words(&planned(&desired, &observed, &starting, 49)), "");
}

fn told(desired: &Desired, instances: &[&str], memory: &Memory) -> PodStatus {
    status(desired, &observed(desired, instances), memory, &View::default(), &facts(), at(100))
}

fn condition(status: &PodStatus, kind: &str) -> (String, Option<String>) {
    let found = status.conditions.iter().flatten().find(|it| it.type_ == kind).unwrap();
    (found.status.clone(), found.reason.clone())
}

#[test]
fn phases_and_conditions() {
    #[track_caller]
    fn check(desired: &Desired, instances: &[&str], phase: &str, ready: &str, initialized: &str) {
        let status = told(desired, instances, &Memory::default());
        assert_eq!(status.phase.as_deref(), Some(phase), "{instances:?}");
        assert_eq!(condition(&status, "Ready").0, ready, "{instances:?}");
        assert_eq!(condition(&status, "Initialized").0, initialized, "{instances:?}");
        assert_eq!(condition(&status, "PodScheduled").0, "True");
    }
    check(&two(), &[], "Pending", "False", "True");
    check(&two(), &["a:0:r"], "Pending", "False", "True");
    check(&two(), &["a:0:r", "b:0:r"], "Running", "True", "True");
    check(&two(), &["a:0:x:1", "b:0:r"], "Running", "False", "True");
    check(&of_policy("Never"), &["a:0:x:0"], "Succeeded", "False", "True");
    check(&of_policy("Never"), &["a:0:x:3"], "Failed", "False", "True");
    check(&of_policy("Always"), &["a:0:x:0"], "Running", "False", "True");
    let init = with_init("Always");
    check(&init, &[], "Pending", "False", "False");
    check(&init, &["first:0:x", "side:0:r", "second:0:r"], "Pending", "False", "False");
    check(&init, &["first:0:x", "side:0:r", "second:0:x", "a:0:r"], "Running", "True", "True");
    check(&with_init("Never"), &["first:0:x:1"], "Failed", "False", "False");
    check(&deleted(&two(), 30), &["a:0:r", "b:0:x:0"], "Running", "False", "True");
    check(&deleted(&two(), 30), &["a:0:x:0", "b:0:x:0"], "Succeeded", "False", "True");
    check(&deleted(&two(), 30), &[], "Failed", "False", "True");
}

#[test]
fn a_final_phase_stays() {
    let desired = of_policy("Always");
    let before = PodStatus { phase: Some("Succeeded".into()), ..PodStatus::default() };
    let memory = Memory { previous: Some(before), ..Memory::default() };
    assert_eq!(words(&planned(&desired, &observed(&desired, &[]), &memory, 0)), "");
    assert_eq!(told(&desired, &[], &memory).phase.as_deref(), Some("Succeeded"));
}

#[test]
fn nothing_is_over_while_a_container_may_still_be_made() {
    let desired = deleted(&two(), 30);
    let starting = Memory { starting: Some("a".into()), ..Memory::default() };
    for (memory, finished, phase) in [(starting, false, "Pending"), (Memory::default(), true, "Failed")] {
        assert_eq!(is_finished(&desired, &observed(&desired, &[]), &memory, at(0)), finished);
        assert_eq!(told(&desired, &[], &memory).phase.as_deref(), Some(phase));
    }
}

#[test]
fn an_evicted_pod_says_why() {
    let cause = EndCause::Node { reason: "Evicted".into(), message: "low on memory".into() };
    let ending = Ending { cause, since: at(0), grace_s: Some(1) };
    let desired = Desired { ending: Some(ending), ..two() };
    let runs = told(&desired, &["a:0:r", "b:0:r"], &Memory::default());
    assert_eq!(runs.phase.as_deref(), Some("Running"));
    let over = told(&desired, &["a:0:x", "b:0:x"], &Memory::default());
    assert_eq!((over.phase.as_deref(), over.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    let target = condition(&over, "DisruptionTarget");
    assert_eq!(target, ("True".into(), Some("TerminationByKubelet".into())));
}

#[test]
fn a_deadline_ends_a_pod() {
    let desired = pod(json!({ "activeDeadlineSeconds": 50, "containers": [{ "name": "a", "image": "i" }] }));
    let start = told(&desired, &["a:0:r"], &Memory::default());
    let memory = Memory { previous: Some(start), ..Memory::default() };
    assert_eq!(next_look(&desired, &memory, at(120)), Some(at(150)));
    let observed = observed(&desired, &["a:0:r"]);
    assert_eq!(words(&planned(&desired, &observed, &memory, 149)), "");
    assert_eq!(words(&planned(&desired, &observed, &memory, 150)), "kill a-0 30");
    let status = status(&desired, &observed, &memory, &View::default(), &facts(), at(150));
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
}

#[test]
fn what_the_engine_forgot_is_not_forgotten_by_the_status() {
    let desired = of_policy("Always");
    let before = told(&desired, &["a:2:r"], &Memory::default());
    let memory = Memory { previous: Some(before), ..Memory::default() };
    assert_eq!(words(&planned(&desired, &observed(&desired, &[]), &memory, 0)), "start a 3");
    let lost = told(&desired, &[], &memory);
    let container = &lost.container_statuses.as_ref().unwrap()[0];
    let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    let never = of_policy("Never");
    let over = told(&never, &["a:0:x:0"], &Memory::default());
    let memory = Memory { previous: Some(over.clone()), ..Memory::default() };
    assert_eq!(told(&never, &[], &memory).container_statuses, over.container_statuses);
}

#[test]
fn the_same_again_changes_nothing() {
    for instances in [&[][..], &["a:0:r"], &["a:0:r", "b:0:r"], &["a:0:x:1", "b:0:r"]] {
        let first = told(&two(), instances, &Memory::default());
        let memory = Memory { previous: Some(first.clone()), ..Memory::default() };
        let again = status(&two(), &observed(&two(), instances), &memory, &View::default(), &facts(), at(500));
        assert_eq!(again, first, "{instances:?}");
    }
}

#[test]
fn kinds_are_written_and_read() {
    for kind in [Kind::Init, Kind::Sidecar, Kind::Regular, Kind::Ephemeral] {
        assert_eq!(Kind::parse(kind.name()), Some(kind));
    }
}

/// Who is killed, and whether it is to be started again.
fn kills(actions: &[Action]) -> Vec<(KillReason, bool)> {
    let kill = |action: &Action| match action {
        Action::Kill { reason, is_due, .. } => Some((*reason, *is_due)),
        _ => None,
    };
    actions.iter().filter_map(kill).collect()
}

#[test]
fn what_was_stopped_to_be_started_again_is_whatever_it_ended_with() {
    #[track_caller]
    fn check(policy: &str, life: &str, want: &str, finished: bool, phase: &str) {
        let desired = of_policy(policy);
        let observed = observed(&desired, &[&format!("a:0:{life}")]);
        let memory = Memory::default();
        assert_eq!(words(&planned(&desired, &observed, &memory, 100)), want, "{policy} {life}");
        assert_eq!(is_finished(&desired, &observed, &memory, at(100)), finished, "{policy} {life}");
        assert_eq!(told(&desired, &[&format!("a:0:{life}")], &memory).phase.as_deref(), Some(phase), "{policy} {life}");
    }
    check("OnFailure", "d:0", "start a 1", false, "Running");
    check("OnFailure", "x:0", "", true, "Succeeded");
    // Its image was changed: the policy says nothing about that.
    check("Never", "d:0", "start a 1", false, "Running");
    check("Never", "d:137", "start a 1", false, "Running");
    check("Never", "x:137", "", true, "Failed");
}

#[test]
fn an_end_that_the_policy_would_keep_is_not_told_before_the_next_life() {
    #[track_caller]
    fn check(desired: &Desired, lives: &[&str], want: &str) {
        let status = told(desired, lives, &Memory::default());
        let container = &status.container_statuses.as_ref().unwrap()[0];
        let state = container.state.as_ref().unwrap();
        let got = if state.waiting.is_some() { "waiting" } else { "terminated" };
        assert_eq!(got, want, "{lives:?}");
        let last = container.last_state.as_ref().and_then(|it| it.terminated.as_ref());
        assert_eq!(last.is_some(), want == "waiting", "{lives:?}");
        let phase = if want == "waiting" || lives == ["a:0:d:1"] { "Running" } else { "Succeeded" };
        assert_eq!(status.phase.as_deref(), Some(phase), "{lives:?}");
    }
    check(&of_policy("OnFailure"), &["a:0:d:0"], "waiting");
    check(&of_policy("OnFailure"), &["a:0:d:0", "a:1:c"], "waiting");
    check(&of_policy("Never"), &["a:0:d:137"], "waiting");
    check(&of_policy("Never"), &["a:0:d:137", "a:1:c"], "waiting");
    check(&of_policy("OnFailure"), &["a:0:d:1"], "terminated");
    check(&of_policy("OnFailure"), &["a:0:x:0"], "terminated");
    check(&deleted(&of_policy("OnFailure"), 30), &["a:0:d:0"], "terminated");
    let init = with_init("OnFailure");
    assert_eq!(told(&init, &["first:0:d:0"], &Memory::default()).phase.as_deref(), Some("Pending"));
}

#[test]
fn a_kill_says_whether_another_life_follows() {
    let image = |policy: &str| pod(json!({ "restartPolicy": policy, "containers": [{ "name": "a", "image": "new" }] }));
    let lost = |desired: &Desired| Observed { sandbox: None, ..observed(desired, &["a:0:r"]) };
    for (policy, follows) in [("Always", true), ("OnFailure", true), ("Never", false)] {
        let desired = of_policy(policy);
        let runs = observed(&desired, &["a:0:r"]);
        let changed = planned(&image(policy), &runs, &Memory::default(), 0);
        assert_eq!(kills(&changed), [(KillReason::Changed, true)], "{policy}");
        for (kind, reason) in [(Probe::Liveness, KillReason::Liveness), (Probe::Startup, KillReason::Startup)] {
            let view = View::failing("a", "a-0", kind);
            let actions = plan(&desired, &runs, &Memory::default(), &view, &facts(), at(0));
            assert_eq!(kills(&actions), [(reason, follows)], "{policy}");
        }
        let actions = planned(&desired, &lost(&desired), &Memory::default(), 0);
        assert_eq!(kills(&actions), [(KillReason::Sandbox, follows)], "{policy}");
        let ends = planned(&deleted(&desired, 30), &runs, &Memory::default(), 0);
        assert_eq!(kills(&ends), [(KillReason::PodEnds, false)], "{policy}");
    }
}

#[test]
fn an_init_container_that_runs_is_left_to_its_end_when_its_image_changes() {
    let new = json!({
        "initContainers": [{ "name": "first", "image": "new" }], "containers": [{ "name": "a", "image": "i" }],
    });
    let runs = observed(&with_init("Always"), &["first:0:r"]);
    assert_eq!(words(&planned(&pod(new), &runs, &Memory::default(), 0)), "");
}

#[test]
fn a_new_network_makes_init_containers_do_their_work_again() {
    let desired = with_init("Always");
    let before = ["first:0:X", "side:0:X", "second:0:X", "a:0:X"];
    assert_eq!(words(&planned(&desired, &observed(&desired, &before), &Memory::default(), 100)), "start first 1");
    let lost = Observed { sandbox: None, ..observed(&desired, &before) };
    assert_eq!(words(&planned(&desired, &lost, &Memory::default(), 100)), "sandbox");
}
