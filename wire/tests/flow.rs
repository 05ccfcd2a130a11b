//! How fast a client sends: as fast as messages may leave, whatever the round trip, and without a queue of its own
//! making before a slow uplink.

use std::num::NonZeroU32;
use std::time::Duration;

use tunneld_wire::smux::Framing;
use tunneld_wire::ssm::{
    ClientOptions, LARGEST_PAYLOAD, MESSAGE_RATE, PayloadProbe, Policy, SMALLEST_PAYLOAD,
};

use crate::common::agent::Agent;
use crate::common::clock;
use crate::common::load::bytes;
use crate::common::network::Network;
use crate::common::rig::{Act, Rig, Told};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// How much of a payload is a frame's header.
const HEADER: usize = 8;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn with_policy(policy: Policy) -> ClientOptions {
    ClientOptions {
        policy,
        ..clock::client()
    }
}

fn ready_with(client: ClientOptions, network: Network) -> Rig {
    let mut rig = Rig::with_client(1, network, client, Agent::fast(Framing::Fitted));
    rig.begin();
    rig
}

/// Returns how many bytes of a bulk upload arrive in the fourth and fifth second.
fn speed(rig: &mut Rig) -> usize {
    let id = rig.open(bytes(1, 96 << 20), Vec::new());
    rig.run_for(SECOND * 3);
    let begun = rig.loads[&id].got_up.len();
    rig.run_for(SECOND * 2);
    (rig.loads[&id].got_up.len() - begun) / 2
}

#[test]
fn an_upload_is_bound_by_the_rate_of_messages_and_their_size_and_not_by_the_round_trip() {
    let full = MESSAGE_RATE as usize * (LARGEST_PAYLOAD - HEADER);
    for round_trip in [0, 20, 100, 200] {
        let mut rig = ready_with(clock::client(), Network::perfect(millis(round_trip / 2)));
        let speed = speed(&mut rig);
        assert!(
            (full * 95 / 100..=full * 101 / 100).contains(&speed),
            "{speed} of {full} bytes a second with a round trip of {round_trip} ms"
        );
    }
}

#[test]
fn an_upload_in_the_smallest_payloads_is_bound_by_the_rate_too() {
    let policy = Policy::client().with_payloads(PayloadProbe::between(SMALLEST_PAYLOAD, SMALLEST_PAYLOAD));
    let full = MESSAGE_RATE as usize * (SMALLEST_PAYLOAD - HEADER);
    for round_trip in [0, 20, 100, 200] {
        let network = Network::perfect(millis(round_trip / 2));
        let speed = speed(&mut ready_with(with_policy(policy.clone()), network));
        assert!(
            (full * 95 / 100..=full * 101 / 100).contains(&speed),
            "{speed} of {full} bytes a second with a round trip of {round_trip} ms"
        );
    }
}

#[test]
fn what_a_session_learned_of_payloads_serves_the_next_one() {
    let mut rig = ready_with(clock::client(), Network::perfect(millis(5)));
    rig.open(bytes(1, 16 << 20), Vec::new());
    rig.run_for(SECOND);
    let learned = rig.client.session.payloads().clone();
    assert_eq!(learned.size(), LARGEST_PAYLOAD);
    let policy = Policy::client().with_payloads(learned);
    let mut rig = ready_with(with_policy(policy), Network::perfect(millis(5)));
    rig.open(bytes(1, 16 << 20), Vec::new());
    // The first message, a trial of what was learned, and one of full size.
    rig.run_for(millis(30));
    assert_eq!(
        rig.client.witness.longest_since(millis(5), rig.now),
        Some(LARGEST_PAYLOAD)
    );
}

#[test]
fn payloads_that_do_not_pass_hold_up_nobodys_bytes() {
    for punished in [false, true] {
        let network = Network {
            largest: Some(4_096),
            ..Network::perfect(millis(5))
        };
        let mut rig = ready_with(clock::client(), network);
        let id = rig.open(bytes(1, 16 << 20), Vec::new());
        let mut trials = 0;
        let until = rig.now + MINUTE;
        while !rig.loads[&id].is_done() {
            assert!(rig.now < until, "{} bytes arrived", rig.loads[&id].got_up.len());
            rig.run_for(millis(10));
            if rig.client.witness.longest_since(millis(10), rig.now) > Some(4_096) {
                trials += 1;
                if punished {
                    rig.act(Act::Cut(Told::Pause));
                    rig.act(Act::Attach);
                }
            }
        }
        assert!((2..=8).contains(&trials), "{trials} trials");
    }
}

#[test]
fn the_rate_of_messages_can_be_chosen() {
    for rate in [100, 300] {
        let policy = Policy::client().with_message_rate(NonZeroU32::new(rate));
        let mut rig = ready_with(with_policy(policy), Network::perfect(millis(5)));
        rig.open(bytes(1, 32 << 20), Vec::new());
        rig.run_for(SECOND);
        let before = rig.client.witness.messages();
        rig.run_for(SECOND * 2);
        let sent = (rig.client.witness.messages() - before) / 2;
        assert!(sent.abs_diff(rate as usize) <= 1, "{sent} messages a second");
    }
    let mut rig = ready_with(
        with_policy(Policy::client().with_message_rate(None)),
        Network::perfect(millis(5)),
    );
    rig.client.witness.paced = false;
    let id = rig.open(bytes(1, 64 << 20), Vec::new());
    rig.run_loads(SECOND);
    assert!(rig.loads[&id].is_done());
}

#[test]
fn without_a_rate_an_upload_fills_a_long_and_fast_path() {
    const RATE: usize = 40_000_000;
    let network = Network {
        uplink: Some(RATE),
        ..Network::perfect(millis(100))
    };
    let mut rig = ready_with(with_policy(Policy::client().with_message_rate(None)), network);
    rig.client.witness.paced = false;
    let id = rig.open(bytes(1, 160 << 20), Vec::new());
    rig.run_for(SECOND * 3);
    let begun = rig.loads[&id].got_up.len();
    rig.run_for(SECOND);
    let speed = rig.loads[&id].got_up.len() - begun;
    assert!(speed > RATE * 85 / 100, "{speed} bytes a second");
}

#[test]
fn what_is_sent_again_keeps_to_the_rate_too() {
    let policy = Policy::client().with_payloads(PayloadProbe::between(SMALLEST_PAYLOAD, SMALLEST_PAYLOAD));
    let mut rig = ready_with(with_policy(policy), Network::perfect(millis(500)));
    rig.open(bytes(1, 32 << 20), Vec::new());
    rig.run_for(SECOND * 15);
    // The witness counts.
    rig.act(Act::Cut(Told::Pause));
    rig.act(Act::Attach);
    rig.run_for(SECOND * 3);
    let repeats = rig.client.witness.repeats;
    assert!(repeats > MESSAGE_RATE as usize * 9 / 10, "{repeats} repeats");
}

#[test]
fn a_few_bytes_wait_a_fraction_of_a_second_for_a_bulk_upload_through_a_slow_uplink() {
    // A mobile network, ADSL, a home's cable.
    for (rate, longest) in [(60_000, 1_500), (125_000, 800), (1_250_000, 300)] {
        for round_trip in [20, 100] {
            let network = Network {
                uplink: Some(rate),
                ..Network::perfect(millis(round_trip / 2))
            };
            let mut rig = ready_with(clock::client(), network);
            let bulk = rig.open(bytes(1, 64 << 20), Vec::new());
            // What was sent before the path was known has passed.
            rig.run_for(SECOND * 12);
            for seed in 0..10 {
                let small = rig.open(bytes(seed, 64), Vec::new());
                let sent = rig.now;
                rig.run_until(MINUTE, "the few bytes", |rig| rig.loads[&small].is_done());
                let waited = rig.now - sent;
                assert!(
                    waited <= millis(longest),
                    "waited {waited:?} at {rate} bytes a second, {round_trip} ms"
                );
                rig.run_for(SECOND);
            }
            // The bulk goes on as fast as the uplink is, and next to nothing is sent in vain.
            let witness = &rig.client.witness;
            let (got, messages) = (rig.loads[&bulk].got_up.len(), witness.messages());
            let repeats = witness.repeats;
            rig.run_for(SECOND * 10);
            let speed = (rig.loads[&bulk].got_up.len() - got) / 10;
            assert!(
                speed >= rate * 80 / 100,
                "{speed} of {rate} bytes a second, {round_trip} ms"
            );
            let messages = rig.client.witness.messages() - messages;
            let repeats = rig.client.witness.repeats - repeats;
            assert!(
                repeats * 50 <= messages,
                "{repeats} repeats of {messages} messages at {rate} bytes a second, {round_trip} ms"
            );
        }
    }
}
