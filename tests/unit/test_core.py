"""The core's own tests and the style of its sources, as cargo judges them."""

import shutil
import subprocess

import pytest

from deploy.compile import CORE, cargo

pytestmark = pytest.mark.skipif(
    shutil.which("cargo") is None, reason="no Rust compiler (rustup, or Debian: apt-get install cargo-web)"
)
TOLD = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def test_the_core_s_own_tests_pass():
    tests = cargo("test", "--locked", **TOLD)
    assert tests.returncode == 0, tests.stdout


@pytest.mark.parametrize(
    ("crate", "check"),
    [
        (CORE, "clippy --locked --all-targets -- --deny warnings"),
        (CORE / "fuzz", "clippy --locked --lib -- --deny warnings"),
        (CORE, "fmt --check"),
        (CORE / "fuzz", "fmt --check"),
    ],
    ids=("clippy", "clippy of fuzz", "fmt", "fmt of fuzz"),
)
def test_the_core_has_no_warnings_and_one_format(crate, check):
    tool, *arguments = check.split()
    if cargo(tool, "--version", **TOLD).returncode:
        pytest.skip(f"cargo has no {tool} (rustup component add clippy rustfmt)")
    checked = cargo(tool, *arguments, crate=crate, **TOLD)
    assert checked.returncode == 0, checked.stdout
