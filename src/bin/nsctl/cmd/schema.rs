//! `nsctl schema`: the policy language as a JSON Schema.

use std::process::ExitCode;

use nsctl::netns_policy::schema::POLICY;

use crate::output;

pub fn schema() -> ExitCode {
    output::line(POLICY.trim_end());
    ExitCode::SUCCESS
}
