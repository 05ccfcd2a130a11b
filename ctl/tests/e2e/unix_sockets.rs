//! Clients that come by a Unix socket, under the name and at the place where they look for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tempfile::TempDir;

use crate::account;
use crate::mariadb::MariaDb;
use crate::postgres::Postgres;
use crate::world::{World, free_port};

/// A tunnel to a port of this machine that listens on a socket of this name, and the folder the socket is in.
fn tunnel(socket: &str, port: u16) -> (World, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let configuration = format!(
        "[tunnels.db]\nlisten = \"unix:{}/{socket}\"\ntarget = \"127.0.0.1:{port}\"\nroute = \"direct\"\n",
        folder.path().display()
    );
    let world = World::started(&account("fast", free_port()), &configuration);
    world.ok(&["up", "db"]);
    let mode = fs::metadata(folder.path().join(socket))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    (world, folder)
}

fn prints(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn psql_finds_a_tunnel_where_postgresql_has_its_socket() {
    let postgres = Postgres::start();
    let (_world, folder) = tunnel(".s.PGSQL.5432", postgres.port);
    let said = prints(Command::new("psql").arg("-h").arg(folder.path()).args([
        "-p",
        "5432",
        "-U",
        "postgres",
        "-qAt",
        "-c",
        "select 42",
    ]));
    assert_eq!(said, "42\n");
}

#[test]
fn a_client_of_mysql_is_pointed_at_a_tunnels_socket() {
    let mariadb = MariaDb::start();
    let (_world, folder) = tunnel("mysql.sock", mariadb.port);
    let said = prints(
        Command::new("mariadb")
            .args(["--no-defaults", "--user=root", "--skip-column-names", "--batch"])
            .arg(format!("--socket={}", folder.path().join("mysql.sock").display()))
            .args(["--execute", "select 42"]),
    );
    assert_eq!(said, "42\n");
}
