//! The latest lines of the log, kept in memory for whoever asks for them.
//!
//! ```text
//!   event, with its spans ──► RecentLines ══ bounded in lines and bytes ══► Reader, one for each client
//! ```
//!
//! What comes here has passed the filter of stderr, so that nothing can be read here that is not logged there. To write
//! a line never waits for a reader: one that is too slow finds lines gone, and is told how many.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::status::wall_clock;

/// How many lines are kept: a day of ordinary use, or the night in which something went wrong.
const MOST_LINES: usize = 4096;

/// How many bytes of text are kept: what so many lines of usual length have, and little beside the daemon itself.
const MOST_BYTES: usize = 1 << 20;

/// The longest text of a line: longer ones are some library's dump, and their beginning says which.
const LONGEST: usize = 8 << 10;

/// How much text is handed to a reader at a time: far below what a message of gRPC may have.
const BATCH: usize = 256 << 10;

/// The span that everything about a tunnel happens in, and its field with the tunnel's name.
const TUNNEL: (&str, &str) = ("tunnel", "name");

/// The span that everything about a connection happens in, and its field with the connection's number.
const CONNECTION: (&str, &str) = ("connection", "number");

/// The latest lines of the log. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RecentLines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    kept: Mutex<Kept>,
    /// How many lines there have been.
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    /// Lines that were there before the first of these.
    forgotten: u64,
}

/// A line of the log.
#[derive(Debug)]
pub(crate) struct Line {
    /// When.
    pub(crate) at: SystemTime,
    /// How much it matters.
    pub(crate) level: Level,
    /// The part of the program that says it.
    pub(crate) source: &'static str,
    /// The tunnel that it is about.
    pub(crate) tunnel: Option<Arc<str>>,
    /// The connection that it is about.
    pub(crate) connection: Option<u64>,
    /// What happened, and the values that belong to it.
    pub(crate) message: String,
}

impl RecentLines {
    /// Reads the lines of these tunnels, or all if none is named, from the latest so many on; `None`: from the first.
    pub(crate) fn read(&self, names: Vec<String>, most: Option<usize>) -> Reader {
        let written = self.0.written.subscribe();
        let kept = self.kept();
        let meant = kept.lines.iter().enumerate().rev();
        let meant = meant
            .filter(|(_, line)| is_of(line, &names))
            .map(|(place, _)| place);
        let place = match most {
            Some(0) => kept.lines.len(),
            Some(most) => meant.take(most).last().unwrap_or(kept.lines.len()),
            None => 0,
        };
        Reader {
            next: kept.forgotten + place as u64,
            lines: self.clone(),
            names,
            written,
        }
    }

    fn write(&self, line: Line) {
        let mut kept = self.kept();
        kept.bytes += line.message.len();
        kept.lines.push_back(Arc::new(line));
        while kept.lines.len() > MOST_LINES || kept.bytes > MOST_BYTES {
            let Some(oldest) = kept.lines.pop_front() else {
                break;
            };
            kept.bytes -= oldest.message.len();
            kept.forgotten += 1;
        }
        let written = kept.forgotten + kept.lines.len() as u64;
        drop(kept);
        self.0.written.send_replace(written);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader's place among the lines.
#[derive(Debug)]
pub(crate) struct Reader {
    lines: RecentLines,
    /// The tunnels that are meant; empty for every line.
    names: Vec<String>,
    /// How many lines stood before the next one to be looked at.
    next: u64,
    written: watch::Receiver<u64>,
}

/// Lines that a reader has not had.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Oldest first.
    pub(crate) lines: Vec<Arc<Line>>,
    /// How many before them, of whatever tunnel, were forgotten before they could be read.
    pub(crate) missed: u64,
}

impl Reader {
    /// Returns the next lines, as many as fit in a message; none if there are none yet.
    pub(crate) fn take(&mut self) -> Batch {
        self.written.mark_unchanged();
        let kept = self.lines.kept();
        let mut batch = Batch {
            missed: kept.forgotten.saturating_sub(self.next),
            ..Batch::default()
        };
        self.next = self.next.max(kept.forgotten);
        let seen = usize::try_from(self.next - kept.forgotten).unwrap_or(usize::MAX);
        let mut bytes = 0;
        for line in kept.lines.iter().skip(seen) {
            if bytes > BATCH {
                break;
            }
            self.next += 1;
            if is_of(line, &self.names) {
                bytes += line.message.len();
                batch.lines.push(Arc::clone(line));
            }
        }
        batch
    }

    /// Waits until a line was written since the last [`Self::take`]. Cancel-safe.
    pub(crate) async fn written(&mut self) {
        // Its sender lives as long as the lines, which are held here.
        self.written.changed().await.ok();
    }
}

impl Batch {
    /// Returns whether there is nothing to tell.
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.missed == 0
    }
}

fn is_of(line: &Line, names: &[String]) -> bool {
    names.is_empty()
        || line
            .tunnel
            .as_deref()
            .is_some_and(|tunnel| names.iter().any(|name| name == tunnel))
}

/// The name of the tunnel whose span this is.
struct OfTunnel(Arc<str>);

/// The number of the connection whose span this is.
struct OfConnection(u64);

impl<S> Layer<S> for RecentLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let metadata = attributes.metadata();
        let Some(span) = context.span(id).filter(|_| is_ours(metadata.target())) else {
            return;
        };
        let mut value = Value::default();
        if metadata.name() == TUNNEL.0 {
            value.name = TUNNEL.1;
            attributes.record(&mut value);
            span.extensions_mut().insert(OfTunnel(value.text.into()));
        } else if metadata.name() == CONNECTION.0 {
            value.name = CONNECTION.1;
            attributes.record(&mut value);
            span.extensions_mut().insert(OfConnection(value.number));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Line {
            at: wall_clock(),
            level: *event.metadata().level(),
            source: event.metadata().target(),
            tunnel: None,
            connection: None,
            message: String::new(),
        };
        for span in context.event_scope(event).into_iter().flatten() {
            let extensions = span.extensions();
            if let Some(OfTunnel(name)) = extensions.get() {
                line.tunnel.get_or_insert_with(|| Arc::clone(name));
            }
            if let Some(OfConnection(number)) = extensions.get() {
                line.connection.get_or_insert(*number);
            }
        }
        let mut words = Words::default();
        event.record(&mut words);
        line.message = words.joined();
        self.write(line);
    }
}

/// Whether a span with this target was made here: libraries have such names too.
fn is_ours(target: &str) -> bool {
    target.split("::").next() == Some(env!("CARGO_CRATE_NAME"))
}

/// One field of a span.
#[derive(Default)]
struct Value {
    name: &'static str,
    text: String,
    number: u64,
}

impl Visit for Value {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == self.name {
            self.number = value;
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == self.name {
            self.text = format!("{value:?}");
        }
    }
}

/// What an event says: its sentence, and its values in the form of the lines on stderr.
#[derive(Default)]
struct Words {
    message: Bounded,
    values: Bounded,
}

impl Words {
    /// Returns the text of the line, in no more memory than it needs.
    fn joined(self) -> String {
        let mut joined = self.message;
        // What does not fit is cut.
        joined.write_str(&self.values.text).ok();
        if joined.is_cut || self.values.is_cut {
            joined.text.push('…');
        }
        joined.text.shrink_to_fit();
        joined.text
    }
}

/// A text that takes no more than a line may have, and refuses the rest, so that whoever writes it stops.
#[derive(Default)]
struct Bounded {
    text: String,
    is_cut: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if self.is_cut {
            return Err(fmt::Error);
        }
        let room = LONGEST - self.text.len();
        let fitting = &more[..more.floor_char_boundary(room)];
        self.text.push_str(fitting);
        self.is_cut = fitting.len() < more.len();
        if self.is_cut { Err(fmt::Error) } else { Ok(()) }
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // It fails where no more fits.
        if field.name() == "message" {
            write!(self.message, "{value:?}").ok();
        } else {
            write!(self.values, " {}={value:?}", field.name()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::{error_span, info, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Has something logged, and returns the lines.
    fn logging(act: impl FnOnce(&RecentLines)) -> RecentLines {
        let lines = RecentLines::default();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        tracing::subscriber::with_default(subscriber, || act(&lines));
        lines
    }

    fn messages(batch: &Batch) -> Vec<&str> {
        batch.lines.iter().map(|line| line.message.as_str()).collect()
    }

    #[test]
    fn a_line_knows_its_tunnel_and_connection_and_has_its_values_behind_it() {
        let lines = logging(|_| {
            info!("the daemon's own");
            let tunnel = error_span!("tunnel", name = %"db").entered();
            warn!(wait = ?1, "lost");
            error_span!("connection", number = 7_u64, peer = "x").in_scope(|| info!("ended"));
            drop(tunnel);
            error_span!(target: "h2", "tunnel", name = "h2").in_scope(|| info!("a library's"));
        });
        let all = lines.read(Vec::new(), None).take();
        let seen: Vec<_> = all
            .lines
            .iter()
            .map(|line| (line.tunnel.as_deref(), line.connection, line.message.as_str()))
            .collect();
        let expected = [
            (None, None, "the daemon's own"),
            (Some("db"), None, "lost wait=1"),
            (Some("db"), Some(7), "ended"),
            (None, None, "a library's"),
        ];
        assert_eq!(seen, expected);
        assert_eq!(
            (all.lines[1].level, all.lines[1].source),
            (Level::WARN, module_path!())
        );
        let of_one = lines.read(vec!["db".to_owned()], None).take();
        assert_eq!(messages(&of_one), ["lost wait=1", "ended"]);
    }

    #[test]
    fn the_latest_so_many_are_those_of_the_tunnels_that_are_meant() {
        let lines = logging(|_| {
            for number in 0..10 {
                error_span!("tunnel", name = %format!("t{}", number % 2)).in_scope(|| info!("{number}"));
            }
        });
        let latest = |names: &[&str], most| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let batch = lines.read(names, Some(most)).take();
            messages(&batch).join(" ")
        };
        assert_eq!(latest(&["t1"], 2), "7 9");
        assert_eq!(latest(&[], 2), "8 9");
        assert_eq!(latest(&[], 0), "");
        assert_eq!(latest(&["t0"], 100), "0 2 4 6 8");
        assert_eq!(latest(&["none"], 100), "");
    }

    #[test]
    fn a_slow_reader_is_told_how_many_lines_it_missed() {
        let lines = logging(|lines| {
            info!("first");
            let mut reader = lines.read(Vec::new(), None);
            assert_eq!(messages(&reader.take()), ["first"]);
            for number in 0..MOST_LINES + 5 {
                info!("{number}");
            }
            let mut batch = reader.take();
            assert_eq!((batch.missed, batch.lines[0].message.as_str()), (5, "5"));
            let mut count = batch.lines.len();
            while !batch.is_empty() {
                batch = reader.take();
                assert_eq!(batch.missed, 0);
                count += batch.lines.len();
            }
            assert_eq!(count, MOST_LINES);
        });
        assert_eq!(lines.kept().lines.len(), MOST_LINES);
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_and_a_long_line_is_cut() {
        let lines = logging(|_| {
            for _ in 0..MOST_BYTES / LONGEST + 10 {
                info!("{}", "é".repeat(LONGEST));
            }
        });
        let kept = lines.kept();
        let bytes: usize = kept.lines.iter().map(|line| line.message.len()).sum();
        assert_eq!(bytes, kept.bytes);
        assert!(bytes <= MOST_BYTES, "{bytes}");
        assert!(kept.lines[0].message.ends_with("é…"));
        assert!(kept.forgotten > 0);
    }

    /// A value whose text has no end.
    struct Endless;

    impl fmt::Debug for Endless {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            loop {
                formatter.write_str("é")?;
            }
        }
    }

    #[test]
    fn what_is_longer_than_a_line_is_not_even_written_and_no_more_memory_is_kept_than_text() {
        let lines = logging(|_| {
            info!("{Endless:?}");
            info!(value = ?Endless, other = 1, "a sentence");
            info!("a short one");
        });
        let kept = lines.kept();
        for line in &kept.lines {
            assert!(line.message.len() <= LONGEST + '…'.len_utf8());
            assert_eq!(line.message.capacity(), line.message.len());
        }
        assert!(kept.lines[0].message.ends_with("é…"));
        assert!(kept.lines[1].message.starts_with("a sentence value=éé"));
        assert!(kept.lines[1].message.ends_with("é…"));
        assert_eq!(kept.lines[2].message, "a short one");
    }

    #[tokio::test]
    async fn a_reader_waits_for_the_next_line() {
        let lines = RecentLines::default();
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        let mut reader = lines.read(Vec::new(), None);
        assert!(reader.take().is_empty());
        info!("comes");
        reader.written().await;
        assert_eq!(messages(&reader.take()), ["comes"]);
    }
}
