"""Python programs that start in a moment: forked from a process that has imported their libraries (fork(2)).

Most of the time to start a server, a worker process or a program is the import of torch, MONAI and MONAI
Label: six seconds of processor time. `install()` replaces `subprocess.Popen`: a command `python -m MODULE ...`
or `python -c CODE ...` with this interpreter runs in a fork of a *template process* that holds these libraries
already. It is a separate process and a child of the process that started it, with its own arguments,
environment, folder, standard streams, signals and exit code; only the imports are shared.

A fork must become a child of the process that requested it, not of the template. So the template forks a
helper, which forks the program and ends. The kernel then gives the orphan to the nearest ancestor that is a
subreaper (prctl(2)), which is the requesting process. Thus `Popen.wait()`, `os.getppid()` and the signal at the
parent's death work as for any child. Each program has its own template, since it may start programs too; the
template is forked before the program has any thread, and is killed with it.

    python -m tests.forked_processes SOCKET SOCKET_OF_READER_TEMPLATES
"""

import atexit
import ctypes
import importlib
import inspect
import json
import os
import random
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests import reader_templates

ROOT = Path(__file__).parents[1]
PRELOADED = (
    "lib.app",
    "lib.retrain.training_process",
    "lib.activelearning.scoring_process",
    "monailabel.main",
    "monailabel.interfaces.utils.app",
    "multipart",
    "uvicorn",
)
"""Not `monailabel.app`: a process that has imported it is taken for a server, and it reads the settings."""
READER_TEMPLATE = "lib.isolation.template_process"
"""Forked by `tests.reader_templates`."""
_TITLE_BYTES = 4096
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_REAL_POPEN = subprocess.Popen
_is_cold = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program to run.

    Attributes:
        kind: `-m` or `-c`.
        target: The module, or the code.
        arguments: Arguments after the target.
        warnings: Warning filters, as args by `-W`.
        is_unbuffered: Whether it writes without a buffer, as with `-u`.
        environment: All environment variables.
        folder: Working directory.
        is_session_leader: Whether it starts a new session.
    """

    kind: str
    target: str
    arguments: Sequence[str]
    warnings: Sequence[str]
    is_unbuffered: bool
    environment: Mapping[str, str]
    folder: str
    is_session_leader: bool


class Template:
    """A process that forks programs, seen from the one program that uses it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def imported(cls) -> "Template":
        """Start a template that imports the libraries; it ends with this process."""
        parent_end, child_end = socket.socketpair()
        inherited = [child_end.fileno(), _get_reader_templates().fileno()]
        command = [sys.executable, "-m", "tests.forked_processes", *map(str, inherited)]
        search_path = os.pathsep.join(
            [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        )
        environment = {**os.environ, "PYTHONPATH": search_path, "OMP_NUM_THREADS": "1"}
        process = _REAL_POPEN(
            # The last argument is only room for the command lines of the programs.
            [*command, "-" * _TITLE_BYTES], pass_fds=inherited, cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        child_end.close()
        template = cls(parent_end)

        def end() -> None:
            parent_end.close()
            process.wait()

        atexit.register(end)
        return template

    @classmethod
    def forked(cls) -> "Template":
        """Fork a template from this process, which must have a single thread."""
        parent_end, child_end = socket.socketpair()
        if os.fork() == 0:
            parent_end.close()
            _end_with_parent()
            _set_title([sys.executable, "-m", "tests.forked_processes"])
            _serve(child_end)
        child_end.close()
        return cls(parent_end)

    def start(self, program: Program, streams: Sequence[int]) -> int:
        """Return the id of a new child of this process that runs a program with these three streams."""
        request = json.dumps(asdict(program)).encode()
        with self._lock:
            _prctl(_PR_SET_CHILD_SUBREAPER, 1)
            try:
                socket.send_fds(self._connection, [struct.pack("!I", len(request))], list(streams))
                self._connection.sendall(request)
                return int(struct.unpack("!I", _exactly(self._connection, 4))[0])
            finally:
                _prctl(_PR_SET_CHILD_SUBREAPER, 0)


_template: Template | None = None
_template_lock = threading.Lock()
_reader_templates: socket.socket | None = None


def _get_reader_templates() -> socket.socket:
    global _reader_templates
    if _reader_templates is None:
        _reader_templates = reader_templates.start_source(_REAL_POPEN)
    return _reader_templates


def _get_template() -> Template:
    global _template
    with _template_lock:
        if _template is None:
            _template = Template.imported()
        return _template


class _Popen(_REAL_POPEN):  # type: ignore[type-arg]
    """`subprocess.Popen`, which forks Python programs of this interpreter from the template."""

    def _execute_child(self, *args: Any) -> None:
        start = super()._execute_child  # type: ignore[misc]
        call = inspect.signature(start).bind(*args).arguments
        program = None if _is_cold else _program_of(call)
        if program is None:
            start(*args)
            return
        pipes = [call[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        streams = [pipe if pipe >= 0 else number for number, pipe in enumerate(pipes)]
        if program.target == READER_TEMPLATE:
            with _template_lock:
                source = _get_reader_templates()
            self.pid = reader_templates.fork_template(source, streams[0])
        else:
            self.pid = _get_template().start(program, streams)
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            *(
                call[name]
                for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            )
        )


def _program_of(call: Mapping[str, Any]) -> Program | None:
    """Return the program that a call of `Popen` runs; None if it cannot be forked."""
    command = call["args"]
    is_plain = not (call["shell"] or call["preexec_fn"] or call["pass_fds"] or call["executable"])
    if not is_plain or isinstance(command, str | bytes | os.PathLike):
        return None
    words = [os.fspath(word) for word in command]
    if words[0] != sys.executable:
        return None
    filters, is_unbuffered, index = [], False, 1
    while index < len(words) and words[index] in ("-W", "-u"):
        is_unbuffered = is_unbuffered or words[index] == "-u"
        if words[index] == "-W":
            filters.append(words[index + 1])
            index += 1
        index += 1
    if words[index : index + 1] not in (["-m"], ["-c"]):
        return None
    environment = os.environ if call["env"] is None else call["env"]
    return Program(
        kind=words[index],
        target=words[index + 1],
        arguments=words[index + 2 :],
        warnings=filters,
        is_unbuffered=is_unbuffered,
        environment={os.fsdecode(key): os.fsdecode(value) for key, value in environment.items()},
        folder=os.fspath(call["cwd"] or Path.cwd()),
        is_session_leader=bool(call["start_new_session"]),
    )


def install() -> None:
    """Let `subprocess` and `psutil` fork Python programs from now on."""
    subprocess.Popen = _Popen  # type: ignore[misc]


@contextmanager
def imported_anew() -> Iterator[None]:
    """Start programs inside this context in a new interpreter with all imports, as a user does."""
    global _is_cold
    _is_cold = True
    try:
        yield
    finally:
        _is_cold = False


def _serve(connection: socket.socket) -> NoReturn:
    """Fork programs until the process that asks for them ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        header, streams, _, _ = socket.recv_fds(connection, 4, 3)
        if not header:
            os._exit(0)
        size = struct.unpack("!I", header)[0]
        program = Program(**json.loads(_exactly(connection, size)))
        answer, result = os.pipe()
        helper = os.fork()
        if helper == 0:
            helper_pid = os.getpid()
            pid = os.fork()
            if pid == 0:
                os.close(answer)
                os.close(result)
                connection.close()
                _become(program, streams, until_parent_is_not=helper_pid)
            os.write(result, struct.pack("!I", pid))
            os._exit(0)
        os.close(result)
        for stream in streams:
            os.close(stream)
        os.waitpid(helper, 0)
        connection.sendall(os.read(answer, 4))
        os.close(answer)


def _become(program: Program, streams: Sequence[int], *, until_parent_is_not: int) -> NoReturn:
    """Run a program as the interpreter does; never returns."""
    code = 1
    try:
        while os.getppid() == until_parent_is_not:
            time.sleep(0.0005)
        _take_process_state(program, streams)
        _take_interpreter_state(program)
        code = _run(program)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:  # noqa: BLE001 - the interpreter prints everything
        traceback.print_exc()
    # Shut down as the interpreter does, but without the slow cleanup of a thousand modules.
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def _run(program: Program) -> int:
    """Return the exit code of a program."""
    try:
        if program.kind == "-m":
            # A new interpreter has not imported this module; the template may have.
            sys.modules.pop(program.target, None)
            sys.argv = [program.target, *program.arguments]
            runpy.run_module(program.target, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *program.arguments]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(program.target, "<string>", "exec"), main.__dict__)  # noqa: S102 - `python -c`
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)  # noqa: T201 - as the interpreter does
        return 1
    return 0


def _take_process_state(program: Program, streams: Sequence[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        if stream > 2:
            os.close(stream)
    if program.is_session_leader:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(program.environment)
    os.chdir(program.folder)
    _set_title([sys.executable, program.kind, program.target, *program.arguments])


def _take_interpreter_state(program: Program) -> None:
    global _template
    search_path = [
        entry for entry in program.environment.get("PYTHONPATH", "").split(os.pathsep) if entry
    ]
    sys.path[:] = [program.folder if program.kind == "-m" else "", *search_path,
                   *(entry for entry in sys.path if entry not in ("", str(ROOT)))]  # fmt: skip
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the program's own
    if program.is_unbuffered:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    tempfile.tempdir = None
    random.seed()
    sys.modules["numpy"].random.seed()
    threads = program.environment.get("OMP_NUM_THREADS")
    sys.modules["torch"].set_num_threads(int(threads) if threads else os.cpu_count() or 1)
    # MONAI Label reads the environment when it is imported.
    config = sys.modules["monailabel.config"]
    for key, value in type(config.settings)().__dict__.items():
        setattr(config.settings, key, value)
    for text in program.warnings:
        warnings._setoption(text)  # type: ignore[attr-defined]
    _template = Template.forked()


def _set_title(words: Sequence[str]) -> None:
    """Let ps(1) and psutil show a command line: it lies in memory between two addresses (proc(5))."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    # If the last byte is not zero, the kernel shows the text up to the first zero.
    title = " ".join(words).encode()[: end - begin - 2]
    ctypes.memmove(begin, title + b"\0" + b"-" * (end - begin - 1 - len(title)), end - begin)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            raise EOFError("the other process has ended")
        content += part
    return content


def main() -> None:
    """Import the libraries, and serve."""
    global _reader_templates
    _reader_templates = socket.socket(fileno=int(sys.argv[2]))
    for name in PRELOADED:
        importlib.import_module(name)
    install()
    # Programs find this module by its name, although `-m` runs it as `__main__`.
    _serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    # Run the imported module, not `__main__`, so that programs see the changes of `install`.
    importlib.import_module("tests.forked_processes").main()
