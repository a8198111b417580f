"""Builds the core of the tables into `streams/` (`make core`; `--optional` where there may be no cargo).

As hatchling's build hook it puts it into the wheel: HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip wheel .
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from callfunnel.agents.choice import NotBuilt, digest, tables_for  # noqa: E402

CORE = ROOT / "streams" / "core"
MODULE = ROOT / "streams" / "_core.abi3.so"
MADE = "lib_core.dylib" if sys.platform == "darwin" else "lib_core.so"


class CompiledTables(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build()
        build_data["force_include"][str(MODULE)] = f"callfunnel/streams/{MODULE.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{platform()}"


def platform() -> str:
    """This one alone: nobody has looked whether the core runs on older ones, which the other tags promise."""
    names = (tag.platform for tag in sys_tags())
    return next(name for name in names if "manylinux" not in name and "musllinux" not in name)


def cargo(
    *arguments: str, crate: Path = CORE, env: Mapping[str, str] = os.environ, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Runs cargo in the folder of a crate. Raises `SystemExit` with a sentence when there is no compiler."""
    program = shutil.which("cargo")
    if program is None:
        raise SystemExit(
            "no Rust compiler (cargo) in the PATH: install it by rustup, "
            "or Debian: apt-get install cargo-web rustc-web gcc"
        )
    told = {
        "CARGO_TARGET_DIR": str(target()),
        "CALLFUNNEL_SOURCES": digest(),
        "PYO3_BUILD_EXTENSION_MODULE": "1",  # the interpreter has Python's symbols, and no library does
        "PYO3_PYTHON": sys.executable,
    }
    return subprocess.run([program, *arguments], cwd=crate, env={**env, **told}, **options)


def target() -> Path:
    """Where cargo builds: outside the clone, which is copied and searched. It takes hundreds of MB."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or Path.home() / ".cache/callfunnel/cargo").resolve()


def build() -> None:
    """Raises `SystemExit` with a sentence when there is no compiler or the build fails."""
    if cargo("build", "--release", "--locked").returncode:
        raise SystemExit("not built: cargo failed, see above")
    shutil.copyfile(target() / "release" / MADE, MODULE.with_suffix(".new"))
    MODULE.with_suffix(".new").replace(MODULE)  # a running worker keeps the one it has loaded


def main() -> None:
    try:
        tables_for("core")
        return
    except NotBuilt:
        pass
    print("Building the core …", file=sys.stderr)
    try:
        build()
    except SystemExit as error:
        if "--optional" not in sys.argv:
            raise
        print(f"{error}. Going on by the definition.", file=sys.stderr)
        return
    use = "from callfunnel.agents.choice import tables_for; tables_for('core')"
    if subprocess.run([sys.executable, "-c", use], cwd=ROOT).returncode:
        raise SystemExit("built, but of no use: see above. Does the core know every type, field and column?")


if __name__ == "__main__":
    main()
