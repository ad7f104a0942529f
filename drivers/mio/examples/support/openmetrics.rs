//! Metrics as Prometheus reads them: in `OpenMetrics`, or in the text format before that.

use super::web::{Asked, Page};
use cubenet_mio::{Histogram, Listener, MetricKind, MetricValue, Metrics, Network};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;

/// The labels of a number: names and values.
pub type Labels = Vec<(&'static str, String)>;

/// Something that counts, and says so whenever it is asked.
pub struct Source<F>(pub F);

impl<F> fmt::Debug for Source<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl<F> Collector for Source<F>
where
    F: Fn(&mut DescriptorEncoder<'_>) -> fmt::Result + Send + Sync + 'static,
{
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(&mut encoder)
    }
}

/// A number that goes up and down.
pub fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(metric)
}

/// A number that goes up, for each of several labels.
pub fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    counts: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let metric_type = ConstCounter::new(0_u64).metric_type();
    let mut family = encoder.encode_descriptor(name, help, None, metric_type)?;
    for (labels, count) in counts {
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// What a network and its listeners count: `cubenet_network_…` and `cubenet_listener_…`, the latter with the
/// transport and the address of each.
pub fn register_network(registry: &mut Registry, network: &Network, listeners: &Arc<[Listener]>) {
    let (network, listeners) = (network.clone(), Arc::clone(listeners));
    let collect = move |encoder: &mut DescriptorEncoder<'_>| {
        let of_network = [(Labels::new(), network.metrics())];
        encode_metrics(encoder, "cubenet_network", &of_network)?;
        let of_listener = |listener: &Listener| {
            let transport = listener.transport().to_string();
            let address = listener.local_addr().to_string();
            let labels = vec![("transport", transport), ("address", address)];
            (labels, listener.metrics())
        };
        let of_listeners: Vec<(Labels, Metrics)> = listeners.iter().map(of_listener).collect();
        encode_metrics(encoder, "cubenet_listener", &of_listeners)
    };
    registry.register_collector(Box::new(Source(collect)));
}

/// All that several count, with the labels of each. Those of one name stand together.
fn encode_metrics(
    encoder: &mut DescriptorEncoder<'_>,
    prefix: &str,
    all: &[(Labels, Metrics)],
) -> fmt::Result {
    let Some((_, first)) = all.first() else {
        return Ok(());
    };
    let mut done = "";
    for described in first.iter() {
        if std::mem::replace(&mut done, described.name) == described.name {
            continue;
        }
        let unit = match described.unit {
            "bytes" => Some(Unit::Bytes),
            "seconds" => Some(Unit::Seconds),
            _ => None,
        };
        let metric_type = match described.kind {
            MetricKind::Counter => MetricType::Counter,
            MetricKind::Histogram => MetricType::Histogram,
            _ => MetricType::Gauge,
        };
        let name = format!("{prefix}_{}", described.name);
        let help = described.help;
        let mut family = encoder.encode_descriptor(&name, help, unit.as_ref(), metric_type)?;
        for (labels, metrics) in all {
            for metric in metrics.iter().filter(|one| one.name == described.name) {
                let label = metric.label.map(|(name, value)| (name, value.to_owned()));
                let labels: Labels = labels.iter().cloned().chain(label).collect();
                let mut number = family.encode_family(&labels)?;
                match (metric.value, metric.kind) {
                    (MetricValue::Number(value), MetricKind::Counter) => {
                        ConstCounter::new(value).encode(number)?;
                    }
                    (MetricValue::Number(value), _) => ConstGauge::new(value).encode(number)?,
                    (MetricValue::Histogram(times), _) => {
                        let (sum, count) = (times.sum().as_secs_f64(), times.count());
                        let buckets = buckets(times);
                        number.encode_histogram::<Labels>(sum, count, &buckets, None)?;
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

/// How often in each step, with the most that is in it, in seconds.
fn buckets(times: &Histogram) -> Vec<(f64, u64)> {
    let seconds = |(most, count): (Option<std::time::Duration>, u64)| {
        let most = most.map_or(f64::INFINITY, |most| most.as_secs_f64());
        (most, count)
    };
    times.steps().map(seconds).collect()
}

/// All metrics of a registry, in `OpenMetrics` if the client takes that.
pub fn page(registry: &Registry, asked: &Asked<'_>) -> Page {
    let mut body = String::new();
    let is_open = asked.accept.contains("application/openmetrics-text");
    let (kind, encoded) = if is_open {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        (kind, text::encode(&mut body, registry))
    } else {
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        (kind, prometheus_text::encode(&mut body, registry))
    };
    match encoded {
        Ok(()) => Page {
            status: 200,
            kind,
            body,
        },
        Err(error) => Page::text(500, format!("{error}\n")),
    }
}
