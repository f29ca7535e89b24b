//! healthz: whether the node is well.

use hyper::StatusCode;

use super::answer::{self, Answer};

/// Checks by name, with what is wrong.
fn checks(problem: Option<&str>) -> [(&'static str, Option<&str>); 3] {
    [("ping", None), ("log", None), ("syncloop", problem)]
}

/// The answer, of all checks or of one.
pub fn answer(check: Option<&str>, verbose: bool, problem: Option<&str>) -> Answer {
    let checks = checks(problem);
    if let Some(name) = check {
        return match checks.iter().find(|(known, _)| *known == name) {
            Some((_, None)) => answer::text(StatusCode::OK, "ok"),
            Some((_, Some(problem))) => {
                answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {problem}\n"))
            }
            None => answer::text(StatusCode::NOT_FOUND, "404 page not found\n"),
        };
    }
    let is_well = problem.is_none();
    if is_well && !verbose {
        return answer::text(StatusCode::OK, "ok");
    }
    let line = |(name, problem): &(&str, Option<&str>)| match problem {
        None => format!("[+]{name} ok\n"),
        Some(problem) => format!("[-]{name} failed: {problem}\n"),
    };
    let lines: String = checks.iter().map(line).collect();
    if is_well {
        answer::text(StatusCode::OK, format!("{lines}healthz check passed\n"))
    } else {
        answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}healthz check failed\n"))
    }
}

/// The same as gauges.
pub fn gauges(problem: Option<&str>) -> Vec<(&'static str, bool)> {
    checks(problem).into_iter().map(|(name, problem)| (name, problem.is_none())).collect()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn health_is_told() {
        #[track_caller]
        fn texts(answer: Answer) -> impl Future<Output = (u16, String)> {
            let status = answer.status().as_u16();
            async move {
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                (status, String::from_utf8(body.to_vec()).unwrap())
            }
        }
        let ask = async |check, verbose, problem| texts(answer(check, verbose, problem)).await;
        assert_eq!(ask(None, false, None).await, (200, "ok".into()));
        let (status, text) = ask(None, false, Some("stuck")).await;
        assert_eq!((status, text.contains("[-]syncloop failed: stuck")), (500, true));
        assert!(ask(None, true, None).await.1.ends_with("healthz check passed\n"));
        assert_eq!(ask(Some("ping"), false, Some("stuck")).await, (200, "ok".into()));
        assert_eq!(ask(Some("syncloop"), false, Some("stuck")).await.0, 500);
        assert_eq!(ask(Some("else"), false, None).await.0, 404);
    }
}
