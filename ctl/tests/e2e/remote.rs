//! Instances without a tunnel: the system's own ssh, scp and rsync through `tunnelctl`, to a real OpenSSH server.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use tokio::time::Instant;

use crate::ssh::{INSTANCE, account};
use crate::sshd::{Sshd, user};
use crate::world::{PATIENCE, World, free_port};

/// Files of a copy.
const FILES: usize = 1_000;
/// Bytes of a large file: more than all windows and buffers on the way.
const LARGE: usize = 24 << 20;
/// Logins at once: twice what an endpoint of Instance Connect takes.
const CROWD: usize = 40;

/// An instance with an SSH server, a daemon without a tunnel, and a user's folder.
struct Stage {
    /// Port 22 of `bastion`.
    sshd: Sshd,
    world: World,
}

impl Stage {
    fn new() -> Self {
        let mut sshd = Sshd::new();
        let world = World::started(&account(&sshd, free_port()), "");
        sshd.start(&world, INSTANCE, "");
        // ssh looks for its files in the home folder of the user database, whatever HOME says.
        let known = world.path("known_hosts");
        fs::write(
            world.path("ssh_config"),
            format!(
                "UserKnownHostsFile {}\nStrictHostKeyChecking accept-new\nBatchMode yes\n",
                known.display()
            ),
        )
        .unwrap();
        Self { sshd, world }
    }

    /// `tunnelctl ssh`, as the user who runs the tests, who alone can log in.
    fn ssh(&self, before: &[&str], after: &[&str]) -> Command {
        let mut command = self.world.command("tunnelctl");
        command
            .arg("ssh")
            .args(before)
            .arg(format!("{}@bastion", user()))
            .arg("-F")
            .arg(self.world.path("ssh_config"))
            .args(after);
        command
    }

    fn run(&self, after: &[&str]) -> Output {
        self.ssh(&[], after).output().unwrap()
    }

    /// Appends what `tunnelctl ssh-config` prints to the configuration of ssh.
    fn configure(&self) {
        let lines = self
            .world
            .ok(&["ssh-config", "--host", "bastion", "--as", &user()]);
        let file = self.world.path("ssh_config");
        let before = fs::read_to_string(&file).unwrap();
        // What is said first counts.
        fs::write(&file, format!("{lines}\nHost *\n{before}")).unwrap();
    }

    /// A program of OpenSSH, or one that uses it, with this configuration.
    fn program(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        self.world.in_environment(&mut command).args(arguments);
        command.output().unwrap()
    }

    fn told(&self, output: &Output) -> String {
        format!("{output:?}\n{}\n{}", self.world.log(), self.sshd.log())
    }

    /// Writes many files, one of them large, into a folder of this name.
    fn write_files(&self, folder: &str) {
        fs::create_dir_all(self.world.path(folder).join("deep")).unwrap();
        for number in 0..FILES {
            let file = self.world.path(folder).join(format!("deep/{number}"));
            fs::write(file, format!("this is file {number}\n").repeat(number % 50)).unwrap();
        }
        let large: Vec<u8> = (0..LARGE / 4)
            .flat_map(|word| (word as u32).to_be_bytes())
            .collect();
        fs::write(self.world.path(folder).join("large"), large).unwrap();
    }

    /// Whether two folders hold the same.
    fn same(&self, one: &str, other: &str) -> bool {
        let mut diff = Command::new("diff");
        diff.arg("-r")
            .arg(self.world.path(one))
            .arg(self.world.path(other));
        diff.status().unwrap().success()
    }
}

#[test]
fn a_command_runs_there_and_its_exit_code_comes_back() {
    let stage = Stage::new();
    let output = stage.run(&["--", "echo out; echo err >&2; exit 42"]);
    assert_eq!(output.status.code(), Some(42), "{}", stage.told(&output));
    assert_eq!(output.stdout, b"out\n");
    assert!(output.stderr.ends_with(b"err\n"), "{}", stage.told(&output));
    assert!(stage.run(&["true"]).status.success());
    // Its host key is kept under the id of the instance.
    let known = fs::read_to_string(stage.world.path("known_hosts")).unwrap();
    assert!(known.starts_with(&format!("{INSTANCE} ssh-ed25519 ")), "{known}");
    // Nothing is left of the keys.
    let left = fs::read_dir(stage.world.path("run")).unwrap().count();
    assert_eq!(left, 1, "the socket alone");
}

#[test]
fn every_route_there_is_leads_there() {
    let stage = Stage::new();
    let hop = format!("{{ ssh = \"{}@bastion\", over = \"ssm\" }}", user());
    for route in ["eice", "ssm", "direct", &hop] {
        let output = stage
            .ssh(&["-v", "--route", route], &["echo hello"])
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"hello\n", "{route}: {}", stage.told(&output));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.starts_with(&format!("bastion ({INSTANCE}) by {route}\n")),
            "{said}"
        );
    }
}

#[test]
fn the_best_route_is_an_endpoint_then_the_agent_then_none_at_all() {
    let stage = Stage::new();
    let said = |account: &str| {
        let world = World::started(account, "");
        let output = world
            .command("tunnelctl")
            .args(["ssh", "-v", "bastion", "-G"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}\n{}", world.log());
        String::from_utf8(output.stderr).unwrap()
    };
    let account = account(&stage.sshd, free_port());
    assert!(said(&account).starts_with(&format!("bastion ({INSTANCE}) by eice\nuser ")));
    let (_, without_endpoint) = account.split_once("[[instances]]").unwrap();
    let without_endpoint = format!("[[instances]]{without_endpoint}");
    let by_agent = said(&without_endpoint);
    assert!(
        by_agent.starts_with(&format!("bastion ({INSTANCE}) by ssm\n  not by eice: ")),
        "{by_agent}"
    );
    let straight = said(&without_endpoint.replace("ssm = { agent = \"fast\" }\n", ""));
    assert!(
        straight.starts_with(&format!("bastion ({INSTANCE}) by direct\n  not by eice: "))
            && straight.contains("\n  not by ssm: "),
        "{straight}"
    );
}

#[test]
fn what_goes_in_comes_out() {
    let stage = Stage::new();
    stage.write_files("local");
    let large = stage.world.path("local/large");
    let output = stage
        .ssh(&[], &["cat"])
        .stdin(fs::File::open(&large).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stage.told(&output));
    assert!(output.stdout == fs::read(large).unwrap());
}

#[test]
fn a_key_that_is_not_pushed_opens_nothing() {
    let stage = Stage::new();
    let key = stage.world.path("mine");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status();
    assert!(made.unwrap().success());
    let output = stage.run(&["-i", key.to_str().unwrap(), "true"]);
    assert_eq!(output.status.code(), Some(255), "{}", stage.told(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Permission denied (publickey)"), "{said}");
}

#[test]
fn what_stands_in_the_way_is_said_once_and_in_words() {
    let stage = Stage::new();
    let output = stage.world.tunnelctl(&["ssh", "bastoin", "true"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.starts_with("there is no running instance named `bastoin`\n"),
        "{said}"
    );
    assert!(said.contains("did you mean `bastion`?"), "{said}");

    stage.world.emulator.rotate_credentials();
    let output = stage.world.tunnelctl(&["stdio", "bastion", "22"]);
    assert_eq!(output.status.code(), Some(4), "{}", stage.told(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with("tunnelctl: "), "{said}");
}

#[test]
fn scp_and_rsync_copy_by_the_printed_configuration() {
    let stage = Stage::new();
    stage.configure();
    stage.write_files("local");
    let config = stage.world.path("ssh_config");
    let config = config.to_str().unwrap();
    let there = |name: &str| format!("bastion:{}", stage.world.path(name).display());

    let output = stage.program("scp", &["-q", "-r", "-F", config, "local", &there("copied")]);
    assert!(output.status.success(), "{}", stage.told(&output));
    assert!(stage.same("local", "copied"));

    let ssh = format!("ssh -F {config}");
    let by_id = format!("{INSTANCE}:{}/", stage.world.path("copied").display());
    let output = stage.program("rsync", &["-a", "-e", &ssh, &by_id, "back"]);
    assert!(output.status.success(), "{}", stage.told(&output));
    assert!(stage.same("local", "back"));
}

/// A target that greets whoever comes, where the instance can reach it.
fn greeter() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            // A client may leave at any time.
            let _ = socket.unwrap().write_all(b"hello from within");
        }
    });
    port
}

/// Connects as soon as somebody listens there, who has to before this process ends.
fn connect(port: u16, process: &mut Child) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(socket) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            return socket;
        }
        assert_eq!(process.try_wait().unwrap(), None, "it has ended");
        assert!(Instant::now() < deadline, "nobody listens");
        thread::yield_now();
    }
}

fn greeting(mut socket: TcpStream) -> String {
    let mut greeting = String::new();
    socket.read_to_string(&mut greeting).unwrap();
    greeting
}

#[test]
fn forwards_of_ssh_itself_work_inside() {
    let stage = Stage::new();
    let (target, local, socks) = (greeter(), free_port(), free_port());
    let forward = format!("{local}:localhost:{target}");
    let mut ssh = stage
        .ssh(&[], &["-N", "-L", &forward, "-D", &socks.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(greeting(connect(local, &mut ssh)), "hello from within");

    let mut socket = connect(socks, &mut ssh);
    // SOCKS 4: connect, to this port of 127.0.0.1, for nobody in particular.
    let [high, low] = target.to_be_bytes();
    socket.write_all(&[4, 1, high, low, 127, 0, 0, 1, 0]).unwrap();
    let mut granted = [0; 8];
    socket.read_exact(&mut granted).unwrap();
    assert_eq!(granted[1], 90);
    assert_eq!(greeting(socket), "hello from within");

    let told = Command::new("kill")
        .args(["-s", "TERM", &ssh.id().to_string()])
        .status();
    assert!(told.unwrap().success());
    let ended = ssh.wait().unwrap();
    assert!(
        ended.code().is_some(),
        "it ended by itself, as ssh did: {ended:?}"
    );
}

#[test]
fn logins_share_a_link_that_ends_when_the_daemon_does() {
    let stage = Stage::new();
    for _ in 0..3 {
        let output = stage.ssh(&["--route", "ssm"], &["true"]).output().unwrap();
        assert!(output.status.success(), "{}", stage.told(&output));
    }
    assert_eq!(stage.world.emulator.calls()["ssm:StartSession"], 1);
    stage.world.signal("TERM");
    stage.world.wait_for("the session ends with the daemon", |world| {
        world.emulator.sessions().is_empty().then_some(())
    });
}

#[test]
fn a_crowd_gets_in() {
    let stage = Stage::new();
    thread::scope(|scope| {
        let logins: Vec<_> = (0..CROWD)
            .map(|number| {
                let stage = &stage;
                scope.spawn(move || (number, stage.run(&[&format!("echo {number}")])))
            })
            .collect();
        for login in logins {
            let (number, output) = login.join().unwrap();
            assert_eq!(
                output.stdout,
                format!("{number}\n").as_bytes(),
                "{}",
                stage.told(&output)
            );
        }
    });
}
