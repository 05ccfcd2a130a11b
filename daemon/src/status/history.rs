//! What a tunnel went through: its latest transitions, each with its reason in words, and what an outage cost.
//!
//! ```text
//!   up ──► waiting or blocked: the reason ──► … ──► up: "resumed, no connection lost"
//!      └──────────────── an outage ───────────────┘
//! ```

use std::collections::VecDeque;
use std::time::SystemTime;

use tokio::time::Instant;

use super::State;
use crate::meter::Meter;

/// How many transitions are remembered for each tunnel: a bad night's worth, in a few KiB.
pub(super) const HISTORY: usize = 32;

/// A change of state that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transition {
    /// Counts the tunnel's transitions from 1, also those that are forgotten.
    pub(crate) number: u64,
    /// When.
    pub(crate) at: SystemTime,
    /// The state's name.
    pub(crate) state: &'static str,
    /// Why; empty for a change that was asked for.
    pub(crate) reason: String,
    /// Of a tunnel that is up again: how many connections its outage cost.
    pub(crate) connections_lost: Option<u64>,
}

/// The latest transitions of a tunnel.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    /// Oldest first.
    transitions: VecDeque<Transition>,
    /// The number of the last one.
    latest: u64,
    /// What the tunnel is in since it was up.
    outage: Option<Outage>,
}

/// A time in which a tunnel that was up carries nothing.
#[derive(Debug, Clone, Copy)]
struct Outage {
    since: Instant,
    /// Connections that had been lost before.
    lost_before: u64,
}

impl History {
    /// Returns the transitions that are remembered, oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Transition> {
        self.transitions.iter()
    }

    /// Notes a change of state; returns its reason in words. A resumed link is counted.
    pub(super) fn pass(&mut self, before: &State, after: &State, meter: &Meter, at: SystemTime) -> String {
        let now = Instant::now();
        let mut connections_lost = None;
        let mut reason = after.cause().map(|cause| cause.in_one_line()).unwrap_or_default();
        match (before, after) {
            (State::Up, State::Waiting { .. } | State::Blocked { .. }) => {
                self.outage = Some(Outage {
                    since: now,
                    lost_before: meter.lost_before(now),
                });
            }
            (_, State::Up) => {
                if let Some(outage) = self.outage.take() {
                    let lost = meter.lost().saturating_sub(outage.lost_before);
                    // Also one that waited for a login, which else leads to an attempt first.
                    let how = if let State::Waiting { until: None, .. } | State::Blocked { .. } = before {
                        meter.resumed(now.duration_since(outage.since));
                        "resumed"
                    } else {
                        "connected again"
                    };
                    reason = format!("{how}, {}", lost_in_words(lost));
                    connections_lost = Some(lost);
                }
            }
            (_, State::Down | State::Idle { .. }) => self.outage = None,
            (_, State::Connecting { .. } | State::Waiting { .. } | State::Blocked { .. }) => {}
        }
        // A tunnel that retries for hours goes round between two states for the same reason. That is one piece of
        // news; repeating it would push the interesting past out of the ring.
        let again = matches!(after, State::Connecting { attempt } if *attempt > 1);
        let state = after.name();
        let is_news = |last: &Transition| (last.state, &last.reason) != (state, &reason);
        if !again && self.transitions.back().is_none_or(is_news) {
            self.remember(state, reason.clone(), connections_lost, at);
        }
        reason
    }

    /// Notes what happened to a tunnel that stays in its state.
    pub(super) fn note(&mut self, state: &State, words: String, at: SystemTime) {
        self.remember(state.name(), words, None, at);
    }

    fn remember(
        &mut self,
        state: &'static str,
        reason: String,
        connections_lost: Option<u64>,
        at: SystemTime,
    ) {
        if self.transitions.len() == HISTORY {
            self.transitions.pop_front();
        }
        self.latest += 1;
        self.transitions.push_back(Transition {
            number: self.latest,
            at,
            state,
            reason,
            connections_lost,
        });
    }
}

fn lost_in_words(connections: u64) -> String {
    match connections {
        0 => "no connection lost".to_owned(),
        1 => "1 connection lost".to_owned(),
        _ => format!("{connections} connections lost"),
    }
}
