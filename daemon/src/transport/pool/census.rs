//! Who is there: what settling asks about the members of the pool.

use tokio::time::Instant;

use super::state::{Fitness, Need, Sharing, State, Tenure};
use super::{Member, Pool};

/// Stalled and draining members that are let be beside `max` others; beyond, no more are started for them.
pub(super) const MOST_EXTRA: usize = 8;
/// The most members of an agent that carries one stream in each: a pool of a client, a few times over.
const MOST_SINGLE: usize = 64;

impl Pool {
    /// Returns how many members run.
    pub(crate) fn running(&self) -> usize {
        let is_running = |state: &&State| matches!(state, State::Running { .. });
        self.members.values().filter(is_running).count()
    }

    /// Returns whether a member takes new streams, is on its way beside others that run, or would be made for the next
    /// connection. One that is on its way alone proves nothing: the last of the others may have ended for a reason.
    pub(crate) fn is_able(&self) -> bool {
        let has_others = self.running() > 0;
        let able = |state: &State| match state {
            State::Starting => has_others,
            State::Running { .. } => state.takes_streams(),
        };
        self.sharing == Sharing::Single || self.members.values().any(able)
    }

    /// Returns how much the next member is needed.
    pub(super) fn need(&self) -> Need {
        let is_required = match self.sharing {
            Sharing::Shared => self.wants_successor() || self.counted() < self.limits.min,
            Sharing::Single => true,
        };
        if is_required { Need::Required } else { Need::Spare }
    }

    /// Returns whether a member waits for a successor and none is on its way.
    pub(super) fn wants_successor(&self) -> bool {
        self.sharing == Sharing::Shared && self.starting() == 0 && self.members.values().any(State::is_due)
    }

    pub(super) fn has_room(&self) -> bool {
        match self.sharing {
            Sharing::Shared => {
                let extra = self.members.len() - self.counted();
                self.counted() < self.limits.max && extra <= MOST_EXTRA
            }
            Sharing::Single => self.members.len() < MOST_SINGLE,
        }
    }

    /// Returns how many members count against the limits.
    pub(super) fn counted(&self) -> usize {
        let extra = |state: &&State| match state {
            State::Starting => false,
            State::Running { fitness, tenure, .. } => {
                *fitness == Fitness::Stalled || *tenure == Tenure::Draining
            }
        };
        self.members.len() - self.members.values().filter(extra).count()
    }

    pub(super) fn starting(&self) -> usize {
        let is_starting = |state: &&State| matches!(state, State::Starting);
        self.members.values().filter(is_starting).count()
    }

    pub(super) fn open_streams(&self) -> usize {
        let streams = self.members.values().map(|state| match state {
            State::Starting => 0,
            State::Running { streams, .. } => *streams,
        });
        streams.sum()
    }

    /// Returns a member without streams that takes one.
    pub(super) fn empty(&self) -> Option<Member> {
        self.fit()
            .find(|(_, streams, _)| *streams == 0)
            .map(|(member, ..)| member)
    }

    pub(super) fn least_loaded(&self) -> Option<Member> {
        self.fit()
            .min_by_key(|(_, streams, _)| *streams)
            .map(|(member, ..)| member)
    }

    /// Returns the members that take a new stream, each with how many it has and since when it has none.
    fn fit(&self) -> impl Iterator<Item = (Member, usize, Instant)> + '_ {
        self.members.iter().filter_map(|(member, state)| match state {
            State::Running {
                streams,
                idle_since,
                used,
                ..
            } if state.takes_streams() && (self.sharing == Sharing::Shared || !used) => {
                Some((*member, *streams, *idle_since))
            }
            State::Running { .. } | State::Starting => None,
        })
    }

    /// Returns the member that has been without streams for longest and is not needed, if there is one.
    pub(super) fn superfluous(&self) -> Option<(Member, Instant)> {
        let empty = self.members.iter().filter_map(|(member, state)| match state {
            State::Running {
                streams: 0,
                idle_since,
                ..
            } if state.takes_streams() && !state.is_due() => Some((*member, *idle_since)),
            State::Running { .. } | State::Starting => None,
        });
        let empty: Vec<_> = empty.collect();
        let spare = usize::from(self.open_streams() > 0);
        let needed = match self.sharing {
            Sharing::Shared => spare.max(self.limits.min.saturating_sub(self.counted() - empty.len())),
            Sharing::Single => 0,
        };
        let longest = empty.iter().min_by_key(|(_, idle_since)| *idle_since);
        longest.copied().filter(|_| empty.len() > needed)
    }
}
