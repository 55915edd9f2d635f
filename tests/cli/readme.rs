//! The README's map of the house and its record, against what is there.

use std::fs;

use serde_json::Value;
use tests::program::beside;

/// Each entry of the map exists, and each top-level module of the proxy is in it.
#[test]
fn the_map_is_of_this_house() {
    let readme = fs::read_to_string(beside("../README.md")).unwrap();
    let map = readme.split("## The house").nth(1).unwrap().split("```").nth(1).unwrap();
    let named: Vec<&str> = map
        .split([' ', ',', '\n'])
        .filter(|word| word.ends_with(".rs") || (word.ends_with('/') && word.len() > 1))
        .collect();
    for name in &named {
        let places =
            ["..", "../proxy/src", "../fips", "../fips/src", "."].map(|place| beside(place).join(name));
        assert!(places.iter().any(|place| place.exists()), "{name} is in the map only");
    }
    for entry in fs::read_dir(beside("../proxy/src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        // `drain/` is part of `drain.rs`.
        let part_of_a_file = path.is_dir() && path.with_extension("rs").exists();
        let listed = named.iter().any(|entry| entry.trim_end_matches('/') == name);
        assert!(listed || part_of_a_file || name == "lib.rs", "{name} is not in the map");
    }
}

#[test]
fn the_record_is_json_with_all_five_checks() {
    let readme = fs::read_to_string(beside("../README.md")).unwrap();
    let record = readme.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let record: Value = serde_json::from_str(record).unwrap();
    assert_eq!(record["decision"]["checks"].as_array().unwrap().len(), 5);
}
