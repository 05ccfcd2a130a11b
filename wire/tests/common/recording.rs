//! The recorded conversations of the official client and agent.

use std::time::Duration;

use crate::common::hex;

/// One line of a recording.
pub(crate) struct Entry {
    /// Since the recording began.
    pub(crate) at: Duration,
    pub(crate) what: What,
}

pub(crate) enum What {
    /// A binary frame from the client.
    FromClient(Vec<u8>),
    /// A binary frame to the client.
    ToClient(Vec<u8>),
    /// The client has a websocket.
    Opened,
    /// It has none any more.
    Lost,
}

/// Reads a recording, without what is of no interest to a session: API calls, pings, the agent's own websocket.
pub(crate) fn read(name: &str) -> Vec<Entry> {
    let path = format!("{}/tests/transcripts/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().filter_map(entry).collect()
}

fn entry(line: &str) -> Option<Entry> {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let at = Duration::from_secs_f64(line["t_ms"].as_f64().unwrap() / 1000.0);
    let binary = line["opcode"] == 2;
    let bytes = || hex::bytes(line["hex"].as_str().unwrap());
    let what = match (line["dir"].as_str(), line["event"].as_str()) {
        (Some("c2s"), _) if binary => What::FromClient(bytes()),
        (Some("s2c"), _) if binary => What::ToClient(bytes()),
        (None, Some("client_open")) => What::Opened,
        (None, Some("drop" | "client_gone")) => What::Lost,
        _ => return None,
    };
    Some(Entry { at, what })
}
