//! The ProxyCommand: the words by which ssh runs this program again, as its way to an instance.
//!
//! ssh expands `%` in it and has the user's shell run the rest, so both are escaped.

use std::path::Path;

use crate::cli::remote::Reach;
use crate::error::Error;

/// A ProxyCommand in the making.
pub(crate) struct ProxyCommand(String);

impl ProxyCommand {
    /// Runs this program, whose daemon listens on `socket` if that was said.
    pub(crate) fn new(socket: Option<&Path>) -> Result<Self, Error> {
        let own = std::env::current_exe().map_err(|error| {
            Error::failed("cannot tell where this program lies").because(error.to_string())
        })?;
        let mut command = Self(escaped(&own.to_string_lossy()));
        if let Some(socket) = socket {
            command = command.option("--socket", &socket.to_string_lossy());
        }
        command.0 += " stdio";
        Ok(command)
    }

    /// Goes that way, with those credentials.
    pub(crate) fn by(mut self, reach: &Reach) -> Self {
        let Reach {
            profile,
            region,
            route,
        } = reach;
        for (option, value) in [("--profile", profile), ("--region", region), ("--route", route)] {
            if let Some(value) = value {
                self = self.option(option, value);
            }
        }
        self
    }

    /// Has the instance accept this public key for whoever logs in.
    pub(crate) fn pushing(self, public_key: &Path) -> Self {
        let mut command = self.option("--push-key", &public_key.to_string_lossy());
        command.0 += " --as '%r'";
        command
    }

    /// Returns the whole command, to this instance.
    pub(crate) fn to_instance(self, instance: &str) -> String {
        format!("{} -- {} %p", self.0, escaped(instance))
    }

    /// Returns the whole command, to whatever host ssh is asked for.
    pub(crate) fn to_any(self) -> String {
        format!("{} -- '%h' %p", self.0)
    }

    fn option(mut self, name: &str, value: &str) -> Self {
        self.0 += &format!(" {name} {}", escaped(value));
        self
    }
}

/// Returns text as one word for a shell, after ssh has expanded what begins with `%`.
fn escaped(text: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=@,+".contains(letter);
    let text = text.replace('%', "%%");
    if !text.is_empty() && text.chars().all(|letter| is_plain(letter) || letter == '%') {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_or_ssh_would_read_otherwise_is_escaped() {
        assert_eq!(escaped("/usr/bin/tunnelctl"), "/usr/bin/tunnelctl");
        assert_eq!(escaped("{ ssm = \"bastion\" }"), "'{ ssm = \"bastion\" }'");
        assert_eq!(escaped("it's 100%"), r"'it'\''s 100%%'");
        assert_eq!(escaped("$(id)"), "'$(id)'");
        assert_eq!(escaped(""), "''");
    }
}
