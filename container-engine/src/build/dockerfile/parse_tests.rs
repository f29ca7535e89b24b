//! Every instruction with every flag, and what is refused in BuildKit's words.

use proptest::prelude::*;

use super::*;

/// The one instruction behind `FROM a`.
fn one(text: &str) -> Result<Instruction> {
    let mut file = dockerfile(&format!("FROM a\n{text}"))?;
    Ok(file.stages.remove(0).steps.remove(0).instruction)
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn line(arguments: &[&str], shell: bool) -> CommandLine {
    CommandLine { arguments: texts(arguments), shell, files: Vec::new() }
}

#[test]
fn stages() {
    let file = dockerfile(
        "ARG V=1\nFROM --platform=$BUILDPLATFORM a:$V AS Build\nRUN x\n# run the thing\nfrom build as run\n",
    )
    .unwrap();
    assert_eq!((file.global.len(), file.stages.len()), (1, 2));
    let [build, run] = &file.stages[..] else { panic!() };
    assert_eq!((build.name.as_deref(), build.base.as_str()), (Some("build"), "a:$V"));
    assert_eq!(build.platform.as_deref(), Some("$BUILDPLATFORM"));
    assert_eq!((run.description.as_str(), run.keyword.as_str(), run.lines.first), ("the thing", "from", 5));
}

#[test]
fn copies() {
    let Instruction::Copy(copy) =
        one("COPY --from=0 --chown=1:2 --chmod=u+x --link --parents --exclude=*.o --exclude=b a [\"b\"] /c").unwrap()
    else {
        panic!()
    };
    assert_eq!((copy.from.as_str(), copy.parents, copy.files.link), ("0", true, true));
    assert_eq!((copy.files.chown.as_str(), copy.files.chmod.as_str()), ("1:2", "u+x"));
    assert_eq!((copy.files.exclude, copy.files.sources), (texts(&["*.o", "b"]), texts(&["a", "[\"b\"]"])));
    let Instruction::Add(add) =
        one("ADD --checksum=sha256:a --keep-git-dir --unpack=false --link=false [\"https://x/y z\", \"/d\"]").unwrap()
    else {
        panic!()
    };
    assert_eq!((add.checksum.as_str(), add.keep_git_dir, add.unpack), ("sha256:a", Some(true), Some(false)));
    assert_eq!((add.files.sources, add.files.destination.as_str()), (texts(&["https://x/y z"]), "/d"));
    let Instruction::Copy(copy) = one("COPY <<-A b <<'C' /d\n\t$x\n\tA\n $y\nC\n").unwrap() else { panic!() };
    let contents: Vec<_> = copy.files.contents.iter().map(|it| (&*it.name, &*it.data, it.expand)).collect();
    assert_eq!(contents, [("A", "$x\n", true), ("C", " $y\n", false)]);
    assert_eq!(copy.files.sources, ["b"]);
}

#[test]
fn runs() {
    let Instruction::Run(run) =
        one("RUN --mount=type=cache,target=/c --mount=from=b --network=none --security=insecure \
        --device=v/d=1,required [\"a\", \"b c\"]")
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(run.mounts, ["type=cache,target=/c", "from=b"]);
    assert_eq!((run.network, run.insecure, run.devices.len()), (Network::None, true, 1));
    assert_eq!(run.command, line(&["a", "b c"], false));
    let Instruction::Run(run) = one("RUN <<-E sh\n\ta\n\tE").unwrap() else { panic!() };
    assert_eq!(run.command.arguments, ["<<-E sh"]);
    assert_eq!(run.command.files, [InlineFile { name: "E".into(), data: "\ta\n".into(), chomp: true }]);
}

#[test]
fn others() {
    let health = Healthcheck {
        test: texts(&["CMD-SHELL", "curl x"]),
        interval: 300_000_000_000,
        timeout: 3_000_000_000,
        start_period: 1_500_000,
        start_interval: 5_000_000_000,
        retries: 4,
    };
    for (text, expected) in [
        ("CMD a b", Instruction::Cmd(line(&["a b"], true))),
        ("CMD [\"a\", \"b\"]", Instruction::Cmd(line(&["a", "b"], false))),
        ("CMD []", Instruction::Cmd(line(&[], false))),
        ("ENTRYPOINT [\"a\"]", Instruction::Entrypoint(line(&["a"], false))),
        ("EXPOSE 90 80/udp", Instruction::Expose(texts(&["80/udp", "90"]))),
        (
            "HEALTHCHECK NONE",
            Instruction::Healthcheck(Healthcheck { test: texts(&["NONE"]), ..Healthcheck::default() }),
        ),
        (
            "HEALTHCHECK --interval=5m --timeout=3s --start-period=1.5ms --start-interval=5s --retries=4 CMD curl x",
            Instruction::Healthcheck(health),
        ),
        (
            "HEALTHCHECK cmd [\"a\"]",
            Instruction::Healthcheck(Healthcheck { test: texts(&["CMD", "a"]), ..Healthcheck::default() }),
        ),
        ("MAINTAINER A B <c>", Instruction::Maintainer("A B <c>".into())),
        ("onbuild  RUN a \\\n b", Instruction::Onbuild("RUN a  b".into())),
        ("ONBUILD COPY <<A /b\nx\nA", Instruction::Onbuild("COPY <<A /b\nx\nA".into())),
        ("SHELL [\"a\", \"-c\"]", Instruction::Shell(texts(&["a", "-c"]))),
        ("STOPSIGNAL SIGTERM", Instruction::StopSignal("SIGTERM".into())),
        ("USER a:b", Instruction::User("a:b".into())),
        ("VOLUME /a /b", Instruction::Volume(texts(&["/a", "/b"]))),
        ("VOLUME [\" /a b \"]", Instruction::Volume(texts(&["/a b"]))),
        ("WORKDIR /a b", Instruction::Workdir("/a b".into())),
    ] {
        assert_eq!(one(text), Ok(expected), "{text}");
    }
    let Instruction::Arg(args) = one("# A first\nARG A B=\"c d\" E=").unwrap() else { panic!() };
    let args: Vec<_> = args.iter().map(|it| (&*it.name, it.value.as_deref(), &*it.description)).collect();
    assert_eq!(args, [("A", None, "first"), ("B", Some("\"c d\""), ""), ("E", Some(""), "")]);
}

#[test]
fn refused() {
    let two = "requires at least two arguments, but only one was provided. Destination could not be determined";
    for (text, expected) in [
        ("FORM b", "unknown instruction: FORM (did you mean FROM?)".to_owned()),
        ("entrypont b", "unknown instruction: entrypont (did you mean entrypoint?)".to_owned()),
        ("Whatever b", "unknown instruction: Whatever".to_owned()),
        ("FROM", "FROM requires either one or three arguments".to_owned()),
        ("FROM a b c", "FROM requires either one or three arguments".to_owned()),
        (
            "FROM a AS 1x",
            "invalid name for build stage: \"1x\", name can't start with a number or contain symbols".to_owned(),
        ),
        ("COPY a", format!("COPY {two}")),
        ("ADD a", format!("ADD {two}")),
        ("COPY --form=a b c", "unknown flag: --form (did you mean from?)".to_owned()),
        ("COPY a <<E\nE", "COPY cannot accept a heredoc as a destination".to_owned()),
        ("ENV", "ENV requires at least one argument".to_owned()),
        ("ENV =a", "ENV names can not be blank".to_owned()),
        ("LABEL", "LABEL requires at least one argument".to_owned()),
        ("ARG", "ARG requires at least one argument".to_owned()),
        ("ARG =a", "ARG names can not be blank".to_owned()),
        ("EXPOSE", "EXPOSE requires at least one argument".to_owned()),
        ("USER", "USER requires exactly one argument".to_owned()),
        ("WORKDIR", "WORKDIR requires exactly one argument".to_owned()),
        ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument".to_owned()),
        ("MAINTAINER", "MAINTAINER requires exactly one argument".to_owned()),
        ("VOLUME", "VOLUME requires at least one argument".to_owned()),
        ("VOLUME [\" \"]", "VOLUME specified can not be an empty string".to_owned()),
        ("SHELL sh", "SHELL requires the arguments to be in JSON form".to_owned()),
        ("SHELL []", "SHELL requires at least one argument".to_owned()),
        ("ONBUILD", "ONBUILD requires at least one argument".to_owned()),
        ("ONBUILD ONBUILD RUN a", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned()),
        ("ONBUILD FROM a", "FROM isn't allowed as an ONBUILD trigger".to_owned()),
        ("ONBUILD maintainer a", "MAINTAINER isn't allowed as an ONBUILD trigger".to_owned()),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument".to_owned()),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments".to_owned()),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD".to_owned()),
        ("HEALTHCHECK foo x", "Unknown type \"FOO\" in HEALTHCHECK (try CMD)".to_owned()),
        ("HEALTHCHECK --interval=1us CMD x", "Interval \"interval\" cannot be less than 1ms".to_owned()),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)".to_owned()),
        ("RUN --network=foo x", "invalid network mode \"foo\"".to_owned()),
        ("RUN --security=foo x", "security \"foo\" is not valid".to_owned()),
        ("RUN --mount=from=$a x", "'from' doesn't support variable expansion, define alias stage instead".to_owned()),
        ("RUN --mont=a x", "unknown flag: --mont (did you mean mount?)".to_owned()),
    ] {
        let error = dockerfile(&format!("FROM a\n{text}")).unwrap_err();
        assert_eq!(error.to_string(), format!("dockerfile parse error on line 2: {expected}"), "{text}");
        assert_eq!(error.lines().first().map(|it| it.first), Some(2));
    }
    let stages = "FROM a\n".repeat(MAX_STAGES + 1);
    for (text, expected) in [
        (&*stages, "the Dockerfile has more than 1000 stages"),
        ("RUN a", "no build stage in current context"),
        ("ARG a", "dockerfile contains no stages to build"),
    ] {
        assert_eq!(dockerfile(text).unwrap_err().to_string(), expected);
    }
}

#[test]
fn found_by_the_rules() {
    for (text, expected) in [
        ("FROM a as b", &["FromAsCasing: 'as' and 'FROM' keywords' casing do not match"][..]),
        ("from a AS b", &["FromAsCasing: 'AS' and 'from' keywords' casing do not match"]),
        ("From a as b", &[]),
        ("FROM a AS B", &["StageNameCasing: Stage name 'B' should be lowercase"]),
        (
            "FROM a\nMAINTAINER x",
            &["MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label"],
        ),
        (
            "# x\nFROM a AS b",
            &["InvalidDefinitionDescription: Comment for FROM should follow the format: `# b <description>`"],
        ),
        (
            "# x\nARG A B\nFROM a",
            &["InvalidDefinitionDescription: Comment for ARG should follow the format: `# <arg_key> <description>`"],
        ),
        ("# b x\nFROM a AS b", &[]),
        (
            "# check=skip=FromAsCasing\n# b\nFROM a as b",
            &["FromAsCasing: 'as' and 'FROM' keywords' casing do not match"],
        ),
        ("FROM c\n# check=skip=FromAsCasing\nFROM a as check=skip", &[]),
    ] {
        let mut warnings = Warnings::default();
        let linter = Linter::parse("experimental=all").unwrap();
        let _ = instructions(lexer::parse(text).unwrap(), &linter, &mut warnings);
        let got: Vec<_> = warnings.0.iter().map(|it| format!("{}: {}", it.rule.name(), it.detail)).collect();
        assert_eq!(got, expected, "{text}");
    }
}

proptest! {
    #[test]
    fn never_panics(text in "((RUN|COPY|ADD|ENV|ARG|CMD|ONBUILD|HEALTHCHECK|FROM|VOLUME|EXPOSE) ?(--[a-z]{2,5}=?)?[a <\\[\"A]{0,8}\n?){0,8}") {
        let _ = dockerfile(&text);
        let _ = trigger(&text);
    }
}
