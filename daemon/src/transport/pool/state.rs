//! How one member of the pool is: whether it takes streams, how many, and for how long.

use tokio::time::Instant;

/// How many streams a member carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Many.
    Shared,
    /// One in its life.
    Single,
}

/// How much a member is needed that is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Streams would wait for it, or be cut: it is one of the least, or a successor.
    Required,
    /// The others would only have fewer streams each.
    Spare,
}

/// Whether a member takes new streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fitness {
    /// It does.
    Fit,
    /// Not while it is brought back.
    Impaired,
    /// Not while a target behind it takes nothing, or its agent is away.
    Stalled,
}

/// A member.
#[derive(Debug)]
pub(super) enum State {
    /// It is being made.
    Starting,
    /// It is ready.
    Running {
        /// Whether it takes new streams.
        fitness: Fitness,
        /// How many it has.
        streams: usize,
        /// Since when there are none.
        idle_since: Instant,
        /// Whether it has had one.
        used: bool,
        /// How long it does.
        tenure: Tenure,
    },
}

/// How long a member takes new streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tenure {
    /// For as long as it lives.
    Lasting,
    /// From then on it is replaced.
    Until(Instant),
    /// It is to be replaced as soon as there is another one.
    Due,
    /// No longer.
    Draining,
}

impl State {
    /// Returns whether it takes new streams.
    pub(super) fn takes_streams(&self) -> bool {
        match self {
            Self::Starting => false,
            Self::Running { fitness, tenure, .. } => *fitness == Fitness::Fit && *tenure != Tenure::Draining,
        }
    }

    /// Returns whether it takes new streams until there is a successor.
    pub(super) fn is_due(&self) -> bool {
        self.takes_streams()
            && matches!(
                self,
                Self::Running {
                    tenure: Tenure::Due,
                    ..
                }
            )
    }

    /// Returns when its time comes.
    pub(super) fn replace_at(&self) -> Option<Instant> {
        match self {
            Self::Running {
                tenure: Tenure::Until(at),
                ..
            } => Some(*at),
            Self::Running { .. } | Self::Starting => None,
        }
    }

    /// Returns whether it is brought back.
    pub(super) fn is_impaired(&self) -> bool {
        matches!(
            self,
            Self::Running {
                fitness: Fitness::Impaired,
                ..
            }
        )
    }
}
