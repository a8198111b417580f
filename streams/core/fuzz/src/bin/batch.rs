#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| callfunnel_core_fuzz::batch(bytes));
