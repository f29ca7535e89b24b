//! A service made of parts that live and end together, such as the node: each has a name and a health of its own.
//!
//! Always true: where one part ends by itself, the others are told to stop, and the whole says which it was.

use std::{collections::BTreeSet, future::Future, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Context, ServiceResult, State, chain};

/// A service made of parts, each with a name and a health of its own; they live and end together.
pub struct Parts {
    whole: Context,
    running: Vec<(&'static str, CancellationToken)>,
    tasks: JoinSet<(&'static str, ServiceResult)>,
}

/// A part ended though nobody had told it to.
#[derive(Debug, thiserror::Error)]
#[error("its part {name} ended: {problem}")]
pub struct PartEnded {
    /// Which.
    pub name: &'static str,
    /// Why.
    pub problem: String,
}

impl Parts {
    /// None yet, of the service that has this context.
    pub fn of(whole: &Context) -> Self {
        Self { whole: whole.clone(), running: Vec::new(), tasks: JoinSet::new() }
    }

    /// Starts a part.
    pub fn start<F, Fut, E>(&mut self, name: &'static str, start: F)
    where
        F: FnOnce(Context) -> Fut,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let token = CancellationToken::new();
        self.whole.health.set(name, State::Starting);
        let run = start(Context { stop: token.clone(), name, health: self.whole.health.clone() });
        self.running.push((name, token));
        self.tasks.spawn(async move { (name, run.await.map_err(Into::into)) });
    }

    /// Until `stop` is cancelled or a part ends; then stops the others, the last started first, all within `grace`.
    pub async fn run(mut self, stop: &CancellationToken, grace: Duration) -> Result<(), PartEnded> {
        let ended = tokio::select! {
            () = stop.cancelled() => None,
            Some(ended) = self.tasks.join_next() => Some(match ended {
                Ok((name, Ok(()))) => PartEnded { name, problem: "by itself".to_owned() },
                Ok((name, Err(error))) => PartEnded { name, problem: chain(error.as_ref()) },
                Err(error) => PartEnded { name: self.whole.name, problem: error.to_string() },
            }),
        };
        let deadline = tokio::time::Instant::now() + grace;
        let mut left: BTreeSet<&'static str> = self.running.iter().map(|(name, _)| *name).collect();
        let all = left.clone();
        if let Some(ended) = &ended {
            left.remove(ended.name);
        }
        while let Some((name, token)) = self.running.pop() {
            token.cancel();
            while left.contains(name) {
                match tokio::time::timeout_at(deadline, self.tasks.join_next()).await {
                    Ok(Some(Ok((done, _)))) => {
                        left.remove(done);
                    }
                    Ok(Some(Err(_))) => {}
                    Ok(None) => break,
                    Err(_) => {
                        tracing::warn!(part = name, ?grace, "still busy at the end of the grace time; aborted");
                        break;
                    }
                }
            }
        }
        self.tasks.shutdown().await;
        for name in all {
            self.whole.health.forget(name);
        }
        ended.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn until_stopped(context: Context) -> Result<(), std::io::Error> {
        context.healthy("well");
        context.stop.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn parts_end_together() {
        let whole = Context::detached();
        let mut parts = Parts::of(&whole);
        parts.start("a", until_stopped);
        parts.start("b", until_stopped);
        whole.stop.cancel();
        parts.run(&whole.stop, Duration::from_secs(5)).await.unwrap();

        let whole = Context::detached();
        let mut parts = Parts::of(&whole);
        parts.start("a", until_stopped);
        parts.start("b", |_| async { Err(std::io::Error::other("broken")) });
        let ended = parts.run(&whole.stop, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!((ended.name, ended.problem.as_str()), ("b", "broken"));
        assert!(whole.health.snapshot().is_empty());
    }
}
