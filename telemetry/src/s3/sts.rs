//! `AssumeRoleWithWebIdentity` of the AWS Security Token Service, which Ceph's gateway speaks as well: a token of an
//! identity provider in exchange for keys that run out.

use std::time::Duration;

use board::tasks;
use instant_xml::FromXml;

use super::{CredentialsError, WebIdentity, client::error_code};

/// How long the keys are asked to hold; the server may give less, and says so.
const LIFETIME: Duration = Duration::from_secs(3600);
/// Most bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 10;

#[derive(FromXml)]
#[xml(rename = "AssumeRoleWithWebIdentityResponse", ns("https://sts.amazonaws.com/doc/2011-06-15/"))]
struct Response {
    result: Outcome,
}

#[derive(FromXml)]
#[xml(rename = "AssumeRoleWithWebIdentityResult", ns("https://sts.amazonaws.com/doc/2011-06-15/"))]
struct Outcome {
    credentials: Issued,
}

#[derive(FromXml)]
#[xml(rename = "Credentials", ns("https://sts.amazonaws.com/doc/2011-06-15/"))]
struct Issued {
    #[xml(rename = "AccessKeyId")]
    key: String,
    #[xml(rename = "SecretAccessKey")]
    secret: String,
    #[xml(rename = "SessionToken")]
    token: String,
    #[xml(rename = "Expiration")]
    expiration: String,
}

/// Exchanges `token`; returns the keys and how long they hold from now.
pub(super) async fn exchange(
    http: &reqwest::Client,
    identity: &WebIdentity,
    token: &str,
) -> Result<(rusty_s3::Credentials, Duration), CredentialsError> {
    let host = identity.sts.host_str().unwrap_or_default().to_owned();
    let unreachable = |error: reqwest::Error| CredentialsError::Unreachable {
        host: host.clone(),
        problem: tasks::chain(&error.without_url()),
    };
    // In the body, not in the URL: URLs end up in servers' logs.
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("Action", "AssumeRoleWithWebIdentity")
        .append_pair("Version", "2011-06-15")
        .append_pair("RoleArn", &identity.role_arn)
        .append_pair("RoleSessionName", &identity.session)
        .append_pair("DurationSeconds", &LIFETIME.as_secs().to_string())
        .append_pair("WebIdentityToken", token)
        .finish();
    let request = http.post(identity.sts.clone()).header("content-type", "application/x-www-form-urlencoded");
    let mut answer = request.body(form).send().await.map_err(unreachable)?;
    let status = answer.status().as_u16();
    let date = answer.headers().get("date").and_then(|date| date.to_str().ok()).map(str::to_owned);
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            break;
        }
    }
    let text = String::from_utf8_lossy(&body);
    let issued = if status == 200 { parse(&text) } else { None };
    let Some(issued) = issued else {
        let (role, code) = (identity.role_arn.clone(), error_code(&text));
        return Err(CredentialsError::Refused { host, role, status, code });
    };
    let keys = rusty_s3::Credentials::new_with_token(issued.key, issued.secret, issued.token);
    Ok((keys, lifetime(&issued.expiration, date.as_deref())))
}

/// Some servers put a namespace, some put none.
fn parse(text: &str) -> Option<Issued> {
    const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
    let named = if text.contains(NAMESPACE) {
        text.to_owned()
    } else {
        let open = "<AssumeRoleWithWebIdentityResponse";
        text.replacen(open, &format!("{open} xmlns=\"{NAMESPACE}\""), 1)
    };
    instant_xml::from_str::<Response>(&named).ok().map(|response| response.result.credentials)
}

/// By the server's own clock, which its Date header shows; never longer than was asked for.
fn lifetime(expiration: &str, date: Option<&str>) -> Duration {
    let end = expiration.parse::<jiff::Timestamp>().ok();
    let now = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()).map(|now| now.timestamp());
    match (end, now) {
        (Some(end), Some(now)) => Duration::try_from(end.duration_since(now)).unwrap_or_default().min(LIFETIME),
        _ => LIFETIME / 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "<Credentials><AccessKeyId>AK</AccessKeyId><SecretAccessKey>S</SecretAccessKey>\
        <SessionToken>T</SessionToken><Expiration>2026-11-25T11:00:00Z</Expiration></Credentials>";

    #[test]
    fn answers_with_and_without_a_namespace() {
        for namespace in ["", " xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\""] {
            let text = format!(
                "<AssumeRoleWithWebIdentityResponse{namespace}><AssumeRoleWithWebIdentityResult>{ANSWER}\
                 <Audience>board</Audience></AssumeRoleWithWebIdentityResult><ResponseMetadata><RequestId>1</RequestId>\
                 </ResponseMetadata></AssumeRoleWithWebIdentityResponse>"
            );
            let issued = parse(&text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((issued.key.as_str(), issued.token.as_str()), ("AK", "T"));
        }
        assert!(parse("<html>no</html>").is_none());
    }

    #[test]
    fn lifetimes_are_by_the_servers_clock() {
        let date = Some("Wed, 25 Nov 2026 10:45:00 GMT");
        assert_eq!(lifetime("2026-11-25T11:00:00Z", date), Duration::from_secs(900));
        assert_eq!(lifetime("2026-11-25T10:00:00Z", date), Duration::ZERO);
        assert_eq!(lifetime("2027-11-25T10:00:00Z", date), LIFETIME);
        assert_eq!(lifetime("soon", date), LIFETIME / 4);
    }
}
