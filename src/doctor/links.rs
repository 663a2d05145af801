//! Who else configures links of the host, and whether ours are left alone.

use std::collections::BTreeMap;
use std::fs;

use super::view::View;
use super::{Check, or_ok};
use crate::kernel::process::name_of;

/// Programs that configure whatever link they find: by the name of the process, which the kernel cuts off at 15 bytes.
const PROGRAMS: [(&str, &str); 5] = [
    ("NetworkManager", "NetworkManager"),
    ("connmand", "connman"),
    ("dhcpcd", "dhcpcd"),
    ("systemd-network", "systemd-networkd"),
    ("wickedd", "wicked"),
];

pub(super) fn checks(view: &View) -> Vec<Check> {
    let running: Vec<&str> = running(view);
    if running.is_empty() {
        return vec![Check::ok("links", "no program that configures links by itself runs on this host").at("host")];
    }
    let ours = &view.planned.observed.host_links;
    if ours.is_empty() {
        return vec![Check::ok("links", format!("{}; no link of ours is on the host", run(&running))).at("host")];
    }
    let mut found = Vec::new();
    for program in &running {
        for (link, is) in ours {
            found.extend(touched(program, link, is.index).map(|check| check.at("host")));
        }
    }
    let names: Vec<&str> = ours.keys().map(String::as_str).collect();
    or_ok(found, "links", format!("{}; {} told to leave {} alone", run(&running), are(&running), names.join(", ")))
}

fn running(view: &View) -> Vec<&'static str> {
    let names: BTreeMap<String, ()> = view.on_host.iter().filter_map(|pid| Some((name_of(*pid)?, ()))).collect();
    PROGRAMS.iter().filter(|(process, _)| names.contains_key(*process)).map(|(_, program)| *program).collect()
}

fn run(running: &[&str]) -> String {
    let verb = if running.len() == 1 { "runs" } else { "run" };
    format!("{} {verb}", running.join(", "))
}

fn are(running: &[&str]) -> &'static str {
    if running.len() == 1 { "it is" } else { "they are" }
}

/// What the program itself has written down of a link, where it does.
fn touched(program: &str, link: &str, index: u32) -> Option<Check> {
    let (file, free, next) = match program {
        "NetworkManager" => (
            format!("/run/NetworkManager/devices/{index}"),
            "managed=false",
            format!(
                "`nmcli device set {link} managed no`, and unmanaged-devices in /etc/NetworkManager/conf.d to keep it"
            ),
        ),
        "systemd-networkd" => (
            format!("/run/systemd/netif/links/{index}"),
            "ADMIN_STATE=unmanaged",
            format!("a file in /etc/systemd/network with [Match] Name={link} and [Link] Unmanaged=yes"),
        ),
        "dhcpcd" => return Some(unseen(program, link, format!("`denyinterfaces {link}` in /etc/dhcpcd.conf"))),
        _ => return Some(unseen(program, link, format!("exclude {link} in its configuration"))),
    };
    match fs::read_to_string(&file) {
        Ok(text) if text.lines().any(|line| line.trim() == free) => None,
        Ok(_) => Some(Check::warn("links", format!("{program} manages {link}, as {file} says"), next)),
        Err(_) => Some(unseen(program, link, next)),
    }
}

fn unseen(program: &str, link: &str, next: String) -> Check {
    Check::warn("links", format!("{program} runs, and nothing tells whether it leaves {link} alone"), next)
}
