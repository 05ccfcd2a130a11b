//! Looks at every frame that one side of a session sends, and fails where the other side, or ssm.md section 11.5,
//! would not have it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tunneld_wire::ssm::Frame;

use crate::common::raw::{HANDSHAKE_COMPLETE, OUTPUT, Piece, Pipe, Raw, Streams};

/// More messages in a second than this are too many: 900 a second and a burst of a tenth of that.
const MOST_A_SECOND: usize = 992;
/// A frame of smux that says nothing.
const NOP: [u8; 8] = [1, 3, 0, 0, 0, 0, 0, 0];

pub(crate) struct Witness {
    kind: &'static str,
    peer_kind: &'static str,
    /// The most payload that may be un-acknowledged; `None` where there is no such rule.
    pub(crate) window: Option<usize>,
    /// Whether the rate of new messages is limited.
    pub(crate) paced: bool,
    /// Whether this side discards duplicates without a word, as agents before 3.2.1041 do.
    pub(crate) silent_on_duplicates: bool,
    /// The token that the next frame has to carry.
    token: Option<String>,
    client_id: Option<String>,
    complete: bool,
    /// Each data message as first sent, by its number.
    sent: Vec<Bytes>,
    lengths: BTreeMap<u64, usize>,
    /// The sum of those.
    unacknowledged: usize,
    /// New data messages of late, and how much they carry.
    recent: VecDeque<(Instant, usize)>,
    /// When data messages left of late, new or not.
    left: VecDeque<Instant>,
    /// Up to which number everything was given to this side, and what was given beyond.
    expected: u64,
    early: BTreeSet<u64>,
    /// Data messages given to this side and not acknowledged by it, in order.
    owed: VecDeque<(u64, String)>,
    paid: BTreeMap<String, u64>,
    pipe: Pipe,
    pub(crate) streams: Streams,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) flags: Vec<u32>,
    /// How many data messages were sent more than once, each time counted.
    pub(crate) repeats: usize,
    /// The numbers of those since the last websocket.
    pub(crate) repeated: Vec<u64>,
}

impl Witness {
    pub(crate) fn of_client(window: usize) -> Self {
        Self::new("input_stream_data", "output_stream_data", Some(window), true)
    }

    pub(crate) fn of_agent(window: Option<usize>) -> Self {
        Self::new("output_stream_data", "input_stream_data", window, false)
    }

    fn new(kind: &'static str, peer_kind: &'static str, window: Option<usize>, paced: bool) -> Self {
        Self {
            kind,
            peer_kind,
            window,
            paced,
            silent_on_duplicates: false,
            token: None,
            client_id: None,
            complete: false,
            sent: Vec::new(),
            lengths: BTreeMap::new(),
            unacknowledged: 0,
            recent: VecDeque::new(),
            left: VecDeque::new(),
            expected: 0,
            early: BTreeSet::new(),
            owed: VecDeque::new(),
            paid: BTreeMap::new(),
            pipe: Pipe::default(),
            streams: Streams::default(),
            pieces: Vec::new(),
            flags: Vec::new(),
            repeats: 0,
            repeated: Vec::new(),
        }
    }

    /// The same for a session in basic mode.
    pub(crate) fn in_basic_mode(mut self) -> Self {
        self.pipe = Pipe::basic();
        self
    }

    /// A client got a websocket and this token.
    pub(crate) fn attach(&mut self, token: &str) {
        self.token = Some(token.to_owned());
        self.repeated.clear();
    }

    /// The websocket is gone, and with it what had to be answered.
    pub(crate) fn detach(&mut self) {
        self.paid
            .extend(self.owed.drain(..).map(|(number, id)| (id, number)));
    }

    /// This side is given a frame.
    pub(crate) fn gave(&mut self, frame: &[u8]) {
        let raw = Raw::read(frame);
        if raw.kind == self.peer_kind {
            self.complete |= raw.payload_type == HANDSHAKE_COMPLETE;
            if raw.sequence >= self.expected || !self.silent_on_duplicates {
                self.owed.push_back((raw.sequence, raw.id));
            }
            if raw.sequence >= self.expected {
                self.early.insert(raw.sequence);
            }
            while self.early.remove(&self.expected) {
                self.expected += 1;
            }
        } else if let Some(number) = raw.acknowledged() {
            self.unacknowledged -= self.lengths.remove(&number).unwrap_or_default();
        }
    }

    /// This side sends a frame.
    pub(crate) fn saw(&mut self, frame: &Frame, now: Instant) {
        let expected = self.token.take();
        match (frame, expected) {
            (Frame::Text(text), Some(token)) => self.saw_opening(text, &token),
            (Frame::Binary(frame), None) => self.saw_binary(frame, now),
            (Frame::Text(_), None) => panic!("a text frame that is not the first"),
            (Frame::Binary(_), Some(_)) => panic!("the first frame is not the opening"),
        }
    }

    /// Everything that was given has been answered.
    pub(crate) fn settled(&self) {
        assert!(self.owed.is_empty(), "not acknowledged: {:?}", self.owed);
    }

    /// How many data messages were sent, repeats not counted.
    pub(crate) fn messages(&self) -> usize {
        self.sent.len()
    }

    /// How much the largest new data message of that last while carried.
    pub(crate) fn longest_since(&self, time: Duration, now: Instant) -> Option<usize> {
        let late = self.recent.iter().filter(|(at, _)| now - *at < time);
        late.map(|(_, length)| *length).max()
    }

    /// Whether no frame is half sent.
    pub(crate) fn is_whole(&self) -> bool {
        self.pipe.rest().is_empty()
    }

    fn saw_opening(&mut self, text: &str, token: &str) {
        let body: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(body["TokenValue"], token);
        assert_eq!(body["MessageSchemaVersion"], "1.0");
        let client_id = body["ClientId"].as_str().unwrap().to_owned();
        assert_ne!(body["RequestId"], client_id);
        assert_eq!(
            *self.client_id.get_or_insert(client_id.clone()),
            client_id,
            "one id for all websockets"
        );
    }

    fn saw_binary(&mut self, frame: &Bytes, now: Instant) {
        let raw = Raw::read(frame);
        assert!(raw.digest_is_right());
        assert!(
            !raw.payload.is_empty(),
            "official code can't take an empty payload"
        );
        if raw.kind == self.kind {
            self.saw_data(frame, raw, now);
        } else {
            assert_eq!(raw.kind, "acknowledge");
            self.saw_acknowledgement(&raw);
        }
    }

    fn saw_acknowledgement(&mut self, raw: &Raw) {
        assert_eq!((raw.sequence, raw.flags, raw.payload_type), (0, 3, 0));
        let body = raw.json();
        assert_eq!(body["AcknowledgedMessageType"], self.peer_kind);
        assert_eq!(body["IsSequentialMessage"], true);
        let id = body["AcknowledgedMessageId"].as_str().unwrap().to_owned();
        let about = (raw.acknowledged().unwrap(), id);
        if self.owed.front() == Some(&about) {
            self.owed.pop_front();
            self.paid.insert(about.1, about.0);
        } else {
            assert_eq!(
                self.paid.get(&about.1),
                Some(&about.0),
                "acknowledges what never came"
            );
        }
    }

    fn saw_data(&mut self, frame: &Bytes, raw: Raw, now: Instant) {
        let index = raw.sequence as usize;
        if let Some(first) = self.sent.get(index) {
            let says_nothing = |frame: &Bytes| frame[120..].chunks(8).all(|frame| frame == NOP);
            // A trial of a large payload, sent again.
            let is_short = frame.len() == 128 && says_nothing(frame) && says_nothing(first);
            assert!(
                first == frame || is_short,
                "a message sent again differs from the first"
            );
            self.repeats += 1;
            self.repeated.push(raw.sequence);
            if raw.payload_type == OUTPUT {
                self.count(now);
            }
            return;
        }
        assert_eq!(index, self.sent.len(), "a gap in the numbers");
        self.sent.push(frame.clone());
        let from_agent = self.kind == "output_stream_data";
        assert_eq!(raw.flags, u64::from(from_agent && index == 0));
        self.complete |= from_agent && raw.payload_type == HANDSHAKE_COMPLETE;
        self.lengths.insert(raw.sequence, raw.payload.len());
        self.unacknowledged += raw.payload.len();
        if raw.payload_type == OUTPUT {
            assert!(self.complete, "data before HandshakeComplete");
            if let Some(window) = self.window {
                assert!(
                    self.unacknowledged <= window,
                    "more than the window un-acknowledged"
                );
            }
            self.recent.push_back((now, raw.payload.len()));
            if self.recent.len() > MOST_A_SECOND {
                self.recent.pop_front();
            }
            self.count(now);
        }
        let (pieces, flags) = self.pipe.take(raw);
        for piece in &pieces {
            self.streams.take(piece);
        }
        self.pieces.extend(pieces);
        self.flags.extend(flags);
    }

    fn count(&mut self, now: Instant) {
        if !self.paced {
            return;
        }
        self.left.push_back(now);
        if self.left.len() > MOST_A_SECOND {
            let first = self.left.pop_front().unwrap();
            assert!(
                now - first >= Duration::from_secs(1),
                "more than {MOST_A_SECOND} messages a second"
            );
        }
    }
}
