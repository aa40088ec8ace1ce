"""The walls of a sandbox: namespaces, a file system of its own, and what a process in it may not do. Linux only.

Who is inside sees the computer's programs and libraries, read-only, and otherwise only what a tmpfs of bounded size
holds: no home, no checkout, no sockets, no network, no other process, no environment. It has no capability and an
unprivileged user id, and the kernel refuses it what could open a way out (namespaces, mounts, tracing, memory that
belongs to no process).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import stat
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NOBODY = 65534
MIB = 1024 * 1024
DISK_BYTES = 64 * MIB
"""What all files together may hold; it is memory of this computer."""
FILE_BYTES = 32 * MIB
INODES = 10_000
PROCESSES = 64
OPEN_FILES = 128
CPU_SECONDS = 3600
NICENESS = 5

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SETTINGS = ("/etc/ld.so.cache", "/etc/ssl", "/etc/alternatives", "/etc/localtime")
DEVICES = ("null", "zero", "full", "random", "urandom")
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
KEPT_FLAGS = {8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
"""Flags that a bind may not lose in a user namespace, as statvfs has them and as mount wants them: noexec, noatime,
nodiratime, relatime."""
NAMESPACES = {
    "users": 0x10000000,
    "mounts": 0x00020000,
    "processes": 0x20000000,
    "network": 0x40000000,
    "ipc": 0x08000000,
    "host name": 0x04000000,
    "cgroups": 0x02000000,
}
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
LAST_CAPABILITY = 63


MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Kinds of processor, by their number in seccomp."""
REFUSED = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "memfd_secret": (447, 447),
}
"""System calls that nobody's program needs behind the walls, with their number on each kind of processor."""
_CALLS_OF_X32 = 0x40000000
_LIBC: Any = ctypes.CDLL(None, use_errno=True)


def unshare() -> None:
    """Leave every namespace of the computer. Raises OSError where that is not permitted."""
    # Not os.unshare: a Python built long ago has no names for what the kernel of today can do.
    if _LIBC.unshare(sum(NAMESPACES.values())):
        _fail("unshare")


def map_users(pid: int) -> None:
    """Say who is who in the user namespace that `pid` made: as root there is a root and nobody, else only nobody."""
    root = os.geteuid() == 0
    if not root:
        Path(f"/proc/{pid}/setgroups").write_text("deny", encoding="ascii")
    for name, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
        text = f"0 {own} 1\n{NOBODY} {NOBODY} 1\n" if root else f"{NOBODY} {own} 1\n"
        Path(f"/proc/{pid}/{name}").write_text(text, encoding="ascii")


def die_with_parent() -> None:
    """Be killed when the parent ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def hide() -> None:
    """Let nobody who has the same user id look into this process or trace it."""
    _prctl(PR_SET_DUMPABLE, 0)


# -- the file system ----------------------------------------------------------------------------------------------


def build(room: str, shown: Iterable[str], commands: Mapping[str, str]) -> None:
    """Put a new root in the place of the old one; `room` is an empty directory, `shown` what is seen of the computer
    beside its system directories, `commands` links to programs. For the first process of the namespaces.

    Raises OSError.
    """
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    # A root in a user namespace may not own every file, so what is made gets its mode said.
    _mount("tmpfs", room, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=755,size={DISK_BYTES},nr_inodes={INODES}")
    root = Path(room)
    for path in (*SYSTEM, *SETTINGS, *shown):
        _show(Path(path), root)
    _make_devices(root / "dev")
    for name, mode in (("tmp", 0o1777), ("home", 0o1777), ("proc", 0o555), ("old", 0o700)):
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(mode)
    for path, program in commands.items():
        link = root / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(program)
    (root / "etc" / "passwd").write_text(f"nobody:x:{NOBODY}:{NOBODY}::/tmp:/bin/sh\n", encoding="ascii")
    (root / "etc" / "group").write_text(f"nogroup:x:{NOBODY}:\n", encoding="ascii")
    # Others' processes are not even listed.
    _mount("proc", str(root / "proc"), "proc", MS_NOSUID | MS_NODEV, "hidepid=2")
    # No user namespace in this one: in its own, everybody would be root again.
    Path(root, "proc/sys/user/max_user_namespaces").write_text("0", encoding="ascii")
    _pivot(root)


def _show(path: Path, root: Path) -> None:
    target = root / str(path).lstrip("/")
    if path.is_symlink() and str(path) in SYSTEM:
        target.symlink_to(path.readlink())
        return
    if not path.exists() or target.exists():  # not here, or below what is shown already
        return
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    if path.is_dir():
        target.mkdir()
    else:
        target.touch()
    _mount(str(path), str(target), "", MS_BIND | MS_REC)
    old = os.statvfs(path).f_flag
    kept = sum(flag for seen, flag in KEPT_FLAGS.items() if old & seen)
    _mount("none", str(target), "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | kept)


def _make_devices(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    for name in DEVICES:
        (directory / name).touch()
        _mount(f"/dev/{name}", str(directory / name), "", MS_BIND)
    for name, where in LINKS.items():
        (directory / name).symlink_to(where)


def _pivot(root: Path) -> None:
    if _LIBC.syscall(_numbers()["pivot_root"], os.fsencode(root), os.fsencode(root / "old")):
        _fail("pivot_root")
    os.chdir("/")
    if _LIBC.umount2(b"/old", MNT_DETACH):
        _fail("/old")
    Path("/old").rmdir()


def place(path: str, content: bytes, mode: int) -> None:
    """Make a file, once the new root is there: whatever links and dots its name has, they lead nowhere else."""
    where = Path(path)
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_bytes(content)
    where.chmod(stat.S_IMODE(mode))


# -- the processes ------------------------------------------------------------------------------------------------


def narrow(memory_bytes: int, cpus: int) -> None:
    """Give this process, which is about to become somebody else's program, the limits, and take all rights away."""
    for number in range(LAST_CAPABILITY + 1):
        _LIBC.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    _limit(memory_bytes)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])
    os.nice(NICENESS)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _filter_calls()


def _limit(memory_bytes: int) -> None:
    limits = {
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))


def _filter_calls() -> None:
    """Refuse, with EPERM, the system calls that nobody's program needs in here."""
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    refused = [*_numbers().values()]
    last = len(refused)
    steps = [
        (load, 0, 0, 4),  # the architecture
        (equal, 0, last + 3, MACHINES[platform.machine()]),
        (load, 0, 0, 0),  # the number of the call
        (at_least, last + 1, 0, _CALLS_OF_X32),
        *((equal, last - index, 0, number) for index, number in enumerate(refused)),
        (answer, 0, 0, allow),
        (answer, 0, 0, refuse),
    ]
    packed = b"".join(struct.pack("HBBI", *step) for step in steps)
    program = ctypes.create_string_buffer(packed)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program)))
    if _LIBC.prctl(PR_SET_SECCOMP, 2, header, 0, 0):
        _fail("seccomp")


def _numbers() -> dict[str, int]:
    """The numbers of the refused calls on this computer."""
    kind = [*MACHINES].index(platform.machine())
    return {name: numbers[kind] for name, numbers in REFUSED.items()}


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0):
        _fail(f"prctl {option}")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    words = [os.fsencode(word) for word in (source, target, kind, options)]
    if _LIBC.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]):
        _fail(target)


def _fail(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), what)
