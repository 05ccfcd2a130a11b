//! How long links took to be resumed, counted by length.

use std::time::Duration;

/// The lengths that are told apart, in seconds: a resume takes some round trips, and one that outlasts a minute waits for
/// the network.
const BOUNDS: [f64; 9] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The resumes so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resumes {
    /// Those up to each bound, and not up to the one before it.
    counts: [u64; BOUNDS.len()],
    /// Those beyond the last one.
    longer: u64,
    /// All of them together.
    took: Duration,
}

impl Resumes {
    /// Counts one.
    pub(super) fn note(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let fits = BOUNDS.iter().position(|bound| seconds <= *bound);
        let count = fits.map_or(&mut self.longer, |fits| &mut self.counts[fits]);
        *count += 1;
        self.took = self.took.saturating_add(took);
    }

    /// Returns how many took up to each bound but longer than the one before it; the last bound is infinity.
    pub(crate) fn by_length(&self) -> Vec<(f64, u64)> {
        let longer = (f64::INFINITY, self.longer);
        BOUNDS.into_iter().zip(self.counts).chain([longer]).collect()
    }

    /// Returns how many there have been.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.longer
    }

    /// Returns how long they took together.
    pub(crate) fn took(&self) -> Duration {
        self.took
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resume_counts_in_the_first_length_that_it_fits() {
        let mut resumes = Resumes::default();
        for milliseconds in [100, 101, 700, 60_000, 60_001] {
            resumes.note(Duration::from_millis(milliseconds));
        }
        let counted: Vec<_> = resumes
            .by_length()
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(
            counted,
            [(0.1, 1), (0.25, 1), (1.0, 1), (60.0, 1), (f64::INFINITY, 1)]
        );
        assert_eq!(
            (resumes.count(), resumes.took()),
            (5, Duration::from_millis(120_902))
        );
    }
}
