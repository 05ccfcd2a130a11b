//! The key of the account.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The long-term key that signs requests. With a session token it plays a temporary one.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Names the key.
    pub access_key_id: String,
    /// What signs.
    pub secret_access_key: String,
    /// What goes with every request, if there is one.
    pub session_token: Option<String>,
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            access_key_id: "AKIAEMULATOR0000000".to_owned(),
            secret_access_key: "emulator/Secret+Key/0000000000000000000".to_owned(),
            session_token: None,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}
