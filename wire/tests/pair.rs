//! Both sides of a session over a bad network, on invented time: every byte arrives, in order and once, and no rule of
//! ssm.md section 11.5 is broken on the way.

use std::time::Duration;

use tunneld_wire::smux::Framing;
use tunneld_wire::ssm::Event;
use tunneld_wire::ssm::message::Kind;

use crate::common::agent::Agent;
use crate::common::load::{Load, bytes};
use crate::common::network::Network;
use crate::common::raw::{DISCONNECT_TO_PORT, Piece, Streams};
use crate::common::rig::{Act, End, Rig, Told};
use crate::common::seeds::for_seeds;

const SEEDS: u64 = 200;

const MINUTE: Duration = Duration::from_secs(60);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Opens streams with random loads, and ends them when all have crossed.
fn carry_loads(rig: &mut Rig, most: usize, limit: Duration) {
    let count = rig.random.u64(1..=5);
    for stream in 0..count {
        let up = rig.random.usize(0..=most);
        let down = rig.random.usize(0..=most);
        let seed = rig.random.u64(..) ^ stream;
        rig.open(bytes(seed, up), bytes(!seed, down));
    }
    rig.run_loads(limit);
    let ids: Vec<_> = rig.loads.keys().copied().collect();
    for id in &ids {
        rig.client.session.close(*id);
    }
    rig.run_until(limit, "the end of all streams", |rig| {
        let gone = |end: &End| end.session.streams().is_empty() && end.session.is_drained();
        ids.iter().all(|id| rig.agent.has(&Event::Finished(*id))) && gone(&rig.client) && gone(&rig.agent)
    });
    assert!(rig.client.witness.is_whole() && rig.agent.witness.is_whole());
    for (id, load) in &rig.loads {
        let number: u32 = id.to_string().parse().unwrap();
        let sent = |streams: &Streams| streams.0.get(&number).cloned().unwrap_or_default();
        assert!(
            sent(&rig.client.witness.streams) == load.up,
            "stream {id}: upwards on the wire"
        );
        assert!(
            sent(&rig.agent.witness.streams) == load.down,
            "stream {id}: downwards on the wire"
        );
    }
}

/// Cuts of the client's websocket at random times.
fn plan_cuts(rig: &mut Rig, most: u64, longest_outage: u64, told: &[Told]) {
    let mut at = rig.now;
    for _ in 0..rig.random.u64(0..=most) {
        at += millis(rig.random.u64(1..=400));
        let told = rig.random.choice(told).copied().unwrap();
        rig.script.push_back((at, Act::Cut(told)));
        at += millis(rig.random.u64(1..=longest_outage));
        rig.script.push_back((at, Act::Attach));
    }
}

#[test]
fn every_byte_crosses_a_network_that_loses_copies_and_reorders() {
    for_seeds(SEEDS, |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let network = Network {
            jitter: millis(random.u64(0..=40)),
            loss: random.f64() * 0.1,
            copies: random.f64() * 0.1,
            ..Network::perfect(millis(random.u64(0..=150)))
        };
        let framing = if random.bool() {
            Framing::Fitted
        } else {
            Framing::Spanning
        };
        let mut rig = Rig::new(seed, network, Agent::fast(framing));
        rig.begin();
        carry_loads(&mut rig, 200_000, 20 * MINUTE);
    });
}

#[test]
fn every_byte_survives_cuts_of_the_websocket() {
    for_seeds(SEEDS, |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let network = Network {
            jitter: millis(random.u64(0..=5)),
            loss: if random.bool() { 0.0 } else { 0.02 },
            copies: 0.0,
            ..Network::perfect(millis(random.u64(0..=150)))
        };
        let mut rig = Rig::new(seed, network, Agent::fast(Framing::Fitted));
        rig.begin();
        plan_cuts(&mut rig, 6, 3_000, &[Told::Pause, Told::Nothing, Told::Detached]);
        carry_loads(&mut rig, 400_000, 20 * MINUTE);
    });
}

#[test]
fn a_handshake_survives_cuts_and_loss() {
    for_seeds(SEEDS, |seed| {
        let network = Network {
            jitter: millis(20),
            loss: 0.2,
            copies: 0.2,
            ..Network::perfect(millis(30))
        };
        let mut rig = Rig::new(seed, network, Agent::fast(Framing::Fitted));
        plan_cuts(&mut rig, 3, 1_000, &[Told::Pause, Told::Nothing, Told::Detached]);
        rig.begin();
        carry_loads(&mut rig, 2_000, 20 * MINUTE);
    });
}

#[test]
fn every_byte_survives_cuts_with_the_official_agents_ways() {
    for_seeds(SEEDS, |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let network = Network {
            jitter: millis(random.u64(0..=5)),
            loss: if random.bool() { 0.0 } else { 0.01 },
            copies: 0.01,
            ..Network::perfect(millis(random.u64(0..=100)))
        };
        let mut rig = Rig::new(seed, network, Agent::stock());
        rig.begin();
        plan_cuts(&mut rig, 3, 500, &[Told::Pause, Told::Nothing, Told::Detached]);
        carry_loads(&mut rig, 50_000, 20 * MINUTE);
    });
}

#[test]
fn every_byte_reaches_an_agent_that_acknowledges_once() {
    for_seeds(SEEDS, |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let network = Network {
            jitter: millis(10),
            loss: random.f64() * 0.02,
            copies: 0.02,
            ..Network::perfect(millis(20))
        };
        let mut rig = Rig::new(
            seed,
            network,
            Agent::fast(Framing::Fitted).with_version("3.2.1000.0"),
        );
        rig.agent.witness.silent_on_duplicates = true;
        rig.client.witness.window = None;
        rig.begin();
        plan_cuts(&mut rig, 2, 1_000, &[Told::Pause, Told::Nothing]);
        let count = rig.random.u64(1..=3);
        for _ in 0..count {
            let up = rig.random.usize(1..=100_000);
            rig.open(bytes(seed, up), Vec::new());
        }
        rig.run_loads(20 * MINUTE);
    });
}

#[test]
fn every_byte_survives_loss_and_cuts_in_basic_mode() {
    for_seeds(SEEDS, |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let network = Network {
            jitter: millis(random.u64(0..=20)),
            loss: random.f64() * 0.02,
            copies: 0.02,
            ..Network::perfect(millis(random.u64(0..=100)))
        };
        let agent = match random.bool() {
            true => Agent::fast(Framing::Fitted),
            false => Agent::stock(),
        };
        let mut rig = Rig::in_basic_mode(seed, network, agent);
        rig.begin();
        plan_cuts(&mut rig, 3, 500, &[Told::Pause, Told::Nothing, Told::Detached]);
        let up = rig.random.usize(0..=100_000);
        let down = rig.random.usize(0..=30_000);
        let id = rig.open(bytes(seed, up), bytes(!seed, down));
        rig.run_loads(20 * MINUTE);
        rig.client.session.close(id);
        rig.run_until(20 * MINUTE, "the end", |rig| {
            rig.agent.has(&Event::Finished(id)) && rig.client.session.is_drained()
        });
        // Others, which mean nothing, ask whether all has arrived.
        let flags = rig.client.witness.flags.iter();
        assert_eq!(flags.filter(|flag| **flag == DISCONNECT_TO_PORT).count(), 1);
        assert!(rig.client.session.streams().is_empty() && rig.agent.session.streams().is_empty());
    });
}

#[test]
fn a_cut_that_swallows_the_acknowledgements_of_a_whole_window_does_not_stall_an_agent_that_acknowledges_once()
{
    let agent = Agent::fast(Framing::Fitted).with_version("3.2.1000.0");
    let mut rig = Rig::new(5, Network::perfect(millis(150)), agent);
    rig.agent.witness.silent_on_duplicates = true;
    rig.client.witness.window = None;
    rig.begin();
    let up = rig.open(bytes(1, 8 << 20), Vec::new());
    rig.run_until(MINUTE, "a good speed", |rig| {
        rig.loads[&up].got_up.len() > 4 << 20
    });
    // Nothing new is written until everything under way has arrived and been acknowledged into the void.
    rig.network.lost_acknowledgements = 1.0;
    rig.run_for(millis(2_000));
    rig.act(Act::Cut(Told::Nothing));
    rig.network.lost_acknowledgements = 0.0;
    rig.run_for(millis(100));
    rig.act(Act::Attach);
    rig.run_loads(MINUTE);
}

#[test]
fn after_a_cut_the_client_sends_everything_unacknowledged_again_at_once_and_in_order() {
    let mut rig = Rig::ready(millis(50));
    let id = rig.open(bytes(1, 400_000), Vec::new());
    rig.run_for(millis(120));
    rig.act(Act::Cut(Told::Pause));
    rig.run_for(millis(500));
    let before = rig.client.witness.repeats;
    rig.act(Act::Attach);
    rig.pump();
    assert!(
        rig.client.witness.repeats > before + 50,
        "all of a round trip's messages"
    );
    assert!(rig.client.witness.repeated.is_sorted());
    rig.run_until(millis(101), "the first new bytes", |rig| {
        !rig.loads[&id].got_up.is_empty()
    });
    rig.run_loads(MINUTE);
}

#[test]
fn after_a_cut_the_client_repeats_the_acknowledgements_that_the_cut_may_have_swallowed() {
    let mut rig = Rig::new(1, Network::perfect(millis(50)), Agent::stock());
    rig.begin();
    rig.open(b"get".to_vec(), bytes(1, 80_000));
    // The last 50 ms of acknowledgements are lost, no data is; the agent alone would need 100 ms for each.
    rig.run_until(MINUTE, "the last byte", |rig| {
        rig.loads.values().all(Load::is_done)
    });
    rig.act(Act::Cut(Told::Pause));
    rig.run_for(millis(10));
    rig.act(Act::Attach);
    rig.run_for(millis(110));
    assert!(rig.agent.session.is_drained());
}

#[test]
fn payloads_begin_small_again_after_a_cut_and_after_a_pause() {
    for pause in [false, true] {
        let mut rig = Rig::ready(millis(5));
        rig.open(bytes(1, 64 << 20), Vec::new());
        rig.run_for(millis(2_000));
        assert_eq!(
            rig.client.witness.longest_since(millis(100), rig.now),
            Some(16_384)
        );
        if pause {
            rig.announce(Kind::PausePublication);
            rig.announce(Kind::StartPublication);
        } else {
            rig.act(Act::Cut(Told::Pause));
            rig.act(Act::Attach);
        }
        let since = rig.now;
        rig.run_for(millis(50));
        assert_eq!(
            rig.client.witness.longest_since(rig.now - since, rig.now),
            Some(1_024)
        );
    }
}

#[test]
fn a_start_publication_repeats_what_cannot_have_arrived() {
    let mut rig = Rig::ready(millis(10));
    rig.open(bytes(1, 100), Vec::new());
    rig.network.loss = 1.0;
    rig.run_for(millis(100));
    rig.network.loss = 0.0;
    let before = rig.client.witness.repeats;
    rig.announce(Kind::StartPublication);
    assert_eq!(rig.client.witness.repeats, before + 1);
    rig.run_loads(millis(30));
}

#[test]
fn the_end_of_a_pause_repeats_nothing_that_is_still_under_way() {
    let mut rig = Rig::ready(millis(50));
    rig.open(bytes(1, 64 << 20), Vec::new());
    rig.run_for(millis(3_000));
    for _ in 0..5 {
        rig.announce(Kind::PausePublication);
        rig.announce(Kind::StartPublication);
        rig.run_for(millis(30));
    }
    assert_eq!(rig.client.witness.repeats, 0);
    // What was lost meanwhile comes again.
    rig.network.loss = 1.0;
    rig.run_for(millis(30));
    rig.announce(Kind::PausePublication);
    rig.run_for(millis(500));
    rig.network.loss = 0.0;
    rig.announce(Kind::StartPublication);
    let before = rig.loads.values().map(|load| load.got_up.len()).sum::<usize>();
    rig.run_for(millis(60));
    let after = rig.loads.values().map(|load| load.got_up.len()).sum::<usize>();
    assert!(after > before);
}

#[test]
fn the_official_agents_pace_and_repair_are_kept() {
    let mut rig = Rig::new(1, Network::perfect(millis(10)), Agent::stock());
    rig.begin();
    let id = rig.open(b"get".to_vec(), bytes(1, 4 << 20));
    rig.run_for(millis(1_000));
    let before = rig.agent.witness.messages();
    rig.run_for(millis(2_000));
    let rate = (rig.agent.witness.messages() - before) / 2;
    assert!((835..=842).contains(&rate), "{rate} messages a second");

    // 0.2 s of messages are lost, and come again at ten a second.
    rig.network.loss = 1.0;
    rig.run_for(millis(100));
    rig.network.loss = 0.0;
    rig.run_for(millis(500));
    let before = (rig.agent.witness.repeats, rig.loads[&id].got_down.len());
    rig.run_for(millis(3_000));
    let repeats = rig.agent.witness.repeats - before.0;
    assert!((29..=31).contains(&repeats), "{repeats} repeats in 3 s");
    rig.run_loads(MINUTE);
    assert!(rig.loads[&id].got_down.len() > before.1);
}

#[test]
fn a_fast_agent_fills_its_window_and_no_more() {
    let mut rig = Rig::ready(millis(100));
    let id = rig.open(b"get".to_vec(), bytes(1, 48 << 20));
    rig.run_for(millis(1_000));
    let begun = rig.loads[&id].got_down.len();
    rig.run_for(millis(1_000));
    let speed = rig.loads[&id].got_down.len() - begun;
    // A window each round trip of 200 ms.
    assert!((19 << 20..=20 << 20).contains(&speed), "{speed} bytes a second");
}

#[test]
fn the_client_is_as_fast_as_its_rate_and_payload_allow() {
    let mut rig = Rig::ready(millis(10));
    let id = rig.open(bytes(1, 64 << 20), Vec::new());
    rig.run_for(millis(3_000));
    let begun = rig.loads[&id].got_up.len();
    rig.run_for(millis(1_000));
    let speed = rig.loads[&id].got_up.len() - begun;
    assert!(speed > 14_000_000, "{speed} bytes a second");
}

#[test]
fn small_messages_pass_the_bulk_of_another_stream() {
    for started in [millis(1), millis(3_000)] {
        let mut rig = Rig::ready(millis(40));
        let bulk = rig.open(bytes(1, 64 << 20), Vec::new());
        rig.run_for(started);
        let small = rig.open(bytes(2, 64), Vec::new());
        let before = rig.client.witness.messages();
        let number: u32 = small.to_string().parse().unwrap();
        rig.run_until(millis(200), "the small message", |rig| {
            rig.client.witness.streams.0.contains_key(&number)
        });
        let messages = rig.client.witness.messages() - before;
        assert!(messages <= 2, "{messages} messages");
        assert!(!rig.loads[&bulk].is_done());
    }
}

#[test]
fn all_busy_streams_get_the_same_share() {
    let mut rig = Rig::ready(millis(10));
    for seed in 0..5 {
        rig.open(bytes(seed, 8 << 20), Vec::new());
    }
    rig.run_for(millis(1_000));
    let got: Vec<usize> = rig.loads.values().map(|load| load.got_up.len()).collect();
    let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
    assert!(*least > 100_000);
    assert!(most - least < least / 20, "{got:?}");
}

#[test]
fn a_new_stream_and_its_first_bytes_share_a_message() {
    let mut rig = Rig::ready(millis(10));
    let before = rig.client.witness.messages();
    let id = rig.open(b"hello".to_vec(), Vec::new());
    rig.pump();
    assert_eq!(rig.client.witness.messages(), before + 1);
    let number: u32 = id.to_string().parse().unwrap();
    assert_eq!(
        rig.client.witness.pieces,
        [Piece::Syn(number), Piece::Data(number, b"hello".to_vec())]
    );
}

#[test]
fn a_new_stream_without_bytes_is_announced_within_a_millisecond() {
    let mut rig = Rig::ready(millis(10));
    let id = rig.open(Vec::new(), b"server speaks first".to_vec());
    rig.run_for(Duration::from_micros(999));
    assert!(rig.client.witness.pieces.is_empty());
    rig.run_for(Duration::from_micros(1));
    let number: u32 = id.to_string().parse().unwrap();
    assert_eq!(rig.client.witness.pieces, [Piece::Syn(number)]);
    rig.run_loads(millis(30));
}
