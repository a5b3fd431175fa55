//! Compiles the wire contract in `proto/`, and what the gateway uses of etcd's API. protox parses
//! them, so no `protoc` is needed.

use std::env;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    compile(
        "proto",
        &["user.proto", "message.proto", "presence.proto"],
        true,
    )?;
    if env::var_os("CARGO_FEATURE_DISCOVERY").is_some() {
        compile("src/discovery", &["etcd.proto"], false)?;
    }
    Ok(())
}

fn compile(directory: &str, files: &[&str], with_servers: bool) -> Result<(), Box<dyn Error>> {
    for file in files {
        println!("cargo:rerun-if-changed={directory}/{file}");
    }
    let parsed = protox::compile(files, [directory])?;
    let builder = tonic_prost_build::configure().build_server(with_servers);
    Ok(builder.compile_fds(parsed)?)
}
