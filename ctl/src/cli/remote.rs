//! The commands that go to any instance, without a tunnel in the configuration.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use clap_complete::engine::ArgValueCompleter;

use crate::commands::completions;

/// The user that Amazon Linux, RHEL and SUSE come with; Ubuntu's is `ubuntu`, Debian's `admin`.
pub(crate) const DEFAULT_USER: &str = "ec2-user";

/// Whose credentials, where, and which way: what these commands have in common.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Reach {
    /// Use the credentials of this profile of ~/.aws/config
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,

    /// Look in this region
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,

    /// Go this way: direct, ssm, eice, or a table as in the configuration; without it, the best there is
    #[arg(long, value_name = "ROUTE")]
    pub(crate) route: Option<String>,
}

/// What `ssh` is told.
#[derive(Debug, Args)]
pub(crate) struct Ssh {
    #[command(flatten)]
    pub(crate) reach: Reach,

    /// Say on standard error which way is taken, and why no other
    #[arg(short, long)]
    pub(crate) verbose: bool,

    /// Instance to log in to: i-…, mi-…, tag:KEY=VALUE or its Name
    #[arg(value_name = "[USER@]INSTANCE", add = ArgValueCompleter::new(completions::instances))]
    pub(crate) destination: String,

    /// Options of ssh, and after them, or after --, a command
    #[arg(
        value_name = "SSH-ARGUMENT",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) arguments: Vec<OsString>,
}

/// What `stdio` is told.
#[derive(Debug, Args)]
pub(crate) struct Stdio {
    #[command(flatten)]
    pub(crate) reach: Reach,

    /// Have the instance accept a key for this user first
    #[arg(long = "as", value_name = "USER", requires = "push_key")]
    pub(crate) user: Option<String>,

    /// Have the instance accept this public key for 60 seconds first
    #[arg(long, value_name = "FILE.pub", requires = "user", value_hint = ValueHint::FilePath)]
    pub(crate) push_key: Option<PathBuf>,

    /// Instance to connect to: i-…, mi-…, tag:KEY=VALUE or its Name
    #[arg(add = ArgValueCompleter::new(completions::instances))]
    pub(crate) instance: String,

    /// Port of it
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
}

/// What `ssh-config` is told.
#[derive(Debug, Args)]
pub(crate) struct SshConfig {
    #[command(flatten)]
    pub(crate) reach: Reach,

    /// Take these hosts in as well: an instance's Name, or a pattern of Names as in ~/.ssh/config
    #[arg(long = "host", value_name = "PATTERN", value_parser = pattern)]
    pub(crate) hosts: Vec<String>,

    /// User to log in as
    #[arg(long = "as", value_name = "USER", default_value = DEFAULT_USER, value_parser = word)]
    pub(crate) user: String,
}

/// What `rdp` is told.
#[derive(Debug, Args)]
pub(crate) struct Rdp {
    #[command(flatten)]
    pub(crate) reach: Reach,

    /// Listen on this local port; without it, on a free one
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,

    /// Print the client's command and start none
    #[arg(long)]
    pub(crate) print: bool,

    /// Instance to connect to: i-…, tag:KEY=VALUE or its Name
    #[arg(add = ArgValueCompleter::new(completions::instances))]
    pub(crate) instance: String,

    /// Arguments for the client
    #[arg(value_name = "CLIENT-ARGUMENT", last = true)]
    pub(crate) arguments: Vec<OsString>,
}

/// Reads what can stand in a line of ~/.ssh/config as one word.
fn word(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
        return Err("this is not one word".to_owned());
    }
    if text.contains(['"', '\'', '\\', '#']) {
        return Err("quotes, backslashes and # have a meaning of their own in ~/.ssh/config".to_owned());
    }
    Ok(text.to_owned())
}

fn pattern(text: &str) -> Result<String, String> {
    if text.starts_with('!') {
        return Err("a pattern with `!` excludes hosts; name those that are meant".to_owned());
    }
    word(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_a_line_of_the_configuration_is_refused() {
        assert_eq!(pattern("web-*"), Ok("web-*".to_owned()));
        for text in ["", "a b", "a\nProxyCommand x", "\"a\"", "a'b", "!web-1"] {
            assert!(pattern(text).is_err(), "{text}");
        }
    }
}
