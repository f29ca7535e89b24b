//! The text format of Prometheus, version 0.0.4.

use std::fmt::Write;

/// Pages are made of families.
#[derive(Default)]
pub struct Text(String);

impl Text {
    /// A family of counters.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "counter")
    }

    /// A family of gauges.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "gauge")
    }

    fn family(&mut self, name: &'static str, help: &str, kind: &'static str) -> Family<'_> {
        Family { text: &mut self.0, name, head: format!("# HELP {name} {help}\n# TYPE {name} {kind}\n") }
    }

    /// Text that was made elsewhere.
    pub fn append(&mut self, text: &str) {
        self.0.push_str(text);
    }

    /// The page.
    pub fn finish(self) -> String {
        self.0
    }
}

/// Samples of one name. Without any, nothing is written.
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    head: String,
}

impl Family<'_> {
    /// A sample, with the time it was taken where that is known, ms.
    pub fn add(&mut self, labels: &[(&str, &str)], value: f64, time_ms: Option<i64>) {
        self.text.push_str(&std::mem::take(&mut self.head));
        self.text.push_str(self.name);
        for (at, (name, value)) in labels.iter().enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(self.text, value);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        // Writing to a string cannot fail.
        let _ = match time_ms {
            Some(time_ms) => writeln!(self.text, " {value} {time_ms}"),
            None => writeln!(self.text, " {value}"),
        };
    }
}

fn escape(text: &mut String, value: &str) {
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_what_prometheus_reads() {
        let mut text = Text::default();
        text.gauge("empty", "Nothing.");
        let mut family = text.counter("cpu_seconds_total", "Time.");
        family.add(&[("pod", "p"), ("odd", "a\"b\\c\nd")], 0.25, Some(1234));
        family.add(&[], 1e9, None);
        let want = "# HELP cpu_seconds_total Time.\n# TYPE cpu_seconds_total counter\n\
                    cpu_seconds_total{pod=\"p\",odd=\"a\\\"b\\\\c\\nd\"} 0.25 1234\ncpu_seconds_total 1000000000\n";
        assert_eq!(text.finish(), want);
    }
}
