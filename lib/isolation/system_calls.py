"""Denial of system calls in this process by a seccomp filter (seccomp(2)): no network, writing, or programs.

The filter is a list of the calls that a reader never needs, and that reach beyond its own memory: each fails
with EPERM. Files can be opened for reading only, signals go to the own process only, and threads may be
started, but no processes. Calls newer than this list fail with ENOSYS, as on an older kernel.
"""

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD = 0x10000
_FIRST_UNKNOWN = 470
_X32_CALLS = 0x40000000


@dataclass(frozen=True, slots=True)
class _Architecture:
    """Numbers of one processor architecture (asm/unistd.h); None: the call does not exist."""

    audit_number: int
    column: int
    """Column of `_DENIED`, `_OPEN` and so on."""


_ARCHITECTURES = {
    "x86_64": _Architecture(0xC000003E, 0),
    "aarch64": _Architecture(0xC00000B7, 1),
}

_OPEN, _OPENAT = (2, None), (257, 56)
_CLONE, _KILL, _TKILL, _TGKILL, _PRLIMIT = (56, 220), (62, 129), (200, 130), (234, 131), (302, 261)
_NOT_IMPLEMENTED = {"clone3": (435, 435), "openat2": (437, 437)}
"""Their arguments lie in memory, which a filter cannot read; C libraries then use `clone` and `openat`."""

_DENIED: dict[str, tuple[int | None, int | None]] = {
    # Network. Messages go through the socket that is open already.
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    # Other processes, programs, priorities.
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "kcmp": (312, 272),
    "setpriority": (141, 140), "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122),
    "setpgid": (109, 154), "setsid": (112, 157), "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    # Own limits and rights.
    "setrlimit": (160, 164), "prctl": (157, 167), "seccomp": (317, 277), "capset": (126, 91),
    "alarm": (37, None), "setitimer": (38, 103), "timer_create": (222, 107),
    "personality": (135, 92), "modify_ldt": (154, None), "unshare": (272, 97), "setns": (308, 268),
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setgroups": (116, 159), "setresuid": (117, 147), "setresgid": (119, 149),
    # Kernel and system.
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_setup": (206, 0), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsmount": (432, 432), "mount_setattr": (442, 442), "reboot": (169, 142),
    "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "acct": (163, 89), "syslog": (103, 116),
    "quotactl": (179, 60), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "iopl": (172, None), "ioperm": (173, None), "fanotify_init": (300, 262),
    # Changes of files.
    "creat": (85, None), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink": (88, None),
    "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33), "chmod": (90, None),
    "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54), "truncate": (76, 45),
    "utime": (132, None), "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
    "removexattrat": (466, 466), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # Memory and queues that outlive the process.
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180),
}  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def is_supported() -> bool:
    """Return whether the system calls of this machine's processor are known."""
    return platform.machine() in _ARCHITECTURES


class CallFilter:
    """The filter of this process, not in force yet."""

    def __init__(self) -> None:
        self._content = _filter(_ARCHITECTURES[platform.machine()], os.getpid())

    def enforce(self) -> None:
        """Deny what a reader never needs, for the rest of this process; cannot be undone.

        Raises:
            OSError: If the kernel has no seccomp filters.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        program = _Program(len(self._content) // 8, self._content)
        for arguments in (
            (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
        ):
            if libc.prctl(*arguments) != 0:
                raise OSError(ctypes.get_errno(), "prctl")


def _filter(architecture: _Architecture, pid: int) -> bytes:
    """Return the filter: instructions of 8 bytes (linux/filter.h), each with two relative jumps."""
    column = architecture.column
    deny, missing = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture.audit_number, 1, 0),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32_CALLS, 0, 1),
        _step(_RETURN, deny),
        _step(_AT_LEAST, _FIRST_UNKNOWN, 0, 1),
        _step(_RETURN, missing),
    ]
    for numbers in _NOT_IMPLEMENTED.values():
        code += [_step(_EQUAL, numbers[column], 0, 1), _step(_RETURN, missing)]
    for call in _DENIED.values():
        number = call[column]
        if number is not None:
            code += [_step(_EQUAL, number, 0, 1), _step(_RETURN, deny)]
    for call, argument in ((_OPEN, 1), (_OPENAT, 2)):
        code += _only_if(call[column], argument, (_ANY_BIT, _WRITING_FLAGS, deny, _ALLOW))
    code += _only_if(_CLONE[column], 0, (_ANY_BIT, _CLONE_THREAD, _ALLOW, deny))
    for call in (_KILL, _TKILL, _TGKILL):
        code += _only_if(call[column], 0, (_EQUAL, pid, _ALLOW, deny))
    # prlimit(2) may read limits, with 0 as the address of new ones.
    code += [
        _step(_EQUAL, _PRLIMIT[column], 0, 6),
        _step(_LOAD, _low_word(2)),
        _step(_EQUAL, 0, 0, 3),
        _step(_LOAD, _low_word(2) + 4),
        _step(_EQUAL, 0, 0, 1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, deny),
    ]
    code.append(_step(_RETURN, _ALLOW))
    return b"".join(code)


def _only_if(number: int | None, argument: int, test: tuple[int, int, int, int]) -> list[bytes]:
    """Return the steps for one call: `test` is a comparison, its operand, the results if true and if false."""
    if number is None:
        return []
    comparison, operand, if_true, if_false = test
    return [
        _step(_EQUAL, number, 0, 4),
        _step(_LOAD, _low_word(argument)),
        _step(comparison, operand, 0, 1),
        _step(_RETURN, if_true),
        _step(_RETURN, if_false),
    ]


def _low_word(argument: int) -> int:
    """Return the position of the lower 32 bits of an argument in seccomp_data, on little-endian machines."""
    return _FIRST_ARGUMENT + 8 * argument


def _step(operation: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, if_true, if_false, operand)
