//! What the tests share.

pub(crate) mod agent;
pub(crate) mod clock;
pub(crate) mod damage;
pub(crate) mod frames;
pub(crate) mod hex;
pub(crate) mod load;
pub(crate) mod network;
pub(crate) mod raw;
pub(crate) mod recording;
pub(crate) mod rig;
pub(crate) mod seeds;
pub(crate) mod witness;
