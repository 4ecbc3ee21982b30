//! WebSockets to the appliance.

use std::os::unix::net::UnixStream;

use serde_json::Value;
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use super::{appliance::Appliance, http::PATIENCE};

/// Opens the door of an instance called `door`: `exec` or `attach`.
pub fn connect(toft: &Appliance, instance: &str, door: &str) -> WebSocket<UnixStream> {
    let stream = UnixStream::connect(toft.data.join("toft.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    client(format!("ws://localhost/api/v1/instances/{instance}/{door}"), stream).unwrap().0
}

/// What is said in the end.
pub fn last_word(mut socket: WebSocket<UnixStream>) -> Value {
    let mut last = Value::Null;
    while let Ok(message) = socket.read() {
        if let Message::Text(text) = message {
            last = serde_json::from_str(&text).unwrap();
        }
    }
    last
}
