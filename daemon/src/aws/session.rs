//! Session Manager sessions: started, resumed, terminated. The bytes in them are the transport's business.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::target::{AgentStatus, FoundInstance};
use super::{Account, classify, wall_clock};
use crate::failure::{Failure, Reason, Remedy};

/// What AWS's session log shows as the reason of our sessions.
const REASON: &str = "tunneld";

/// How long AWS may take over the key to a session whose streams stand still. It takes a tenth of a second; a network
/// that swallows the call may be back for the next one.
const RESUME_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a session's bytes go, seen from the instance. Each has a session document of its own, and an IAM policy may
/// allow only one of the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// To a port of the instance itself.
    Port {
        /// The port.
        port: u16,
    },
    /// To a port of another host.
    RemoteHost {
        /// The host, resolved by the instance.
        host: String,
        /// The port.
        port: u16,
    },
}

impl Document {
    fn name(&self) -> &'static str {
        match self {
            Self::Port { .. } => "AWS-StartPortForwardingSession",
            Self::RemoteHost { .. } => "AWS-StartPortForwardingSessionToRemoteHost",
        }
    }

    /// Every value is a list of strings, numbers too. Local port 0: there is no local listener to name.
    fn parameters(&self) -> HashMap<String, Vec<String>> {
        let (host, port) = match self {
            Self::Port { port } => (None, port),
            Self::RemoteHost { host, port } => (Some(host), port),
        };
        let mut parameters = HashMap::from([
            ("portNumber".to_owned(), vec![port.to_string()]),
            ("localPortNumber".to_owned(), vec!["0".to_owned()]),
        ]);
        if let Some(host) = host {
            parameters.insert("host".to_owned(), vec![host.clone()]);
        }
        parameters
    }
}

/// What it takes to open the websocket of a session, once.
#[derive(Debug)]
pub struct SessionGrant {
    /// The session.
    pub session_id: String,
    /// The single-use key to its data channel.
    pub token: Token,
    /// Where that is.
    pub stream_url: StreamUrl,
}

/// The single-use key to a data channel. Never shown, and wiped when dropped.
pub struct Token(Zeroizing<String>);

/// The URL of a data channel, byte for byte as AWS gave it. Never shown, and wiped when dropped: it may be presigned.
pub struct StreamUrl(Zeroizing<String>);

impl Token {
    /// Returns the key itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl StreamUrl {
    /// Takes a URL as AWS gave it.
    pub(super) fn new(url: impl Into<String>) -> Self {
        Self(Zeroizing::new(url.into()))
    }

    /// Returns the URL itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl fmt::Debug for StreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamUrl(…)")
    }
}

impl Account {
    /// Waits for a turn to start a session, among all that are started with this profile.
    pub async fn turn_to_start(&self) {
        self.throttle.turn().await;
    }

    /// Starts a session; see [`Account::turn_to_start`]. When the instance's agent is not connected, the failure says since
    /// when.
    pub async fn start_session(
        &self,
        instance: &FoundInstance,
        document: &Document,
    ) -> Result<SessionGrant, Failure> {
        let doing = format!("cannot start a session on {instance}");
        let started = self
            .ssm
            .start_session()
            .target(instance.id())
            .document_name(document.name())
            .set_parameters(Some(document.parameters()))
            .reason(REASON)
            .customize()
            .config_override(once())
            .send()
            .await;
        match started {
            Ok(output) => {
                self.throttle.granted();
                grant(output.session_id, output.token_value, output.stream_url)
                    .ok_or_else(|| incomplete(doing))
            }
            Err(error) => {
                let failure = self.failure(doing, error);
                if failure.reason() == Reason::Throttled {
                    self.throttle.refused();
                }
                if failure.reason() != Reason::AgentOffline {
                    return Err(failure);
                }
                let id = match instance {
                    FoundInstance::Machine { id, .. } => id,
                    FoundInstance::Task(task) => return Err(self.task_offline(task, failure)),
                };
                // Whoever may start sessions may still not be allowed to ask for the agent: then the bare fact stays.
                match self.agent_status(id).await {
                    Ok(status) => Err(self.agent_offline(instance, status.as_ref(), failure)),
                    Err(_) => Err(failure),
                }
            }
        }
    }

    /// Asks once, without the SDK's retries, for a new key to a session whose websocket was lost; `None` when the session
    /// has ended.
    pub async fn resume_session(&self, session_id: &str) -> Result<Option<SessionGrant>, Failure> {
        let doing = || format!("cannot resume the session `{session_id}`");
        let asked = self.ssm.resume_session().session_id(session_id);
        let Ok(answer) = timeout(RESUME_TIMEOUT, asked.customize().config_override(once()).send()).await
        else {
            let late = format!("no answer within {} s", RESUME_TIMEOUT.as_secs());
            return Err(Failure::new(Reason::Unreachable, Remedy::Retry, doing()).because(late));
        };
        match answer {
            Ok(output) if output.token_value.as_deref().is_none_or(str::is_empty) => Ok(None),
            Ok(output) => {
                let session_id = output.session_id.or_else(|| Some(session_id.to_owned()));
                grant(session_id, output.token_value, output.stream_url)
                    .map(Some)
                    .ok_or_else(|| incomplete(doing()))
            }
            Err(error) if classify::has_code(&error, "DoesNotExistException") => Ok(None),
            Err(error) => Err(self.failure(doing(), error)),
        }
    }

    /// Ends a session. That it has ended already is no failure.
    pub async fn terminate_session(&self, session_id: &str) -> Result<(), Failure> {
        match self.ssm.terminate_session().session_id(session_id).send().await {
            Ok(_) => Ok(()),
            Err(error) if classify::has_code(&error, "DoesNotExistException") => Ok(()),
            Err(error) => Err(self.failure(format!("cannot terminate the session `{session_id}`"), error)),
        }
    }

    fn agent_offline(
        &self,
        instance: &FoundInstance,
        status: Option<&AgentStatus>,
        cause: Failure,
    ) -> Failure {
        let doing = match status {
            None => format!("the SSM agent of {instance} is not registered"),
            Some(AgentStatus { online: true, .. }) => {
                format!("the SSM agent of {instance} reports, but takes no session")
            }
            Some(AgentStatus {
                last_ping: Some(at), ..
            }) => {
                let since = wall_clock().duration_since(*at).unwrap_or_default();
                format!("the SSM agent of {instance} was last seen {}", ago(since))
            }
            Some(AgentStatus { last_ping: None, .. }) => format!("the SSM agent of {instance} is offline"),
        };
        Failure::new(Reason::AgentOffline, Remedy::Retry, doing)
            .because(cause)
            .hint("on the instance: sudo systemctl restart amazon-ssm-agent")
            .hint(format!(
                "if it never comes back, its role lacks AmazonSSMManagedInstanceCore or its subnet has no way to \
                 ssmmessages.{}.amazonaws.com",
                self.region
            ))
    }
}

/// One attempt, where the SDK makes several. Whoever resumes has shorter pauses of its own; a start that came too fast
/// is a pause for all that wait for their turn, and one whose answer was lost may have left a session that nobody ends.
fn once() -> aws_sdk_ssm::config::Builder {
    aws_sdk_ssm::Config::builder().retry_config(RetryConfig::disabled())
}

fn grant(id: Option<String>, token: Option<String>, url: Option<String>) -> Option<SessionGrant> {
    Some(SessionGrant {
        session_id: id?,
        token: Token(Zeroizing::new(token?)),
        stream_url: StreamUrl::new(url?),
    })
}

fn incomplete(doing: String) -> Failure {
    Failure::new(Reason::Unreachable, Remedy::Retry, doing)
        .because("the answer lacks a session id, token or URL")
        .answered()
}

/// A duration that has passed, in its largest unit.
fn ago(passed: Duration) -> String {
    let minutes = passed.as_secs() / 60;
    let (count, unit) = match minutes {
        0 => return "less than a minute ago".to_owned(),
        1..60 => (minutes, "minute"),
        60..1440 => (minutes / 60, "hour"),
        _ => (minutes / 1440, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_told_in_its_largest_unit() {
        let told = |seconds| ago(Duration::from_secs(seconds));
        assert_eq!(told(59), "less than a minute ago");
        assert_eq!(told(60), "1 minute ago");
        assert_eq!(told(3599), "59 minutes ago");
        assert_eq!(told(7200), "2 hours ago");
        assert_eq!(told(86_399), "23 hours ago");
        assert_eq!(told(3 * 86_400), "3 days ago");
    }

    #[test]
    fn a_grant_shows_neither_token_nor_url() {
        let grant = grant(
            Some("me-0abc".into()),
            Some("hunter2".into()),
            Some("wss://x/?secret".into()),
        )
        .unwrap();
        let text = format!("{grant:?}");
        assert!(text.contains("me-0abc"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("secret"), "{text}");
    }
}
