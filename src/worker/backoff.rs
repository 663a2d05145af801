//! How long to wait before a worker is started again.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use super::Timing;

/// Grows with each failure in a row, up to a bound, and begins anew after a time of health.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait after one more failure of a worker that had been healthy for so long.
    pub(crate) fn after(&mut self, healthy: Duration, timing: &Timing) -> Duration {
        if healthy >= timing.forgive {
            self.failures = 0;
        }
        let grown = timing.first_pause.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        // A quarter more at most, so that what failed together does not come back together.
        let pause = grown.min(timing.longest_pause);
        pause + pause.mul_f64(f64::from(chance()) / 4.0 / f64::from(u32::MAX))
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Forgets them: something was changed.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Not for secrets: the seed of a hash.
fn chance() -> u32 {
    let hash = RandomState::new().hash_one(0u8);
    u32::try_from(hash >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew_after_health() {
        let timing = Timing {
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(30),
            ..Timing::default()
        };
        let mut backoff = Backoff::default();
        let mut pauses: Vec<_> = (0..40).map(|_| backoff.after(Duration::ZERO, &timing)).collect();
        for (n, pause) in pauses.drain(..).enumerate() {
            let least = Duration::from_millis(200 << n.min(16)).min(timing.longest_pause);
            assert!(pause >= least && pause <= least.mul_f64(1.26), "{n}: {pause:?}");
        }
        assert_eq!(backoff.failures(), 40);
        let pause = backoff.after(timing.forgive, &timing);
        assert!(pause < Duration::from_millis(260), "{pause:?}");
    }

    #[test]
    fn two_workers_do_not_come_back_at_the_same_moment() {
        let pauses: std::collections::BTreeSet<_> =
            (0..50).map(|_| Backoff::default().after(Duration::ZERO, &Timing::default())).collect();
        assert!(pauses.len() > 20, "{}", pauses.len());
    }
}
