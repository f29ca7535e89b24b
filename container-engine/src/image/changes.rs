//! `--change` of a commit: a line of a Dockerfile applied to what containers of an image do.

use serde_json::{Value, json};

use super::RunConfig;

/// Longest line.
const MAX_LINE: usize = 64 << 10;

/// Applies `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `LABEL`, `ONBUILD`, `STOPSIGNAL`, `USER`, `VOLUME` or `WORKDIR`; what is
/// wrong with the line, in words.
pub fn apply(config: &mut RunConfig, line: &str) -> Result<(), String> {
    if line.len() > MAX_LINE {
        return Err(format!("it has over {MAX_LINE} bytes"));
    }
    let (instruction, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err(format!("{instruction:?} says nothing: write it like `CMD [\"sh\"]` or `ENV A=1`"));
    }
    match instruction.to_ascii_uppercase().as_str() {
        "CMD" => config.cmd = command(rest)?,
        "ENTRYPOINT" => {
            config.entrypoint = command(rest)?;
            // As in a Dockerfile: what the former one was given is not for this one.
            config.cmd.clear();
        }
        "ENV" => {
            for (name, value) in pairs(rest)? {
                set(&mut config.env, &format!("{name}={value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(rest)?),
        "EXPOSE" => {
            for port in words(rest)? {
                config.exposed_ports.insert(exposed(&port)?, json!({}));
            }
        }
        "VOLUME" => {
            let paths = exec_form(rest).map_or_else(|| words(rest), Ok)?;
            config.volumes.extend(paths.into_iter().map(|path| (path, json!({}))));
        }
        "ONBUILD" => config.on_build.push(rest.to_owned()),
        "STOPSIGNAL" => {
            crate::container::parse_signal(rest).map_err(|error| error.to_string())?;
            rest.clone_into(&mut config.stop_signal);
        }
        "USER" => config.user = one(rest)?,
        "WORKDIR" => {
            let dir = one(rest)?;
            let base = std::path::Path::new(if config.working_dir.is_empty() { "/" } else { &config.working_dir });
            config.working_dir = base.join(dir).display().to_string();
        }
        other => {
            return Err(format!(
                "there is no change {other}: there are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, \
                 VOLUME and WORKDIR"
            ));
        }
    }
    Ok(())
}

/// Sets `NAME=VALUE` in a list of such, in place where the name is there.
pub fn set(env: &mut Vec<String>, pair: &str) {
    let name = |it: &str| it.split('=').next().unwrap_or_default().to_owned();
    match env.iter_mut().find(|it| name(it) == name(pair)) {
        Some(old) => pair.clone_into(old),
        None => env.push(pair.to_owned()),
    }
}

/// `["a", "b"]`, or a line for the shell.
fn command(rest: &str) -> Result<Vec<String>, String> {
    match exec_form(rest) {
        Some(words) => Ok(words),
        None if rest.starts_with('[') => {
            Err("its list is no JSON of texts, like [\"sh\", \"-c\", \"date\"]".to_owned())
        }
        None => Ok(vec!["/bin/sh".into(), "-c".into(), rest.to_owned()]),
    }
}

fn exec_form(rest: &str) -> Option<Vec<String>> {
    match serde_json::from_str(rest).ok()? {
        Value::Array(items) => items.into_iter().map(|it| it.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn one(rest: &str) -> Result<String, String> {
    match words(rest)?.as_slice() {
        [one] => Ok(one.clone()),
        many => Err(format!("it has {} words, and one is wanted", many.len())),
    }
}

/// `A=1 B="two words"`, or the old form `A all the rest`.
fn pairs(rest: &str) -> Result<Vec<(String, String)>, String> {
    let words = words(rest)?;
    if words.first().is_some_and(|first| !first.contains('=')) {
        let (name, value) = rest.split_once(char::is_whitespace).ok_or("it has a name and no value")?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{word:?} is no NAME=VALUE")),
    };
    words.into_iter().map(pair).collect()
}

/// `80`, `53/udp`, `8000-8010/tcp`.
fn exposed(text: &str) -> Result<String, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
    let is_range = ports.split_once('-').is_some_and(|(first, last)| is_port(first) && is_port(last));
    if (is_port(ports) || is_range) && ["tcp", "udp", "sctp"].contains(&protocol) {
        return Ok(format!("{ports}/{protocol}"));
    }
    Err(format!("{text:?} is no port: write it like 80, 53/udp or 8000-8010/tcp"))
}

/// Words as a shell without variables would split them.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (Some('\''), letter) => word.get_or_insert_default().push(letter),
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (_, '\\') => word.get_or_insert_default().push(letters.next().ok_or("it ends with a backslash")?),
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err("a quote in it has no end".to_owned());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn applied(lines: &[&str]) -> RunConfig {
        let mut config = RunConfig {
            env: vec!["PATH=/bin".into(), "A=0".into()],
            cmd: vec!["old".into()],
            working_dir: "/srv".into(),
            ..RunConfig::default()
        };
        for line in lines {
            apply(&mut config, line).unwrap_or_else(|problem| panic!("{line}: {problem}"));
        }
        config
    }

    #[test]
    fn lines_of_a_dockerfile() {
        assert_eq!(applied(&[r#"CMD ["a", "b c"]"#]).cmd, ["a", "b c"]);
        assert_eq!(applied(&["cmd echo $HOME"]).cmd, ["/bin/sh", "-c", "echo $HOME"]);
        let entry = applied(&[r#"ENTRYPOINT ["/init"]"#]);
        assert_eq!((entry.entrypoint, entry.cmd), (vec!["/init".to_owned()], Vec::new()));
        assert_eq!(applied(&[r#"ENV A=1 B="two words" C=x\ y"#]).env, ["PATH=/bin", "A=1", "B=two words", "C=x y"]);
        assert_eq!(applied(&["ENV D all the rest"]).env, ["PATH=/bin", "A=0", "D=all the rest"]);
        assert_eq!(applied(&["LABEL team=lab 'a b'=''"]).labels, [("a b", ""), ("team", "lab")].map(owned).into());
        let ports: Vec<_> = applied(&["EXPOSE 80 53/udp"]).exposed_ports.into_keys().collect();
        assert_eq!(ports, ["53/udp", "80/tcp"]);
        let volumes: Vec<_> = applied(&[r#"VOLUME ["/data"]"#, "VOLUME /a /b"]).volumes.into_keys().collect();
        assert_eq!(volumes, ["/a", "/b", "/data"]);
        assert_eq!(applied(&["USER app:app"]).user, "app:app");
        assert_eq!(applied(&["WORKDIR sub"]).working_dir, "/srv/sub");
        assert_eq!(applied(&["WORKDIR /x"]).working_dir, "/x");
        assert_eq!(applied(&["STOPSIGNAL SIGINT"]).stop_signal, "SIGINT");
        assert_eq!(applied(&["ONBUILD RUN make"]).on_build, ["RUN make"]);
    }

    fn owned((key, value): (&str, &str)) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn what_is_no_change() {
        for (line, word) in [
            ("RUN make", "CMD"),
            ("CMD", "nothing"),
            ("CMD [\"a\"", "JSON"),
            ("ENV A", "no value"),
            ("ENV =1", "NAME=VALUE"),
            ("LABEL a=\"b", "quote"),
            ("EXPOSE 0", "port"),
            ("EXPOSE 80/icmp", "port"),
            ("USER a b", "one is wanted"),
            ("STOPSIGNAL NONE", "NONE"),
            ("USER a\\", "backslash"),
        ] {
            let problem = apply(&mut RunConfig::default(), line).expect_err(line);
            assert!(problem.contains(word), "{line}: {problem}");
        }
    }
}
