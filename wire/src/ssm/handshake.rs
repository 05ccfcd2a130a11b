//! The negotiation of a port session, up to "data may flow".
//!
//! ```text
//!   agent   ── HandshakeRequest {AgentVersion, SessionType: Port, properties} ──►  client
//!           ◄─ HandshakeResponse {ClientVersion, one status per action} ─────────
//!           ── HandshakeComplete ───────────────────────────────────────────────►
//! ```
//!
//! There is no message about multiplexing: both sides decide alone, from the other's version (ssm.md section 5.7).
//! The agent acknowledges data sent before HandshakeComplete and throws it away.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

use super::payload::{
    self, HandshakeComplete, HandshakeRequest, HandshakeResponse, ProcessedAction, RequestedAction,
    SessionParameters,
};
use super::version::{CLIENT_VERSION, Version};

/// Why a session can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A body of the handshake is not what it must be.
    #[error("the handshake can't be understood: {0}")]
    Malformed(String),
    /// The document made another type of session.
    #[error("the session is of type `{0}` where a port session is needed")]
    NotPort(String),
    /// The agent can carry one connection at a time only.
    #[error("SSM agent {0} can't carry several connections at once; 3.0.197 and later can")]
    AgentTooOld(String),
    /// The agent asks for encryption by KMS, which port sessions never use.
    #[error("the agent asks for `{0}`, which port sessions don't have")]
    Unsupported(String),
    /// The client turned an action down.
    #[error("the client refused `{action}`: {error}")]
    Refused {
        /// The action.
        action: String,
        /// Its words.
        error: String,
    },
}

/// What a client learned of its agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) agent_version: String,
    pub(crate) understands_terminate: bool,
    pub(crate) acknowledges_duplicates: bool,
    pub(crate) wants_keep_alives: bool,
}

/// The client's half: reads the request; returns the response to send, and what to think of the agent. The response is
/// to be sent even when the session can't go on, so that the agent knows why.
pub(crate) fn answer(request: &[u8]) -> Result<(Bytes, Result<Offer, HandshakeError>), HandshakeError> {
    let request: HandshakeRequest =
        serde_json::from_slice(request).map_err(|error| HandshakeError::Malformed(error.to_string()))?;
    let mut refusal = None;
    let mut processed = Vec::new();
    let mut type_of_session = None;
    for action in &request.requested_client_actions {
        let (status, error) = match action.action_type.as_str() {
            "SessionType" => match port_type(&action.action_parameters) {
                Ok(multiplexes) => {
                    type_of_session = Some(multiplexes);
                    (1, None)
                }
                Err(error) => (2, Some(error)),
            },
            // 3 is "unsupported"; the official client puts it into the wrong field (ssm.md section 5.3).
            other => (3, Some(HandshakeError::Unsupported(other.to_owned()))),
        };
        processed.push(ProcessedAction {
            action_type: action.action_type.clone(),
            action_status: status,
            action_result: Value::Null,
            error: error.as_ref().map(ToString::to_string).unwrap_or_default(),
        });
        refusal = refusal.or(error);
    }
    let response = payload::json(&HandshakeResponse {
        client_version: CLIENT_VERSION.to_owned(),
        processed_client_actions: processed,
        errors: None,
    });
    let offer = match (refusal, type_of_session) {
        (Some(refusal), _) => Err(refusal),
        (None, Some(true)) => offer(request.agent_version),
        (None, Some(false)) => Err(HandshakeError::NotPort(
            "Port without LocalPortForwarding".to_owned(),
        )),
        (None, None) => Err(HandshakeError::Malformed("no session type is named".to_owned())),
    };
    Ok((response, offer))
}

/// Returns whether a session type is the one that forwards ports; another type is an error.
fn port_type(parameters: &Value) -> Result<bool, HandshakeError> {
    let name = parameters
        .get("SessionType")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if name != "Port" {
        return Err(HandshakeError::NotPort(name.to_owned()));
    }
    let forwarding = parameters
        .get("Properties")
        .and_then(|properties| properties.get("type"));
    Ok(forwarding.and_then(Value::as_str) == Some("LocalPortForwarding"))
}

fn offer(agent_version: String) -> Result<Offer, HandshakeError> {
    // The official client treats a version it can't compare as too old.
    let version = Version::parse(&agent_version);
    let Some(version) = version.filter(|version| *version > Version::AGENT_BEFORE_MULTIPLEXING) else {
        return Err(HandshakeError::AgentTooOld(agent_version));
    };
    Ok(Offer {
        agent_version,
        understands_terminate: version > Version::AGENT_BEFORE_TERMINATE,
        wants_keep_alives: version <= Version::AGENT_BEFORE_SILENCE,
        acknowledges_duplicates: version >= Version::AGENT_ACKNOWLEDGES_DUPLICATES,
    })
}

/// The agent's first message. `properties` are those of the session document, all values text.
pub(crate) fn request(agent_version: &str, properties: &BTreeMap<String, String>) -> Bytes {
    payload::json(&HandshakeRequest {
        agent_version: agent_version.to_owned(),
        requested_client_actions: vec![RequestedAction {
            action_type: "SessionType".to_owned(),
            action_parameters: SessionParameters {
                session_type: "Port".to_owned(),
                properties: properties.clone(),
            },
        }],
    })
}

/// The agent's reading of the client's answer.
pub(crate) fn judge(response: &[u8]) -> Result<(), HandshakeError> {
    let response: HandshakeResponse =
        serde_json::from_slice(response).map_err(|error| HandshakeError::Malformed(error.to_string()))?;
    for action in response.processed_client_actions {
        if action.action_status != 1 {
            return Err(HandshakeError::Refused {
                action: action.action_type,
                error: action.error,
            });
        }
    }
    let version = Version::parse(&response.client_version);
    if version.is_none_or(|version| version < Version::CLIENT_MULTIPLEXES) {
        return Err(HandshakeError::Malformed(format!(
            "client version {} does not multiplex",
            response.client_version
        )));
    }
    Ok(())
}

/// The agent's word that data may flow.
pub(crate) fn complete(nanoseconds: u64) -> Bytes {
    payload::json(&HandshakeComplete {
        handshake_time_to_complete: nanoseconds,
        customer_message: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered_by(agent_version: &str) -> Result<Offer, HandshakeError> {
        let properties = [("type".to_owned(), "LocalPortForwarding".to_owned())].into();
        answer(&request(agent_version, &properties)).unwrap().1
    }

    #[test]
    fn capabilities_follow_from_the_agents_version() {
        // Version, acknowledges duplicates, wants keep-alives.
        let table = [
            ("3.0.196.1", false, true),
            ("3.1.1511.0", false, true),
            ("3.1.1511.1", false, false),
            ("3.2.1040.9", false, false),
            ("3.2.1041.0", true, false),
            ("3.3.987.0", true, false),
        ];
        for (version, acknowledges_duplicates, wants_keep_alives) in table {
            let offer = offered_by(version).unwrap();
            assert_eq!(
                offer.acknowledges_duplicates, acknowledges_duplicates,
                "{version}"
            );
            assert_eq!(offer.wants_keep_alives, wants_keep_alives, "{version}");
            assert!(offer.understands_terminate, "{version}");
        }
    }

    #[test]
    fn agents_that_cannot_multiplex_or_be_compared_are_too_old() {
        for version in ["3.0.196.0", "2.3.722.0", "", "latest", "3.0.x.1"] {
            assert_eq!(
                offered_by(version),
                Err(HandshakeError::AgentTooOld(version.to_owned()))
            );
        }
    }

    #[test]
    fn a_request_that_cannot_be_read_is_not_answered() {
        for request in [
            "",
            "null",
            "{}",
            r#"{"AgentVersion":1,"RequestedClientActions":[]}"#,
        ] {
            assert!(
                matches!(answer(request.as_bytes()), Err(HandshakeError::Malformed(_))),
                "{request}"
            );
        }
    }

    #[test]
    fn a_request_without_a_session_type_is_answered_and_turned_down() {
        let (response, offer) =
            answer(br#"{"AgentVersion":"3.3.987.0","RequestedClientActions":[]}"#).unwrap();
        assert!(!response.is_empty());
        assert!(matches!(offer, Err(HandshakeError::Malformed(_))));
    }
}
