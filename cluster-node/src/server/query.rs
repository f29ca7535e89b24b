//! The query of a request: names and values, percent-decoded.

/// In order of appearance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Of the text behind the question mark. What cannot be decoded is taken as it is.
    pub fn parse(text: &str) -> Self {
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name, true), decode(value, true))
        };
        Self(text.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// The first value of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All values of that name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether it is said to be so, as Kubernetes reads it: present and not `false` or `0`.
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }
}

/// Percent-decoding; with `form` a plus is a space.
pub fn decode(text: &str, form: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let digit =
        |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16)).and_then(|it| u8::try_from(it).ok());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 2;
            }
            (b'+', _, _) if form => out.push(b' '),
            (byte, _, _) => out.push(*byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read() {
        let query =
            Query::parse("command=sh&command=-c&command=a%20b+c%26d&input=1&x&=y&%zz=%4&follow=false&%E2%82%AC=1");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "a b c&d"]);
        assert_eq!(query.get("input"), Some("1"));
        assert_eq!(query.get("x"), Some(""));
        assert_eq!(query.get("%zz"), Some("%4"));
        assert_eq!(query.get("€"), Some("1"));
        assert_eq!((query.is_true("x"), query.is_true("follow"), query.is_true("none")), (true, false, false));
        assert_eq!(Query::parse(""), Query::default());
    }
}
