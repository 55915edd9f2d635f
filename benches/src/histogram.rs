//! Latencies in log-linear buckets: constant memory, under 1 % error, no allocation while counting.

use std::time::Duration;

/// Buckets per power of two.
const PRECISION_BITS: u32 = 7;
const PER_OCTAVE: usize = 1 << PRECISION_BITS;
/// 2^40 ns is about 18 minutes: longer values count as that.
const MAX_BITS: u32 = 40;

/// Counts of durations, to be asked for quantiles.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u32>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; bucket_of(u64::MAX) + 1], total: 0 }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket_of(nanos)) {
            *count = count.saturating_add(1);
            self.total += 1;
        }
    }

    /// How many values were counted.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// True when nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The smallest bucket that `quantile` (0..=1) of all values do not exceed, in microseconds; 0 when empty.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        let rank = ((self.total as f64) * quantile).ceil().max(1.0) as u64;
        let mut seen = 0_u64;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return middle_of(bucket) / 1_000.0;
            }
        }
        0.0
    }
}

/// Values below `PER_OCTAVE` have a bucket each; above, every power of two is cut into `PER_OCTAVE` equal parts.
fn bucket_of(nanos: u64) -> usize {
    let nanos = nanos.min((1 << MAX_BITS) - 1);
    let magnitude = (u64::BITS - nanos.leading_zeros()).saturating_sub(PRECISION_BITS + 1);
    (magnitude as usize) * PER_OCTAVE + ((nanos >> magnitude) as usize)
}

fn middle_of(bucket: usize) -> f64 {
    let magnitude = (bucket / PER_OCTAVE).saturating_sub(1);
    let first = ((bucket - magnitude * PER_OCTAVE) as u64) << magnitude;
    first as f64 + ((1_u64 << magnitude) - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_one_percent() {
        let mut histogram = Histogram::default();
        for us in 1..=10_000 {
            histogram.record(Duration::from_micros(us));
        }
        for (quantile, expected) in [(0.5, 5_000.0), (0.99, 9_900.0), (1.0, 10_000.0), (0.0, 1.0)] {
            let found = histogram.quantile_us(quantile);
            assert!((found - expected).abs() <= expected * 0.01, "q{quantile}: {found} for {expected}");
        }
    }

    #[test]
    fn every_value_falls_in_a_bucket_that_holds_it() {
        for nanos in [0, 1, 127, 128, 129, 255, 256, 1_000, 123_456_789, (1 << MAX_BITS) - 1] {
            let middle = middle_of(bucket_of(nanos));
            assert!((middle - nanos as f64).abs() <= (nanos as f64) * 0.01, "{nanos} became {middle}");
        }
    }

    #[test]
    fn the_longest_value_is_counted_too() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX);
        assert_eq!(histogram.len(), 1);
        assert!(histogram.quantile_us(0.5) > 1e9);
    }
}
