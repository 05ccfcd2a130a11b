//! A real PostgreSQL through an SSM session: queries, load, bulk in both directions, and websockets cut meanwhile.

use std::fs::File;
use std::process::Stdio;

use crate::postgres::{Postgres, client, psql};
use crate::world::{World, free_port};
use crate::{account, configuration};

/// Rows of `bulk`: a little over 256 MiB as COPY writes them.
const BULK_ROWS: u64 = 2_600_000;
/// Rows of `small`: about 5 MiB, which the paced agent sends in seven seconds.
const SMALL_ROWS: u64 = 50_000;

struct Stage {
    postgres: Postgres,
    world: World,
    port: u16,
}

fn stage(agent: &str) -> Stage {
    let postgres = Postgres::start();
    let port = free_port();
    let world = World::started(&account(agent, postgres.port), &configuration(port));
    let said = world.ok(&["up", "prod-db"]);
    assert!(
        said.starts_with(&format!("prod-db is up on 127.0.0.1:{port}")),
        "{said}"
    );
    Stage {
        postgres,
        world,
        port,
    }
}

impl Stage {
    fn fill(&self, rows: u64) {
        self.postgres.sql(&format!(
            "create table source as select i, md5(i::text) || md5((i + 1)::text) || md5((i + 2)::text) as text \
             from generate_series(1, {rows}) i; create table copied (like source)"
        ));
    }

    /// Runs a COPY through the tunnel and cuts the websocket each time another part of the bytes has passed.
    fn copy(&self, sql: &str, cuts: u64, total: u64, counter: &str) {
        let before = self.world.tunnel("prod-db")["traffic"][counter].as_u64().unwrap();
        let mut resumed = self.world.said("session resumed");
        let log = File::create(self.postgres.path("psql.log")).unwrap();
        let mut copying = client("psql", self.port)
            .args(["-q", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        for cut in 1..=cuts {
            let mark = before + total * cut / (cuts + 1);
            self.world
                .wait_for_tunnel("prod-db", "the next part of the copy passes", |tunnel| {
                    tunnel["traffic"][counter].as_u64().unwrap() >= mark
                });
            // The session of the copy, and the one that is kept ready beside it.
            resumed += self.world.emulator.cut();
            self.world.wait_for("the sessions are resumed", |world| {
                (world.said("session resumed") >= resumed).then_some(())
            });
        }
        let status = copying.wait().unwrap();
        let said = std::fs::read_to_string(self.postgres.path("psql.log")).unwrap();
        assert!(status.success(), "{said}\n{}", self.world.log());
    }

    /// Copies out to a file and in again, with cuts, and compares both with the source.
    fn copy_out_and_in(&self, cuts: u64) {
        let checksum = |table: &str| {
            self.postgres.sql(&format!(
                "select count(*), md5(string_agg(text, '' order by i)) from {table}"
            ))
        };
        let total: u64 = self
            .postgres
            .sql("select sum(length(i::text) + length(text) + 2) from source")
            .trim()
            .parse()
            .unwrap();
        let file = self.postgres.path("out.tsv");
        let file = file.display();
        self.copy(&format!("\\copy source to '{file}'"), cuts, total, "bytes_in");
        assert_eq!(std::fs::metadata(file.to_string()).unwrap().len(), total);
        self.copy(&format!("\\copy copied from '{file}'"), cuts, total, "bytes_out");
        assert_eq!(checksum("source"), checksum("copied"));
    }
}

#[test]
fn psql_and_pgbench_run_through_the_tunnel() {
    let stage = stage("fast");
    assert_eq!(psql(stage.port, "select 6 * 7").trim(), "42");
    let filled = client("pgbench", stage.port)
        .args(["-i", "-q", "postgres"])
        .output()
        .unwrap();
    assert!(filled.status.success(), "{filled:?}");
    let ran = client("pgbench", stage.port)
        .args(["-c", "10", "-T", "10", "postgres"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && said.contains("number of failed transactions: 0"),
        "{ran:?}"
    );
    assert_eq!(stage.world.tunnel("prod-db")["traffic"]["connections_failed"], 0);
}

#[test]
fn a_bulk_copy_out_and_in_is_exact() {
    let stage = stage("fast");
    stage.fill(BULK_ROWS);
    stage.copy_out_and_in(0);
}

#[test]
fn a_bulk_copy_survives_twenty_cut_websockets_each_way() {
    let stage = stage("fast");
    stage.fill(BULK_ROWS);
    stage.copy_out_and_in(20);
}

#[test]
fn a_small_copy_survives_three_cut_websockets_with_the_paced_agent() {
    let stage = stage("stock");
    stage.fill(SMALL_ROWS);
    stage.copy_out_and_in(3);
}
