//! Fields, their types, and which go together.

use proptest::prelude::*;

use super::*;

fn mount(text: &str) -> Result<Mount> {
    parse(text, &mut |value| Ok(value.replace("$x", "cache")))
}

#[test]
fn kinds() {
    let base = Mount { read_only: true, ..Mount::default() };
    for (text, expected) in [
        ("target=/a", Mount { target: "/a".into(), ..base.clone() }),
        (
            "type=bind,from=b,src=/s,dst=/d,rw",
            Mount { from: "b".into(), source: "/s".into(), target: "/d".into(), read_only: false, ..base.clone() },
        ),
        (
            "type=$x,target=/c,sharing=locked,id=i,mode=0755,uid=1,gid=2,ro=true",
            Mount {
                kind: MountKind::Cache,
                target: "/c".into(),
                sharing: Some(Sharing::Locked),
                id: "i".into(),
                mode: Some(0o755),
                uid: Some(1),
                gid: Some(2),
                ..base.clone()
            },
        ),
        (
            "type=TMPFS,target=/t,size=64m",
            Mount {
                kind: MountKind::Tmpfs,
                target: "/t".into(),
                size: Some(64 << 20),
                read_only: false,
                ..base.clone()
            },
        ),
        (
            "type=secret,id=s,env=E,required",
            Mount { kind: MountKind::Secret, id: "s".into(), env: Some("E".into()), required: true, ..base.clone() },
        ),
        ("type=ssh,required=false,mode=600", Mount { kind: MountKind::Ssh, mode: Some(0o600), ..base.clone() }),
        ("\"target=/a,b\"", Mount { target: "/a,b".into(), ..base.clone() }),
    ] {
        assert_eq!(mount(text), Ok(expected), "{text}");
    }
}

#[test]
fn refused() {
    for (text, expected) in [
        ("type=foo", "unsupported mount type \"foo\""),
        ("type=cahce", "unsupported mount type \"cahce\" (did you mean cache?)"),
        ("targt=/a", "unexpected key 'targt' in 'targt=/a' (did you mean target?)"),
        ("foo", "invalid field 'foo' must be a key=value pair"),
        ("ro=maybe", "invalid value for ro: maybe"),
        ("type=cache,sharing=share", "unsupported sharing value \"share\" (did you mean shared?)"),
        ("type=bind,mode=0644", "mode not allowed for \"bind\" type mounts"),
        ("type=tmpfs,uid=1", "uid not allowed for \"tmpfs\" type mounts"),
        ("type=cache,mode=9", "invalid value 9 for mode"),
        ("type=cache,size=1m", "unexpected key 'size' for mount type 'cache'"),
        ("type=tmpfs,size=x", "invalid value for size: x"),
        ("required", "unexpected key 'required' for mount type 'bind'"),
        ("required=true", "unexpected key 'required' for mount type 'bind'"),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,src=b", "both source and id can't be set"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=secret,id=a,sharing=locked", "secret mount should not define sharing"),
        ("type=bind,sharing=locked", "invalid cache sharing set for bind mount"),
        ("type=\"bind\"", "failed to parse csv mounts: bare \" in non-quoted-field"),
        ("\"a", "failed to parse csv mounts: extraneous or missing \" in quoted-field"),
    ] {
        assert_eq!(mount(text).unwrap_err().to_string(), expected, "{text}");
    }
    let error = from("type=bind,from=$a").unwrap_err().to_string();
    assert_eq!(error, "'from' doesn't support variable expansion, define alias stage instead");
    assert_eq!(from("type=$t,from=base,foo").unwrap(), "base");
}

#[test]
fn devices() {
    let named = |name: &str, required| Ok(Device { name: name.to_owned(), required });
    for (text, expected) in [
        ("v.com/d=foo", named("v.com/d=foo", false)),
        ("v.com/d", named("v.com/d", false)),
        ("v.com/d=foo,required", named("v.com/d=foo", true)),
        ("name=v.com/d=foo,required=false", named("v.com/d=foo", false)),
        ("a=b,name=c", Err("device name already set to a=b".to_owned())),
        ("a=b,foo", Err("invalid field 'foo' must be a key=value pair".to_owned())),
    ] {
        assert_eq!(device(text).map_err(|it| it.to_string()), expected, "{text}");
    }
}

#[test]
fn sizes() {
    for (text, expected) in [
        ("10", Some(10)),
        ("1.5k", Some(1536)),
        ("2 MiB", Some(2 << 20)),
        ("1Gb", Some(1 << 30)),
        ("-1", None),
        ("k", None),
        ("1x", None),
        ("1e99", None),
        ("99999999p", None),
    ] {
        assert_eq!(bytes(text), expected, "{text}");
    }
}

proptest! {
    #[test]
    fn never_panics(text in "(type=|from=|size=|[a-z\",=$0-9]){0,12}", any in ".*") {
        for text in [&text, &any] {
            let _ = (mount(text), from(text), device(text));
        }
    }
}
