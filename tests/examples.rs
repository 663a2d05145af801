//! The examples do what their first comment says.

mod common;

#[allow(clippy::disallowed_methods, reason = "an example is a program, and is run as one")]
fn run(example: &str) -> common::Ran {
    // Cargo builds the examples before the tests, into the directory beside the one that holds this test.
    let test = std::env::current_exe().expect("a test has a binary");
    let target = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
    let program = target.join("examples").join(example);
    assert!(program.exists(), "to test this file alone, first: cargo build --example {example}");
    common::run(&mut std::process::Command::new(program))
}

#[test]
#[allow(clippy::disallowed_methods, reason = "it asks for what the example needs")]
fn embed_applies_uses_and_removes_a_policy() {
    let allowed = std::process::Command::new("unshare").args(["--user", "--mount", "--net", "true"]).status();
    if !nix::unistd::geteuid().is_root() && !allowed.is_ok_and(|status| status.success()) {
        return common::cannot("not root, and no user namespaces");
    }
    let ran = run("embed");
    assert!(ran.status.success(), "{ran:?}");
    let lines: Vec<&str> = ran.text.lines().collect();
    let (planned, seen): (Vec<&str>, Vec<&str>) = lines.iter().partition(|line| line.starts_with("will "));
    assert_eq!(planned.first(), Some(&"will create fabric shop+fabric"), "{}", ran.text);
    let n = planned.len();
    let expected = [
        format!("{n} steps done; now 0 are to do"),
        "web asked db, and db said: hello".into(),
        "web -> db: some bytes passed".into(),
        format!("shop is gone: {n} steps are to do again"),
    ];
    assert_eq!(seen, expected);
}
