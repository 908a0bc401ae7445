"""Run as a script, with the standard library alone: confines its own process, then runs one program in it.

Standard input is a job {source, folder, layers, around} with the fields of `sandbox.Limits`. Standard output gets one
JSON line {isolation} before the program starts and {error} after it, null where it came to its end; the program itself
reads and writes /dev/null. `qspec.evaluate.sandbox` starts it.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from typing import Any

# System calls that start a process, reach the network, signal or rewrite what is not the program's: x86_64, aarch64.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "io_uring_setup": (425, 425),  # opens sockets past a filter of system calls
    "ptrace": (101, 117),
    "process_vm_writev": (311, 271),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "chmod": (90, None),  # Landlock knows of no modes, owners and attributes
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
}
MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}  # column above, AUDIT_ARCH, clone
CLONE3, CLONE_THREAD = 435, 0x10000
ALLOW, REFUSE, UNKNOWN_CALL, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # EPERM, ENOSYS
LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # instructions of a classic BPF program
SET_NO_NEW_PRIVS, SET_SECCOMP, DROP_BOUNDING = 38, 22, 24  # of prctl

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
WRITES = 0b1_1111_1111_0010  # write, remove and make anything; later versions add
WRITES_SINCE = {2: 1 << 13, 3: 1 << 14, 5: 1 << 15}  # move between folders, truncate, control a device
WRITE_ONE_FILE = 1 << 1 | 1 << 14


def main() -> None:
    job = json.load(sys.stdin)
    result = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    isolation = [*job["around"], *confine(job)]
    print(json.dumps({"isolation": isolation}), file=result, flush=True)
    error = None
    try:
        exec(job["source"], {})
    except BaseException as raised:
        error = described(raised)
    print(json.dumps({"error": error}), file=result, flush=True)
    os._exit(0)  # threads of the program end with it


def described(raised: BaseException) -> str:
    try:
        return f"{type(raised).__name__}: {raised}"[:300].removesuffix(": ")
    except BaseException:
        return type(raised).__name__


def confine(job: dict[str, Any]) -> list[str]:
    """Limits this process for good; what is in force, in words."""
    inforce = ["resource limits"]
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is not None:
        drop_capabilities(libc)
        libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if "Landlock" in job["layers"] and landlock(libc, job["folder"]):
            inforce.insert(0, "Landlock")
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_NOFILE: job["open_files"],
    }
    if libc is not None and "seccomp" in job["layers"] and seccomp(libc):
        inforce.insert(0, "seccomp")
    else:
        limits[resource.RLIMIT_NPROC] = 0
    for name, value in limits.items():
        resource.setrlimit(name, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_seconds"], job["cpu_seconds"] + 1))  # SIGXCPU, then SIGKILL
    return inforce


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """What root may do beyond the files that it owns."""
    for capability in range(64):
        libc.prctl(DROP_BOUNDING, capability, 0, 0, 0)
    libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24))


def landlock(libc: ctypes.CDLL, folder: str) -> bool:
    """Lets the process write below the folder and to /dev/null, nowhere else; False where the kernel cannot."""
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    handled = WRITES | sum(bit for since, bit in WRITES_SINCE.items() if version >= since)
    ruleset = libc.syscall(LANDLOCK_CREATE, struct.pack("Q", handled), ctypes.c_size_t(8), 0)
    for path, allowed in ((folder, handled), (os.devnull, handled & WRITE_ONE_FILE)):
        rule = struct.pack("=Qi", allowed, os.open(path, os.O_PATH))
        if libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0):
            return False
    return bool(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0) == 0)


def seccomp(libc: ctypes.CDLL) -> bool:
    """Refuses the calls of `REFUSED`, and `clone` for anything but a thread; False where the kernel cannot."""
    if platform.machine() not in MACHINES:
        return False
    column, architecture, clone = MACHINES[platform.machine()]
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    program += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, REFUSE)]  # x86_64's calls of another ABI
    program += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, UNKNOWN_CALL)]  # libc then takes clone, whose flags can be seen
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    program += [(EQUAL, 1, 0, clone), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, 16), (AND, 0, 0, CLONE_THREAD)]
    program += [(EQUAL, 0, 1, 0), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filters = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    return bool(libc.prctl(SET_SECCOMP, 2, filters, 0, 0) == 0)


if __name__ == "__main__":
    main()
