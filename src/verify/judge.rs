//! What was seen, held against what was expected.

use super::listen::{Arrivals, Holder, Holders};
use super::probe::{Answer, Seen};
use super::{Expected, Mismatch, Numbered, OsCode, Outcome, Place, Probe, Report, Unproven};
use netns_policy::port::Protocol;

/// A report in the making.
pub(super) struct Judgement<'a> {
    probes: &'a [Probe],
    outcomes: Vec<Option<Outcome>>,
    verdicts: Vec<Verdict>,
}

/// What a probe amounts to.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Verdict {
    AsExpected,
    Mismatch(Option<String>),
    Unproven(String),
}

/// Everything that is known of one probe.
struct Evidence<'a> {
    probe: &'a Probe,
    outcome: &'a Outcome,
    ours: bool,
    absent: Option<OsCode>,
    /// In which place its datagram was seen, and with which source address.
    arrived: Option<String>,
}

impl<'a> Judgement<'a> {
    pub(super) fn new(probes: &'a [Probe]) -> Self {
        let unmade = || Verdict::Unproven("it was not made".into());
        Self {
            probes,
            outcomes: vec![None; probes.len()],
            verdicts: std::iter::repeat_with(unmade).take(probes.len()).collect(),
        }
    }

    /// Takes in what one batch saw.
    pub(super) fn add(
        &mut self,
        places: &[Place],
        batch: &[Numbered],
        seen: Vec<Seen>,
        holders: &Holders,
        arrivals: &Arrivals,
    ) {
        for (number, answer) in seen {
            self.outcomes[number] = Some(outcome(answer, places, &self.probes[number]));
        }
        for one in batch {
            let Some(outcome) = &self.outcomes[one.probe] else { continue };
            let probe = &self.probes[one.probe];
            let holder = holders.get(&one.port);
            let arrival = u32::try_from(one.probe).ok().and_then(|number| arrivals.get(&number));
            let evidence = Evidence {
                probe,
                outcome,
                ours: holder.is_some_and(|holder: &Holder| holder.is_ours(probe.address)),
                absent: holder.and_then(|holder| holder.absent),
                arrived: arrival.map(|(place, from)| format!("{} (from {from})", places[*place].name)),
            };
            self.verdicts[one.probe] = evidence.verdict();
        }
    }

    pub(super) fn into_report(self) -> Report {
        let mut report = Report { probes: self.probes.len(), ..Report::default() };
        for ((probe, outcome), verdict) in self.probes.iter().zip(self.outcomes).zip(self.verdicts) {
            let (probe, seen) = (probe.clone(), outcome.unwrap_or(Outcome::Silent));
            report.outcomes.push(seen.clone());
            match verdict {
                Verdict::AsExpected => {}
                Verdict::Mismatch(note) => report.mismatches.push(Mismatch { probe, seen, note }),
                Verdict::Unproven(reason) => report.unproven.push(Unproven { probe, seen, reason }),
            }
        }
        report
    }
}

fn outcome(answer: Answer, places: &[Place], probe: &Probe) -> Outcome {
    match answer {
        Answer::Token { place } => match places.get(place) {
            Some(place) if place.name == probe.to => Outcome::Open,
            Some(place) => Outcome::Elsewhere(place.name.clone()),
            None => Outcome::Accepted,
        },
        Answer::Accepted => Outcome::Accepted,
        Answer::Refused(errno) => Outcome::Refused(OsCode(errno as i32)),
        Answer::Silent => Outcome::Silent,
        Answer::Failed(errno) => Outcome::Failed(OsCode(errno as i32)),
    }
}

impl Evidence<'_> {
    fn verdict(&self) -> Verdict {
        match self.probe.expected {
            Expected::Open => self.should_be_open(),
            Expected::Closed => self.should_be_closed(),
        }
    }

    fn should_be_open(&self) -> Verdict {
        match self.outcome {
            Outcome::Open => Verdict::AsExpected,
            Outcome::Accepted if !self.ours && self.absent.is_none() => Verdict::AsExpected,
            Outcome::Failed(_) => Verdict::Unproven("the probe could not be made".into()),
            Outcome::Silent if self.is_foreign_datagram() => Verdict::Unproven(foreign_datagram(self.probe)),
            Outcome::Elsewhere(_) => Verdict::Mismatch(None),
            Outcome::Accepted => {
                Verdict::Mismatch(Some("it got through, but no listener's own answer came back".into()))
            }
            _ => match (&self.arrived, self.absent) {
                (Some(place), _) => Verdict::Mismatch(Some(format!("it arrived in {place}, its answer was lost"))),
                (None, Some(code)) => Verdict::Unproven(no_listener(code)),
                (None, None) => Verdict::Mismatch(None),
            },
        }
    }

    fn should_be_closed(&self) -> Verdict {
        if let Some(place) = &self.arrived {
            return Verdict::Mismatch(Some(format!("it arrived in {place}")));
        }
        match (self.outcome, self.absent) {
            (Outcome::Open | Outcome::Elsewhere(_) | Outcome::Accepted, _) => Verdict::Mismatch(None),
            (Outcome::Failed(_), _) => Verdict::Unproven("the probe could not be made".into()),
            (_, Some(code)) => Verdict::Unproven(no_listener(code)),
            (Outcome::Silent, None) if self.is_foreign_datagram() => Verdict::Unproven(foreign_datagram(self.probe)),
            (Outcome::Silent | Outcome::Refused(_), None) => Verdict::AsExpected,
        }
    }

    fn is_foreign_datagram(&self) -> bool {
        self.probe.protocol == Protocol::Udp && !self.ours && self.absent.is_none()
    }
}

fn foreign_datagram(probe: &Probe) -> String {
    format!("a program of its own holds udp:{} in {}, and its silence says nothing", probe.port, probe.to)
}

fn no_listener(code: OsCode) -> String {
    format!("no listener could be put there: {code}")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn verdict(protocol: Protocol, expected: Expected, outcome: &Outcome, ours: bool, arrived: bool) -> Verdict {
        let address = Ipv4Addr::LOCALHOST.into();
        let probe = &Probe { from: "a".into(), to: "b".into(), address, protocol, port: 1, expected };
        Evidence { probe, outcome, ours, absent: None, arrived: arrived.then(|| "b".into()) }.verdict()
    }

    #[test]
    fn nothing_passes_that_was_not_seen() {
        use Protocol::{Tcp, Udp};
        let refused = Outcome::Refused(OsCode(nix::libc::ECONNREFUSED));
        let failed = Outcome::Failed(OsCode(nix::libc::EMFILE));
        let elsewhere = Outcome::Elsewhere("c".into());
        let passes = |protocol, expected, outcome: &Outcome, ours, arrived| {
            verdict(protocol, expected, outcome, ours, arrived) == Verdict::AsExpected
        };
        for protocol in [Tcp, Udp] {
            for ours in [true, false] {
                assert!(passes(protocol, Expected::Open, &Outcome::Open, ours, true));
                for outcome in [&refused, &failed, &elsewhere, &Outcome::Silent] {
                    assert!(!passes(protocol, Expected::Open, outcome, ours, true), "{protocol} {outcome}");
                }
                for outcome in [&Outcome::Open, &Outcome::Accepted, &failed, &elsewhere] {
                    assert!(!passes(protocol, Expected::Closed, outcome, ours, false), "{protocol} {outcome}");
                }
                assert!(!passes(protocol, Expected::Closed, &refused, ours, true), "it had arrived");
                assert!(passes(protocol, Expected::Closed, &refused, ours, false));
            }
            assert!(passes(protocol, Expected::Closed, &Outcome::Silent, true, false));
            assert!(passes(protocol, Expected::Open, &Outcome::Accepted, false, false));
            assert!(!passes(protocol, Expected::Open, &Outcome::Accepted, true, false));
        }
        assert!(matches!(verdict(Udp, Expected::Open, &Outcome::Silent, false, false), Verdict::Unproven(_)));
        assert!(matches!(verdict(Udp, Expected::Closed, &Outcome::Silent, false, false), Verdict::Unproven(_)));
        assert!(matches!(verdict(Tcp, Expected::Open, &Outcome::Silent, false, false), Verdict::Mismatch(_)));
    }
}
