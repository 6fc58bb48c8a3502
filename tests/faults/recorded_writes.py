"""What a program does to the files below one folder, in order and with every byte: strace's text, made operations.

A call that touches the folder and whose meaning is not modelled raises NotUnderstood rather than being passed over; and
the tests replay every recording whole and compare it with the files that the program left. What goes through memory
maps is not seen: of all that malmen writes, that is SQLite's `-shm` alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from simulated_disk import FORGOTTEN, ROOT, Node, Nodes, Operation, changed, scan

from malmen_cli.errors import ExitCode

MARKS = "/.recorded-mark/"  # no such folder: opening a name in it does nothing but show in the recording

_CALLS = """
    open openat openat2 creat close close_range dup dup2 dup3 fcntl clone clone3 fork vfork chdir fchdir
    write pwrite64 writev pwritev pwritev2 lseek truncate ftruncate fallocate copy_file_range sendfile splice ioctl
    rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir link linkat symlink symlinkat mknod mknodat
    chmod fchmod fchmodat fsync fdatasync sync syncfs
"""
_LARGEST = 1 << 28  # bytes of a string that strace shows before it abbreviates it
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (\d+)(.*)$", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


class NotUnderstood(Exception):
    """The recording holds a call on the recorded folder whose meaning is not modelled."""


@dataclass(frozen=True)
class Recording:
    """What was done, and every node as it was before: files that were there, and new ones, empty and without a name."""

    before: Nodes
    operations: list[Operation]

    def without(self, dropped: Callable[[Operation], bool]) -> Recording:
        """The same recording, had the program left out some of its operations."""
        return replace(self, operations=[operation for operation in self.operations if not dropped(operation)])

    def syncs(self) -> int:
        return sum(operation.kind == "sync" for operation in self.operations)


@cache
def why_not() -> str | None:
    """Why nothing can be recorded here; None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    run = subprocess.run([*_strace("/dev/null"), "true"], capture_output=True, text=True)
    return None if run.returncode == 0 else f"strace cannot trace here: {run.stderr.strip()[-200:]}"


def record(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    known: Nodes | None = None,
) -> Recording:
    """Run a command and return what it did to the files below `folder`. Raises RuntimeError where it fails.

    Args:
        known: what lies there, where that is known under numbers that the recording shall keep to.
    """
    before = scan(folder) if known is None else dict(known)
    with TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace"
        run = subprocess.run([*_strace(str(trace)), *command], capture_output=True, text=True, env=environment)
        if run.returncode not in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK):
            raise RuntimeError(f"the recorded command failed ({run.returncode}): {run.stdout}{run.stderr}")
        with trace.open(encoding="ascii") as lines:
            reader = _Reader(str(folder), dict(before), before)
            reader.read(lines)
    return Recording(reader.before, reader.found)


def mark(text: str) -> None:
    """Called by the recorded program: leave a mark in the recording."""
    try:
        os.open(MARKS + text, os.O_RDONLY)
    except FileNotFoundError:
        return
    raise RuntimeError(f"there is a folder {MARKS}")


def _strace(output: str) -> list[str]:
    calls = f"trace={','.join(f'?{call}' for call in _CALLS.split())}"
    shown = ["-qq", "-xx", "-s", str(_LARGEST)]
    return ["strace", "-f", "--seccomp-bpf", *shown, "-e", "signal=none", "-e", calls, "-o", output]


# Strace's text -------------------------------------------------------------------------------------------------------


def _whole_lines(lines: Iterable[str]) -> Iterator[str]:
    """Lines with the calls put together that another thread's calls interrupted."""
    begun: dict[str, str] = {}
    for line in lines:
        line = line.rstrip("\n")
        if line.endswith("<unfinished ...>"):
            begun[line.split(" ", 1)[0]] = line.removesuffix("<unfinished ...>").rstrip()
        elif resumed := re.match(r"(\d+) +<\.\.\. \w+ resumed>(.*)$", line, re.DOTALL):
            yield begun.pop(resumed[1]) + resumed[2]
        else:
            yield line


def _arguments(text: str) -> list[str]:
    """The arguments of a call, cut at the commas outside brackets. Strings hold neither: they are in hexadecimals."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(r"[\[\](){},]", text):
        if found[0] == ",":
            if depth == 0:
                parts.append(text[start : found.start()].strip())
                start = found.end()
        else:
            depth += 1 if found[0] in "[({" else -1
    return [*parts, text[start:].strip()]


def _bytes(text: str) -> bytes:
    """The string in an argument; of a list of buffers, all of them joined."""
    whole = b""
    for found in _STRING.finditer(text):
        if found[2]:
            raise NotUnderstood("a string that strace has abbreviated")
        whole += bytes.fromhex(found[1].replace("\\x", ""))
    return whole


def _number(text: str) -> int:
    """A number, an offset such as [120], or a mode such as 0644."""
    found = re.search(r"\d+", text)
    if found is None:
        raise NotUnderstood(text)
    return int(found[0], 8) if found[0].startswith("0") and len(found[0]) > 1 else int(found[0])


# Calls, made operations ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """What a descriptor stands for: a node, whatever becomes of its names, or one that is not recorded (None)."""

    node: int | None
    path: str
    position: int = 0
    append: bool = False


@dataclass
class _Reader:
    """Follows the files as they change, so that paths and descriptors lead to nodes."""

    folder: str
    nodes: Nodes
    before: Nodes
    found: list[Operation] = field(default_factory=list)
    tables: dict[str, dict[int, _Open]] = field(default_factory=dict)  # of descriptors, by thread; threads share one
    cwd: str = field(default_factory=os.getcwd)

    def __post_init__(self) -> None:
        self.umask = os.umask(0)
        os.umask(self.umask)

    def read(self, lines: Iterable[str]) -> None:
        for line in _whole_lines(lines):
            if "ENOENT" in line and (text := _bytes(line).decode(errors="replace")).startswith(MARKS):
                self.found.append(Operation("mark", text=text.removeprefix(MARKS)))
            elif call := _LINE.match(line):
                table = self.tables.setdefault(call[1], dict(next(iter(self.tables.values()), {})))
                handler = getattr(self, f"on_{call[2]}", None)
                arguments = _arguments(call[3])
                if handler is not None:
                    handler(table, arguments, int(call[4]))
                elif self.touches(table, arguments):
                    raise NotUnderstood(line[:300])

    def touches(self, table: dict[int, _Open], arguments: list[str]) -> bool:
        """Whether a call's arguments name something that is recorded, by path or by descriptor."""
        paths = [_bytes(argument).decode(errors="surrogateescape") for argument in arguments if argument[:1] == '"']
        numbers = [int(argument) for argument in arguments if argument.isdecimal()]
        return any(self.folder in path for path in paths) or any(
            number in table and table[number].node is not None for number in numbers
        )

    # Paths and nodes

    def path(self, table: dict[int, _Open], argument: str, at: str = "AT_FDCWD") -> str:
        path = _bytes(argument).decode(errors="surrogateescape")
        start = self.cwd if at == "AT_FDCWD" else table[int(at)].path if int(at) in table else ""
        return os.path.normpath(Path(start) / path)

    def inner(self, path: str) -> list[str] | None:
        """The names that lead to a path from the recorded folder; None for one that is not below it."""
        if path != self.folder and not path.startswith(f"{self.folder}/"):
            return None
        return [name for name in path[len(self.folder) :].split("/") if name]

    def node_at(self, path: str) -> int | None:
        names = self.inner(path)
        number: int | None = None if names is None else ROOT
        for name in names or []:
            number = self.nodes[number].names.get(name) if number is not None else None
        return number

    def parent(self, path: str) -> tuple[int, str] | None:
        """The folder that holds a path, and the name in it; None for what is not recorded."""
        if self.inner(path) in (None, []) or path.endswith(FORGOTTEN):
            return None
        number = self.node_at(str(Path(path).parent))
        if number is None:
            raise NotUnderstood(f"a name in the unknown folder of {path}")
        return number, Path(path).name

    def do(self, operation: Operation) -> None:
        self.nodes[operation.node] = changed(self.nodes[operation.node], operation)
        self.found.append(operation)

    def name(self, path: str, number: int | None, text: str) -> None:
        if (place := self.parent(path)) is not None:
            self.do(Operation("names", place[0], names=((place[1], number),), text=f"{text} {self.short(path)}"))

    def new(self, path: str, node: Node, text: str) -> int | None:
        if self.parent(path) is None:
            return None
        number = len(self.nodes)
        self.nodes[number] = self.before[number] = node
        self.name(path, number, text)
        return number

    def short(self, path: str) -> str:
        return os.path.relpath(path, self.folder)

    # Opening and closing

    def on_open(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        self.on_openat(table, ["AT_FDCWD", *arguments], result)

    def on_creat(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        self.on_openat(table, ["AT_FDCWD", arguments[0], "O_WRONLY|O_CREAT|O_TRUNC", arguments[1]], result)

    def on_openat(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        path, flags = self.path(table, arguments[1], arguments[0]), arguments[2].split("|")
        number = self.node_at(path)
        if "O_TMPFILE" in flags and self.inner(path) is not None:
            raise NotUnderstood(f"a file without a name in {path}")
        if number is None and "O_CREAT" in flags:
            number = self.new(path, Node("file", _number(arguments[3]) & ~self.umask), "create")
        elif number is not None and "O_TRUNC" in flags and self.nodes[number].data:
            self.do(Operation("truncate", number, size=0, text=f"empty {self.short(path)}"))
        table[result] = _Open(number, path, append="O_APPEND" in flags)

    def on_close(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        table.pop(_number(arguments[0]), None)

    def on_close_range(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        for number in [number for number in table if _number(arguments[0]) <= number <= _number(arguments[1])]:
            del table[number]

    def on_dup(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        if (known := table.get(_number(arguments[0]))) is not None:
            table[result] = known
        else:
            table.pop(result, None)

    on_dup2 = on_dup3 = on_dup

    def on_fcntl(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        if arguments[1].startswith("F_DUPFD"):
            self.on_dup(table, arguments, result)

    def on_clone(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        shared = "CLONE_FILES" in " ".join(arguments)
        self.tables[str(result)] = table if shared else dict(table)

    on_clone3 = on_fork = on_vfork = on_clone

    def on_chdir(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        self.cwd = self.path(table, arguments[0])

    # Content

    def content(self, table: dict[int, _Open], descriptor: str) -> _Open | None:
        known = table.get(_number(descriptor))
        return None if known is None or known.node is None else known

    def put(self, known: _Open, data: bytes, offset: int) -> None:
        assert known.node is not None
        if data:
            text = f"write {len(data)} bytes at {offset} of {self.short(known.path)}"
            self.do(Operation("write", known.node, data=data, offset=offset, text=text))

    def put_next(self, known: _Open, data: bytes) -> None:
        assert known.node is not None
        if known.append:
            known.position = len(self.nodes[known.node].data)
        self.put(known, data, known.position)
        known.position += len(data)

    def on_write(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        if (known := self.content(table, arguments[0])) is not None:
            self.put_next(known, _bytes(arguments[1])[:result])

    on_writev = on_write

    def on_pwrite64(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        if (known := self.content(table, arguments[0])) is not None:
            self.put(known, _bytes(arguments[1])[:result], _number(arguments[-1]))

    def on_pwritev(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        if (known := self.content(table, arguments[0])) is not None:
            self.put(known, _bytes(arguments[1])[:result], _number(arguments[3]))

    def on_lseek(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        if (known := self.content(table, arguments[0])) is not None:
            known.position = result

    def on_ftruncate(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        if (known := self.content(table, arguments[0])) is not None and known.node is not None:
            size = _number(arguments[1])
            text = f"truncate {self.short(known.path)} to {size}"
            self.do(Operation("truncate", known.node, size=size, text=text))

    def on_copy_file_range(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        source, offset, target, there = arguments[:4]
        if (known := self.content(table, target)) is not None:
            data = self.bytes_behind(table, source)
            self.put(known, data[_number(offset) :][:result], _number(there))

    def on_sendfile(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        target, source, offset = arguments[:3]
        if (known := self.content(table, target)) is not None:
            self.put_next(known, self.bytes_behind(table, source)[_number(offset) :][:result])

    def on_ioctl(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        if "FICLONE" in arguments[1] and (known := self.content(table, arguments[0])) is not None:
            self.put(known, self.bytes_behind(table, arguments[2]), 0)

    def bytes_behind(self, table: dict[int, _Open], descriptor: str) -> bytes:
        known = table[_number(descriptor)]
        return Path(known.path).read_bytes() if known.node is None else self.nodes[known.node].data

    def on_fchmod(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        if (known := self.content(table, arguments[0])) is not None and known.node is not None:
            self.do(Operation("chmod", known.node, mode=_number(arguments[1]), text=f"chmod {self.short(known.path)}"))

    def on_chmod(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        path = self.path(table, arguments[0])
        if (number := self.node_at(path)) is not None:
            self.do(Operation("chmod", number, mode=_number(arguments[1]), text=f"chmod {self.short(path)}"))

    def on_fsync(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        if (known := self.content(table, arguments[0])) is not None and known.node is not None:
            self.found.append(Operation("sync", known.node, text=f"sync {self.short(known.path)}"))

    on_fdatasync = on_fsync

    # Names

    def on_mkdir(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        self.on_mkdirat(table, ["AT_FDCWD", *arguments], result)

    def on_mkdirat(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        path = self.path(table, arguments[1], arguments[0])
        self.new(path, Node("folder", _number(arguments[2]) & ~self.umask), "make folder")

    def on_unlink(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        self.name(self.path(table, arguments[0]), None, "remove")

    on_rmdir = on_unlink

    def on_unlinkat(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        self.name(self.path(table, arguments[1], arguments[0]), None, "remove")

    def on_rename(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        self.move(self.path(table, arguments[0]), self.path(table, arguments[1]))

    def on_renameat(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        self.move(self.path(table, arguments[1], arguments[0]), self.path(table, arguments[3], arguments[2]))

    def on_renameat2(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        if arguments[4] not in ("0", "RENAME_NOREPLACE"):
            raise NotUnderstood(f"renameat2 with {arguments[4]}")
        self.on_renameat(table, arguments, result)

    def move(self, source: str, target: str) -> None:
        """A rename within one folder: there, it happens as a whole or not at all."""
        before, after = self.parent(source), self.parent(target)
        if before is None and after is None:
            return
        number = self.node_at(source)
        if before is None or after is None or before[0] != after[0] or number is None:
            raise NotUnderstood(f"a rename from one folder to another: {source} to {target}")
        names = ((before[1], None), (after[1], number))
        text = f"rename {self.short(source)} to {self.short(target)}"
        self.do(Operation("names", before[0], names=names, text=text))
        for table in self.tables.values():  # a folder's own path is what names in it are resolved against
            for known in table.values():
                if known.path == source or known.path.startswith(f"{source}/"):
                    known.path = target + known.path[len(source) :]

    def on_link(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        self.name(self.path(table, arguments[1]), self.node_at(self.path(table, arguments[0])), "link")

    def on_linkat(self, table: dict[int, _Open], arguments: list[str], result: int) -> None:
        source = self.path(table, arguments[1], arguments[0])
        target = self.path(table, arguments[3], arguments[2])
        number = self.node_at(source)
        if number is None and self.parent(target) is not None:
            raise NotUnderstood(f"a link to {source}, which is not recorded")
        self.name(target, number, "link")
