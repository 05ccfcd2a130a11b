//! Who may connect to a tunnel's local address: how users are written, and which ids they have.
//!
//! ```text
//! USERS = "any" | [ USER, … ]
//! USER  = NAME | UID
//! ```
//!
//! A name is looked up when the file is read, by the system's program `id`. It asks whatever the system keeps its users
//! in, be it a file, LDAP or a domain, on Linux as on macOS; `/etc/passwd` alone knows only some of them.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::AllowedUsers;
use super::problem::{Findings, Refusal, quoted, shown};
use super::section::{Key, Section, as_text};

const ALLOW_USERS: Key = Key::new("allow_users", r#"allow_users = ["NAME", 1001] or "any""#);

/// The most names that a file can have, each at the cost of a process: far more than share a machine, and a fraction of
/// a second.
const MOST_NAMES: usize = 64;

/// How long `id` may take over one name: it may ask a server on the network, which may be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most that is read of its answer, which is a number.
const LONGEST_ANSWER: u64 = 64;

/// Users as written.
#[derive(Debug)]
pub(super) enum Written {
    /// What can only be `any`.
    Word(String),
    /// Names, and ids as text.
    List(Vec<Spanned<String>>),
}

impl Written {
    /// Takes the key out of a section.
    pub(super) fn read(section: &mut Section<'_, '_, '_>) -> Option<Spanned<Self>> {
        section.read(&ALLOW_USERS, "a list of names and uids, or \"any\"", |value| {
            if let DeValue::Array(users) = value {
                return users.into_iter().map(user).collect::<Option<_>>().map(Self::List);
            }
            as_text(value).map(Self::Word)
        })
    }
}

fn user(written: Spanned<DeValue<'_>>) -> Option<Spanned<String>> {
    let span = written.span();
    let text = match written.into_inner() {
        DeValue::Integer(uid) => Some(uid.to_string()),
        value @ (DeValue::String(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_)) => as_text(value),
    };
    text.map(|text| Spanned::new(span, text))
}

impl AllowedUsers {
    /// Reads who is allowed, noting every user that there is not.
    pub(super) fn of(
        written: Option<&Spanned<Written>>,
        accounts: &mut Accounts,
        findings: &mut Findings<'_>,
    ) -> Option<Self> {
        let written = written?;
        match written.get_ref() {
            Written::Word(word) if word == "any" => Some(Self::Any),
            Written::Word(word) => {
                let refusal =
                    Refusal::new(format!("{} is neither a list of users nor \"any\"", quoted(word)));
                let hint = format!(r#"allow_users = ["{}"]"#, shown(word));
                findings.push(written.span().start, refusal.instead(hint));
                None
            }
            Written::List(users) => {
                let ids: Vec<_> = users
                    .iter()
                    .map(|user| findings.accept(user, accounts.uid(user.get_ref())))
                    .collect();
                ids.into_iter()
                    .collect::<Option<BTreeSet<_>>>()
                    .map(Self::OwnerAnd)
            }
        }
    }
}

/// The users of this machine that were looked up so far.
#[derive(Debug, Default)]
pub(super) struct Accounts(HashMap<String, Result<u32, Refusal>>);

impl Accounts {
    /// Returns the id of a user, written as such or as a name.
    fn uid(&mut self, user: &str) -> Result<u32, Refusal> {
        let is_number = user.chars().all(|letter| letter.is_ascii_digit());
        if let Ok(uid) = user.parse()
            && is_number
        {
            return Ok(uid);
        }
        if self.0.len() >= MOST_NAMES && !self.0.contains_key(user) {
            let message = format!(
                "{} is one name too many: {MOST_NAMES} are looked up",
                quoted(user)
            );
            return Err(Refusal::new(message).instead("uids, or \"any\""));
        }
        let known = self.0.entry(user.to_owned());
        known.or_insert_with(|| look_up(user)).clone()
    }
}

fn look_up(name: &str) -> Result<u32, Refusal> {
    let unknown = || {
        Refusal::new(format!("there is no user {} on this machine", quoted(name)))
            .instead("the name of a user, or a uid such as 1001")
    };
    let is_plain = |letter: char| !letter.is_whitespace() && !letter.is_control();
    if name.is_empty() || !name.chars().all(is_plain) {
        return Err(unknown());
    }
    let mut id = Command::new("id");
    id.args(["-u", "--", name]);
    let answer = ask(&mut id, PATIENCE).map_err(|error| {
        let message = format!("cannot ask `id` for the user {}: {error}", quoted(name));
        Refusal::new(message).instead("a uid such as 1001")
    })?;
    answer.and_then(|uid| uid.trim().parse().ok()).ok_or_else(unknown)
}

/// Returns what a program says; `None` if it says that it has failed. It is ended when it takes longer than `patience`.
fn ask(program: &mut Command, patience: Duration) -> io::Result<Option<String>> {
    let mut program = program
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let (tell, told) = mpsc::channel();
    if let Some(output) = program.stdout.take() {
        thread::spawn(move || {
            let mut text = String::new();
            let read = output.take(LONGEST_ANSWER).read_to_string(&mut text);
            // Whoever asked may have lost patience.
            let _ = tell.send(read.map(|_| text));
        });
    }
    let Ok(text) = told.recv_timeout(patience) else {
        program.kill()?;
        program.wait()?;
        let late = format!("no answer within {} s", patience.as_secs());
        return Err(io::Error::new(io::ErrorKind::TimedOut, late));
    };
    let status = program.wait()?;
    Ok(text.ok().filter(|_| status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_answer_is_ended() {
        let error = ask(Command::new("sleep").arg("600"), Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let mut said = Command::new("echo");
        assert_eq!(ask(said.arg("7"), PATIENCE).unwrap().as_deref(), Some("7\n"));
        assert_eq!(ask(&mut Command::new("false"), PATIENCE).unwrap(), None);
    }
}
