//! The board: how every tunnel is. The only thing that can be observed from outside.
//!
//! ```text
//!   supervisor ──► Entry ──┐
//!   proxy      ──► Entry ──┼──► Board ═ watch of the latest Snapshot ═► rpc
//!   supervisor ──► Entry ──┘
//! ```
//!
//! One `watch` holds the latest [`Snapshot`] of all tunnels. Each status carries a generation, taken from one counter
//! for the whole board, so that a reader knows what it has not seen; a slow reader skips intermediate values and never
//! misses the latest. Counters are not on the board: a status carries the tunnel's `Meter`, to be read when needed.
//!
//! Times here are wall-clock times, for people; nothing is decided by them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::config::{TunnelName, TunnelSpec};
use crate::failure::Failure;
use crate::meter::Meter;
use crate::transport::LinkDetails;

/// How many transitions are remembered for each tunnel: a bad night's worth, in a few KiB.
const HISTORY: usize = 32;

/// A tunnel and how it is.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    /// Its name.
    pub(crate) name: TunnelName,
    /// Its configured local addresses.
    pub(crate) local: Vec<String>,
    /// Its target, as configured.
    pub(crate) target: String,
    /// Its route, in one line.
    pub(crate) route: String,
    /// How it is.
    pub(crate) state: State,
    /// Since when.
    pub(crate) since: SystemTime,
    /// The latest failure, also one that ended a single connection or was mended since.
    pub(crate) last_error: Option<LastError>,
    /// What is known of the link; `None` without one.
    pub(crate) link: Option<LinkDetails>,
    /// The latest transitions, oldest first.
    pub(crate) history: VecDeque<Transition>,
    /// Its counters.
    pub(crate) meter: Arc<Meter>,
    /// Grows with every change.
    pub(crate) generation: u64,
    /// The entry that may write here: the latest one made for this name.
    writer: u64,
}

/// How a tunnel is, in a user's words.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// Not wanted.
    Down,
    /// Wanted and listening; connects when somebody comes.
    Idle {
        /// What ended the last link or attempt; `None` if it ended for want of use, or there was none.
        cause: Option<Arc<Failure>>,
    },
    /// A link is being made.
    Connecting {
        /// 1 for the first attempt.
        attempt: u32,
    },
    /// Carries connections.
    Up,
    /// Will be well again by itself.
    Waiting {
        /// Attempts that failed.
        attempt: u32,
        /// When the next one starts; `None` while the present link is resumed.
        until: Option<SystemTime>,
        /// What happened.
        cause: Arc<Failure>,
    },
    /// A person has to do something.
    Blocked {
        /// What happened; its remedy and hints say what to do.
        cause: Arc<Failure>,
    },
}

/// The latest failure of a tunnel.
#[derive(Debug, Clone)]
pub(crate) struct LastError {
    /// What failed.
    pub(crate) failure: Arc<Failure>,
    /// When.
    pub(crate) at: SystemTime,
}

/// A change of state that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transition {
    /// When.
    pub(crate) at: SystemTime,
    /// The state's name.
    pub(crate) state: &'static str,
    /// Why; empty for a change that was asked for.
    pub(crate) reason: String,
}

/// Every tunnel, in the configuration's order, at one moment. Cheap to clone.
pub(crate) type Snapshot = Arc<Vec<Arc<Status>>>;

/// The board. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Board {
    latest: watch::Sender<Posted>,
}

#[derive(Debug, Default)]
struct Posted {
    snapshot: Snapshot,
    generation: u64,
}

impl Board {
    /// An empty board.
    pub(crate) fn new() -> Self {
        Self {
            latest: watch::Sender::new(Posted::default()),
        }
    }

    /// Returns every status.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Arc::clone(&self.latest.borrow().snapshot)
    }

    /// Follows the board, beginning with a change that is new to the caller: the present counts as unseen.
    pub(crate) fn subscribe(&self) -> Changes {
        let mut receiver = self.latest.subscribe();
        receiver.mark_changed();
        Changes(receiver)
    }

    /// Puts a tunnel on the board as down. A tunnel of the same name keeps its place, counters, history and last
    /// error; its former entry can no longer write.
    pub(crate) fn enter(self: &Arc<Self>, spec: &TunnelSpec) -> Entry {
        let mut entry = None;
        self.latest.send_modify(|posted| {
            posted.generation += 1;
            let tunnels = Arc::make_mut(&mut posted.snapshot);
            let place = tunnels.iter().position(|status| status.name == spec.name);
            let former = place.map(|place| Arc::clone(&tunnels[place]));
            let status = Arc::new(Status {
                name: spec.name.clone(),
                local: spec.listen.addresses(),
                target: spec.target.to_string(),
                route: spec.route.to_string(),
                state: State::Down,
                since: wall_clock(),
                last_error: former.as_ref().and_then(|former| former.last_error.clone()),
                link: None,
                history: former
                    .as_ref()
                    .map(|former| former.history.clone())
                    .unwrap_or_default(),
                meter: former.map(|former| Arc::clone(&former.meter)).unwrap_or_default(),
                generation: posted.generation,
                writer: posted.generation,
            });
            entry = Some((posted.generation, Arc::clone(&status.meter)));
            match place {
                Some(place) => tunnels[place] = status,
                None => tunnels.push(status),
            }
        });
        let (writer, meter) = entry.expect("send_modify runs its closure");
        Entry {
            board: Arc::clone(self),
            name: spec.name.clone(),
            writer,
            meter,
        }
    }

    /// Puts the tunnels in this order and takes all others off the board.
    pub(crate) fn arrange(&self, names: &[TunnelName]) {
        self.latest.send_modify(|posted| {
            let tunnels = Arc::make_mut(&mut posted.snapshot);
            let places: HashMap<_, _> = names.iter().zip(0..).collect();
            tunnels.retain(|status| places.contains_key(&status.name));
            tunnels.sort_by_key(|status| places.get(&status.name).copied().unwrap_or(names.len()));
        });
    }
}

/// A reader's place on the board.
#[derive(Debug)]
pub(crate) struct Changes(watch::Receiver<Posted>);

impl Changes {
    /// Waits for a snapshot that this reader has not seen; `None` once the board is gone. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Snapshot> {
        self.0.changed().await.ok()?;
        Some(self.latest())
    }

    /// Returns the latest snapshot.
    pub(crate) fn latest(&mut self) -> Snapshot {
        Arc::clone(&self.0.borrow_and_update().snapshot)
    }
}

/// The right to write one tunnel's status.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    board: Arc<Board>,
    name: TunnelName,
    writer: u64,
    meter: Arc<Meter>,
}

impl Entry {
    /// Returns the tunnel's counters.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Shows a state, its cause as the latest failure, and remembers the transition.
    pub(crate) fn publish(&self, state: State) {
        self.update(|status| status.enter(state, wall_clock()));
    }

    /// Shows a failure that changes no state as the latest one.
    pub(crate) fn failed(&self, failure: &Arc<Failure>) {
        self.update(|status| {
            status.last_error = Some(LastError {
                failure: Arc::clone(failure),
                at: wall_clock(),
            });
        });
    }

    /// Shows what is known of the link.
    pub(crate) fn link(&self, details: Option<LinkDetails>) {
        self.update(|status| status.link = details);
    }

    fn update(&self, change: impl FnOnce(&mut Status)) {
        self.board.latest.send_if_modified(|posted| {
            let tunnels = Arc::make_mut(&mut posted.snapshot);
            let Some(status) = tunnels.iter_mut().find(|status| status.name == self.name) else {
                return false;
            };
            if status.writer != self.writer {
                return false;
            }
            posted.generation += 1;
            let status = Arc::make_mut(status);
            status.generation = posted.generation;
            change(status);
            true
        });
    }
}

impl Status {
    fn enter(&mut self, state: State, now: SystemTime) {
        if let Some(cause) = state.cause() {
            self.last_error = Some(LastError {
                failure: Arc::clone(cause),
                at: now,
            });
        }
        let resumed = matches!(
            (&self.state, &state),
            (State::Waiting { until: None, .. }, State::Up)
        );
        let transition = Transition {
            at: now,
            state: state.name(),
            reason: match state.cause() {
                Some(cause) => cause.in_one_line(),
                None if resumed => "resumed".to_owned(),
                None => String::new(),
            },
        };
        if state.name() != self.state.name() {
            self.since = now;
        }
        // A tunnel that retries for hours goes round between two states for the same reason. That is one piece of
        // news; repeating it would push the interesting past out of the ring.
        let again = matches!(state, State::Connecting { attempt } if attempt > 1);
        let news = |last: &Transition| (last.state, &last.reason) != (transition.state, &transition.reason);
        if !again && self.history.back().is_none_or(news) {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(transition);
        }
        self.state = state;
    }
}

impl State {
    /// Returns the state's name, as everywhere: in the proto, the CLI and the log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Idle { .. } => "idle",
            Self::Connecting { .. } => "connecting",
            Self::Up => "up",
            Self::Waiting { .. } => "waiting",
            Self::Blocked { .. } => "blocked",
        }
    }

    fn cause(&self) -> Option<&Arc<Failure>> {
        match self {
            Self::Down | Self::Connecting { .. } | Self::Up => None,
            Self::Idle { cause } => cause.as_ref(),
            Self::Waiting { cause, .. } | Self::Blocked { cause } => Some(cause),
        }
    }
}

/// Returns the time of day, for people.
#[expect(
    clippy::disallowed_methods,
    reason = "the board is an edge: its times are shown, never compared"
)]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Reason, Remedy};
    use crate::tunnel::fake;

    fn failure(doing: &str) -> Arc<Failure> {
        Arc::new(Failure::new(Reason::Unreachable, Remedy::Retry, doing))
    }

    fn waiting(attempt: u32, cause: &str) -> State {
        State::Waiting {
            attempt,
            until: Some(wall_clock()),
            cause: failure(cause),
        }
    }

    fn history(board: &Board) -> Vec<(&'static str, String)> {
        let snapshot = board.snapshot();
        snapshot[0]
            .history
            .iter()
            .map(|past| (past.state, past.reason.clone()))
            .collect()
    }

    #[tokio::test]
    async fn a_reader_begins_with_the_present_and_then_sees_the_latest() {
        let board = Arc::new(Board::new());
        let entry = board.enter(&fake::spec("db"));
        let mut changes = board.subscribe();
        assert_eq!(changes.next().await.unwrap()[0].state.name(), "down");
        entry.publish(State::Connecting { attempt: 1 });
        entry.publish(State::Up);
        let latest = changes.next().await.unwrap();
        assert_eq!(latest[0].state.name(), "up", "a slow reader skips to the latest");
    }

    #[test]
    fn every_change_has_a_new_generation() {
        let board = Arc::new(Board::new());
        let (first, second) = (board.enter(&fake::spec("a")), board.enter(&fake::spec("b")));
        let mut seen = 0;
        for entry in [&first, &second, &first] {
            entry.failed(&failure("cannot connect"));
            let newest = board
                .snapshot()
                .iter()
                .map(|status| status.generation)
                .max()
                .unwrap();
            assert!(newest > seen);
            seen = newest;
        }
    }

    #[test]
    fn a_replaced_entry_can_no_longer_write() {
        let board = Arc::new(Board::new());
        let old = board.enter(&fake::spec("db"));
        old.failed(&failure("cannot connect"));
        let new = board.enter(&fake::spec("db"));
        new.publish(State::Up);
        old.publish(State::Down);
        let snapshot = board.snapshot();
        assert_eq!(snapshot.len(), 1);
        assert_eq!(snapshot[0].state.name(), "up");
        assert!(snapshot[0].last_error.is_some(), "the past stays");
        assert!(Arc::ptr_eq(old.meter(), new.meter()), "the counters stay");
    }

    #[test]
    fn retries_for_the_same_reason_are_one_piece_of_news() {
        let board = Arc::new(Board::new());
        let entry = board.enter(&fake::spec("db"));
        for attempt in 1..100 {
            entry.publish(State::Connecting { attempt });
            entry.publish(waiting(attempt, "no route to host"));
        }
        entry.publish(waiting(100, "no such host"));
        let expected = [
            ("connecting", ""),
            ("waiting", "no route to host"),
            ("waiting", "no such host"),
        ];
        assert_eq!(
            history(&board),
            expected.map(|(state, reason)| (state, reason.to_owned()))
        );
    }

    #[test]
    fn the_oldest_transitions_are_forgotten() {
        let board = Arc::new(Board::new());
        let entry = board.enter(&fake::spec("db"));
        for number in 0..HISTORY + 8 {
            entry.publish(waiting(1, &format!("cause {number}")));
        }
        assert_eq!(history(&board).len(), HISTORY);
        assert_eq!(history(&board)[0].1, "cause 8");
    }

    #[test]
    fn a_resumed_link_is_remembered_as_resumed() {
        let board = Arc::new(Board::new());
        let entry = board.enter(&fake::spec("db"));
        entry.publish(State::Up);
        entry.publish(State::Waiting {
            attempt: 1,
            until: None,
            cause: failure("websocket closed"),
        });
        entry.publish(State::Up);
        assert_eq!(history(&board).last().unwrap(), &("up", "resumed".to_owned()));
    }

    #[test]
    fn the_board_follows_the_order_of_the_configuration() {
        let board = Arc::new(Board::new());
        for name in ["a", "b", "c"] {
            board.enter(&fake::spec(name));
        }
        board.arrange(&[fake::spec("c").name, fake::spec("a").name]);
        let snapshot = board.snapshot();
        assert_eq!(
            snapshot
                .iter()
                .map(|status| status.name.as_str())
                .collect::<Vec<_>>(),
            ["c", "a"]
        );
    }
}
