//! `image save` and `image load`.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use container_engine::reference::ImageRef;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::{io::AsyncReadExt, sync::mpsc};

use crate::{
    cli::{
        engine::{Output, flag},
        out, terminal,
    },
    control::Sent,
    engine_api::wire::Loaded,
};

/// Read at once from a file.
const CHUNK: usize = 128 << 10;

#[derive(Debug, Args)]
pub struct Save {
    /// File [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// An OCI layout instead of Docker's archive
    #[arg(long)]
    oci: bool,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Save {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        if self.output.is_none() && io::stdout().is_terminal() {
            bail!("an archive is no text for a terminal: name a file with --output, or use a pipe");
        }
        let names = serde_json::to_string(&self.images)?;
        let format = if self.oci { "oci" } else { "docker" };
        let url = to.url("/v1/images/save", &[("names", Some(names)), ("format", Some(format.to_owned()))]);
        let response = to.engine.send("GET", &url, None::<&()>).await?;
        match &self.output {
            None => {
                copy(response.into_body(), &mut io::stdout().lock()).await?;
            }
            Some(path) => {
                // Beside it first: what was there stays until the whole archive is.
                let part = path.with_extension("part");
                let failed = || format!("cannot write {}", part.display());
                let mut file = std::fs::File::create(&part).with_context(failed)?;
                let written = copy(response.into_body(), &mut file).await;
                if let Err(error) = written.and_then(|()| Ok(std::fs::rename(&part, path)?)) {
                    // It is of no use to anybody.
                    let _ = std::fs::remove_file(&part);
                    return Err(error.context(failed()));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes a body as it comes. An archive that ends early breaks the connection, so a whole body is a whole archive.
pub async fn copy(mut body: hyper::body::Incoming, to: &mut impl Write) -> anyhow::Result<()> {
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the agent broke off")?;
        if let Some(data) = frame.data_ref() {
            to.write_all(data)?;
        }
    }
    Ok(to.flush()?)
}

#[derive(Debug, Args)]
pub struct Load {
    /// File [default: standard input]
    #[arg(long, short, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Name for an image that has none in the archive
    #[arg(long)]
    name: Option<String>,
    /// Also what is for other platforms, kept compressed to be pushed
    #[arg(long)]
    all_platforms: bool,
    /// The ids and names alone
    #[arg(long, short)]
    quiet: bool,
}

impl Load {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let body = match &self.input {
            Some(path) => {
                let file = tokio::fs::File::open(path).await;
                file_body(file.with_context(|| format!("cannot read {}", path.display()))?)
            }
            None if io::stdin().is_terminal() => bail!("there is no archive: name a file with --input, or use a pipe"),
            None => stream_body(terminal::input()?),
        };
        let url =
            to.url("/v1/images/load", &[("name", self.name.clone()), ("all_platforms", flag(self.all_platforms))]);
        let response = to.engine.upload("POST", &url, body).await?;
        let loaded: Loaded = to.engine.value(response).await?;
        if to.json {
            out(serde_json::to_string(&loaded)?);
            return Ok(ExitCode::SUCCESS);
        }
        for image in &loaded.images {
            out(match image.parse::<ImageRef>() {
                _ if self.quiet => image.clone(),
                Ok(name) if !image.starts_with("sha256:") => format!("Loaded image: {}", name.familiar()),
                _ => format!("Loaded image ID: {image}"),
            });
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A body that is sent as it comes.
pub fn stream_body(receive: mpsc::Receiver<io::Result<Bytes>>) -> Sent {
    let stream = futures_util::stream::unfold(receive, |mut receive| async move {
        let part = receive.recv().await?;
        Some((part.map(Frame::data), receive))
    });
    BodyExt::boxed(StreamBody::new(stream))
}

/// A body that is read as it is sent.
fn file_body(file: tokio::fs::File) -> Sent {
    let stream = futures_util::stream::try_unfold(file, |mut file| async move {
        let mut chunk = vec![0; CHUNK];
        let n = file.read(&mut chunk).await?;
        chunk.truncate(n);
        Ok::<_, io::Error>((n > 0).then(|| (Frame::data(Bytes::from(chunk)), file)))
    });
    BodyExt::boxed(StreamBody::new(stream))
}
