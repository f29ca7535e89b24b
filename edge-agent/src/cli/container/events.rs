//! `container events`.

use std::process::ExitCode;

use clap::Args;
use container_engine::{
    event::{Event, Filter, Kind},
    reference::ImageRef,
};
use serde_json::{Value, json};

use crate::cli::{
    engine::Output,
    format::{Template, human},
    out, parse,
};

#[derive(Debug, Args)]
pub struct Events {
    /// Also what happened since then: 10m, or a time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Until then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// json, or a Go template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// type, event, container, image, network, volume, label
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<String>,
}

impl Events {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let template = match self.format.as_deref() {
            None | Some("json") => None,
            Some(text) => Some(Template::parse(text)?),
        };
        let now = jiff::Timestamp::now();
        let moment = |text: &Option<String>| -> anyhow::Result<Option<String>> {
            let moment = text.as_ref().map(|text| parse::moment(text, now)).transpose().map_err(anyhow::Error::msg)?;
            Ok(moment.map(|ns| ns.to_string()))
        };
        let pairs = [
            ("filter", Some(serde_json::to_string(&self.filter()?)?)),
            ("since_ns", moment(&self.since)?),
            ("until_ns", moment(&self.until)?),
        ];
        let response = to.engine.send("GET", &to.url("/v1/events", &pairs), None::<&()>).await?;
        let mut lines = to.engine.lines(response);
        while let Some(line) = lines.next::<Value>().await? {
            if to.json || self.format.as_deref() == Some("json") {
                out(&line);
                continue;
            }
            let Ok(event) = serde_json::from_value::<Event>(line.clone()) else {
                out(format!("({} events were missed)", line["missed"]));
                continue;
            };
            out(match &template {
                Some(template) => template.render(&shape(&event))?,
                None => words(&event),
            });
        }
        Ok(ExitCode::SUCCESS)
    }

    fn filter(&self) -> anyhow::Result<Filter> {
        let known = ["type", "event", "container", "image", "network", "volume", "label"];
        let filters = parse::filters(&self.filter, &known).map_err(anyhow::Error::msg)?;
        let of = |key: &str| filters.get(key).cloned().unwrap_or_default();
        let kind = |text: &String| {
            let kind = serde_json::from_value::<Kind>(json!(text));
            kind.map_err(|_| anyhow::anyhow!("there is no type {text:?}: there are container, image, network, volume"))
        };
        Ok(Filter {
            kinds: of("type").iter().map(kind).collect::<Result<_, _>>()?,
            actions: of("event"),
            ids: known[2..6]
                .iter()
                .flat_map(|key| of(key))
                .chain(of("image").iter().filter_map(|name| familiar(name)))
                .collect(),
            labels: of("label"),
            ..Filter::default()
        })
    }
}

/// An image as events call it: with its tag.
fn familiar(name: &str) -> Option<String> {
    name.parse::<ImageRef>().ok().map(|name| name.familiar())
}

fn shape(event: &Event) -> Value {
    json!({
        "Time": event.time_ns / 1_000_000_000,
        "TimeNano": event.time_ns,
        "Type": event.kind,
        "Action": event.action.docker(event.kind),
        "Status": event.action.docker(event.kind),
        "ID": event.id,
        "Owner": event.owner.to_string(),
        "Actor": { "ID": event.id, "Attributes": event.attributes },
    })
}

fn words(event: &Event) -> String {
    let details = serde_json::to_value(&event.action).unwrap_or_default();
    let own = details.as_object().into_iter().flatten().filter(|(key, _)| *key != "action");
    let own =
        own.map(|(key, value)| format!("{key}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
    let more = event.attributes.iter().map(|(key, value)| format!("{key}={value}"));
    let all = own.chain(more).collect::<Vec<_>>().join(", ");
    let kind = serde_json::to_value(event.kind).unwrap_or_default();
    let kind = kind.as_str().unwrap_or_default();
    let time = human::rfc3339(Some(event.time_ns));
    format!("{time} {kind} {} {} ({all})", event.action.docker(event.kind), event.id)
}
