//! Streams against an endpoint in the process of the test, on a clock that it owns.

use std::net::{IpAddr, Ipv4Addr};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_tungstenite::tungstenite::protocol::Role;
use tunneld_wire::eice::LONGEST_DURATION;

use super::*;
use crate::config::Target;
use crate::failure::Scope;
use crate::transport::LinkDetails;
use crate::transport::eice::pulse::PING_INTERVAL;
use crate::transport::eice::slots::{Gate, Slots};
use crate::transport::failure_of;

/// What the pipe between both sides holds: less than a frame.
const PIPE: usize = 4 << 10;

type Endpoint = WebSocketStream<DuplexStream>;

/// A stream, the endpoint's side of it, and where the places are.
struct Rig {
    stream: EiceStream,
    endpoint: Endpoint,
    gate: Gate,
    tasks: TaskTracker,
}

async fn rig(finish: Finish) -> Rig {
    let (near, far) = duplex(PIPE);
    let socket = WebSocketStream::from_raw_socket(Socket::new(near), Role::Client, None).await;
    let endpoint = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
    let gate = Slots::default().gate("eice-1");
    let slot = gate.try_take().unwrap();
    let host = IpAddr::from(Ipv4Addr::LOCALHOST).to_string();
    let tasks = TaskTracker::new();
    let terms = Terms {
        duration: LONGEST_DURATION,
        finish,
        destination: Arc::new(Destination {
            endpoint: "eice-1".to_owned(),
            host: "eice-1.test".to_owned(),
            address: "10.0.0.7".to_owned(),
            port: 22,
            details: LinkDetails::default(),
        }),
        directory: Arc::new(Directory::new(Target::Host { host, port: 22 }, None)),
        tasks: tasks.clone(),
    };
    let stream = EiceStream::new(socket, terms, slot);
    Rig {
        stream,
        endpoint,
        gate,
        tasks,
    }
}

const GRACE: Duration = Duration::from_secs(30);

async fn for_clients() -> Rig {
    rig(Finish::After(GRACE)).await
}

fn close(code: u16, reason: &str) -> Message {
    Message::Close(Some(CloseFrame {
        code: code.into(),
        reason: reason.into(),
    }))
}

/// What the stream's reader is told, after these bytes.
async fn end_after(stream: &mut EiceStream, bytes: &[u8]) -> Result<(), Arc<Failure>> {
    let mut read = Vec::new();
    let end = stream.read_to_end(&mut read).await;
    assert_eq!(read, bytes);
    end.map(drop)
        .map_err(|error| Arc::clone(failure_of(&error).unwrap()))
}

async fn end(stream: &mut EiceStream) -> Result<(), Arc<Failure>> {
    end_after(stream, b"").await
}

#[tokio::test(start_paused = true)]
async fn frames_are_bytes_and_nothing_else_is() {
    let Rig {
        mut stream,
        mut endpoint,
        ..
    } = for_clients().await;
    let far = async {
        for message in [
            Message::binary(&b"one "[..]),
            Message::binary(&b""[..]),
            Message::Ping("?".into()),
            Message::binary(&b"two"[..]),
        ] {
            endpoint.send(message).await.unwrap();
        }
        let pong = endpoint.next().await.unwrap().unwrap();
        let said = endpoint.next().await.unwrap().unwrap();
        endpoint.send(close(1000, "")).await.unwrap();
        (pong, said)
    };
    let near = async {
        let mut read = [0; 7];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"one two");
        assert_eq!(stream.write(b"").await.unwrap(), 0);
        stream.write_all(b"three").await.unwrap();
        stream.flush().await.unwrap();
        end(&mut stream).await.unwrap();
    };
    let ((pong, said), ()) = tokio::join!(far, near);
    assert_eq!(pong, Message::Pong("?".into()));
    assert_eq!(said, Message::binary(&b"three"[..]));
}

#[tokio::test(start_paused = true)]
async fn large_writes_become_frames_of_64_kib_at_the_most() {
    let Rig {
        mut stream,
        mut endpoint,
        ..
    } = for_clients().await;
    let sent: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let far = async {
        let mut came = Vec::new();
        while came.len() < sent.len() {
            let Message::Binary(bytes) = endpoint.next().await.unwrap().unwrap() else {
                panic!("not bytes")
            };
            assert!((1..=LARGEST_FRAME).contains(&bytes.len()));
            came.extend_from_slice(&bytes);
        }
        came
    };
    let near = async {
        stream.write_all(&sent).await.unwrap();
        stream.flush().await.unwrap();
    };
    let (came, ()) = tokio::join!(far, near);
    assert_eq!(came, sent);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_makes_the_other_side_wait() {
    let Rig {
        mut stream,
        mut endpoint,
        ..
    } = for_clients().await;
    let mut sent = 0;
    let patience = Duration::from_secs(1);
    while timeout(patience, endpoint.send(Message::binary(vec![7; 1000])))
        .await
        .is_ok()
    {
        sent += 1;
        assert!(sent <= 2 * PIPE / 1000, "nobody reads, and everything is taken");
    }
    let mut written = 0;
    while let Ok(wrote) = timeout(patience, stream.write(&[7; 1000])).await {
        written += wrote.unwrap();
        assert!(
            written <= 4 * LARGEST_FRAME,
            "nobody reads, and everything is taken"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_targets_own_end_is_a_clean_one() {
    let lost = Reason::Unreachable;
    for (last, expected) in [
        (Some(close(1000, "")), None),
        (Some(close(1000, "whatever")), None),
        (Some(Message::Close(None)), None),
        (
            Some(close(1011, "Unable to connect to target")),
            Some(Reason::TargetRefused),
        ),
        (Some(close(1001, "going away")), Some(lost)),
        (Some(Message::text("hello")), Some(lost)),
        (None, Some(lost)),
    ] {
        let Rig {
            mut stream,
            mut endpoint,
            ..
        } = for_clients().await;
        endpoint.send(Message::binary(&b"all"[..])).await.unwrap();
        if let Some(last) = last.clone() {
            endpoint.send(last).await.unwrap();
        }
        drop(endpoint);
        let end = end_after(&mut stream, b"all").await;
        let reason = end.as_ref().err().map(|failure| failure.reason());
        assert_eq!(reason, expected, "{last:?}");
        assert!(end.err().is_none_or(|failure| failure.scope() == Scope::Stream));
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_endpoint_said_is_told_in_words() {
    let Rig {
        mut stream,
        mut endpoint,
        ..
    } = for_clients().await;
    endpoint
        .send(close(1011, "Unable to connect to target\u{1b}[2J"))
        .await
        .unwrap();
    let failure = end(&mut stream).await.unwrap_err();
    assert_eq!(
        failure.chain(),
        [
            "the endpoint `eice-1` cannot connect to `10.0.0.7:22`",
            "the endpoint closed it: Unable to connect to target [2J (1011)"
        ]
    );
    assert_eq!(failure.hints().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_end_when_the_hour_is_over_is_its_expiry_and_known_before() {
    for last in [Some(close(1000, "")), Some(close(1011, "time")), None] {
        let began = Instant::now();
        let Rig {
            mut stream,
            mut endpoint,
            ..
        } = for_clients().await;
        assert_eq!(stream.expires(), Some(began + LONGEST_DURATION));
        let far = async {
            let life = sleep(LONGEST_DURATION - Duration::from_secs(4));
            tokio::pin!(life);
            loop {
                tokio::select! {
                    // Pings are answered by reading them.
                    message = endpoint.next() => drop(message.unwrap().unwrap()),
                    () = &mut life => break,
                }
            }
            if let Some(last) = last {
                endpoint.send(last).await.unwrap();
            }
            drop(endpoint);
        };
        let (end, ()) = tokio::join!(end(&mut stream), far);
        let failure = end.unwrap_err();
        assert_eq!(
            (failure.reason(), failure.scope()),
            (Reason::Expired, Scope::Stream)
        );
        assert!(
            failure.to_string().ends_with("was cut, as every one is after 1h"),
            "{failure}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_far_end_without_a_sign_of_life_is_dead() {
    let began = Instant::now();
    let Rig {
        mut stream,
        endpoint: _endpoint,
        ..
    } = for_clients().await;
    let failure = end(&mut stream).await.unwrap_err();
    assert_eq!(failure.reason(), Reason::Unreachable);
    assert!(
        failure.in_one_line().contains("no sign of life for 20 s"),
        "{}",
        failure.in_one_line()
    );
    assert_eq!(began.elapsed(), PING_INTERVAL + PONG_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_was_away_does_not_take_the_far_end_for_dead() {
    let Rig {
        mut stream,
        mut endpoint,
        ..
    } = for_clients().await;
    endpoint.send(Message::binary(&b"1"[..])).await.unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).await.unwrap();
    // The ping goes out, and its answer waits for whoever reads next.
    assert!(timeout(PING_INTERVAL, stream.read(&mut byte)).await.is_err());
    assert!(matches!(endpoint.next().await, Some(Ok(Message::Ping(_)))));
    endpoint.flush().await.unwrap();
    tokio::time::advance(Duration::from_secs(600)).await;
    assert!(
        timeout(Duration::from_secs(5), stream.read(&mut byte))
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn a_clients_end_is_kept_until_the_target_has_been_silent_for_a_while() {
    let Rig {
        mut stream,
        mut endpoint,
        ..
    } = for_clients().await;
    let began = Instant::now();
    let far = async {
        let mut sent = 0;
        let next = sleep(GRACE - Duration::from_secs(1));
        tokio::pin!(next);
        // Pings come, and nothing that says that the client has ended.
        loop {
            let message = tokio::select! {
                message = endpoint.next() => message.unwrap().unwrap(),
                () = &mut next, if sent < 10 => {
                    endpoint.send(Message::binary(&b"."[..])).await.unwrap();
                    next.as_mut().reset(Instant::now() + GRACE - Duration::from_secs(1));
                    sent += 1;
                    continue;
                }
            };
            if message.is_close() {
                break message;
            }
            assert!(message.is_ping(), "{message:?}");
        }
    };
    let near = async {
        stream.shutdown().await.unwrap();
        let end = end_after(&mut stream, b"..........").await;
        assert_eq!(
            stream.write(b"x").await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        drop(stream);
        (end, began.elapsed())
    };
    let (close, (end, lasted)) = tokio::join!(far, near);
    assert_eq!(close, Message::Close(Some(goodbye())));
    assert_eq!(lasted, (GRACE - Duration::from_secs(1)) * 10 + GRACE);
    let failure = end.unwrap_err();
    assert!(
        failure.in_one_line().contains("the client had ended"),
        "{}",
        failure.in_one_line()
    );
}

#[tokio::test(start_paused = true)]
async fn the_target_may_end_after_the_client_has() {
    let Rig {
        mut stream,
        mut endpoint,
        ..
    } = for_clients().await;
    stream.shutdown().await.unwrap();
    endpoint.send(Message::binary(&b"answer"[..])).await.unwrap();
    endpoint.send(close(1000, "")).await.unwrap();
    end_after(&mut stream, b"answer").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn ssh_closes_at_once() {
    let Rig {
        mut stream,
        mut endpoint,
        ..
    } = rig(Finish::AtOnce).await;
    stream.write_all(b"bye").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(
        endpoint.next().await.unwrap().unwrap(),
        Message::binary(&b"bye"[..])
    );
    assert_eq!(
        endpoint.next().await.unwrap().unwrap(),
        Message::Close(Some(goodbye()))
    );
    // The answer is sent with the next read.
    let far = async { while endpoint.next().await.is_some() {} };
    let (end, ()) = tokio::join!(end(&mut stream), far);
    end.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_says_goodbye_and_keeps_its_place_until_it_is_heard() {
    let Rig {
        stream,
        mut endpoint,
        gate,
        tasks,
    } = for_clients().await;
    let mut others: Vec<_> = std::iter::from_fn(|| gate.try_take()).collect();
    drop(stream);
    tasks.close();
    assert_eq!(
        endpoint.next().await.unwrap().unwrap(),
        Message::Close(Some(goodbye()))
    );
    assert!(gate.try_take().is_none());
    while endpoint.next().await.is_some() {}
    drop(endpoint);
    tasks.wait().await;
    others.extend(gate.try_take());
    assert_eq!(others.len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_that_nobody_hears_ends() {
    let Rig {
        stream,
        endpoint: _endpoint,
        gate,
        tasks,
    } = for_clients().await;
    let began = Instant::now();
    drop(stream);
    tasks.close();
    tasks.wait().await;
    assert_eq!(began.elapsed(), GOODBYE);
    assert!(gate.try_take().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_written_after_the_targets_end_goes_nowhere_until_the_reader_has_seen_it() {
    let Rig {
        mut stream,
        mut endpoint,
        ..
    } = for_clients().await;
    endpoint.send(Message::binary(&b"all"[..])).await.unwrap();
    endpoint.send(close(1000, "")).await.unwrap();
    assert_eq!(stream.read(&mut [0; 100]).await.unwrap(), 3);
    stream.write_all(b"thanks").await.unwrap();
    assert_eq!(stream.read(&mut [0; 100]).await.unwrap(), 0);
    let error = stream.write_all(b"anybody?").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}
