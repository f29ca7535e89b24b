//! `/metrics/probes`, as the kubelet has it.

use std::fmt::Write;

use super::prober::Count;

/// The counts in the text format of Prometheus.
pub fn metrics(counts: &[Count]) -> String {
    let mut text =
        "# HELP prober_probe_total [BETA] Cumulative number of a liveness, readiness or startup probe for a \
                    container by result.\n# TYPE prober_probe_total counter\n"
            .to_owned();
    for count in counts {
        let Count { namespace, pod, uid, container, kind, successful, failed } = count;
        for (result, number) in [("successful", successful), ("failed", failed)] {
            if *number > 0 {
                // Names of pods and containers have no characters that would have to be escaped.
                let _ = writeln!(
                    text,
                    "prober_probe_total{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\",\
                     pod_uid=\"{uid}\",probe_type=\"{kind}\",result=\"{result}\"}} {number}"
                );
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::probe::Kind;

    #[test]
    fn only_what_happened_is_told() {
        let count = Count {
            namespace: "n".into(),
            pod: "p".into(),
            uid: "u".into(),
            container: "c".into(),
            kind: Kind::Liveness,
            successful: 3,
            failed: 0,
        };
        let text = metrics(&[count]);
        let line = r#"prober_probe_total{container="c",namespace="n",pod="p",pod_uid="u",probe_type="Liveness",result="successful"} 3"#;
        assert_eq!(text.lines().last(), Some(line));
    }
}
