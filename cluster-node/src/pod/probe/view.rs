//! [`View`]: what the probes of a pod have come to.

use std::collections::BTreeMap;

use super::{Before, Kind, Verdict};

/// Of one container with probes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Three kinds of probe are there or not.
pub struct Probed {
    /// The container that the verdicts are about.
    pub id: String,
    /// Which probes it has.
    pub has: [bool; 3],
    /// What they came to; nothing: not said yet of this container.
    pub verdicts: [Option<Verdict>; 3],
    /// What was known of this very container before the agent began.
    pub before: Option<Before>,
}

impl Probed {
    fn verdict(&self, kind: Kind) -> Option<Verdict> {
        self.verdicts[kind as usize]
    }

    fn has(&self, kind: Kind) -> bool {
        self.has[kind as usize]
    }

    fn is_started(&self, id: &str) -> bool {
        if !self.has(Kind::Startup) {
            return true;
        }
        match self.verdict(Kind::Startup) {
            _ if self.id != id => false,
            Some(verdict) => verdict == Verdict::Success,
            None => self.before.is_some_and(|before| before.started),
        }
    }

    fn is_ready(&self, id: &str) -> bool {
        if !self.has(Kind::Readiness) {
            return true;
        }
        match self.verdict(Kind::Readiness) {
            _ if self.id != id => false,
            Some(verdict) => verdict == Verdict::Success,
            None => self.before.is_some_and(|before| before.ready),
        }
    }
}

/// What the probes of a pod's containers have come to, by container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View(pub(super) BTreeMap<String, Probed>);

impl View {
    /// The status's `started` of a container that runs: no startup probe, or it succeeded.
    pub fn is_started(&self, container: &str, id: &str) -> bool {
        self.0.get(container).is_none_or(|probed| probed.is_started(id))
    }

    /// The status's `ready` of a container that runs: started, and no readiness probe or it succeeded.
    pub fn is_ready(&self, container: &str, id: &str) -> bool {
        self.0.get(container).is_none_or(|probed| probed.is_started(id) && probed.is_ready(id))
    }

    /// The probe for which this container, which runs, has to be ended and started again.
    pub fn failed(&self, container: &str, id: &str) -> Option<Kind> {
        let probed = self.0.get(container).filter(|probed| probed.id == id)?;
        [Kind::Startup, Kind::Liveness].into_iter().find(|kind| probed.verdict(*kind) == Some(Verdict::Failure))
    }

    /// What one kind has come to, of the container with this id.
    pub fn verdict(&self, container: &str, id: &str, kind: Kind) -> Option<Verdict> {
        self.0.get(container).filter(|probed| probed.id == id)?.verdict(kind)
    }

    /// One container, whose probe has failed.
    #[cfg(test)]
    pub(in crate::pod) fn failing(container: &str, id: &str, kind: Kind) -> Self {
        let mut probed = Probed { id: id.to_owned(), ..Probed::default() };
        probed.has[kind as usize] = true;
        probed.verdicts[kind as usize] = Some(Verdict::Failure);
        Self(BTreeMap::from([(container.to_owned(), probed)]))
    }

    /// Notes that a container has this kind of probe.
    pub(super) fn expect(&mut self, container: &str, kind: Kind) {
        self.0.entry(container.to_owned()).or_default().has[kind as usize] = true;
    }

    /// Another container than before: nothing is known of it but what was before.
    pub(super) fn begin(&mut self, container: &str, id: &str, before: Option<Before>) -> bool {
        match self.0.get_mut(container) {
            Some(probed) if probed.id != id => {
                *probed = Probed { id: id.to_owned(), has: probed.has, verdicts: [None; 3], before };
                true
            }
            _ => false,
        }
    }

    /// A verdict of the container with this id; `true` where it is news.
    pub(super) fn set(&mut self, container: &str, id: &str, kind: Kind, verdict: Verdict) -> bool {
        match self.0.get_mut(container) {
            Some(probed) if probed.id == id => probed.verdicts[kind as usize].replace(verdict) != Some(verdict),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAS: Option<Before> = Some(Before { started: true, ready: true });

    fn view(kinds: &[Kind], before: Option<Before>, verdicts: &[(Kind, Verdict)]) -> View {
        let mut view = View::default();
        for kind in kinds {
            view.expect("c", *kind);
        }
        view.begin("c", "1", before);
        for (kind, verdict) in verdicts {
            view.set("c", "1", *kind, *verdict);
        }
        view
    }

    #[test]
    fn what_a_status_says() {
        #[track_caller]
        fn check(view: &View, id: &str, started: bool, ready: bool, failed: Option<Kind>) {
            let got = (view.is_started("c", id), view.is_ready("c", id), view.failed("c", id));
            assert_eq!(got, (started, ready, failed));
        }
        use Kind::{Liveness, Readiness, Startup};
        use Verdict::{Failure, Success, Unknown};
        check(&View::default(), "1", true, true, None);
        check(&view(&[Liveness], None, &[]), "1", true, true, None);
        check(&view(&[Liveness], None, &[(Liveness, Failure)]), "1", true, true, Some(Liveness));
        check(&view(&[Liveness], None, &[(Liveness, Failure)]), "2", true, true, None);
        check(&view(&[Readiness], None, &[]), "1", true, false, None);
        check(&view(&[Readiness], WAS, &[]), "1", true, true, None);
        check(&view(&[Readiness], WAS, &[]), "2", true, false, None);
        check(&view(&[Readiness], WAS, &[(Readiness, Failure)]), "1", true, false, None);
        check(&view(&[Readiness], None, &[(Readiness, Success)]), "1", true, true, None);
        check(&view(&[Startup], None, &[(Startup, Unknown)]), "1", false, false, None);
        check(&view(&[Startup], WAS, &[]), "1", true, true, None);
        check(&view(&[Startup], None, &[(Startup, Success)]), "1", true, true, None);
        check(&view(&[Startup], None, &[(Startup, Failure)]), "1", false, false, Some(Startup));
        check(&view(&[Startup, Readiness], None, &[(Readiness, Success)]), "1", false, false, None);
    }

    #[test]
    fn news_is_what_differs() {
        let mut view = view(&[Kind::Readiness], None, &[]);
        assert!(view.set("c", "1", Kind::Readiness, Verdict::Success));
        assert!(!view.set("c", "1", Kind::Readiness, Verdict::Success));
        assert!(!view.set("c", "0", Kind::Readiness, Verdict::Failure), "of a container that has gone");
        assert!(!view.begin("c", "1", WAS));
        assert!(view.begin("c", "2", None));
    }
}
