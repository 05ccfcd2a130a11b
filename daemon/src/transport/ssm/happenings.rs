//! What follows from what happens in a session, and how a session is brought to its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};
use tunneld_wire::smux::StreamId;
use tunneld_wire::ssm::{End, Event};

use super::channel::{Activity, Doubt, Lost};
use super::driver::{Command, Driver, Phase, Stop};
use super::resume::Hopeless;
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::member::{Ask, Judgement, Report};
use crate::transport::pool::Sharing;

/// How long the agent may take to acknowledge what clients that left have sent, before it is asked to end the session.
const LAST_BYTES: Duration = Duration::from_secs(2);
/// How long the agent may take to end a session that was asked to end, before AWS is asked (it waits up to 2 s for
/// its own un-acknowledged messages).
const GOODBYE: Duration = Duration::from_secs(2);

impl Driver {
    /// Acts on what happened in the session; returns its end, if that is what happened.
    pub(super) fn handle_events(&mut self) -> Option<End> {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Ready {
                    agent_version,
                    multiplexes,
                    customer_message,
                } => self.become_ready(agent_version, multiplexes, &customer_message),
                Event::Data(id, bytes) => self.deliver(id, bytes),
                Event::Finished(id) => {
                    if let Some(stream) = self.streams.remove(&id) {
                        stream.end();
                    }
                }
                Event::Abandoned(id) => {
                    let doing = "the target did not answer in time after the client had ended its half";
                    self.fail(id, Failure::new(Reason::Unreachable, Remedy::Retry, doing));
                }
                Event::Refused(id) => self.fail(id, self.upstream.refused()),
                Event::Paused => self.away(),
                Event::Resumed => {
                    self.doubted = false;
                    self.well();
                }
                Event::Flowing => self.well(),
                Event::Doubtful => self.handle_loss(Lost::Paused),
                Event::Unanswered => {
                    if let Phase::Attached { channel, .. } = &mut self.phase {
                        channel.probe(Doubt::Lull);
                    }
                }
                Event::Stalled(suspect) => self.stalled(suspect),
                Event::StallExpired(suspect) => self.give_up(suspect),
                Event::Ended(end) => return Some(end),
                // Streams are opened and sessions terminated by our side alone.
                Event::Opened(_) | Event::Terminate => {}
            }
        }
        None
    }

    fn become_ready(&mut self, agent_version: String, multiplexes: bool, customer_message: &str) {
        if !customer_message.is_empty() {
            info!(words = ?customer_message, "the session has a message");
        }
        debug!(%agent_version, multiplexes, "session ready");
        let sharing = if multiplexes {
            Sharing::Shared
        } else {
            Sharing::Single
        };
        self.sharing = Some(sharing);
        let mut details = self.upstream.details().clone();
        details.agent_version = agent_version;
        self.reporter.tell(Report::Ready {
            sharing,
            details,
            term: self.term,
        });
        if !matches!(self.phase, Phase::Attached { .. }) {
            self.impaired("the SSM session lost its websocket");
        }
    }

    /// The far end takes bytes, if they can get there.
    fn well(&self) {
        if matches!(self.phase, Phase::Attached { .. }) && !self.session.is_peer_away() {
            self.judge(Judgement::Fit);
        }
    }

    fn away(&self) {
        let doing = "AWS says that the SSM agent is away";
        let cause = Arc::new(Failure::new(Reason::Unreachable, Remedy::Retry, doing));
        // Nobody waits any longer for one that has been away for so long.
        self.judge(if self.doubted {
            Judgement::Stalled(cause)
        } else {
            Judgement::Impaired(cause)
        });
    }

    fn deliver(&mut self, id: StreamId, bytes: Bytes) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.deliver(bytes).is_err() {
            self.session.reset(id);
            self.streams.remove(&id);
        }
    }

    /// Ends a stream with a failure of its own.
    fn fail(&mut self, id: StreamId, failure: Failure) {
        if let Some(stream) = self.streams.remove(&id) {
            stream.fail(Arc::new(failure.of_stream()));
        }
    }

    fn impaired(&self, doing: &str) {
        let cause = Failure::new(Reason::Unreachable, Remedy::Retry, doing);
        self.judge(Judgement::Impaired(Arc::new(cause)));
    }

    fn stalled(&self, suspect: Option<StreamId>) {
        let doing = format!(
            "a target takes nothing more, {}; other connections on its session wait with it",
            self.suspected(suspect)
        );
        warn!(session = self.upstream.session_id(), "{doing}");
        let cause = Failure::new(Reason::Unreachable, Remedy::Retry, doing);
        self.judge(Judgement::Stalled(Arc::new(cause)));
    }

    /// Resets the stream whose target takes nothing.
    fn give_up(&mut self, suspect: Option<StreamId>) {
        let Some(id) = suspect else { return };
        let lasted = humantime::format_duration(self.upstream.stall_timeout());
        let doing = format!(
            "the target took nothing for {lasted}, {}",
            self.suspected(suspect)
        );
        let failure = Failure::new(Reason::Unreachable, Remedy::Retry, doing)
            .hint("a longer `stall_timeout` in this tunnel's configuration has more patience");
        warn!("{}", failure.in_one_line());
        self.session.reset(id);
        self.fail(id, failure);
    }

    fn suspected(&self, suspect: Option<StreamId>) -> String {
        match suspect.and_then(|id| self.streams.get(&id)) {
            Some(stream) => format!("presumably that of the connection of {}", stream.client),
            None => "which one is not known".to_owned(),
        }
    }

    /// Ends everything in this order: the keeper learns of it, streams end, the agent is asked to end the session, AWS is
    /// asked where that may not have worked.
    pub(super) async fn finish(mut self, stop: Stop) {
        // An attempt under way holds what ending the session needs, and is of no use any more.
        if matches!(self.phase, Phase::Resuming(_)) {
            self.phase = Phase::Over;
        }
        let ended = matches!(stop, Stop::Ended(_));
        let closed_at_aws = matches!(
            stop,
            Stop::Ended(End::ChannelClosed(_)) | Stop::Hopeless(Hopeless::Gone(_))
        );
        let is_cut = !matches!(stop, Stop::Goodbye)
            && closed_at_aws
            && self.term.is_some_and(|term| term.is_over(Instant::now()));
        let failure = match stop {
            Stop::Goodbye => Failure::new(Reason::Unreachable, Remedy::Retry, "the link was closed"),
            Stop::Ended(end) => self.upstream.ended(&end),
            Stop::Hopeless(Hopeless::Gone(failure) | Hopeless::GivenUp(failure)) => failure,
        };
        let failure = Arc::new(if is_cut {
            self.upstream.cut(failure)
        } else {
            failure
        });
        self.reporter.tell(match self.sharing {
            Some(_) => Report::Ended(Arc::clone(&failure)),
            None => Report::Failed(failure.again()),
        });
        // Whoever asks for a stream from here on looks for another session at once.
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Ask(Ask::Open { .. } | Ask::Probe | Ask::Retry) => {}
                // A client that has said its last words and left.
                Command::Write { .. } | Command::Finish(_) | Command::Drop(_) => self.handle_command(command),
            }
        }
        for (id, stream) in self.streams.drain() {
            self.session.reset(id);
            // An agent in basic mode ends the session where a target refuses, and says no more than that.
            if self.sharing == Some(Sharing::Single) && ended && !stream.heard {
                let refused = self.upstream.refused().because(Arc::clone(&failure));
                stream.fail(Arc::new(refused));
            } else {
                stream.fail(Arc::clone(&failure));
            }
        }
        let closed_at_aws = closed_at_aws || (!ended && self.say_goodbye().await);
        self.upstream.settle(closed_at_aws).await;
    }

    /// Asks the agent to end the session, once it has what clients that left have sent; returns whether AWS confirmed it.
    async fn say_goodbye(&mut self) -> bool {
        let last_bytes_until = Instant::now() + LAST_BYTES;
        let deadline = last_bytes_until + GOODBYE;
        let mut asked = false;
        loop {
            let now = Instant::now();
            let has_all = self.session.streams().is_empty() && self.session.is_drained();
            if !asked && (has_all || now >= last_bytes_until) {
                asked = self.session.terminate();
                if !asked {
                    return false;
                }
            }
            let full = self.transmit(now.into_std());
            while let Some(event) = self.session.poll_event() {
                if matches!(event, Event::Ended(End::ChannelClosed(_))) {
                    return true;
                }
            }
            let Phase::Attached { channel, .. } = &mut self.phase else {
                return false;
            };
            let due = self.session.poll_timeout(now.into_std()).map(Instant::from_std);
            let until = if asked { deadline } else { last_bytes_until };
            let due = due.map_or(until, |due| due.min(until));
            match timeout_at(due, channel.activity(full)).await {
                Ok(Ok(Activity::Frame(frame))) => self.handle_frame(frame),
                Ok(Ok(Activity::Nothing | Activity::Pong)) => {}
                Ok(Err(_)) => return false,
                Err(_) if Instant::now() >= deadline => return false,
                Err(_) => self.session.handle_timeout(Instant::now().into_std()),
            }
        }
    }
}
