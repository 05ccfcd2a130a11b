use proptest::prelude::*;

use super::*;
use crate::failure::Reason;

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

impl Rig {
    fn new() -> Self {
        Self {
            machine: Lifecycle::new(fastrand::Rng::with_seed(7)),
            now: Instant::now(),
        }
    }

    fn up() -> Self {
        let mut rig = Self::new();
        rig.tell(Event::Up);
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
    assert_eq!(rig.tell(Event::Up), [Action::Connect, Action::Publish]);
    assert!(matches!(rig.machine.state(), State::Connecting { attempt: 1 }));
    assert_eq!(rig.tell(Event::Connected), [Action::Publish]);
    assert!(matches!(rig.machine.state(), State::Up { .. }));
}

#[test]
fn up_leaves_a_tunnel_that_is_up_alone() {
    let mut rig = Rig::up();
    assert_eq!(rig.tell(Event::Up), []);
}

#[test]
fn down_is_honoured_while_connecting() {
    let mut rig = Rig::new();
    rig.tell(Event::Up);
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
    rig.tell(Event::Up);
    for number in 1..=5 {
        assert!(matches!(rig.machine.state(), State::Connecting { attempt } if *attempt == number));
        rig.tell(Event::Lost(retry()));
        assert!(matches!(rig.machine.state(), State::Waiting { attempt, .. } if *attempt == number));
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
        assert!(matches!(rig.machine.state(), State::Waiting { attempt, .. } if *attempt == number));
        rig.wait_for_timer();
        rig.tell(Event::Connected);
    }
}

#[test]
fn a_link_that_lasted_counts_attempts_from_zero() {
    let mut rig = Rig::new();
    rig.tell(Event::Up);
    for _ in 0..6 {
        rig.tell(Event::Lost(retry()));
        rig.wait_for_timer();
    }
    rig.tell(Event::Connected);
    rig.wait(LASTING);
    assert_eq!(rig.tell(Event::Lost(retry())), [Action::Release, Action::Publish]);
    assert!(matches!(rig.machine.state(), State::Waiting { attempt: 0, .. }));
    rig.wait_for_timer();
    assert!(matches!(rig.machine.state(), State::Connecting { attempt: 1 }));
}

#[test]
fn a_far_end_that_asks_for_time_gets_it() {
    let mut rig = Rig::new();
    rig.tell(Event::Up);
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
    assert_eq!(rig.tell(Event::Lost(retry())), [Action::Release, Action::Publish]);
    assert!(matches!(rig.machine.state(), State::Waiting { .. }));
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
        [Action::Release, Action::Publish]
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
    rig.tell(Event::Up);
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
fn a_missing_login_is_tried_again_on_up_and_on_reload() {
    for event in [Event::Up, Event::Reloaded] {
        let mut rig = Rig::new();
        rig.tell(Event::Up);
        rig.tell(Event::Lost(login()));
        assert_eq!(rig.tell(event), [Action::Connect, Action::Publish]);
    }
}

#[test]
fn credentials_do_not_mend_what_they_did_not_block() {
    let mut rig = Rig::new();
    rig.tell(Event::Up);
    rig.tell(Event::Lost(failure(Remedy::Fix)));
    assert_eq!(rig.tell(Event::CredentialsChanged), []);
}

#[test]
fn what_a_person_must_fix_is_tried_every_five_minutes() {
    let mut rig = Rig::new();
    rig.tell(Event::Up);
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
    assert_eq!(rig.tell(Event::Up), [Action::Connect, Action::Publish]);
}

#[test]
fn reload_wakes_nothing_that_is_down_up_or_waiting() {
    assert_eq!(Rig::new().tell(Event::Reloaded), []);
    let mut rig = Rig::up();
    assert_eq!(rig.tell(Event::Reloaded), []);
    rig.tell(Event::Lost(retry()));
    assert_eq!(rig.tell(Event::Reloaded), []);
}

#[derive(Debug, Clone)]
enum Step {
    Tell(Event),
    Wait(Duration),
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
        Just(Event::Up),
        Just(Event::Down),
        Just(Event::Connected),
        Just(Event::Recovered),
        Just(Event::CredentialsChanged),
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
    fn attempts_and_links_never_overlap(steps in proptest::collection::vec(step(), 1..80), seed: u64) {
        let mut machine = Lifecycle::new(fastrand::Rng::with_seed(seed));
        let mut now = Instant::now();
        let (mut attempting, mut linked) = (false, false);
        for step in steps {
            let before = machine.state().clone();
            match step {
                Step::Tell(event) => machine.handle(event, now),
                Step::Wait(duration) => {
                    now += duration;
                    machine.handle_timeout(now);
                }
            }
            if matches!(before, State::Connecting { .. }) {
                // The driver's attempt ended with the event that ended the state.
                attempting = matches!(machine.state(), State::Connecting { .. } | State::Down);
                linked = matches!(machine.state(), State::Up { .. });
            }
            while let Some(action) = machine.poll_action() {
                match action {
                    Action::Connect => {
                        prop_assert!(!attempting && !linked, "connects beside an attempt or a link");
                        attempting = true;
                    }
                    Action::Release => {
                        prop_assert!(linked, "lets go of a link that it does not have");
                        linked = false;
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
                State::Down | State::Connecting { .. } | State::Up { .. } | State::Resuming { .. } => {
                    prop_assert_eq!(machine.poll_timeout(), None);
                }
                State::Waiting { until, .. } => prop_assert!(*until >= now - Duration::from_secs(400)),
                State::Blocked { ends, .. } => {
                    prop_assert_eq!(machine.poll_timeout().is_none(), *ends == Ends::Login);
                }
            }
        }
        machine.handle(Event::Down, now);
        prop_assert!(matches!(machine.state(), State::Down));
        prop_assert_eq!(machine.poll_timeout(), None);
    }
}
