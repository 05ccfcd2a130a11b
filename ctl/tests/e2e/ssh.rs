//! A real PostgreSQL behind a real OpenSSH server, which is reached through an endpoint of Instance Connect, the SSM
//! agent, or an address.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tunneld_emulator::{Conditions, ConnectConditions};

use crate::postgres::{Postgres, client, psql};
use crate::skipped::skip;
use crate::sshd::{Sshd, user};
use crate::world::{World, free_port};

pub(crate) const INSTANCE: &str = "i-0123456789abcdef0";

/// Connections that copy at once.
const COPIES: usize = 10;
/// Rows of each copy: 26 MiB as COPY writes them, 256 MiB in all.
const ROWS: usize = 260_000;

/// How long a tunnel lives in the compressed hour.
const HOUR: Duration = Duration::from_secs(4);
/// How often a connection makes room for its successor, at least.
const TURNS: u64 = 24;

struct Stage {
    postgres: Postgres,
    sshd: Sshd,
    world: World,
    port: u16,
}

/// An account with an endpoint, the instance `bastion` whose port 22 is an OpenSSH server, and the database `prod-db`,
/// which that server calls `localhost`.
pub(crate) fn account(sshd: &Sshd, database_port: u16) -> String {
    format!(
        "[[endpoints]]\nid = \"eice-0123456789abcdef0\"\n\
         [[instances]]\nid = \"{INSTANCE}\"\nname = \"bastion\"\nprivate_address = \"127.0.1.10\"\n\
         public_address = \"{public}\"\nconsole = {console:?}\nssm = {{ agent = \"fast\" }}\n\
         ports = {{ 22 = \"{ssh}\" }}\n\
         [[databases]]\nid = \"prod-db\"\nkind = \"instance\"\nengine = \"postgres\"\nhost = \"localhost\"\n\
         port = {database_port}\naddress = \"127.0.0.1:{database_port}\"\n",
        public = sshd.address.ip(),
        console = sshd.console(),
        ssh = sshd.address,
    )
}

/// A configuration with the one tunnel `prod-db`, which takes the SSH server over another route.
fn configuration(port: u16, over: &str, more: &str) -> String {
    format!(
        "[tunnels.prod-db]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"rds:prod-db\"\n\
         route = {{ ssh = \"{}@bastion\", over = {over} }}\nautostart = false\n{more}",
        user()
    )
}

impl Stage {
    /// Everything but the tunnel is up.
    fn new(sshd: Sshd, over: &str, more: &str) -> Self {
        Self::with_sshd(sshd, "", over, more)
    }

    fn with_sshd(mut sshd: Sshd, sshd_config: &str, over: &str, more: &str) -> Self {
        let postgres = Postgres::start();
        let port = free_port();
        let world = World::started(&account(&sshd, postgres.port), &configuration(port, over, more));
        sshd.start(&world, INSTANCE, sshd_config);
        Self {
            postgres,
            sshd,
            world,
            port,
        }
    }

    fn up(self) -> Self {
        self.world.ok(&["up", "prod-db"]);
        self
    }

    /// Copies a table out in many connections at once, and in again likewise, and compares both.
    fn copy_out_and_in(&self) {
        self.postgres.sql(&format!(
            "create table source as select i, i % {COPIES} as part, \
             md5(i::text) || md5((i + 1)::text) || md5((i + 2)::text) as text \
             from generate_series(1, {}) i; create table copied (like source)",
            COPIES * ROWS
        ));
        let file = |part: usize| self.postgres.path(&format!("{part}.tsv"));
        self.in_parallel(|part| {
            let file = file(part);
            format!(
                "\\copy (select * from source where part = {part}) to '{}'",
                file.display()
            )
        });
        let bytes: u64 = (0..COPIES)
            .map(|part| std::fs::metadata(file(part)).unwrap().len())
            .sum();
        assert!(bytes >= 256 << 20, "{bytes}");
        self.in_parallel(|part| format!("\\copy copied from '{}'", file(part).display()));
        let checksum = |table: &str| {
            self.postgres.sql(&format!(
                "select count(*), md5(string_agg(text, '' order by i)) from {table}"
            ))
        };
        assert_eq!(checksum("source"), checksum("copied"));
    }

    fn in_parallel(&self, sql: impl Fn(usize) -> String) {
        let copies: Vec<Child> = (0..COPIES)
            .map(|part| {
                client("psql", self.port)
                    .args(["-q", "-v", "ON_ERROR_STOP=1", "-c", &sql(part)])
                    .stderr(self.said(&format!("psql-{part}")))
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for (part, mut copy) in copies.into_iter().enumerate() {
            let status = copy.wait().unwrap();
            let said = self.postgres.path(&format!("psql-{part}.log"));
            let said = std::fs::read_to_string(said).unwrap();
            assert!(status.success(), "{said}\n{}", self.world.log());
        }
    }

    /// A file for what a program says.
    fn said(&self, name: &str) -> File {
        File::create(self.postgres.path(&format!("{name}.log"))).unwrap()
    }

    /// Brings the tunnel up, which has to fail; returns the exit code, and the reason, state and words of the status.
    fn fails(&self, arguments: &[&str]) -> Failed {
        let output = self.world.tunnelctl(&[&["up", "prod-db"], arguments].concat());
        let tunnel = self.world.tunnel("prod-db");
        Failed {
            code: output.status.code(),
            state: tunnel["state"].as_str().unwrap().to_owned(),
            reason: tunnel["cause"]["reason"].as_str().unwrap_or_default().to_owned(),
            words: format!("{}\n{}", tunnel["cause"], String::from_utf8_lossy(&output.stderr)),
        }
    }
}

#[derive(Debug)]
struct Failed {
    code: Option<i32>,
    state: String,
    reason: String,
    words: String,
}

impl Failed {
    #[track_caller]
    fn is(&self, state: &str, reason: &str, words: &[&str]) {
        assert_eq!(
            (self.state.as_str(), self.reason.as_str()),
            (state, reason),
            "{self:?}"
        );
        for word in words {
            assert!(self.words.contains(word), "{word} in {self:?}");
        }
    }
}

#[test]
fn psql_copies_through_an_endpoint_and_ssh() {
    let stage = Stage::new(Sshd::new(), "\"eice\"", "host_keys = \"strict\"\n").up();
    assert_eq!(psql(stage.port, "select 6 * 7").trim(), "42");
    stage.copy_out_and_in();
    let tunnel = stage.world.tunnel("prod-db");
    assert_eq!(tunnel["traffic"]["connections_failed"], 0, "{tunnel}");
    assert!(stage.world.emulator.tunnels().len() <= 4);
}

#[test]
fn psql_copies_through_an_agent_and_ssh() {
    let stage = Stage::new(Sshd::new(), "\"ssm\"", "").up();
    stage.copy_out_and_in();
    assert!(stage.world.emulator.tunnels().is_empty());
}

/// An address whose port 22 a server may have; an error, and a word about it, where there is none.
pub(crate) fn public_address() -> io::Result<SocketAddr> {
    let address = Ipv4Addr::new(127, 22, fastrand::u8(..), fastrand::u8(1..255));
    let address = SocketAddr::from((address, 22));
    TcpListener::bind(address)
        .inspect_err(|error| skip(format_args!("{address} cannot be had for an SSH server: {error}")))?;
    Ok(address)
}

/// The server has a public address, so it listens on port 22.
#[test]
fn psql_copies_through_a_public_address_and_ssh() {
    let Ok(address) = public_address() else { return };
    let stage = Stage::new(Sshd::at(address), "\"direct\"", "host_keys = \"strict\"\n").up();
    stage.copy_out_and_in();
    assert!(stage.world.emulator.sessions().is_empty() && stage.world.emulator.tunnels().is_empty());
}

#[test]
fn a_forged_host_key_blocks() {
    let mut stage = Stage::new(Sshd::new(), "\"eice\"", "host_keys = \"strict\"\n");
    stage.sshd.stop();
    stage.sshd.make_host_key();
    stage.sshd.start(&stage.world, INSTANCE, "");
    let failed = stage.fails(&[]);
    failed.is(
        "blocked",
        "denied",
        &[
            "the host key of `bastion`",
            "is known from the instance's console",
        ],
    );
    assert_eq!(failed.code, Some(4), "{failed:?}");
    assert!(
        !stage
            .world
            .emulator
            .calls()
            .contains_key("ec2-instance-connect:SendSSHPublicKey")
    );
}

#[test]
fn a_host_key_that_changed_after_the_first_use_blocks() {
    let mut stage = Stage::new(Sshd::new(), "\"eice\"", "").up();
    stage.world.wait_for("the fingerprint is told", |world| {
        (world.said("SHA256:") > 0).then_some(())
    });
    stage.world.ok(&["down", "prod-db"]);
    stage.sshd.stop();
    stage.sshd.make_host_key();
    stage.sshd.start(&stage.world, INSTANCE, "");
    let store = stage.world.path("state/host_keys");
    let forget = format!("ssh-keygen -R {INSTANCE} -f {}", store.display());
    let failed = stage.fails(&[]);
    failed.is("blocked", "denied", &["the host key of `bastion`", &forget]);
    // As the hint says.
    let forgotten = Command::new("sh").args(["-c", &forget]).output().unwrap();
    assert!(forgotten.status.success(), "{forgotten:?}");
    stage.world.ok(&["restart", "prod-db"]);
    assert_eq!(psql(stage.port, "select 42").trim(), "42");
}

#[test]
fn a_key_that_is_used_too_late_is_told_with_what_may_be_wrong() {
    let stage = Stage::new(Sshd::new(), "\"eice\"", "");
    stage.world.emulator.set_conditions(Conditions {
        connect: ConnectConditions {
            key_lifetime: Duration::from_millis(1),
            ..ConnectConditions::default()
        },
        ..Conditions::default()
    });
    let failed = stage.fails(&["--timeout", "20s"]);
    failed.is(
        "blocked",
        "denied",
        &["the key that was just pushed", "its clock must be right"],
    );
    // It was pushed again before that was said.
    let calls = stage.world.emulator.calls();
    assert!(calls["ec2-instance-connect:SendSSHPublicKey"] >= 2, "{calls:?}");
    stage.world.emulator.set_conditions(Conditions::default());
    stage.world.ok(&["restart", "prod-db"]);
    assert_eq!(psql(stage.port, "select 42").trim(), "42");
}

#[test]
fn a_server_that_forwards_nothing_is_told_apart_from_a_database_that_is_down() {
    let stage = Stage::with_sshd(Sshd::new(), "AllowTcpForwarding no", "\"eice\"", "").up();
    let refused = client("psql", stage.port)
        .args(["-c", "select 42"])
        .output()
        .unwrap();
    assert!(!refused.status.success());
    let tunnel = stage
        .world
        .wait_for_tunnel("prod-db", "the refusal is shown", |tunnel| {
            !tunnel["last_error"].is_null()
        });
    assert!(
        tunnel["last_error"].to_string().contains("AllowTcpForwarding"),
        "{tunnel}"
    );

    let mut stage = Stage::new(Sshd::new(), "\"eice\"", "").up();
    assert_eq!(psql(stage.port, "select 42").trim(), "42");
    let port = stage.port;
    stage.postgres = Postgres::start();
    let refused = client("psql", port).args(["-c", "select 42"]).output().unwrap();
    assert!(!refused.status.success());
    let tunnel = stage
        .world
        .wait_for_tunnel("prod-db", "the refusal is shown", |tunnel| {
            !tunnel["last_error"].is_null()
        });
    assert_eq!(tunnel["last_error"]["reason"], "target_refused", "{tunnel}");
    assert!(
        tunnel["last_error"].to_string().contains("Connection refused"),
        "{tunnel}"
    );
    assert_eq!(tunnel["state"], "up");
}

#[test]
fn pgbench_feels_none_of_twenty_four_turns() {
    // One connection after the other, each replaced at about half its hour.
    let more = format!(
        "max_tunnel_duration = \"{}s\"\nconnections = {{ min = 1, max = 1 }}\n",
        HOUR.as_secs()
    );
    let stage = Stage::new(Sshd::new(), "\"eice\"", &more).up();
    let filled = client("pgbench", stage.postgres.port)
        .args(["-i", "-q", "postgres"])
        .output()
        .unwrap();
    assert!(filled.status.success(), "{filled:?}");
    let seconds = HOUR.as_secs() * TURNS * 2 / 3;
    let ran = client("pgbench", stage.port)
        .args(["-n", "-C", "-c", "4", "-T", &seconds.to_string(), "postgres"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && said.contains("number of failed transactions: 0"),
        "{ran:?}\n{}",
        stage.world.log()
    );
    let turns = stage.world.emulator.ended_tunnels().len() as u64;
    println!("{said}{turns} tunnels came and went");
    assert!(turns >= TURNS, "{turns}");
    let traffic = &stage.world.tunnel("prod-db")["traffic"];
    assert_eq!(
        (&traffic["connections_failed"], &traffic["connections_expired"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn a_transaction_that_outlives_its_hour_is_cut_counted_and_told() {
    let more = format!("max_tunnel_duration = \"{}s\"\n", HOUR.as_secs());
    let stage = Stage::new(Sshd::new(), "\"eice\"", &more).up();
    let cut = client("psql", stage.port)
        .args(["-c", "select pg_sleep(60)"])
        .output()
        .unwrap();
    assert!(!cut.status.success());
    let said = String::from_utf8_lossy(&cut.stderr);
    assert!(
        said.contains("reset by peer") || said.contains("closed the connection"),
        "{said}"
    );
    let tunnel = stage
        .world
        .wait_for_tunnel("prod-db", "the cut is counted", |tunnel| {
            tunnel["traffic"]["connections_expired"] == 1
        });
    assert_eq!(tunnel["last_error"]["reason"], "expired", "{tunnel}");
    assert_eq!(tunnel["state"], "up");
    let shown = stage.world.ok(&["status", "prod-db"]);
    assert!(shown.contains("1 of them cut by the route's limit"), "{shown}");
    assert_eq!(psql(stage.port, "select 42").trim(), "42");
}
