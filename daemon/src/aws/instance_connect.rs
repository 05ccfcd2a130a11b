//! EC2 Instance Connect: an instance accepts an SSH key for a minute.

use super::Account;
use crate::failure::Failure;

impl Account {
    /// Has an instance accept this public key, in the format of OpenSSH, for a user of its system: for 60 seconds.
    pub async fn send_ssh_public_key(
        &self,
        instance_id: &str,
        availability_zone: Option<&str>,
        user: &str,
        public_key: &str,
    ) -> Result<(), Failure> {
        let doing = format!("cannot have `{instance_id}` accept a key for the user `{user}`");
        self.instance_connect
            .send_ssh_public_key()
            .instance_id(instance_id)
            .instance_os_user(user)
            .ssh_public_key(public_key)
            .set_availability_zone(availability_zone.map(str::to_owned))
            .send()
            .await
            .map(drop)
            .map_err(|error| self.failure(doing, error))
    }
}
