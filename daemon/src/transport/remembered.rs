//! What was looked up at AWS, remembered until it is old, or leads nowhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::Failure;

/// How long an answer is good for where it is not only forgotten: members of a pool that start after one another ask
/// once, and a bastion that was replaced is noticed soon.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// The latest answer.
#[derive(Debug)]
pub(super) struct Remembered<T> {
    good_for: Option<Duration>,
    known: Mutex<Option<Known<T>>>,
}

#[derive(Debug)]
struct Known<T> {
    since: Instant,
    answer: Arc<T>,
}

impl<T> Remembered<T> {
    /// Nothing yet; an answer is good for a minute.
    pub(super) fn for_a_minute() -> Self {
        Self {
            good_for: Some(GOOD_FOR),
            known: Mutex::new(None),
        }
    }

    /// Nothing yet; an answer is good until it is forgotten.
    pub(super) fn until_forgotten() -> Self {
        Self {
            good_for: None,
            known: Mutex::new(None),
        }
    }

    /// Returns the answer that is remembered, or else what a look says.
    pub(super) async fn or(&self, look: impl Future<Output = Result<T, Failure>>) -> Result<Arc<T>, Failure> {
        if let Some(answer) = self.fresh() {
            return Ok(answer);
        }
        let answer = Arc::new(look.await?);
        *self.known() = Some(Known {
            since: Instant::now(),
            answer: Arc::clone(&answer),
        });
        Ok(answer)
    }

    /// What was found leads nowhere.
    pub(super) fn forget(&self) {
        *self.known() = None;
    }

    fn fresh(&self) -> Option<Arc<T>> {
        let known = self.known();
        let known = known.as_ref()?;
        let is_old = self.good_for.is_some_and(|time| known.since.elapsed() >= time);
        (!is_old).then(|| Arc::clone(&known.answer))
    }

    fn known(&self) -> MutexGuard<'_, Option<Known<T>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(remembered: &Remembered<u32>, answer: u32) -> u32 {
        *remembered.or(async { Ok(answer) }).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_asked_for_again_when_it_is_old_or_leads_nowhere() {
        for (remembered, later) in [
            (Remembered::for_a_minute(), 2),
            (Remembered::until_forgotten(), 1),
        ] {
            assert_eq!(ask(&remembered, 1).await, 1);
            assert_eq!(ask(&remembered, 2).await, 1);
            tokio::time::advance(GOOD_FOR).await;
            assert_eq!(ask(&remembered, 2).await, later);
            remembered.forget();
            assert_eq!(ask(&remembered, 3).await, 3);
        }
    }
}
