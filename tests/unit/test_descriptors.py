"""A worker that would run out of file descriptors does not start, and says how many it needs."""

import subprocess
import sys

import pytest

from callfunnel.agents.config import Settings
from callfunnel.agents.errors import SettingError
from callfunnel.agents.kafka import descriptors


def test_the_need_grows_with_brokers_and_not_with_partitions():
    settings = Settings()
    one, ten = (descriptors.needed(settings, brokers) for brokers in (1, 10))
    assert ten - one == 9 * descriptors.EACH_BROKER
    assert descriptors.needed(Settings(partitions=256), 1) == one


def test_a_limit_below_the_need_is_refused_with_both_numbers():
    soft, _ = descriptors.resource.getrlimit(descriptors.resource.RLIMIT_NOFILE)
    needed = 10**9
    with pytest.raises(
        SettingError, match=rf"may need {needed} file descriptors, .* have \d+\..*ulimit -n {needed}"
    ):
        descriptors.require(needed)
    assert descriptors.resource.getrlimit(descriptors.resource.RLIMIT_NOFILE)[0] >= soft


def test_a_low_soft_limit_is_raised_as_far_as_it_may_be():
    source = (
        "import resource; from callfunnel.agents.kafka import descriptors; "
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300)); "
        "print(descriptors.require(200), resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "300 (300, 300)\n"
