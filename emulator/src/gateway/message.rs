//! What the service says in its own name.

use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use tunneld_wire::ssm::message::{self, Kind, Message, PayloadType};
use tunneld_wire::ssm::payload::{self, ChannelClosed};
use uuid::Uuid;

use super::sketch::{HEADER, TYPE};
use crate::clock::wall_clock;
use crate::conditions::ChannelClosedForm;

/// Bytes before the payload length in a header without a payload type.
const SHORT_HEADER: usize = 112;
/// The payload length that the service was seen to write in its hints, which have no payload.
const BOGUS_LENGTH: u32 = 0x7800_0000;

/// The service's hint that the other side is there.
pub(super) fn start_publication() -> Bytes {
    hint(Kind::StartPublication)
}

/// The service's hint that the other side is away.
pub(super) fn pause_publication() -> Bytes {
    hint(Kind::PausePublication)
}

/// The service's last word of a session.
pub(super) fn channel_closed(session_id: &str, output: &str, form: ChannelClosedForm) -> Bytes {
    let id = random_id();
    let body = payload::json(&ChannelClosed {
        message_id: id,
        created_date: since_1970().as_secs().to_string(),
        destination_id: session_id.to_owned(),
        session_id: session_id.to_owned(),
        message_type: Kind::ChannelClosed.to_string(),
        schema_version: 1,
        output: output.to_owned(),
    });
    let digest = message::digest(&body);
    let frame = service_message(Kind::ChannelClosed, id, digest, body);
    match form {
        ChannelClosedForm::Hl116 => frame.freeze(),
        ChannelClosedForm::Hl112 => without_payload_type(&frame),
    }
}

/// With the nonsense that independent clients report of both hints: a digest of zeros and a length without bytes.
fn hint(kind: Kind) -> Bytes {
    let mut frame = service_message(kind, random_id(), [0; 32], Bytes::new());
    frame[HEADER - 4..].copy_from_slice(&BOGUS_LENGTH.to_be_bytes());
    frame.freeze()
}

fn service_message(kind: Kind, id: Uuid, digest: [u8; 32], payload: Bytes) -> BytesMut {
    let message = Message {
        kind,
        created: u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX),
        sequence: 0,
        flags: 3,
        id,
        digest,
        payload_type: PayloadType::Undefined,
        payload,
    };
    BytesMut::from(message.encode())
}

fn without_payload_type(frame: &[u8]) -> Bytes {
    let mut short = BytesMut::with_capacity(frame.len());
    short.put_u32(SHORT_HEADER as u32);
    let name = frame[TYPE].trim_ascii_end();
    short.put_slice(name);
    short.put_bytes(0, TYPE.len() - name.len());
    short.put_slice(&frame[TYPE.end..SHORT_HEADER]);
    short.put_slice(&frame[HEADER - 4..]);
    short.freeze()
}

fn random_id() -> Uuid {
    uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid()
}

/// Returns the calendar time since 1970.
pub(super) fn since_1970() -> Duration {
    wall_clock()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_channel_closed_say_the_same() {
        for form in [ChannelClosedForm::Hl116, ChannelClosedForm::Hl112] {
            let frame = channel_closed("session", "because", form);
            let message = Message::decode(frame).expect("a good frame");
            message.verify().expect("a good digest");
            assert_eq!(message.kind, Kind::ChannelClosed);
            assert_eq!(payload::closing_words(&message.payload), "because");
        }
    }

    /// The layout of the vectors `channel_closed_hl116` and `channel_closed_hl112_nul`.
    #[test]
    fn the_short_form_has_no_payload_type_and_is_padded_with_nuls() {
        let long = channel_closed("session", "", ChannelClosedForm::Hl116);
        assert_eq!(long[..4], 116_u32.to_be_bytes());
        assert_eq!(&long[TYPE], b"channel_closed                  ");
        let short = channel_closed("session", "", ChannelClosedForm::Hl112);
        assert_eq!(short[..4], 112_u32.to_be_bytes());
        assert_eq!(&short[4..19], b"channel_closed\0");
        assert_eq!(short.len(), long.len() - 4);
        let length = u32::from_be_bytes([short[112], short[113], short[114], short[115]]);
        assert_eq!(length as usize, short.len() - 116);
    }

    /// As the vectors `start_publication` and `pause_publication`.
    #[test]
    fn hints_have_no_payload_and_nonsense_in_their_header() {
        for (frame, kind) in [
            (start_publication(), Kind::StartPublication),
            (pause_publication(), Kind::PausePublication),
        ] {
            assert_eq!(frame.len(), HEADER);
            assert_eq!(frame[80..112], [0; 32]);
            assert_eq!(frame[116..], [0x78, 0, 0, 0]);
            assert_eq!(Message::decode(frame).expect("a good frame").kind, kind);
        }
    }
}
