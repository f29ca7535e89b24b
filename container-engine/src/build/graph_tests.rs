//! Bases, sources, targets, circles, triggers.

use super::*;

fn options() -> Options {
    Options::new("linux/amd64".parse().unwrap())
}

fn graph(text: &str, options: Options) -> Result<Graph> {
    Graph::new(text, options, &mut Warnings::default())
}

fn warned(text: &str) -> Vec<String> {
    let mut warnings = Warnings::default();
    match Graph::new(text, options(), &mut warnings) {
        Ok(graph) => warnings = graph.warnings,
        Err(error) => panic!("{error}"),
    }
    warnings.0.iter().map(|it| format!("{} {}: {}", it.lines.first, it.rule.name(), it.detail)).collect()
}

fn image(name: &str) -> ImageRef {
    name.parse().unwrap()
}

#[test]
fn bases() {
    let text =
        "ARG V=3.20\nARG P=arm64\nFROM alpine:$V AS a\nFROM a AS b\nFROM scratch\nFROM --platform=linux/$P debian AS c";
    let it = graph(text, options()).unwrap();
    let bases: Vec<_> = it.stages().iter().map(|it| it.base.clone()).collect();
    assert_eq!(bases, [Base::Image(image("alpine:3.20")), Base::Stage(0), Base::Scratch, Base::Image(image("debian"))]);
    assert_eq!(it.stages()[3].platform, Some("linux/arm64".parse().unwrap()));
    assert_eq!(it.stages().iter().map(|it| it.title.as_str()).collect::<Vec<_>>(), ["a", "b", "stage-2", "c"]);
}

#[test]
fn needed() {
    let text = "FROM a AS base\nFROM base AS one\nFROM b AS unused\nFROM c\nCOPY --from=one /x /\nCOPY --from=img /x /\n\
                RUN --mount=from=1,target=/m x\nCOPY --from=unused /x /\nFROM d AS last";
    let mut wanted = options();
    wanted.target = Some("ONE".into());
    assert_eq!(graph(text, wanted.clone()).unwrap().reachable(), [true, true, false, false, false]);
    wanted.target = None;
    assert_eq!(graph(text, wanted.clone()).unwrap().reachable(), [false, false, false, false, true]);
    wanted.all_stages = true;
    assert_eq!(graph(text, wanted).unwrap().reachable(), [true; 5]);
}

#[test]
fn sources() {
    let text = "FROM a AS first\nFROM b\nCOPY x /\nCOPY --from=FIRST x /\nCOPY --from=0 x /\nCOPY --from=img:1 x /\nCOPY --from=ctx x /\n\
                RUN --mount=type=cache,target=/c --mount=from=first,target=/d --mount=from=scratch,target=/e x";
    let mut with = options();
    with.contexts = ["ctx".to_owned()].into();
    let it = graph(text, with).unwrap();
    let all: Vec<_> = it.stages()[1].steps.iter().map(|it| it.sources.clone()).collect();
    let expected = [
        vec![Source::Context],
        vec![Source::Stage(0)],
        vec![Source::Stage(0)],
        vec![Source::Image(image("img:1"))],
        vec![Source::Named("ctx".into())],
        vec![Source::Context, Source::Stage(0), Source::Scratch],
    ];
    assert_eq!(all, expected);
}

#[test]
fn contexts_replace() {
    let mut with = options();
    with.contexts = ["alpine".to_owned(), "tools".to_owned(), "debian:12::linux/arm64".to_owned()].into();
    let text = "FROM alpine:latest\nFROM x AS tools\nRUN y\nFROM --platform=linux/arm64 debian:12\nFROM --platform=linux/amd64 debian:12";
    let it = graph(text, with).unwrap();
    let bases: Vec<_> = it.stages().iter().map(|it| it.base.clone()).collect();
    let context = |it: &str| Base::Context(it.to_owned());
    assert_eq!(
        bases,
        [context("alpine"), context("tools"), context("debian:12::linux/arm64"), Base::Image(image("debian:12"))]
    );
    assert!(it.stages()[1].steps.is_empty());
}

#[test]
fn refused() {
    for (text, expected, line) in [
        ("FROM a\nCOPY --from=1 x /", "invalid stage index 1", 2),
        ("FROM a\nCOPY --from=-1 x /", "invalid stage index -1", 2),
        (
            "FROM a\nCOPY --from=$x x /",
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
            2,
        ),
        ("FROM $x", "base name ($x) should not be blank", 1),
        ("FROM A:B:C", "failed to parse stage name \"A:B:C\": ", 1),
        (
            "FROM --platform=$TARGETPLATFROM a",
            "empty platform value from expression $TARGETPLATFROM (did you mean TARGETPLATFORM?)",
            1,
        ),
        ("FROM --platform=a/b/c/d a", "failed to parse platform a/b/c/d: ", 1),
        ("FROM a AS x\nCOPY --from=x y /", "circular dependency detected on stage: x", 2),
        (
            "FROM a AS x\nCOPY --from=y y /\nFROM a AS y\nRUN --mount=from=x,target=/a b",
            "circular dependency detected on stage: x",
            2,
        ),
        ("", "the Dockerfile cannot be empty", 0),
        ("# check=foo=1\nFROM a", "failed to parse check options: invalid check option \"foo\"", 0),
    ] {
        let error = graph(text, options()).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{text}: {error}");
        assert_eq!(error.lines().first().map_or(0, |it| it.first), line, "{text}");
    }
    let mut wanted = options();
    wanted.target = Some("bild".into());
    let error = graph("FROM a AS build", wanted).unwrap_err().to_string();
    assert_eq!(error, "target stage \"bild\" could not be found (did you mean build?)");
}

#[test]
fn triggers() {
    let text = "FROM base AS x\nONBUILD RUN one\nFROM x\nRUN own\nFROM other\nCOPY --from=1 a /";
    let mut it = graph(text, options()).unwrap();
    let missing: Vec<_> = it.resolve(&Bases::new()).unwrap().into_iter().map(|it| it.image).collect();
    assert_eq!(missing, ["docker.io/library/base:latest", "docker.io/library/other:latest"]);
    let mut config = ImageConfig::default();
    config.config.on_build = vec!["COPY --from=tool a /".into(), "ENV a=b".into()];
    let need =
        |image: &str| Needed { image: format!("docker.io/library/{image}:latest"), platform: "linux/amd64".into() };
    let bases = Bases::from([(need("base"), config), (need("other"), ImageConfig::default())]);
    assert_eq!(it.resolve(&bases).unwrap(), [need("tool")]);
    let keywords = |index: usize| {
        it.stages()[index].steps.iter().map(|it| (it.step.code.as_str(), it.on_build)).collect::<Vec<_>>()
    };
    assert_eq!(keywords(0), [("COPY --from=tool a /", true), ("ENV a=b", true), ("ONBUILD RUN one", false)]);
    assert_eq!(keywords(1), [("RUN one", true), ("RUN own", false)]);
    let mut bad = ImageConfig::default();
    bad.config.on_build = vec!["RUN a\nRUN b".into()];
    let mut it = graph("FROM base", options()).unwrap();
    let error = it.resolve(&Bases::from([(need("base"), bad)])).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.lines()[0].first),
        ("onbuild trigger should be a single expression", 1)
    );
}

#[test]
fn found_by_the_rules() {
    for (text, expected) in [
        (
            "FROM a AS scratch",
            &["1 ReservedStageName: Stage name should not use the same name as reserved stage \"scratch\""][..],
        ),
        (
            "FROM a AS b\nFROM a AS b",
            &["2 DuplicateStageName: Duplicate stage name \"b\", stage names should be unique"],
        ),
        (
            "FROM a\nrun x\nRUN y",
            &["2 ConsistentInstructionCasing: Command 'run' should match the case of the command majority (uppercase)"],
        ),
        (
            "from a\nrun x\nRun y",
            &["3 ConsistentInstructionCasing: Command 'Run' should match the case of the command majority (lowercase)"],
        ),
        ("ARG V\nFROM a:v$V", &[]),
        (
            "ARG VERSION=1\nFROM a:${VERSON}x",
            &["2 UndefinedArgInFrom: FROM argument 'VERSON' is not declared (did you mean VERSION?)"],
        ),
        ("ARG V\nFROM ${V:-}b", &[]),
        (
            "FROM --platform=$TARGETPLATFORM a",
            &[
                "1 RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
            ],
        ),
        (
            "FROM --platform=linux/amd64 a",
            &["1 FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/amd64\""],
        ),
        ("FROM --platform=linux/amd64 a AS build_amd64", &[]),
        ("FROM a\nRUN x \\\n\n y", &["4 NoEmptyContinuation: Empty continuation line"]),
        ("# check=skip=NoEmptyContinuation\nFROM a\nRUN x \\\n\n y", &[]),
    ] {
        assert_eq!(warned(text), expected, "{text}");
    }
    let mut with = options();
    with.build_args.insert("V".into(), "a".into());
    let it = graph("ARG V\nFROM $V", with).unwrap();
    assert_eq!(it.warnings.0[0].detail, "Default value for ARG $V results in empty or invalid base image name");
}
