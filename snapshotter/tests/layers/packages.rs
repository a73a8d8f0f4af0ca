//! Images of the packages installed on this machine, unpacked by us and by umoci.
//!
//! A layer has the files of a few packages as GNU tar packs them from the machine itself, so nothing is
//! downloaded; the layer on top removes and replaces some of them, as the steps of a build do.
//! `AXIL_TEST_IMAGES` is how many images there are (3).

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::archive::Archive;
use crate::compare::assert_same;
use crate::differential::{Dice, count};
use crate::world::can_run;

/// Sizes of the packages that are used, in KiB: not empty, and several of them are an image to be had soon.
const SIZES: std::ops::RangeInclusive<u64> = 50..=4000;

/// Where files are as their packages brought them; elsewhere the machine works on them meanwhile.
const STILL: [&str; 6] = ["/bin", "/etc", "/lib", "/opt", "/sbin", "/usr"];

/// The names of the packages to make images of, in an order that depends on the machine only.
fn packages() -> Vec<String> {
    let output = Command::new("dpkg-query")
        .args([
            "--show",
            "--showformat",
            "${binary:Package} ${Installed-Size}\n",
        ])
        .output()
        .expect("dpkg-query is on every Debian");
    assert!(output.status.success(), "dpkg-query --show");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let (name, size) = line.split_once(' ')?;
            SIZES.contains(&size.parse().ok()?).then(|| name.to_owned())
        })
        .collect();
    names.sort();
    assert!(names.len() >= 20, "{names:?}");
    names
}

/// What a package has on this machine: directories before what is in them, and no name twice.
fn files_of(package: &str) -> Vec<PathBuf> {
    let output = Command::new("dpkg-query")
        .args(["--listfiles", package])
        .output()
        .unwrap();
    assert!(output.status.success(), "dpkg-query --listfiles {package}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut files: Vec<PathBuf> = Vec::new();
    for line in text.lines() {
        // Besides paths there are remarks on diversions; and this machine may leave documentation out.
        let path = Path::new(line);
        let is_still = STILL.iter().any(|top| path.starts_with(top));
        if is_still && path.symlink_metadata().is_ok() && !files.iter().any(|known| known == path) {
            files.push(path.to_owned());
        }
    }
    files
}

/// Packs files of this machine with GNU tar. The root gets no entry: it is the machine's.
fn pack(files: &[PathBuf], format: &[&str]) -> Vec<u8> {
    let mut tar = Command::new("tar")
        .args(["--create", "--file=-", "--numeric-owner", "--no-recursion"])
        .args(format)
        .args([
            "--directory=/",
            "--null",
            "--verbatim-files-from",
            "--files-from=-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tar is on every machine that has a package manager");
    let mut names = Vec::new();
    for file in files {
        let inside = file.strip_prefix("/").unwrap().as_os_str();
        names.extend_from_slice(inside.as_bytes());
        names.push(0);
    }
    let mut list = tar.stdin.take().unwrap();
    let writing = std::thread::spawn(move || list.write_all(&names));
    let output = tar.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tar: {errors}");
    output.stdout
}

/// Removes and replaces some of what is below.
fn build_step(below: &[PathBuf], dice: &mut Dice) -> Vec<u8> {
    let mut top = Archive::new();
    let mut touched: Vec<&Path> = Vec::new();
    for _ in 0..2 + dice.roll(6) {
        let path = dice.pick(below);
        let parent = path.parent().unwrap();
        let is_file = fs::symlink_metadata(path).unwrap().is_file();
        // One thing to each directory: what two mean together is another test's subject.
        if !is_file || parent == Path::new("/") || touched.contains(&parent) {
            continue;
        }
        touched.push(parent);
        let name = |path: &Path| path.strip_prefix("/").unwrap().display().to_string();
        let (parent, file) = (name(parent), path.file_name().unwrap().display());
        top = match dice.roll(3) {
            0 => top.file(&format!("{parent}/{file}"), b"replaced"),
            1 => top.file(&format!("{parent}/.wh..wh..opq"), b""),
            _ => top.file(&format!("{parent}/.wh.{file}"), b""),
        };
    }
    top.finish()
}

#[test]
fn privileged_images_of_packages_look_as_umoci_unpacks_them() {
    if !can_run() {
        return;
    }
    let packages = packages();
    let formats = [
        &["--format=gnu"][..],
        &["--format=posix", "--xattrs", "--xattrs-include=*"],
    ];
    let mut dice = Dice::new(7);
    let (mut layers, mut entries) = (0, 0);
    let images = count("AXIL_TEST_IMAGES", 3);
    for number in 0..images {
        let mut used: Vec<&String> = Vec::new();
        let mut below: Vec<PathBuf> = Vec::new();
        let mut archives = Vec::new();
        for _ in 0..2 + dice.roll(4) {
            let mut files: Vec<PathBuf> = Vec::new();
            for _ in 0..1 + dice.roll(3) {
                let package = dice.pick(&packages);
                used.push(package);
                let more = files_of(package);
                let known = files.clone();
                files.extend(more.into_iter().filter(|file| !known.contains(file)));
            }
            entries += files.len();
            archives.push(pack(&files, dice.pick::<&[&str]>(&formats)));
            below.extend(files);
        }
        archives.push(build_step(&below, &mut dice));
        layers += archives.len();
        assert_same(&archives, &format!("image {number} of {used:?}"));
    }
    println!("{images} images, {layers} layers, {entries} entries, no difference");
}
