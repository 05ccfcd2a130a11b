//! The keys that sign requests: the configured one or what it was replaced by, and those that AssumeRole lent.

use std::collections::HashMap;
use std::iter;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::config::{Config, Credentials};

/// Most temporary keys alive at once; the one that expires first makes room. A caller that renews each hour needs
/// two, so this is for a test that assumes roles in a loop.
const MOST_TEMPORARY_KEYS: usize = 1000;

/// Who signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) arn: String,
    pub(crate) user_id: String,
}

/// What belongs to one access key id. Holds secrets: no `Debug`.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) secret: String,
    pub(crate) session_token: Option<String>,
    pub(crate) expires: Option<SystemTime>,
    pub(crate) caller: Caller,
}

/// Every key the account knows, by access key id.
pub(crate) struct Keys {
    account: String,
    /// The long-term key that callers are to use.
    current: Mutex<Credentials>,
    keys: Mutex<HashMap<String, Key>>,
}

impl Keys {
    pub(crate) fn new(config: &Config) -> Self {
        let credentials = config.credentials.clone();
        let key = Key::long_term(&config.account, &credentials);
        Self {
            account: config.account.clone(),
            keys: Mutex::new(HashMap::from([(credentials.access_key_id.clone(), key)])),
            current: Mutex::new(credentials),
        }
    }

    /// Returns the long-term key that callers are to use.
    pub(crate) fn current(&self) -> Credentials {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces the long-term key; the one before has expired from now on. With a session token it is replaced by one
    /// that has another.
    pub(crate) fn rotate(&self, now: SystemTime) -> Credentials {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Credentials {
            access_key_id: format!(
                "{}{}",
                current.access_key_id.get(..4).unwrap_or("AKIA"),
                random(16).to_ascii_uppercase()
            ),
            secret_access_key: random(40),
            session_token: current
                .session_token
                .as_ref()
                .map(|_| format!("emulator+/{}==", random(120))),
        };
        let mut keys = self.lock();
        if let Some(key) = keys.get_mut(&current.access_key_id) {
            key.expires = Some(now);
        }
        make_room(&mut keys);
        keys.insert(next.access_key_id.clone(), Key::long_term(&self.account, &next));
        *current = next.clone();
        next
    }

    /// Returns the key of an access key id.
    pub(crate) fn find(&self, access_key_id: &str) -> Option<Key> {
        self.lock().get(access_key_id).cloned()
    }

    /// Returns what must not be shown of every key.
    pub(crate) fn secrets(&self) -> Vec<String> {
        self.lock()
            .values()
            .flat_map(|key| iter::once(&key.secret).chain(&key.session_token))
            .cloned()
            .collect()
    }

    /// Lends a temporary key to whoever takes on a role; returns its access key id too.
    pub(crate) fn lend(
        &self,
        role: &str,
        session: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> (String, Key) {
        let access_key_id = format!("ASIA{}", random(16).to_ascii_uppercase());
        let key = Key {
            secret: random(40),
            session_token: Some(format!("emulator+/{}==", random(120))),
            expires: Some(now + lifetime),
            caller: Caller {
                arn: format!("arn:aws:sts::{}:assumed-role/{role}/{session}", self.account),
                user_id: format!("AROAEMULATOR0000000:{session}"),
            },
        };
        let mut keys = self.lock();
        make_room(&mut keys);
        keys.insert(access_key_id.clone(), key.clone());
        (access_key_id, key)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Key {
    fn long_term(account: &str, credentials: &Credentials) -> Self {
        Self {
            secret: credentials.secret_access_key.clone(),
            session_token: credentials.session_token.clone(),
            expires: None,
            caller: Caller {
                arn: format!("arn:aws:iam::{account}:user/emulator"),
                user_id: "AIDAEMULATOR0000000".to_owned(),
            },
        }
    }
}

/// Forgets the key that expires first, if there are too many.
fn make_room(keys: &mut HashMap<String, Key>) {
    if keys.len() > MOST_TEMPORARY_KEYS {
        let temporary = keys.iter().filter_map(|(id, key)| Some((key.expires?, id)));
        if let Some(first) = temporary.min().map(|(_, id)| id.clone()) {
            keys.remove(&first);
        }
    }
}

/// Returns so many random letters and digits. They guard nothing real.
pub(crate) fn random(length: usize) -> String {
    iter::repeat_with(fastrand::alphanumeric).take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_keys_are_bounded_and_never_push_out_the_configured_one() {
        let config = Config::parse("").expect("defaults");
        let keys = Keys::new(&config);
        let (first, _) = keys.lend("r", "s", Duration::from_secs(1), SystemTime::UNIX_EPOCH);
        for second in 2..MOST_TEMPORARY_KEYS as u64 + 10 {
            keys.lend("r", "s", Duration::from_secs(second), SystemTime::UNIX_EPOCH);
        }
        assert_eq!(keys.lock().len(), MOST_TEMPORARY_KEYS + 1);
        assert!(keys.find(&first).is_none());
        assert!(keys.find(&config.credentials.access_key_id).is_some());
    }

    #[test]
    fn a_rotated_key_is_known_and_expired_and_its_successor_is_of_the_same_sort() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let config = Config::parse(
            "[credentials]\naccess_key_id = \"ASIAFIRST\"\nsecret_access_key = \"s\"\nsession_token = \"t\"",
        )
        .expect("a good configuration");
        let keys = Keys::new(&config);
        let next = keys.rotate(now);
        assert_eq!(keys.find("ASIAFIRST").expect("known").expires, Some(now));
        assert!(next.access_key_id.starts_with("ASIA") && next.session_token.is_some());
        assert!(
            keys.find(&next.access_key_id)
                .is_some_and(|key| key.expires.is_none())
        );
        assert_eq!(keys.current().access_key_id, next.access_key_id);
    }
}
