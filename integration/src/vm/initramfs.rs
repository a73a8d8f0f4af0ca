//! The initramfs: a cpio archive in the "newc" form with busybox, the disk's drivers and our `init`
//! (initramfs buffer format, Documentation/driver-api/early-userspace of Linux). Not compressed: an emulated
//! processor copies faster than it unpacks.

use super::kernel::Module;

/// First program of the guest.
pub const INIT: &str = include_str!("guest/init");

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;

/// Makes the archive.
#[must_use]
pub fn archive(busybox: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for name in ["bin", "dev", "modules", "proc", "sys", "sysroot"] {
        archive.entry(name, DIRECTORY, (0, 0), &[]);
    }
    // The kernel opens it for init before there is a devtmpfs.
    archive.entry("dev/console", CONSOLE, (5, 1), &[]);
    archive.entry("bin/busybox", PROGRAM, (0, 0), busybox);
    archive.entry("init", PROGRAM, (0, 0), INIT.as_bytes());
    let mut order = String::new();
    for module in modules {
        order.push_str(&module.name);
        order.push('\n');
        let name = format!("modules/{}", module.name);
        archive.entry(&name, FILE, (0, 0), &module.object);
    }
    archive.entry("modules/order", FILE, (0, 0), order.as_bytes());
    archive.entry("TRAILER!!!", 0, (0, 0), &[]);
    archive.bytes
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    count: u32,
}

impl Archive {
    /// Adds an entry: thirteen numbers of eight hexadecimal digits, the name with its end, the content; name
    /// and content are padded to four bytes.
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.count += 1;
        let length = |len: usize| u32::try_from(len).expect("no file of an initramfs has 4 GiB");
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let numbers = [
            self.count,
            mode,
            0,
            0,
            links,
            0,
            length(content.len()),
            0,
            0,
            device.0,
            device.1,
            length(name.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes
                .extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn module(name: &str, object: &[u8]) -> Module {
        Module {
            name: name.to_owned(),
            object: object.to_owned(),
        }
    }

    #[test]
    fn headers_are_aligned_and_counted() {
        let archive = archive(b"12345", &[module("a.ko", b"x")]);
        assert_eq!(archive.len() % 4, 0);
        let magic = |at: usize| &archive[at..at + 6] == b"070701";
        let text = |at: usize| std::str::from_utf8(&archive[at..at + 8]).unwrap();
        let number = |at: usize| usize::from_str_radix(text(at), 16).unwrap();
        let (mut at, mut names) = (0, Vec::new());
        while at < archive.len() {
            assert!(magic(at), "no header at {at}");
            let (size, name) = (number(at + 54), number(at + 94));
            let end = at + 110 + name;
            names.push(String::from_utf8(archive[at + 110..end - 1].to_vec()).unwrap());
            at = end.next_multiple_of(4) + size.next_multiple_of(4);
        }
        assert_eq!(names.first().map(String::as_str), Some("bin"));
        assert_eq!(names.last().map(String::as_str), Some("TRAILER!!!"));
        assert!(names.contains(&"modules/order".to_owned()), "{names:?}");
    }

    /// busybox reads what we write, where it is installed.
    #[test]
    fn another_program_unpacks_it() {
        let Some(busybox) = crate::guard::find_program("busybox") else {
            println!("skipped: busybox is not installed");
            return;
        };
        let dir = std::env::temp_dir().join(format!("axil-initramfs-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("archive");
        let modules = [module("a.ko", b"first"), module("b.ko", b"second!")];
        // Without the device node, which an ordinary user cannot make.
        let archive = archive(b"program", &modules);
        fs::write(&file, archive).unwrap();
        let out = dir.join("out");
        fs::create_dir(&out).unwrap();
        let status = Command::new(busybox)
            .args(["cpio", "-idm", "bin/*", "modules/*", "init"])
            .current_dir(&out)
            .stdin(fs::File::open(&file).unwrap())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let read = |name: &str| fs::read(out.join(name)).unwrap();
        let mode = fs::metadata(out.join("init")).map(|m| m.permissions().mode());
        let found = (
            read("bin/busybox"),
            read("modules/b.ko"),
            read("modules/order"),
            read("init"),
        );
        fs::remove_dir_all(&dir).unwrap();
        assert!(status.success());
        assert_eq!(found.0, b"program");
        assert_eq!(found.1, b"second!");
        assert_eq!(found.2, b"a.ko\nb.ko\n");
        assert_eq!(found.3, INIT.as_bytes());
        assert_eq!(mode.unwrap() & 0o777, 0o755);
    }
}
