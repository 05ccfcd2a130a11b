//! The keys that sign requests: the configured one, and those that AssumeRole lent.

use std::collections::HashMap;
use std::iter;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::config::Config;

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
    keys: Mutex<HashMap<String, Key>>,
}

impl Keys {
    pub(crate) fn new(config: &Config) -> Self {
        let caller = Caller {
            arn: format!("arn:aws:iam::{}:user/emulator", config.account),
            user_id: "AIDAEMULATOR0000000".to_owned(),
        };
        let key = Key {
            secret: config.credentials.secret_access_key.clone(),
            session_token: config.credentials.session_token.clone(),
            expires: None,
            caller,
        };
        Self {
            account: config.account.clone(),
            keys: Mutex::new(HashMap::from([(config.credentials.access_key_id.clone(), key)])),
        }
    }

    /// Returns the key of an access key id.
    pub(crate) fn find(&self, access_key_id: &str) -> Option<Key> {
        self.lock().get(access_key_id).cloned()
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
        if keys.len() > MOST_TEMPORARY_KEYS {
            let temporary = keys.iter().filter_map(|(id, key)| Some((key.expires?, id)));
            if let Some(first) = temporary.min().map(|(_, id)| id.clone()) {
                keys.remove(&first);
            }
        }
        keys.insert(access_key_id.clone(), key.clone());
        (access_key_id, key)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
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
}
