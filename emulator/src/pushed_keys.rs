//! Public keys that were pushed to instances: each lets one user log in, any number of times, until it expires.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Most keys that are kept; the oldest makes room. A caller that pushes one for each of a thousand connections in a
/// minute is a test of something else.
const MOST_KEYS: usize = 1000;

/// Every key that was pushed and has not expired, oldest first.
#[derive(Default)]
pub(crate) struct PushedKeys(Mutex<Vec<PushedKey>>);

struct PushedKey {
    instance: String,
    user: String,
    key: String,
    expires: Instant,
}

impl PushedKeys {
    /// Keeps a key, a line as of `authorized_keys`.
    pub(crate) fn push(&self, instance: &str, user: &str, key: &str, expires: Instant) {
        let mut keys = self.live();
        if keys.len() == MOST_KEYS {
            keys.remove(0);
        }
        keys.push(PushedKey {
            instance: instance.to_owned(),
            user: user.to_owned(),
            key: key.trim_end().to_owned(),
            expires,
        });
    }

    /// Returns the keys by which a user can log in at this moment.
    pub(crate) fn of(&self, instance: &str, user: &str) -> Vec<String> {
        self.live()
            .iter()
            .filter(|key| key.instance == instance && key.user == user)
            .map(|key| key.key.clone())
            .collect()
    }

    fn live(&self) -> MutexGuard<'_, Vec<PushedKey>> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        keys.retain(|key| key.expires > now);
        keys
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_key_is_for_one_user_of_one_instance_and_a_minute() {
        let keys = PushedKeys::default();
        keys.push("i-1", "admin", "ssh-ed25519 A\n", Instant::now() + MINUTE);
        tokio::time::advance(MINUTE / 2).await;
        keys.push("i-1", "admin", "ssh-ed25519 B", Instant::now() + MINUTE);
        assert_eq!(keys.of("i-1", "admin"), ["ssh-ed25519 A", "ssh-ed25519 B"]);
        assert!(keys.of("i-1", "root").is_empty() && keys.of("i-2", "admin").is_empty());
        tokio::time::advance(MINUTE / 2).await;
        assert_eq!(keys.of("i-1", "admin"), ["ssh-ed25519 B"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_too_many_makes_room() {
        let keys = PushedKeys::default();
        for number in 0..=MOST_KEYS {
            keys.push("i-1", "admin", &number.to_string(), Instant::now() + MINUTE);
        }
        let kept = keys.of("i-1", "admin");
        assert_eq!((kept.len(), kept[0].as_str()), (MOST_KEYS, "1"));
    }
}
