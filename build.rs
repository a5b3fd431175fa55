//! Compiles the wire contract in `proto/`, and what the gateway uses of etcd's API. protox parses
//! them, so no `protoc` is needed. And has the links of the chapters in `src/docs/`, which are to files,
//! lead to what `cargo doc` makes of these.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    compile(
        "proto",
        &["user.proto", "message.proto", "presence.proto"],
        true,
    )?;
    if env::var_os("CARGO_FEATURE_DISCOVERY").is_some() {
        compile("src/discovery", &["etcd.proto"], false)?;
    }
    chapters()
}

fn chapters() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src/docs");
    let out = Path::new(&env::var("OUT_DIR")?).join("docs");
    fs::create_dir_all(&out)?;
    for chapter in fs::read_dir("src/docs")? {
        let chapter = chapter?;
        let text = fs::read_to_string(chapter.path())?;
        let mut parts = text.split("](");
        let mut linked = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (link, rest) = part.split_once(')').ok_or("a link without an end")?;
            let file = link.strip_prefix("../");
            let to = match (file, link.strip_suffix(".md")) {
                (Some("lib.rs"), _) => "../../index.html".into(),
                (Some(file), _) if !file.starts_with("../") => {
                    format!("../../../src/ws_gateway/{file}.html")
                }
                (None, Some(chapter)) => format!("../{chapter}/index.html"),
                _ => link.to_owned(),
            };
            linked += &format!("]({to}){rest}");
        }
        fs::write(out.join(chapter.file_name()), linked)?;
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
