//! Which tunnels are meant: names and globs against what is configured.

use globset::{Glob, GlobMatcher};
use tunneld_proto::v1::Tunnel;

use crate::error::{Error, Exit};

/// How alike two names are, between 0 and 1, for one to be offered in place of the other: a slip of one or two letters.
const NEAR: f64 = 0.8;

/// How many near names are offered; more is a list to read, not a hint.
const OFFERED: usize = 3;

/// How many configured names are listed where none is near: about a line of them.
const LISTED: usize = 8;

/// The tunnels a person named.
pub(crate) struct Selection {
    /// Empty: all tunnels.
    patterns: Vec<Pattern>,
}

enum Pattern {
    Name(String),
    Glob(GlobMatcher),
}

impl Selection {
    /// Reads names and globs; none at all means every tunnel.
    pub(crate) fn of(words: &[String]) -> Result<Self, Error> {
        let patterns = words
            .iter()
            .map(|word| Pattern::parse(word))
            .collect::<Result<_, _>>()?;
        Ok(Self { patterns })
    }

    /// Returns whether the tunnel of that name is meant.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.matches(name))
    }

    /// Returns whether one tunnel is meant, by its name.
    pub(crate) fn is_one_name(&self) -> bool {
        matches!(self.patterns.as_slice(), [Pattern::Name(_)])
    }

    /// Picks the tunnels that are meant, each once: in the order they were named, a glob's in the configuration's.
    ///
    /// A name or glob that fits none is an error that names what might have been meant.
    pub(crate) fn pick<'a>(&self, configured: &'a [Tunnel]) -> Result<Vec<&'a Tunnel>, Error> {
        if self.patterns.is_empty() {
            return Ok(configured.iter().collect());
        }
        let mut picked: Vec<&Tunnel> = Vec::new();
        let mut unmatched = Vec::new();
        for pattern in &self.patterns {
            let matching: Vec<_> = configured
                .iter()
                .filter(|tunnel| pattern.matches(&tunnel.name))
                .collect();
            if matching.is_empty() {
                unmatched.push(pattern);
            }
            for tunnel in matching {
                if picked.iter().all(|earlier| earlier.name != tunnel.name) {
                    picked.push(tunnel);
                }
            }
        }
        if unmatched.is_empty() {
            return Ok(picked);
        }
        Err(no_match(&unmatched, configured))
    }
}

impl Pattern {
    fn parse(word: &str) -> Result<Self, Error> {
        if !word.contains(['*', '?', '[', '{']) {
            return Ok(Self::Name(word.to_owned()));
        }
        let glob = Glob::new(word).map_err(|error| {
            Error::new(Exit::Usage, format!("`{word}` is not a glob")).because(error.kind().to_string())
        })?;
        Ok(Self::Glob(glob.compile_matcher()))
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Glob(glob) => glob.is_match(name),
        }
    }
}

fn no_match(unmatched: &[&Pattern], configured: &[Tunnel]) -> Error {
    let mut any_near = false;
    let lines: Vec<_> = unmatched
        .iter()
        .map(|pattern| match pattern {
            Pattern::Glob(glob) => format!("no tunnel matches `{}`", glob.glob().glob()),
            Pattern::Name(name) => {
                let near = near(name, configured);
                any_near |= !near.is_empty();
                match near.as_slice() {
                    [] => format!("there is no tunnel `{name}`"),
                    near => format!(
                        "there is no tunnel `{name}`; did you mean `{}`?",
                        near.join("` or `")
                    ),
                }
            }
        })
        .collect();
    let error = Error::failed(lines.join("\n"));
    if any_near {
        return error;
    }
    error.hint(listing(configured))
}

fn near<'a>(name: &str, configured: &'a [Tunnel]) -> Vec<&'a str> {
    let mut scored: Vec<_> = configured
        .iter()
        .map(|tunnel| (strsim::jaro_winkler(name, &tunnel.name), tunnel.name.as_str()))
        .filter(|(likeness, _)| *likeness >= NEAR)
        .collect();
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    scored.into_iter().take(OFFERED).map(|(_, name)| name).collect()
}

fn listing(configured: &[Tunnel]) -> String {
    if configured.is_empty() {
        return "no tunnels are configured".to_owned();
    }
    let names: Vec<_> = configured
        .iter()
        .take(LISTED)
        .map(|tunnel| tunnel.name.as_str())
        .collect();
    match configured.len() - names.len() {
        0 => format!("configured: {}", names.join(", ")),
        more => format!("configured: {} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(names: &[&str]) -> Vec<Tunnel> {
        names
            .iter()
            .map(|name| Tunnel {
                name: (*name).to_owned(),
                ..Tunnel::default()
            })
            .collect()
    }

    fn selection(words: &[&str]) -> Selection {
        Selection::of(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn picked(words: &[&str], names: &[&str]) -> Result<Vec<String>, Error> {
        let configured = configured(names);
        let picked = selection(words).pick(&configured)?;
        Ok(picked.into_iter().map(|tunnel| tunnel.name.clone()).collect())
    }

    #[test]
    fn globs_and_names_pick_each_tunnel_once_in_the_order_of_the_words() {
        let names = ["a-1", "a-2", "b-1", "c"];
        assert_eq!(
            picked(&["c", "a-*", "?-1"], &names).unwrap(),
            ["c", "a-1", "a-2", "b-1"]
        );
        assert_eq!(picked(&[], &names).unwrap(), names);
        assert_eq!(picked(&["{c,b-[0-9]}"], &names).unwrap(), ["b-1", "c"]);
    }

    #[test]
    fn a_slip_of_the_finger_is_answered_with_near_names() {
        let error = picked(&["prod-bd"], &["prod-db", "stage-db", "x"]).unwrap_err();
        assert_eq!(
            error,
            Error::failed("there is no tunnel `prod-bd`; did you mean `prod-db`?")
        );
    }

    #[test]
    fn all_words_that_fit_nothing_are_named_at_once() {
        let error = picked(&["x", "zzz", "w*"], &["x"]).unwrap_err();
        let expected =
            Error::failed("there is no tunnel `zzz`\nno tunnel matches `w*`").hint("configured: x");
        assert_eq!(error, expected);
    }

    #[test]
    fn a_long_list_of_configured_tunnels_is_cut() {
        let names: Vec<_> = (0..12).map(|number| format!("t{number}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let error = picked(&["zzz"], &names).unwrap_err();
        let hint = "configured: t0, t1, t2, t3, t4, t5, t6, t7 and 4 more";
        assert_eq!(error, Error::failed("there is no tunnel `zzz`").hint(hint));
    }

    #[test]
    fn a_broken_glob_is_an_error_of_usage() {
        let Err(error) = Selection::of(&["[a".to_owned()]) else {
            panic!("`[a` is a glob")
        };
        assert_eq!(error.exit(), Exit::Usage);
    }
}
