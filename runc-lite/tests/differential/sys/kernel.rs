//! What the kernel makes of a program: it is loaded in a child, which then makes the calls.
//!
//! So that no call does anything, each answer of the program is replaced by an errno of its own; the errno a
//! call returns tells the answer. Only the end of the child is let through.

use std::arch::asm;
use std::collections::BTreeMap;
use std::ptr::null_mut;

use runc_lite::seccomp::program::Call;
use runc_lite::sys::{BpfInstruction, load_seccomp};

const RET: u16 = 0x06;
const ERRNO: u32 = 0x0005_0000;
/// The first errno that stands for an answer; above all real ones.
const FIRST: u32 = 1000;
/// In the sixth argument of exit_group: not judged.
const LEAVE: u32 = 0x5ecc_0de0;
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

fn op(code: u16, jt: u8, jf: u8, k: u32) -> BpfInstruction {
    BpfInstruction { code, jt, jf, k }
}

/// Replaces answers and puts the exception in front.
fn disguise(program: &[BpfInstruction]) -> (Vec<BpfInstruction>, Vec<u32>) {
    let mut answers: BTreeMap<u32, u32> = BTreeMap::new();
    let exit_group = u32::try_from(libc::SYS_exit_group).unwrap();
    let mut disguised = vec![
        op(0x20, 0, 0, 0),
        op(0x15, 0, 3, exit_group),
        op(0x20, 0, 0, 56),
        op(0x15, 0, 1, LEAVE),
        op(RET, 0, 0, 0x7fff_0000),
    ];
    for i in program {
        let mut i = *i;
        if i.code == RET {
            let next = u32::try_from(answers.len()).unwrap();
            let number = *answers.entry(i.k).or_insert(next);
            i.k = ERRNO | (FIRST + number);
        }
        disguised.push(i);
    }
    let mut list = vec![0; answers.len()];
    for (answer, number) in answers {
        list[number as usize] = answer;
    }
    (disguised, list)
}

/// The kernel's decision for each of `calls`; of i386 only the lower halves of arguments count.
pub(crate) fn decisions(program: &[BpfInstruction], calls: &[Call]) -> Vec<u32> {
    let (disguised, answers) = disguise(program);
    let results = in_child(calls.len(), &|results| {
        rustix::thread::set_no_new_privs(true).unwrap();
        if load_seccomp(&disguised, 0).is_err() {
            return;
        }
        for (call, result) in calls.iter().zip(results) {
            *result = match call.arch {
                X86_64 => enter(call.nr, call.args),
                I386 => enter_compat(call.nr, call.args.map(|a| (a & 0xffff_ffff) as u32)),
                other => panic!("no way to make calls of {other:#x}"),
            };
        }
        enter(
            u32::try_from(libc::SYS_exit_group).unwrap(),
            [0, 0, 0, 0, 0, LEAVE.into()],
        );
    });
    let answer = |result: &i64| {
        let number = u32::try_from(-result).unwrap().checked_sub(FIRST);
        number
            .and_then(|number| answers.get(number as usize).copied())
            .unwrap_or_else(|| panic!("the kernel answered {result}"))
    };
    results.iter().map(answer).collect()
}

/// Runs `work` in a child with `count` results in shared memory. The child must end well.
pub(crate) fn in_child(count: usize, work: &dyn Fn(&mut [i64])) -> Vec<i64> {
    let (status, results) = child(count, work);
    let made = results.iter().take_while(|result| **result != 0).count();
    assert_eq!(
        status, 0,
        "the child ended by {status:#x} after {made} of {count} calls"
    );
    results
}

/// As [`in_child`], but `None` when the work is not done after two seconds.
pub(crate) fn in_child_within_two_seconds(
    count: usize,
    work: &dyn Fn(&mut [i64]),
) -> Option<Vec<i64>> {
    let (status, results) = child(count, &|results| {
        // SAFETY: takes a number; the signal ends the child.
        unsafe { libc::alarm(2) };
        work(results);
    });
    if status == libc::SIGALRM {
        return None;
    }
    assert_eq!(status, 0, "the child ended by {status:#x}");
    Some(results)
}

fn child(count: usize, work: &dyn Fn(&mut [i64])) -> (i32, Vec<i64>) {
    let size = count * size_of::<i64>();
    // SAFETY: a fresh anonymous mapping of the kernel's choosing.
    let memory = unsafe {
        libc::mmap(
            null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(memory, libc::MAP_FAILED);
    let memory = memory.cast::<i64>();
    // SAFETY: the child uses nothing that another thread may have left locked but malloc, which the C library
    // makes ready for children.
    let pid = unsafe { libc::fork() };
    assert_ne!(pid, -1);
    if pid == 0 {
        // SAFETY: the mapping has room for `count` results, is zeroed, and the parent only reads it later.
        let results = unsafe { std::slice::from_raw_parts_mut(memory, count) };
        work(results);
        // SAFETY: ends this process at once; with a filter in force it may not even do that.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above and writes one int.
    let waited = unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(waited, pid);
    // SAFETY: the child that wrote to the mapping has ended, and it has room for `count` results.
    let results = unsafe { std::slice::from_raw_parts(memory, count) }.to_vec();
    // SAFETY: the mapping made above; nothing points into it any more.
    unsafe { libc::munmap(memory.cast(), size) };
    (status, results)
}

/// A 64-bit or x32 call.
pub(crate) fn enter(nr: u32, args: [u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the callers' filters answer every call by an errno, but for calls that are harmless.
    unsafe {
        asm!(
            "syscall",
            inout("rax") u64::from(nr) => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// A call of the 32-bit architecture.
fn enter_compat(nr: u32, args: [u32; 6]) -> i64 {
    let result: i32;
    // SAFETY: as above. rbx and rbp cannot be named as operands, so they are exchanged and put back.
    unsafe {
        asm!(
            "push rbp",
            "xchg rbx, {first}",
            "mov ebp, {last:e}",
            "int 0x80",
            "xchg rbx, {first}",
            "pop rbp",
            first = inout(reg) u64::from(args[0]) => _,
            last = in(reg) args[5],
            inout("eax") nr => result,
            in("ecx") args[1], in("edx") args[2], in("esi") args[3], in("edi") args[4],
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    i64::from(result)
}

/// Whether this kernel takes calls of the 32-bit architecture at all.
pub(crate) fn has_compat() -> bool {
    const GETPID: u32 = 20;
    // SAFETY: the child ends itself at once, or by the fault that int 0x80 is without such calls.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let works = enter_compat(GETPID, [0; 6]) > 0;
        // SAFETY: ends this process.
        unsafe { libc::_exit(i32::from(!works)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above and writes one int.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    status == 0
}
