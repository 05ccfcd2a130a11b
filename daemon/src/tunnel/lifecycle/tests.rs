use proptest::prelude::*;

use super::*;
use crate::failure::Reason;
use crate::surroundings::HURRY_AGAIN;

fn failure(remedy: Remedy) -> Arc<Failure> {
    Arc::new(Failure::new(
        Reason::Unreachable,
        remedy,
        "cannot reach the target",
    ))
}

fn retry() -> Arc<Failure> {
    failure(Remedy::Retry)
}

fn login() -> Arc<Failure> {
    failure(Remedy::Login { profile: None })
}

/// A machine, its clock, and what it asked for.
struct Rig {
    machine: Lifecycle,
    now: Instant,
}

/// How long an on-demand tunnel of these tests keeps a link that nobody uses.
const IDLE_AFTER: Duration = Duration::from_secs(900);

const ON_DEMAND: Mode = Mode::OnDemand {
    idle_after: IDLE_AFTER,
};

impl Rig {
    fn new() -> Self {
        Self::of(Mode::Always)
    }

    fn of(mode: Mode) -> Self {
        let now = Instant::now();
        Self {
            machine: Lifecycle::new(mode, fastrand::Rng::with_seed(7), now),
            now,
        }
    }

    /// An on-demand tunnel that listens.
    fn idle() -> Self {
        let mut rig = Self::of(ON_DEMAND);
        rig.tell(Event::Up(Wish::Listen));
        rig
    }

    /// An on-demand tunnel with a link that a connection uses.
    fn used() -> Self {
        let mut rig = Self::idle();
        rig.tell(Event::Demand(Demand::Wait));
        rig.tell(Event::Connected);
        rig.tell(Event::Demand(Demand::Use));
        rig
    }

    fn up() -> Self {
        let mut rig = Self::new();
        rig.tell(Event::Up(Wish::Listen));
        rig.tell(Event::Connected);
        rig
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.machine.handle(event, self.now);
        self.actions()
    }

    fn wait(&mut self, duration: Duration) -> Vec<Action> {
        self.now += duration;
        self.machine.handle_timeout(self.now);
        self.actions()
    }

    fn wait_for_timer(&mut self) -> Vec<Action> {
        let due = self.machine.poll_timeout().expect("a timer");
        self.wait(due.saturating_duration_since(self.now))
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.machine.poll_action()).collect()
    }
}

#[test]
fn up_connects() {
    let mut rig = Rig::new();
    assert_eq!(
        rig.tell(Event::Up(Wish::Listen)),
        [Action::Connect, Action::Publish]
    );
    assert!(matches!(rig.machine.state(), State::Connecting { attempt: 1 }));
    assert_eq!(rig.tell(Event::Connected), [Action::Publish]);
    assert!(matches!(rig.machine.state(), State::Up { .. }));
}

#[test]
fn up_leaves_a_tunnel_that_is_up_alone() {
    let mut rig = Rig::up();
    assert_eq!(rig.tell(Event::Up(Wish::Listen)), []);
}

#[test]
fn down_is_honoured_while_connecting() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    assert_eq!(rig.tell(Event::Down), [Action::Disconnect, Action::Publish]);
    assert_eq!(
        rig.tell(Event::Connected),
        [],
        "an attempt that raced with `down` changes nothing"
    );
}

#[test]
fn failed_attempts_are_counted_and_tried_again() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    for number in 1..=5 {
        assert!(matches!(rig.machine.state(), State::Connecting { attempt } if *attempt == number));
        rig.tell(Event::Lost(retry()));
        assert!(matches!(rig.machine.state(), State::Waiting(Setback { attempt, .. }) if *attempt == number));
        assert_eq!(rig.wait(Duration::ZERO), [], "not before its time");
        assert_eq!(rig.wait_for_timer(), [Action::Connect, Action::Publish]);
    }
}

#[test]
fn a_far_end_that_accepts_and_drops_is_backed_off_from() {
    let mut rig = Rig::up();
    for number in 1..=5 {
        rig.wait(Duration::from_secs(1));
        rig.tell(Event::Lost(retry()));
        assert!(matches!(rig.machine.state(), State::Waiting(Setback { attempt, .. }) if *attempt == number));
        rig.wait_for_timer();
        rig.tell(Event::Connected);
    }
}

#[test]
fn a_link_that_lasted_counts_attempts_from_zero() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    for _ in 0..6 {
        rig.tell(Event::Lost(retry()));
        rig.wait_for_timer();
    }
    rig.tell(Event::Connected);
    rig.wait(LASTING);
    assert_eq!(
        rig.tell(Event::Lost(retry())),
        [Action::Release(Parting::Lost), Action::Publish]
    );
    assert!(matches!(
        rig.machine.state(),
        State::Waiting(Setback { attempt: 0, .. })
    ));
    rig.wait_for_timer();
    assert!(matches!(rig.machine.state(), State::Connecting { attempt: 1 }));
}

#[test]
fn a_far_end_that_asks_for_time_gets_it() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    rig.tell(Event::Lost(failure(Remedy::RetryAfter(Duration::from_secs(60)))));
    assert_eq!(rig.wait(Duration::from_secs(60)), []);
    assert_eq!(rig.wait_for_timer(), [Action::Connect, Action::Publish]);
}

#[test]
fn an_impaired_link_is_kept_and_comes_back() {
    let mut rig = Rig::up();
    assert_eq!(
        rig.tell(Event::Impaired(retry())),
        [Action::Publish],
        "neither released nor reconnected"
    );
    assert!(matches!(rig.machine.state(), State::Resuming { .. }));
    assert_eq!(
        rig.machine.poll_timeout(),
        None,
        "the transport mends it, in its own time"
    );
    assert_eq!(rig.tell(Event::Recovered), [Action::Publish]);
    assert!(matches!(rig.machine.state(), State::Up { .. }));
}

#[test]
fn an_impaired_link_that_is_lost_is_made_anew() {
    let mut rig = Rig::up();
    rig.tell(Event::Impaired(retry()));
    assert_eq!(
        rig.tell(Event::Lost(retry())),
        [Action::Release(Parting::Lost), Action::Publish]
    );
    assert!(matches!(rig.machine.state(), State::Waiting(_)));
}

#[test]
fn a_stream_that_cannot_be_opened_changes_no_state() {
    let mut rig = Rig::up();
    let refused = Failure::new(Reason::TargetRefused, Remedy::Retry, "connection refused").of_stream();
    assert_eq!(rig.tell(Event::OpenFailed(Arc::new(refused))), []);
    assert!(matches!(rig.machine.state(), State::Up { .. }));
}

#[test]
fn a_link_that_cannot_open_streams_is_let_go() {
    let mut rig = Rig::up();
    assert_eq!(
        rig.tell(Event::OpenFailed(login())),
        [Action::Release(Parting::Lost), Action::Publish]
    );
    assert!(matches!(
        rig.machine.state(),
        State::Blocked {
            ends: Ends::Login,
            ..
        }
    ));
}

#[test]
fn a_missing_login_asks_nothing_of_aws_until_credentials_change() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    rig.tell(Event::Lost(login()));
    assert_eq!(rig.machine.poll_timeout(), None);
    assert_eq!(rig.wait(Duration::from_secs(86_400)), []);
    assert_eq!(
        rig.tell(Event::CredentialsChanged),
        [Action::Connect, Action::Publish]
    );
    assert!(matches!(rig.machine.state(), State::Connecting { attempt: 1 }));
}

#[test]
fn an_on_demand_tunnel_without_a_login_asks_no_more_than_once() {
    let mut rig = Rig::idle();
    rig.tell(Event::Demand(Demand::Wait));
    rig.tell(Event::Demand(Demand::Nothing));
    rig.tell(Event::Lost(login()));
    assert!(matches!(
        rig.machine.state(),
        State::Blocked {
            ends: Ends::Login,
            ..
        }
    ));
    assert_eq!(rig.tell(Event::Demand(Demand::Wait)), []);
    rig.tell(Event::Demand(Demand::Nothing));
    rig.tell(Event::CredentialsChanged);
    assert!(matches!(rig.machine.state(), State::Idle { setback: None }));
}

#[test]
fn a_missing_login_is_tried_again_on_up_and_on_reload() {
    for event in [Event::Up(Wish::Listen), Event::Reloaded] {
        let mut rig = Rig::new();
        rig.tell(Event::Up(Wish::Listen));
        rig.tell(Event::Lost(login()));
        assert_eq!(rig.tell(event), [Action::Connect, Action::Publish]);
    }
}

#[test]
fn credentials_do_not_mend_what_they_did_not_block() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    rig.tell(Event::Lost(failure(Remedy::Fix)));
    assert_eq!(rig.tell(Event::CredentialsChanged), []);
}

#[test]
fn what_a_person_must_fix_is_tried_every_five_minutes() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    for _ in 0..3 {
        rig.tell(Event::Lost(failure(Remedy::Fix)));
        assert!(matches!(
            rig.machine.state(),
            State::Blocked {
                ends: Ends::Attempt(_),
                ..
            }
        ));
        assert_eq!(rig.wait(ATTEMPT_AGAIN - Duration::from_secs(1)), []);
        assert_eq!(
            rig.wait(Duration::from_secs(1)),
            [Action::Connect, Action::Publish]
        );
        assert!(matches!(rig.machine.state(), State::Connecting { attempt: 1 }));
    }
}

#[test]
fn a_taken_port_is_bound_again_until_it_is_free() {
    let mut rig = Rig::new();
    assert_eq!(rig.tell(Event::PortTaken(retry())), [Action::Publish]);
    for _ in 0..3 {
        assert_eq!(rig.wait(BIND_AGAIN), [Action::Bind]);
        assert!(matches!(
            rig.machine.state(),
            State::Blocked {
                ends: Ends::Bound(_),
                ..
            }
        ));
    }
    assert_eq!(rig.tell(Event::Reloaded), [Action::Bind]);
    assert_eq!(
        rig.tell(Event::Up(Wish::Listen)),
        [Action::Connect, Action::Publish]
    );
}

#[test]
fn reload_wakes_nothing_that_is_down_up_or_waiting() {
    assert_eq!(Rig::new().tell(Event::Reloaded), []);
    let mut rig = Rig::up();
    assert_eq!(rig.tell(Event::Reloaded), []);
    rig.tell(Event::Lost(retry()));
    assert_eq!(rig.tell(Event::Reloaded), []);
}

#[test]
fn an_on_demand_tunnel_connects_when_somebody_comes_and_not_before() {
    let mut rig = Rig::of(ON_DEMAND);
    assert_eq!(rig.tell(Event::Up(Wish::Listen)), [Action::Publish]);
    assert!(matches!(rig.machine.state(), State::Idle { setback: None }));
    assert_eq!(rig.machine.poll_timeout(), None);
    assert_eq!(rig.tell(Event::Up(Wish::Listen)), [], "it is as wanted");
    assert_eq!(
        rig.tell(Event::Demand(Demand::Use)),
        [],
        "the last stream of a link that was let go"
    );
    assert_eq!(
        rig.tell(Event::Demand(Demand::Wait)),
        [Action::Connect, Action::Publish]
    );
    assert!(matches!(rig.machine.state(), State::Connecting { attempt: 1 }));
}

#[test]
fn an_on_demand_tunnel_that_somebody_waits_for_already_connects_with_up() {
    let mut rig = Rig::of(ON_DEMAND);
    rig.tell(Event::Demand(Demand::Wait));
    assert_eq!(
        rig.tell(Event::Up(Wish::Listen)),
        [Action::Connect, Action::Publish]
    );
}

#[test]
fn a_link_without_a_connection_is_let_go_after_a_while() {
    let mut rig = Rig::used();
    assert_eq!(rig.machine.poll_timeout(), None, "it is in use");
    rig.wait(2 * IDLE_AFTER);
    rig.tell(Event::Demand(Demand::Nothing));
    assert_eq!(rig.wait(IDLE_AFTER - Duration::from_secs(1)), []);
    rig.tell(Event::Demand(Demand::Use));
    rig.tell(Event::Demand(Demand::Nothing));
    rig.tell(Event::Demand(Demand::Nothing));
    assert_eq!(
        rig.wait(IDLE_AFTER - Duration::from_secs(1)),
        [],
        "a connection begins the time anew"
    );
    assert_eq!(
        rig.wait(Duration::from_secs(1)),
        [Action::Release(Parting::Unused), Action::Publish]
    );
    assert!(matches!(rig.machine.state(), State::Idle { setback: None }));
}

#[test]
fn a_link_that_nobody_came_for_in_the_end_is_let_go_as_long_after_it_was_made() {
    let mut rig = Rig::idle();
    rig.tell(Event::Demand(Demand::Wait));
    rig.tell(Event::Demand(Demand::Nothing));
    rig.wait(IDLE_AFTER);
    rig.tell(Event::Connected);
    assert_eq!(rig.wait(IDLE_AFTER - Duration::from_secs(1)), []);
    assert_eq!(
        rig.wait(Duration::from_secs(1)),
        [Action::Release(Parting::Unused), Action::Publish]
    );
}

#[test]
fn an_impaired_link_without_a_connection_is_let_go_too() {
    let mut rig = Rig::used();
    rig.tell(Event::Impaired(retry()));
    rig.tell(Event::Demand(Demand::Nothing));
    assert_eq!(
        rig.wait(IDLE_AFTER),
        [Action::Release(Parting::Unused), Action::Publish]
    );
    assert!(matches!(rig.machine.state(), State::Idle { setback: None }));
}

#[test]
fn a_lost_link_that_nobody_waits_for_leaves_the_tunnel_idle() {
    for remedy in [Remedy::Retry, Remedy::Fix] {
        let mut rig = Rig::used();
        assert_eq!(
            rig.tell(Event::Lost(failure(remedy))),
            [Action::Release(Parting::Lost), Action::Publish],
            "the connections on it end with it"
        );
        assert!(matches!(rig.machine.state(), State::Idle { setback: Some(_) }));
        assert_eq!(rig.wait(Duration::from_secs(86_400)), []);
    }
}

#[test]
fn a_lost_link_that_somebody_waits_for_is_made_anew() {
    let mut rig = Rig::used();
    rig.tell(Event::Demand(Demand::Wait));
    rig.tell(Event::OpenFailed(retry()));
    assert!(matches!(rig.machine.state(), State::Waiting(_)));
    assert_eq!(rig.wait_for_timer(), [Action::Connect, Action::Publish]);
}

#[test]
fn a_failed_attempt_that_nobody_waits_for_any_more_leaves_the_tunnel_idle() {
    for remedy in [Remedy::Retry, Remedy::Fix] {
        let mut rig = Rig::idle();
        rig.tell(Event::Demand(Demand::Wait));
        rig.tell(Event::Demand(Demand::Nothing));
        assert_eq!(rig.tell(Event::Lost(failure(remedy))), [Action::Publish]);
        assert!(matches!(rig.machine.state(), State::Idle { setback: Some(_) }));
    }
}

#[test]
fn a_failed_attempt_that_somebody_waits_for_is_as_that_of_any_tunnel() {
    let mut rig = Rig::idle();
    rig.tell(Event::Demand(Demand::Wait));
    rig.tell(Event::Lost(retry()));
    assert_eq!(rig.wait_for_timer(), [Action::Connect, Action::Publish]);
    rig.tell(Event::Lost(login()));
    assert!(matches!(rig.machine.state(), State::Blocked { .. }));
}

#[test]
fn an_attempt_whose_time_comes_when_nobody_waits_any_more_is_not_made() {
    let mut rig = Rig::idle();
    rig.tell(Event::Demand(Demand::Wait));
    rig.tell(Event::Lost(retry()));
    rig.tell(Event::Demand(Demand::Nothing));
    assert_eq!(rig.wait_for_timer(), [Action::Publish]);
    assert!(matches!(
        rig.machine.state(),
        State::Idle {
            setback: Some(Setback { attempt: 1, .. })
        }
    ));
}

#[test]
fn whoever_comes_soon_after_a_setback_waits_as_the_next_attempt_would_have() {
    let mut rig = Rig::idle();
    for number in 1..=5 {
        rig.tell(Event::Demand(Demand::Wait));
        if number > 1 {
            assert!(matches!(rig.machine.state(), State::Waiting(_)));
            assert_eq!(rig.wait_for_timer(), [Action::Connect, Action::Publish]);
        }
        assert!(matches!(rig.machine.state(), State::Connecting { attempt } if *attempt == number));
        rig.tell(Event::Connected);
        rig.tell(Event::Demand(Demand::Use));
        rig.tell(Event::Lost(retry()));
    }
}

#[test]
fn a_setback_is_forgotten_after_a_while() {
    let setback = |rig: &mut Rig| {
        rig.tell(Event::Demand(Demand::Wait));
        rig.tell(Event::Demand(Demand::Nothing));
        rig.tell(Event::Lost(retry()));
        let State::Idle {
            setback: Some(setback),
        } = rig.machine.state()
        else {
            panic!("{:?}", rig.machine.state())
        };
        rig.now = setback.until;
    };
    let mut rig = Rig::idle();
    setback(&mut rig);
    rig.tell(Event::Demand(Demand::Wait));
    assert!(matches!(rig.machine.state(), State::Connecting { attempt: 2 }));

    let mut rig = Rig::idle();
    setback(&mut rig);
    rig.wait(LASTING);
    rig.tell(Event::Demand(Demand::Wait));
    assert!(matches!(rig.machine.state(), State::Connecting { attempt: 1 }));
}

#[test]
fn a_person_can_have_an_on_demand_tunnel_connected_at_once() {
    let mut rig = Rig::idle();
    rig.tell(Event::Demand(Demand::Wait));
    rig.tell(Event::Demand(Demand::Nothing));
    rig.tell(Event::Lost(retry()));
    assert_eq!(
        rig.tell(Event::Up(Wish::Connect)),
        [Action::Connect, Action::Publish],
        "no setback delays a person"
    );
    rig.tell(Event::Lost(retry()));
    assert!(
        matches!(rig.machine.state(), State::Waiting(_)),
        "the person waits"
    );
    assert_eq!(rig.wait_for_timer(), [Action::Connect, Action::Publish]);
    rig.tell(Event::Lost(login()));
    assert!(matches!(rig.machine.state(), State::Blocked { .. }));
    rig.tell(Event::Up(Wish::Connect));
    rig.tell(Event::Connected);
    rig.tell(Event::Lost(retry()));
    assert!(
        matches!(rig.machine.state(), State::Idle { .. }),
        "the wish was fulfilled"
    );
}

#[test]
fn a_wish_for_a_link_ends_with_down() {
    let mut rig = Rig::of(ON_DEMAND);
    rig.tell(Event::Up(Wish::Connect));
    assert!(matches!(rig.machine.state(), State::Connecting { attempt: 1 }));
    assert_eq!(rig.tell(Event::Down), [Action::Disconnect, Action::Publish]);
    rig.tell(Event::Up(Wish::Listen));
    assert!(matches!(rig.machine.state(), State::Idle { setback: None }));
    assert_eq!(rig.tell(Event::Down), [Action::Disconnect, Action::Publish]);
}

#[test]
fn what_blocked_an_on_demand_tunnel_ends_in_idle_unless_somebody_waits() {
    let blocked = |cause| {
        let mut rig = Rig::idle();
        rig.tell(Event::Demand(Demand::Wait));
        rig.tell(Event::Lost(cause));
        assert!(matches!(rig.machine.state(), State::Blocked { .. }));
        rig
    };
    for event in [
        Event::Up(Wish::Listen),
        Event::Reloaded,
        Event::CredentialsChanged,
    ] {
        let mut rig = blocked(login());
        assert_eq!(rig.tell(event.clone()), [Action::Connect, Action::Publish]);
        let mut rig = blocked(login());
        rig.tell(Event::Demand(Demand::Nothing));
        assert_eq!(rig.tell(event), [Action::Publish]);
        assert!(matches!(rig.machine.state(), State::Idle { setback: None }));
    }
    let mut rig = blocked(failure(Remedy::Fix));
    rig.tell(Event::Demand(Demand::Nothing));
    assert_eq!(rig.wait(ATTEMPT_AGAIN), [Action::Publish]);
    assert!(matches!(rig.machine.state(), State::Idle { setback: None }));
}

#[test]
fn a_taken_port_that_is_free_again_leaves_an_on_demand_tunnel_idle() {
    let mut rig = Rig::of(ON_DEMAND);
    rig.tell(Event::PortTaken(retry()));
    assert_eq!(rig.wait(BIND_AGAIN), [Action::Bind]);
    assert_eq!(rig.tell(Event::Up(Wish::Listen)), [Action::Publish]);
    assert!(matches!(rig.machine.state(), State::Idle { setback: None }));
}

#[test]
fn a_tunnel_that_is_always_connected_does_not_ask_who_is_there() {
    let mut rig = Rig::up();
    rig.tell(Event::Demand(Demand::Wait));
    rig.tell(Event::Demand(Demand::Nothing));
    assert_eq!(rig.wait(Duration::from_secs(86_400)), []);
    rig.tell(Event::Lost(retry()));
    assert!(matches!(rig.machine.state(), State::Waiting(_)));
}

#[test]
fn a_change_of_network_has_the_link_asked_for_a_sign_of_life() {
    let mut rig = Rig::up();
    assert_eq!(rig.tell(Event::NetworkChanged), [Action::Probe]);
    rig.tell(Event::Impaired(retry()));
    assert_eq!(
        rig.tell(Event::NetworkChanged),
        [Action::Probe],
        "to be resumed at once"
    );
}

#[test]
fn a_change_of_network_brings_the_next_attempt_forward() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    rig.tell(Event::Lost(retry()));
    assert_eq!(
        rig.tell(Event::NetworkChanged),
        [Action::Connect, Action::Publish]
    );
    assert!(matches!(rig.machine.state(), State::Connecting { attempt: 2 }));
    assert_eq!(
        rig.tell(Event::NetworkChanged),
        [],
        "the attempt under way is let be"
    );
}

#[test]
fn a_network_that_changes_again_and_again_hurries_no_more_than_so_often() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    // Long waits, as after many attempts.
    for _ in 0..10 {
        rig.tell(Event::Lost(retry()));
        rig.wait_for_timer();
    }
    const BURST: Duration = Duration::from_millis(900);
    let (began, mut attempts) = (rig.now, Vec::new());
    while rig.now < began + 4 * HURRY_AGAIN {
        rig.tell(Event::Lost(retry()));
        let mut actions = rig.tell(Event::NetworkChanged);
        if actions.contains(&Action::Connect) {
            attempts.push(rig.now);
        }
        actions = rig.wait(BURST);
        if actions.contains(&Action::Connect) {
            attempts.push(rig.now);
        }
    }
    // The timer is looked at with each change only.
    let too_soon = attempts
        .windows(2)
        .any(|pair| pair[1] - pair[0] + BURST < HURRY_AGAIN);
    assert!(attempts.len() >= 2 && !too_soon, "{attempts:?}");
}

#[test]
fn a_change_of_network_is_no_reason_to_ask_again_who_asked_for_time() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    rig.tell(Event::Lost(failure(Remedy::RetryAfter(Duration::from_secs(60)))));
    let due = rig.machine.poll_timeout();
    assert_eq!(rig.tell(Event::NetworkChanged), []);
    assert_eq!(rig.machine.poll_timeout(), due);
}

#[test]
fn a_change_of_network_may_mend_what_blocks_but_no_login_and_no_port() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    rig.tell(Event::Lost(failure(Remedy::Fix)));
    assert_eq!(
        rig.tell(Event::NetworkChanged),
        [Action::Connect, Action::Publish]
    );
    rig.tell(Event::Lost(login()));
    assert_eq!(rig.tell(Event::NetworkChanged), []);
    let mut rig = Rig::new();
    rig.tell(Event::PortTaken(retry()));
    assert_eq!(rig.tell(Event::NetworkChanged), []);
}

#[test]
fn a_change_of_network_connects_no_tunnel_that_nobody_needs() {
    let mut rig = Rig::idle();
    assert_eq!(rig.tell(Event::NetworkChanged), []);
    rig.tell(Event::Demand(Demand::Wait));
    rig.tell(Event::Lost(retry()));
    rig.tell(Event::Demand(Demand::Nothing));
    assert_eq!(rig.tell(Event::NetworkChanged), [Action::Publish]);
    assert!(matches!(rig.machine.state(), State::Idle { setback: Some(_) }));
}

#[test]
fn a_link_that_waits_for_a_login_is_kept_and_tries_again_with_other_credentials() {
    for event in [
        Event::CredentialsChanged,
        Event::Up(Wish::Listen),
        Event::Up(Wish::Connect),
        Event::Reloaded,
    ] {
        let mut rig = Rig::up();
        rig.tell(Event::Impaired(login()));
        assert!(matches!(
            rig.machine.state(),
            State::Resuming {
                mends: Mends::Login,
                ..
            }
        ));
        assert_eq!(rig.tell(event), [Action::Retry, Action::Publish]);
        assert!(matches!(
            rig.machine.state(),
            State::Resuming {
                mends: Mends::Transport,
                ..
            }
        ));
        rig.tell(Event::Impaired(login()));
        assert!(
            matches!(
                rig.machine.state(),
                State::Resuming {
                    mends: Mends::Login,
                    ..
                }
            ),
            "they were of no use"
        );
        assert_eq!(rig.tell(Event::Recovered), [Action::Publish]);
        assert!(matches!(rig.machine.state(), State::Up { .. }));
    }
}

#[test]
fn a_part_of_a_link_that_is_up_may_wait_for_a_login() {
    let mut rig = Rig::up();
    assert_eq!(rig.tell(Event::CredentialsChanged), [Action::Retry]);
}

#[test]
fn an_attempt_that_read_the_credentials_before_they_changed_is_made_once_more() {
    let mut rig = Rig::new();
    rig.tell(Event::Up(Wish::Listen));
    assert_eq!(rig.tell(Event::CredentialsChanged), []);
    assert_eq!(rig.tell(Event::Lost(login())), [Action::Connect, Action::Publish]);
    assert_eq!(rig.tell(Event::Lost(login())), [Action::Publish]);
    assert!(matches!(
        rig.machine.state(),
        State::Blocked {
            ends: Ends::Login,
            ..
        }
    ));
}

#[derive(Debug, Clone)]
enum Step {
    Tell(Event),
    Wait(Duration),
}

fn demand() -> impl Strategy<Value = Demand> {
    prop_oneof![Just(Demand::Nothing), Just(Demand::Use), Just(Demand::Wait)]
}

fn step() -> impl Strategy<Value = Step> {
    let remedy = prop_oneof![
        Just(Remedy::Retry),
        (0..600_u64).prop_map(|seconds| Remedy::RetryAfter(Duration::from_secs(seconds))),
        Just(Remedy::Login { profile: None }),
        Just(Remedy::Fix),
    ];
    let cause = (remedy, any::<bool>()).prop_map(|(remedy, of_stream)| {
        let failure = Failure::new(Reason::Unreachable, remedy, "cannot reach the target");
        Arc::new(if of_stream { failure.of_stream() } else { failure })
    });
    let event = prop_oneof![
        Just(Event::Up(Wish::Listen)),
        Just(Event::Up(Wish::Connect)),
        demand().prop_map(Event::Demand),
        Just(Event::Down),
        Just(Event::Connected),
        Just(Event::Recovered),
        Just(Event::CredentialsChanged),
        Just(Event::NetworkChanged),
        Just(Event::Reloaded),
        cause.clone().prop_map(Event::PortTaken),
        cause.clone().prop_map(Event::Lost),
        cause.clone().prop_map(Event::OpenFailed),
        cause.prop_map(Event::Impaired),
    ];
    prop_oneof![
        4 => event.prop_map(Step::Tell),
        1 => (0..400_000_u64).prop_map(|milliseconds| Step::Wait(Duration::from_millis(milliseconds))),
    ]
}

proptest! {
    /// Whatever happens in whatever order, also events that raced: the work asked for fits the state.
    #[test]
    fn attempts_and_links_never_overlap(
        mode in prop_oneof![Just(Mode::Always), Just(ON_DEMAND)],
        steps in proptest::collection::vec(step(), 1..80),
        seed: u64,
    ) {
        let mut now = Instant::now();
        let mut machine = Lifecycle::new(mode, fastrand::Rng::with_seed(seed), now);
        let (mut attempting, mut linked) = (false, false);
        let mut wanted = Demand::Nothing;
        for step in steps {
            let before = machine.state().clone();
            let attempt_ended = matches!(step, Step::Tell(Event::Lost(_)));
            match step {
                Step::Tell(event) => {
                    if let Event::Demand(demand) = event {
                        wanted = demand;
                    }
                    machine.handle(event, now);
                }
                Step::Wait(duration) => {
                    now += duration;
                    machine.handle_timeout(now);
                }
            }
            if matches!(before, State::Connecting { .. }) {
                // The driver's attempt ended with the event that ended the state.
                attempting =
                    !attempt_ended && matches!(machine.state(), State::Connecting { .. } | State::Down);
                linked = matches!(machine.state(), State::Up { .. });
            }
            while let Some(action) = machine.poll_action() {
                match action {
                    Action::Connect => {
                        prop_assert!(!attempting && !linked, "connects beside an attempt or a link");
                        attempting = true;
                    }
                    Action::Release(_) => {
                        prop_assert!(linked, "lets go of a link that it does not have");
                        linked = false;
                    }
                    Action::Probe | Action::Retry => {
                        prop_assert!(linked, "asks a link that it does not have");
                    }
                    Action::Disconnect => (attempting, linked) = (false, false),
                    Action::Bind => {
                        let bound_later = matches!(machine.state(), State::Blocked { ends: Ends::Bound(_), .. });
                        prop_assert!(bound_later, "binds in {:?}", machine.state());
                    }
                    Action::Publish => {}
                }
            }
            prop_assert_eq!(attempting, matches!(machine.state(), State::Connecting { .. }));
            prop_assert_eq!(linked, matches!(machine.state(), State::Up { .. } | State::Resuming { .. }));
            match machine.state() {
                State::Down | State::Connecting { .. } => prop_assert_eq!(machine.poll_timeout(), None),
                State::Idle { .. } => {
                    prop_assert_eq!(mode, ON_DEMAND);
                    prop_assert!(wanted != Demand::Wait, "somebody waits for nothing");
                    prop_assert_eq!(machine.poll_timeout(), None);
                }
                State::Up { .. } | State::Resuming { .. } => {
                    let ends = mode == ON_DEMAND && wanted == Demand::Nothing;
                    prop_assert_eq!(machine.poll_timeout().is_some(), ends);
                }
                State::Waiting(Setback { until, .. }) => prop_assert!(*until >= now - Duration::from_secs(400)),
                State::Blocked { ends, .. } => {
                    prop_assert_eq!(machine.poll_timeout().is_none(), *ends == Ends::Login);
                }
            }
        }
        machine.handle(Event::Down, now);
        prop_assert!(matches!(machine.state(), State::Down));
        prop_assert_eq!(machine.poll_timeout(), None);
    }

    /// Whatever else happens, nothing is asked of AWS for an on-demand tunnel that nobody wants to use.
    #[test]
    fn an_on_demand_tunnel_that_nobody_needs_makes_no_attempt(
        steps in proptest::collection::vec(step(), 1..80),
        seed: u64,
    ) {
        let mut now = Instant::now();
        let mut machine = Lifecycle::new(ON_DEMAND, fastrand::Rng::with_seed(seed), now);
        for step in steps {
            match step {
                Step::Tell(Event::Demand(Demand::Wait) | Event::Up(Wish::Connect)) => {}
                Step::Tell(event) => machine.handle(event, now),
                Step::Wait(duration) => {
                    now += duration;
                    machine.handle_timeout(now);
                }
            }
            while let Some(action) = machine.poll_action() {
                prop_assert!(action != Action::Connect, "connects in {:?}", machine.state());
            }
        }
    }
}
