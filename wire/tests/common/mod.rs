//! What the tests share.

pub(crate) mod clock;
pub(crate) mod hex;
pub(crate) mod raw;
pub(crate) mod recording;
pub(crate) mod rig;
pub(crate) mod witness;
