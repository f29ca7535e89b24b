//! `edge-agent`: carries sensor data from a board to a core.
//!
//! Arguments, signals, exit codes; everything else is in the modules. Exit codes: 0 done, 1 failed, 2 wrong usage or
//! configuration, 3 degraded (`status`, `doctor`).

mod app;
mod cli;
mod config;
mod control;
mod demo;
mod doctor;
mod engine_api;
mod http;
mod node_api;
mod page;
mod pipe;
mod readings;
mod status;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: board::sys::allocator::Allocator = board::sys::allocator::Allocator;

fn main() -> ExitCode {
    // Shims, runtimes and the like, before anything that they would carry for nothing (or that starts a thread).
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    if let Some(code) = container_engine::verb::dispatch(&args) {
        return code;
    }
    board::sys::allocator::give_back_at_once();
    // One provider for every part of the program that speaks TLS; a second install cannot happen here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = error.print();
            return ExitCode::from(cli::usage_code(error.use_stderr(), &args));
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(24)
        // Kubernetes' objects are large, and read on the stack; what is not touched takes no memory.
        .thread_stack_size(4 << 20)
        .thread_name("agent")
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(cli.run());
            // A thread that still reads standard input must not keep the program from ending.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the runtime")),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            cli::print_error(&error);
            ExitCode::from(if error.is::<config::ConfigError>() { 2 } else { 1 })
        }
    }
}
