//! Rules in words, where nft(8) cannot be the witness.

use std::collections::BTreeMap;

use netns_policy::ruleset::{Expr, MetaKey, Reg, Rule, Table, Verdict};

/// nft(8) would print `accept`, as if everything were accepted.
#[test]
fn a_question_whose_answer_nobody_reads_is_printed() {
    let rule = Rule::from(vec![
        Expr::Meta { key: MetaKey::Iif, dreg: Reg(0) },
        Expr::Lookup { set: "edges".into(), sreg: Reg(0), dreg: Some(Reg(8)), invert: false },
        Expr::Verdict(Verdict::Accept),
    ]);
    assert_eq!(rule.display(&Table::default(), &BTreeMap::new()), "iif map @edges accept");
}

/// What is not understood is said, not left out.
#[test]
fn what_is_not_understood_is_printed() {
    let rule = Rule::from(vec![Expr::Unknown("objref".into()), Expr::Verdict(Verdict::Drop)]);
    assert_eq!(rule.display(&Table::default(), &BTreeMap::new()), "<objref> drop");
}
