"""What is installed: three packages with everything that they read, and nothing that breaks their layers."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    return ZipFile(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.fixture(scope="module")
def packed(wheel) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_the_wheel_owns_exactly_the_three_packages(packed):
    assert {name.split("/")[0] for name in packed} == {"schemas", "streams", "agents"}


@pytest.mark.parametrize(
    "folder", ["agents/data", "agents/static", "agents/commands", "schemas/json", "schemas/examples"]
)
def test_the_wheel_ships_every_file_of(packed, folder):
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there
    assert there <= packed


def test_the_wheel_ships_the_definitions_and_the_contract(packed):
    assert {"schemas/asyncapi.yaml", "schemas/README.md", "streams/README.md"} <= packed


def test_the_wheel_installs_one_command(wheel):
    (points,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert wheel.read(points).decode().split() == ["[console_scripts]", "callfunnel", "=", "agents.cli:main"]


def test_the_layers_hold():
    """schemas <- streams <- agents, and no clock, chance or socket in the first two."""
    linter = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stdout
    assert "2 kept, 0 broken" in checked.stdout
