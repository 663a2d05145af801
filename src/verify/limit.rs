//! How many sockets a run may hold: the soft limit of open files is raised for its time, and never reached.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use super::Options;

/// The soft limit of open files, raised; put back when dropped.
pub(super) struct Raised {
    before: Option<(rlim_t, rlim_t)>,
    now: usize,
}

/// More than any run needs. Some containers have a hard limit of a billion.
const ENOUGH: rlim_t = 1 << 17;

/// What to assume where the kernel will not say, and what to leave to the rest of the process.
const RESERVE: usize = 128;

impl Raised {
    /// Raises the soft limit towards the hard one. Where that is refused, the limit that is there has to do.
    pub(super) fn to_hard() -> Self {
        let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
            return Self { before: None, now: 1024 };
        };
        let wanted = soft.max(hard.min(ENOUGH));
        if wanted > soft && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
            return Self { before: Some((soft, hard)), now: count(wanted) };
        }
        Self { before: None, now: count(soft) }
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some((soft, hard)) = self.before {
            // Lowering a soft limit is always allowed (setrlimit(2)).
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).ok();
        }
    }
}

fn count(limit: rlim_t) -> usize {
    usize::try_from(limit.min(ENOUGH)).unwrap_or(RESERVE)
}

/// How the open files are shared out.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Budget {
    /// Listeners at one time.
    pub(super) listeners: usize,
    /// Probes under way in one source at one time.
    pub(super) window: usize,
}

impl Budget {
    pub(super) fn of(limit: &Raised, options: &Options) -> Self {
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Self::share(limit.now.saturating_sub(open + RESERVE), options)
    }

    /// Half for the listeners; of the other half two for each probe, one at each end.
    fn share(free: usize, options: &Options) -> Self {
        let most = free / (4 * options.parallel.max(1));
        Self { listeners: (free / 2).max(1), window: options.window.min(most).max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_never_reached() {
        let options = Options { window: 1024, parallel: 4, ..Options::default() };
        for free in [16, 900, 4_000, 100_000] {
            let budget = Budget::share(free, &options);
            assert!(budget.listeners + 2 * budget.window * options.parallel <= free, "{free}: {budget:?}");
        }
        assert_eq!(Budget::share(100_000, &options).window, 1024);
    }

    #[test]
    fn the_soft_limit_is_put_back() {
        let before = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        drop(Raised::to_hard());
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), before);
    }
}
