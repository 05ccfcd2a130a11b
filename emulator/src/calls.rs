//! How often each operation was called, whatever was answered: "makes no AWS call" is a claim to be tested.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Counts the calls of each operation, by names such as `ssm:StartSession`.
#[derive(Default)]
pub(crate) struct Calls(Mutex<BTreeMap<String, u64>>);

impl Calls {
    pub(crate) fn count(&self, service: &str, operation: &str) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *calls.entry(format!("{service}:{operation}")).or_default() += 1;
    }

    pub(crate) fn all(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
