"""Builds the compiled tables into `streams/` (`make compiled`; `--optional` where there may be no compiler).

As hatchling's build hook it puts them into the wheel: HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip wheel .
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from callfunnel.agents.choice import NotBuilt, digest, tables_for  # noqa: E402

STREAMS = ROOT / "streams"
MODULE = STREAMS / f"compiled{sysconfig.get_config_var('EXT_SUFFIX')}"


class CompiledTables(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build()
        build_data["force_include"][str(MODULE)] = f"callfunnel/streams/{MODULE.name}"
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def build() -> None:
    """Raises `SystemExit` with a sentence when there is no compiler or the build fails."""
    program = shutil.which(os.environ.get("CXX", "c++"))
    if program is None:
        raise SystemExit("no C++ compiler (c++, or what CXX names): Debian: apt-get install g++")
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").exists():
        raise SystemExit(f"no Python.h in {include}: Debian: apt-get install python3-dev")
    with TemporaryDirectory() as folder:
        made, module = Path(folder, "compiled.cpp"), Path(folder, MODULE.name)
        for command in (
            [sys.executable, "-m", "cython", "--cplus", "-3", STREAMS / "compiled.pyx", "-o", made],
            [
                *(program, "-std=c++20", "-O2", "-DNDEBUG", "-shared", "-fPIC", "-w"),
                *(f'-DCALLFUNNEL_SOURCES="{digest()}"', f"-I{STREAMS}", f"-I{ROOT}", f"-I{include}"),
                *(made, "-o", module),
            ],
        ):
            if subprocess.run(command).returncode:
                raise SystemExit(f"not built: {Path(command[0]).name} failed, see above")
        shutil.copyfile(module, MODULE.with_suffix(".new"))
    MODULE.with_suffix(".new").replace(MODULE)  # a running worker keeps the one it has loaded


def main() -> None:
    try:
        tables_for("compiled")
        return
    except NotBuilt:
        pass
    print("Building the compiled tables …", file=sys.stderr)
    try:
        build()
    except SystemExit as error:
        if "--optional" not in sys.argv:
            raise
        print(f"{error}. Going on in plain Python.", file=sys.stderr)
        return
    use = "from callfunnel.agents.choice import tables_for; tables_for('compiled')"
    if subprocess.run([sys.executable, "-c", use], cwd=ROOT).returncode:
        raise SystemExit("built, but of no use: see above. Does schemas/codec.hpp know every type and field?")


if __name__ == "__main__":
    main()
