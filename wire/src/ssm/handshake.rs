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
    /// The agent would connect to itself instead of the host that was asked for.
    #[error("SSM agent {0} can't forward to another host; 3.1.1188 and later can")]
    AgentTooOld(String),
    /// What the agent can do follows from its version, which is none.
    #[error("the SSM agent's version `{0}` can't be read")]
    AgentVersion(String),
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
    pub(crate) multiplexes: bool,
    pub(crate) understands_terminate: bool,
    pub(crate) acknowledges_duplicates: bool,
    pub(crate) wants_keep_alives: bool,
}

/// The client's half: reads the request; returns the response to send, and what to think of the agent. The response is
/// to be sent even when the session can't go on, so that the agent knows why.
pub(crate) fn answer(request: &[u8]) -> Result<(Bytes, Result<Offer, HandshakeError>), HandshakeError> {
    let mut request: HandshakeRequest = serde_json::from_slice(request)
        .map_err(|error| HandshakeError::Malformed(payload::words(&error.to_string())))?;
    request.agent_version = payload::words(&request.agent_version);
    let mut refusal = None;
    let mut processed = Vec::new();
    let mut port = None;
    for action in &request.requested_client_actions {
        let (status, error) = match action.action_type.as_str() {
            "SessionType" => match port_type(&action.action_parameters) {
                Ok(found) => {
                    let too_old = too_old_for(&found, &request.agent_version);
                    port = Some(found);
                    (if too_old.is_some() { 2 } else { 1 }, too_old)
                }
                Err(error) => (2, Some(error)),
            },
            // 3 is "unsupported"; the official client puts it into the wrong field (ssm.md section 5.3).
            other => (3, Some(HandshakeError::Unsupported(payload::words(other)))),
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
    let offer = match (refusal, port) {
        (Some(refusal), _) => Err(refusal),
        (None, Some(Port { forwards: true, .. })) => offer(request.agent_version),
        (None, Some(_)) => Err(HandshakeError::NotPort(
            "Port without LocalPortForwarding".to_owned(),
        )),
        (None, None) => Err(HandshakeError::Malformed("no session type is named".to_owned())),
    };
    Ok((response, offer))
}

/// A port session, as its agent describes it.
struct Port {
    /// Whether it forwards connections; the other kind is one pipe, for SSH.
    forwards: bool,
    /// Whether it forwards them to another host.
    to_host: bool,
}

/// Reads the session type, which must be that of a port session.
fn port_type(parameters: &Value) -> Result<Port, HandshakeError> {
    let name = parameters
        .get("SessionType")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if name != "Port" {
        return Err(HandshakeError::NotPort(payload::words(name)));
    }
    let property = |name| {
        let properties = parameters.get("Properties")?;
        properties.get(name).and_then(Value::as_str)
    };
    Ok(Port {
        forwards: property("type") == Some("LocalPortForwarding"),
        to_host: property("host").is_some_and(|host| !host.is_empty()),
    })
}

/// Returns why an agent must not carry this session: bytes meant for a database would reach whatever listens on the
/// agent's own machine.
fn too_old_for(port: &Port, agent_version: &str) -> Option<HandshakeError> {
    let version = Version::parse(agent_version)?;
    (port.to_host && version < Version::AGENT_FORWARDS_TO_HOSTS)
        .then(|| HandshakeError::AgentTooOld(agent_version.to_owned()))
}

fn offer(agent_version: String) -> Result<Offer, HandshakeError> {
    // Both sides choose alone, and the wrong guess leaves them without a common language.
    let Some(version) = Version::parse(&agent_version) else {
        return Err(HandshakeError::AgentVersion(agent_version));
    };
    Ok(Offer {
        agent_version,
        multiplexes: version > Version::AGENT_BEFORE_MULTIPLEXING,
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

/// The agent's reading of the client's answer: how the session goes on.
pub(crate) fn judge(response: &[u8], agent_version: &str) -> Result<Choice, HandshakeError> {
    let response: HandshakeResponse = serde_json::from_slice(response)
        .map_err(|error| HandshakeError::Malformed(payload::words(&error.to_string())))?;
    for action in response.processed_client_actions {
        if action.action_status != 1 {
            return Err(HandshakeError::Refused {
                action: payload::words(&action.action_type),
                error: payload::words(&action.error),
            });
        }
    }
    let client = Version::parse(&response.client_version);
    let agent = Version::parse(agent_version);
    let client_is_from = |version| client.is_some_and(|client| client >= version);
    let agent_is_after = |version| agent.is_none_or(|agent| agent > version);
    Ok(Choice {
        multiplexes: client_is_from(Version::CLIENT_MULTIPLEXES)
            && agent_is_after(Version::AGENT_BEFORE_MULTIPLEXING),
        sends_keep_alives: client.is_none_or(|client| client <= Version::CLIENT_BEFORE_SILENCE)
            || !agent_is_after(Version::AGENT_BEFORE_SILENCE),
    })
}

/// How an agent goes on, from both versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) multiplexes: bool,
    pub(crate) sends_keep_alives: bool,
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
    fn what_an_agent_can_do_is_unknown_without_a_version() {
        for version in ["", "latest", "3.0.x.1"] {
            assert_eq!(
                offered_by(version),
                Err(HandshakeError::AgentVersion(version.to_owned()))
            );
        }
    }

    #[test]
    fn only_agents_after_3_0_196_multiplex() {
        for (version, multiplexes) in [
            ("2.3.722.0", false),
            ("3.0.196.0", false),
            ("3.0.196.1", true),
            ("3.0.197.0", true),
        ] {
            assert_eq!(offered_by(version).unwrap().multiplexes, multiplexes, "{version}");
        }
        assert!(!offered_by("2.3.722.0").unwrap().understands_terminate);
        assert!(offered_by("2.3.723.0").unwrap().understands_terminate);
    }

    #[test]
    fn an_agent_that_does_not_know_other_hosts_is_refused_one() {
        let properties = |host: &str| {
            let properties = [("type", "LocalPortForwarding"), ("host", host)];
            properties
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into()
        };
        let offered = |version, host| answer(&request(version, &properties(host))).unwrap();
        assert!(offered("3.1.1188.0", "db").1.is_ok());
        assert!(
            offered("3.1.1187.0", "").1.is_ok(),
            "it is asked for a port of its own"
        );
        let (response, offer) = offered("3.1.1187.0", "db");
        assert_eq!(offer, Err(HandshakeError::AgentTooOld("3.1.1187.0".to_owned())));
        assert!(judge(&response, "3.1.1187.0").is_err(), "and is told so");
    }

    #[test]
    fn an_agent_goes_on_as_both_versions_allow() {
        let chosen = |client: &str, agent| {
            let response = format!(r#"{{"ClientVersion":"{client}","ProcessedClientActions":[]}}"#);
            judge(response.as_bytes(), agent).unwrap()
        };
        let choice = |multiplexes, sends_keep_alives| Choice {
            multiplexes,
            sends_keep_alives,
        };
        assert_eq!(chosen(CLIENT_VERSION, "3.3.987.0"), choice(true, false));
        assert_eq!(chosen(CLIENT_VERSION, "3.1.1511.0"), choice(true, true));
        assert_eq!(chosen(CLIENT_VERSION, "3.0.196.0"), choice(false, true));
        assert_eq!(chosen("1.2.331.0", "3.3.987.0"), choice(true, true));
        assert_eq!(chosen("1.1.69", "3.3.987.0"), choice(false, true));
    }

    #[test]
    fn an_answer_may_leave_out_what_is_empty() {
        let answer = br#"{"ClientVersion":"1.2.764.0","ProcessedClientActions":[
            {"ActionType":"SessionType","ActionStatus":1}]}"#;
        assert!(judge(answer, "3.3.1142.0").unwrap().multiplexes);
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
