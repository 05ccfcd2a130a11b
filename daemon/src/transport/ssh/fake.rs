//! What tests of this folder share.

use russh::keys::{Algorithm, PrivateKey, PublicKey};

/// A key that nobody else has.
pub(super) fn private_key() -> PrivateKey {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap()
}

/// The public half of one.
pub(super) fn public_key() -> PublicKey {
    private_key().public_key().clone()
}
