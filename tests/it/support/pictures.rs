//! The pictures in the README: taken by the tests, with `IT_RECORD=1` for good.

use std::path::Path;
use std::{env, fs};

use super::browser::Browser;

/// Takes a picture of the page. With `IT_RECORD` set it becomes `tests/it/pictures/<name>.png`;
/// without, that one has to be there and as large.
pub fn take(browser: &Browser, name: &str, width: u32, height: u32) {
    browser.set_viewport(width, height);
    let picture = browser.picture();
    assert_eq!(size(&picture), (width, height), "{name}");
    let file = Path::new("tests/it/pictures").join(format!("{name}.png"));
    if is_recorded() {
        fs::write(&file, picture).expect("a file");
    } else {
        let kept = fs::read(&file).expect("IT_RECORD=1 makes the pictures");
        assert_eq!(size(&kept), (width, height), "{name}");
    }
}

/// Whether pictures are kept.
pub fn is_recorded() -> bool {
    env::var_os("IT_RECORD").is_some()
}

/// Of a PNG (ISO/IEC 15948, 11.2.2), in pixels.
fn size(png: &[u8]) -> (u32, u32) {
    assert!(png.starts_with(b"\x89PNG"), "a PNG");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("4 bytes"));
    (number(16), number(20))
}
