//! The figures of one moment, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::aws::{Call, Outcome};
use crate::meter::Traffic;
use crate::status::{STATES, Snapshot, Status};

/// What the text is, for the header of the answer.
pub(super) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// A figure of a tunnel: its name, what it means, and where it stands.
type Figure = (&'static str, &'static str, fn(&Status, &Traffic) -> u64);

/// What goes up and down.
const GAUGES: [Figure; 3] = [
    (
        "tunneld_tunnel_open_connections",
        "Local connections that are open.",
        |_, traffic| traffic.connections.into(),
    ),
    (
        "tunneld_tunnel_held_connections",
        "Local connections that wait for a link.",
        |_, traffic| traffic.held.into(),
    ),
    (
        "tunneld_tunnel_sessions",
        "AWS sessions or SSH connections that make up the link.",
        |status, _| status.link.as_ref().map_or(0, |link| link.sessions.into()),
    ),
];

/// What only grows. The format adds `_total`.
const COUNTERS: [Figure; 9] = [
    (
        "tunneld_tunnel_connections",
        "Local connections so far.",
        |_, traffic| traffic.connections_total,
    ),
    (
        "tunneld_tunnel_connections_failed",
        "Local connections that ended with an error.",
        |_, traffic| traffic.connections_failed,
    ),
    (
        "tunneld_tunnel_connections_expired",
        "Those that failed because the route's time for them was over.",
        |_, traffic| traffic.connections_expired,
    ),
    (
        "tunneld_tunnel_connections_refused",
        "Connections of users who may not use the tunnel.",
        |_, traffic| traffic.connections_refused,
    ),
    (
        "tunneld_tunnel_connections_unknown",
        "Connections that were not served because nobody knew whose they were.",
        |_, traffic| traffic.connections_unknown,
    ),
    (
        "tunneld_tunnel_connections_lost",
        "Those that failed because there was no way to the target, or none any more.",
        |status, _| status.meter.lost(),
    ),
    (
        "tunneld_tunnel_received_bytes",
        "Bytes from the target to local clients.",
        |_, traffic| traffic.bytes_in,
    ),
    (
        "tunneld_tunnel_sent_bytes",
        "Bytes from local clients to the target.",
        |_, traffic| traffic.bytes_out,
    ),
    (
        "tunneld_tunnel_links_lost",
        "Links that were lost and could not be resumed.",
        |_, traffic| traffic.links_lost,
    ),
];

/// The figures.
#[derive(Debug)]
pub(super) struct Exposition {
    pub(super) tunnels: Snapshot,
    pub(super) calls: BTreeMap<Call, u64>,
    /// When the daemon started.
    pub(super) started: SystemTime,
}

impl Exposition {
    /// Returns the text.
    pub(super) fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry)?;
        Ok(text)
    }

    fn daemon(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Which version runs.";
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let mut build = encoder.encode_descriptor("tunneld_build", help, None, MetricType::Info)?;
        build.encode_info(&version)?;

        let help = "When the daemon started, in seconds since 1970.";
        let mut start =
            encoder.encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?;
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        start.encode_gauge(&started.as_secs_f64())
    }

    fn states(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 for the state that a tunnel is in, 0 for the others.";
        let mut states = encoder.encode_descriptor("tunneld_tunnel_state", help, None, MetricType::Gauge)?;
        for status in self.tunnels.iter() {
            for state in STATES {
                let labels = [("tunnel", status.name.as_str()), ("state", state)];
                let is_in = u64::from(status.state.name() == state);
                states.encode_family(&labels)?.encode_gauge(&is_in)?;
            }
        }
        Ok(())
    }

    fn figures(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let traffic: Vec<_> = self.tunnels.iter().map(|status| status.meter.read()).collect();
        for (name, help, figure) in GAUGES {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (status, traffic) in self.tunnels.iter().zip(&traffic) {
                let labels = of(status);
                gauge
                    .encode_family(&labels)?
                    .encode_gauge(&figure(status, traffic))?;
            }
        }
        for (name, help, figure) in COUNTERS {
            let mut counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (status, traffic) in self.tunnels.iter().zip(&traffic) {
                let labels = of(status);
                count(&mut counter.encode_family(&labels)?, figure(status, traffic))?;
            }
        }
        Ok(())
    }

    fn resumes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = (
            "tunneld_tunnel_resume_seconds",
            "How long links took to be resumed.",
        );
        let mut histogram = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for status in self.tunnels.iter() {
            let (labels, resumes) = (of(status), status.meter.resumes());
            histogram.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                resumes.took().as_secs_f64(),
                resumes.count(),
                &resumes.by_length(),
                None,
            )?;
        }
        Ok(())
    }

    fn calls(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Attempts of AWS API calls, by what came of them.";
        let mut counter = encoder.encode_descriptor("tunneld_aws_calls", help, None, MetricType::Counter)?;
        for (call, number) in &self.calls {
            let labels = [
                ("service", call.service.as_str()),
                ("operation", call.operation.as_str()),
                ("outcome", outcome(call.outcome)),
            ];
            count(&mut counter.encode_family(&labels)?, *number)?;
        }
        Ok(())
    }
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.daemon(&mut encoder)?;
        self.states(&mut encoder)?;
        self.figures(&mut encoder)?;
        self.resumes(&mut encoder)?;
        self.calls(&mut encoder)
    }
}

fn of(status: &Status) -> [(&'static str, &str); 1] {
    [("tunnel", status.name.as_str())]
}

fn count(counter: &mut MetricEncoder<'_>, number: u64) -> fmt::Result {
    counter.encode_counter::<NoLabelSet, u64, f64>(&number, None)
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Answered => "answered",
        Outcome::Throttled => "throttled",
        Outcome::Failed => "failed",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::status::{Board, State};
    use crate::tunnel::fake;

    /// The samples of a text, by name with labels, after checking its form as a scraper would.
    fn samples(text: &str) -> BTreeMap<String, f64> {
        let mut samples = BTreeMap::new();
        let mut types = BTreeMap::new();
        let mut described = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let (kind, name, text) = (words.next(), words.next().unwrap(), words.next().unwrap());
                match kind {
                    Some("HELP") => assert!(described.insert(name), "{name} is described twice"),
                    Some("TYPE") => assert!(types.insert(name, text).is_none(), "{name} has two types"),
                    Some(_) | None => panic!("{line}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{name}"
            );
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .filter(|family| types.get(family) == Some(&"histogram"))
                .unwrap_or(name);
            let kind = types.get(family).expect("a type before the first sample");
            assert!(described.contains(family), "{family} is not described");
            assert_eq!(*kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            let known = samples.insert(series.to_owned(), value.parse().unwrap());
            assert!(known.is_none(), "{series} stands there twice");
        }
        samples
    }

    fn exposition(board: &Board) -> Exposition {
        Exposition {
            tunnels: board.snapshot(),
            calls: BTreeMap::new(),
            started: UNIX_EPOCH + Duration::from_millis(1500),
        }
    }

    #[test]
    fn every_figure_of_a_tunnel_is_told_under_its_name() {
        let board = Arc::new(Board::new());
        let (db, web) = (board.enter(&fake::spec("db")), board.enter(&fake::spec("web")));
        db.publish(State::Up);
        let meter = db.meter();
        let _open = meter.connection();
        meter.received(7);
        meter.sent(11);
        meter.connection_lost();
        meter.link_lost();
        meter.resumed(Duration::from_millis(300));
        web.meter().received(1);
        let samples = samples(&exposition(&board).text().unwrap());
        let value = |series: &str| {
            *samples
                .get(series)
                .unwrap_or_else(|| panic!("{series} in {samples:#?}"))
        };
        for (series, expected) in [
            (r#"tunneld_tunnel_state{tunnel="db",state="up"}"#, 1.0),
            (r#"tunneld_tunnel_state{tunnel="db",state="down"}"#, 0.0),
            (r#"tunneld_tunnel_state{tunnel="web",state="down"}"#, 1.0),
            (r#"tunneld_tunnel_open_connections{tunnel="db"}"#, 1.0),
            (r#"tunneld_tunnel_connections_total{tunnel="db"}"#, 1.0),
            (r#"tunneld_tunnel_connections_lost_total{tunnel="db"}"#, 1.0),
            (r#"tunneld_tunnel_received_bytes_total{tunnel="db"}"#, 7.0),
            (r#"tunneld_tunnel_sent_bytes_total{tunnel="db"}"#, 11.0),
            (r#"tunneld_tunnel_links_lost_total{tunnel="db"}"#, 1.0),
            (r#"tunneld_tunnel_received_bytes_total{tunnel="web"}"#, 1.0),
            (r#"tunneld_tunnel_resume_seconds_count{tunnel="db"}"#, 1.0),
            (r#"tunneld_tunnel_resume_seconds_sum{tunnel="db"}"#, 0.3),
            (
                r#"tunneld_tunnel_resume_seconds_bucket{tunnel="db",le="0.25"}"#,
                0.0,
            ),
            (
                r#"tunneld_tunnel_resume_seconds_bucket{tunnel="db",le="0.5"}"#,
                1.0,
            ),
            (
                r#"tunneld_tunnel_resume_seconds_bucket{tunnel="db",le="+Inf"}"#,
                1.0,
            ),
            ("process_start_time_seconds", 1.5),
        ] {
            assert_eq!(value(series), expected, "{series}");
        }
        let version = format!(r#"tunneld_build_info{{version="{}"}}"#, env!("CARGO_PKG_VERSION"));
        assert_eq!(value(&version), 1.0);
        let states = samples
            .iter()
            .filter(|(series, _)| series.contains(r#"state{tunnel="db""#));
        assert_eq!(states.map(|(_, value)| value).sum::<f64>(), 1.0);
    }

    #[test]
    fn calls_are_told_by_operation_and_outcome() {
        let call = |outcome| Call {
            service: "SSM".to_owned(),
            operation: "StartSession".to_owned(),
            outcome,
        };
        let calls = BTreeMap::from([(call(Outcome::Answered), 3), (call(Outcome::Throttled), 1)]);
        let exposition = Exposition {
            calls,
            ..exposition(&Board::new())
        };
        let samples = samples(&exposition.text().unwrap());
        let series = |outcome: &str| {
            format!(
                r#"tunneld_aws_calls_total{{service="SSM",operation="StartSession",outcome="{outcome}"}}"#
            )
        };
        assert_eq!(samples.get(&series("answered")), Some(&3.0), "{samples:?}");
        assert_eq!(samples.get(&series("throttled")), Some(&1.0));
    }
}
