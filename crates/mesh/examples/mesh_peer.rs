//! One end of a mesh, for measuring: runs toft's userspace device until it is told to end.
//!
//! `mesh_peer key DIR` prints the public key of the keys in DIR, making them first if there are none;
//! `mesh_peer run DIR INTERFACE FILE` sets the configuration in FILE (JSON) prints `ready`, and ends
//! with SIGTERM.

use std::{path::Path, sync::Arc};

use toft_mesh::{Device, Settings, keys::Keys, userspace::UserspaceDevice};
use toft_model::mesh::MeshConfig;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["key", dir] => println!("{}", Keys::open(Path::new(dir))?.current()),
        ["run", dir, interface, file] => {
            let keys = Arc::new(Keys::open(Path::new(dir))?);
            let device = UserspaceDevice::new(Settings { interface: interface.to_owned(), keys });
            let config: MeshConfig = serde_json::from_str(&std::fs::read_to_string(file)?)?;
            device.set(&config).await?;
            println!("ready");
            signal(SignalKind::terminate())?.recv().await;
            println!("{:?}", device.status().await?);
            device.remove().await?;
        }
        _ => return Err("usage: mesh_peer key DIR | mesh_peer run DIR INTERFACE FILE".into()),
    }
    Ok(())
}
