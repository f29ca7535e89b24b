//! What a request asks for: pure.

use hyper::Method;

use super::query::decode;

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Its uid, where the request has one.
    pub uid: Option<String>,
    /// The container; empty for port-forward.
    pub container: String,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Whether the node is well; of one check, where it is named.
    Healthz(Option<String>),
    /// Pods as they should be.
    Pods,
    /// Pods as they are.
    RunningPods,
    /// Statistics.
    Summary,
    /// Metrics.
    Metrics(Page),
    /// The configuration.
    Configz,
    /// A container's log.
    ContainerLogs(Target),
    /// A process in a container.
    Exec(Target),
    /// A container's own stdio.
    Attach(Target),
    /// A port of a pod.
    PortForward(Target),
    /// A process in a container, without streams.
    Run(Target),
    /// A container's memory in a file.
    Checkpoint(Target),
    /// There is such a page in a kubelet, and not here: why.
    Disabled(&'static str),
    /// There is, with another method.
    NotAllowed,
    /// There is not.
    NotFound,
}

/// A page of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The agent's own.
    Agent,
    /// Of containers, as cAdvisor names them.
    Cadvisor,
    /// What the metrics server reads.
    Resource,
    /// Of probes.
    Probes,
    /// Of health checks.
    Slis,
}

/// The path of a request, decoded, with one slash in front: the same for who decides whether it is allowed and for who
/// answers, so that no way of writing it leads past the former.
pub fn clean(path: &str) -> String {
    format!("/{}", decode(path, false).trim_start_matches('/'))
}

/// The route of a request; its path is clean.
pub fn route(method: &Method, path: &str) -> Route {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    // A slash at the end changes nothing.
    let parts = match parts.as_slice() {
        [rest @ .., ""] if !rest.is_empty() => rest,
        all => all,
    };
    let (route, methods) = find(parts);
    let is_page = !matches!(route, Route::NotFound | Route::Disabled(_));
    if is_page && !methods.contains(method) { Route::NotAllowed } else { route }
}

const GET: &[Method] = &[Method::GET];
const POST: &[Method] = &[Method::POST];
const BOTH: &[Method] = &[Method::GET, Method::POST];

fn find(parts: &[&str]) -> (Route, &'static [Method]) {
    let get = |route| (route, GET);
    match parts {
        ["healthz"] => get(Route::Healthz(None)),
        ["healthz", check] => get(Route::Healthz(Some((*check).to_owned()))),
        ["pods"] => get(Route::Pods),
        ["runningpods"] => get(Route::RunningPods),
        ["stats", "summary"] => get(Route::Summary),
        ["metrics"] => get(Route::Metrics(Page::Agent)),
        ["metrics", "cadvisor"] => get(Route::Metrics(Page::Cadvisor)),
        ["metrics", "resource"] => get(Route::Metrics(Page::Resource)),
        ["metrics", "probes"] => get(Route::Metrics(Page::Probes)),
        ["metrics", "slis"] => get(Route::Metrics(Page::Slis)),
        ["configz"] => get(Route::Configz),
        ["containerLogs", namespace, pod, container] => {
            get(Route::ContainerLogs(target(namespace, pod, None, container)))
        }
        ["exec", rest @ ..] => (container(rest).map_or(Route::NotFound, Route::Exec), BOTH),
        ["attach", rest @ ..] => (container(rest).map_or(Route::NotFound, Route::Attach), BOTH),
        ["run", rest @ ..] => (container(rest).map_or(Route::NotFound, Route::Run), POST),
        ["portForward", namespace, pod] => (Route::PortForward(target(namespace, pod, None, "")), BOTH),
        ["portForward", namespace, pod, uid] => (Route::PortForward(target(namespace, pod, Some(uid), "")), BOTH),
        ["checkpoint", namespace, pod, container] => (Route::Checkpoint(target(namespace, pod, None, container)), POST),
        ["logs", ..] => get(Route::Disabled("logs endpoint is disabled.")),
        ["debug", "pprof", ..] => get(Route::Disabled("profiling endpoint is disabled.")),
        ["debug", "flags", ..] => get(Route::Disabled("flags endpoint is disabled.")),
        _ => get(Route::NotFound),
    }
}

fn target(namespace: &str, pod: &str, uid: Option<&str>, container: &str) -> Target {
    Target {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: uid.map(str::to_owned),
        container: container.to_owned(),
    }
}

fn container(parts: &[&str]) -> Option<Target> {
    let found = match parts {
        [namespace, pod, container] => target(namespace, pod, None, container),
        [namespace, pod, uid, container] => target(namespace, pod, Some(uid), container),
        _ => return None,
    };
    (!found.namespace.is_empty() && !found.pod.is_empty() && !found.container.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_somewhere() {
        #[track_caller]
        fn check(method: Method, path: &str, want: Route) {
            assert_eq!(route(&method, &clean(path)), want, "{method} {path}");
        }
        let of = |uid: Option<&str>, container: &str| target("ns", "p", uid, container);
        check(Method::GET, "/healthz", Route::Healthz(None));
        check(Method::GET, "/healthz/syncloop", Route::Healthz(Some("syncloop".into())));
        check(Method::GET, "/pods", Route::Pods);
        check(Method::GET, "/pods/", Route::Pods);
        check(Method::POST, "/pods", Route::NotAllowed);
        check(Method::GET, "/runningpods/", Route::RunningPods);
        check(Method::GET, "/stats/summary", Route::Summary);
        check(Method::GET, "/stats", Route::NotFound);
        check(Method::GET, "/metrics/resource", Route::Metrics(Page::Resource));
        check(Method::GET, "/metrics/other", Route::NotFound);
        check(Method::GET, "/containerLogs/ns/p/c", Route::ContainerLogs(of(None, "c")));
        check(Method::POST, "/containerLogs/ns/p/c", Route::NotAllowed);
        check(Method::GET, "/containerLogs/ns/p", Route::NotFound);
        check(Method::POST, "/exec/ns/p/c", Route::Exec(of(None, "c")));
        check(Method::GET, "/exec/ns/p/u-1/c", Route::Exec(of(Some("u-1"), "c")));
        check(Method::GET, "/exec/ns/p", Route::NotFound);
        check(Method::GET, "/exec/ns//c", Route::NotFound);
        check(Method::GET, "/exec/a/b/c/d/e", Route::NotFound);
        check(Method::GET, "/attach/ns/p/c", Route::Attach(of(None, "c")));
        check(Method::POST, "/portForward/ns/p", Route::PortForward(of(None, "")));
        check(Method::GET, "/portForward/ns/p/u-1", Route::PortForward(of(Some("u-1"), "")));
        check(Method::POST, "/run/ns/p/c", Route::Run(of(None, "c")));
        check(Method::GET, "/run/ns/p/c", Route::NotAllowed);
        check(Method::POST, "/checkpoint/ns/p/c", Route::Checkpoint(of(None, "c")));
        check(Method::GET, "/logs/../etc/passwd", Route::Disabled("logs endpoint is disabled."));
        check(Method::GET, "/debug/pprof/heap", Route::Disabled("profiling endpoint is disabled."));
        check(Method::GET, "/containerLogs/n%73/p/c", Route::ContainerLogs(of(None, "c")));
        check(Method::GET, "//%70ods", Route::Pods);
        check(Method::GET, "/stats%2F..%2Fpods", Route::NotFound);
        check(Method::GET, "/%2570ods", Route::NotFound);
        check(Method::GET, "/", Route::NotFound);
        check(Method::GET, "", Route::NotFound);
        check(Method::GET, "//", Route::NotFound);
    }
}
