//! Every forged frame against both locks, and against none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use netns_policy::packet::Packet;

use crate::arena::{Arena, Ears, PLACES};
use crate::catalogue::{self, Attack, Expected};
use crate::common::{in_sandbox, ip, nft};
use crate::raw::{Sender, Sniffer};

#[test]
fn a_forged_frame_reaches_nobody_it_has_no_edge_to() {
    in_sandbox(|| {
        let arena = Arena::make();
        let attacks = catalogue::all(&arena);
        all_differ(&attacks);
        let ears = Ears::everywhere(&arena);
        let outcomes = shoot(&arena, &attacks, &ears);
        let mut wrong = String::new();
        for (attack, outcome) in attacks.iter().zip(&outcomes) {
            let verdict = if outcome.is_as(attack) { "ok" } else { "WRONG" };
            let line =
                format!("{verdict:5} {:80} expected {:8} seen {outcome}", attack.name, attack.expected.to_string());
            println!("{line}");
            if verdict == "WRONG" {
                writeln!(wrong, "{line}").expect("a string takes it");
            }
        }
        println!("{}", tally(&attacks));
        assert!(wrong.is_empty(), "{wrong}");
        assert_eq!(ears.accepted(), [], "a raw frame opened a connection");
    });
}

#[test]
fn the_same_frames_all_arrive_where_nothing_filters() {
    in_sandbox(|| {
        let arena = Arena::make();
        let attacks = catalogue::all(&arena);
        let ears = Ears::everywhere(&arena);
        open_the_panel(&arena);
        let outcomes = shoot(&arena, &attacks, &ears);
        let lost = attacks.iter().zip(&outcomes).filter(|(attack, outcome)| !outcome.arrived.contains(attack.to));
        let lost: Vec<&str> = lost.map(|(attack, _)| attack.name.as_str()).collect();
        // The gateway is a router and answers what it refuses.
        let denied = attacks.iter().zip(&outcomes);
        let denied: Vec<_> = denied.filter(|(a, _)| a.expected < Expected::Wire && a.to != "uplink").collect();
        let stopped = denied.iter().filter(|(_, outcome)| outcome.heard.is_empty() && !outcome.answered);
        println!("{} of {} frames arrive through an open panel", attacks.len() - lost.len(), attacks.len());
        println!("the second lock alone keeps {} of {} from every socket", stopped.count(), denied.len());
        assert!(lost.is_empty(), "these prove nothing: {lost:#?}");
    });
}

/// What the lock of a place has dropped so far.
fn dropped_by_the_lock(place: &str) -> usize {
    let list = |netns: &str, chain| dropped(&nft(netns, &format!("list chain inet {chain}")));
    match place {
        "host" => list("machine", "nsctl-node from_fabric"),
        service => list(&format!("node-{service}"), "nsctl input"),
    }
}

/// What the rules of a chain that drop have counted.
pub fn dropped(listing: &str) -> usize {
    let counts = listing.lines().filter(|line| line.ends_with(" drop")).filter_map(|line| {
        let (_, count) = line.split_once("counter packets ")?;
        count.split(' ').next()?.parse::<usize>().ok()
    });
    counts.reduce(|a, b| a + b).expect("the lock counts what it drops")
}

/// Every wire is copied to every other.
fn open_the_panel(arena: &Arena) {
    let links: Vec<String> = PLACES.iter().map(|place| fabric_link(place)).collect();
    let mut script = String::from("flush ruleset\ntable netdev open {\n");
    for (number, link) in links.iter().enumerate() {
        let others = links.iter().filter(|other| *other != link);
        let copies: Vec<String> = others.map(|other| format!("dup to \"{other}\"")).collect();
        let hook = format!("type filter hook ingress device \"{link}\" priority 0; policy drop;");
        writeln!(script, "chain c{number} {{ {hook} {}\n}}", copies.join("\n")).expect("a string takes it");
    }
    script.push('}');
    let pinned = arena.nsctl.options().netns.join("node+fabric");
    assert!(pinned.exists());
    nft("node+fabric", &script);
}

fn fabric_link(place: &str) -> String {
    if ["host", "uplink"].contains(&place) { format!("+{place}") } else { place.to_owned() }
}

fn all_differ(attacks: &[Attack]) {
    let frames: BTreeMap<&[u8], &str> =
        attacks.iter().map(|attack| (attack.packet.frame(), &attack.name[..])).collect();
    for attack in attacks {
        assert_eq!(frames[attack.packet.frame()], attack.name, "two frames are one");
    }
}

fn tally(attacks: &[Attack]) -> String {
    let of = |expected| attacks.iter().filter(|attack| attack.expected == expected).count();
    let (nowhere, silence) = (of(Expected::Nowhere), of(Expected::Silence));
    let allowed = attacks.len() - nowhere - silence;
    format!("{nowhere} frames stopped by the panel, {silence} by the lock alone, {allowed} allowed ones delivered")
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nowhere => "nowhere",
            Self::Silence => "silence",
            Self::Wire => "wire",
            Self::Heard => "heard",
        })
    }
}

/// What became of a frame.
#[derive(Default)]
struct Outcome {
    /// The places whose wire it came out of.
    arrived: BTreeSet<&'static str>,
    /// The places where a socket got its text.
    heard: BTreeSet<&'static str>,
    /// Somebody sent the answer to it.
    answered: bool,
    /// The lock of the addressee counted a packet more; asked only where that is expected.
    dropped: bool,
}

impl Outcome {
    fn is_as(&self, attack: &Attack) -> bool {
        let at_most_there = self.arrived.iter().all(|place| *place == attack.to);
        let spoken = !self.heard.is_empty() || self.answered;
        match attack.expected {
            Expected::Nowhere => self.arrived.is_empty() && !spoken,
            // It is known to arrive: else this would be a question for the panel.
            Expected::Silence => self.arrived.len() == 1 && at_most_there && self.dropped && !spoken,
            Expected::Wire => self.arrived.len() == 1 && at_most_there,
            Expected::Heard => self.arrived.len() == 1 && at_most_there && spoken,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |set: &BTreeSet<&str>| set.iter().copied().collect::<Vec<_>>().join(",");
        match (self.arrived.is_empty(), self.heard.is_empty()) {
            (true, true) => f.write_str("nothing")?,
            (_, true) => write!(f, "on the wire of {}", list(&self.arrived))?,
            (_, false) => write!(f, "on the wire of {}, in a socket of {}", list(&self.arrived), list(&self.heard))?,
        }
        f.write_str(if self.answered { ", answered" } else { "" })?;
        f.write_str(if self.dropped { ", dropped by the lock" } else { "" })
    }
}

/// Sends everything, one after another, and looks at all wires and sockets after each.
fn shoot(arena: &Arena, attacks: &[Attack], ears: &Ears) -> Vec<Outcome> {
    let open = |place: &&'static str| (*place, Sniffer::open(&arena.netns(place), Arena::link(place)));
    let sniffers: Vec<(&'static str, Sniffer)> = PLACES.iter().map(open).collect();
    let senders: BTreeMap<&str, Sender> =
        PLACES.iter().map(|place| (*place, Sender::open(&arena.netns(place), Arena::link(place)))).collect();
    let mut outcomes: Vec<Outcome> = attacks.iter().map(|_| Outcome::default()).collect();
    let marks = Marks::of(attacks);
    let look = |outcomes: &mut Vec<Outcome>| {
        for (place, sniffer) in &sniffers {
            let seen = sniffer.take();
            for number in seen.arrived.iter().filter_map(|frame| marks.arrival(place, frame)) {
                outcomes[*number].arrived.insert(place);
            }
            for number in seen.left.iter().filter_map(|frame| marks.answers.get(&tuple(frame, false)?)) {
                outcomes[*number].answered |= attacks[*number].to == *place;
            }
        }
        for (place, text) in ears.heard() {
            let number = text_of(&text)
                .and_then(|text| marks.texts.get(text))
                .unwrap_or_else(|| panic!("{place} heard what nobody sent: {text:?}"));
            outcomes[*number].heard.insert(place);
        }
    };
    ip(&format!("netns attach machine {}", std::process::id()));
    for (number, attack) in attacks.iter().enumerate() {
        let count = || (attack.expected == Expected::Silence).then(|| dropped_by_the_lock(attack.to));
        let before = count();
        let sent = senders[attack.from].send(attack.packet.frame());
        sent.unwrap_or_else(|errno| panic!("{}: not sent: {errno}", attack.name));
        look(&mut outcomes);
        outcomes[number].dropped = count() > before;
    }
    thread::sleep(Duration::from_millis(300));
    look(&mut outcomes);
    outcomes
}

/// How a frame is told.
#[derive(Default)]
struct Marks {
    /// By its bytes.
    frames: BTreeMap<Vec<u8>, usize>,
    /// By the text in it.
    texts: BTreeMap<Vec<u8>, usize>,
    /// By the ends and ports of the answer to it.
    answers: BTreeMap<(String, u32), usize>,
}

impl Marks {
    fn of(attacks: &[Attack]) -> Self {
        let mut marks = Self::default();
        for (number, attack) in attacks.iter().enumerate() {
            let frame = attack.packet.frame();
            marks.frames.insert(untagged(frame), number);
            if let Some(text) = text_of(frame) {
                marks.texts.insert(text.to_vec(), number);
            }
            if let Some(answer) = tuple(frame, true) {
                marks.answers.insert(answer, number);
            }
        }
        marks
    }

    fn arrival(&self, place: &str, frame: &[u8]) -> Option<&usize> {
        // A router that puts parts together and takes them apart again writes new headers into bytes that it shares
        // with packet sockets, before these are read: there only the text stays what it was.
        let by_text = || text_of(frame).filter(|_| place == "uplink").and_then(|text| self.texts.get(text));
        self.frames.get(frame).or_else(by_text)
    }
}

/// `attack 12345`, wherever it stands.
fn text_of(bytes: &[u8]) -> Option<&[u8]> {
    bytes.windows(12).find(|window| window.starts_with(b"attack "))
}

/// The frame as a packet socket gets it: without its first tag, which the kernel takes off before anybody sees it. (No
/// two frames of the catalogue differ by a tag only.)
fn untagged(frame: &[u8]) -> Vec<u8> {
    match frame.get(12..14) {
        Some([0x81, 0x00] | [0x88, 0xa8]) if frame.len() > 18 => [&frame[..12], &frame[16..]].concat(),
        _ => frame.to_vec(),
    }
}

/// Ends and ports of a TCP segment or datagram, or ends and identifier of an echo; `back` turns them around.
fn tuple(frame: &[u8], back: bool) -> Option<(String, u32)> {
    let packet = Packet::from_frame(frame);
    let view = packet.in_stack().filter(|view| view.tag.is_none() && !view.is_fragment())?;
    let (ends, transport) = (view.ends()?, view.transport?);
    let bytes = view.transport(0, 4).filter(|_| [6, 17].contains(&transport.protocol));
    let echo = || view.transport(4, 4).filter(|_| [0, 8, 128, 129].contains(&view.network[transport.offset]));
    let bytes = bytes.or_else(|| if [1, 58].contains(&transport.protocol) { echo() } else { None })?;
    let number = u32::from_be_bytes(bytes.try_into().ok()?);
    let turned = if [1, 58].contains(&transport.protocol) { number } else { number.rotate_left(16) };
    let (from, to, number) = if back { (ends.to(), ends.from(), turned) } else { (ends.from(), ends.to(), number) };
    Some((format!("{} {from} {to}", transport.protocol), number))
}
