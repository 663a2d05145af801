//! Policies of any size, alike in shape: each service has two ports and four edges, each fourth goes out.

use std::fmt::Write as _;

/// The policy of `services` services.
pub fn policy(services: usize) -> String {
    let mut text = String::from("schema = 1\n\n[network]\nname = \"grown\"\npool4 = \"10.64.0.0/16\"\n");
    text.push_str("lan = [\"192.168.1.0/24\"]\n");
    for n in 0..services {
        write!(text, "\n[service.s{n:04}]\n").expect("writing to a string does not fail");
        if n % 4 == 0 {
            text.push_str("outbound = \"direct\"\ndns = \"direct\"\n");
        }
        text.push_str("ports = { api = \"tcp:8080\", rpc = \"tcp:9000\" }\n");
        for (step, port) in [(1, "rpc"), (7, "api"), (31, "api"), (97, "api")] {
            let to = (n + step) % services;
            // In a small policy several steps lead to one service, or around to oneself.
            let is_first = [1, 7, 31, 97].iter().take_while(|s| **s != step).all(|s| (n + s) % services != to);
            if to != n && is_first {
                writeln!(text, "connect.s{to:04} = [\"{port}\"]").expect("writing to a string does not fail");
            }
        }
    }
    text
}
