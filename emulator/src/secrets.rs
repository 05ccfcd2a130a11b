//! What nobody may show: the tokens that were handed out and the signatures that were taken, for a test that looks for
//! them where they must not be.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Most secrets that are kept, the latest ones: an hour of load makes fewer, and a demo that runs for days must not grow.
const MOST_SECRETS: usize = 10_000;

/// The latest secrets. No `Debug`.
#[derive(Default)]
pub(crate) struct Secrets(Mutex<VecDeque<String>>);

impl Secrets {
    /// Takes note of a secret.
    pub(crate) fn note(&self, secret: &str) {
        let mut secrets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if secrets.len() == MOST_SECRETS {
            secrets.pop_front();
        }
        secrets.push_back(secret.to_owned());
    }

    /// Returns the secrets, oldest first.
    pub(crate) fn all(&self) -> Vec<String> {
        let secrets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.iter().cloned().collect()
    }
}
