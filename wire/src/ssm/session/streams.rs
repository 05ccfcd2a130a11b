//! What is done with the streams of a session.

use std::time::Instant;

use bytes::Bytes;

use super::carrier::Carrier;
use super::{End, Session, Stage};
use crate::smux::StreamId;
use crate::ssm::message::{Draft, Flag, PayloadType};

impl Session {
    /// Client: opens a stream; `None` before [`Event::Ready`](super::Event::Ready), after the end, and where the session
    /// has had the one stream that it carries.
    pub fn open(&mut self, now: Instant) -> Option<StreamId> {
        let id = self.carrier()?.open(now);
        // In basic mode the target may have spoken already.
        self.notice_streams();
        id
    }

    /// Queues bytes on a stream. See [`Session::pending_writes`] for how to bound that.
    pub fn write(&mut self, id: StreamId, bytes: Bytes) {
        if let Some(carrier) = self.carrier() {
            carrier.write(id, bytes);
        }
    }

    /// Returns how many writes of a stream have not wholly left the session's queue.
    pub fn pending_writes(&self, id: StreamId) -> usize {
        match &self.stage {
            Stage::Running(carrier) => carrier.pending_writes(id),
            Stage::Greeting | Stage::Agreed(_) | Stage::Ended => 0,
        }
    }

    /// Client: the local side will write no more. The far end is told when it has ended itself, or after the grace
    /// time without a byte from it.
    pub fn finish(&mut self, id: StreamId, now: Instant) {
        if let Some(carrier) = self.carrier() {
            carrier.finish(id, now);
        }
    }

    /// Ends a stream in both directions, after what is queued.
    pub fn close(&mut self, id: StreamId) {
        if let Some(carrier) = self.carrier() {
            carrier.close(id);
        }
        self.forget_stale_refusals();
    }

    /// Ends a stream in both directions; what is queued is dropped.
    pub fn reset(&mut self, id: StreamId) {
        if let Some(carrier) = self.carrier() {
            carrier.reset(id);
        }
        self.forget_stale_refusals();
    }

    /// Agent: the target of a stream can't be reached. Where the session carries one stream alone, it ends.
    pub fn refuse(&mut self, id: StreamId) {
        if let Stage::Running(Carrier::Basic(_)) = self.stage {
            let words = "Unable to connect to specified port";
            return self.end(End::ChannelClosed(words.to_owned()));
        }
        self.steering
            .push_back((PayloadType::Flag, Flag::ConnectToPortError.payload()));
        self.reset(id);
    }

    /// Returns the streams there are.
    pub fn streams(&self) -> Vec<StreamId> {
        match &self.stage {
            Stage::Running(carrier) => carrier.streams(),
            Stage::Greeting | Stage::Agreed(_) | Stage::Ended => Vec::new(),
        }
    }

    /// Returns a message that finds out whether larger payloads pass, if it is time for that.
    pub(super) fn poll_trial(&mut self, now: Instant) -> Option<Bytes> {
        let size = self.channel.trial()?;
        let (filler, short) = self.carrier()?.filler(size)?;
        Some(self.channel.send_trial(filler, short, now))
    }

    /// Returns a message with what the streams have to send, of at most `room` bytes.
    pub(super) fn poll_data(&mut self, room: usize, now: Instant) -> Option<Bytes> {
        let carrier = self.carrier().filter(|carrier| carrier.wants_to_send())?;
        let mut draft = Draft::with_room(carrier.next_length(room));
        let payload_type = carrier.poll_payload(room, draft.payload())?;
        Some(self.channel.send(payload_type, draft, now))
    }
}
