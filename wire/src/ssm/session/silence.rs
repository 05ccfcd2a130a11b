//! What a session concludes from what it hears and does not hear: pauses, doubts, stalls, holes.

use std::time::{Duration, Instant};

use super::carrier::Carrier;
use super::stall::{self, Notice, Stall};
use super::{End, Event, Session, Stage};
use crate::smux::StreamId;
use crate::ssm::channel::Role;

/// A pause this long may mean that the session has ended unnoticed: ask AWS (ssm.md section 7.4).
const PAUSE_PATIENCE: Duration = Duration::from_secs(45);

impl Session {
    pub(super) fn doubtful_at(&self) -> Option<Instant> {
        let since = self.channel.paused_since()?;
        (self.role == Role::Client && !self.doubted).then_some(since + PAUSE_PATIENCE)
    }

    /// A frame of the other side came: it is there.
    pub(super) fn heard(&mut self, now: Instant) {
        let was_away = std::mem::take(&mut self.away);
        if was_away || self.channel.paused_since().is_some() {
            self.channel.resume(now);
            self.channel.restart_waiting(now);
            self.restart_grace(now);
            self.doubted = false;
            self.events.push_back(Event::Resumed);
        }
    }

    /// Returns since when nothing has been acknowledged by an agent that is there, as far as is known.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.channel.waiting_since().filter(|_| !self.away)
    }

    /// An acknowledgement came, or there is nobody to wait for one from.
    pub(super) fn notice_life(&mut self) {
        let notice = self.stall.as_mut().and_then(Stall::handle_life);
        self.notice_stall(notice);
    }

    pub(super) fn notice_stall(&mut self, notice: Option<Notice>) {
        let event = match notice {
            None => return,
            Some(Notice::Unanswered) => Event::Unanswered,
            Some(Notice::Stalled) => Event::Stalled(self.suspect()),
            Some(Notice::Flowing) => Event::Flowing,
            Some(Notice::Expired) => Event::StallExpired(self.suspect()),
            Some(Notice::GivenUp) => return self.end(End::Stalled),
        };
        self.events.push_back(event);
    }

    fn suspect(&self) -> Option<StreamId> {
        match &self.stage {
            Stage::Running(Carrier::Mux(_)) => stall::suspect(self.channel.unacknowledged_output()),
            Stage::Running(Carrier::Basic(basic)) => basic.streams().next(),
            Stage::Greeting | Stage::Agreed(_) | Stage::Ended => None,
        }
    }

    pub(super) fn look_at_hole(&mut self, now: Instant) {
        let (missing, expected) = self.channel.hole();
        if self.role == Role::Client && self.hole.is_hopeless(missing, expected, now) {
            self.end(End::Hole { missing });
        }
    }
}
