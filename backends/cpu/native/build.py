"""Compiles the kernels with the system's compiler, once for each source, compiler and processor.

The result lies in the user's cache directory, readable by that user alone, since it is code that will run. It arrives
there by a rename, so that processes that start together each find it whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno")
TIMEOUT_SECONDS = 120


class CannotBuildError(Exception):
    """Why there are no kernels, in words."""


def build(processor: str, cache: Path | None = None) -> Path:
    """The shared library, compiled if it was not yet. `processor` names the instructions that the host has.

    Raises `CannotBuildError`.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise CannotBuildError(f"there is no C++ compiler ({', '.join(COMPILERS)}) in the search path")
    directory = Path(__file__).parent
    sources = sorted(directory.glob("*.cpp"))
    flags = (*FLAGS, "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native")
    version = _run([compiler, "--version"])
    parts = [processor, version, *flags, *(path.read_text() for path in sorted(directory.glob("*.?pp")))]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    cache = cache or _user_cache()
    library = cache / f"{digest}.so"
    if not _ours(library):
        _compile([compiler, *flags, *map(str, sources)], library)
    return library


def _user_cache() -> Path:
    try:
        return Path.home() / ".cache" / "mainspring" / "cpu"
    except RuntimeError as error:
        raise CannotBuildError(f"there is no home directory to keep compiled code in: {error}") from error


def _ours(library: Path) -> bool:
    """Whether the file is there and nobody else could have put it there."""
    try:
        status = library.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _compile(command: list[str], library: Path) -> None:
    try:
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            made = Path(scratch, library.name)
            _run([*command, "-o", str(made)])
            made.chmod(0o700)
            made.replace(library)
    except OSError as error:
        raise CannotBuildError(f"{library.parent} takes no files: {error}") from error


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuildError(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        raise CannotBuildError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
