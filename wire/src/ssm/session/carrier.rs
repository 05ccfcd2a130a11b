//! What carries the streams of a session, chosen in the handshake: smux, or the one raw stream of basic mode.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::End;
use crate::smux::{self, Framing, Mux, Side, StreamId};
use crate::ssm::basic::Basic;
use crate::ssm::message::PayloadType;

#[derive(Debug)]
pub(super) enum Carrier {
    Mux(Mux),
    Basic(Basic),
}

impl Carrier {
    pub(super) fn mux(side: Side, framing: Framing, grace: Duration) -> Self {
        Self::Mux(Mux::new(side, framing, grace))
    }

    pub(super) fn basic(side: Side, grace: Duration) -> Self {
        Self::Basic(Basic::new(side, grace))
    }

    /// Sends a sign of life that often from now on; agents in basic mode want none.
    pub(super) fn keep_alive(&mut self, interval: Duration, now: Instant) {
        if let Self::Mux(mux) = self {
            mux.keep_alive(interval, now);
        }
    }

    /// Sends something that changes nothing as soon as there is room, to be acknowledged.
    pub(super) fn sign_of_life(&mut self) {
        match self {
            Self::Mux(mux) => mux.sign_of_life(),
            Self::Basic(basic) => basic.sign_of_life(),
        }
    }

    pub(super) fn open(&mut self, now: Instant) -> Option<StreamId> {
        match self {
            Self::Mux(mux) => mux.open(now),
            Self::Basic(basic) => basic.open(),
        }
    }

    pub(super) fn write(&mut self, id: StreamId, bytes: Bytes) {
        match self {
            Self::Mux(mux) => mux.write(id, bytes),
            Self::Basic(basic) => basic.write(id, bytes),
        }
    }

    pub(super) fn pending_writes(&self, id: StreamId) -> usize {
        match self {
            Self::Mux(mux) => mux.pending_writes(id),
            Self::Basic(basic) => basic.pending_writes(id),
        }
    }

    pub(super) fn finish(&mut self, id: StreamId, now: Instant) {
        match self {
            Self::Mux(mux) => mux.finish(id, now),
            Self::Basic(basic) => basic.finish(id, now),
        }
    }

    pub(super) fn close(&mut self, id: StreamId) {
        match self {
            Self::Mux(mux) => mux.close(id),
            Self::Basic(basic) => basic.close(id),
        }
    }

    pub(super) fn reset(&mut self, id: StreamId) {
        match self {
            Self::Mux(mux) => mux.reset(id),
            Self::Basic(basic) => basic.reset(id),
        }
    }

    /// Agent: the client's connection has closed, as only basic mode says.
    pub(super) fn disconnect(&mut self) {
        if let Self::Basic(basic) = self {
            basic.disconnect();
        }
    }

    pub(super) fn receive(&mut self, bytes: Bytes, now: Instant) -> Result<(), End> {
        match self {
            Self::Mux(mux) => mux.receive(bytes, now).map_err(End::from),
            Self::Basic(basic) => basic.receive(bytes, now).map_err(End::from),
        }
    }

    pub(super) fn restart_grace(&mut self, now: Instant) {
        match self {
            Self::Mux(mux) => mux.restart_grace(now),
            Self::Basic(basic) => basic.restart_grace(now),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Mux(mux) => mux.handle_timeout(now),
            Self::Basic(basic) => basic.handle_timeout(now),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Mux(mux) => mux.poll_timeout(),
            Self::Basic(basic) => basic.poll_timeout(),
        }
    }

    pub(super) fn wants_to_send(&self) -> bool {
        match self {
            Self::Mux(mux) => mux.wants_to_send(),
            Self::Basic(basic) => basic.wants_to_send(),
        }
    }

    /// Returns a payload of about that length which says nothing, if bytes wait to be sent after it, and the same in
    /// short. Basic mode has nothing of the kind.
    pub(super) fn filler(&self, length: usize) -> Option<(Bytes, Bytes)> {
        match self {
            Self::Mux(mux) if mux.wants_to_send() => Some((mux.filler(length)?, mux.filler(0)?)),
            Self::Mux(_) | Self::Basic(_) => None,
        }
    }

    /// Returns how long the payload of the next data message may get, up to `limit`.
    pub(super) fn next_length(&self, limit: usize) -> usize {
        match self {
            Self::Mux(mux) => mux.next_length(limit),
            Self::Basic(_) => limit,
        }
    }

    /// Appends the payload of the next data message, of at most `limit` bytes; returns what it is, if there is one.
    pub(super) fn poll_payload(&mut self, limit: usize, payload: &mut BytesMut) -> Option<PayloadType> {
        match self {
            Self::Mux(mux) => {
                let before = payload.len();
                mux.poll_bytes(limit, payload);
                (payload.len() > before).then_some(PayloadType::Output)
            }
            Self::Basic(basic) => basic.poll_payload(limit, payload),
        }
    }

    pub(super) fn poll_event(&mut self) -> Option<smux::Event> {
        match self {
            Self::Mux(mux) => mux.poll_event(),
            Self::Basic(basic) => basic.poll_event(),
        }
    }

    /// Returns how many streams may still turn out to be refused. In basic mode the session ends with a refusal.
    pub(super) fn unheard(&self) -> usize {
        match self {
            Self::Mux(mux) => mux.unheard(),
            Self::Basic(_) => 0,
        }
    }

    pub(super) fn streams(&self) -> Vec<StreamId> {
        match self {
            Self::Mux(mux) => mux.streams().collect(),
            Self::Basic(basic) => basic.streams().collect(),
        }
    }
}
