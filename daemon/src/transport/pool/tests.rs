use proptest::prelude::*;

use super::census::MOST_EXTRA;
use super::*;

const LIMITS: PoolSize = PoolSize { min: 1, max: 4 };
const HALF_AN_HOUR: Duration = Duration::from_secs(30 * 60);

/// A pool, its clock, and what it asked for.
struct Rig {
    pool: Pool,
    now: Instant,
    placed: Vec<(Ticket, Member)>,
    started: Vec<Member>,
    /// How much each of them was needed.
    needs: Vec<Need>,
    retired: Vec<Member>,
    refused: Vec<Ticket>,
    draining: Vec<Member>,
}

impl Rig {
    fn new(limits: PoolSize) -> Self {
        let mut rig = Self {
            pool: Pool::new(limits),
            now: Instant::now(),
            placed: Vec::new(),
            started: Vec::new(),
            needs: Vec::new(),
            retired: Vec::new(),
            refused: Vec::new(),
            draining: Vec::new(),
        };
        rig.perform();
        rig
    }

    /// A pool with one session that is ready.
    fn ready(limits: PoolSize) -> (Self, Member) {
        let mut rig = Self::new(limits);
        let first = rig.started[0];
        rig.starts(first);
        (rig, first)
    }

    fn perform(&mut self) {
        while let Some(action) = self.pool.poll_action() {
            match action {
                Action::Start(member, need) => {
                    self.started.push(member);
                    self.needs.push(need);
                }
                Action::Place(ticket, member) => self.placed.push((ticket, member)),
                Action::Retire(member) => self.retired.push(member),
                Action::Refuse(ticket) => self.refused.push(ticket),
                Action::Drain(member) => self.draining.push(member),
            }
        }
    }

    fn open(&mut self) -> Ticket {
        let ticket = self.pool.open(self.now);
        self.perform();
        ticket
    }

    fn starts(&mut self, member: Member) {
        self.pool.started(member, Sharing::Shared, None, self.now);
        self.perform();
    }

    /// Starts one that its route cuts after an hour, and that is to be replaced after half of it.
    fn starts_for_an_hour(&mut self, member: Member) {
        let replace_at = Some(self.now + HALF_AN_HOUR);
        self.pool.started(member, Sharing::Shared, replace_at, self.now);
        self.perform();
    }

    fn last_started(&self) -> Member {
        *self.started.last().unwrap()
    }

    fn fails(&mut self, member: Member) {
        self.pool.failed(member, Hindrance::Passing, self.now);
        self.perform();
    }

    fn fails_for_a_login(&mut self, member: Member) {
        self.pool.failed(member, Hindrance::Login, self.now);
        self.perform();
    }

    fn judge(&mut self, member: Member, fitness: Fitness) {
        self.pool.judge(member, fitness, self.now);
        self.perform();
    }

    fn stream_ends(&mut self, member: Member) {
        self.pool.stream_ended(member, self.now);
        self.perform();
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.pool.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.pool.handle_timeout(self.now);
            self.perform();
            assert!(
                self.pool.poll_timeout().is_none_or(|due| due > self.now),
                "a timeout stays due"
            );
        }
        self.now = until;
    }

    fn place_of(&self, ticket: Ticket) -> Option<Member> {
        self.placed
            .iter()
            .find(|(placed, _)| *placed == ticket)
            .map(|(_, member)| *member)
    }
}

#[test]
fn a_connection_gets_the_session_without_streams_and_the_next_one_is_made_ready() {
    let (mut rig, first) = Rig::ready(LIMITS);
    let ticket = rig.open();
    assert_eq!(rig.place_of(ticket), Some(first));
    assert_eq!(rig.started.len(), 2, "a spare");
    rig.starts(rig.started[1]);
    let ticket = rig.open();
    assert_eq!(rig.place_of(ticket), Some(rig.started[1]));
}

#[test]
fn connections_that_come_together_get_a_session_each_up_to_the_most() {
    let (mut rig, _) = Rig::ready(LIMITS);
    let tickets: Vec<_> = (0..6).map(|_| rig.open()).collect();
    assert_eq!(rig.started.len(), 4);
    // Nothing is to come for the last two.
    assert!(rig.place_of(tickets[4]).is_some() && rig.place_of(tickets[5]).is_some());
    for index in 1..rig.started.len() {
        rig.starts(rig.started[index]);
    }
    let mut own: Vec<_> = tickets[..4].iter().map(|ticket| rig.place_of(*ticket)).collect();
    own.sort();
    own.dedup();
    assert_eq!(own.len(), 4);
    assert!(own[0].is_some());
}

#[test]
fn beyond_the_most_the_least_loaded_session_is_taken() {
    let (mut rig, first) = Rig::ready(PoolSize { min: 1, max: 2 });
    rig.open();
    rig.starts(rig.started[1]);
    rig.open();
    rig.open();
    let second = rig.started[1];
    let loads = |rig: &Rig, member| rig.placed.iter().filter(|(_, placed)| *placed == member).count();
    assert_eq!(loads(&rig, first) + loads(&rig, second), 3);
    let fourth = rig.open();
    assert!(rig.place_of(fourth).is_some());
    assert_eq!((loads(&rig, first), loads(&rig, second)), (2, 2));
    assert_eq!(rig.started.len(), 2);
}

#[test]
fn a_session_that_does_not_come_in_time_is_not_waited_for() {
    let (mut rig, first) = Rig::ready(LIMITS);
    rig.open();
    let second = rig.open();
    rig.wait(PATIENCE - Duration::from_millis(1));
    assert_eq!(rig.place_of(second), None);
    rig.wait(Duration::from_millis(1));
    assert_eq!(rig.place_of(second), Some(first));
}

#[test]
fn a_session_that_fails_to_start_is_not_waited_for_and_not_hammered() {
    let (mut rig, first) = Rig::ready(LIMITS);
    rig.open();
    let second = rig.open();
    let third = rig.open();
    for index in 1..4 {
        rig.fails(rig.started[index]);
    }
    assert_eq!(rig.place_of(second), Some(first));
    assert_eq!(rig.place_of(third), Some(first));
    let before = rig.started.len();
    let fourth = rig.open();
    assert_eq!(rig.place_of(fourth), Some(first), "there is nothing to wait for");
    assert_eq!(rig.started.len(), before);
    rig.wait(Duration::from_secs(20));
    assert_eq!(rig.started.len(), before + 1, "one more attempt");
}

#[test]
fn sessions_without_streams_are_retired_but_for_a_spare_and_the_least() {
    let (mut rig, _) = Rig::ready(LIMITS);
    for _ in 0..3 {
        rig.open();
        for member in rig.started.clone() {
            if !rig.placed.iter().any(|(_, placed)| *placed == member) {
                rig.starts(member);
            }
        }
    }
    assert_eq!(rig.pool.running(), 4);
    let placed = rig.placed.clone();
    rig.stream_ends(placed[1].1);
    rig.stream_ends(placed[2].1);
    rig.wait(IDLE + Duration::from_secs(1));
    assert_eq!(rig.pool.running(), 2, "one with a stream, one spare");
    rig.stream_ends(placed[0].1);
    rig.wait(IDLE + Duration::from_secs(1));
    assert_eq!(rig.pool.running(), 1);
    rig.wait(IDLE * 10);
    assert_eq!(rig.pool.running(), 1);
}

#[test]
fn a_stalled_session_gets_no_streams_and_another_is_made() {
    let (mut rig, first) = Rig::ready(PoolSize { min: 1, max: 1 });
    rig.open();
    assert_eq!(rig.started.len(), 1, "no room for a spare");
    rig.judge(first, Fitness::Stalled);
    assert_eq!(rig.started.len(), 2);
    assert!(rig.pool.is_able());
    let second = rig.open();
    assert_eq!(rig.place_of(second), None);
    rig.starts(rig.started[1]);
    assert_eq!(rig.place_of(second), Some(rig.started[1]));
    rig.judge(first, Fitness::Fit);
    let third = rig.open();
    assert!(rig.place_of(third).is_some());
    assert_eq!(rig.started.len(), 2);
}

#[test]
fn while_all_sessions_are_brought_back_nobody_is_placed_and_none_is_started() {
    let (mut rig, first) = Rig::ready(LIMITS);
    rig.open();
    rig.starts(rig.started[1]);
    rig.judge(first, Fitness::Impaired);
    assert!(rig.pool.is_able());
    rig.judge(rig.started[1], Fitness::Impaired);
    assert!(!rig.pool.is_able());
    let before = rig.started.len();
    let ticket = rig.open();
    rig.wait(Duration::from_secs(10));
    assert_eq!(rig.place_of(ticket), None);
    assert_eq!(rig.started.len(), before);
    rig.judge(first, Fitness::Fit);
    rig.wait(PATIENCE);
    assert_eq!(rig.place_of(ticket), Some(first));
}

#[test]
fn the_least_is_kept_up_when_a_session_ends() {
    let mut rig = Rig::new(PoolSize { min: 2, max: 4 });
    assert_eq!(rig.started.len(), 1, "the first one shows whether any can be had");
    let first = rig.started[0];
    rig.starts(first);
    assert_eq!(rig.started.len(), 2);
    rig.starts(rig.started[1]);
    rig.pool.ended(first, rig.now);
    rig.perform();
    assert_eq!(rig.started.len(), 3);
}

#[test]
fn a_pool_that_loses_its_last_session_is_dead() {
    let (mut rig, first) = Rig::ready(LIMITS);
    rig.pool.ended(first, rig.now);
    rig.perform();
    assert!(rig.pool.is_dead());
    assert_eq!(rig.started.len(), 1, "its owner says what follows");
}

#[test]
fn a_connection_that_left_is_not_placed() {
    let (mut rig, first) = Rig::ready(LIMITS);
    rig.open();
    let second = rig.open();
    rig.pool.leave(second);
    rig.starts(rig.started[1]);
    rig.wait(PATIENCE);
    assert_eq!(rig.place_of(second), None);
    assert_eq!(rig.placed, [(rig.placed[0].0, first)]);
}

#[test]
fn where_a_session_carries_one_stream_each_connection_gets_its_own() {
    let mut rig = Rig::new(LIMITS);
    let first = rig.started[0];
    rig.pool.started(first, Sharing::Single, None, rig.now);
    rig.perform();
    assert_eq!(rig.retired, [first], "nothing is kept ready");
    assert!(rig.pool.is_able() && !rig.pool.is_dead());
    let tickets: Vec<_> = (0..6).map(|_| rig.open()).collect();
    let started = rig.started[1..].to_vec();
    assert_eq!(started.len(), 6, "more than are shared");
    rig.fails(started[0]);
    assert_eq!(rig.refused, [tickets[0]]);
    for member in &started[1..] {
        rig.pool.started(*member, Sharing::Single, None, rig.now);
        rig.perform();
    }
    assert_eq!(rig.placed.len(), 5);
    let (_, member) = rig.placed[0];
    rig.stream_ends(member);
    assert_eq!(rig.retired, [first, member]);
}

#[test]
fn a_session_that_will_be_cut_takes_streams_until_its_successor_is_proven() {
    let mut rig = Rig::new(LIMITS);
    let first = rig.last_started();
    rig.starts_for_an_hour(first);
    rig.wait(HALF_AN_HOUR);
    let successor = rig.last_started();
    assert_ne!(successor, first, "made when half of the time is over");
    let ticket = rig.open();
    assert_eq!(rig.place_of(ticket), Some(first));
    rig.starts_for_an_hour(successor);
    assert_eq!(rig.draining, [first]);
    let ticket = rig.open();
    assert_eq!(rig.place_of(ticket), Some(successor));
    assert!(!rig.retired.contains(&first), "the stream it has goes on");
    rig.stream_ends(first);
    assert_eq!(rig.retired, [first]);
}

#[test]
fn a_session_without_streams_ends_as_soon_as_it_is_replaced() {
    let mut rig = Rig::new(LIMITS);
    let mut present = rig.last_started();
    rig.starts_for_an_hour(present);
    for turns in 1..=24 {
        rig.wait(HALF_AN_HOUR);
        let former = present;
        present = rig.last_started();
        rig.starts_for_an_hour(present);
        assert_eq!(rig.retired.last(), Some(&former));
        assert_eq!((rig.retired.len(), rig.pool.running()), (turns, 1));
    }
}

#[test]
fn a_successor_may_be_one_more_than_the_most_and_what_drains_does_not_count() {
    let only = PoolSize { min: 1, max: 1 };
    let mut rig = Rig::new(only);
    let first = rig.last_started();
    rig.starts_for_an_hour(first);
    rig.open();
    rig.wait(HALF_AN_HOUR);
    let second = rig.last_started();
    rig.starts_for_an_hour(second);
    rig.open();
    rig.wait(HALF_AN_HOUR);
    let third = rig.last_started();
    rig.starts_for_an_hour(third);
    assert_eq!(rig.draining, [first, second]);
    let ticket = rig.open();
    assert_eq!(rig.place_of(ticket), Some(third));
    assert_eq!(rig.started.len(), 3, "and no spare beyond the most");
}

#[test]
fn a_successor_that_does_not_start_leaves_the_old_session_in_use_and_is_tried_again() {
    let mut rig = Rig::new(LIMITS);
    let first = rig.last_started();
    rig.starts_for_an_hour(first);
    rig.wait(HALF_AN_HOUR);
    rig.fails(rig.last_started());
    let ticket = rig.open();
    assert_eq!(rig.place_of(ticket), Some(first));
    rig.wait(FIRST_PAUSE);
    assert_eq!(rig.started.len(), 3);
    assert!(rig.draining.is_empty() && rig.pool.is_able());
}

#[test]
fn a_session_that_is_worn_out_is_replaced_like_one_that_will_be_cut() {
    let (mut rig, first) = Rig::ready(LIMITS);
    rig.open();
    rig.starts(rig.last_started());
    let spare = rig.last_started();
    rig.pool.wear_out(first, rig.now);
    rig.perform();
    assert_eq!(rig.draining, [first], "there is another one");
    rig.pool.wear_out(spare, rig.now);
    rig.perform();
    assert_eq!(rig.draining, [first], "there is none that is better");
    rig.starts(rig.last_started());
    assert_eq!(rig.draining, [first, spare]);
}

#[test]
fn the_least_and_successors_are_required_and_whatever_is_more_is_spare() {
    let mut rig = Rig::new(PoolSize { min: 2, max: 4 });
    rig.starts(rig.started[0]);
    rig.starts(rig.started[1]);
    for _ in 0..3 {
        rig.open();
    }
    assert_eq!(
        rig.needs,
        [Need::Required, Need::Required, Need::Spare, Need::Spare]
    );
    let mut rig = Rig::new(LIMITS);
    rig.starts_for_an_hour(rig.started[0]);
    rig.wait(HALF_AN_HOUR);
    assert_eq!(rig.needs, [Need::Required, Need::Required], "its successor");
}

#[test]
fn what_is_only_on_its_way_does_not_make_up_for_the_last_that_ended() {
    let mut rig = Rig::new(LIMITS);
    let first = rig.last_started();
    rig.starts_for_an_hour(first);
    rig.wait(HALF_AN_HOUR);
    assert!(rig.pool.is_able());
    rig.pool.ended(first, rig.now);
    rig.perform();
    assert!(!rig.pool.is_dead() && !rig.pool.is_able());
    rig.starts_for_an_hour(rig.last_started());
    assert!(rig.pool.is_able());
}

#[test]
fn a_session_that_is_asked_whether_it_lives_is_waited_for_and_not_replaced() {
    let (mut rig, first) = Rig::ready(LIMITS);
    rig.open();
    let spare = rig.last_started();
    rig.starts(spare);
    for member in [first, spare] {
        rig.judge(member, Fitness::Suspect);
    }
    assert!(rig.pool.is_able(), "nobody is told of the moment that it takes");
    let ticket = rig.open();
    assert_eq!(rig.place_of(ticket), None);
    assert_eq!(rig.started.len(), 2);
    rig.judge(spare, Fitness::Fit);
    assert_eq!(rig.place_of(ticket), Some(spare));
}

#[test]
fn a_session_that_does_not_answer_soon_gets_company() {
    let (mut rig, first) = Rig::ready(PoolSize { min: 1, max: 1 });
    rig.judge(first, Fitness::Suspect);
    let ticket = rig.open();
    rig.judge(first, Fitness::Stalled);
    let second = rig.last_started();
    assert_ne!(second, first);
    rig.starts(second);
    assert_eq!(rig.place_of(ticket), Some(second));
}

#[test]
fn no_session_is_started_without_a_login_until_there_is_one() {
    let (mut rig, first) = Rig::ready(LIMITS);
    rig.open();
    let spare = rig.last_started();
    rig.fails_for_a_login(spare);
    let started = rig.started.len();
    rig.wait(HALF_AN_HOUR);
    rig.pool.hurry(rig.now);
    rig.perform();
    assert_eq!(rig.started.len(), started, "AWS is not asked");
    let ticket = rig.open();
    rig.wait(PATIENCE);
    assert_eq!(rig.place_of(ticket), Some(first), "what there is is shared");
    rig.pool.log_in(rig.now);
    rig.perform();
    assert_eq!(rig.started.len(), started + 1);
}

#[test]
fn another_network_ends_the_pause_after_a_session_that_did_not_start() {
    let (mut rig, _) = Rig::ready(LIMITS);
    rig.open();
    rig.fails(rig.last_started());
    let started = rig.started.len();
    rig.pool.hurry(rig.now);
    rig.perform();
    assert_eq!(rig.started.len(), started + 1);
}

#[test]
fn a_network_that_changes_all_the_time_spares_what_gives_sessions() {
    let (mut rig, _) = Rig::ready(LIMITS);
    rig.open();
    for _ in 0..8 {
        // So that the pause is longer than that between two hurries.
        rig.fails(rig.last_started());
        rig.wait(LONGEST_PAUSE);
    }
    rig.fails(rig.last_started());
    let started = rig.started.len();
    rig.pool.hurry(rig.now);
    rig.perform();
    rig.fails(rig.last_started());
    for _ in 0..10 {
        rig.pool.hurry(rig.now);
        rig.perform();
    }
    assert_eq!(rig.started.len(), started + 1, "the first change counts");
    rig.wait(HURRY_AGAIN);
    assert_eq!(rig.started.len(), started + 2, "and those after it together");
}

#[derive(Debug, Clone)]
enum Step {
    Open,
    Started(usize),
    StartedForAnHour(usize),
    Failed(usize),
    Ended(usize),
    StreamEnded(usize),
    Judge(usize, usize),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Open),
        3 => any::<usize>().prop_map(Step::Started),
        1 => any::<usize>().prop_map(Step::StartedForAnHour),
        1 => any::<usize>().prop_map(Step::Failed),
        1 => any::<usize>().prop_map(Step::Ended),
        3 => any::<usize>().prop_map(Step::StreamEnded),
        1 => (any::<usize>(), 0..4_usize).prop_map(|(member, fitness)| Step::Judge(member, fitness)),
        2 => (0..90_000_u64).prop_map(Step::Wait),
        1 => (0..3_000_000_u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #[test]
    fn whatever_happens_the_limits_hold_and_nobody_is_forgotten(
        steps in steps(),
        min in 1..3_usize,
        more in 0..3_usize,
    ) {
        let limits = PoolSize { min, max: min + more };
        let (mut rig, _) = Rig::ready(limits);
        let mut tickets = Vec::new();
        for step in steps {
            if rig.pool.is_dead() {
                return Ok(());
            }
            let members: Vec<_> = rig.pool.members.keys().copied().collect();
            let member = |index: usize| members[index % members.len()];
            let is_starting = |rig: &Rig, member| matches!(rig.pool.members[&member], State::Starting);
            match step {
                Step::Open => tickets.push(rig.open()),
                Step::Started(index) if is_starting(&rig, member(index)) => rig.starts(member(index)),
                Step::StartedForAnHour(index) if is_starting(&rig, member(index)) => {
                    rig.starts_for_an_hour(member(index));
                }
                Step::Failed(index) if is_starting(&rig, member(index)) => rig.fails(member(index)),
                Step::Ended(index) if !is_starting(&rig, member(index)) => {
                    rig.pool.ended(member(index), rig.now);
                    rig.perform();
                }
                Step::StreamEnded(index) => rig.stream_ends(member(index)),
                Step::Judge(index, fitness) => {
                    let all = [Fitness::Fit, Fitness::Suspect, Fitness::Impaired, Fitness::Stalled];
                    let fitness = all[fitness];
                    rig.judge(member(index), fitness);
                }
                Step::Wait(milliseconds) => rig.wait(Duration::from_millis(milliseconds)),
                Step::Started(_) | Step::StartedForAnHour(_) | Step::Failed(_) | Step::Ended(_) => {}
            }
            // A stalled one that is well again may be one too many for a while.
            let extra = rig.pool.members.len() - rig.pool.counted();
            prop_assert!(rig.pool.members.len() <= limits.max + MOST_EXTRA + 1 + extra);
            let waiting = rig.pool.waiting.len();
            prop_assert_eq!(rig.placed.len() + waiting, tickets.len());
            let has_empty = rig.pool.empty().is_some();
            prop_assert!(waiting == 0 || !has_empty, "somebody waits beside an empty session");
        }
        // A session that is fit takes everybody in the end.
        if rig.pool.least_loaded().is_some() {
            rig.wait(PATIENCE);
            prop_assert!(rig.pool.waiting.is_empty());
        }
    }
}
