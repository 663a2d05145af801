//! scratch
fn main() {
    let n = nsctl::Orchestrator::new(nsctl::Options { policy: vec![std::env::args().nth(1).unwrap().into()], state: "/run/st".into(), etc_netns: None, ..Default::default() });
    let p = n.plan().unwrap();
    for (k,t) in &p.desired.fabric.tables { let o=&p.observed.fabric.as_ref().unwrap().rules.tables[k]; for (n,c) in &t.chains { let o=&o.chains[n]; println!("{n} {} {}", o.rules.len(), c.rules.len()); for (a,b) in o.rules.iter().zip(&c.rules) { if a!=b { println!("{n}\n OBS {a:?}\n DES {b:?}"); break; } } } }
}
