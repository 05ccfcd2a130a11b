//! What AWS gives out stays between it and the daemon. Every test looks for it at its end; this one proves that the look
//! finds it.

use std::fs;

use crate::world::{World, free_port};
use crate::{account, configuration};

#[test]
fn a_secret_that_was_printed_or_kept_is_found() {
    let world = World::started(&account("fast", free_port()), &configuration(free_port()));
    world.ok(&["up", "prod-db"]);
    // A secret key, a token, a cell number, and the signatures of the calls and of the websocket's upgrade.
    let secrets = world.emulator.secrets();
    assert!(secrets.len() >= 5, "{} secrets", secrets.len());
    assert_eq!(world.leaks(), Vec::<String>::new());
    let (log, kept) = (world.path("daemon.log"), world.path("state/kept"));
    let text = world.log();
    for secret in &secrets {
        fs::write(&log, format!("{text} token={secret}&")).unwrap();
        assert_eq!(world.leaks(), [format!("the daemon's log: {secret}")]);
        fs::write(&log, &text).unwrap();
        fs::write(&kept, secret).unwrap();
        assert_eq!(world.leaks(), [format!("{}: {secret}", kept.display())]);
        fs::remove_file(&kept).unwrap();
    }
}
