//! The golden frames: made from the protocol notes alone, checked against the official client's and agent's codecs.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tunneld_wire::smux::{Decoder, Header, Item};
use tunneld_wire::ssm::message::{Flag, Kind, Message, PayloadType};
use tunneld_wire::ssm::payload::{
    self, Acknowledge, ChannelClosed, HandshakeComplete, HandshakeRequest, HandshakeResponse,
    OpenDataChannel, SessionParameters,
};

use crate::common::hex;

/// One of the vectors: its frame, and what stands in it.
struct Vector {
    name: String,
    frame: Vec<u8>,
    fields: Value,
}

fn vectors() -> Vec<Vector> {
    let file: Vec<Value> = serde_json::from_str(include_str!("golden/ssm-vectors.json")).unwrap();
    let vectors = file.into_iter().map(|vector| Vector {
        name: vector["name"].as_str().unwrap().to_owned(),
        frame: hex::bytes(vector["hex"].as_str().unwrap()),
        fields: vector["fields"].clone(),
    });
    vectors.collect()
}

fn vector(name: &str) -> Vector {
    vectors().into_iter().find(|vector| vector.name == name).unwrap()
}

/// The vectors that are binary frames of the data channel.
fn messages() -> Vec<Vector> {
    vectors()
        .into_iter()
        .filter(|vector| vector.fields["kind"].is_null())
        .collect()
}

fn payload_of(name: &str) -> Vec<u8> {
    hex::bytes(vector(name).fields["payload_hex"].as_str().unwrap())
}

/// What the fields of a vector say, as the message they describe.
fn described(fields: &Value) -> Message {
    let number = |name: &str| fields[name].as_u64().unwrap();
    let kind = match fields["MessageType"].as_str().unwrap() {
        "input_stream_data" => Kind::InputStreamData,
        "output_stream_data" => Kind::OutputStreamData,
        "acknowledge" => Kind::Acknowledge,
        "channel_closed" => Kind::ChannelClosed,
        "start_publication" => Kind::StartPublication,
        "pause_publication" => Kind::PausePublication,
        other => panic!("vector of an unexpected type {other}"),
    };
    let payload_type = match fields["PayloadType"].as_u64() {
        None | Some(0) => PayloadType::Undefined,
        Some(1) => PayloadType::Output,
        Some(5) => PayloadType::HandshakeRequest,
        Some(6) => PayloadType::HandshakeResponse,
        Some(7) => PayloadType::HandshakeComplete,
        Some(10) => PayloadType::Flag,
        Some(other) => PayloadType::Other(other as u32),
    };
    Message {
        kind,
        created: number("CreatedDate"),
        sequence: number("SequenceNumber"),
        flags: number("Flags"),
        id: fields["MessageId"].as_str().unwrap().parse().unwrap(),
        digest: hex::bytes(fields["PayloadDigest"].as_str().unwrap())
            .try_into()
            .unwrap(),
        payload_type,
        payload: hex::bytes(fields["payload_hex"].as_str().unwrap()).into(),
    }
}

#[test]
fn every_golden_frame_decodes_to_the_fields_it_was_made_of() {
    let messages = messages();
    assert_eq!(messages.len(), 21);
    for Vector { name, frame, fields } in messages {
        let message = Message::decode(frame.into()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let described = described(&fields);
        assert_eq!(message, described, "{name}");
        assert_eq!(message.payload, described.payload, "{name}");
        assert_eq!(message.verify(), Ok(()), "{name}");
    }
}

#[test]
fn what_official_code_can_encode_is_encoded_byte_for_byte() {
    let mut checked = 0;
    for Vector { name, frame, fields } in messages() {
        let official =
            fields["HeaderLength"] == 116 && fields["pad"] == "space" && fields["payload_hex"] != "";
        if official {
            assert_eq!(described(&fields).encode(), frame, "{name}");
            checked += 1;
        }
    }
    assert_eq!(checked, 18, "all but the two hints and the short-headed closing");
}

#[test]
fn a_frame_whose_payload_was_changed_fails_its_digest() {
    for Vector {
        name,
        mut frame,
        fields,
    } in messages()
    {
        let hint = fields["MessageType"].as_str().unwrap().ends_with("_publication");
        *frame.last_mut().unwrap() ^= 1;
        let message = Message::decode(frame.into()).unwrap();
        assert_eq!(message.verify().is_err(), !hint, "{name}");
    }
}

#[test]
fn a_frame_cut_anywhere_before_its_payload_is_malformed_and_no_more() {
    for Vector { name, frame, fields } in messages() {
        let header = fields["HeaderLength"].as_u64().unwrap() as usize + 4;
        for length in 0..header {
            let cut = Bytes::copy_from_slice(&frame[..length]);
            assert!(Message::decode(cut).is_err(), "{name} cut to {length} bytes");
        }
    }
}

#[test]
fn flags_are_told_apart() {
    let flag = |name: &str| Flag::from_payload(&payload_of(name));
    assert_eq!(flag("flag_disconnect_to_port"), Some(Flag::DisconnectToPort));
    assert_eq!(flag("flag_terminate_session"), Some(Flag::TerminateSession));
    assert_eq!(flag("flag_connect_to_port_error"), Some(Flag::ConnectToPortError));
    for flag in [
        Flag::DisconnectToPort,
        Flag::TerminateSession,
        Flag::ConnectToPortError,
    ] {
        assert_eq!(Flag::from_payload(&flag.payload()), Some(flag));
    }
    assert_eq!(Flag::from_payload(&[0, 0, 0, 9]), None);
    assert_eq!(Flag::from_payload(&[1]), None);
}

/// Reads a body with its type and writes it again.
fn rewritten<T: Serialize + DeserializeOwned>(body: &[u8]) -> Bytes {
    payload::json(&serde_json::from_slice::<T>(body).unwrap())
}

#[test]
fn bodies_are_written_byte_for_byte_as_official_code_writes_them() {
    let opening = vector("open_data_channel_text").frame;
    assert_eq!(rewritten::<OpenDataChannel>(&opening), opening);
    for name in ["ack_of_handshake_request", "ack_of_handshake_response"] {
        assert_eq!(
            rewritten::<Acknowledge>(&payload_of(name)),
            payload_of(name),
            "{name}"
        );
    }
    let request = payload_of("handshake_request_port");
    assert_eq!(
        rewritten::<HandshakeRequest<SessionParameters>>(&request),
        request
    );
    let response = payload_of("handshake_response");
    assert_eq!(rewritten::<HandshakeResponse>(&response), response);
    let complete = payload_of("handshake_complete");
    assert_eq!(rewritten::<HandshakeComplete>(&complete), complete);
    let closed = payload_of("channel_closed_hl116");
    assert_eq!(rewritten::<ChannelClosed>(&closed), closed);
}

#[test]
fn an_acknowledgement_names_its_number() {
    assert_eq!(
        payload::acknowledged_number(&payload_of("ack_of_handshake_request")),
        Some(0)
    );
    let unusual = br#"{"AcknowledgedMessageId":7,"AcknowledgedMessageSequenceNumber":17}"#;
    assert_eq!(payload::acknowledged_number(unusual), Some(17));
    assert_eq!(
        payload::acknowledged_number(br#"{"AcknowledgedMessageSequenceNumber":-1}"#),
        None
    );
    assert_eq!(payload::acknowledged_number(b"{}"), None);
}

#[test]
fn a_closing_gives_its_words_whatever_its_header() {
    let words = |name: &str| payload::closing_words(&payload_of(name));
    let body: Value = serde_json::from_slice(&payload_of("channel_closed_hl116")).unwrap();
    assert_eq!(
        words("channel_closed_hl116"),
        body["Output"].as_str().unwrap().trim()
    );
    assert_eq!(words("channel_closed_hl112_nul"), words("channel_closed_hl116"));
    assert!(!words("channel_closed_hl116").is_empty());
    assert_eq!(payload::closing_words(br#"{"Output":7}"#), "");
    assert_eq!(payload::closing_words(b"no json"), "");
}

#[test]
fn the_golden_smux_frames_decode_and_encode() {
    let wire = vector("smux_frames").frame;
    let mut bytes = Bytes::from(wire.clone());
    let mut decoder = Decoder::default();
    let mut items = Vec::new();
    while let Some(item) = decoder.next(&mut bytes).unwrap() {
        items.push(item);
    }
    let [Item::Syn(opened), Item::Data(id, data), Item::Fin(ended)] = &items[..] else {
        panic!("unexpected items {items:?}");
    };
    assert_eq!((opened.to_string(), opened, opened), ("3".to_owned(), id, ended));
    assert_eq!(&data[..], b"GET / HTTP/1.0\r\n\r\n");

    let mut encoded = Header::Syn(*id).encode().to_vec();
    encoded.extend(Header::Psh(*id, 18).encode());
    encoded.extend(&data[..]);
    encoded.extend(Header::Fin(*id).encode());
    encoded.extend(Header::Nop.encode());
    assert_eq!(encoded, wire);
}
