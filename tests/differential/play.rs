//! Sends shots one after another, and compares where each arrives with what the interpreter says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use netns_policy::packet::build::flag;
use netns_policy::packet::{Ends, IPV4, IPV6, Packet};
use netns_policy::ruleset::decide::conntrack::{CtState, Tracked};
use netns_policy::ruleset::decide::walk::{Arrival, Connections, Fate, Gate, Loss, Sender, WAN, Walk, World};
use netns_policy::ruleset::decide::{Decision, Nat};

use crate::draw::{self, Shot, Way, number_of};
use crate::stage::Scene;

/// How long what must arrive is waited for: one CPU carries it, so that it is mostly there when the sender comes back.
const PATIENCE: Duration = Duration::from_millis(500);

/// How many of what kind were sent, and arrived; a kind and its twist count each by themselves.
pub type Tally = BTreeMap<String, (usize, usize)>;

/// Where each shot arrived; a shot that goes where the interpreter does not follow is not sent.
pub type Arrived = Vec<BTreeSet<String>>;

/// The interpreter, with what the namespaces hold in mind.
struct Oracle<'w> {
    world: &'w World,
    connections: Connections,
    segments: Segments,
}

/// What the interpreter says of a shot.
struct Said {
    /// The place that gets it.
    place: Option<String>,
    /// How it came to that.
    story: String,
    /// It goes where the interpreter does not follow.
    beyond: bool,
    /// The places whose connection tracking has seen it.
    tracked: BTreeSet<String>,
    /// The kernel may be stricter.
    at_most: bool,
}

impl Said {
    fn of(walk: &Walk<'_>) -> Self {
        let place = match walk.fate {
            Fate::Delivered(place) => Some(place.to_owned()),
            _ => None,
        };
        let tracks = |gate: &Gate| *gate != Gate::Panel;
        let tracked = walk.hops.iter().filter(|hop| tracks(&hop.gate)).map(|hop| hop.place.to_owned()).collect();
        Self { place, story: story(walk), beyond: walk.fate == Fate::Lost(Loss::Translated), tracked, at_most: false }
    }
}

impl<'w> Oracle<'w> {
    fn new(world: &'w World) -> Self {
        Self { world, connections: Connections::new(), segments: Segments::default() }
    }

    fn says(&mut self, shot: &Shot) -> Said {
        let packet = match &shot.way {
            Way::Program(_, packet) | Way::Wire(_, _, packet) => packet,
            Way::Outside(frame, arrival) => arrival.as_ref().map_or(frame, |arrival| &arrival.on_wire),
        };
        let thinks = |(place, tracked): (&String, &Tracked)| Some((place.clone(), tracked.classify(packet)?));
        let held: Vec<(String, CtState)> = self.connections.iter().filter_map(thinks).collect();
        let said = self.goes(shot);
        let held: Vec<_> = held.into_iter().filter(|(place, _)| said.tracked.contains(place)).collect();
        // Where addresses are translated, an error must have its right checksum, which no setting switches off.
        let broken = shot.kind.starts_with("icmp error") && shot.twist == draw::OTHER_BYTES;
        let at_most = self.segments.may_be_refused(packet, &held) || broken;
        Said { at_most, ..said }
    }

    fn goes(&mut self, shot: &Shot) -> Said {
        match &shot.way {
            Way::Program(from, packet) => self.carries(from, packet, Sender::Program),
            Way::Wire(from, frames, whole) => match &frames[..] {
                [frame] => self.carries(from, frame, Sender::Root),
                parts => {
                    let held = |part| self.world.carry(from, part, Sender::Root, &self.connections);
                    let walks: Vec<Walk<'_>> = parts.iter().map(held).collect();
                    match walks.iter().find(|walk| walk.fate != Fate::Lost(Loss::HeldForReassembly)) {
                        Some(walk) => Said::of(walk),
                        None if parts.iter().any(is_beheaded_first) => Said {
                            place: None,
                            ..Said::of(&self.world.carry(from, &parts[0], Sender::Root, &self.connections))
                        },
                        None => self.carries(from, whole, Sender::Root),
                    }
                }
            },
            Way::Outside(_, None) => Said {
                place: None,
                story: "nobody asked for it".into(),
                beyond: false,
                tracked: BTreeSet::new(),
                at_most: false,
            },
            Way::Outside(_, Some(arrival)) => self.receives(arrival),
        }
    }

    fn carries(&mut self, from: &str, packet: &Packet, sender: Sender) -> Said {
        let walk = self.world.send(from, packet, sender, &mut self.connections);
        let said = Said::of(&walk);
        // The two translating namespaces keep in mind what they let through, as each of them has seen it.
        let leaves = |gate| walk.hops.iter().any(|hop| hop.gate == gate);
        if leaves(Gate::Gateway) {
            self.connections.entry("uplink".into()).or_default().notice(packet);
        }
        if leaves(Gate::Host) {
            let called = called(&walk, packet);
            self.record("uplink", packet);
            if walk.is_delivered() {
                let seen = called.and_then(|called| self.sent_by_gateway(&called));
                seen.into_iter().for_each(|seen| self.record("host", &seen));
            }
        }
        said
    }

    fn receives(&mut self, arrival: &Arrival) -> Said {
        let walk = self.world.receive(arrival, &self.connections);
        let said = Said::of(&walk);
        let went = |gate| walk.hops.iter().any(|hop| hop.gate == gate);
        let reached = |next| went(next) || walk.is_delivered();
        if let Some(packet) = arrival.at_host.as_ref().filter(|_| went(Gate::Host) && reached(Gate::Gateway)) {
            self.record("host", packet);
        }
        if let Some(packet) = arrival.at_gateway.as_ref().filter(|_| went(Gate::Gateway) && reached(Gate::Panel)) {
            self.record("uplink", packet);
        }
        if let Some(place) = &said.place {
            self.record(place, &arrival.on_wire);
        }
        said
    }

    fn record(&mut self, place: &str, packet: &Packet) {
        let tracked: &mut Tracked = self.connections.entry(place.to_owned()).or_default();
        tracked.record(packet);
    }

    fn sent_by_gateway(&self, packet: &Packet) -> Option<Packet> {
        let to = packet.in_stack()?.ends()?.to();
        let own = self.world.leg.as_ref()?.addresses.iter().find_map(|own| Ends::new(*own, to))?;
        packet.readdressed(own)
    }
}

/// The TCP connections so far, as each place holds them: those that were opened by the book, and those after something
/// else.
///
/// The kernel knows ten states of a connection, the interpreter whether there was an answer. As far as the handshake
/// goes the two are the same; after a reset of an open connection, a FIN, or an answer that is no SYN-ACK, the kernel
/// finds more packets invalid.
#[derive(Default)]
struct Segments {
    open: BTreeSet<(String, Connection)>,
    loose: BTreeSet<Connection>,
}

/// Both ends of a connection, the lower one first.
type Connection = [(IpAddr, u16); 2];

impl Segments {
    /// Takes note of a packet, of which places think `held` that know its connection and have seen it; whether the
    /// kernel may refuse it where the interpreter does not.
    fn may_be_refused(&mut self, packet: &Packet, held: &[(String, CtState)]) -> bool {
        let Some((connection, flags)) = segment(packet) else {
            return told_of(packet).is_some_and(|connection| self.loose.contains(&connection));
        };
        let flags = flags & (flag::SYN | flag::ACK | flag::RST | flag::FIN);
        for (place, ct) in held {
            let here = (place.clone(), connection);
            let is_open = self.open.contains(&here);
            let by_the_book = match flags {
                flag::SYN => ct.direction == 0,
                flag::ACK => is_open,
                flag::RST => !is_open,
                other => other == flag::SYN | flag::ACK && ct.direction == 1,
            };
            if !by_the_book {
                self.loose.insert(connection);
            } else if flags == flag::SYN | flag::ACK {
                self.open.insert(here);
            }
        }
        self.loose.contains(&connection)
    }
}

fn segment(packet: &Packet) -> Option<(Connection, u8)> {
    let view = packet.in_stack()?;
    let (ends, transport) = (view.ends()?, view.transport?);
    // Whatever stands in front of it.
    let at = transport.offset;
    let is_segment = transport.protocol == 6 || transport.protocol == 51;
    let bytes = view.network.get(at..at + 14).filter(|_| is_segment)?;
    Some((connection(ends, bytes), bytes[13]))
}

/// The connection that an ICMP error is about.
fn told_of(packet: &Packet) -> Option<Connection> {
    let view = packet.in_stack()?;
    let transport = view.transport.filter(|transport| [1, 58].contains(&transport.protocol))?;
    let inner = view.network.get(transport.offset + 8..)?;
    let ethertype = if inner.first()? >> 4 == 4 { IPV4 } else { IPV6 };
    let ends = Packet::ethernet(ethertype, &[inner]).at_ingress()?.ends()?;
    let at = if ethertype == IPV4 { usize::from(inner[0] & 0x0f) * 4 } else { 40 };
    Some(connection(ends, inner.get(at..at + 4)?))
}

fn connection(ends: Ends, ports: &[u8]) -> Connection {
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    let mut connection = [(ends.from(), port(0)), (ends.to(), port(2))];
    connection.sort();
    connection
}

/// The first part of an IPv6 datagram without the whole of its transport header: nobody puts that together with others
/// (RFC 8200, section 4.5; `ipv6frag_thdr_truncated`).
fn is_beheaded_first(part: &Packet) -> bool {
    let Some(view) = part.in_stack().filter(|view| view.has_fragment_header() == Some(true)) else { return false };
    let Some(transport) = view.transport.filter(|transport| !transport.beheaded) else { return false };
    let needed = match transport.protocol {
        6 => 20,
        17 | 58 => 8,
        _ => 1,
    };
    view.network.len() < transport.offset + needed
}

/// The packet as the gateway sends it on: to another resolver than was asked.
fn called(walk: &Walk<'_>, packet: &Packet) -> Option<Packet> {
    let nat = walk.hops.iter().filter(|hop| hop.gate == Gate::Gateway).find_map(|hop| match hop.outcome.nat {
        Some(Nat::Destination { address, .. }) => Some(address),
        _ => None,
    });
    let Some(address) = nat else { return Some(packet.clone()) };
    packet.readdressed(Ends::new(packet.in_stack()?.ends()?.from(), address)?)
}

fn story(walk: &Walk<'_>) -> String {
    let mut text = format!("{:?}", walk.fate);
    for hop in &walk.hops {
        let last = hop.outcome.trace.last().map(|(chain, rule)| format!(" at {chain} rule {rule}")).unwrap_or_default();
        let sets: Vec<&str> = hop.outcome.elements.iter().map(|(set, _)| *set).collect();
        let decision = match hop.outcome.decision {
            Decision::Forwarded(index) => format!("into wire {index}"),
            other => format!("{other:?}"),
        };
        write!(text, "\n      {:?} of {}: {decision}{last}, found in {sets:?}", hop.gate, hop.place)
            .expect("a string takes it");
    }
    text
}

/// A shot of which the two say different things.
#[derive(Debug)]
pub struct Difference {
    /// Its place among the shots.
    pub at: usize,
    /// The interpreter.
    pub said: String,
    /// Where it must arrive by that.
    pub must: Option<String>,
    /// The kernel: where it did, and what.
    pub did: Vec<(String, Vec<u8>)>,
    /// What sending it said.
    pub refused: Option<std::io::Error>,
}

/// Sends everything, up to the first difference.
pub fn play(scene: &Scene<'_>, world: &World, shots: &[Shot]) -> Result<Arrived, Difference> {
    scene.forget();
    let mut oracle = Oracle::new(world);
    let at_of: BTreeMap<u16, usize> = shots.iter().enumerate().map(|(at, shot)| (shot.number, at)).collect();
    let mut arrived: BTreeMap<usize, Vec<(String, Vec<u8>)>> = BTreeMap::new();
    let mut due: Vec<Option<Said>> = Vec::new();
    for (at, shot) in shots.iter().enumerate() {
        let said = oracle.says(shot);
        if said.beyond {
            due.push(None);
            continue;
        }
        let refused = send(scene, shot).err();
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (place, datagram) in scene.arrivals() {
                let number = number_of(&datagram).and_then(|number| at_of.get(&number));
                let number = number.unwrap_or_else(|| panic!("{place} got what nobody sent: {datagram:02x?}"));
                arrived.entry(*number).or_default().push((place, datagram));
            }
            let there = |place: &String| arrived.get(&at).is_some_and(|seen| seen.iter().any(|(at, _)| at == place));
            if said.at_most || said.place.as_ref().is_none_or(there) || Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        due.push(Some(said));
        judge(&mut due, &mut arrived, refused)?;
    }
    // What would come late comes now.
    thread::sleep(Duration::from_millis(5));
    for (place, datagram) in scene.arrivals() {
        if let Some(at) = number_of(&datagram).and_then(|number| at_of.get(&number)) {
            arrived.entry(*at).or_default().push((place, datagram));
        }
    }
    judge(&mut due, &mut arrived, None)?;
    let places = |at| arrived.remove(&at).into_iter().flatten().map(|(place, _)| place).collect();
    Ok((0..shots.len()).map(places).collect())
}

/// Adds to the tally what was sent.
pub fn count(shots: &[Shot], arrived: &Arrived, tally: &mut Tally) {
    for (shot, places) in shots.iter().zip(arrived) {
        for what in [shot.kind.as_str(), shot.twist].into_iter().filter(|what| !what.is_empty()) {
            let (sent, there) = tally.entry(what.to_owned()).or_default();
            *sent += 1;
            *there += usize::from(!places.is_empty());
        }
    }
}

/// The first shot of which another interpreter would have said something else than the kernel did.
pub fn contradicted(world: &World, shots: &[Shot], arrived: &Arrived) -> Option<usize> {
    let mut oracle = Oracle::new(world);
    shots.iter().zip(arrived).position(|(shot, places)| {
        let said = oracle.says(shot);
        let must: BTreeSet<String> = said.place.into_iter().collect();
        !said.beyond && must != *places && !(said.at_most && places.is_empty())
    })
}

/// The first shot so far of which the two say different things.
fn judge(
    due: &mut [Option<Said>],
    arrived: &mut BTreeMap<usize, Vec<(String, Vec<u8>)>>,
    refused: Option<std::io::Error>,
) -> Result<(), Difference> {
    let places =
        |at: &usize| -> BTreeSet<&String> { arrived.get(at).into_iter().flatten().map(|(place, _)| place).collect() };
    let differs = |(at, said): (usize, &Option<Said>)| {
        let must: BTreeSet<&String> = said.iter().flat_map(|said| &said.place).collect();
        let did = places(&at);
        let fine = must == did || said.as_ref().is_some_and(|said| said.at_most && did.is_empty());
        (!fine).then_some(at)
    };
    // Only the last, and those before it that something came of late.
    let Some(at) = due.iter().enumerate().find_map(differs) else { return Ok(()) };
    let said = due[at].take();
    Err(Difference {
        at,
        must: said.as_ref().and_then(|said| said.place.clone()),
        said: said.map_or_else(|| "not sent".into(), |said| said.story),
        did: arrived.remove(&at).unwrap_or_default(),
        refused,
    })
}

fn send(scene: &Scene<'_>, shot: &Shot) -> std::io::Result<()> {
    match &shot.way {
        Way::Program(from, packet) => scene.say(from, packet),
        Way::Wire(from, frames, _) => frames.iter().try_for_each(|frame| scene.put(from, frame.frame())),
        Way::Outside(frame, _) => scene.put(WAN, frame.frame()),
    }
}

/// As few of the shots before a difference as still lead to one at the same shot.
pub fn shrunk(scene: &Scene<'_>, world: &World, shots: &[Shot], found: Difference) -> (Vec<Shot>, Difference) {
    let mut shots = shots[..=found.at].to_vec();
    let mut found = found;
    let mut step = shots.len();
    let mut tries = 0;
    while step > 0 && tries < 120 {
        let mut start = 0;
        while start + 1 < shots.len() && tries < 120 {
            let end = (start + step).min(shots.len() - 1);
            let fewer: Vec<Shot> = shots[..start].iter().chain(&shots[end..]).cloned().collect();
            tries += 1;
            match play(scene, world, &fewer) {
                Err(difference) if difference.at == fewer.len() - 1 => (shots, found) = (fewer, difference),
                _ => start = end,
            }
        }
        step /= 2;
    }
    (shots, found)
}

/// Everything that is needed to look into a difference.
pub fn report(scene: &Scene<'_>, shots: &[Shot], found: &Difference) -> String {
    let mut text = format!("policy:\n{}\n", scene.policy);
    for (name, place) in &scene.world.places {
        writeln!(text, "{name}: {:?}, wire {}", place.addresses, place.fabric_index).expect("a string takes it");
    }
    writeln!(text, "\nsent, in this order:").expect("a string takes it");
    for shot in shots {
        write!(text, "{}", draw::told(shot)).expect("a string takes it");
    }
    let must = found.must.as_deref().unwrap_or("nobody");
    writeln!(text, "\nthe last of them must reach {must}, says the interpreter: {}", found.said)
        .expect("a string takes it");
    match &found.did[..] {
        [] => text.push_str("in the kernel it reaches nobody"),
        did => did.iter().for_each(|(place, datagram)| {
            write!(text, "in the kernel it reaches {place}: {datagram:02x?}").expect("a string takes it");
        }),
    }
    if let Some(refused) = &found.refused {
        write!(text, " (sending it: {refused})").expect("a string takes it");
    }
    text
}
