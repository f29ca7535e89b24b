//! Steps, configuration and history, as BuildKit makes them of the same files.

use proptest::prelude::*;

use super::*;
use crate::build::args::Options;
use crate::build::dockerfile::mount::Sharing;
use crate::build::graph::{Needed, Source};
use crate::build::ignore::Matcher;

fn options() -> Options {
    Options::new("linux/amd64".parse().unwrap())
}

fn with(text: &str, options: Options, bases: &Bases) -> Result<Plan> {
    let mut warnings = Warnings::default();
    let mut graph = Graph::new(text, options, &mut warnings)?;
    graph.resolve(bases)?;
    graph.plan(bases, &mut warnings)
}

fn plan(text: &str) -> Result<Plan> {
    with(text, options(), &Bases::new())
}

/// The wanted stage.
fn last(text: &str) -> PlannedStage {
    let mut plan = plan(text).unwrap_or_else(|it| panic!("{it}"));
    plan.stages.remove(plan.target)
}

fn history(stage: &PlannedStage) -> Vec<&str> {
    stage.config.history.iter().map(|it| it.created_by.as_str()).collect()
}

fn runs(stage: &PlannedStage) -> Vec<&PlannedRun> {
    stage.steps.iter().filter_map(|it| if let Action::Run(run) = &it.action { Some(&**run) } else { None }).collect()
}

fn copies(stage: &PlannedStage) -> Vec<&Copies> {
    stage.steps.iter().filter_map(|it| if let Action::Copy(it) = &it.action { Some(&**it) } else { None }).collect()
}

#[test]
fn configuration() {
    let it = last(
        "FROM scratch\nENV A=1 B=\"x y\"\nENV A=${A}2\nLABEL l=$A\nMAINTAINER me\nEXPOSE 90 ${A:+80}/udp\nVOLUME /v [\"x\"]\nUSER u$A\n\
         WORKDIR /w\nWORKDIR sub/../s\nSHELL [\"bash\", \"-c\"]\nCMD run it\nENTRYPOINT [\"e\", \"f g\"]\nSTOPSIGNAL SIG${x:-TERM}\n\
         HEALTHCHECK --interval=1m --retries=3 CMD ok\nONBUILD RUN later\n",
    );
    let config = &it.config.config;
    assert_eq!(config.env, [PATH, "A=12", "B=x y"]);
    assert_eq!((config.labels["l"].as_str(), it.config.author.as_str(), config.user.as_str()), ("12", "me", "u12"));
    assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["80/udp", "90/tcp"]);
    assert_eq!(config.volumes.keys().collect::<Vec<_>>(), ["/v", "[x]"]);
    assert_eq!((config.working_dir.as_str(), config.stop_signal.as_str()), ("/w/s", "SIGTERM"));
    assert_eq!((config.cmd.join("|"), config.args_escaped), ("bash|-c|run it".into(), true));
    assert_eq!((config.entrypoint.join("|"), config.on_build.join("|")), ("e|f g".into(), "RUN later".into()));
    let health = serde_json::json!({"Test": ["CMD-SHELL", "ok"], "Interval": 60_000_000_000i64, "Retries": 3});
    assert_eq!(config.healthcheck, Some(health));
    assert_eq!((it.config.os.as_str(), it.config.architecture.as_str()), ("linux", "amd64"));
    let expected = [
        "ENV A=1 B=x y",
        "ENV A=12",
        "LABEL l=12",
        "MAINTAINER me",
        "EXPOSE [80/udp 90/tcp]",
        "VOLUME [/v [x]]",
        "USER u12",
        "WORKDIR /w",
        "WORKDIR /w/s",
        "SHELL [bash -c]",
        "CMD [\"bash\" \"-c\" \"run it\"]",
        "ENTRYPOINT [\"e\" \"f g\"]",
        "STOPSIGNAL SIGTERM",
        "HEALTHCHECK {Test:[CMD-SHELL ok] Interval:1m0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:3}",
    ];
    assert_eq!(history(&it), expected);
    let layers: Vec<_> =
        it.config.history.iter().filter(|it| !it.empty_layer).map(|it| it.created_by.as_str()).collect();
    assert_eq!(layers, ["WORKDIR /w", "WORKDIR /w/s"]);
    assert!(it.config.history.iter().all(|it| it.comment == COMMENT && it.created.is_none()));
}

#[test]
fn commands_of_the_base() {
    let mut config = ImageConfig { architecture: "amd64".into(), os: "linux".into(), ..ImageConfig::default() };
    config.config.cmd = vec!["base".into()];
    config.config.entrypoint = vec!["in".into()];
    config.config.working_dir = "/b".into();
    config.config.env = vec!["X=1".into()];
    config.history.push(History { created_by: "old".into(), ..History::default() });
    let need = Needed { image: "docker.io/library/b:latest".into(), platform: "linux/amd64".into() };
    let bases = Bases::from([(need, config)]);
    for (text, entrypoint, cmd) in [
        ("FROM b", "in", "base"),
        ("FROM b\nENTRYPOINT [\"x\"]", "x", ""),
        ("FROM b\nCMD [\"c\"]\nENTRYPOINT [\"x\"]", "x", "c"),
        ("FROM b\nENTRYPOINT [\"x\"]\nCMD [\"c\"]", "x", "c"),
        ("FROM b\nENTRYPOINT []", "", ""),
        ("FROM b AS a\nCMD [\"c\"]\nFROM a\nENTRYPOINT [\"x\"]", "x", ""),
    ] {
        let it = with(text, options(), &bases).unwrap();
        let config = &it.stages[it.target].config;
        assert_eq!(
            (config.config.entrypoint.join(" "), config.config.cmd.join(" ")),
            (entrypoint.into(), cmd.into()),
            "{text}"
        );
        assert_eq!(
            (config.config.env.join(" "), config.history[0].created_by.as_str()),
            (format!("X=1 {PATH}"), "old")
        );
    }
    let it = with("FROM b\nWORKDIR c\nCOPY x y/", options(), &bases).unwrap();
    assert_eq!(copies(&it.stages[0])[0].destination, "/b/c/y/");
    assert_eq!(it.stages[0].steps[0].title, "[2/3] WORKDIR c");
}

#[test]
fn arguments() {
    let mut given = options();
    given.build_args =
        [("G", "given"), ("HTTP_PROXY", "p"), ("no_proxy", "n"), ("V", "9")].map(|(a, b)| (a.into(), b.into())).into();
    let text = "ARG V=1\nARG W=$V-w\nFROM a AS base\nARG G=def\nARG D=\"${G}-d\"\nENV E=$D$V\nRUN x\nFROM base\nARG V W\nARG NONE TARGETARCH\nRUN \"y\" $V";
    let it = with(text, given, &Bases::new()).unwrap();
    let (base, last) = (&it.stages[0], &it.stages[1]);
    assert_eq!(base.config.config.env, [PATH, "E=given-d"]);
    assert_eq!(
        history(base),
        ["ARG G=given", "ARG D=given-d", "ENV E=given-d", "RUN |2 G=given D=given-d /bin/sh -c x # buildkit"]
    );
    assert_eq!(
        history(last)[4..],
        [
            "ARG V=9 W=9-w",
            "ARG NONE TARGETARCH=amd64",
            "RUN |6 G=given D=given-d V=9 W=9-w NONE= TARGETARCH=amd64 /bin/sh -c \"y\" $V # buildkit",
        ]
    );
    let run = runs(last)[1 - 1];
    assert_eq!(run.proxies, [("HTTP_PROXY".into(), "p".into()), ("no_proxy".into(), "n".into())]);
    assert!(
        run.env.contains(&("W".into(), "9-w".into()))
            && !run.env.iter().any(|it| it.0 == "NONE" || it.0 == "HTTP_PROXY")
    );
    assert_eq!(last.steps[0].title, "[stage-1 1/1] RUN \"y\" 9");
    assert_eq!(base.steps[0].title, "[base 2/2] RUN x");
}

#[test]
fn commands() {
    let it = last(
        "FROM a\nSHELL [\"sh\", \"-ec\"]\nRUN [\"a\", \"b c\"]\nRUN <<E\none\ntwo\nE\nRUN <<-E\n\t#!/bin/x\n\tgo\nE\nRUN cat <<A <<B\na\nA\nb\nB\n\
         USER u\nWORKDIR /w\nRUN --network=none --security=insecure --device=v/d=1 x",
    );
    let runs = runs(&it);
    let lines: Vec<_> = runs.iter().map(|it| it.arguments.join("|")).collect();
    let expected = ["a|b c", "sh|-ec|one\ntwo\n", "sh|-ec|/dev/pipes/E", "sh|-ec|cat <<A <<B\na\nA\nb\nB", "sh|-ec|x"];
    assert_eq!(lines, expected);
    assert_eq!(runs[2].script.as_ref().map(|it| it.data.as_str()), Some("#!/bin/x\ngo\n"));
    assert_eq!(it.steps[1].title, "[3/7] RUN <<E (one...)");
    assert_eq!((runs[4].user.as_str(), runs[4].dir.as_str(), runs[4].insecure), ("u", "/w", true));
    let Action::Folder { path, user } = &it.steps[4].action else { panic!() };
    assert_eq!((path.as_str(), user.as_str()), ("/w", "u"));
}

#[test]
fn mounts() {
    let it = last(
        "FROM x AS tool\nFROM a\nARG T=/t\nWORKDIR /w\nRUN --mount=type=cache,target=c,id=i,sharing=private,uid=5 --mount=from=tool,source=s,target=$T \
         --mount=type=tmpfs,target=/m,size=1k --mount=type=secret,id=k --mount=type=secret,id=k2,env=K --mount=type=secret,src=k3,dst=/k,required \
         --mount=type=ssh,id=a --mount=type=cache,target=/c2,from=tool y",
    );
    let all: Vec<_> =
        runs(&it)[0].mounts.iter().map(|it| (it.from.clone(), it.target.as_deref(), it.source.as_str())).collect();
    let secret = |id: &str, env: Option<&str>, required| MountFrom::Secret {
        id: id.into(),
        env: env.map(str::to_owned),
        required,
    };
    let cache = |id: &str, sharing, first| MountFrom::Cache { id: id.into(), sharing, first };
    let expected = [
        (cache("i", Sharing::Private, Source::Scratch), Some("/w/c"), "/"),
        (MountFrom::Bind(Source::Stage(0)), Some("/t"), "/s"),
        (MountFrom::Tmpfs(Some(1024)), Some("/m"), "/"),
        (secret("k", None, false), Some("/run/secrets/k"), "/"),
        (secret("k2", Some("K"), false), None, "/"),
        (secret("k3", None, true), Some("/k"), "/k3"),
        (MountFrom::Ssh { id: "a".into(), required: false }, None, "/"),
        (cache("/c2", Sharing::Shared, Source::Stage(0)), Some("/c2"), "/"),
    ];
    assert_eq!(all, expected);
}

#[test]
fn files() {
    let it = last(
        "FROM x AS st\nFROM a\nARG D=dst\nWORKDIR /w\nCOPY --chown=1:2 --chmod=644 --exclude=*.o a c $D/\nCOPY --from=st --parents /x/./y/*.c z .\n\
         ADD --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 https://h/p/f.tgz?x=1 /f\nADD a.tar https://h/r.git#v:s /o/\n\
         COPY <<A <<'B' /i/\n$D\nA\n$D\nB\nADD --unpack=false --link b.tar .",
    );
    let all = copies(&it);
    let path = |source: Source, path: &str, parents: Option<&str>, required: Option<&str>, unpack| From::Path {
        source,
        path: path.into(),
        parents: parents.map(str::to_owned),
        required: required.map(str::to_owned),
        unpack,
    };
    let plain = |it: &str| path(Source::Context, it, None, None, false);
    assert_eq!(all[0].sources, [plain("/a"), plain("/c")]);
    assert_eq!(
        (all[0].destination.as_str(), all[0].chown.as_str(), &all[0].mode),
        ("/w/dst/", "1:2", &Some(Mode::Octal(0o644)))
    );
    assert_eq!(
        all[1].sources,
        [
            path(Source::Stage(0), "/x", Some("y/*.c"), None, false),
            path(Source::Stage(0), "/", Some("z"), Some("/z"), false)
        ]
    );
    let From::Url { name, checksum, unpack, .. } = &all[2].sources[0] else { panic!() };
    assert_eq!((name.as_str(), checksum.is_some(), *unpack), ("f.tgz", true, false));
    assert_eq!(all[3].sources[0], path(Source::Context, "/a.tar", None, None, true));
    let From::Git(git) = &all[3].sources[1] else { panic!() };
    assert_eq!((git.remote.as_str(), git.reference.as_str(), git.folder.as_str()), ("https://h/r.git", "v", "s"));
    let inline = |name: &str, data: &str| From::Inline(Inline { name: name.into(), data: data.into() });
    assert_eq!(all[4].sources, [inline("A", "dst\n"), inline("B", "$D\n")]);
    assert_eq!((all[5].sources[0].clone(), all[5].link), (path(Source::Context, "/b.tar", None, None, false), true));
    let copied: Vec<_> = history(&it).into_iter().filter(|it| it.starts_with("COPY")).collect();
    let expected = ["COPY --parents /x/./y/*.c z . # buildkit", "COPY <<A <<B /i/ # buildkit"];
    assert_eq!(copied[1..], expected);
}

#[test]
fn refused() {
    for (text, expected, line) in [
        (
            "FROM a AS x\nCOPY --from=y b /\nFROM a AS y\nFROM x",
            "cannot copy from stage \"y\", it needs to be defined before current stage \"x\"",
            2,
        ),
        (
            "FROM a AS x\nRUN --mount=from=y,target=/m b\nFROM a AS y\nFROM x",
            "cannot mount from stage \"y\" to \"/m\", stage needs to be defined before current command",
            2,
        ),
        ("FROM a\nENV A=\"${B:?need B}\"", "failed to process \"\\\"${B:?need B}\\\"\": B: need B", 2),
        (
            "FROM a\nCOPY --chmod=9 b /",
            "invalid chmod parameter: '9'. it should be octal string and between 0 and 07777",
            2,
        ),
        (
            "FROM a\nCOPY --link --chown=me b /",
            "--chown=me: user and group names can't be resolved when used with --link, use numeric uid[:gid] instead",
            2,
        ),
        ("FROM a\nCOPY https://x/y /", "source can't be a URL for COPY", 2),
        ("FROM a\nCOPY git@x:y /", "source can't be a git ref for COPY", 2),
        ("FROM a\nADD --checksum=sha256:a b c /", "checksum can't be specified for multiple sources", 2),
        ("FROM a\nADD --checksum=sha256:a b /", "checksum requires HTTP(S) or Git sources", 2),
        ("FROM a\nADD --checksum=sha256:a https://b/c /", "invalid checksum digest length", 2),
        ("FROM a\nRUN --mount=target=/ x", "invalid mount target \"/\"", 2),
        ("FROM a\nRUN --mount=type=ssh,src=/a x", "ssh does not support source", 2),
        ("FROM a\nRUN --mount=type=fo x", "unsupported mount type \"fo\"", 2),
        ("FROM a\nSTOPSIGNAL SIGFOO", "invalid signal: SIGFOO", 2),
        ("FROM a\nEXPOSE 80/foo", "invalid port: \"80/foo\": invalid proto: foo", 2),
        ("# check=error=true\nFROM a as b", "lint violation found for rules: FromAsCasing", 0),
    ] {
        let error = plan(text).unwrap_err();
        assert_eq!(error.to_string(), expected, "{text}");
        assert_eq!(error.lines().first().map_or(0, |it| it.first), line, "{text}");
    }
}

#[test]
fn found_by_the_rules() {
    for (text, expected) in [
        (
            "FROM a\nRUN $FOO\nCOPY $FOO $HOMW /x",
            &[
                "3 UndefinedVar: Usage of undefined variable '$FOO'",
                "3 UndefinedVar: Usage of undefined variable '$HOMW'",
            ][..],
        ),
        (
            "FROM a\nENV GREETING=hi\nUSER $GREETNG",
            &["3 UndefinedVar: Usage of undefined variable '$GREETNG' (did you mean $GREETING?)"],
        ),
        ("FROM a\nARG X\nUSER ${X}u", &[]),
        (
            "FROM a\nCMD x\nENTRYPOINT y",
            &[
                "2 JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
                "3 JSONArgsRecommended: JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related to OS signals",
            ],
        ),
        ("FROM a\nSHELL [\"sh\"]\nCMD x", &[]),
        (
            "FROM a\nCMD [\"x\"]\nCMD [\"y\"]",
            &[
                "2 MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used",
            ],
        ),
        (
            "FROM a\nENV x y",
            &["2 LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key value\" format"],
        ),
        (
            "FROM a\nLABEL x y",
            &[
                "2 LegacyKeyValueFormat: \"LABEL key=value\" should be used instead of legacy \"LABEL key value\" format",
            ],
        ),
        (
            "FROM a\nENV API_KEY=x\nARG TOKEN",
            &[
                "2 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV \"API_KEY\")",
                "3 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG \"TOKEN\")",
            ],
        ),
        (
            "FROM a\nWORKDIR x\nWORKDIR y",
            &["2 WorkdirRelativePath: Relative workdir \"x\" can have unexpected results if the base image changes"],
        ),
        ("FROM a\nWORKDIR /x\nWORKDIR y", &[]),
        (
            "FROM a\nEXPOSE 80/TCP",
            &["2 ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase"],
        ),
        ("FROM a\n# check=skip=WorkdirRelativePath\nWORKDIR x", &[]),
        (
            "FROM a\nCOPY out/x src /x\nADD . /y",
            &["2 CopyIgnoredFile: Attempting to Copy file \"out/x\" that is excluded by .dockerignore"],
        ),
    ] {
        let mut with_ignore = options();
        with_ignore.ignore = Some(Matcher::new(&["out".to_owned()]).unwrap());
        let warnings = with(text, with_ignore, &Bases::new()).unwrap().warnings.0;
        let got: Vec<_> =
            warnings.iter().map(|it| format!("{} {}: {}", it.lines.first, it.rule.name(), it.detail)).collect();
        assert_eq!(got, expected, "{text}");
    }
}

#[test]
fn of_another_platform() {
    let mut given = options();
    given.platform = Some("linux/arm/v7".parse().unwrap());
    given.labels.insert("a".into(), "b".into());
    given.build_args.insert("SOURCE_DATE_EPOCH".into(), "1600000000".into());
    given.no_cache = Some(vec!["X".into()]);
    let base = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
    let need = Needed { image: "docker.io/library/a:latest".into(), platform: "linux/arm/v7".into() };
    let it = with("FROM a AS x\nENV a=b\nFROM x AS y", given, &Bases::from([(need, base)])).unwrap();
    let config = &it.stages[it.target].config;
    assert_eq!((config.architecture.as_str(), config.variant.as_deref()), ("arm", Some("v7")));
    assert_eq!(
        (config.config.labels["a"].as_str(), config.history[0].created.as_deref()),
        ("b", Some("2020-09-13T12:26:40Z"))
    );
    assert_eq!((it.stages[0].no_cache, it.stages[1].no_cache), (true, false));
    let expected = "Base image a was pulled with platform \"linux/amd64\", expected \"linux/arm/v7\" for current build";
    assert_eq!(it.warnings.0[0].detail, expected);
}

#[test]
fn bounded() {
    let mut text = "FROM a\nENV A=xxxxxxxxxxxxxxxx\n".to_owned();
    text += &"ENV A=$A$A\n".repeat(40);
    let error = plan(&text).unwrap_err().to_string();
    assert!(error.ends_with("the result is longer than 1048576 bytes"), "{error}");
    let mut text = "FROM a\nENV A=xxxxxxxxxxxxxxxx\n".to_owned();
    text += &"ENV A=$A$A\n".repeat(15);
    text += &"LABEL a=$A\n".repeat(1000);
    assert!(plan(&text).unwrap_err().to_string().starts_with("what this file expands to is larger"));
    // Each stage has a copy of what its base has.
    let mut text = "FROM a AS s0\n".to_owned();
    for at in 1..900 {
        text += &format!("FROM s{} AS s{at}\n{}", at - 1, "ENV a=b\n".repeat(20));
    }
    assert!(plan(&text).unwrap_err().to_string().starts_with("what this file expands to is larger"));
    let ports = format!("FROM a\nEXPOSE {}", "1-65535 ".repeat(4));
    assert_eq!(plan(&ports).unwrap_err().to_string(), "the image would have more than 10000 ports");
}

proptest! {
    #[test]
    fn never_panics(text in "FROM a( AS b)?\n((RUN|COPY|ADD|ENV|ARG|CMD|ONBUILD|FROM|VOLUME|EXPOSE|WORKDIR|USER) ?(--(mount|from|chown)=[a-z,=$0]{0,9})? ?[a <\\[\"A$\\{\\}:0-]{0,8}\n?){0,8}") {
        let _ = plan(&text);
    }
}
