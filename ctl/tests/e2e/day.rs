//! A day in compressed time: what the hours, sleeps, logins and an update of the SSM agent do to connections that are
//! in use all the while.

use std::cell::RefCell;
use std::fs::{self, File};
use std::ops::RangeInclusive;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::time::Instant;
use tunneld_emulator::{Credentials, Outage};

use crate::postgres::{Postgres, client};
use crate::world::{World, free_port};
use crate::{account, configuration};

/// Connections of pgbench: with them every session that a link may have carries one.
const CLIENTS: usize = 4;
/// The hours in which something happens beside AWS's closing of the websockets.
const SLEEPS: [u32; 3] = [3, 11, 19];
const LOGINS: [u32; 2] = [7, 16];
const RESTART: u32 = 13;
/// How long the restarted agent is away.
const AWAY: Duration = Duration::from_secs(1);

/// The credentials of the day before.
const SECRET: &str = "yesterday/Secret+Key/0000000000000000000";
const TOKEN: &str = "yesterday+token==";

/// A user's machine with a tunnel that is up, and what it was told that nobody else may know.
struct Day {
    postgres: Postgres,
    world: World,
    port: u16,
    secrets: Vec<String>,
}

/// pgbench, whose connections live as long as it does.
struct Load {
    pgbench: Child,
    /// The processes of the database that serve it.
    backends: String,
}

/// Somebody who asks a short question again and again, over a connection for each.
struct Errands {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<Vec<Errand>>,
}

/// One question.
#[derive(Debug)]
struct Errand {
    asked: Instant,
    answered: Instant,
    /// What went wrong.
    failure: Option<String>,
}

impl Day {
    fn begin() -> Self {
        let postgres = Postgres::start();
        let filled = client("pgbench", postgres.port)
            .args(["-i", "-q", "postgres"])
            .output()
            .unwrap();
        assert!(filled.status.success(), "{filled:?}");
        let port = free_port();
        let account = account("stock", postgres.port)
            + &format!(
                "[credentials]\naccess_key_id = \"ASIAEMULATOR0000000\"\nsecret_access_key = \"{SECRET}\"\n\
                 session_token = \"{TOKEN}\"\n"
            );
        let world = World::new(&account, &(configuration(port) + "profile = \"day\"\n"));
        let mut day = Self {
            postgres,
            world,
            port,
            secrets: vec![SECRET.to_owned(), TOKEN.to_owned()],
        };
        day.log_in();
        day.world.start();
        day.world.ok(&["up", "prod-db"]);
        day
    }

    /// Gets other credentials; those before have expired.
    fn log_in(&mut self) {
        let Credentials {
            secret_access_key,
            session_token,
            ..
        } = self.world.log_in("day");
        self.secrets.push(secret_access_key);
        self.secrets.extend(session_token);
    }

    fn load(&self) -> Load {
        let said = File::create(self.postgres.path("pgbench.log")).unwrap();
        let pgbench = client("pgbench", self.port)
            .args(["-n", "-N", "-c", &CLIENTS.to_string(), "-T", "3600", "postgres"])
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .unwrap();
        let backends = self.world.wait_for("pgbench has all its connections", |_| {
            let pids = self.postgres.sql(&format!(
                "select string_agg(pid::text, ',') from pg_stat_activity where application_name = 'pgbench' \
                 having count(*) = {CLIENTS}"
            ));
            Some(pids.trim().to_owned()).filter(|pids| !pids.is_empty())
        });
        let load = Load { pgbench, backends };
        self.goes_on(&load);
        load
    }

    /// Waits until each connection of the load has said something more, and none is missing.
    fn goes_on(&self, load: &Load) {
        let now = self.postgres.sql("select clock_timestamp()");
        let counted = format!(
            "select count(*), count(*) filter (where query_start > '{}') from pg_stat_activity where pid in ({})",
            now.trim(),
            load.backends
        );
        self.world.wait_for("every connection goes on", |world| {
            let counts = self.postgres.sql(&counted);
            let (all, went_on) = counts.trim().split_once('|').unwrap();
            let said = || fs::read_to_string(self.postgres.path("pgbench.log")).unwrap();
            assert_eq!(
                all,
                CLIENTS.to_string(),
                "a connection was lost: {}\n{}",
                said(),
                world.log()
            );
            (went_on == all).then_some(())
        });
    }

    /// Waits until every session has been resumed.
    fn resumes(&self, resumed_before: usize, sessions: usize) {
        self.world.wait_for("the sessions are resumed", |world| {
            (world.said("session resumed") >= resumed_before + sessions).then_some(())
        });
    }

    /// AWS closes the websockets, as each hour.
    fn pass_hour(&self, load: &Load) -> Duration {
        self.world.wait_for_sessions("prod-db");
        let before = self.world.said("session resumed");
        let began = Instant::now();
        let closed = self.world.emulator.recycle();
        self.resumes(before, closed);
        self.goes_on(load);
        began.elapsed()
    }

    /// The laptop is closed and opened again; meanwhile all its connections have died.
    fn sleep(&self, load: &Load) -> Duration {
        let sessions = self.world.wait_for_sessions("prod-db");
        let before = self.world.said("session resumed");
        self.world.signal("STOP");
        let state = format!("/proc/{}/stat", self.world.daemon_id());
        self.world.wait_for("the daemon stands still", |_| {
            fs::read_to_string(&state).unwrap().contains(") T ").then_some(())
        });
        self.world.emulator.begin_outage(Outage::Frozen);
        self.world.emulator.end_outage();
        let began = Instant::now();
        self.world.signal("CONT");
        self.resumes(before, sessions);
        self.goes_on(load);
        began.elapsed()
    }

    /// The agent is updated: its sessions end. Returns when.
    fn restart_agent(&self, load: Load) -> RangeInclusive<Instant> {
        let began = Instant::now();
        let ended = self.world.emulator.restart_agents(AWAY);
        assert_eq!(ended, CLIENTS, "a session for each connection");
        let pgbench = RefCell::new(load.pgbench);
        let ended = self.world.wait_for("pgbench has lost its connections", |_| {
            pgbench.borrow_mut().try_wait().unwrap()
        });
        assert!(!ended.success(), "no clean end");
        began..=Instant::now()
    }
}

impl Load {
    fn end(mut self) {
        assert_eq!(self.pgbench.try_wait().unwrap(), None, "it runs to the end");
        self.pgbench.kill().unwrap();
        self.pgbench.wait().unwrap();
    }
}

impl Errands {
    fn begin(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let asking = thread::spawn(move || {
            let mut errands = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let output = client("psql", port)
                    .args(["-qAt", "-c", "select 42"])
                    .output()
                    .unwrap();
                let failure = (output.stdout != b"42\n").then(|| format!("{output:?}"));
                errands.push(Errand {
                    asked,
                    answered: Instant::now(),
                    failure,
                });
            }
            errands
        });
        Self { stop, asking }
    }

    fn end(self) -> Vec<Errand> {
        self.stop.store(true, Ordering::Relaxed);
        self.asking.join().unwrap()
    }
}

#[test]
fn a_day_ends_no_connection_but_those_that_a_restarted_agent_carried() {
    let mut day = Day::begin();
    let mut load = day.load();
    let errands = Errands::begin(day.port);
    let (mut restarts, mut awake, mut resumed) = (Vec::new(), Vec::new(), Vec::new());
    for hour in 0..24 {
        if SLEEPS.contains(&hour) {
            awake.push(day.sleep(&load));
        }
        if LOGINS.contains(&hour) {
            day.log_in();
        }
        if hour == RESTART {
            let restart = day.restart_agent(load);
            load = day.load();
            println!(
                "after the agent's restart: as before in {:?}",
                restart.start().elapsed()
            );
            restarts.push(restart);
        }
        resumed.push(day.pass_hour(&load));
    }
    resumed.sort();
    println!(
        "after a sleep, all connections went on in {awake:?}; after a recycle in {:?}, at most in {:?}",
        resumed[resumed.len() / 2],
        resumed[resumed.len() - 1]
    );
    let (lost, answered): (Vec<_>, Vec<_>) = errands
        .end()
        .into_iter()
        .partition(|errand| errand.failure.is_some());
    let by_restart = |errand: &Errand| {
        restarts
            .iter()
            .any(|restart| errand.asked <= *restart.end() && errand.answered >= *restart.start())
    };
    assert!(lost.iter().all(by_restart), "{lost:?}\n{}", day.world.log());
    println!("{} short connections, {} lost", answered.len(), lost.len());
    day.world.wait_for_sessions("prod-db");
    load.end();
    let tunnel = day
        .world
        .wait_for_tunnel("prod-db", "every connection ends", |tunnel| {
            tunnel["traffic"]["connections"] == 0
        });
    assert_eq!(
        tunnel["traffic"]["connections_failed"],
        CLIENTS + lost.len(),
        "{tunnel}"
    );

    day.world.ok(&["down", "prod-db"]);
    assert_eq!(day.world.emulator.sessions(), []);
    assert!(day.world.stop());
    let log = day.world.log();
    for secret in day
        .secrets
        .iter()
        .map(String::as_str)
        .chain(["cell-number", "TokenValue"])
    {
        assert!(!log.contains(secret), "the log holds {secret}");
    }
}
