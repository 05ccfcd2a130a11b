//! The product as a person meets it: real programs, a real database, the emulated AWS, and what must hold between
//! them. One story a test.

#![expect(clippy::unwrap_used, reason = "a step of a story that fails ends it")]

mod agents;
mod chaos;
mod crowd;
mod database;
mod day;
mod ecs;
mod eice;
mod endings;
mod failures;
mod hostile;
mod laptop;
mod lifecycle;
mod load;
mod managed;
mod mariadb;
mod neighbours;
mod on_demand;
mod outage;
mod pool;
mod postgres;
mod rdp;
mod readme;
mod remote;
mod resources;
mod restart;
mod secrets;
mod seeing;
mod service;
mod skipped;
mod slow_reader;
mod ssh;
mod sshd;
mod stalls;
mod target;
mod unix_sockets;
mod user_manager;
mod world;

/// An account with the instance `bastion`, whose agent is of the given kind, and the database `prod-db`.
fn account(agent: &str, database_port: u16) -> String {
    format!(
        "[[instances]]\nid = \"i-0123456789abcdef0\"\nname = \"bastion\"\nprivate_address = \"10.0.1.10\"\n\
         ssm = {{ agent = \"{agent}\" }}\n\
         [[databases]]\nid = \"prod-db\"\nkind = \"instance\"\nengine = \"postgres\"\n\
         host = \"prod-db.cabcdefghijk.ap-northeast-1.rds.amazonaws.com\"\nport = 5432\n\
         address = \"127.0.0.1:{database_port}\"\n"
    )
}

/// A configuration with the one tunnel `prod-db`, which a person brings up.
fn configuration(port: u16) -> String {
    format!(
        "[tunnels.prod-db]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"rds:prod-db\"\n\
         route = {{ ssm = \"bastion\" }}\nautostart = false\n"
    )
}
