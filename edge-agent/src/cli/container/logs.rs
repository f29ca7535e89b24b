//! `container logs`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use http_body_util::BodyExt;

use crate::{
    cli::{
        attach,
        engine::{Output, flag},
        parse,
    },
    control::frames::Decoder,
};

#[derive(Debug, Args)]
pub struct Logs {
    #[command(flatten)]
    flags: LogFlags,
    /// Name or id
    container: String,
}

impl Logs {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        self.flags.print(to, &self.container).await
    }
}

/// Which lines, and how.
#[derive(Debug, Args)]
pub struct LogFlags {
    /// Go on with what comes
    #[arg(long, short)]
    pub follow: bool,
    /// The last N lines; all
    #[arg(long, short = 'n', value_name = "N", default_value = "all", allow_hyphen_values = true)]
    pub tail: String,
    /// From then on: 10m, or a time
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Before then
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// With the time of each line
    #[arg(long, short)]
    pub timestamps: bool,
}

impl LogFlags {
    /// Prints the log of a container.
    pub async fn print(&self, to: &Output<'_>, container: &str) -> anyhow::Result<ExitCode> {
        let now = jiff::Timestamp::now();
        let moment = |text: &Option<String>| -> anyhow::Result<Option<String>> {
            let moment = text.as_ref().map(|text| parse::moment(text, now)).transpose().map_err(anyhow::Error::msg)?;
            Ok(moment.map(|ns| ns.to_string()))
        };
        let tail = match self.tail.as_str() {
            "all" | "" => None,
            text if text.starts_with('-') => None,
            text => Some(text.parse::<u64>().with_context(|| format!("--tail {text}: a number of lines, or all"))?),
        };
        let pairs = [
            ("follow", flag(self.follow)),
            ("tail", tail.map(|it| it.to_string())),
            ("since_ns", moment(&self.since)?),
            ("until_ns", moment(&self.until)?),
            ("timestamps", flag(self.timestamps)),
        ];
        let url = to.container(container, "/logs", &pairs);
        let mut body = to.engine.send("GET", &url, None::<&()>).await?.into_body();
        let mut decoder = Decoder::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the agent broke off")?;
            if let Some(data) = frame.data_ref() {
                decoder.feed(data);
            }
            attach::drain(&mut decoder)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
