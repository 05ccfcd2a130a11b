//! The JSON bodies of the data channel, key order and spacing as the official client and agent write them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::text::in_one_line;

/// The first websocket message of a client, and the only one sent as text.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OpenDataChannel {
    /// Always `1.0`.
    pub message_schema_version: String,
    /// New for every websocket.
    pub request_id: Uuid,
    /// Single use, from StartSession or ResumeSession. A secret.
    pub token_value: String,
    /// The same for every websocket of a session.
    pub client_id: Uuid,
    /// As in the handshake; absent before client 1.2.677.
    #[serde(default)]
    pub client_version: String,
}

/// Says that one data message arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Acknowledge {
    /// The acknowledged message's type.
    pub acknowledged_message_type: Cow<'static, str>,
    /// Its id.
    pub acknowledged_message_id: Uuid,
    /// Its number: the only field that receivers match.
    pub acknowledged_message_sequence_number: u64,
    /// Always true, also for messages that came out of order.
    pub is_sequential_message: bool,
}

/// The bytes of the longest acknowledgement that [`write_acknowledge`] writes: 139 of names and punctuation with the
/// longest type, the id's 36 and a number's 20 digits.
pub(crate) const LONGEST_ACKNOWLEDGE: usize = 139 + 36 + 20;

/// Appends an [`Acknowledge`] of a message of that type, whose name needs no escapes. There is one for every message that
/// comes, which is why it is written straight into its frame.
pub(crate) fn write_acknowledge(name: &str, id: Uuid, number: u64, body: &mut BytesMut) {
    // Memory takes everything.
    let _ = write!(
        body,
        r#"{{"AcknowledgedMessageType":"{name}","AcknowledgedMessageId":"{id}","AcknowledgedMessageSequenceNumber":{number},"IsSequentialMessage":true}}"#,
    );
}

/// Returns the number that an acknowledgement is about. Receivers match nothing else, so nothing else needs to be well.
pub fn acknowledged_number(payload: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Number {
        #[serde(rename = "AcknowledgedMessageSequenceNumber")]
        number: u64,
    }
    serde_json::from_slice::<Number>(payload)
        .ok()
        .map(|body| body.number)
}

/// The agent's offer. `Parameters` is whatever came, or what is to be written in the agent's own order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeRequest<Parameters = Value> {
    /// The agent's version, four numbers.
    pub agent_version: String,
    /// What the client shall do, in order.
    pub requested_client_actions: Vec<RequestedAction<Parameters>>,
}

/// One thing that the agent asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RequestedAction<Parameters = Value> {
    /// `SessionType` or `KMSEncryption`.
    pub action_type: String,
    /// Depends on the type.
    pub action_parameters: Parameters,
}

/// The parameters of the action `SessionType`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SessionParameters {
    /// `Port`, or a kind of shell.
    pub session_type: String,
    /// Those of the session document.
    pub properties: BTreeMap<String, String>,
}

/// The client's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeResponse {
    /// The client's version, four numbers.
    pub client_version: String,
    /// One for each requested action, in the same order.
    pub processed_client_actions: Vec<ProcessedAction>,
    /// Errors beside those of the actions.
    pub errors: Option<Vec<String>>,
}

/// What became of one requested action. Some clients leave out what is empty, which the official agent allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProcessedAction {
    /// As requested.
    pub action_type: String,
    /// 1 success, 2 failed, 3 unsupported. Anything but 1 fails the session at the agent.
    pub action_status: u32,
    /// Depends on the type; null for `SessionType`.
    #[serde(default)]
    pub action_result: Value,
    /// Why it failed.
    #[serde(default)]
    pub error: String,
}

/// The agent's word that data may flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeComplete {
    /// Nanoseconds.
    pub handshake_time_to_complete: u64,
    /// To be shown to the user if not empty.
    pub customer_message: String,
}

/// The service's word that the session has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ChannelClosed {
    /// The message's own id.
    pub message_id: Uuid,
    /// A date as text.
    pub created_date: String,
    /// The client it is for.
    pub destination_id: String,
    /// The session that ended.
    pub session_id: String,
    /// `channel_closed`.
    pub message_type: String,
    /// 1.
    pub schema_version: u32,
    /// Why, in words; may be empty.
    pub output: String,
}

/// The most characters that are kept of a far end's words, which end up in status and log.
const LONGEST_WORDS: usize = 400;

/// Returns words of a far end as they can be shown.
pub(crate) fn words(text: &str) -> String {
    in_one_line(text, LONGEST_WORDS)
}

/// Returns the reason that a `channel_closed` gives. Whatever else is wrong with the body, the session has ended.
pub fn closing_words(payload: &[u8]) -> String {
    let body: Value = serde_json::from_slice(payload).unwrap_or_default();
    words(body.get("Output").and_then(Value::as_str).unwrap_or_default())
}

/// Writes a body as compact JSON.
pub fn json<T: Serialize>(body: &T) -> Bytes {
    // The bodies above have string keys and no maps of other types, so writing them can't fail; an empty payload,
    // which every receiver ignores, is what a failure would become.
    serde_json::to_vec(body).map(Bytes::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_written_as_serialisation_would_and_in_the_room_for_it() {
        for (name, number) in [("input_stream_data", 0), ("output_stream_data", u64::MAX)] {
            let id = Uuid::from_u128(u128::MAX / 3);
            let mut written = BytesMut::with_capacity(LONGEST_ACKNOWLEDGE);
            let room = written.as_ptr();
            write_acknowledge(name, id, number, &mut written);
            assert_eq!(written.as_ptr(), room);
            let serialised = json(&Acknowledge {
                acknowledged_message_type: name.into(),
                acknowledged_message_id: id,
                acknowledged_message_sequence_number: number,
                is_sequential_message: true,
            });
            assert_eq!(written, serialised);
        }
    }
}
