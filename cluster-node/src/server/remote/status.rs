//! How a process ended, in the words of the error stream.

use bytes::Bytes;

use super::carry::End;

/// What goes to the error stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status(End);

impl Status {
    /// Of an end.
    pub fn of(end: End) -> Self {
        Self(end)
    }

    /// As a `metav1.Status`, from version 4 on.
    pub fn json(&self) -> Bytes {
        let value = match &self.0 {
            End::Exit(0) | End::ClientGone => serde_json::json!({"metadata": {}, "status": "Success"}),
            End::Exit(code) => serde_json::json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            End::Failed(_) => serde_json::json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "InternalError",
                "code": 500,
            }),
        };
        value.to_string().into()
    }

    /// As text, before that: nothing where all went well.
    pub fn text(&self) -> Bytes {
        self.message().into()
    }

    fn message(&self) -> String {
        match &self.0 {
            End::Exit(0) | End::ClientGone => String::new(),
            End::Exit(code) => {
                format!("command terminated with non-zero exit code: command terminated with exit code {code}")
            }
            End::Failed(problem) => format!("Internal error occurred: {problem}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told() {
        let told = |end: End| {
            let status = Status::of(end);
            let json: serde_json::Value = serde_json::from_slice(&status.json()).unwrap();
            (json, String::from_utf8(status.text().to_vec()).unwrap())
        };
        let (json, text) = told(End::Exit(0));
        assert_eq!((json["status"].as_str(), text.as_str()), (Some("Success"), ""));
        let (json, text) = told(End::Exit(7));
        assert_eq!(json["status"], "Failure");
        assert_eq!(json["reason"], "NonZeroExitCode");
        assert_eq!(json["details"]["causes"][0], serde_json::json!({"reason": "ExitCode", "message": "7"}));
        assert!(text.contains("exit code 7"), "{text}");
        let (json, text) = told(End::Failed("error executing command in container: no".into()));
        assert_eq!((json["reason"].as_str(), json["code"].as_i64()), (Some("InternalError"), Some(500)));
        assert_eq!(text, "Internal error occurred: error executing command in container: no");
    }
}
