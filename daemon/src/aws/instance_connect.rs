//! EC2 Instance Connect: a public key for one login, and what an instance's console says of its host keys.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::Account;
use crate::failure::{Failure, Reason, Remedy};

/// The most of a console's output, in base64, that is read: EC2 keeps 64 KiB of it.
const MOST_OUTPUT: usize = 256 << 10;

impl Account {
    /// Has an instance accept a public key for one of its users, for a minute. To push one again is harmless.
    ///
    /// Success says that AWS has the key, not that the instance has the user, or the package that asks for keys.
    pub async fn send_ssh_public_key(
        &self,
        instance_id: &str,
        availability_zone: Option<&str>,
        user: &str,
        public_key: &str,
    ) -> Result<(), Failure> {
        let doing = format!("cannot push a key for `{user}` to `{instance_id}`");
        let sent = self
            .instance_connect
            .send_ssh_public_key()
            .instance_id(instance_id)
            .instance_os_user(user)
            .ssh_public_key(public_key)
            .set_availability_zone(availability_zone.map(str::to_owned))
            .send()
            .await;
        match sent {
            Ok(output) if output.success() => Ok(()),
            Ok(_) => Err(Failure::new(Reason::Unreachable, Remedy::Retry, doing)
                .because("AWS did not say that it has the key")),
            Err(error) => Err(self.explained(self.failure(doing, error), instance_id)),
        }
    }

    /// Returns what an instance has written on its console; empty where nothing is kept.
    pub async fn console_output(&self, instance_id: &str) -> Result<String, Failure> {
        let doing = format!("cannot read the console of `{instance_id}`");
        let output = self
            .ec2
            .get_console_output()
            .instance_id(instance_id)
            .send()
            .await;
        let output = output.map_err(|error| self.failure(&doing, error))?;
        let encoded = output.output().unwrap_or_default().bytes();
        let encoded: Vec<u8> = encoded
            .filter(|byte| !byte.is_ascii_whitespace())
            .take(MOST_OUTPUT)
            .collect();
        let decoded = BASE64_STANDARD.decode(encoded);
        let decoded = decoded
            .map_err(|error| Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(error))?;
        Ok(String::from_utf8_lossy(&decoded).into_owned())
    }

    /// Adds what a person can do where the instance cannot take a key.
    fn explained(&self, failure: Failure, instance_id: &str) -> Failure {
        let chain = failure.in_one_line();
        if chain.contains("EC2InstanceStateInvalid") {
            return failure.hint(format!(
                "aws ec2 start-instances --instance-ids {instance_id}{}",
                self.arguments()
            ));
        }
        self.placed(failure)
    }
}
