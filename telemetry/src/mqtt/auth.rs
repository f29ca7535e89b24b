//! Who may connect, and what they may publish and subscribe to.

use std::{collections::BTreeMap, fmt, num::NonZeroU32};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::topic;

/// Most rounds of a hash: a configuration mistake must not stall a connection for minutes.
const MAX_ROUNDS: u32 = 1_000_000;

/// A secret that no log or error shows.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// As it is.
    Plain(String),
    /// PBKDF2-HMAC-SHA256.
    Hash {
        /// Iterations.
        rounds: NonZeroU32,
        /// Salt.
        salt: Vec<u8>,
        /// Expected output, 32 bytes.
        hash: Vec<u8>,
    },
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Password {
    /// Reads `pbkdf2-sha256$ROUNDS$SALT$HASH` (base64); anything else is the password itself. `None` for a broken hash.
    pub fn parse(text: &str) -> Option<Self> {
        let Some(rest) = text.strip_prefix("pbkdf2-sha256$") else { return Some(Self::Plain(text.to_owned())) };
        let mut parts = rest.split('$');
        let rounds = parts.next()?.parse().ok().filter(|rounds: &NonZeroU32| rounds.get() <= MAX_ROUNDS)?;
        let salt = STANDARD.decode(parts.next()?).ok()?;
        let hash = STANDARD.decode(parts.next()?).ok().filter(|hash| hash.len() == 32)?;
        Some(Self::Hash { rounds, salt, hash })
    }

    /// Whether `given` is this password; takes the same time wherever they differ.
    pub fn is(&self, given: &str) -> bool {
        use ring::{digest, pbkdf2};
        match self {
            Self::Plain(password) => {
                let digest = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
                // Of digests, so that not even the length shows.
                let (want, got) = (digest(password), digest(given));
                want.as_ref().iter().zip(got.as_ref()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
            }
            Self::Hash { rounds, salt, hash } => {
                pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, *rounds, salt, given.as_bytes(), hash).is_ok()
            }
        }
    }
}

/// One user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// `None`: only by client certificate, whose common name is the user's name.
    pub password: Option<Password>,
    /// Filters of topics that may be published to.
    pub publish: Vec<String>,
    /// Filters that may be subscribed to: each must be matched by one of these.
    pub subscribe: Vec<String>,
}

/// Everyone who may connect by name; with none, everybody on this board may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users(pub BTreeMap<String, User>);

/// What a connection may do.
#[derive(Debug, Clone)]
pub struct Rights {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Rights {
    fn all() -> Self {
        Self { publish: vec!["#".into()], subscribe: vec!["#".into()] }
    }

    /// Whether it may publish to `topic`; nobody may publish to `$…`.
    pub fn may_publish(&self, topic: &str) -> bool {
        !topic.starts_with('$') && self.publish.iter().any(|filter| topic::matches(filter, topic))
    }

    /// Whether it may subscribe to `filter`. A wildcard of the request is covered only by one of the right.
    pub fn may_subscribe(&self, filter: &str) -> bool {
        self.subscribe.iter().any(|right| covers(right, filter))
    }
}

fn covers(right: &str, filter: &str) -> bool {
    let (mut right, mut filter) = (right.split('/'), filter.split('/'));
    loop {
        match (right.next(), filter.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(want), Some(level)) if want == level => {}
            _ => return false,
        }
    }
}

/// How a client may come in where it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    /// Without a name: only on loopback with no users configured.
    pub anonymous: bool,
}

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// It gave no name where one is needed.
    NoLogin,
    /// Name or password is wrong; which, is not said.
    BadLogin,
}

impl Users {
    /// Decides about a client: `certificate` is the common name of a verified client certificate.
    pub fn admit(
        &self,
        door: Door,
        login: Option<&(String, String)>,
        certificate: Option<&str>,
    ) -> Result<Rights, Denied> {
        if let Some(name) = certificate {
            return match self.0.get(name) {
                Some(user) => Ok(user.rights()),
                // The CA vouches for it; users without an entry of their own may do everything.
                None => Ok(Rights::all()),
            };
        }
        match login {
            _ if door.anonymous && self.0.is_empty() => Ok(Rights::all()),
            None => Err(Denied::NoLogin),
            Some((name, password)) => match self.0.get(name) {
                Some(user) if user.password.as_ref().is_some_and(|it| it.is(password)) => Ok(user.rights()),
                _ => Err(Denied::BadLogin),
            },
        }
    }
}

impl User {
    fn rights(&self) -> Rights {
        Rights { publish: self.publish.clone(), subscribe: self.subscribe.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_cover_what_they_name() {
        #[track_caller]
        fn check(right: &str, filter: &str, want: bool) {
            assert_eq!(covers(right, filter), want, "{right} covers {filter}");
        }
        check("#", "a/+/#", true);
        check("a/#", "a/b", true);
        check("a/#", "#", false);
        check("a/+", "a/#", false);
        check("a/+", "a/+", true);
        check("a/b", "a/+", false);
    }

    #[test]
    fn passwords_plain_and_hashed() {
        let salt = b"salt";
        let rounds = NonZeroU32::new(1000).unwrap();
        let mut hash = [0; 32];
        ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, b"secret", &mut hash);
        let text = format!("pbkdf2-sha256$1000${}${}", STANDARD.encode(salt), STANDARD.encode(hash));
        let hashed = Password::parse(&text).unwrap();
        assert!(hashed.is("secret") && !hashed.is("Secret"));
        let plain = Password::parse("secret").unwrap();
        assert!(plain.is("secret") && !plain.is("secre"));
        assert_eq!(Password::parse("pbkdf2-sha256$0$x$y"), None);
        assert!(!format!("{plain:?}").contains("secret"));
    }

    #[test]
    fn users_are_admitted_by_password_or_certificate() {
        let user = User { password: Password::parse("pw"), publish: vec!["a/#".into()], subscribe: vec![] };
        let users = Users(BTreeMap::from([("ann".to_owned(), user)]));
        let door = Door { anonymous: true };
        let login = |name: &str, password: &str| (name.to_owned(), password.to_owned());
        assert_eq!(users.admit(door, None, None).err(), Some(Denied::NoLogin));
        assert_eq!(users.admit(door, Some(&login("ann", "no")), None).err(), Some(Denied::BadLogin));
        let rights = users.admit(door, Some(&login("ann", "pw")), None).unwrap();
        assert!(rights.may_publish("a/b") && !rights.may_publish("b") && !rights.may_subscribe("a"));
        assert!(users.admit(door, None, Some("board-7")).unwrap().may_publish("x"));
        assert!(Users::default().admit(door, None, None).is_ok());
        assert!(Users::default().admit(Door { anonymous: false }, None, None).is_err());
    }
}
