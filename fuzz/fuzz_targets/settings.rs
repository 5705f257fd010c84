//! `verfs.toml`: any text is settings or an error, and no scope that is accepted leads out of the docroot.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::{Component, Path};
use verfs::store::settings::Settings;

fuzz_target!(|text: &str| {
    if let Ok(settings) = Settings::parse(text) {
        for scope in &settings.scopes {
            let inside = Path::new(&scope.path).components().all(|part| matches!(part, Component::Normal(_)));
            assert!(inside && !scope.path.is_empty(), "{:?}", scope.path);
        }
    }
});
