//! Progress of a pull or push: one bar a layer on a terminal, one line a change otherwise.

use std::{collections::HashMap, io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    cli::format::human,
    engine_api::wire::{LayerStatus, Line},
};

/// Shows lines as they come.
pub enum Progress {
    /// Nothing.
    Quiet,
    /// A bar a layer.
    Bars { all: MultiProgress, bars: HashMap<String, ProgressBar> },
    /// A line a change.
    Lines { last: HashMap<String, &'static str>, to_stderr: bool },
}

impl Progress {
    /// On standard output, or on standard error where that belongs to the container (`run`).
    pub fn new(quiet: bool, to_stderr: bool) -> Self {
        let is_terminal = if to_stderr { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        match () {
            () if quiet => Self::Quiet,
            () if is_terminal => {
                let target = if to_stderr { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::stdout() };
                Self::Bars { all: MultiProgress::with_draw_target(target), bars: HashMap::new() }
            }
            () => Self::Lines { last: HashMap::new(), to_stderr },
        }
    }

    /// Shows one line.
    pub fn show(&mut self, line: &Line) {
        match line {
            Line::Resolved { layers, .. } => {
                for (layer, _) in layers {
                    self.layer(layer, &LayerStatus::Waiting);
                }
            }
            Line::Layer { layer, status } => self.layer(layer, status),
            Line::Note { text } => self.say(text),
            Line::Done { .. } => {}
        }
    }

    /// A line of words.
    pub fn say(&self, text: &str) {
        match self {
            Self::Quiet => {}
            // A terminal that went away needs no progress.
            Self::Bars { all, .. } => drop(all.println(text)),
            Self::Lines { to_stderr, .. } => print(*to_stderr, text),
        }
    }

    fn layer(&mut self, layer: &str, status: &LayerStatus) {
        let short = short(layer);
        match self {
            Self::Quiet => {}
            Self::Lines { last, to_stderr } => {
                let words = words(status);
                let was = last.insert(layer.to_owned(), words);
                if was != Some(words) {
                    print(*to_stderr, &format!("{short}: {}", full_words(status)));
                }
            }
            Self::Bars { all, bars } => {
                let bar = bars.entry(layer.to_owned()).or_insert_with(|| {
                    let bar = all.add(ProgressBar::new(0));
                    bar.set_prefix(short.to_owned());
                    bar
                });
                draw(bar, status);
            }
        }
    }
}

fn draw(bar: &ProgressBar, status: &LayerStatus) {
    const PLAIN: &str = "{prefix}: {msg}";
    const MOVING: &str = "{prefix}: {msg} [{bar:40}] {bytes}/{total_bytes}";
    let set = |template: &str| {
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
    };
    match status {
        LayerStatus::Downloading { bytes, total } | LayerStatus::Uploading { bytes, total } => {
            if bar.length() != Some(*total) || bar.position() == 0 {
                bar.set_length(*total);
                set(MOVING);
            }
            bar.set_message(words(status));
            bar.set_position(*bytes);
        }
        _ => {
            set(PLAIN);
            let text = full_words(status);
            if matches!(status, LayerStatus::Done | LayerStatus::Exists | LayerStatus::Mounted) {
                bar.finish_with_message(text);
            } else {
                bar.set_message(text);
                bar.tick();
            }
        }
    }
}

fn print(to_stderr: bool, text: &str) {
    use std::io::Write;
    if to_stderr {
        // Progress is a courtesy.
        let _ = writeln!(std::io::stderr(), "{text}");
    } else {
        crate::cli::out(text);
    }
}

/// The first twelve digits of a digest.
pub fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

fn words(status: &LayerStatus) -> &'static str {
    match status {
        LayerStatus::Waiting => "Waiting",
        LayerStatus::Downloading { .. } => "Downloading",
        LayerStatus::Uploading { .. } => "Pushing",
        LayerStatus::Unpacking => "Extracting",
        LayerStatus::Retrying { .. } => "Retrying",
        LayerStatus::Done => "Complete",
        LayerStatus::Exists => "Already exists",
        LayerStatus::Mounted => "Mounted from another repository",
    }
}

fn full_words(status: &LayerStatus) -> String {
    match status {
        LayerStatus::Retrying { problem, wait_ms } => {
            let wait = Duration::from_millis(*wait_ms);
            format!("Retrying in {:.1} s ({problem})", wait.as_secs_f64())
        }
        LayerStatus::Downloading { total, .. } | LayerStatus::Uploading { total, .. } => {
            format!("{} {}", words(status), human::size(*total))
        }
        other => words(other).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_shortly() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("abc"), "abc");
        let retry = LayerStatus::Retrying { problem: "HTTP 429".into(), wait_ms: 1500 };
        assert_eq!(full_words(&retry), "Retrying in 1.5 s (HTTP 429)");
        assert_eq!(full_words(&LayerStatus::Downloading { bytes: 1, total: 2_000_000 }), "Downloading 2MB");
    }

    #[test]
    fn bars_take_every_state() {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let mut progress = Progress::Bars { all, bars: HashMap::new() };
        progress.show(&Line::Resolved { digest: "sha256:00".into(), layers: vec![("sha256:01".into(), 10)] });
        for status in [LayerStatus::Downloading { bytes: 5, total: 10 }, LayerStatus::Unpacking, LayerStatus::Done] {
            progress.show(&Line::Layer { layer: "sha256:01".into(), status });
        }
        progress.show(&Line::Note { text: "a note".into() });
        let Progress::Bars { bars, .. } = progress else { unreachable!() };
        assert!(bars["sha256:01"].is_finished());
    }
}
