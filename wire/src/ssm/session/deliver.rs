//! What a session does with the peer's messages, once they are in order.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::carrier::Carrier;
use super::{Event, Session, Stage};
use crate::smux::{self, Side};
use crate::ssm::channel::Role;
use crate::ssm::handshake::{self, HandshakeError};
use crate::ssm::message::{Flag, Message, PayloadType};
use crate::ssm::payload::{self, HandshakeComplete};

/// How often an old agent is told that we are there: the official library's interval. An agent that hears nothing
/// between two ticks of 30 s closes all its streams (plugin issues 83 and 93).
const KEEP_ALIVE: Duration = Duration::from_secs(10);

impl Session {
    pub(super) fn deliver(&mut self, message: Message, now: Instant) {
        let payload = message.payload;
        match (message.payload_type, self.role) {
            (PayloadType::Output, _) => self.deliver_output(payload, now),
            (PayloadType::HandshakeRequest, Role::Client) => self.deliver_request(&payload),
            (PayloadType::HandshakeComplete, Role::Client) => self.deliver_complete(&payload, now),
            (PayloadType::HandshakeResponse, Role::Agent) => self.deliver_response(&payload, now),
            (PayloadType::Flag, role) => match (Flag::from_payload(&payload), role) {
                (Some(Flag::ConnectToPortError), Role::Client) => {
                    self.refusals += 1;
                    self.forget_stale_refusals();
                }
                (Some(Flag::TerminateSession), Role::Agent) => self.events.push_back(Event::Terminate),
                (Some(Flag::DisconnectToPort), Role::Agent) => {
                    if let Some(carrier) = self.carrier() {
                        carrier.disconnect();
                        self.notice_streams();
                    }
                }
                (
                    Some(Flag::ConnectToPortError | Flag::TerminateSession | Flag::DisconnectToPort) | None,
                    Role::Client | Role::Agent,
                ) => {}
            },
            (
                PayloadType::HandshakeRequest
                | PayloadType::HandshakeComplete
                | PayloadType::HandshakeResponse
                | PayloadType::Undefined
                | PayloadType::Other(_),
                Role::Client | Role::Agent,
            ) => {}
        }
    }

    fn deliver_request(&mut self, payload: &[u8]) {
        // A second answer, which would have a new number, blocks the official agent's reader (ssm.md trap 39).
        if !matches!(self.stage, Stage::Greeting) {
            return;
        }
        match handshake::answer(payload) {
            Ok((response, offer)) => {
                self.steering
                    .push_back((PayloadType::HandshakeResponse, response));
                match offer {
                    Ok(offer) => self.stage = Stage::Agreed(offer),
                    Err(error) => self.end(error.into()),
                }
            }
            Err(error) => self.end(error.into()),
        }
    }

    fn deliver_complete(&mut self, complete: &[u8], now: Instant) {
        let Stage::Agreed(offer) = &self.stage else { return };
        let offer = offer.clone();
        if !offer.acknowledges_duplicates {
            self.channel.peer_is_silent_on_duplicates();
        }
        self.can_terminate = offer.understands_terminate;
        let customer_message = serde_json::from_slice::<HandshakeComplete>(complete)
            .map(|body| payload::words(&body.customer_message))
            .unwrap_or_default();
        let multiplexes = offer.multiplexes;
        let needed = offer.wants_keep_alives.then_some(KEEP_ALIVE);
        let ready = Event::Ready {
            agent_version: offer.agent_version,
            multiplexes,
            customer_message,
        };
        let keep_alive = needed.or(self.keep_alive);
        self.run(Side::Client, multiplexes, keep_alive, ready, now);
    }

    fn deliver_response(&mut self, payload: &[u8], now: Instant) {
        if !matches!(self.stage, Stage::Greeting) {
            return;
        }
        match handshake::judge(payload, &self.agent_version) {
            Ok(choice) => {
                let took = now.saturating_duration_since(self.origin.began).as_nanos();
                let complete = handshake::complete(u64::try_from(took).unwrap_or(u64::MAX));
                self.steering
                    .push_back((PayloadType::HandshakeComplete, complete));
                let ready = Event::Ready {
                    agent_version: self.agent_version.clone(),
                    multiplexes: choice.multiplexes,
                    customer_message: String::new(),
                };
                let keep_alive = choice.sends_keep_alives.then_some(KEEP_ALIVE);
                self.run(Side::Server, choice.multiplexes, keep_alive, ready, now);
                self.notice_streams();
            }
            Err(error) => self.end(error.into()),
        }
    }

    fn run(
        &mut self,
        side: Side,
        multiplexes: bool,
        keep_alive: Option<Duration>,
        ready: Event,
        now: Instant,
    ) {
        let grace = self.origin.half_close_grace;
        let mut carrier = if multiplexes {
            Carrier::mux(side, self.framing, grace)
        } else {
            Carrier::basic(side, grace)
        };
        if let Some(interval) = keep_alive {
            carrier.keep_alive(interval, now);
        }
        self.deadline = None;
        self.stage = Stage::Running(carrier);
        self.events.push_back(ready);
    }

    /// Passes on what happened to streams.
    pub(super) fn notice_streams(&mut self) {
        while let Some(event) = self.carrier().and_then(Carrier::poll_event) {
            let event = match event {
                smux::Event::Opened(id) => Event::Opened(id),
                smux::Event::Data(id, bytes) => Event::Data(id, bytes),
                // The flag that tells of a failed dial names no stream; the FIN of a stream that never had a byte
                // follows it (ssm.md section 6.3).
                smux::Event::Finished { id, silent: true } if self.refusals > 0 => {
                    self.refusals -= 1;
                    Event::Refused(id)
                }
                smux::Event::Finished { id, .. } => Event::Finished(id),
                smux::Event::Abandoned(id) => Event::Abandoned(id),
            };
            self.events.push_back(event);
        }
        self.forget_stale_refusals();
    }

    /// A refusal of a stream that is gone must not become that of another one, which ends well.
    pub(super) fn forget_stale_refusals(&mut self) {
        if self.refusals > 0 {
            let unheard = self.carrier().map_or(0, |carrier| carrier.unheard());
            self.refusals = self.refusals.min(unheard);
        }
    }

    fn deliver_output(&mut self, payload: Bytes, now: Instant) {
        // The official sides ignore it too (ssm.md section 3.4), and a reader would take it for bytes.
        if payload.is_empty() {
            return;
        }
        let carrier = match &mut self.stage {
            Stage::Running(carrier) => carrier,
            // Output without a handshake is how a shell begins (ssm.md section 5.5). An agent throws early data away.
            Stage::Greeting if self.role == Role::Client => {
                return self.end(HandshakeError::NotPort("shell".to_owned()).into());
            }
            Stage::Greeting | Stage::Agreed(_) | Stage::Ended => return,
        };
        let received = carrier.receive(payload, now);
        self.notice_streams();
        if let Err(end) = received {
            self.end(end);
        }
    }
}
