//! The status page: one self-contained HTML document, readable on a phone, with nothing fetched from anywhere.

use crate::status::{self, Status};

/// The page.
pub fn render(status: &Status) -> String {
    let colour = if status.healthy { "#1a7f37" } else { "#b35900" };
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <meta http-equiv=refresh content=5><title>{name}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em}}\
         h1{{border-left:.4em solid {colour};padding-left:.5em}}pre{{white-space:pre-wrap;font-size:90%}}</style>\
         <h1>{name}</h1><pre>{text}</pre><p><a href=/metrics>metrics</a></html>",
        name = escape(&status.name),
        text = escape(&status::text(status)),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;").replace('"', "&quot;")
}
