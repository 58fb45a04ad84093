//! What fuzzing found, and small inputs that reach far, run again as an ordinary test.

mod checks;

use std::path::Path;

use serde_json::Value;

fn vectors(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/fuzz").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).expect(name)).expect(name)
}

fn bytes(base64: &Value) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(base64.as_str().expect("text")).expect("base64")
}

#[test]
fn every_finding_stays_found() {
    for finding in vectors("findings.json") {
        println!("{}", finding["name"]);
        let (_, check) = checks::TARGETS.iter().find(|(name, _)| finding["target"] == **name).expect("a target");
        check(&bytes(&finding["base64"]));
    }
}

#[test]
fn every_kept_input_holds() {
    for (name, check) in checks::TARGETS {
        let inputs = vectors(&format!("{name}.json"));
        assert!(!inputs.is_empty(), "{name}");
        for input in &inputs {
            check(&bytes(input));
        }
    }
}
