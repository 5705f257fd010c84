//! `--json`: the fields that scripts read.

use super::help::VERBS;
use super::support::tree::Tree;
use super::support::{self, Rig};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

fn page(text: &str) -> Tree {
    Tree::new().file("index.html", text).file("css/a.css", "a")
}

fn has(value: &Value, fields: &[&str], what: &str) {
    for field in fields {
        assert!(value.get(field).is_some(), "{what} has no {field}: {value}");
    }
}

/// `2026-01-31T12:34:56Z`, with a fraction perhaps.
fn is_rfc3339(time: &Value) -> bool {
    let text = time.as_str().unwrap_or_default();
    let digits: String = text.chars().map(|char| if char.is_ascii_digit() { '0' } else { char }).collect();
    digits.starts_with("0000-00-00T00:00:00") && text.ends_with('Z')
}

const STATUS: &[&str] =
    &["store", "mountpoint", "release", "previous", "since", "switches", "keeper_pid", "worker_pid", "upcalls"];

#[test]
fn status_has_its_fields_mounted_or_not() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    let status = rig.json(&["status"]);
    has(&status, STATUS, "status of an empty store");
    assert_eq!(status["release"], Value::Null);
    rig.add("01", &page("one"));
    rig.add("02", &page("two"));
    rig.ok(&["switch", "01"]);
    let status = rig.json(&["status"]);
    has(&status, STATUS, "status without a daemon");
    assert_eq!(status["release"], "01");
    assert_eq!(status["mountpoint"], Value::Null);
    assert_eq!(status["worker_pid"], Value::Null);

    rig.mount();
    rig.ok(&["switch", "02"]);
    let status = rig.json(&["status"]);
    has(&status, STATUS, "status");
    assert_eq!(status["tidy"], "done", "{status}");
    has(&status["descriptors"], &["open", "limit", "hits", "misses"], "descriptors");
    assert_eq!(status["store"], rig.store.to_str().unwrap());
    assert_eq!(status["mountpoint"], rig.mnt.to_str().unwrap());
    assert_eq!(status["release"], "02");
    assert_eq!(status["previous"], "01");
    assert_eq!(status["switches"], 1);
    assert!(is_rfc3339(&status["since"]), "{status}");
    assert!(status["worker_pid"].as_u64().is_some_and(|pid| pid > 1), "{status}");
    assert_eq!(status["degraded"], Value::Array(Vec::new()));
    let operations = [
        "lookup",
        "getattr",
        "read",
        "readdir",
        "readdirplus",
        "opendir",
        "open",
        "readlink",
        "forget",
        "statfs",
        "getxattr",
        "listxattr",
    ];
    has(&status["upcalls"], &operations, "upcalls");
    rig.umount();
}

#[test]
fn upcalls_are_counted_by_operation() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    rig.add("01", &page("one").symlink("link", "css"));
    rig.mount();
    let count = |operation: &str| rig.json(&["status"])["upcalls"][operation].as_u64().unwrap();
    let counted = ["lookup", "read", "readlink", "opendir", "statfs"];
    let before = counted.map(count);
    std::fs::read(rig.mnt.join("index.html")).unwrap();
    std::fs::read_link(rig.mnt.join("link")).unwrap();
    std::fs::read_dir(&rig.mnt).unwrap().for_each(|entry| drop(entry.unwrap()));
    rustix::fs::statvfs(&rig.mnt).unwrap();
    for (operation, before) in counted.iter().zip(before) {
        assert!(count(operation) > before, "{operation} was not counted");
    }
    // A hot file costs none. Another test may empty the kernel's caches meanwhile, so try again.
    let quiet = || {
        let before = counted.map(count);
        for _ in 0..100 {
            std::fs::read(rig.mnt.join("index.html")).unwrap();
        }
        counted.map(count) == before
    };
    assert!((0..50).any(|_| quiet()), "a hot file costs upcalls");
    rig.umount();
}

#[test]
fn switch_and_rollback_have_their_fields() {
    if support::skip_mounted() {
        return;
    }
    let fields =
        ["from", "to", "changed", "call_us", "swap_us", "second", "waited_us", "hidden", "tidy", "mounted", "warnings"];
    let mut rig = Rig::new();
    rig.init();
    rig.add("01", &page("one"));
    rig.add("02", &page("two").file("new", "n"));
    let first = rig.json(&["switch", "01"]);
    has(&first, &fields, "the first switch");
    assert!(is_rfc3339(&first["second"]), "{first}");
    assert_eq!((&first["from"], &first["to"]), (&Value::Null, &"01".into()));
    let offline = rig.json(&["switch", "02"]);
    has(&offline, &fields, "a switch without a daemon");
    assert_eq!(offline["mounted"], false);
    assert!(offline["second"].as_str() >= first["second"].as_str(), "{first} {offline}");
    rig.json(&["switch", "01"]);
    rig.mount();
    for (verb, from, to, changed) in
        [(&["switch", "02"][..], "01", "02", 2), (&["rollback"], "02", "01", 2), (&["switch", "01"], "01", "01", 0)]
    {
        let done = rig.json(verb);
        has(&done, &fields, "a switch");
        assert!(is_rfc3339(&done["second"]), "{done}");
        assert_eq!(done["mounted"], true, "{done}");
        assert_eq!((&done["from"], &done["to"]), (&from.into(), &to.into()), "{done}");
        assert_eq!(done["changed"], changed, "{done}");
        assert_eq!(done["tidy"], "done", "{done}");
        assert_eq!(done["hidden"], 0, "{done}");
    }
    rig.umount();
}

#[test]
fn add_list_log_and_diff_have_their_fields() {
    let rig = Rig::new();
    rig.init();
    let added = rig.add("01", &page("one"));
    let fields = ["name", "files", "bytes", "read_bytes", "new_bytes", "call_us", "identical", "warnings"];
    has(&added, &fields, "add");
    assert_eq!((&added["name"], &added["identical"]), (&"01".into(), &false.into()));
    rig.add("02", &page("two"));
    rig.ok(&["switch", "02", "-m", "first"]);

    let list = rig.json(&["list"]);
    for row in list.as_array().unwrap() {
        has(row, &["name", "files", "bytes", "added", "active"], "list");
        assert!(is_rfc3339(&row["added"]), "{row}");
        assert_eq!(row["active"], row["name"] == "02", "{row}");
        assert_eq!((&row["files"], &row["bytes"]), (&2.into(), &4.into()), "{row}");
    }
    let log = rig.json(&["log"]);
    for line in log.as_array().unwrap() {
        has(line, &["time", "uid", "action", "from", "to", "message", "ok"], "log");
        assert!(is_rfc3339(&line["time"]), "{line}");
        assert_eq!((&line["uid"], &line["ok"]), (&0.into(), &true.into()), "{line}");
    }
    assert_eq!(log[2]["message"], "first");
    let diff = rig.json(&["diff", "01", "02"]);
    assert_eq!(diff.as_array().unwrap().len(), 1);
    assert_eq!(diff[0]["path"], "index.html");
    assert_eq!(diff[0]["change"], "content");
}

/// What docs/schema/`name`.json says.
fn schema(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema").join(name).with_extension("json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The value has the fields of the schema, no other ones, and so have the values in it.
fn conforms(value: &Value, schema: &Value, root: &Value, what: &str) {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
        return conforms(value, &root["$defs"][name], root, what);
    }
    if let (Some(choices), false) = (schema["anyOf"].as_array(), value.is_null()) {
        let choice = choices.iter().find(|choice| choice["type"] != "null").unwrap();
        return conforms(value, choice, root, what);
    }
    for item in value.as_array().into_iter().flatten() {
        conforms(item, &schema["items"], root, what);
    }
    if let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object()) {
        let names: Vec<&String> = fields.keys().collect();
        assert_eq!(names, properties.keys().collect::<Vec<_>>(), "{what}: {value}");
        fields.iter().for_each(|(name, value)| conforms(value, &properties[name], root, what));
    }
}

#[test]
fn every_verb_prints_one_value_with_json_as_its_schema_says() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    page("one").file("media/a", "a").write(&source);
    let out = rig.root().join("out");
    let store = rig.store.to_str().unwrap().to_owned();
    let mut seen = BTreeSet::new();
    let mut json = |rig: &Rig, args: &[&str]| {
        seen.insert(args[0].to_owned());
        let value = rig.json(args);
        let name = match args {
            ["rollback", ..] => "switch",
            ["switch", "--dry-run", ..] => "switch-dry-run",
            ["media", verb, ..] => &format!("media-{verb}"),
            ["status", "--shadowed"] => "status-shadowed",
            [verb, ..] => verb,
            [] => unreachable!("a verb"),
        };
        let schema = schema(name);
        assert_eq!(value.is_array(), schema["type"] == "array", "{args:?}: {value}");
        conforms(&value, &schema, &schema, name);
        value
    };
    json(&rig, &["init", &store, "--writable", "media", "--writable", "uploads"]);
    json(&rig, &["status"]);
    let uploads = rig.src.join("uploads");
    page("an upload").write(&uploads);
    json(&rig, &["media", "adopt", uploads.to_str().unwrap(), "--scope", "uploads"]);
    json(&rig, &["add", "01", source.to_str().unwrap()]);
    rig.add("02", &page("two"));
    rig.add("03", &page("three"));
    json(&rig, &["switch", "--dry-run", "01"]);
    json(&rig, &["switch", "01"]);
    json(&rig, &["export", "01", out.to_str().unwrap()]);
    rig.mount();
    json(&rig, &["reload"]);
    json(&rig, &["switch", "02"]);
    json(&rig, &["rollback"]);
    json(&rig, &["add", "04", source.to_str().unwrap(), "--switch"]);
    for verb in ["status", "list", "log", "gc", "verify"] {
        json(&rig, &[verb]);
    }
    json(&rig, &["diff", "01", "02"]);
    std::fs::remove_file(rig.mnt.join("media/a")).unwrap();
    assert_eq!(json(&rig, &["status", "--shadowed"])["shadowed"].as_array().unwrap().len(), 1);
    assert_eq!(json(&rig, &["media", "restore", "media"])["count"], 1);
    json(&rig, &["remove", "03"]);
    json(&rig, &["umount"]);
    let mounted = rig.json(&["mount", &store, rig.mnt.to_str().unwrap()]);
    let mount = schema("mount");
    conforms(&mounted, &mount, &mount, "mount");
    seen.insert("mount".to_owned());
    let pid = mounted["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let _watch = super::watch::watch(&rig.mnt, pid);
    rig.json(&["umount", &store]);
    let verbs = VERBS.iter().chain(&["media"]);
    assert_eq!(seen, verbs.map(ToString::to_string).collect());
}

#[test]
fn errors_are_an_object_on_standard_error() {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &page("one"));
    rig.ok(&["switch", "01"]);
    let table = [
        (&["switch", "nope"][..], 2, "not-found"),
        (&["remove", "01"], 2, "refused"),
        (&["switch", ".hidden"], 2, "request"),
        (&["reload"], 1, "failed"),
        (&["umount"], 2, "request"),
        (&["switch"], 2, "request"),
    ];
    for (args, code, kind) in table {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).chain([OsStr::new("--json")]).collect();
        let outcome = rig.verfs(&args);
        assert_eq!(outcome.code, code, "{args:?}: {outcome:?}");
        assert_eq!(outcome.stdout, "");
        let value: Value = serde_json::from_str(&outcome.stderr).unwrap();
        let fields: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["code", "error", "kind"]);
        let schema = schema("error");
        conforms(&value, &schema, &schema, "error");
        assert_eq!((&value["code"], &value["kind"]), (&code.into(), &kind.into()), "{args:?}: {value}");
    }
}
