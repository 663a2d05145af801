//! One turn, with what a sysctl was recorded before it is set, and forgotten after it was set back.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use netns_policy::observed::Observed;
use netns_policy::plan::{Plan, Step};

use super::{Error, is_up};
use crate::fault;
use crate::kernel::nft::NftError;
use crate::kernel::sysctl::Sysctl;
use crate::kernel::{Kernel, KernelError, Linux};
use crate::reconcile;
use crate::report::{Report, StepError, chain};
use crate::store::{Store, StoreError};

/// One turn. A change of rules by somebody else meanwhile is no failure before the last one.
pub(super) fn run(recording: &Recording, plan: &Plan, report: &mut Report, last: bool) -> Result<(), Error> {
    let mut turn = reconcile::turn(recording, plan);
    report.done.append(&mut turn.done);
    report.spoiled = turn.spoiled;
    match turn.failed {
        None => Ok(()),
        // Somebody else changed rules in a namespace of ours: look again, and do what is left.
        Some(StepError { source: KernelError::Nft(NftError::GenerationChanged), .. }) if !last => Ok(()),
        Some(failed) => Err(Error::Step { report: Box::new(std::mem::take(report)), source: Box::new(failed) }),
    }
}

pub(super) struct Recording<'a> {
    linux: &'a Linux,
    store: &'a Store,
    /// Whether to go on where nothing can be recorded.
    lenient: bool,
    /// What could not be recorded, if that is no failure.
    pub(super) failed: RefCell<Vec<String>>,
}

impl<'a> Recording<'a> {
    pub(super) fn strict(linux: &'a Linux, store: &'a Store) -> Self {
        Self { linux, store, lenient: false, failed: RefCell::default() }
    }

    pub(super) fn lenient(linux: &'a Linux, store: &'a Store) -> Self {
        Self { lenient: true, ..Self::strict(linux, store) }
    }

    fn record(&self, change: impl FnOnce(&mut BTreeMap<String, String>)) -> Result<(), KernelError> {
        let recorded = self.store.sysctls().and_then(|mut before| {
            change(&mut before);
            self.store.record_sysctls(&before)
        });
        match recorded {
            Err(error) if self.lenient => {
                self.failed.borrow_mut().push(format!("{}: what was set back stays recorded", chain(&error)));
                Ok(())
            }
            recorded => recorded.map_err(failed_to_record),
        }
    }

    fn restore(&self, step: &Step, path: &str, value: &str) -> Result<(), KernelError> {
        let others = match self.store.sysctls_of_others(|other| is_up(&self.linux.netns_directory, other)) {
            Err(_) if self.lenient => BTreeMap::new(),
            others => others.map_err(failed_to_record)?,
        };
        // Another network needs it still, and will set it back to the same.
        if !others.contains_key(path) && !self.is_needed_by_the_host(path, value) {
            self.linux.apply(step)?;
        }
        self.record(|before| {
            before.remove(path);
        })
    }

    /// Somebody has switched IPv4 forwarding on for every link meanwhile, so ours is no longer what makes it so.
    fn is_needed_by_the_host(&self, path: &str, value: &str) -> bool {
        let of_link = path.starts_with("net/ipv4/conf/") && path.ends_with("/forwarding") && value == "0";
        let on = Sysctl::ip_forward().read().is_ok_and(|value| value == "1");
        of_link && on && self.store.found_ip_forward_off().unwrap_or(true)
    }
}

fn failed_to_record(error: StoreError) -> KernelError {
    KernelError::File { action: "record", path: "sysctls.json".into(), source: io::Error::other(error) }
}

impl Kernel for Recording<'_> {
    fn observe(&self) -> Result<Observed, KernelError> {
        self.linux.observe()
    }

    fn apply(&self, step: &Step) -> Result<(), KernelError> {
        fault::step();
        match step {
            Step::SetSysctl { path, .. } => {
                let value = Sysctl::at(path).read().ok();
                self.record(|before| {
                    if let Some(value) = value {
                        before.entry(path.clone()).or_insert(value);
                    }
                })?;
                self.linux.apply(step)
            }
            Step::RestoreSysctl { path, value } => self.restore(step, path, value),
            _ => self.linux.apply(step),
        }
    }
}
