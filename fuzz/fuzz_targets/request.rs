//! Feeds [`targets::REQUEST`] with what libFuzzer makes up.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::REQUEST.run(data));
