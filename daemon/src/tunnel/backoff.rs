//! How long to wait before the next attempt: doubling, bounded and jittered. Pure: randomness comes in.

use std::time::Duration;

use crate::failure::Remedy;

/// The longest wait before the first new attempt: a person does not notice it, and a socket that AWS closed on the
/// hour is back before a query times out.
const FIRST: Duration = Duration::from_millis(250);

/// The longest wait that doubling leads to: after a night without a network, a tunnel is back within half a minute.
const LONGEST: Duration = Duration::from_secs(30);

/// The most that a far end can make us wait: a wrong or hostile figure must not park a tunnel for days.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// Doublings after which [`LONGEST`] is reached for certain (250 ms · 2⁷ = 32 s); keeps the shift small.
const DOUBLINGS: u32 = 7;

/// Returns how long to wait after `failures` failed attempts in a row, the last of which has this remedy.
///
/// The wait lies between half and all of its ceiling, so that tunnels lost together do not return together. What a
/// far end asked for is a minimum: the wait comes on top of it.
pub(crate) fn delay(failures: u32, remedy: &Remedy, random: &mut fastrand::Rng) -> Duration {
    let ceiling = (FIRST * (1 << failures.min(DOUBLINGS))).min(LONGEST);
    let jittered = ceiling.mul_f64(0.5 + random.f64() / 2.0);
    match remedy {
        Remedy::RetryAfter(asked) => (*asked).min(LONGEST_ASKED) + jittered,
        Remedy::Retry | Remedy::Login { .. } | Remedy::Fix => jittered,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_wait_lies_between_half_and_all_of_its_ceiling(failures: u32, seed: u64) {
            let ceiling = (FIRST * 2_u32.pow(failures.min(20))).min(LONGEST);
            let wait = delay(failures, &Remedy::Retry, &mut fastrand::Rng::with_seed(seed));
            prop_assert!(wait >= ceiling / 2 && wait <= ceiling, "{wait:?} of {ceiling:?}");
        }

        #[test]
        fn what_the_far_end_asked_for_is_a_minimum(failures: u32, seed: u64, asked in 0..300_u64) {
            let asked = Duration::from_secs(asked);
            let wait = delay(failures, &Remedy::RetryAfter(asked), &mut fastrand::Rng::with_seed(seed));
            prop_assert!(wait >= asked && wait <= asked + LONGEST);
        }
    }

    #[test]
    fn waits_differ_between_tunnels() {
        let wait = |seed| delay(7, &Remedy::Retry, &mut fastrand::Rng::with_seed(seed));
        assert_ne!(wait(1), wait(2));
    }

    #[test]
    fn a_far_end_cannot_park_a_tunnel_for_days() {
        let wait = delay(
            0,
            &Remedy::RetryAfter(Duration::MAX),
            &mut fastrand::Rng::with_seed(1),
        );
        assert!(wait <= LONGEST_ASKED + LONGEST);
    }
}
