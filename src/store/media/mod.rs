//! The writable layer on disk: what scopes are declared, where the layer lies, and its files.

pub mod adopt;
pub mod home;
pub mod layout;
pub mod scope;
