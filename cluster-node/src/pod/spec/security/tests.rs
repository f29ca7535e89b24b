//! Users, rights and filters by table.

use serde_json::{Value, json};

use super::*;

fn pod(pod_context: &Value, context: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "ns", "uid": "u-1" },
        "spec": { "securityContext": pod_context, "containers": [{ "name": "app", "securityContext": context }] },
    }))
    .unwrap()
}

fn who_of(pod_context: Value, context: Value, image_user: &str) -> Result<Who, String> {
    let pod = pod(&pod_context, &context);
    let mut image = ImageConfig::default();
    image.config.user = image_user.to_owned();
    who(&pod, &pod.spec.as_ref().unwrap().containers[0], &image, &[7].into()).map_err(|error| error.message)
}

#[test]
fn users() {
    #[track_caller]
    fn check(pod_context: Value, context: Value, image_user: &str, want: &str) {
        let shown = format!("{pod_context} {context} {image_user}");
        assert_eq!(who_of(pod_context, context, image_user).map(|who| who.user).as_deref(), Ok(want), "{shown}");
    }
    check(json!(null), json!(null), "", "0");
    check(json!(null), json!(null), "app", "app");
    check(json!(null), json!(null), "app:staff", "app");
    check(json!(null), json!(null), "1000:2000", "1000");
    check(json!({ "runAsUser": 5 }), json!(null), "app", "5");
    check(json!({ "runAsUser": 5, "runAsGroup": 6 }), json!({ "runAsUser": 7 }), "app", "7:6");
    check(json!({ "runAsGroup": 6 }), json!({ "runAsGroup": 8 }), "app", "app:8");
    check(json!(null), json!({ "runAsGroup": 0 }), "", "0:0");
}

#[test]
fn not_as_root() {
    #[track_caller]
    fn check(context: Value, image_user: &str, want: Result<(), &str>) {
        let got = who_of(json!({ "runAsNonRoot": true }), context.clone(), image_user).map(drop);
        let place = "(pod: \"web_ns(u-1)\", container: app)";
        assert_eq!(got, want.map_err(|want| format!("{want} {place}")), "{context} {image_user}");
    }
    check(json!({ "runAsUser": 1000 }), "", Ok(()));
    check(json!({}), "1000", Ok(()));
    check(json!({}), "1000:0", Ok(()));
    check(json!({ "runAsNonRoot": false }), "", Ok(()));
    check(json!({ "runAsUser": 0 }), "1000", Err("container's runAsUser breaks non-root policy"));
    check(json!({}), "", Err("container has runAsNonRoot and image will run as root"));
    check(json!({}), "0:1000", Err("container has runAsNonRoot and image will run as root"));
    check(json!({}), "00", Err("container has runAsNonRoot and image will run as root"));
    check(
        json!({}),
        "app",
        Err("container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root"),
    );
    // What a kernel's 32 bits would make of it is root.
    check(
        json!({}),
        "4294967296",
        Err("container has runAsNonRoot and image has an invalid user id (4294967296). (Must be 1-(2147483647))"),
    );
}

#[test]
fn groups() {
    #[track_caller]
    fn check(pod_context: Value, groups: &[&str], lookup: UserLookup) {
        let who = who_of(pod_context.clone(), json!(null), "").unwrap();
        assert_eq!(
            (who.groups, who.lookup),
            (groups.iter().map(|&it| it.to_owned()).collect(), lookup),
            "{pod_context}"
        );
    }
    check(json!(null), &["7"], UserLookup::Merge);
    check(json!({ "fsGroup": 2000, "supplementalGroups": [3, 4] }), &["2000", "3", "4", "7"], UserLookup::Merge);
    check(json!({ "supplementalGroupsPolicy": "Strict" }), &["7"], UserLookup::Strict);
    for wrong in [
        json!({ "fsGroup": -1 }),
        json!({ "supplementalGroups": [1, 2_147_483_648_u64] }),
        json!({ "supplementalGroupsPolicy": "Odd" }),
        json!({ "runAsUser": -1 }),
        json!({ "runAsUser": 4_294_967_296_u64 }),
        json!({ "runAsGroup": i64::MAX }),
    ] {
        assert!(who_of(wrong.clone(), json!(null), "").is_err(), "{wrong}");
    }
}

fn made(pod: &Pod, profile: Option<&Value>, node: &Surroundings) -> Result<Security, String> {
    security(pod, &pod.spec.as_ref().unwrap().containers[0], profile, node).map_err(|error| error.message)
}

#[test]
fn filters_of_system_calls() {
    #[track_caller]
    fn check(pod_context: Value, context: Value, default: bool, want: Result<Seccomp, &str>) {
        let node = Surroundings { seccomp_default: default, ..Surroundings::default() };
        let pod = pod(&json!({ "seccompProfile": pod_context }), &context);
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
        let needed = seccomp_profile(&pod, &pod.spec.as_ref().unwrap().containers[0]);
        let got = made(&pod, needed.map(|_| &profile), &node).map(|security| security.seccomp);
        assert_eq!(got, want.map_err(ToOwned::to_owned), "{pod_context} {context}");
    }
    let local = json!({ "type": "Localhost", "localhostProfile": "audit.json" });
    let custom = Seccomp::Custom(json!({ "defaultAction": "SCMP_ACT_ALLOW" }));
    check(json!(null), json!(null), false, Ok(Seccomp::Unconfined));
    check(json!(null), json!(null), true, Ok(Seccomp::Default));
    check(json!({ "type": "RuntimeDefault" }), json!(null), false, Ok(Seccomp::Default));
    check(json!({ "type": "Unconfined" }), json!(null), true, Ok(Seccomp::Unconfined));
    check(
        json!({ "type": "Unconfined" }),
        json!({ "seccompProfile": { "type": "RuntimeDefault" } }),
        false,
        Ok(Seccomp::Default),
    );
    check(local.clone(), json!(null), false, Ok(custom));
    check(local.clone(), json!({ "privileged": true }), false, Ok(Seccomp::Unconfined));
    let nameless = "localhostProfile must be set if seccompProfile type is Localhost.";
    check(json!({ "type": "Localhost" }), json!(null), false, Err(nameless));
    let odd = "seccompProfile type \"Odd\" is not known: Unconfined, RuntimeDefault or Localhost";
    check(json!({ "type": "Odd" }), json!(null), false, Err(odd));
    // A profile that could not be read is not left out.
    let pod = pod(&json!({ "seccompProfile": local }), &json!(null));
    assert!(made(&pod, None, &Surroundings::default()).is_err());
}

#[test]
#[allow(clippy::option_option)] // Refused, none, or some.
fn profiles_of_apparmor() {
    #[track_caller]
    fn check(pod_context: Value, context: Value, annotation: &str, want: Option<Option<&str>>) {
        let mut pod = pod(&json!({ "appArmorProfile": pod_context }), &context);
        pod.metadata.annotations = Some([(format!("{APPARMOR}app"), annotation.to_owned())].into());
        let got = made(&pod, None, &Surroundings::default()).ok().map(|it| it.apparmor);
        assert_eq!(got.as_ref().map(Option::as_deref), want, "{pod_context} {context} {annotation}");
    }
    let local = json!({ "type": "Localhost", "localhostProfile": "mine" });
    check(json!(null), json!(null), "", Some(None));
    check(local.clone(), json!(null), "", Some(Some("mine")));
    check(local.clone(), json!({ "appArmorProfile": { "type": "Unconfined" } }), "localhost/x", Some(None));
    check(local, json!({ "privileged": true }), "", Some(None));
    check(json!(null), json!(null), "localhost/old", Some(Some("old")));
    check(json!(null), json!(null), "runtime/default", Some(None));
    check(json!({ "type": "Localhost" }), json!(null), "", None);
    check(json!({ "type": "Odd" }), json!(null), "", None);
}

#[test]
fn rights() {
    let node = Surroundings::default();
    let plain = made(&pod(&json!(null), &json!(null)), None, &node).unwrap();
    assert_eq!(plain, Security { seccomp: Seccomp::Unconfined, ..Security::default() });
    let context = json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "procMount": "Unmasked",
        "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] } });
    let made = made(&pod(&json!(null), &context), None, &node).unwrap();
    assert!(made.no_new_privileges && made.read_only_rootfs && !made.privileged);
    assert_eq!((made.cap_add, made.cap_drop), (vec!["NET_ADMIN".to_owned()], vec!["ALL".to_owned()]));
    assert_eq!((made.masked_paths, made.readonly_paths), (Some(Vec::new()), Some(Vec::new())));
}
