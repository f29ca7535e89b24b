//! `join.toml`: joining without anybody at the board. Copied durably into the identity when it is first seen; renamed, its
//! secrets blanked, once the board is a member.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{JoinError, JoinOptions};

/// Where it is looked for, the first that is there.
pub const PLACES: [&str; 3] = ["/boot/firmware/join.toml", "/boot/join.toml", "/etc/edge-agent/join.toml"];
/// The copy in the identity.
pub(super) const COPY: &str = "join.toml";
/// Largest file, bytes.
const MAX: u64 = 64 << 10;
/// Characters of a token's two parts.
const TOKEN: (usize, usize) = (6, 16);

/// What `join.toml` says; none where there is none.
pub fn find(identity: &Path) -> Result<Option<JoinOptions>, JoinError> {
    find_in(identity, &PLACES.map(PathBuf::from))
}

fn find_in(identity: &Path, places: &[PathBuf]) -> Result<Option<JoinOptions>, JoinError> {
    let copy = identity.join(COPY);
    for place in places {
        match board::durable::read(place, MAX) {
            Ok(bytes) => {
                let options = parse(place, &bytes)?;
                // The card may be taken out, or written by another system, at any time.
                // It is looked at again and again until the board has joined; flash wears.
                if board::durable::read(&copy, MAX).ok().as_ref() != Some(&bytes) {
                    board::durable::write(&copy, &bytes, 0o600).map_err(JoinError::file(&copy))?;
                }
                return Ok(Some(options));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(JoinError::file(place)(error)),
        }
    }
    match board::durable::read(&copy, MAX) {
        Ok(bytes) => parse(&copy, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(JoinError::file(&copy)(error)),
    }
}

/// Reads a file of this form.
pub fn read(path: &Path) -> Result<JoinOptions, JoinError> {
    let bytes = board::durable::read(path, MAX).map_err(JoinError::file(path))?;
    parse(path, &bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<JoinOptions, JoinError> {
    let wrong = |problem: String| JoinError::File { path: path.to_owned(), problem };
    let text = std::str::from_utf8(bytes).map_err(|error| wrong(error.to_string()))?;
    let text = text.trim_start_matches('\u{feff}');
    // The error's own text shows the line, which may hold the token.
    ::toml::from_str(text).map_err(|error: ::toml::de::Error| wrong(error.message().to_owned()))
}

/// The board is a member: the file is renamed to `join.toml.done`, its secrets blanked, and the copy removed.
pub fn done(identity: &Path) -> Result<(), JoinError> {
    done_in(identity, &PLACES.map(PathBuf::from))
}

fn done_in(identity: &Path, places: &[PathBuf]) -> Result<(), JoinError> {
    for place in places {
        let Ok(bytes) = board::durable::read(place, MAX) else { continue };
        let blanked = blank(&String::from_utf8_lossy(&bytes));
        let mut renamed = place.as_os_str().to_owned();
        renamed.push(".done");
        // In place first: the secret is gone even where a rename does not work.
        board::durable::write(place, blanked.as_bytes(), 0o600).map_err(JoinError::file(place))?;
        std::fs::rename(place, &renamed).map_err(JoinError::file(place))?;
    }
    let copy = identity.join(COPY);
    match std::fs::remove_file(&copy) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(JoinError::file(&copy)(error)),
        _ => Ok(()),
    }
}

/// The text without anything that looks like a token, wherever it stands: in comments, quoted in any way, in what is no TOML.
/// What is still a secret then, because it is written with escapes or is no token, takes the whole text with it.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let is_token = |at: usize| {
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let Some(window) = bytes.get(at..at + TOKEN.0 + 1 + TOKEN.1) else { return false };
        window[..TOKEN.0].iter().all(plain) && window[TOKEN.0] == b'.' && window[TOKEN.0 + 1..].iter().all(plain)
    };
    let (mut blanked, mut from, mut at) = (String::with_capacity(text.len()), 0, 0);
    while at < bytes.len() {
        if is_token(at) {
            // A token is ASCII, so that both ends are between characters.
            blanked.push_str(&text[from..at]);
            at += TOKEN.0 + 1 + TOKEN.1;
            from = at;
        } else {
            at += 1;
        }
    }
    blanked.push_str(&text[from..]);
    let has_secrets = |it: &JoinOptions| !it.token.is_empty() || it.renewal_token.iter().any(|it| !it.is_empty());
    match ::toml::from_str::<JoinOptions>(&blanked) {
        Ok(options) if has_secrets(&options) => String::new(),
        _ => blanked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "server = \"h:6443\"\ntoken = \"abcdef.0123456789abcdef\"\nca_cert_hashes = [\"sha256:00\"]\n";

    #[test]
    fn it_is_copied_then_blanked() {
        let dir = tempfile::tempdir().unwrap();
        let (place, identity) = (dir.path().join("join.toml"), dir.path().join("identity"));
        std::fs::create_dir(&identity).unwrap();
        let places = [place.clone()];
        assert_eq!(find_in(&identity, &places).unwrap(), None);
        std::fs::write(&place, TEXT).unwrap();
        let found = find_in(&identity, &places).unwrap().unwrap();
        assert_eq!((found.server.as_str(), found.token.expose()), ("h:6443", "abcdef.0123456789abcdef"));
        std::fs::remove_file(&place).unwrap();
        assert_eq!(find_in(&identity, &places).unwrap(), Some(found));
        std::fs::write(&place, TEXT).unwrap();
        done_in(&identity, &places).unwrap();
        assert_eq!(find_in(&identity, &places).unwrap(), None);
        let left = std::fs::read_to_string(dir.path().join("join.toml.done")).unwrap();
        assert!(left.contains("h:6443") && !left.contains("0123456789abcdef"), "{left}");
    }

    #[test]
    fn no_secret_stays_however_it_is_written() {
        #[track_caller]
        fn check(text: &str, keeps: &str) {
            let left = blank(text);
            assert!(!left.contains("abcdef") && !left.contains("0123456789"), "{left}");
            assert!(left.contains(keeps), "{left}");
        }
        check(TEXT, "server = \"h:6443\"");
        check("'token'=\"\"\"\nabcdef.0123456789abcdef\"\"\"\n# é abcdef.0123456789abcdef\r\nserver='h'", "# é");
        check(
            "token = \"abcdef.0123456789abcdef\"\nrenewal_token = \"abcdef.0123456789abcdef\"",
            "renewal_token = \"\"",
        );
        check("no TOML: abcdef.0123456789abcdef", "no TOML");
        check("token = \"\\u0061bcdef.0123456789abcdef\"", "");
        check("", "");
    }

    #[test]
    fn what_editors_of_other_systems_write_is_read() {
        let text = format!("\u{feff}{}", TEXT.replace('\n', "\r\n"));
        assert_eq!(parse(Path::new("join.toml"), text.as_bytes()).unwrap().server, "h:6443");
    }

    #[test]
    fn what_is_wrong_is_named_without_its_secret() {
        let path = Path::new("join.toml");
        for wrong in ["tokken = \"abcdef.0123456789abcdef\"", "token = abcdef.0123456789abcdef", "\u{0}"] {
            let error = parse(path, wrong.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("join.toml: ") && !error.contains("0123456789"), "{error}");
        }
    }
}
