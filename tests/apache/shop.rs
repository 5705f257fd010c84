//! The shop that the tests serve: four releases that differ in every way in which releases can.

use crate::chance::Chance;
use crate::http::{self, Release};
use crate::uploads;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const KIB: usize = 1024;

/// The names of the four releases of the generated shop.
pub const RELEASES: [&str; 4] = ["01", "02", "03", "04"];

/// Files of each release that lie where the deleters of `uploads` work.
const VICTIMS: usize = 150;

/// A body that says where it belongs, filled up to `size` bytes.
fn body(path: &str, edition: usize, size: usize) -> Vec<u8> {
    let mut bytes = format!("{path}, edition {edition}\n").into_bytes();
    let seed = blake3::hash(&bytes).as_bytes()[..8].try_into().unwrap();
    let mut random = Chance::new(u64::from_le_bytes(seed));
    while bytes.len() < size {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(size.max(16));
    bytes
}

/// The assets of release `n`, about 160 files: some never change, some change and keep their size, some change both, some come and go, alone or with their directory.
fn assets(n: usize) -> Release {
    let mut release = Release::new(RELEASES[n]);
    let mut add = |path: String, edition: usize, size: usize| {
        let bytes = body(&path, edition, size);
        release.insert(path, bytes);
    };
    // Most are small, as on a real site; some reach 300 KiB.
    let size = |i: usize| {
        if i % 10 == 7 { 300 * KIB - 1000 * i } else { 200 + 371 * i }
    };
    for i in 0..60 {
        add(format!("/assets/fixed/{}/{i}.bin", i % 5), 0, size(i));
    }
    for i in 0..40 {
        add(format!("/assets/resized/{}/{i}.bin", i % 4), n, size(i) + 97 * n);
    }
    for i in 0..20 {
        add(format!("/assets/same-size/{i}.css"), n, size(i));
    }
    for i in 0..24 {
        if !(i + n).is_multiple_of(4) {
            add(format!("/assets/sometimes/{i}.js"), i % 2 * n, size(i));
        }
    }
    for i in 0..12 {
        if n % 2 == 1 {
            add(format!("/season/{}/deep/{i}.svg", i % 3), i % 2 * n, size(i));
        }
    }
    for i in 0..5 {
        add(format!("/season-{n}/{i}.svg"), 0, size(i));
    }
    // A file in one release, a directory in the next.
    if n.is_multiple_of(2) {
        add("/offer".to_owned(), n, 700);
    } else {
        add("/offer/index.html".to_owned(), n, 900);
    }
    release.insert("/empty.txt".to_owned(), Vec::new());
    release
}

/// What release `n` has in the scope `media`: about 40 files, which differ in the same ways.
fn theme(release: &mut Release, n: usize) {
    let mut add = |path: String, edition: usize, size: usize| {
        let bytes = body(&path, edition, size);
        release.insert(path, bytes);
    };
    add("/media/theme/logo".to_owned(), n, 3000);
    for i in 0..10 {
        add(format!("/media/theme/fixed/{i}.png"), 0, 500 + 9000 * i);
        add(format!("/media/theme/resized/{i}.png"), n, 500 + 9000 * i + 97 * n);
        add(format!("/media/theme/same-size/{i}.png"), n, 500 + 9000 * i);
        if !(i + n).is_multiple_of(3) {
            add(format!("/media/theme/sometimes/{i}.png"), i % 2 * n, 400 * i);
        }
    }
    add(format!("/media/season-{n}/banner.png"), 0, 5000);
}

/// Adds pages that refer to the assets, and the lists of all that is there.
fn with_pages(mut release: Release, n: usize) -> Release {
    let assets: Vec<String> = release.pages.keys().cloned().collect();
    let mut random = Chance::new(n as u64 + 1);
    for i in 0..32 {
        let path = match i {
            0 => "/index.html".to_owned(),
            1..8 => format!("/shop/{i}/index.html"),
            _ => format!("/shop/{}/item-{i}.html", i % 7 + 1),
        };
        // Every fourth page is the same in every release but for what it refers to.
        let mut page = format!("<!doctype html>\n<title>{path}</title>\n");
        if i % 4 != 0 {
            page += &format!("<p>Release {}</p>\n", RELEASES[n]);
        }
        for _ in 0..6 {
            let asset = &assets[random.below(assets.len())];
            page += &format!("<img src=\"{asset}\">\n");
        }
        release.insert(path, page.into_bytes());
    }
    release.insert("/release.txt".to_owned(), format!("{}\n", RELEASES[n]).into_bytes());
    let manifest = http::manifest_text(&release.pages);
    release.insert("/manifest.txt".to_owned(), manifest.into_bytes());
    release
}

/// Release `n` of four.
pub fn shop(n: usize) -> Release {
    with_pages(assets(n), n)
}

/// Release `n` of four, with files in what is to be the scope `media`.
pub fn shop_with_theme(n: usize) -> Release {
    let mut release = assets(n);
    theme(&mut release, n);
    with_pages(release, n)
}

/// Writes a release as a directory tree, with the `.htaccess` files that no visitor may see.
pub fn write(release: &Release, n: usize, root: &Path) {
    for (path, bytes) in &release.pages {
        if !path.ends_with('/') {
            let file = root.join(&path[1..]);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
        }
    }
    fs::write(root.join(".htaccess"), "ErrorDocument 404 \"gone\"\n").unwrap();
    if n % 2 == 1 {
        let text = format!("Header set X-Release {}\n", RELEASES[n]);
        fs::write(root.join("assets/.htaccess"), text).unwrap();
    }
}

/// Writes files of release `n` for others to delete: no visitor asks for them.
pub fn write_victims(n: usize, scope: &Path) {
    for dir in uploads::DELETED.map(|name| scope.join(name)) {
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
        for i in 0..VICTIMS {
            fs::write(dir.join(format!("old-{i}")), RELEASES[n].repeat(100)).unwrap();
        }
    }
}
