"""What is installed: one package with everything that it reads, and nothing that breaks its layers.

And with what: the versions that are tested, whoever installs it and however.
"""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import patience
from callfunnel.agents import versions
from callfunnel.agents.demo import broker
from deploy import install

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = {name: ROOT / f"deploy/requirements{name}.txt" for name in ("", "-engine", "-demo")}


def pinned(file: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Version and hashes of each package."""
    parts = re.split(r"^([\w.-]+)==(\S+)", file.read_text(), flags=re.MULTILINE)[1:]
    return {
        name: (version, frozenset(re.findall(r"sha256:\w{64}", rest)))
        for name, version, rest in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    }


LOCKED = {name: pinned(file) for name, file in FILES.items()}
LIGHT = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
NEEDED = [*LIGHT, *map(Requirement, PROJECT["project"]["optional-dependencies"]["engine"])]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    return ZipFile(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.fixture(scope="module")
def packed(wheel) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_the_wheel_owns_one_name_and_its_three_folders(packed):
    assert {name.split("/")[1] for name in packed} == {"__init__.py", "schemas", "streams", "agents"}
    assert {name.split("/")[0] for name in packed} == {"callfunnel"}


@pytest.mark.parametrize(
    "folder",
    ["agents/demo/data", "agents/view/static", "agents/commands", "schemas/json", "schemas/examples"],
)
def test_the_wheel_ships_every_file_of(packed, folder):
    there = {
        f"callfunnel/{path.relative_to(ROOT)}"
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there
    assert there <= packed


def test_the_wheel_ships_the_definitions_and_the_contract(packed):
    assert {
        f"callfunnel/{name}" for name in ("schemas/asyncapi.yaml", "schemas/README.md", "streams/README.md")
    } <= packed


def test_the_wheel_has_the_core_s_sources_without_the_code_that_fuzzes_them(packed):
    core = "callfunnel/streams/core/"
    assert {f"{core}Cargo.lock", f"{core}src/lib.rs"} <= packed
    assert not {name for name in packed if name.startswith(f"{core}fuzz/")}


def test_the_wheel_installs_one_command(wheel):
    (points,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert wheel.read(points).decode().split() == [
        "[console_scripts]",
        "callfunnel",
        "=",
        "callfunnel.agents.cli:main",
    ]


def test_a_core_that_was_built_before_goes_into_no_wheel_but_by_the_hook(packed):
    """In a clone that has one: the file there is of this machine, and the wheel says that it fits any."""
    assert not {name for name in packed if name.endswith(".so")}


def test_the_layers_hold():
    """schemas <- streams <- agents, and no clock, chance or socket in the first two."""
    linter = Path(sys.executable).with_name("lint-imports")
    checked = patience.run([linter], seconds=60, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout
    assert "3 kept, 0 broken" in checked.stdout


def test_the_licence_is_the_one_that_is_named_and_goes_with_the_wheel(wheel):
    licence = (ROOT / "LICENSE").read_text()
    assert licence.startswith(f"{PROJECT['project']['license']} License\n")
    assert "Copyright (c) 2026 The callfunnel authors\n" in licence
    (packed,) = (name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
    assert wheel.read(packed).decode() == licence


def with_all_they_need(packages: set[str]) -> set[str]:
    """The distributions, and those that they need, and so on."""
    found: set[str] = set()
    while left := packages - found:
        found |= left
        for line in (line for name in left for line in metadata.requires(name) or ()):
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                packages = packages | {canonicalize_name(one.name)}
    return found


def light(code: str) -> subprocess.CompletedProcess[str]:
    """Run this where only the light client is installed, as far as imports can tell."""
    there = with_all_they_need({canonicalize_name(needed.name) for needed in LIGHT})
    gone = [
        name
        for name, packages in metadata.packages_distributions().items()
        if not {canonicalize_name(one) for one in packages} & {*there, "callfunnel"}
    ]
    assert {"faust", "aiokafka", "aiohttp", "prometheus_client"} <= {*gone}
    without = f"import sys\nsys.modules.update(dict.fromkeys({gone!r}))\n{code}"
    return subprocess.run([sys.executable, "-c", without], cwd=ROOT, capture_output=True, text=True)


def test_the_light_client_publishes_and_validates_without_the_engine():
    publishes = light("import callfunnel\nprint(*(getattr(callfunnel, name) for name in callfunnel.__all__))")
    assert publishes.stdout.count("<class ") == 4, publishes.stderr
    run = "from callfunnel.agents.cli import main\nmain({!r})"
    validates = light(run.format(["validate", "schemas/examples/accepted/dial.json", "--replay"]))
    assert validates.stdout.startswith("1 accepted, 0 refused"), validates.stderr
    lacks = light(run.format(["worker"]))
    assert lacks.returncode == 69
    assert lacks.stderr.startswith("Error: aiokafka is not installed. This command takes the engine")


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.name)
def test_what_is_needed_is_the_version_that_is_tested_or_one_that_mends_it(needed):
    tested = Version(LOCKED["-engine"][needed.name][0])
    assert tested in needed.specifier
    if needed.name != "tzdata":  # data: the newest is right
        assert Version(f"{tested.major}.{tested.minor + 1}") not in needed.specifier
        assert Version(f"{tested.major + 1}.0") not in needed.specifier


@pytest.mark.parametrize("part", ["-engine", "-demo"])
def test_the_parts_pin_what_the_whole_pins(part):
    assert {name: LOCKED[""].get(name) for name in LOCKED[part]} == LOCKED[part]
    assert all(hashes for _, hashes in LOCKED[part].values())


def test_the_engine_is_installed_without_a_broker_and_the_demo_without_tools():
    assert {needed.name for needed in NEEDED} <= LOCKED["-engine"].keys()
    demo = {Requirement(line).name for line in PROJECT["dependency-groups"]["demo"]}
    assert demo <= LOCKED["-demo"].keys()
    assert not demo & LOCKED["-engine"].keys()
    tools = {Requirement(line).name for line in PROJECT["dependency-groups"]["dev"] if isinstance(line, str)}
    assert tools <= LOCKED[""].keys()
    assert not tools & (LOCKED["-engine"].keys() | LOCKED["-demo"].keys())


def test_the_embedded_broker_that_is_asked_for_is_the_one_that_is_tested():
    assert broker.NOIDA in PROJECT["dependency-groups"]["demo"]


def test_another_version_than_the_tested_one_is_named_as_it_has_to_be(monkeypatch):
    assert versions.unsuitable() == []
    installed = versions.metadata.version
    others = {"msgspec": "0.99.0", "aiokafka": "0.13.0"}
    monkeypatch.setattr(versions.metadata, "version", lambda name: others.get(name) or installed(name))
    wanted = {needed.name: f"{needed.name}{needed.specifier}" for needed in NEEDED}
    assert sorted(versions.unsuitable()) == [wanted["aiokafka"], wanted["msgspec"]]


PIP = """\
Looking in links: /wheels
Ignoring colorama: markers 'sys_platform == "win32"' don't match your environment
Requirement already satisfied: click==8.3.3 in ./.venv/lib (from -r requirements.txt (line 1)) (8.3.3)
Collecting aiohttp_cors==0.8.1 (from -r requirements.txt (line 171))
  Downloading aiohttp_cors-0.8.1-py3-none-any.whl.metadata (20 kB)
  Downloading aiohttp_cors-0.8.1-py3-none-any.whl (480 kB)
Collecting cython==3.3.1 (from -r requirements.txt (line 180))
  Using cached cython-3.3.1-cp311-cp311-manylinux_2_28_x86_64.whl (3.4 MB)
Collecting noida-db==0.2.3 (from -r requirements.txt (line 187))
  Downloading noida_db-0.2.3-py3-none-manylinux_2_17_x86_64.whl (5.1 MB)
Installing collected packages: cython, noida-db, aiohttp-cors
Successfully installed aiohttp-cors-0.8.1 cython-3.3.1 noida-db-0.2.3
"""


def test_what_pip_does_is_told_with_counts_and_sizes():
    progress = install.Progress({"click", "colorama", "aiohttp-cors", "cython", "noida-db"})
    told = [line for one in PIP.splitlines() if (line := progress.told(one))]
    assert told == [
        "1 of 4 packages, 0.0 MB downloaded: click",
        "2 of 4 packages, 0.0 MB downloaded: aiohttp_cors",
        "2 of 4 packages, 0.0 MB downloaded: aiohttp_cors",
        "2 of 4 packages, 0.5 MB downloaded: aiohttp_cors",
        "3 of 4 packages, 0.5 MB downloaded: cython",
        "4 of 4 packages, 0.5 MB downloaded: noida-db",
        "4 of 4 packages, 5.6 MB downloaded: noida-db",
        "4 of 4 packages, 5.6 MB downloaded: unpacking",
    ]
    assert install.names([FILES["-engine"]]) == LOCKED["-engine"].keys()


def test_what_is_installed_is_compiled_once_by_pip_or_by_the_import(monkeypatch):
    for import_may_not, compiles in ((True, True), (False, False)):
        monkeypatch.setattr(sys, "dont_write_bytecode", import_may_not)
        assert ("--no-compile" not in install.pip([Path("r.txt")])) is compiles
    assert install.pip([Path("r.txt")])[-2:] == ["--require-hashes", "--requirement=r.txt"]


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_may_only_read_and_runs_what_cannot_be_moved(file):
    text = file.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets" not in text
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
                assert re.search(rf"{step['uses']} # v\d+\.\d+\.\d+\n", text)
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_a_change_is_judged_by_what_is_run_before_it_lands_in_the_image_of_the_build():
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert "openjdk-17-jre-headless" in job["steps"][0]["run"]
    assert f"FROM {job['container']['image']} AS build\n" in (ROOT / "deploy/Dockerfile").read_text()
