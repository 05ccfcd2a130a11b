//! What is wrong with a configuration file, and the words to say it in.
//!
//! The reader and the checks push a [`Refusal`] at a byte of the file into [`Findings`] and go on, so that a person
//! meets all [`Problems`] of a file at once, in the order of its lines.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;

/// One thing wrong in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// The line, counted from 1; `None` where the problem has none (a missing file).
    pub line: Option<u32>,
    /// What is wrong, with the offending text in backticks.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.message)?;
        if let Some(hint) = &self.hint {
            for (number, line) in hint.lines().enumerate() {
                let lead = if number == 0 { "  use: " } else { "       " };
                write!(f, "\n{lead}{line}")?;
            }
        }
        Ok(())
    }
}

/// Everything wrong in a configuration file, sorted by line; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Returns the problems, sorted by line.
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        match self.0.len() {
            1 => f.write_str("1 problem"),
            count => write!(f, "{count} problems"),
        }
    }
}

impl Error for Problems {}

/// Why some text of the file was refused, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong, with the offending text in backticks.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    /// The same refusal with what to write instead.
    pub(super) fn instead(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Turns the refusal into a problem of a file.
    pub(super) fn at(self, path: &Path, line: Option<u32>) -> Problem {
        Problem {
            path: path.to_owned(),
            line,
            message: self.message,
            hint: self.hint,
        }
    }
}

/// The problems found so far in one file.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    path: &'a Path,
    line_ends: Vec<usize>,
    broken_lines: BTreeSet<u32>,
    problems: Vec<Problem>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(path: &'a Path, text: &str) -> Self {
        let line_ends = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'\n')
            .map(|(at, _)| at)
            .collect();
        Self {
            path,
            line_ends,
            broken_lines: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    /// Notes a problem at a byte of the file. A line that is not TOML has had its problem: what was made of the rest
    /// of it is a guess, and not worth a second one.
    pub(super) fn push(&mut self, at: usize, refusal: Refusal) {
        if !self.is_broken(at) {
            self.problems.push(refusal.at(self.path, Some(self.line(at))));
        }
    }

    /// Notes that the line at a byte of the file is not TOML; the first note of a line counts.
    pub(super) fn push_broken(&mut self, at: usize, refusal: Refusal) {
        self.push(at, refusal);
        self.broken_lines.insert(self.line(at));
    }

    /// Whether the line at a byte of the file is known not to be TOML.
    pub(super) fn is_broken(&self, at: usize) -> bool {
        self.broken_lines.contains(&self.line(at))
    }

    /// Whether some line is not TOML: then what seems to be missing may only be unread.
    pub(super) fn any_broken(&self) -> bool {
        !self.broken_lines.is_empty()
    }

    /// Returns the value, or notes at the text it was read from why there is none.
    pub(super) fn accept<T, W>(&mut self, written: &Spanned<W>, read: Result<T, Refusal>) -> Option<T> {
        read.map_err(|refusal| self.push(written.span().start, refusal))
            .ok()
    }

    /// Returns what is made of a text; `None`, noted if it is there and refused.
    pub(super) fn read<T>(
        &mut self,
        written: Option<&Spanned<String>>,
        read: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Option<T> {
        written.and_then(|text| self.accept(text, read(text.get_ref())))
    }

    /// Returns the value if nothing is wrong with the file.
    pub(super) fn finish<T>(mut self, value: T) -> Result<T, Problems> {
        if self.problems.is_empty() {
            return Ok(value);
        }
        self.problems.sort_by_key(|problem| problem.line);
        Err(Problems(self.problems))
    }

    fn line(&self, at: usize) -> u32 {
        let lines_before = self.line_ends.partition_point(|end| *end < at);
        u32::try_from(lines_before + 1).unwrap_or(u32::MAX)
    }
}

/// The most characters of a file's text that a message shows: a line of a terminal, less the words around it.
const MOST_SHOWN: usize = 80;

/// Returns text of the file in a form that is safe to print: shortened, without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (number, character) in text.chars().enumerate() {
        if number == MOST_SHOWN {
            shown.push('…');
            break;
        }
        match character {
            '"' | '\'' | '\\' => shown.push(character),
            _ => shown.extend(character.escape_debug()),
        }
    }
    shown
}

/// Returns text of the file in backticks, in a form that is safe to print.
pub(super) fn quoted(text: &str) -> String {
    if text.is_empty() {
        return "`\"\"`".to_owned();
    }
    format!("`{}`", shown(text))
}

/// The longest word that is compared with known ones: longer than any of them with a few slips.
const LONGEST_NEAR_MISS: usize = 40;

/// Returns the known word that somebody who wrote `word` most likely meant.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    if word.len() > LONGEST_NEAR_MISS {
        return None;
    }
    let slips = |candidate: &str| strsim::damerau_levenshtein(word, candidate);
    let nearest = known.iter().min_by_key(|candidate| slips(candidate))?;
    // A third of the letters may be wrong: `lissen` and `routs` are slips, `port` for `route` is another word.
    (slips(nearest) * 3 <= nearest.len()).then_some(*nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_print_as_file_line_message_hint_and_count() {
        let path = Path::new("config.toml");
        let mut findings = Findings::new(path, "a\nb\nc\n");
        findings.push(4, Refusal::new("`c` is wrong").instead("d\nor e"));
        findings.push(1, Refusal::new("`a` is wrong"));
        let problems = findings.finish(()).unwrap_err();
        assert_eq!(
            problems.to_string(),
            "config.toml:1: `a` is wrong\n\
             config.toml:3: `c` is wrong\n  use: d\n       or e\n\
             2 problems"
        );
    }

    #[test]
    fn a_problem_without_a_line_prints_the_file_alone() {
        let problems =
            Problems::from(Refusal::new("there is no such file").at(Path::new("/etc/x.toml"), None));
        assert_eq!(
            problems.to_string(),
            "/etc/x.toml: there is no such file\n1 problem"
        );
    }

    #[test]
    fn a_line_that_is_not_toml_has_one_problem() {
        let mut findings = Findings::new(Path::new("x"), "a\nb");
        findings.push_broken(0, Refusal::new("broken"));
        findings.push_broken(1, Refusal::new("broken again"));
        findings.push(0, Refusal::new("a guess"));
        findings.push(2, Refusal::new("another line"));
        let problems = findings.finish(()).unwrap_err();
        let messages: Vec<_> = problems
            .as_slice()
            .iter()
            .map(|problem| problem.message.as_str())
            .collect();
        assert_eq!(messages, ["broken", "another line"]);
    }

    #[test]
    fn text_of_the_file_cannot_write_to_the_terminal() {
        assert_eq!(quoted("a\u{1b}[2J\n\"b\""), "`a\\u{1b}[2J\\n\"b\"`");
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), MOST_SHOWN + 1);
    }

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let known = ["listen", "target", "route", "hold"];
        assert_eq!(nearest("lissen", &known), Some("listen"));
        assert_eq!(nearest("taregt", &known), Some("target"));
        assert_eq!(nearest("port", &known), None);
        assert_eq!(nearest(&"listen".repeat(1000), &known), None);
    }
}
