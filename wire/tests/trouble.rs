//! What a client concludes from what it hears and does not hear: stalled targets, holes, an agent that is away.

use std::time::Duration;

use tunneld_wire::smux::{Framing, StreamId};
use tunneld_wire::ssm::message::{Kind, PayloadType};
use tunneld_wire::ssm::{End, Event, HandshakeError};

use crate::common::agent::Agent;
use crate::common::clock::{self, STALL_TIMEOUT};
use crate::common::frames::data_message;
use crate::common::load::bytes;
use crate::common::network::Network;
use crate::common::raw::Piece;
use crate::common::rig::{Act, Reach, Rig, Told};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// Without an acknowledgement for this long, the far end is asked for a sign of life.
const PATIENCE: Duration = Duration::from_secs(3);
/// What the agent gets to read on once the suspected stream was reset.
const LAST_CHANCE: Duration = Duration::from_secs(10);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What the client told after it was ready, but for the streams' own events.
fn told(rig: &Rig) -> Vec<Event> {
    let events = rig.client.events.iter();
    let told = events.filter(|event| !matches!(event, Event::Ready { .. } | Event::Finished(_)));
    told.cloned().collect()
}

/// A client that sends much on one stream and little on another, to an agent that has stopped reading a second ago.
fn stalled() -> (Rig, StreamId, StreamId) {
    let mut rig = Rig::ready(millis(5));
    let bulk = rig.open(bytes(1, 32 << 20), Vec::new());
    let small = rig.open(bytes(2, 1_000), Vec::new());
    rig.run_for(SECOND);
    rig.agent_reads = false;
    rig.loads.get_mut(&small).unwrap().up.extend(bytes(3, 1_000));
    rig.run_for(SECOND);
    assert_eq!(told(&rig), []);
    (rig, bulk, small)
}

#[test]
fn a_target_that_reads_nothing_is_noticed_and_its_stream_is_suspected() {
    let (mut rig, bulk, _) = stalled();
    rig.run_for(PATIENCE);
    let noticed = [Event::Unanswered, Event::Stalled(Some(bulk))];
    assert_eq!(told(&rig), noticed);
    rig.run_for(STALL_TIMEOUT / 2);
    assert_eq!(told(&rig), noticed, "once");
    rig.agent_reads = true;
    rig.run_for(millis(10));
    assert_eq!(told(&rig)[2..], [Event::Flowing]);
    rig.run_loads(MINUTE);
}

#[test]
fn a_stall_expires_after_its_timeout_and_the_session_ends_when_that_changes_nothing() {
    let (mut rig, bulk, _) = stalled();
    rig.run_for(PATIENCE + STALL_TIMEOUT - SECOND - millis(50));
    assert_eq!(told(&rig).len(), 2);
    rig.run_for(millis(100));
    assert_eq!(told(&rig)[2..], [Event::StallExpired(Some(bulk))]);
    rig.loads.remove(&bulk);
    rig.client.session.reset(bulk);
    rig.run_for(LAST_CHANCE - millis(100));
    assert_eq!(told(&rig).len(), 3);
    rig.run_for(millis(100));
    assert_eq!(told(&rig)[3..], [Event::Ended(End::Stalled)]);
    rig.run_for(STALL_TIMEOUT);
    assert_eq!(told(&rig).len(), 4);
}

#[test]
fn the_others_go_on_when_the_suspected_stream_was_reset_and_the_agent_reads_again() {
    let (mut rig, bulk, small) = stalled();
    rig.run_for(PATIENCE + STALL_TIMEOUT);
    rig.loads.remove(&bulk);
    rig.client.session.reset(bulk);
    rig.run_for(SECOND);
    rig.agent_reads = true;
    rig.run_for(millis(10));
    assert_eq!(told(&rig)[3..], [Event::Flowing]);
    assert!(rig.agent.has(&Event::Finished(bulk)));
    rig.loads.get_mut(&small).unwrap().up.extend(bytes(4, 100_000));
    rig.run_loads(SECOND);
    assert_eq!(told(&rig).len(), 4);
}

#[test]
fn in_basic_mode_the_one_stream_is_suspected() {
    let mut rig = Rig::in_basic_mode(1, Network::perfect(millis(5)), Agent::fast(Framing::Fitted));
    rig.begin();
    let id = rig.open(bytes(1, 8 << 20), Vec::new());
    rig.run_for(millis(100));
    rig.agent_reads = false;
    rig.run_for(PATIENCE + SECOND);
    assert_eq!(told(&rig), [Event::Unanswered, Event::Stalled(Some(id))]);
    rig.agent_reads = true;
    rig.run_loads(MINUTE);
    assert_eq!(told(&rig)[2..], [Event::Flowing]);
}

#[test]
fn a_stall_is_not_concluded_from_silence_that_has_another_reason() {
    // During a pause.
    let (mut rig, ..) = stalled();
    rig.announce(Kind::PausePublication);
    rig.run_for(STALL_TIMEOUT * 2);
    assert_eq!(told(&rig), [Event::Paused, Event::Doubtful]);
    // Without a websocket.
    let (mut rig, ..) = stalled();
    rig.act(Act::Cut(Told::Nothing));
    rig.run_for(STALL_TIMEOUT * 2);
    assert_eq!(told(&rig), []);
    // With nothing to acknowledge.
    let mut rig = Rig::ready(millis(5));
    rig.open(bytes(1, 1_000), Vec::new());
    rig.run_loads(SECOND);
    rig.agent_reads = false;
    rig.run_for(STALL_TIMEOUT * 2);
    assert_eq!(told(&rig), []);
}

#[test]
fn an_agent_reads_that_acknowledges_anything_at_all() {
    let (mut rig, bulk, _) = stalled();
    let acknowledge = |rig: &mut Rig| {
        // It has nothing to say of what is waited for.
        let body = r#"{"AcknowledgedMessageSequenceNumber":0}"#;
        let frame = data_message(Kind::Acknowledge, 0, PayloadType::Undefined, body.into());
        rig.client.session.handle_frame(frame, rig.now).unwrap();
        rig.pump();
    };
    for _ in 0..20 {
        acknowledge(&mut rig);
        rig.run_for(SECOND);
    }
    assert_eq!(told(&rig), []);
    rig.run_for(PATIENCE);
    acknowledge(&mut rig);
    rig.run_for(SECOND);
    let expected = [Event::Unanswered, Event::Stalled(Some(bulk)), Event::Flowing];
    assert_eq!(told(&rig), expected);
}

#[test]
fn a_pause_or_a_cut_ends_a_stall_and_the_time_begins_anew_afterwards() {
    for cut in [false, true] {
        let (mut rig, bulk, _) = stalled();
        rig.run_for(PATIENCE);
        let mut expected = vec![Event::Unanswered, Event::Stalled(Some(bulk)), Event::Flowing];
        if cut {
            rig.act(Act::Cut(Told::Nothing));
            rig.run_for(STALL_TIMEOUT);
            rig.act(Act::Attach);
        } else {
            rig.announce(Kind::PausePublication);
            rig.run_for(millis(30));
            rig.announce(Kind::StartPublication);
            expected.extend([Event::Paused, Event::Resumed]);
        }
        rig.run_for(PATIENCE - millis(100));
        assert_eq!(told(&rig), expected);
        rig.run_for(millis(200));
        assert_eq!(
            told(&rig)[expected.len()..],
            [Event::Unanswered, Event::Stalled(Some(bulk))]
        );
    }
}

#[test]
fn a_websocket_that_is_half_open_is_unanswered_and_nothing_more() {
    let mut rig = Rig::ready(millis(5));
    rig.open(bytes(1, 8 << 20), Vec::new());
    rig.run_for(millis(200));
    rig.reach = Reach::Nobody;
    rig.run_for(STALL_TIMEOUT * 3);
    assert_eq!(told(&rig), [Event::Unanswered]);
    rig.act(Act::Cut(Told::Nothing));
    rig.act(Act::Attach);
    rig.run_loads(MINUTE);
    assert_eq!(told(&rig), [Event::Unanswered]);
}

#[test]
fn an_agent_that_was_away_is_so_until_it_is_heard() {
    let mut rig = Rig::ready(millis(5));
    rig.open(bytes(1, 1_000), Vec::new());
    rig.run_loads(SECOND);
    assert!(!rig.client.session.is_peer_away());
    rig.lose_agent();
    assert!(rig.client.session.is_peer_away());
    rig.act(Act::Cut(Told::Detached));
    rig.run_for(SECOND);
    assert!(rig.client.session.is_peer_away());
    // The websocket is back; the service says nothing, and neither does the agent.
    rig.reach = Reach::Service;
    rig.act(Act::Attach);
    rig.run_for(MINUTE);
    assert!(rig.client.session.is_peer_away());
    let nops = |rig: &Rig| {
        let pieces = rig.client.witness.pieces.iter();
        pieces.filter(|piece| **piece == Piece::Nop).count()
    };
    assert_eq!(nops(&rig), 1, "something for it to answer");
    assert!(!rig.client.has(&Event::Resumed));
    rig.reach = Reach::Agent;
    rig.run_for(SECOND * 3);
    assert!(!rig.client.session.is_peer_away());
    assert_eq!(told(&rig).last(), Some(&Event::Resumed));
    let resumed = told(&rig).into_iter().filter(|event| *event == Event::Resumed);
    assert_eq!(resumed.count(), 1);
    assert_eq!(nops(&rig), 1);
}

#[test]
fn a_pause_that_was_not_meant_ends_with_the_first_thing_to_say() {
    let mut rig = Rig::ready(millis(5));
    rig.announce(Kind::PausePublication);
    rig.run_for(SECOND);
    rig.open(bytes(1, 100_000), Vec::new());
    rig.pump();
    let messages = rig.client.witness.messages();
    rig.run_for(millis(9));
    assert_eq!(rig.client.witness.messages(), messages, "one asks for all");
    rig.run_loads(SECOND);
    assert_eq!(told(&rig), [Event::Paused, Event::Resumed]);
}

/// A download from an agent as the official one, cut in its midst for that long; and how much had come before.
fn cut_download(length: usize, told: Told, outage: Duration) -> (Rig, usize) {
    let mut rig = Rig::ready_with(Network::perfect(millis(10)), Agent::stock());
    let id = rig.open(b"get".to_vec(), bytes(1, length));
    rig.run_for(SECOND);
    rig.act(Act::Cut(told));
    rig.run_for(outage);
    rig.act(Act::Attach);
    let got = rig.loads[&id].got_down.len();
    assert!((700_000..900_000).contains(&got), "{got} bytes before the cut");
    (rig, got)
}

#[test]
fn must_hold_a_transfer_goes_on_after_an_outage_and_loses_nothing_where_the_agent_is_paused() {
    const LENGTH: usize = 4 << 20;
    for outage in [millis(500), SECOND * 5, MINUTE] {
        let (mut rig, before) = cut_download(LENGTH, Told::Pause, outage);
        let resumed = rig.now;
        rig.run_until(SECOND * 3, "new bytes", |rig| {
            rig.loads.values().any(|load| load.got_down.len() > before)
        });
        // The agent makes 838 messages of 1,024 bytes a second, and sends what the cut swallowed again at 10 a second.
        rig.run_loads(SECOND * 6);
        assert!(rig.now - resumed > SECOND * 3, "its pace is kept");
        assert_eq!(told(&rig), [], "{outage:?}");
    }
}

#[test]
fn must_hold_an_outage_that_the_agent_was_not_told_of_is_answered_by_the_end_of_the_session_in_seconds() {
    for outage in [SECOND * 5, MINUTE] {
        let (mut rig, _) = cut_download(64 << 20, Told::Nothing, outage);
        rig.run_until(SECOND * 5, "the end", |rig| !told(rig).is_empty());
        let [Event::Ended(End::Hole { missing })] = told(&rig)[..] else {
            panic!("{outage:?}: {:?}", told(&rig));
        };
        assert!((3_000..=10_000).contains(&missing), "{outage:?}: {missing}");
    }
}

#[test]
fn a_short_outage_that_the_agent_was_not_told_of_is_waited_for() {
    let (mut rig, before) = cut_download(4 << 20, Told::Nothing, millis(250));
    rig.run_for(SECOND * 10);
    let more = rig.loads.values().next().unwrap().got_down.len() - before;
    assert!(
        (90 << 10..=100 << 10).contains(&more),
        "{more} bytes at 10 messages a second"
    );
    rig.run_loads(MINUTE);
    assert_eq!(told(&rig), []);
}

#[test]
fn a_hole_that_the_agent_never_fills_ends_the_session_however_small_it_is() {
    let mut rig = Rig::ready(millis(10));
    let beyond = rig.agent.witness.messages() as u64 + 1;
    let began = rig.now;
    while told(&rig).is_empty() {
        assert!(rig.now - began < MINUTE * 2, "it is waited for in vain");
        let frame = data_message(Kind::OutputStreamData, beyond, PayloadType::Output, "x".into());
        rig.client.session.handle_frame(frame, rig.now).unwrap();
        while rig.client.session.poll_transmit(rig.now).is_some() {}
        rig.client
            .events
            .extend(std::iter::from_fn(|| rig.client.session.poll_event()));
        rig.now += SECOND;
    }
    assert!(rig.now - began > MINUTE);
    assert_eq!(told(&rig), [Event::Ended(End::Hole { missing: 1 })]);
}

#[test]
fn an_agent_that_sends_everything_again_makes_no_hopeless_hole() {
    for outage in [SECOND, SECOND * 20] {
        let mut rig = Rig::ready_with(Network::perfect(millis(50)), Agent::fast(Framing::Fitted));
        let small = 2 << 20;
        for seed in 0..8 {
            rig.open(b"get".to_vec(), bytes(seed, small));
        }
        rig.run_for(millis(150));
        rig.act(Act::Cut(Told::Nothing));
        rig.run_for(outage);
        rig.act(Act::Attach);
        rig.run_loads(MINUTE);
        assert_eq!(told(&rig), []);
    }
}

#[test]
fn the_time_of_an_outage_says_nothing_of_how_fast_a_hole_is_filled() {
    let mut rig = Rig::ready_with(Network::perfect(millis(10)), Agent::fast(Framing::Fitted));
    rig.agent.witness.window = None;
    let id = rig.open(b"get".to_vec(), Vec::new());
    rig.run_loads(SECOND);
    // One message is lost, and hundreds of small ones come after it.
    let trickle = |rig: &mut Rig, count: usize| {
        for seed in 0..count {
            rig.loads
                .get_mut(&id)
                .unwrap()
                .down
                .extend(bytes(seed as u64, 10));
            rig.pump();
        }
    };
    rig.network.loss = 1.0;
    trickle(&mut rig, 400);
    rig.network.loss = 0.0;
    trickle(&mut rig, 400);
    rig.run_for(millis(11));
    rig.act(Act::Cut(Told::Pause));
    rig.run_for(MINUTE);
    rig.act(Act::Attach);
    rig.run_for(SECOND * 10);
    assert_eq!(told(&rig), []);
    rig.run_loads(MINUTE);
}

#[test]
fn a_session_is_kept_alive_only_where_that_was_asked_for() {
    let nops = |keep_alive| {
        let mut options = clock::client();
        options.keep_alive = keep_alive;
        let network = Network::perfect(millis(5));
        let mut rig = Rig::with_client(1, network, options, Agent::fast(Framing::Fitted));
        rig.begin();
        rig.run_for(MINUTE * 60 + SECOND);
        assert_eq!(rig.agent.witness.pieces, []);
        rig.client.witness.pieces
    };
    assert_eq!(nops(None), []);
    assert_eq!(nops(Some(MINUTE * 10)), vec![Piece::Nop; 6]);
}

#[test]
fn an_agent_that_may_close_idle_sessions_hears_from_the_client_every_ten_seconds() {
    for (version, count) in [("3.1.1511.0", 6), ("3.1.1512.0", 0)] {
        let agent = Agent::fast(Framing::Fitted).with_version(version);
        let mut rig = Rig::new(1, Network::perfect(millis(5)), agent);
        rig.agent.witness.silent_on_duplicates = true;
        rig.begin();
        rig.run_for(MINUTE + SECOND);
        assert_eq!(rig.client.witness.pieces, vec![Piece::Nop; count], "{version}");
        assert_eq!(rig.agent.witness.pieces, vec![Piece::Nop; count], "{version}");
        assert_eq!(told(&rig), []);
    }
}

#[test]
fn an_agent_too_old_to_forward_to_a_host_is_told_so_and_connects_to_nothing() {
    for (version, host, refused) in [
        ("3.1.1187.0", "db.internal", true),
        ("3.1.1188.0", "db.internal", false),
        ("3.1.1187.0", "", false),
    ] {
        let agent = Agent::fast(Framing::Fitted)
            .with_version(version)
            .with_property("host", host);
        let mut rig = Rig::new(1, Network::perfect(millis(5)), agent);
        rig.agent.witness.silent_on_duplicates = true;
        rig.act(Act::Attach);
        rig.run_for(SECOND);
        if !refused {
            assert!(rig.is_ready(), "{version} {host}");
            continue;
        }
        let too_old = HandshakeError::AgentTooOld(version.to_owned());
        assert_eq!(rig.client.events, [Event::Ended(End::Handshake(too_old.clone()))]);
        assert_eq!(rig.client.session.open(rig.now), None);
        let [Event::Ended(End::Handshake(HandshakeError::Refused { action, error }))] = &rig.agent.events[..]
        else {
            panic!("{:?}", rig.agent.events);
        };
        assert_eq!((action.as_str(), error), ("SessionType", &too_old.to_string()));
    }
}
