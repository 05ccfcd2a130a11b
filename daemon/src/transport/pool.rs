//! Which of a link's members carries a new stream, and how many members there are: a pure machine. Members are sessions
//! of Session Manager, or SSH connections.
//!
//! ```text
//!   open ─► a member without streams? ─ yes ─► that one
//!            │ no
//!            ├─ fewer than `max` ─► a new one, waited for up to 1.5 s ─┐ too slow, or failed
//!            └─ else ─► the one with the fewest streams ◄──────────────┘
//!
//!   Starting ─► Fit ◄─► Unfit (asked for life, resumed, or stalled: no new streams) ─► gone
//!                ├ no stream for 60 s, and not needed: retired
//!                └ its time comes ─► Due (a successor is made) ─ that is fit ─► Draining ─ no stream left: retired
//! ```
//!
//! Placement is final: smux streams cannot move. So one member without streams is kept ready while any stream is open,
//! within `max`. A member that stalled does not count against `max`: its streams may hold it for minutes.
//!
//! A member that its route will cut at a known time is replaced before: it takes new streams until another one is
//! proven, and then drains. What drains does not count against `max`, and the successor may exceed it by one.
//!
//! Where a member carries one stream only, each stream gets a member of its own and nothing is kept ready.

mod census;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use self::state::{Fitness, Hindrance, Need, Sharing};
use self::state::{Starts, State, Tenure};
use crate::config::PoolSize;
use crate::surroundings::HURRY_AGAIN;

/// How long a new connection waits for a member of its own: StartSession, websocket and handshake take about one.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How long a member without streams is kept: a database client's next connection finds it ready.
const IDLE: Duration = Duration::from_secs(60);
/// The first and the longest pause after a member that did not start: the next one would fail in the same way.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Names a member of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Member(u64);

/// Names a connection that wants a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

/// Work for the pool's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start this member, which is needed that much, and say what came of it.
    Start(Member, Need),
    /// Open the connection's stream on this member.
    Place(Ticket, Member),
    /// Tell the connection that the member for it did not start.
    Refuse(Ticket),
    /// End this member, which has no streams.
    Retire(Member),
    /// This member takes no new streams any more, because it will be cut; those it has go on.
    Drain(Member),
}

/// The machine. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Pool {
    limits: PoolSize,
    sharing: Sharing,
    members: BTreeMap<Member, State>,
    waiting: VecDeque<Waiting>,
    /// Members and tickets so far.
    named: u64,
    /// Members that did not start, one after the other.
    failures: u32,
    starts: Starts,
    /// The time to which a change of network has brought a start forward, the latest one.
    hurried: Option<Instant>,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    until: Instant,
}

impl Pool {
    /// A pool whose first member is to be started.
    pub(crate) fn new(limits: PoolSize) -> Self {
        let mut pool = Self {
            limits,
            sharing: Sharing::Shared,
            members: BTreeMap::new(),
            waiting: VecDeque::new(),
            named: 0,
            failures: 0,
            starts: Starts::AtWill,
            hurried: None,
            actions: VecDeque::new(),
        };
        pool.start();
        pool
    }

    /// A connection wants a stream.
    pub(crate) fn open(&mut self, now: Instant) -> Ticket {
        let ticket = Ticket(self.name());
        self.waiting.push_back(Waiting {
            ticket,
            until: now + PATIENCE,
        });
        self.settle(now);
        ticket
    }

    /// A connection that waited has left.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        self.waiting.retain(|waiting| waiting.ticket != ticket);
    }

    /// A member is ready. It is to be replaced from `replace_at` on.
    pub(crate) fn started(
        &mut self,
        member: Member,
        sharing: Sharing,
        replace_at: Option<Instant>,
        now: Instant,
    ) {
        self.sharing = sharing;
        self.failures = 0;
        self.starts = Starts::AtWill;
        if let Some(state) = self.members.get_mut(&member) {
            *state = State::Running {
                fitness: Fitness::Fit,
                streams: 0,
                idle_since: now,
                used: false,
                tenure: match (sharing, replace_at) {
                    (Sharing::Shared, Some(at)) => Tenure::Until(at),
                    // It ends with its one stream.
                    (Sharing::Single, _) | (Sharing::Shared, None) => Tenure::Lasting,
                },
            };
        }
        self.settle(now);
    }

    /// A member did not start.
    pub(crate) fn failed(&mut self, member: Member, hindrance: Hindrance, now: Instant) {
        self.members.remove(&member);
        match self.sharing {
            Sharing::Single => {
                let refused = self.waiting.pop_front();
                self.actions
                    .extend(refused.map(|waiting| Action::Refuse(waiting.ticket)));
            }
            Sharing::Shared => {
                let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.failures.min(16));
                self.failures = self.failures.saturating_add(1);
                self.starts = match hindrance {
                    Hindrance::Passing => Starts::After(now + pause.min(LONGEST_PAUSE)),
                    Hindrance::Login => Starts::OnceLoggedIn,
                };
                // Whoever waited for it takes what there is: the next one would fail in the same way.
                if let Some(first) = self.waiting.front_mut() {
                    first.until = now;
                }
            }
        }
        self.settle(now);
    }

    /// The network is another than before: the next member may start at once, unless that was so a moment ago.
    pub(crate) fn hurry(&mut self, now: Instant) {
        let sooner = self.hurried.map_or(now, |hurried| now.max(hurried + HURRY_AGAIN));
        if let Starts::After(at) = &mut self.starts
            && sooner < *at
        {
            *at = sooner;
            self.hurried = Some(sooner);
            self.settle(now);
        }
    }

    /// Credentials are others than before: what waited for a login may start.
    pub(crate) fn log_in(&mut self, now: Instant) {
        if self.starts == Starts::OnceLoggedIn {
            self.starts = Starts::AtWill;
            self.settle(now);
        }
    }

    /// A member has ended.
    pub(crate) fn ended(&mut self, member: Member, now: Instant) {
        self.members.remove(&member);
        self.settle(now);
    }

    /// A member takes new streams, or does not.
    pub(crate) fn judge(&mut self, member: Member, judged: Fitness, now: Instant) {
        if let Some(State::Running { fitness, .. }) = self.members.get_mut(&member) {
            *fitness = judged;
        }
        self.settle(now);
    }

    /// A member is to be replaced as soon as there is another one.
    pub(crate) fn wear_out(&mut self, member: Member, now: Instant) {
        if let Some(State::Running { tenure, .. }) = self.members.get_mut(&member)
            && *tenure != Tenure::Draining
        {
            *tenure = Tenure::Due;
        }
        self.settle(now);
    }

    /// A stream of a member has ended, or was never opened.
    pub(crate) fn stream_ended(&mut self, member: Member, now: Instant) {
        if let Some(State::Running {
            streams, idle_since, ..
        }) = self.members.get_mut(&member)
        {
            *streams = streams.saturating_sub(1);
            *idle_since = now;
        }
        self.settle(now);
    }

    /// Takes the time, at or after [`Pool::poll_timeout`].
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.settle(now);
    }

    /// Returns the next piece of work.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when [`Pool::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let patience = self
            .least_loaded()
            .and_then(|_| self.waiting.front().map(|waiting| waiting.until));
        let retirement = self.superfluous().map(|(_, idle_since)| idle_since + IDLE);
        let start = match self.starts {
            Starts::After(at) => Some(at).filter(|_| self.wants_more()),
            Starts::AtWill | Starts::OnceLoggedIn => None,
        };
        let replacement = self.members.values().filter_map(State::replace_at).min();
        [patience, retirement, start, replacement]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns how many streams a member carries.
    pub(crate) fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Returns whether nothing is there, nothing is coming, and nothing is kept away by choice.
    pub(crate) fn is_dead(&self) -> bool {
        self.members.is_empty() && self.sharing == Sharing::Shared
    }

    /// Draws all conclusions: places whoever can be placed, starts what is needed, retires what is not.
    fn settle(&mut self, now: Instant) {
        // A pool that has nothing left is its owner's to judge.
        if self.is_dead() {
            return;
        }
        self.replace(now);
        let may_start = self.starts.are_open(now);
        self.place(may_start, now);
        while may_start && self.wants_more() {
            self.start();
        }
        while let Some((member, idle_since)) = self.superfluous()
            && (self.sharing == Sharing::Single || idle_since + IDLE <= now)
        {
            self.retire(member);
        }
    }

    /// Notes whose time has come, lets them drain once another one takes streams, and retires those that have.
    fn replace(&mut self, now: Instant) {
        if self.sharing == Sharing::Single {
            return;
        }
        for state in self.members.values_mut() {
            if let State::Running { tenure, .. } = state
                && matches!(tenure, Tenure::Until(at) if *at <= now)
            {
                *tenure = Tenure::Due;
            }
        }
        let has_successor = self
            .members
            .values()
            .any(|state| state.takes_streams() && !state.is_due());
        let mut drained = Vec::new();
        for (member, state) in &mut self.members {
            let State::Running { tenure, streams, .. } = state else {
                continue;
            };
            if has_successor && *tenure == Tenure::Due {
                *tenure = Tenure::Draining;
                self.actions.push_back(Action::Drain(*member));
            }
            if *tenure == Tenure::Draining && *streams == 0 {
                drained.push(*member);
            }
        }
        for member in drained {
            self.retire(member);
        }
    }

    fn place(&mut self, may_start: bool, now: Instant) {
        let mut coming = self.coming();
        for waiting in std::mem::take(&mut self.waiting) {
            let may_come = coming > 0 || (may_start && self.has_room());
            let worth_waiting = may_come && waiting.until > now;
            let least_loaded = || self.least_loaded().filter(|_| !worth_waiting);
            match self.empty().or_else(least_loaded) {
                Some(member) => self.put(waiting.ticket, member),
                None => {
                    coming = coming.saturating_sub(1);
                    self.waiting.push_back(waiting);
                }
            }
        }
    }

    fn put(&mut self, ticket: Ticket, member: Member) {
        if let Some(State::Running { streams, used, .. }) = self.members.get_mut(&member) {
            *streams += 1;
            *used = true;
        }
        self.actions.push_back(Action::Place(ticket, member));
    }

    fn start(&mut self) {
        let need = self.need();
        let member = Member(self.name());
        self.members.insert(member, State::Starting);
        self.actions.push_back(Action::Start(member, need));
    }

    fn retire(&mut self, member: Member) {
        self.members.remove(&member);
        self.actions.push_back(Action::Retire(member));
    }

    /// Whether another member should be started, if nothing speaks against it.
    fn wants_more(&self) -> bool {
        let starting = self.starting();
        if self.wants_successor() {
            return true;
        }
        if !self.has_room() {
            return false;
        }
        if self.sharing == Sharing::Single {
            return starting < self.waiting.len();
        }
        let busy = self.open_streams() > 0;
        // A link that is brought back as a whole would start members into the same dead network.
        let lost = !self.is_able() && self.members.values().any(State::is_impaired);
        let spare = usize::from(busy && self.empty().is_none());
        let missing = self.limits.min.saturating_sub(self.counted() - starting);
        !lost && (self.coming() < self.waiting.len() + spare || starting < missing)
    }

    fn name(&mut self) -> u64 {
        self.named += 1;
        self.named
    }
}

#[cfg(test)]
mod tests;
