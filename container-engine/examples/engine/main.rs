//! The engine as a library. As root, on a machine of your own:
//!
//! ```text
//! cargo run --example engine -- load busybox.tar busybox    an image from an archive
//! cargo run --example engine -- run busybox echo hello      a container, from its creation to its removal
//! cargo run --example engine -- exec busybox id             a further process in a container
//! cargo run --example engine -- events                      what happens, until interrupted
//! cargo run --example engine -- commit busybox layer.tar    what a container wrote, as a layer
//! ```
//!
//! Everything lies in `/tmp/engine-example`.
#![allow(clippy::print_stdout)]

use std::{error::Error, process::ExitCode};

use container_engine::{
    container::{ContainerId, ContainerSpec, Containers, ExecSpec, NetworkMode, RemoveOptions, WaitFor},
    engine::{Engine, Options},
    event::{Filter, Next},
    image::LoadRequest,
    shim::{Attach, Output, Session},
    snapshot::CommitOptions,
};
use store::state::State;

type Done = Result<u8, Box<dyn Error>>;

fn main() -> ExitCode {
    // First of all: shims and runtimes are this same program.
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(code) = container_engine::verb::dispatch(&words) {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match runtime.block_on(run(&args)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            println!("{}", board::tasks::chain(error.as_ref()));
            ExitCode::from(125)
        }
    }
}

async fn run(args: &[String]) -> Done {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // Once in a process, before the first registry is spoken to.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (state, _) = State::open("/tmp/engine-example/data/state".as_ref())?;
    let engine =
        Engine::open(Options::new("/tmp/engine-example/data", "/tmp/engine-example/run"), state.clone()).await?;
    let done = match args.as_slice() {
        ["load", file, name] => load(&engine, file, name).await,
        ["run", image, command @ ..] => start_to_end(engine.containers(), image, command).await,
        ["exec", image, command @ ..] => in_another(engine.containers(), image, command).await,
        ["events"] => follow(&engine).await,
        ["commit", image, file] => commit(&engine, image, file).await,
        _ => Err("load FILE NAME | run IMAGE COMMAND… | exec IMAGE COMMAND… | events | commit IMAGE FILE".into()),
    };
    engine.close().await;
    state.close();
    done
}

async fn load(engine: &Engine, file: &str, name: &str) -> Done {
    let request = LoadRequest { name: Some(name.parse()?), ..LoadRequest::default() };
    let (events, _progress) = tokio::sync::mpsc::channel(16);
    for loaded in engine.images().load(&request, std::fs::File::open(file)?, &events).await? {
        println!("{} {:?}", loaded.image.id(), loaded.names);
    }
    Ok(0)
}

fn spec(image: &str, command: &[&str]) -> ContainerSpec {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    ContainerSpec {
        image: image.to_owned(),
        command: Some(command),
        network: NetworkMode::None,
        ..ContainerSpec::default()
    }
}

async fn start_to_end(containers: &Containers, image: &str, command: &[&str]) -> Done {
    let id = containers.create(spec(image, command)).await?.id;
    // Attached before the start, so that no byte is missed.
    let attach = Attach { stdin: false, stdout: true, stderr: true, wait: true };
    let attaching = containers.attach(&id, attach).await?;
    let started = containers.start(&id).await;
    if let Err(error) = started {
        containers.remove(&id, RemoveOptions::default()).await?;
        println!("{error}");
        return Ok(u8::try_from(error.exit_code())?);
    }
    print(attaching.session().await?).await?;
    let exit = containers.wait(&id, WaitFor::NotRunning).await?;
    containers.remove(&id, RemoveOptions { force: false, volumes: true }).await?;
    Ok(u8::try_from(exit.code)?)
}

async fn in_another(containers: &Containers, image: &str, command: &[&str]) -> Done {
    let id = sleeping(containers, image).await?;
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let executed = containers.exec(&id, ExecSpec { command, ..ExecSpec::default() }).await;
    let code = match executed {
        Ok((_, session)) => print(session).await,
        Err(error) => Err(error.into()),
    };
    containers.remove(&id, RemoveOptions { force: true, volumes: true }).await?;
    code
}

async fn commit(engine: &Engine, image: &str, file: &str) -> Done {
    let containers = engine.containers();
    let id = sleeping(containers, image).await?;
    let touch = ExecSpec { command: vec!["touch".into(), "/written".into()], ..ExecSpec::default() };
    let (_, session) = containers.exec(&id, touch).await?;
    print(session).await?;
    let mut blob = tokio::fs::File::create(file).await?;
    let commit = engine.snapshots().commit(id.as_str(), CommitOptions::default(), &mut blob).await?;
    println!("{} {} bytes {}", commit.digest, commit.size, commit.media_type);
    containers.remove(&id, RemoveOptions { force: true, volumes: true }).await?;
    Ok(0)
}

async fn sleeping(containers: &Containers, image: &str) -> Result<ContainerId, Box<dyn Error>> {
    let id = containers.create(spec(image, &["sleep", "1000"])).await?.id;
    containers.start(&id).await?;
    Ok(id)
}

async fn follow(engine: &Engine) -> Done {
    let mut events = engine.events().subscribe(Filter::default(), None);
    while let Some(next) = events.next().await {
        match next {
            Next::Event(event) => println!("{}", serde_json::to_string(&*event)?),
            Next::Missed(count) => println!("{count} events were missed"),
        }
    }
    Ok(0)
}

/// Output to its end; the exit code.
async fn print(session: Session) -> Done {
    let (_input, mut output) = session.split();
    while let Some(piece) = output.next().await? {
        match piece {
            Output::Stdout(bytes) | Output::Stderr(bytes) => print!("{}", String::from_utf8_lossy(&bytes)),
            Output::Exit(exit) => return Ok(u8::try_from(exit.code)?),
        }
    }
    Ok(0)
}
