//! The environment variables the program was started with, read once at the edge.
//!
//! Everything below takes an [`Environment`] instead of asking the process: what was decided at the start stays
//! decided, and a test says what it wants without touching its neighbours.

use std::collections::HashMap;
use std::fmt;

/// A snapshot of environment variables. Its `Debug` shows names only: values may be keys and passwords.
#[derive(Clone, Default)]
pub struct Environment(HashMap<String, String>);

impl Environment {
    /// Reads the variables of this process. A name or value that is not Unicode is left out.
    pub fn from_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// Returns the value of a variable; an empty one counts as unset, as AWS's tools and curl have it.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Returns the first of several variables that is set, with its name.
    pub(crate) fn first_of<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &str)> {
        names.iter().find_map(|&name| Some((name, self.variable(name)?)))
    }

    /// Returns whether a switch is on: set to `true`, in any case.
    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.variable(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<_> = self.0.keys().collect();
        names.sort();
        f.debug_tuple("Environment").field(&names).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_names_and_no_values() {
        let environment = Environment::from_iter([("AWS_SECRET_ACCESS_KEY", "hunter2")]);
        let text = format!("{environment:?}");
        assert!(text.contains("AWS_SECRET_ACCESS_KEY"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let environment = Environment::from_iter([("HTTPS_PROXY", ""), ("https_proxy", "http://proxy:3128")]);
        assert_eq!(environment.variable("HTTPS_PROXY"), None);
        let found = environment.first_of(&["HTTPS_PROXY", "https_proxy"]);
        assert_eq!(found, Some(("https_proxy", "http://proxy:3128")));
    }
}
