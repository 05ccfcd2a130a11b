//! The daemon as a service of a real systemd user manager: there at login, by a client, after a crash and all through a
//! restart; gone when it is told to be; and not hindered by what its unit forbids.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use crate::restart::Until;
use crate::ssh;
use crate::sshd::{Sshd, user};
use crate::target::{ECHO, Target, connect, echoes};
use crate::user_manager::{Machine, is_beside};
use crate::world::{LOOK, PATIENCE, World, free_port};
use crate::{account, configuration};

/// Ten times what a killed daemon may take to be back: its figure belongs to no test on a busy machine.
const BACK: Duration = Duration::from_secs(20);

/// How many connect at once, again and again, while the daemon is replaced.
const CLIENTS: usize = 8;

#[test]
fn it_is_there_after_its_installation_a_stop_and_a_crash_and_gone_after_its_removal() {
    if !is_beside("service::it_is_there_after_its_installation_a_stop_and_a_crash_and_gone_after_its_removal")
    {
        return;
    }
    let (target, port) = (Target::start(0), free_port());
    let automatic = configuration(port).replace("autostart = false", "");
    let machine = Machine::new(&account("fast", target.port), &automatic);
    let world = &machine.world;
    let installed = machine.install();
    let said = String::from_utf8_lossy(&installed.stdout);
    assert!(
        said.starts_with(
            "tunneld starts at login from now on (systemd user service, listening on its socket)"
        ),
        "{said}"
    );
    world.wait_for_tunnel("prod-db", "the tunnel is up", |tunnel| tunnel["state"] == "up");
    echoes(&connect(port, ECHO).unwrap(), "installed");
    let first = machine.daemon_id();
    assert!(world.ok(&["service", "status"]).contains(&format!("pid {first}")));

    // A client that finds nobody has the daemon started.
    machine.systemctl(&["stop", "tunneld.service"]);
    assert_eq!(machine.daemon_id(), 0);
    world.wait_for_tunnel("prod-db", "the tunnel is up again", |tunnel| {
        tunnel["state"] == "up"
    });
    let second = machine.daemon_id();
    assert!(second != 0 && second != first);

    // A crash: what was up is up, and nobody asked for it.
    let killed = Instant::now();
    let kill = Command::new("kill").args(["-9", &second.to_string()]).status();
    assert!(kill.unwrap().success());
    world.wait_for("another daemon runs", |_| {
        let id = machine.daemon_id();
        (id != 0 && id != second).then_some(())
    });
    world.wait_for_tunnel("prod-db", "the tunnel is restored", |tunnel| {
        tunnel["state"] == "up"
    });
    let took = killed.elapsed();
    assert!(took < BACK, "{took:?}");
    echoes(&connect(port, ECHO).unwrap(), "back");
    // What the killed one left open at AWS has ended.
    world.wait_for_sessions("prod-db");

    // A stop lasts: no client undoes it.
    assert_eq!(world.ok(&["daemon", "stop"]), "tunneld has stopped\n");
    let status = world.tunnelctl(&["status"]);
    let said = String::from_utf8_lossy(&status.stderr);
    assert_eq!(status.status.code(), Some(3), "{said}");
    assert!(said.ends_with("\n  systemctl --user start tunneld\n"), "{said}");
    let said = world.ok(&["daemon", "start"]);
    assert_eq!(
        said,
        format!("tunneld is running (pid {})\n", machine.daemon_id())
    );

    world.wait_for_sessions("prod-db");
    let socket = world.ok(&["version", "--json"]);
    let socket: serde_json::Value = serde_json::from_str(&socket).unwrap();
    let socket = socket["tunneld"]["socket"].as_str().unwrap().to_owned();
    let said = world.ok(&["service", "uninstall"]);
    assert!(said.starts_with("tunneld has stopped"), "{said}");
    assert_eq!(files(&machine.home(".config/systemd")), Vec::<String>::new());
    assert!(!Path::new(&socket).exists());
    let units = machine.try_systemctl(&["list-unit-files", "--no-legend", "tunneld*"]);
    assert_eq!(String::from_utf8_lossy(&units.stdout), "");
    assert_eq!(world.tunnelctl(&["status"]).status.code(), Some(3));
    let refused = connect(port, ECHO).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(world.emulator.sessions().is_empty());
    // What a person has written is kept.
    assert!(machine.home(".config/tunneld/config.toml").exists());
}

#[test]
fn without_a_manager_it_is_started_and_stopped_by_hand() {
    let world = World::new(&account("fast", free_port()), &configuration(free_port()));
    let (config, state) = (world.path("config.toml"), world.path("state"));
    let mut start = vec!["daemon", "start", "--", "--config", config.to_str().unwrap()];
    start.extend(["--state", state.to_str().unwrap(), "--allow-root"]);
    let said = world.ok(&start);
    assert!(said.starts_with("tunneld is running (pid "), "{said}");
    let version = world.ok(&["version", "--json"]);
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    let _not_left_running = ByHand(version["tunneld"]["pid"].as_u64().unwrap());
    world.ok(&["up", "prod-db"]);
    assert!(world.ok(&start).starts_with("tunneld runs already (pid "));
    let said = world.ok(&["restart-daemon"]);
    assert!(said.contains("was restarted"), "{said}");
    assert_eq!(world.ok(&["daemon", "stop"]), "tunneld has stopped\n");
    assert_eq!(world.ok(&["daemon", "stop"]), "tunneld is not running\n");
    assert!(world.emulator.sessions().is_empty());
    let log = fs::read_to_string(world.path(".local/state/tunneld/daemon.log")).unwrap();
    assert!(log.contains("stopping"), "{log}");
}

/// The process of a daemon that nobody waits for. A restart keeps it.
struct ByHand(u64);

impl Drop for ByHand {
    fn drop(&mut self) {
        // In a test that succeeds it has ended, and its number may be another's.
        if thread::panicking() {
            let _ = Command::new("kill").arg(self.0.to_string()).status();
        }
    }
}

/// Returns the names of all files and links below a folder.
fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| {
            if path.is_dir() && !path.is_symlink() {
                files(&path)
            } else {
                vec![path.display().to_string()]
            }
        })
        .collect()
}

#[test]
fn whoever_connects_while_the_daemon_is_replaced_waits() {
    if !is_beside("service::whoever_connects_while_the_daemon_is_replaced_waits") {
        return;
    }
    let (target, port) = (Target::start(0), free_port());
    let direct = format!(
        "[tunnels.direct]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"127.0.0.1:{}\"\nroute = \"direct\"\n\
         autostart = false\n",
        target.port
    );
    let machine = Machine::new(&account("fast", target.port), &direct);
    machine.install();
    machine.world.ok(&["up", "direct"]);
    let first = machine.daemon_id();

    under_load(port, || {
        machine.systemctl(&["restart", "tunneld.service"]);
    });
    let second = machine.daemon_id();
    assert_ne!(first, second);
    // It was wanted up by a person, not by the file.
    assert_eq!(machine.world.tunnel("direct")["state"], "up");

    let before = started(&machine);
    under_load(port, || {
        let said = machine.world.ok(&["restart-daemon"]);
        assert!(
            said.contains("was restarted") && said.contains("direct is up on"),
            "{said}"
        );
    });
    assert_ne!(started(&machine), before);
    machine.world.ok(&["service", "uninstall"]);
}

fn started(machine: &Machine) -> String {
    let version = machine.world.ok(&["version", "--json"]);
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    version["tunneld"]["started"].as_str().unwrap().to_owned()
}

/// Has clients connect and talk through a tunnel again and again, before, while and after something happens to its
/// daemon. None of them may be refused, or cut.
fn under_load(port: u16, happens: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    let more = || {
        let enough = served.load(Ordering::Relaxed) + CLIENTS * 2;
        let deadline = Instant::now() + PATIENCE;
        while served.load(Ordering::Relaxed) < enough {
            assert!(Instant::now() < deadline, "clients are not served");
            thread::sleep(LOOK);
        }
    };
    thread::scope(|scope| {
        let _until_then = Until(&done);
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    echoes(&connect(port, ECHO).unwrap(), "a line");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        more();
        happens();
        more();
    });
}

#[test]
fn what_the_unit_forbids_hinders_neither_agent_nor_credential_process_nor_login() {
    if !is_beside("service::what_the_unit_forbids_hinders_neither_agent_nor_credential_process_nor_login") {
        return;
    }
    let target = Target::start(0);
    let mut sshd = Sshd::new();
    let agent = Agent::start();
    let ports = [free_port(), free_port(), free_port()];
    let [by_agent, by_process, by_login] = ports;
    let configuration = format!(
        "[tunnels.agent]\nlisten = \"127.0.0.1:{by_agent}\"\ntarget = \"localhost:{target}\"\n\
         route = {{ ssh = \"{user}@bastion\", over = \"eice\" }}\nidentity = \"agent\"\n\
         [tunnels.process]\nlisten = \"127.0.0.1:{by_process}\"\ntarget = \"rds:other-db\"\n\
         route = {{ ssm = \"bastion\" }}\nprofile = \"process\"\n\
         [tunnels.login]\nlisten = \"127.0.0.1:{by_login}\"\ntarget = \"rds:other-db\"\n\
         route = {{ ssm = \"bastion\" }}\nprofile = \"login\"\n",
        target = target.port,
        user = user(),
    );
    // A name of its own: to the agent of an instance, `localhost` is the instance.
    let other_database = format!(
        "[[databases]]\nid = \"other-db\"\nkind = \"instance\"\nengine = \"postgres\"\n\
         host = \"other-db.rds.example\"\nport = 5432\naddress = \"127.0.0.1:{}\"\n",
        target.port
    );
    let account = ssh::account(&sshd, target.port) + &other_database;
    let machine = Machine::new(&account, &configuration);
    sshd.start(
        &machine.world,
        ssh::INSTANCE,
        &format!("StrictModes no\nAuthorizedKeysFile {}", agent.public_key()),
    );
    machine.set("SSH_AUTH_SOCK", &agent.socket());

    let environment = machine.world.emulator.environment();
    let [id, key] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| environment[name].as_str());
    // Python is what the AWS CLI, whose credentials others export by it, is written in.
    machine.write(
        "credentials.py",
        &format!(
            "#!/usr/bin/env python3\nimport json, subprocess, tempfile\ntempfile.TemporaryFile().close()\n\
             subprocess.run(['true'], check=True)\n\
             print(json.dumps(dict(Version=1, AccessKeyId='{id}', SecretAccessKey='{key}')))\n"
        ),
    );
    let process = machine.home("credentials.py");
    fs::set_permissions(&process, fs::Permissions::from_mode(0o755)).unwrap();
    let portal = Portal::start(id, key);
    machine.set("AWS_ENDPOINT_URL_SSO", &portal.url);
    machine.write(
        ".aws/config",
        &format!(
            "[profile process]\nregion = ap-northeast-1\ncredential_process = {}\n\
             [profile login]\nregion = ap-northeast-1\nsso_start_url = https://corp.awsapps.example/start\n\
             sso_region = us-east-1\nsso_account_id = 123456789012\nsso_role_name = dev\n",
            process.display()
        ),
    );
    // The name is the SHA-1 of the start URL, as the AWS CLI has it.
    machine.write(
        ".aws/sso/cache/1667e2e8d0e47b926b6e3048caee923410901ca4.json",
        "{\"startUrl\":\"https://corp.awsapps.example/start\",\"region\":\"us-east-1\",\
         \"accessToken\":\"fake-sso-token\",\"expiresAt\":\"2199-01-01T00:00:00Z\"}",
    );

    machine.install();
    let status = fs::read_to_string(format!("/proc/{}/status", machine.daemon_id())).unwrap();
    for forbidden in ["NoNewPrivs:\t1\n", "Seccomp:\t2\n"] {
        assert!(status.contains(forbidden), "{status}");
    }
    for name in ["agent", "process", "login"] {
        machine
            .world
            .wait_for_tunnel(name, "the tunnel is up", |tunnel| tunnel["state"] == "up");
    }
    for port in ports {
        echoes(&connect(port, ECHO).unwrap(), "here");
    }
    machine.world.ok(&["service", "uninstall"]);
}

/// An ssh-agent with one key, whose socket is where ssh-agent puts it: in a folder of the temporary one.
struct Agent {
    folder: TempDir,
    running: Child,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("ssh-").tempdir().unwrap();
        let socket = folder.path().join("agent");
        let mut running = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its first words say that it listens.
        running.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let agent = Self { folder, running };
        let key = agent.folder.path().join("key");
        for command in [
            Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&key),
            Command::new("ssh-add").arg("-q").arg(&key),
        ] {
            let output = command.env("SSH_AUTH_SOCK", agent.socket()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        // It is the agent that logs in.
        fs::remove_file(key).unwrap();
        agent
    }

    fn socket(&self) -> String {
        self.folder.path().join("agent").display().to_string()
    }

    fn public_key(&self) -> String {
        self.folder.path().join("key.pub").display().to_string()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.running.kill();
        let _ = self.running.wait();
    }
}

/// The part of AWS that gives credentials for the token of a login.
struct Portal {
    url: String,
}

impl Portal {
    fn start(id: &str, key: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let body = format!(
            "{{\"roleCredentials\":{{\"accessKeyId\":\"{id}\",\"secretAccessKey\":\"{key}\",\
             \"expiration\":7226582400000}}}}"
        );
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let refusal = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let mut request = [0; 4096];
                let length = socket.read(&mut request).unwrap();
                let request = String::from_utf8_lossy(&request[..length]);
                let known = request.starts_with("GET /federation/credentials")
                    && request.contains("x-amz-sso_bearer_token: fake-sso-token");
                socket
                    .write_all(if known { &answer } else { refusal }.as_bytes())
                    .unwrap();
            }
        });
        Self { url }
    }
}
