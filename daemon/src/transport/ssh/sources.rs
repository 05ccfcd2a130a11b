//! Where host keys are known from, beside the daemon's own store: the user's `known_hosts`, and an instance's console.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use russh::keys::PublicKey;
use russh::keys::known_hosts::known_host_keys_path;

use crate::config::SSH_PORT;

/// The most of a `known_hosts` that is read: ten thousand hosts.
const MOST_KNOWN_HOSTS: u64 = 8 << 20;

/// Around the host keys that cloud-init prints on the console when it has made them.
const BEGIN: &str = "-----BEGIN SSH HOST KEY KEYS-----";
const END: &str = "-----END SSH HOST KEY KEYS-----";

/// What the user's `known_hosts` says of a host.
#[derive(Debug, Default)]
pub(super) struct KnownHosts {
    /// Its keys, and the name of the host that has them there.
    pub(super) keys: Option<(String, Vec<PublicKey>)>,
    /// Keys that are never to be accepted, of whomever.
    pub(super) revoked: Vec<PublicKey>,
}

impl KnownHosts {
    /// Looks a host up under each of its names; the first that is there counts. Without the file nothing is known.
    pub(super) fn read(path: &Path, names: &[String]) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        if file.take(MOST_KNOWN_HOSTS + 1).read_to_end(&mut bytes)? as u64 > MOST_KNOWN_HOSTS {
            return Err(io::Error::other("it is too large"));
        }
        let text = String::from_utf8_lossy(&bytes);
        let revoked = text
            .lines()
            .filter(|line| line.split_whitespace().next() == Some("@revoked"))
            .filter_map(key_in)
            .collect();
        for name in names {
            // Names may be hashed there, which the library knows how to compare.
            let keys = known_host_keys_path(name, SSH_PORT, path).map_err(io::Error::other)?;
            if !keys.is_empty() {
                let keys = keys.into_iter().map(|(_, key)| key).collect();
                return Ok(Self {
                    keys: Some((name.clone(), keys)),
                    revoked,
                });
            }
        }
        Ok(Self { keys: None, revoked })
    }
}

/// Finds the host keys that an instance printed; none where two prints contradict each other.
///
/// Other programs write on the console too, so only whole lines that are keys count.
pub(super) fn keys_on_console(text: &str) -> Vec<PublicKey> {
    let mut keys: Vec<PublicKey> = Vec::new();
    let mut block: Option<Vec<PublicKey>> = None;
    for line in text.split_inclusive('\n') {
        let Some(whole) = line.strip_suffix('\n') else {
            break;
        };
        if whole.contains(BEGIN) {
            block = Some(Vec::new());
        } else if whole.contains(END) {
            for key in block.take().unwrap_or_default() {
                let contradicts = |known: &PublicKey| {
                    known.algorithm() == key.algorithm() && known.key_data() != key.key_data()
                };
                if keys.iter().any(contradicts) {
                    return Vec::new();
                }
                keys.push(key);
            }
        } else if let Some(block) = &mut block {
            block.extend(key_in(whole));
        }
    }
    keys
}

/// Finds a key in a line that may begin with something else, as a console's do.
fn key_in(line: &str) -> Option<PublicKey> {
    let words: Vec<_> = line.split_whitespace().collect();
    let is_algorithm = |word: &str| word.starts_with("ssh-") || word.starts_with("ecdsa-");
    words
        .windows(2)
        .filter(|pair| is_algorithm(pair[0]))
        .find_map(|pair| PublicKey::from_openssh(&pair.join(" ")).ok())
}

#[cfg(test)]
mod tests {
    use super::super::fake;
    use super::*;

    fn line(key: &PublicKey) -> String {
        format!("{} root@ip-10-0-0-1", key.to_openssh().unwrap())
    }

    #[test]
    fn the_block_on_a_console_gives_the_keys_of_its_whole_lines() {
        let (key, cut) = (fake::public_key(), line(&fake::public_key()));
        let text = format!(
            "[    1.0] boot\n{BEGIN}\r\n[   12.3] cloud-init[812]: {}\r\n{}\n{END}\n{BEGIN}\n{}",
            line(&key),
            &cut[..40],
            cut
        );
        let found = keys_on_console(&text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].key_data(), key.key_data());
    }

    #[test]
    fn blocks_that_contradict_each_other_are_not_trusted() {
        let block = |key: &PublicKey| format!("{BEGIN}\n{}\n{END}\n", line(key));
        let key = fake::public_key();
        assert_eq!(keys_on_console(&format!("{0}{0}", block(&key))).len(), 2);
        let text = block(&key) + &block(&fake::public_key());
        assert!(keys_on_console(&text).is_empty());
    }

    #[test]
    fn a_host_is_found_by_any_of_its_names_and_revoked_keys_are_noted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("known_hosts");
        let key = fake::public_key();
        let revoked = [fake::public_key(), fake::public_key()];
        let text = format!(
            "10.0.0.1,web-1 {}\n@revoked * {}\n @revoked\tweb-*\t{}\n",
            key.to_openssh().unwrap(),
            revoked[0].to_openssh().unwrap(),
            revoked[1].to_openssh().unwrap()
        );
        std::fs::write(&path, text).unwrap();
        let names = ["i-0a".to_owned(), "web-1".to_owned()];
        let known = KnownHosts::read(&path, &names).unwrap();
        assert_eq!(known.keys.unwrap().0, "web-1");
        assert_eq!(known.revoked, revoked);
        let known = KnownHosts::read(&path, &["elsewhere".to_owned()]).unwrap();
        assert!(known.keys.is_none());
        let missing = KnownHosts::read(&folder.path().join("none"), &names).unwrap();
        assert!(missing.keys.is_none());
    }
}
