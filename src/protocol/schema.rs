//! docs/schema keeps a JSON schema of every type that leaves the program, so that what scripts depend on does not
//! change unseen.

#![allow(clippy::unwrap_used)]
use super::request::RequestLine;
use super::*;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

/// Set to anything, the files are written instead of compared.
const RENEW: &str = "VERFS_RENEW_SCHEMA";

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time", "description": "RFC 3339, UTC, whole seconds." })
    }
}

/// The name of the file, and what it holds: what is written, all fields.
fn schema_of<T: JsonSchema>(name: &'static str) -> (&'static str, String) {
    written::<T>(name, SchemaSettings::draft2020_12().for_serialize())
}

/// What is read: fields may be missing.
fn schema_of_read<T: JsonSchema>(name: &'static str) -> (&'static str, String) {
    written::<T>(name, SchemaSettings::draft2020_12().for_deserialize())
}

fn written<T: JsonSchema>(name: &'static str, settings: SchemaSettings) -> (&'static str, String) {
    let schema = settings.into_generator().into_root_schema_for::<T>();
    (name, serde_json::to_string_pretty(&schema).unwrap() + "\n")
}

/// By the verb that prints it, or by what it is on the socket.
fn schemas() -> Vec<(&'static str, String)> {
    vec![
        schema_of_read::<RequestLine<Request>>("request"),
        schema_of::<Failure>("error"),
        schema_of::<Done>("done"),
        schema_of::<PinnedPage>("pinned"),
        schema_of::<Initialized>("init"),
        schema_of::<Added>("add"),
        schema_of::<Serving>("mount"),
        schema_of::<Reloaded>("reload"),
        schema_of::<Unmounted>("umount"),
        schema_of::<Switched>("switch"),
        schema_of::<DryRun>("switch-dry-run"),
        schema_of::<Vec<Difference>>("diff"),
        schema_of::<StoreStatus>("status"),
        schema_of::<Shadowed>("status-shadowed"),
        schema_of::<Vec<Listed>>("list"),
        schema_of::<Vec<LogLine>>("log"),
        schema_of::<Exported>("export"),
        schema_of::<Adopted>("media-adopt"),
        schema_of::<Restored>("media-restore"),
        schema_of::<Removed>("remove"),
        schema_of::<Freed>("gc"),
        schema_of::<Verified>("verify"),
    ]
}

#[test]
fn the_schemas_in_docs_are_those_of_the_types() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema");
    let renew = std::env::var_os(RENEW).is_some();
    let mut names = BTreeSet::new();
    for (name, schema) in schemas() {
        let path = dir.join(name).with_extension("json");
        if renew {
            std::fs::write(&path, &schema).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == schema,
            "what verfs says as JSON has changed, and {} says what scripts expect. If the change is meant (and \
             CHANGELOG.md has it), renew the files: {RENEW}=1 cargo test --lib schema. It is now:\n{schema}",
            path.display()
        );
        assert!(names.insert(format!("{name}.json")), "two of {name}");
    }
    let there = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(there.collect::<BTreeSet<_>>(), names, "docs/schema has other files than there are types");
}
