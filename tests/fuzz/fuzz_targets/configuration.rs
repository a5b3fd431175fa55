#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ws_gateway::fuzzing::configuration(input));
