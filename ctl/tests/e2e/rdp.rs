//! The desktop of an instance: a real client of RDP shows the login screen of a real server, through `tunnelctl rdp`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use crate::world::{PATIENCE, World, free_port};

/// Between two looks at whether the server listens.
const LOOK: Duration = Duration::from_millis(10);

/// What the login screen is painted with, as a screen of 32 bits a pixel has it: blue, green, red.
const BACKGROUND: [u8; 3] = [0x78, 0x56, 0x34];
const DIALOGUE: [u8; 3] = [0xde, 0xde, 0xde];

/// Pixels of each that a screen of 800 by 600 has at least once the login screen is there: half of what was seen.
const ENOUGH: usize = 45_000;

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server of RDP without a session behind it.
fn xrdp(folder: &TempDir) -> (Running, u16) {
    let port = free_port();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=win-1",
        ])
        .args(["-keyout", &path("key.pem"), "-out", &path("certificate.pem")])
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    let configuration = format!(
        "[Globals]\nini_version=1\nfork=true\nport=tcp://127.0.0.1:{port}\ntcp_nodelay=true\nsecurity_layer=tls\n\
         certificate={}\nkey_file={}\nssl_protocols=TLSv1.2, TLSv1.3\nmax_bpp=32\n\
         ls_top_window_bg_color=345678\nls_bg_color=dedede\nls_width=350\nls_height=430\n\
         [Logging]\nLogFile={}\nLogLevel=INFO\n\
         [Xorg]\nname=Xorg\nlib=libxup.so\nusername=ask\npassword=ask\nip=127.0.0.1\nport=-1\ncode=20\n",
        path("certificate.pem"),
        path("key.pem"),
        path("xrdp.log")
    );
    fs::write(path("xrdp.ini"), configuration).unwrap();
    let server = Command::new("xrdp")
        .args(["--nodaemon", "--config", &path("xrdp.ini")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("xrdp is installed: apt-get install xrdp");
    let server = Running(server);
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "xrdp does not listen");
        sleep(LOOK);
    }
    (server, port)
}

/// A screen that nobody looks at but the test, which finds it in a file; returns its name.
fn screen(folder: &TempDir) -> (Running, String) {
    let mut server = Command::new("Xvfb")
        .args([
            "-displayfd",
            "1",
            "-screen",
            "0",
            "800x600x24",
            "-nolisten",
            "tcp",
            "-fbdir",
        ])
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("Xvfb is installed: apt-get install xvfb");
    let mut number = String::new();
    let mut said = BufReader::new(server.stdout.take().unwrap());
    said.read_line(&mut number).unwrap();
    (Running(server), format!(":{}", number.trim()))
}

/// Whether the screen shows the server's login screen.
fn shows_login(folder: &TempDir) -> bool {
    let pixels = fs::read(folder.path().join("Xvfb_screen0")).unwrap_or_default();
    let count = |colour: [u8; 3]| {
        pixels
            .chunks_exact(4)
            .filter(|pixel| pixel.starts_with(&colour))
            .count()
    };
    count(BACKGROUND) > ENOUGH && count(DIALOGUE) > ENOUGH
}

fn the_login_screen_appears(account: &str, ways: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (_server, port) = xrdp(&folder);
    let (_screen, display) = screen(&folder);
    let account = format!("{account}ports = {{ 3389 = \"127.0.0.1:{port}\" }}\n");
    let mut world = World::started(&account, "");
    world.set("DISPLAY", &display);
    let log = File::create(folder.path().join("client.log")).unwrap();
    let client = world
        .command("tunnelctl")
        .args([&["rdp"], ways, &["win-1", "--", "/size:800x600"]].concat())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut client = Running(client);
    let said = || fs::read_to_string(folder.path().join("client.log")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !shows_login(&folder) {
        assert_eq!(client.0.try_wait().unwrap(), None, "{}\n{}", said(), world.log());
        assert!(Instant::now() < deadline, "{}\n{}", said(), world.log());
        sleep(LOOK);
    }
    // Told to end, it takes the client along.
    let told = Command::new("kill")
        .args(["-s", "TERM", &client.0.id().to_string()])
        .status();
    assert!(told.unwrap().success());
    client.0.wait().unwrap();
}

#[test]
fn the_login_screen_appears_through_the_agent() {
    let account = "[[instances]]\nid = \"i-0123456789abcdef0\"\nname = \"win-1\"\n\
                   private_address = \"10.0.1.10\"\nssm = { agent = \"fast\" }\n";
    the_login_screen_appears(account, &["--route", "ssm"]);
}
