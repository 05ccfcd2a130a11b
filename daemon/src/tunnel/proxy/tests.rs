use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::*;
use crate::failure::Remedy;
use crate::status::Board;
use crate::transport::{Delays, Transport, io_error};
use crate::tunnel::fake::{self, FakeFar};

/// One connection over a link that is up.
struct Rig {
    client: TcpStream,
    far: FakeFar,
    delays: Delays,
    board: Arc<Board>,
    slot: watch::Sender<Slot>,
    running: JoinSet<()>,
}

impl Rig {
    async fn new() -> Self {
        let (mut rig, proxy) = Self::before().await;
        rig.running.spawn(proxy.run());
        rig
    }

    /// The same before it runs.
    async fn before() -> (Self, Proxy) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        let (stream, peer) = accepted.unwrap();
        let (transport, mut attempts) = fake::transport();
        let (link, far) = tokio::join!(transport.connect(), async { attempts.next().await.succeed() });
        let lease = Lease {
            link: link.unwrap(),
            number: 1,
            _user: TaskTracker::new().token(),
        };
        let slot = watch::Sender::new(Slot::Linked(lease));
        let board = Arc::new(Board::new());
        let (reports, _) = mpsc::channel(1);
        let proxy = Proxy {
            client: Client::tcp(stream, peer),
            slot: slot.subscribe(),
            hold: Duration::from_secs(30),
            delays: transport.delays(),
            entry: board.enter(&fake::spec("db")),
            reports,
            stop: CancellationToken::new(),
        };
        let rig = Self {
            client: client.unwrap(),
            far,
            delays: transport.delays.clone(),
            board,
            slot,
            running: JoinSet::new(),
        };
        (rig, proxy)
    }

    /// Waits for the connection's end, and returns how many failed.
    async fn end(mut self) -> u64 {
        self.running.join_next().await.unwrap().unwrap();
        self.board.snapshot()[0].meter.read().connections_failed
    }
}

fn is_reset<T: fmt::Debug>(result: io::Result<T>) -> bool {
    result.expect_err("not a clean end").kind() == io::ErrorKind::ConnectionReset
}

/// A stream whose reads fail after what is in the pipe, as a lost link's do.
struct Failing(DuplexStream, Arc<Failure>);

impl Stream for Failing {}

impl AsyncRead for Failing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(context, buffer))?;
        if buffer.filled().len() == before {
            Poll::Ready(Err(io_error(&self.1)))
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

impl AsyncWrite for Failing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closed_its_half_still_gets_the_whole_answer() {
    let mut rig = Rig::new().await;
    let mut target = rig.far.accept().await;
    rig.client.write_all(b"question").await.unwrap();
    rig.client.shutdown().await.unwrap();
    let mut question = Vec::new();
    target.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question", "the target learns that no more comes");
    target.write_all(b"answer").await.unwrap();
    drop(target);
    let mut answer = Vec::new();
    rig.client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(rig.end().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_closed_its_half_still_gets_all_of_a_request() {
    let mut rig = Rig::new().await;
    let mut target = rig.far.accept().await;
    target.shutdown().await.unwrap();
    assert_eq!(
        rig.client.read(&mut [0]).await.unwrap(),
        0,
        "the far end's own end is a clean one"
    );
    rig.client.write_all(b"more").await.unwrap();
    rig.client.shutdown().await.unwrap();
    let mut more = Vec::new();
    target.read_to_end(&mut more).await.unwrap();
    assert_eq!(more, b"more");
    assert_eq!(rig.end().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_is_a_reset_and_never_a_clean_end() {
    let mut rig = Rig::new().await;
    let (near, mut target) = tokio::io::duplex(64);
    let failure = Arc::new(Failure::new(
        Reason::Unreachable,
        Remedy::Retry,
        "the session ended",
    ));
    rig.far
        .opening()
        .await
        .accept_as(Failing(near, Arc::clone(&failure)));
    target.write_all(b"half of it").await.unwrap();
    let mut half = [0; 10];
    rig.client.read_exact(&mut half).await.unwrap();
    drop(target);
    assert!(is_reset(rig.client.read(&mut [0]).await));
    rig.running.join_next().await.unwrap().unwrap();
    let status = Arc::clone(&rig.board.snapshot()[0]);
    assert!(
        Arc::ptr_eq(&status.last_error.as_ref().unwrap().failure, &failure),
        "its own words are shown"
    );
    assert_eq!(status.meter.read().connections_failed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_carried_nothing_gets_another_stream_when_its_own_is_lost() {
    let mut rig = Rig::new().await;
    for _ in 0..2 {
        let (near, target) = tokio::io::duplex(64);
        let opening = rig.far.opening().await;
        opening.accept_as(Failing(near, Arc::new(fake::lost())));
        drop(target);
    }
    let mut target = rig.far.accept().await;
    rig.client.write_all(b"hello").await.unwrap();
    target.read_exact(&mut [0; 5]).await.unwrap();
    drop(target);
    assert_eq!(rig.client.read(&mut [0]).await.unwrap(), 0);
    rig.client.shutdown().await.unwrap();
    assert_eq!(rig.end().await, 0);
}

fn expired() -> Arc<Failure> {
    let failure = Failure::new(Reason::Expired, Remedy::Retry, "the route's hour was over");
    Arc::new(failure.of_stream())
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_cut_because_its_time_was_over_is_counted_as_that() {
    let mut rig = Rig::new().await;
    let (near, mut target) = tokio::io::duplex(64);
    rig.far.opening().await.accept_as(Failing(near, expired()));
    target.write_all(b"half of it").await.unwrap();
    rig.client.read_exact(&mut [0; 10]).await.unwrap();
    drop(target);
    assert!(is_reset(rig.client.read(&mut [0]).await));
    rig.running.join_next().await.unwrap().unwrap();
    let traffic = rig.board.snapshot()[0].meter.read();
    assert_eq!((traffic.connections_failed, traffic.connections_expired), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_carried_nothing_in_its_time_gets_another_stream() {
    let mut rig = Rig::new().await;
    let (near, target) = tokio::io::duplex(64);
    rig.far.opening().await.accept_as(Failing(near, expired()));
    drop(target);
    let mut target = rig.far.accept().await;
    rig.client.write_all(b"hello").await.unwrap();
    target.read_exact(&mut [0; 5]).await.unwrap();
    drop(target);
    assert_eq!(rig.client.read(&mut [0]).await.unwrap(), 0);
    rig.client.shutdown().await.unwrap();
    assert_eq!(rig.end().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_for_the_next_link_when_its_stream_can_not_be_opened_at_the_moment() {
    let mut rig = Rig::new().await;
    let Slot::Linked(lease) = rig.slot.borrow().clone() else {
        panic!("not linked")
    };
    let opening = rig.far.opening().await;
    rig.slot.send_replace(Slot::Hold { cause: None });
    opening.given_up().await;
    rig.slot.send_replace(Slot::Linked(lease));
    let mut target = rig.far.accept().await;
    rig.client.write_all(b"hello").await.unwrap();
    target.read_exact(&mut [0; 5]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_reset_ends_its_stream() {
    let rig = Rig::new().await;
    let mut target = rig.far.accept().await;
    let Rig {
        client,
        mut running,
        board,
        ..
    } = rig;
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(target.read(&mut [0]).await.unwrap(), 0);
    running.join_next().await.unwrap().unwrap();
    assert_eq!(
        board.snapshot()[0].meter.read().connections_failed,
        0,
        "no fault of ours"
    );
}

#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn a_client_that_closed_completely_does_not_wait_for_a_silent_target() {
    let mut rig = Rig::new().await;
    let mut target = rig.far.accept().await;
    rig.client.write_all(b"bye").await.unwrap();
    drop(rig.client);
    let mut all = Vec::new();
    target.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"bye");
    rig.running.join_next().await.unwrap().unwrap();
    target
        .write_all(b"too late")
        .await
        .expect_err("the stream was dropped");
    assert_eq!(rig.board.snapshot()[0].meter.read().connections_failed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_its_stream_is_opened_gives_it_up() {
    let rig = Rig::new().await;
    let opening = rig.far.opening().await;
    drop(rig.client);
    opening.given_up().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_does_not_try_the_same_link_twice() {
    let mut rig = Rig::new().await;
    rig.far.opening().await.refuse(fake::lost());
    let began = Instant::now();
    assert!(is_reset(rig.client.read(&mut [0]).await), "no other link came");
    assert!(began.elapsed() >= Duration::from_secs(30));
    drop(rig.slot);
}

#[tokio::test(start_paused = true)]
async fn a_large_transfer_arrives_whole_both_ways_at_once() {
    let rig = Rig::new().await;
    let target = rig.far.accept().await;
    let Rig {
        mut client,
        mut running,
        board,
        ..
    } = rig;
    let data: Vec<u8> = (0..3_000_000_u32)
        .map(|number| number.to_le_bytes()[0] ^ 0x5a)
        .collect();
    async fn exchange(end: impl AsyncRead + AsyncWrite, data: &[u8]) -> Vec<u8> {
        let (mut reader, mut writer) = tokio::io::split(end);
        let mut received = Vec::new();
        let send = async {
            writer.write_all(data).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(reader.read_to_end(&mut received), send);
        read.unwrap();
        received
    }
    let (down, up) = tokio::join!(exchange(&mut client, &data), exchange(target, &data));
    assert!(down == data && up == data);
    running.join_next().await.unwrap().unwrap();
    let traffic = board.snapshot()[0].meter.read();
    assert_eq!((traffic.bytes_in, traffic.bytes_out), (3_000_000, 3_000_000));
}

/// The last line of a connection says who ended it, after how long, and the bytes each way.
#[tokio::test(start_paused = true)]
async fn the_log_says_who_ended_a_connection() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .without_time()
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let mut rig = Rig::new().await;
    let mut target = rig.far.accept().await;
    rig.client.write_all(b"abc").await.unwrap();
    target.read_exact(&mut [0; 3]).await.unwrap();
    target.write_all(b"defgh").await.unwrap();
    drop(target);
    let mut answer = Vec::new();
    rig.client.read_to_end(&mut answer).await.unwrap();
    rig.client.shutdown().await.unwrap();
    rig.end().await;

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let last = log.lines().last().unwrap();
    for part in [
        "connection ended: target closed",
        "duration=",
        "bytes_in=5",
        "bytes_out=3",
    ] {
        assert!(last.contains(part), "{part} in {last}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_waited_too_long_says_what_for() {
    let (rig, mut proxy) = Rig::before().await;
    let full = Failure::new(Reason::Throttled, Remedy::Retry, "all 20 connections are in use");
    let _delay = rig.delays.begin(full);
    let tally = Tally::default();
    let (end, _opening) = tokio::join!(proxy.serve(&tally), rig.far.opening());
    assert_eq!(
        end.to_string(),
        "held 30s without a link: all 20 connections are in use"
    );
}
