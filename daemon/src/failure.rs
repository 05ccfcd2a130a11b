//! What went wrong on the way to a target: what it concerns, and what has to change before another attempt can work.
//!
//! `Failure` is the one error type that crosses the seams between `aws`, `transport`, `tunnel` and `rpc`. Its
//! `Display` says what *we* were doing; `source()` says why. Whoever prints it walks the chain.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A boxed cause.
pub type Cause = Box<dyn Error + Send + Sync>;

/// A failed step towards a target.
#[derive(Debug)]
pub struct Failure {
    doing: String,
    reason: Reason,
    remedy: Remedy,
    scope: Scope,
    answered: bool,
    hints: Vec<String>,
    source: Option<Cause>,
}

/// The class of a failure, for programs; mirrored by `Reason` in the proto.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The network, AWS or the far end failed.
    Unreachable,
    /// AWS asked to slow down.
    Throttled,
    /// Credentials are missing or expired.
    Login,
    /// AWS refused: a permission is missing or a signature is wrong.
    Denied,
    /// The instance, database or document does not exist.
    NotFound,
    /// Another program holds the local port.
    PortInUse,
    /// The SSM agent of the instance is not connected.
    AgentOffline,
    /// The target refused, or could not be reached from the far end.
    TargetRefused,
    /// The configuration asks for something that cannot work.
    Invalid,
    /// The route's time for a stream was over: it cuts each after so long.
    Expired,
}

/// What has to change before another attempt can succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Time may mend it.
    Retry,
    /// Time may mend it, and the far end said how much of it.
    RetryAfter(Duration),
    /// A person must log in with this profile.
    Login {
        /// The profile's name; `None` for the default chain.
        profile: Option<String>,
    },
    /// A person must change something: the configuration, a permission, a resource.
    Fix,
}

/// What a failure ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One stream: the link and its other streams go on.
    Stream,
    /// The link, with every stream on it.
    Link,
}

/// The longest wait that an answer may ask of us. More is an accident of the sender's.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(5 * 60);

impl Remedy {
    /// Time, and as much of it as the header `Retry-After` asks for, if it is there and can be understood.
    pub fn after(seconds: Option<&str>) -> Self {
        match seconds.and_then(|seconds| seconds.parse().ok()) {
            Some(seconds) => Self::RetryAfter(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER)),
            None => Self::Retry,
        }
    }
}

impl Failure {
    /// A failure of the link whose cause has no error value. `doing` is lower case, without a full stop.
    pub fn new(reason: Reason, remedy: Remedy, doing: impl Into<String>) -> Self {
        Self {
            doing: doing.into(),
            reason,
            remedy,
            scope: Scope::Link,
            answered: false,
            hints: Vec::new(),
            source: None,
        }
    }

    /// The same failure, of one stream alone.
    pub fn of_stream(mut self) -> Self {
        self.scope = Scope::Stream;
        self
    }

    /// The same failure, which is what somebody answered who is there and can be asked too often.
    pub fn answered(mut self) -> Self {
        self.answered = true;
        self
    }

    /// The same failure with what caused it.
    pub fn because(mut self, source: impl Into<Cause>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same failure with one more line that tells a person what to do. A command must be whole, to be pasted.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Returns the same failure for one more reader.
    pub fn again(self: &Arc<Self>) -> Self {
        Self {
            doing: self.doing.clone(),
            reason: self.reason,
            remedy: self.remedy.clone(),
            scope: self.scope,
            answered: self.answered,
            hints: self.hints.clone(),
            source: Some(Box::new(Arc::clone(self))),
        }
    }

    /// Returns the class of the failure.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Returns what has to change before another attempt.
    pub fn remedy(&self) -> &Remedy {
        &self.remedy
    }

    /// Returns what the failure ends.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Returns whether somebody answered, who can be asked too often.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// Returns what a person can do, a line each.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// Returns what failed and each cause, outermost first; a cause that repeats the one above it is left out.
    pub fn chain(&self) -> Vec<String> {
        let mut chain = vec![self.doing.clone()];
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if chain.last().is_some_and(|above| !above.contains(&text)) {
                chain.push(text);
            }
            cause = error.source();
        }
        chain
    }

    /// Returns the whole chain in one line, for the log.
    pub fn in_one_line(&self) -> String {
        self.chain().join(": ")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|cause| cause as &(dyn Error + 'static))
    }
}
