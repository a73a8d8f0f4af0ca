//! libseccomp, loaded at run time so that neither building nor running the other tests needs it, and what
//! runc does with a profile before and after it hands it over.

use std::ffi::{CStr, CString, c_int, c_uint, c_void};
use std::os::fd::AsRawFd;

use libloading::{Library, Symbol};
use runc_lite::sys::BpfInstruction;
use rustix::fs::{MemfdFlags, memfd_create};

use super::kernel::in_child_within_two_seconds;
use crate::profiles::{Argument, Profile};

/// `struct scmp_arg_cmp`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Comparison {
    arg: c_uint,
    op: c_int,
    datum_a: u64,
    datum_b: u64,
}

type Context = *mut c_void;
/// `SCMP_FLTATR_CTL_OPTIMIZE`, and its value for a binary tree.
const OPTIMIZE: c_int = 8;
const TREE: u32 = 2;
/// `__NR_SCMP_ERROR`.
const UNKNOWN: c_int = -1;

/// The library.
#[derive(Debug)]
pub(crate) struct Libseccomp(Library);

impl Libseccomp {
    /// Loads Debian's libseccomp2, or says why it cannot.
    pub(crate) fn load() -> Result<Libseccomp, String> {
        // SAFETY: libseccomp has no initialisers that do anything but set up its own data.
        let library = unsafe { Library::new("libseccomp.so.2") };
        library.map(Libseccomp).map_err(|e| e.to_string())
    }

    /// # Safety
    /// `T` is the type of the C function `name`.
    unsafe fn function<T>(&self, name: &CStr) -> Symbol<'_, T> {
        // SAFETY: passed on to the caller.
        unsafe { self.0.get(name.to_bytes_with_nul()) }.unwrap()
    }

    /// The number of `name` on the architecture with libseccomp's `token`; pseudo numbers are negative.
    pub(crate) fn number(&self, token: u32, name: &str) -> Option<i32> {
        type Resolve = unsafe extern "C" fn(u32, *const i8) -> c_int;
        let name = CString::new(name).unwrap();
        // SAFETY: int seccomp_syscall_resolve_name_arch(uint32_t, const char *).
        let resolve: Symbol<'_, Resolve> =
            unsafe { self.function(c"seccomp_syscall_resolve_name_arch") };
        // SAFETY: the name is a C string that outlives the call.
        let number = unsafe { resolve(token, name.as_ptr().cast()) };
        (number != UNKNOWN).then_some(number)
    }

    /// As [`Libseccomp::compile`], in a child, because contradictory rules may keep it busy for ever.
    pub(crate) fn compile_bounded(&self, profile: &Profile) -> Option<Vec<BpfInstruction>> {
        const MOST: usize = 4096;
        let words = in_child_within_two_seconds(MOST + 1, &|words| {
            let Some(program) = self.compile(profile) else {
                return;
            };
            words[0] = i64::try_from(program.len()).unwrap();
            for (word, i) in words[1..].iter_mut().zip(program) {
                let [a, b] = i.code.to_le_bytes();
                let [c, d, e, f] = i.k.to_le_bytes();
                *word = i64::from_le_bytes([a, b, i.jt, i.jf, c, d, e, f]);
            }
        })?;
        let count = usize::try_from(words[0]).unwrap();
        let bytes: Vec<u8> = words[1..=count]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        (count > 0).then(|| bytes.chunks_exact(8).map(instruction).collect())
    }

    /// The program for `profile`, made as runc makes it, without its stub for newer calls. `None` when a rule
    /// is refused, as runc then refuses the profile.
    pub(crate) fn compile(&self, profile: &Profile) -> Option<Vec<BpfInstruction>> {
        type Init = unsafe extern "C" fn(u32) -> Context;
        type Release = unsafe extern "C" fn(Context);
        type ArchAdd = unsafe extern "C" fn(Context, u32) -> c_int;
        type AttrSet = unsafe extern "C" fn(Context, c_int, u32) -> c_int;
        // SAFETY: scmp_filter_ctx seccomp_init(uint32_t).
        let init: Symbol<'_, Init> = unsafe { self.function(c"seccomp_init") };
        // SAFETY: void seccomp_release(scmp_filter_ctx).
        let release: Symbol<'_, Release> = unsafe { self.function(c"seccomp_release") };
        // SAFETY: int seccomp_arch_add(scmp_filter_ctx, uint32_t).
        let arch_add: Symbol<'_, ArchAdd> = unsafe { self.function(c"seccomp_arch_add") };
        // SAFETY: int seccomp_attr_set(scmp_filter_ctx, enum scmp_filter_attr, uint32_t).
        let attr_set: Symbol<'_, AttrSet> = unsafe { self.function(c"seccomp_attr_set") };
        // SAFETY: takes any action.
        let context = unsafe { init(profile.default.value) };
        assert!(!context.is_null());
        for arch in &profile.architectures {
            // SAFETY: the context is live; -EEXIST for the native one is fine.
            unsafe { arch_add(context, arch.token()) };
        }
        if profile.rules.len() > 32 {
            // SAFETY: the context is live.
            unsafe { attr_set(context, OPTIMIZE, TREE) };
        }
        let program = self.rules(context, profile).then(|| self.export(context));
        // SAFETY: the context is live and not used after this.
        unsafe { release(context) };
        program
    }

    fn rules(&self, context: Context, profile: &Profile) -> bool {
        type RuleAdd =
            unsafe extern "C" fn(Context, u32, c_int, c_uint, *const Comparison) -> c_int;
        // SAFETY: int seccomp_rule_add_array(scmp_filter_ctx, uint32_t, int, unsigned int,
        // const struct scmp_arg_cmp *).
        let rule_add: Symbol<'_, RuleAdd> = unsafe { self.function(c"seccomp_rule_add_array") };
        let native = crate::profiles::Arch::X86_64.token();
        for rule in &profile.rules {
            if rule.action.value == profile.default.value {
                continue;
            }
            let Some(number) = self.number(native, rule.name) else {
                continue;
            };
            let conditions: Vec<Comparison> = rule.args.iter().map(comparison).collect();
            let repeated = (0..6).any(|i| conditions.iter().filter(|c| c.arg == i).count() > 1);
            let groups: Vec<&[Comparison]> = if repeated {
                conditions.chunks(1).collect()
            } else {
                vec![conditions.as_slice()]
            };
            for group in groups {
                let count = c_uint::try_from(group.len()).unwrap();
                // SAFETY: the context is live, and `group` has `count` elements.
                let result =
                    unsafe { rule_add(context, rule.action.value, number, count, group.as_ptr()) };
                if result != 0 {
                    return false;
                }
            }
        }
        true
    }

    fn export(&self, context: Context) -> Vec<BpfInstruction> {
        type Export = unsafe extern "C" fn(Context, c_int) -> c_int;
        // SAFETY: int seccomp_export_bpf(const scmp_filter_ctx, int).
        let export: Symbol<'_, Export> = unsafe { self.function(c"seccomp_export_bpf") };
        let file = std::fs::File::from(memfd_create("program", MemfdFlags::CLOEXEC).unwrap());
        // SAFETY: the context is live and the descriptor open.
        let result = unsafe { export(context, file.as_raw_fd()) };
        assert_eq!(result, 0);
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut &file).unwrap();
        std::io::Read::read_to_end(&mut &file, &mut bytes).unwrap();
        bytes.chunks_exact(8).map(instruction).collect()
    }
}

fn instruction(c: &[u8]) -> BpfInstruction {
    BpfInstruction {
        code: u16::from_le_bytes([c[0], c[1]]),
        jt: c[2],
        jf: c[3],
        k: u32::from_le_bytes([c[4], c[5], c[6], c[7]]),
    }
}

fn comparison(argument: &Argument) -> Comparison {
    // enum scmp_compare, in the order of seccomp.h.
    const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    let at = OPERATORS.iter().position(|op| *op == argument.op).unwrap();
    Comparison {
        arg: argument.index,
        op: c_int::try_from(at).unwrap() + 1,
        datum_a: argument.value,
        datum_b: argument.value_two,
    }
}
