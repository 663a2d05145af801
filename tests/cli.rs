//! What commands that need no privilege print, as transcripts that can be read.
//!
//! `[..]` in a transcript stands for any text of one line. `TRYCMD=overwrite cargo test --test cli` writes what is printed now into them, for the eye to compare.

#[test]
fn commands_print_what_their_transcripts_say() {
    trycmd::TestCases::new().env("COLUMNS", "100").case("tests/cli/*.trycmd");
}
