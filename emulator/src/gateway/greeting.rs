//! The agent's handshake, as oddly as it has been seen: sent several times, and acknowledged late.

use std::collections::VecDeque;

use bytes::Bytes;
use tunneld_wire::ssm::message::{Kind, Message, PayloadType};
use tunneld_wire::ssm::payload::acknowledged_number;

/// The agent's frames until HandshakeComplete is among them.
pub(super) struct Greeting {
    requests: u32,
    is_ack_late: bool,
    late_ack: Option<Bytes>,
    stage: Stage,
    frames: VecDeque<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Silent,
    Requested,
    Complete,
}

impl Greeting {
    pub(super) fn new() -> Self {
        Self {
            requests: 1,
            is_ack_late: false,
            late_ack: None,
            stage: Stage::Silent,
            frames: VecDeque::new(),
        }
    }

    /// Changes how often HandshakeRequest is sent, and whether the acknowledgement of the answer to it comes late.
    pub(super) fn set(&mut self, requests: u32, is_ack_late: bool) {
        self.requests = requests;
        self.is_ack_late = is_ack_late;
    }

    /// Whether HandshakeComplete has been sent.
    pub(super) fn is_complete(&self) -> bool {
        self.stage == Stage::Complete
    }

    /// Takes the agent's next frame.
    pub(super) fn push(&mut self, frame: Bytes) {
        let message = match self.stage {
            Stage::Complete => None,
            Stage::Silent | Stage::Requested => Message::decode(frame.clone()).ok(),
        };
        match message {
            Some(Message {
                payload_type: PayloadType::HandshakeRequest,
                ..
            }) if self.stage == Stage::Silent => {
                self.stage = Stage::Requested;
                self.frames
                    .extend(std::iter::repeat_n(frame, self.requests as usize));
            }
            Some(Message {
                payload_type: PayloadType::HandshakeComplete,
                ..
            }) => {
                self.stage = Stage::Complete;
                self.frames.push_back(frame);
                self.frames.extend(self.late_ack.take());
            }
            Some(Message {
                kind: Kind::Acknowledge,
                payload,
                ..
            }) if self.is_ack_late && acknowledged_number(&payload) == Some(0) => {
                self.late_ack = Some(frame);
            }
            Some(_) | None => self.frames.push_back(frame),
        }
    }

    /// Returns the next frame to send.
    pub(super) fn poll(&mut self) -> Option<Bytes> {
        self.frames.pop_front()
    }
}
