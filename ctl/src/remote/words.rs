//! What a person told ssh, as far as it changes what we tell it.

use std::ffi::OsString;

/// The options of ssh that take a value (ssh(1) of OpenSSH 9.2, its synopsis); all others are flags.
const WITH_VALUE: &str = "BbcDEeFIiJLlmOoPpQRSWw";

/// What was found in the words after the destination.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Whether a key of one's own is to be used.
    pub(crate) identity: bool,
    /// Whether the user is named.
    pub(crate) user: bool,
}

impl Told {
    /// Looks through options as ssh does: up to the first word that is none, which begins the command.
    pub(crate) fn by(words: &[OsString]) -> Self {
        let mut told = Self::default();
        let mut words = words.iter().map(|word| word.to_string_lossy());
        while let Some(word) = words.next() {
            let Some(flags) = word
                .strip_prefix('-')
                .filter(|flags| !flags.is_empty() && *flags != "-")
            else {
                break;
            };
            let Some((at, flag)) = flags.char_indices().find(|(_, flag)| WITH_VALUE.contains(*flag)) else {
                continue;
            };
            let value = match &flags[at + flag.len_utf8()..] {
                "" => words.next().unwrap_or_default(),
                joined => joined.to_owned().into(),
            };
            told.note(flag, &value);
        }
        told
    }

    fn note(&mut self, flag: char, value: &str) {
        let keyword = value.trim_start().to_ascii_lowercase();
        let names = |name: &str| flag == 'o' && keyword.starts_with(name);
        self.identity |= flag == 'i' || names("identityfile") || names("identityagent");
        self.user |= flag == 'l' || names("user=") || names("user ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> Told {
        let words: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        Told::by(&words)
    }

    #[test]
    fn an_identity_is_found_in_every_spelling() {
        for line in [
            "-i key",
            "-ikey",
            "-A -i key uptime",
            "-vNi key",
            "-o IdentityFile=key",
            "-oidentityfile=key",
        ] {
            assert!(told(line).identity, "{line}");
        }
    }

    #[test]
    fn what_belongs_to_an_option_or_a_command_is_no_identity() {
        for line in [
            "",
            "-L 1:i:2",
            "-D -i",
            "uptime -i key",
            "-- -i key",
            "-N",
            "-o User=i",
        ] {
            assert!(!told(line).identity, "{line}");
        }
    }

    #[test]
    fn a_user_is_found_too() {
        assert!(told("-l admin").user);
        assert!(told("-o User=admin").user);
        assert!(!told("-o UserKnownHostsFile=x").user);
    }
}
