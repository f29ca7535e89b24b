//! What an image says of the containers made from it.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

/// Most anonymous volumes that an image may ask for.
const MAX_VOLUMES: usize = 64;

/// The part of an image's configuration that a container takes over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageDefaults {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entrypoint.
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Absolute.
    pub working_dir: String,
    /// `user[:group]`.
    pub user: String,
    /// Paths that get a volume of their own.
    pub volumes: Vec<String>,
    /// Name or number.
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
}

impl From<&ImageConfiguration> for ImageDefaults {
    fn from(image: &ImageConfiguration) -> Self {
        let Some(config) = image.config() else { return Self::default() };
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let labels = config.labels().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        let mut volumes = list(config.volumes());
        volumes.sort_unstable();
        volumes.truncate(MAX_VOLUMES);
        Self {
            entrypoint: list(config.entrypoint()),
            command: list(config.cmd()),
            env: list(config.env()),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
            volumes,
            stop_signal: config.stop_signal().clone().filter(|signal| !signal.is_empty()),
            labels,
            exposed_ports: list(config.exposed_ports()),
        }
    }
}

impl ImageDefaults {
    /// Program and arguments, by Docker's rules: another entrypoint drops the image's command; an empty one clears it.
    pub fn args(&self, entrypoint: Option<&[String]>, command: Option<&[String]>) -> Vec<String> {
        let (entrypoint, command) = match (entrypoint, command) {
            (Some(entrypoint), command) => (entrypoint, command.unwrap_or_default()),
            (None, Some(command)) if !command.is_empty() => (self.entrypoint.as_slice(), command),
            (None, _) => (self.entrypoint.as_slice(), self.command.as_slice()),
        };
        // `--entrypoint ""` reaches us as one empty word.
        entrypoint.iter().filter(|word| !word.is_empty()).chain(command).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entrypoint_and_command() {
        fn words(list: &[&str]) -> Vec<String> {
            list.iter().map(|word| (*word).to_owned()).collect()
        }
        #[track_caller]
        fn check(image: (&[&str], &[&str]), asked: (Option<&[&str]>, Option<&[&str]>), want: &[&str]) {
            let image =
                ImageDefaults { entrypoint: words(image.0), command: words(image.1), ..ImageDefaults::default() };
            let (entrypoint, command) = (asked.0.map(words), asked.1.map(words));
            assert_eq!(image.args(entrypoint.as_deref(), command.as_deref()), want);
        }
        check((&["/e"], &["c"]), (None, None), &["/e", "c"]);
        check((&["/e"], &["c"]), (None, Some(&["x", "y"])), &["/e", "x", "y"]);
        check((&["/e"], &["c"]), (None, Some(&[])), &["/e", "c"]);
        check((&["/e"], &["c"]), (Some(&["/n"]), None), &["/n"]);
        check((&["/e"], &["c"]), (Some(&["/n"]), Some(&["x"])), &["/n", "x"]);
        check((&["/e"], &["c"]), (Some(&[]), Some(&["x"])), &["x"]);
        check((&["/e"], &["c"]), (Some(&[""]), Some(&["x", ""])), &["x", ""]);
        check((&[], &["sh"]), (None, None), &["sh"]);
        check((&[], &[]), (None, None), &[]);
    }

    #[test]
    fn an_image_is_read() {
        let json = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},
            "config":{"Entrypoint":["/e"],"Env":["A=1"],"User":"app","Volumes":{"/data":{}},"StopSignal":"SIGINT",
            "Labels":{"k":"v"},"ExposedPorts":{"80/tcp":{}},"WorkingDir":"/w"}}"#;
        let image: ImageConfiguration = serde_json::from_str(json).unwrap();
        let defaults = ImageDefaults::from(&image);
        assert_eq!(defaults.volumes, ["/data"]);
        assert_eq!(defaults.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(defaults.labels["k"], "v");
        assert_eq!((defaults.user.as_str(), defaults.working_dir.as_str()), ("app", "/w"));
    }
}
