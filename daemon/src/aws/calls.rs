//! How often AWS was called, and what came of it: each attempt of each call, as the SDK makes them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::FinalizerInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction, RetryReason};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::retry::ErrorKind;

/// The counters. Cheap to clone: all clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<BTreeMap<Call, u64>>>);

/// What is counted apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    /// `SSM`, as the SDK calls it.
    pub(crate) service: String,
    /// `StartSession`.
    pub(crate) operation: String,
    /// What came of it.
    pub(crate) outcome: Outcome,
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// What was asked for.
    Answered,
    /// AWS asked to slow down.
    Throttled,
    /// Another error, or no answer.
    Failed,
}

impl Calls {
    /// Returns how often each call was made.
    pub(crate) fn all(&self) -> BTreeMap<Call, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, call: Call) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *calls.entry(call).or_default() += 1;
    }
}

impl Intercept for Calls {
    fn name(&self) -> &'static str {
        "Calls"
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        components: &RuntimeComponents,
        configuration: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Some(metadata) = configuration.load::<Metadata>() else {
            return Ok(());
        };
        let is_throttled = || {
            let mut classifiers = components.retry_classifiers();
            classifiers.any(|classifier| says_throttled(&classifier.classify_retry(context.inner())))
        };
        let outcome = match context.output_or_error() {
            Some(Ok(_)) => Outcome::Answered,
            Some(Err(_)) | None if is_throttled() => Outcome::Throttled,
            Some(Err(_)) | None => Outcome::Failed,
        };
        self.count(Call {
            service: metadata.service().to_owned(),
            operation: metadata.name().to_owned(),
            outcome,
        });
        Ok(())
    }
}

fn says_throttled(action: &RetryAction) -> bool {
    matches!(
        action,
        RetryAction::RetryIndicated(RetryReason::RetryableError {
            kind: ErrorKind::ThrottlingError,
            ..
        })
    )
}
