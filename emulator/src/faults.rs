//! What goes wrong on purpose, switched on by name.
//!
//! A fault is written `NAME`, `NAME=SUBJECT` (a fault of one instance, say) and `NAME*COUNT` (that many times, then no
//! longer): `agent-offline=i-0abc`, `throttle-start-session*3`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use thiserror::Error;

/// A thing that can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    ExpiredToken,
    AgentOffline,
    StartSessionDenied,
    ThrottleStartSession,
    ResumeFails,
    ResumeSaysGone,
    TokenExpires,
    UnknownHost,
    SendKeyDenied,
    ThrottleSendKey,
    SendKeyUnavailable,
    EiceDenied,
    EiceThrottled,
    EiceFails,
    EiceDropsUpgrade,
    EiceStallsUpgrade,
    EiceUnreachable,
    EiceSendsText,
}

impl Fault {
    const ALL: &[Self] = &[
        Self::ExpiredToken,
        Self::AgentOffline,
        Self::StartSessionDenied,
        Self::ThrottleStartSession,
        Self::ResumeFails,
        Self::ResumeSaysGone,
        Self::TokenExpires,
        Self::UnknownHost,
        Self::SendKeyDenied,
        Self::ThrottleSendKey,
        Self::SendKeyUnavailable,
        Self::EiceDenied,
        Self::EiceThrottled,
        Self::EiceFails,
        Self::EiceDropsUpgrade,
        Self::EiceStallsUpgrade,
        Self::EiceUnreachable,
        Self::EiceSendsText,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::ExpiredToken => "expired-token",
            Self::AgentOffline => "agent-offline",
            Self::StartSessionDenied => "start-session-denied",
            Self::ThrottleStartSession => "throttle-start-session",
            Self::ResumeFails => "resume-fails",
            Self::ResumeSaysGone => "resume-says-gone",
            Self::TokenExpires => "token-expires",
            Self::UnknownHost => "unknown-host",
            Self::SendKeyDenied => "send-key-denied",
            Self::ThrottleSendKey => "throttle-send-key",
            Self::SendKeyUnavailable => "send-key-unavailable",
            Self::EiceDenied => "eice-denied",
            Self::EiceThrottled => "eice-throttled",
            Self::EiceFails => "eice-fails",
            Self::EiceDropsUpgrade => "eice-drops-upgrade",
            Self::EiceStallsUpgrade => "eice-stalls-upgrade",
            Self::EiceUnreachable => "eice-unreachable",
            Self::EiceSendsText => "eice-sends-text",
        }
    }

    fn effect(self) -> &'static str {
        match self {
            Self::ExpiredToken => "every API call answers that the caller's token has expired",
            Self::AgentOffline => "the instance's agent has lost its connection (=INSTANCE: that one alone)",
            Self::StartSessionDenied => {
                "StartSession answers AccessDeniedException (=INSTANCE: for that one alone)"
            }
            Self::ThrottleStartSession => "StartSession answers ThrottlingException",
            Self::ResumeFails => "ResumeSession answers InternalServerError",
            Self::ResumeSaysGone => "ResumeSession finds that the session has ended",
            Self::TokenExpires => {
                "the token of StartSession or ResumeSession opens no websocket: it has expired"
            }
            Self::UnknownHost => "the agent cannot resolve the target of a new session",
            Self::SendKeyDenied => "SendSSHPublicKey answers AuthException (=INSTANCE: for that one alone)",
            Self::ThrottleSendKey => "SendSSHPublicKey answers ThrottlingException",
            Self::SendKeyUnavailable => "SendSSHPublicKey answers EC2InstanceUnavailableException",
            Self::EiceDenied => {
                "a tunnel is refused with AccessDeniedException (=ENDPOINT: by that one alone)"
            }
            Self::EiceThrottled => "a tunnel is refused with status 429",
            Self::EiceFails => "a tunnel is refused with status 503",
            Self::EiceDropsUpgrade => "the connection of a tunnel is reset before it is answered",
            Self::EiceStallsUpgrade => "a tunnel is never answered",
            Self::EiceUnreachable => "a tunnel cannot reach its target (=ADDRESS: that one alone)",
            Self::EiceSendsText => "a tunnel sends a text message before the next bytes of its target",
        }
    }

    /// Whether the fault can concern one instance, endpoint or address alone.
    fn has_subject(self) -> bool {
        match self {
            Self::AgentOffline
            | Self::StartSessionDenied
            | Self::SendKeyDenied
            | Self::EiceDenied
            | Self::EiceUnreachable => true,
            Self::ExpiredToken
            | Self::ThrottleStartSession
            | Self::ResumeFails
            | Self::ResumeSaysGone
            | Self::TokenExpires
            | Self::UnknownHost
            | Self::ThrottleSendKey
            | Self::SendKeyUnavailable
            | Self::EiceThrottled
            | Self::EiceFails
            | Self::EiceDropsUpgrade
            | Self::EiceStallsUpgrade
            | Self::EiceSendsText => false,
        }
    }
}

/// The faults that are switched on.
#[derive(Debug, Default)]
pub struct Faults {
    active: Mutex<BTreeMap<(Fault, Option<String>), Times>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    Always,
    Left(u32),
}

/// A fault that is switched on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActiveFault {
    /// Its name.
    pub name: &'static str,
    /// The one instance, endpoint or address that it concerns; `None`: all.
    pub subject: Option<String>,
    /// How many times it will strike; `None`: for ever.
    pub left: Option<u32>,
}

/// Why a fault cannot be switched.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FaultError {
    /// No fault has that name.
    #[error("there is no fault `{0}`; `tunneld-emulator --list-faults` names them")]
    Unknown(String),
    /// The fault is not of one thing.
    #[error("the fault `{0}` has no subject")]
    NoSubject(&'static str),
    /// What follows the `*` is not a number of times.
    #[error("`{0}` is not a count: write NAME*3")]
    Count(String),
}

impl Faults {
    /// Switches a fault on, written `NAME[=SUBJECT][*COUNT]`; set again, the newer count holds.
    pub fn set(&self, fault: &str) -> Result<(), FaultError> {
        let (name, times) = match fault.split_once('*') {
            None => (fault, Times::Always),
            Some((name, count)) => {
                let count: u32 = count.parse().map_err(|_| FaultError::Count(count.to_owned()))?;
                (name, Times::Left(count))
            }
        };
        self.lock().insert(parse(name)?, times);
        Ok(())
    }

    /// Switches a fault off, written `NAME[=SUBJECT]`.
    pub fn clear(&self, fault: &str) -> Result<(), FaultError> {
        self.lock().remove(&parse(fault)?);
        Ok(())
    }

    /// Switches every fault off.
    pub fn clear_all(&self) {
        self.lock().clear();
    }

    /// Returns what is switched on.
    pub fn active(&self) -> Vec<ActiveFault> {
        self.lock()
            .iter()
            .map(|((fault, subject), times)| ActiveFault {
                name: fault.name(),
                subject: subject.clone(),
                left: match times {
                    Times::Always => None,
                    Times::Left(left) => Some(*left),
                },
            })
            .collect()
    }

    /// Returns the name and the effect of every fault there is.
    pub fn catalogue() -> impl Iterator<Item = (&'static str, &'static str)> {
        Fault::ALL.iter().map(|fault| (fault.name(), fault.effect()))
    }

    /// Returns whether a fault strikes at this moment, and counts that it did.
    pub(crate) fn strikes(&self, fault: Fault) -> bool {
        self.strikes_key(&(fault, None))
    }

    /// Returns whether a fault strikes this subject at this moment, and counts that it did.
    pub(crate) fn strikes_subject(&self, fault: Fault, subject: &str) -> bool {
        self.strikes_key(&(fault, Some(subject.to_owned()))) || self.strikes(fault)
    }

    fn strikes_key(&self, key: &(Fault, Option<String>)) -> bool {
        let mut active = self.lock();
        match active.get_mut(key) {
            None => false,
            Some(Times::Always) => true,
            Some(Times::Left(0)) => {
                active.remove(key);
                false
            }
            Some(Times::Left(left)) => {
                *left -= 1;
                if *left == 0 {
                    active.remove(key);
                }
                true
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Fault, Option<String>), Times>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(fault: &str) -> Result<(Fault, Option<String>), FaultError> {
    let (name, subject) = match fault.split_once('=') {
        None => (fault, None),
        Some((name, subject)) => (name, Some(subject.to_owned())),
    };
    let fault = Fault::ALL
        .iter()
        .copied()
        .find(|fault| fault.name() == name)
        .ok_or_else(|| FaultError::Unknown(name.to_owned()))?;
    if subject.is_some() && !fault.has_subject() {
        return Err(FaultError::NoSubject(fault.name()));
    }
    Ok((fault, subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_fault_strikes_that_often_and_is_gone() {
        let faults = Faults::default();
        faults.set("throttle-start-session*2").expect("a known fault");
        let struck: Vec<bool> = (0..3)
            .map(|_| faults.strikes(Fault::ThrottleStartSession))
            .collect();
        assert_eq!(struck, [true, true, false]);
        assert_eq!(faults.active(), []);
    }

    #[test]
    fn a_fault_of_one_instance_spares_the_others() {
        let faults = Faults::default();
        faults.set("agent-offline=i-1").expect("a known fault");
        assert!(faults.strikes_subject(Fault::AgentOffline, "i-1"));
        assert!(!faults.strikes_subject(Fault::AgentOffline, "i-2"));
        faults.clear("agent-offline=i-1").expect("a known fault");
        assert!(!faults.strikes_subject(Fault::AgentOffline, "i-1"));
    }

    #[test]
    fn a_fault_of_all_instances_strikes_each_of_them() {
        let faults = Faults::default();
        faults.set("agent-offline").expect("a known fault");
        assert!(faults.strikes_subject(Fault::AgentOffline, "i-2"));
    }

    #[test]
    fn what_is_no_fault_is_refused() {
        let faults = Faults::default();
        assert_eq!(
            faults.set("earthquake"),
            Err(FaultError::Unknown("earthquake".to_owned()))
        );
        assert_eq!(
            faults.set("resume-fails*many"),
            Err(FaultError::Count("many".to_owned()))
        );
        assert_eq!(
            faults.set("expired-token=i-1"),
            Err(FaultError::NoSubject("expired-token"))
        );
    }

    #[test]
    fn every_fault_in_the_catalogue_can_be_set_by_its_name() {
        let faults = Faults::default();
        for (name, effect) in Faults::catalogue() {
            assert!(!effect.is_empty());
            faults.set(name).expect("listed faults are known");
        }
        assert_eq!(faults.active().len(), Fault::ALL.len());
    }
}
