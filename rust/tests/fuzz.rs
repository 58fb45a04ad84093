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

/// Records are compared with the last one that was read member by member, so what the one says and where must
/// not slip into the other.
#[test]
fn what_a_record_says_never_slips_into_its_neighbour() {
    let begun = [
        r#""eventName":"INSERT","tableName":"t""#,
        r#""eventName":"INSERT","eventSourceARN":"arn:aws:dynamodb:r:1:table/u/stream/x""#,
        r#""eventName":"INSERT","eventVersion":"1.1""#,
        r#""eventName":"INSERT""#,
    ];
    let precise = r#""ApproximateCreationDateTimePrecision":"MICROSECOND","#;
    let coarse = r#""ApproximateCreationDateTimePrecision":"MILLISECOND","#;
    let twice = format!(r#"{precise}"SizeBytes":1,"#);
    let between = ["", precise, &twice, r#""SequenceNumber":"12","#, r#""StreamViewType":"KEYS_ONLY","#];
    let behind = [r#""x":0"#, &precise[..precise.len() - 1], &coarse[..coarse.len() - 1], r#""SequenceNumber":"123""#];
    let ends = ["", r#","tableName":"v""#, r#","eventSourceARN":"arn:aws:dynamodb:r:1:table/w/stream/x""#];
    for head in begun {
        let mut records = Vec::new();
        for (between, behind) in between.iter().flat_map(|x| behind.iter().map(move |y| (x, y))) {
            for (end, size) in ends.iter().flat_map(|x| [7, 77_777].map(|y| (x, y))) {
                records.push(format!(
                    r#"{{"eventID":"e",{head},"dynamodb":{{"ApproximateCreationDateTime":1706542773915,{between}"Keys":{{"k":{{"S":"{size}"}}}},"NewImage":{{"k":{{"S":"{size}"}}}},"SizeBytes":{size},{behind}}}{end}}}"#
                ));
            }
        }
        // (DynamoDB writes one `dynamodb` a record; what comes twice must not be learned half.)
        let time = r#""ApproximateCreationDateTime":1706542773915"#;
        for rest in [
            format!(
                r#""dynamodb":{{{time}}},"dynamodb":{{"Keys":{{"k":{{"S":"a"}}}},"NewImage":{{"k":{{"S":"a"}}}},"SizeBytes":7,{precise}"y":0}},"tableName":"x""#
            ),
            format!(
                r#""dynamodb":{{{time}}},"tableName":"x","dynamodb":{{{time},"Keys":{{"k":{{"S":"a"}}}},"NewImage":{{"k":{{"S":"a"}}}},"SizeBytes":7,"y":0}}"#
            ),
        ] {
            let twice = format!(r#"{{"eventID":"e",{head},{rest}}}"#);
            for one in &records {
                let [one, twice] = [one.as_bytes(), twice.as_bytes()];
                checks::alone_as_together(&[one, twice, twice, twice, one], None);
            }
            let twice = twice.as_bytes();
            checks::alone_as_together(&[twice, twice, twice], None);
        }
        for (one, other) in records.iter().flat_map(|x| records.iter().map(move |y| (x, y))) {
            checks::alone_as_together(&[one.as_bytes(), other.as_bytes(), one.as_bytes()], None);
        }
    }
}
