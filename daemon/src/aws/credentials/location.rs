//! Where AWS's tools keep profiles, keys and logins.

use std::path::PathBuf;

use crate::connector::Environment;

/// Returns the files and folders that change when somebody logs in: the profiles, and what `aws sso login` and
/// `aws login` leave.
pub(in crate::aws) fn files(environment: &Environment) -> Vec<PathBuf> {
    [CONFIG, CREDENTIALS, SSO_CACHE, LOGIN_CACHE]
        .into_iter()
        .filter_map(|place| place.path(environment))
        .collect()
}

/// Where something of AWS's tools is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Location {
    /// The variable that says so.
    variable: Option<&'static str>,
    /// Its name in `~/.aws`, unless that says otherwise.
    name: &'static str,
}

pub(super) const CONFIG: Location = Location {
    variable: Some("AWS_CONFIG_FILE"),
    name: "config",
};
pub(super) const CREDENTIALS: Location = Location {
    variable: Some("AWS_SHARED_CREDENTIALS_FILE"),
    name: "credentials",
};
const SSO_CACHE: Location = Location {
    variable: None,
    name: "sso/cache",
};
const LOGIN_CACHE: Location = Location {
    variable: Some("AWS_LOGIN_CACHE_DIRECTORY"),
    name: "login/cache",
};

impl Location {
    /// Returns its path; `None` where there is no home folder.
    pub(super) fn path(self, environment: &Environment) -> Option<PathBuf> {
        let home = environment
            .first_of(&["HOME", "USERPROFILE"])
            .map(|(_, home)| PathBuf::from(home));
        let written = self.variable.and_then(|variable| environment.variable(variable));
        match (written, home) {
            (Some(path), Some(home)) if path.starts_with("~/") => Some(home.join(&path[2..])),
            (Some(path), _) => Some(PathBuf::from(path)),
            (None, Some(home)) => Some(home.join(".aws").join(self.name)),
            (None, None) => None,
        }
    }
}
