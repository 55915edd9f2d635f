//! The figures as Markdown tables: medians, and their ratios to each peer of the same run.

use anyhow::Result;

use crate::measure::Sample;
use crate::scenario::Plan;

/// The figure of a scenario whose ratios are the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// [`Sample::cpu_us`].
    Cpu,
    /// [`Sample::inbound_cpu_us`].
    InboundCpu,
    /// [`Sample::p50_us`].
    MedianLatency,
}

impl Figure {
    fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Cpu => sample.cpu_us,
            Self::InboundCpu => sample.inbound_cpu_us,
            Self::MedianLatency => sample.p50_us,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU per request of the pair",
            Self::InboundCpu => "CPU per request of the inbound proxy",
            Self::MedianLatency => "median latency",
        }
    }
}

/// The cases of one scenario.
#[derive(Debug)]
pub struct Table<'a> {
    /// Heading.
    pub title: &'a str,
    /// What ratios are of.
    pub figure: Figure,
    /// Label, and the repetitions or why there are none.
    pub rows: Vec<(String, Result<Vec<Sample>>)>,
}

/// What was run, on what.
pub fn head(plan: &Plan, notes: &[String]) -> String {
    let machine = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = machine.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut text = format!(
        "# Comparison\n\n{} repetitions of {} s, interleaved; medians. One worker per proxy, both proxies on one core, \
         load and applications on another. {}, Linux {}.\n\n",
        plan.repetitions,
        plan.timing.measured.as_secs_f64(),
        model.map_or("CPU unknown", |(_, model)| model),
        kernel.trim(),
    );
    for note in notes {
        text += &format!("- {note}\n");
    }
    text + "\n"
}

/// One scenario.
pub fn table(table: &Table<'_>) -> String {
    let measured: Vec<(&str, f64)> = table
        .rows
        .iter()
        .filter_map(|(label, result)| {
            let samples = result.as_ref().ok()?;
            Some((label.as_str(), median(samples, |sample| table.figure.of(sample))))
        })
        .collect();
    let mut text = format!("## {}\n\n", table.title);
    text += "| | CPU us/request | spread | inbound part | core | requests/s | p50 us | p99 us | errors | v2 | h2 | records |";
    for (label, _) in &measured {
        text += &format!(" x {label} |");
    }
    text += "\n|---|";
    text += &"---:|".repeat(11 + measured.len());
    text += "\n";
    for (label, result) in &table.rows {
        text += &match result {
            Ok(samples) => row(label, samples, table.figure, &measured),
            Err(error) => format!("| {label} | failed: {} |\n", one_line(&format!("{error:#}"))),
        };
    }
    text += &format!(
        "\nRatios are of the {}: the row's over the column's, less is better; spread is of the same figure over the repetitions. core: share of \
         their core that the proxies had; well under 100 % with many requests in flight means a busy machine, whose \
         latencies say nothing. v2: share that the second version got. \
         h2: share that reached the application over HTTP/2. records: per request and proxy.\n\n",
        table.figure.name()
    );
    text
}

/// A sample in a line, for whoever waits.
pub fn line(sample: &Sample) -> String {
    let mut line = format!(
        "{:.1} us CPU/request, {:.0} requests/s, p50 {:.0} us, p99 {:.0} us",
        sample.cpu_us, sample.rate, sample.p50_us, sample.p99_us
    );
    if sample.errors > 0 {
        line += &format!(", {} errors", sample.errors);
    }
    line
}

fn row(label: &str, samples: &[Sample], figure: Figure, measured: &[(&str, f64)]) -> String {
    let figures: Vec<f64> = samples.iter().map(|sample| figure.of(sample)).collect();
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let most = figures.iter().copied().fold(0.0, f64::max);
    let errors: u64 = samples.iter().map(|sample| sample.errors).sum();
    let records = samples.iter().all(|sample| sample.records.is_some());
    let mut text = format!(
        "| {label} | {:.1} | {least:.1} to {most:.1} | {:.1} | {:.0} % | {:.0} | {:.0} | {:.0} | {errors} | {:.1} % | {:.0} % | {} |",
        median(samples, |sample| sample.cpu_us),
        median(samples, |sample| sample.inbound_cpu_us),
        median(samples, |sample| sample.cpu_us * sample.rate / 1e4),
        median(samples, |sample| sample.rate),
        median(samples, |sample| sample.p50_us),
        median(samples, |sample| sample.p99_us),
        median(samples, |sample| sample.v2_share * 100.0),
        median(samples, |sample| sample.http2_share * 100.0),
        if records {
            format!("{:.3}", median(samples, |sample| sample.records.unwrap_or(0.0)))
        } else {
            "".into()
        },
    );
    let own = median(samples, |sample| figure.of(sample));
    for (_, other) in measured {
        text += &format!(" {:.2} |", own / other);
    }
    text + "\n"
}

fn one_line(text: &str) -> String {
    text.replace('|', "/").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The middle of a figure over samples; NaN of none.
pub fn median<S>(samples: &[S], figure: impl Fn(&S) -> f64) -> f64 {
    let mut figures: Vec<f64> = samples.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => figures[odd / 2],
        even => (figures[even / 2 - 1] + figures[even / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(cpu_us: &[f64]) -> Vec<Sample> {
        cpu_us
            .iter()
            .map(|cpu_us| Sample { cpu_us: *cpu_us, records: Some(1.0), ..Sample::default() })
            .collect()
    }

    #[test]
    fn medians_of_odd_even_and_no_samples() {
        assert_eq!(median(&[3.0, 1.0, 2.0], |value| *value), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0], |value| *value), 2.5);
        assert!(median(&[], |value: &f64| *value).is_nan());
    }

    #[test]
    fn ratios_are_row_over_column_and_a_failed_row_has_none() {
        let rows = vec![
            ("Writ".to_owned(), Ok(samples(&[20.0, 30.0, 25.0]))),
            ("Envoy".to_owned(), Ok(samples(&[100.0]))),
            ("Other".to_owned(), Err(anyhow::anyhow!("did not\nstart | at all"))),
        ];
        let text = table(&Table { title: "Pair", figure: Figure::Cpu, rows });
        assert!(text.contains("| x Writ | x Envoy |\n"), "{text}");
        assert!(text.contains("| Writ | 25.0 | 20.0 to 30.0 |"), "{text}");
        assert!(text.contains("| 1.000 | 1.00 | 0.25 |\n"), "{text}");
        assert!(text.contains("| 1.000 | 4.00 | 1.00 |\n"), "{text}");
        assert!(text.contains("| Other | failed: did not start / at all |\n"), "{text}");
    }
}
