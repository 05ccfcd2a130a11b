//! A restart in place, through AWS: who uses a tunnel meanwhile notices a delay at most.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;
use tokio::runtime::Runtime;
use tunneld_proto::v1::RestartRequest;
use tunneld_proto::v1::tunnels_client::TunnelsClient;

use crate::target::Target;
use crate::world::{World, free_port};
use crate::{account, configuration};

/// Returns when the daemon that answers was started.
fn started(world: &World) -> Option<Value> {
    let output = world.tunnelctl(&["version", "--json"]);
    let version: Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(version["tunneld"]["started"].clone()).filter(|started| !started.is_null())
}

fn restart(world: &World) {
    let before = started(world).unwrap();
    let asked = Runtime::new().unwrap().block_on(async {
        let channel = tunneld_proto::connect(&world.path("run/t.sock")).await.unwrap();
        TunnelsClient::new(channel).restart(RestartRequest {}).await
    });
    asked.unwrap();
    world.wait_for("the daemon has begun anew", |world| {
        started(world).filter(|present| *present != before)
    });
}

/// Something that goes on until this is dropped, also where the story fails.
pub(crate) struct Until<'d>(pub(crate) &'d AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_restart_under_load_refuses_nobody_and_restores_what_was_up() {
    let (target, port) = (Target::start(1 << 12), free_port());
    let world = World::started(&account("fast", target.port), &configuration(port));
    world.ok(&["up", "prod-db"]);
    let former = world.emulator.sessions();
    let (done, right) = (AtomicBool::new(false), AtomicUsize::new(0));
    let more = || {
        let seen = right.load(Ordering::Relaxed);
        world.wait_for("transfers go on", |_| {
            (right.load(Ordering::Relaxed) > seen + 10).then_some(())
        });
    };
    thread::scope(|scope| {
        let _until_then = Until(&done);
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert!(target.download(port).end().0, "{}", world.log());
                    right.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        more();
        restart(&world);
        more();
    });
    assert_eq!(world.tunnel("prod-db")["state"], "up");
    world.wait_for_sessions("prod-db");
    let open = world.emulator.sessions();
    let is_open = |session: &str| open.iter().any(|open| open.id == session);
    assert!(!former.iter().any(|former| is_open(&former.id)), "{open:?}");
}
