"""Two machines joined by a cable: network namespaces of this one, each with an interface of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launched import environment, write_recipe

CABLE = """
set -e
mount -t tmpfs none /run
ip link set lo up
ip netns add far
ip link add near type veth peer name far netns far
ip addr add 10.9.0.1/24 dev near
ip link set near up
ip netns exec far ip addr add 10.9.0.2/24 dev far
ip netns exec far ip link set far up
ip netns exec far ip link set lo up
"""
"""`near`'s own address is 10.9.0.1, and the other machine is 10.9.0.2 behind it."""
RUN = """
train="$PYTHON -m hasten train recipe.yaml nodes=2 meet=10.9.0.1:29400 parallel.data=2"
(ip netns exec far $train || ip netns exec far $train) > far.log 2>&1 &
sleep 1
$train > near.log 2>&1
wait
"""
"""The far machine begins before there is anything to meet, and is lost once."""


def in_namespaces(script: str, **options: object) -> subprocess.CompletedProcess[str]:
    """A script as root of user, network and mount namespaces of its own."""
    command = ["unshare", "--user", "--map-root-user", "--net", "--mount", "bash", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def can_join() -> bool:
    """Whether this system lets us lay the cable."""
    try:
        return in_namespaces(CABLE).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_two_machines_train_over_their_network_and_one_that_was_lost_comes_back(tmp_path: Path) -> None:
    if not can_join():
        pytest.skip("this system gives no network namespaces to ordinary users")
    write_recipe(tmp_path)
    lost = {"rank": 1, "step": 6, "act": "launcher", "once": str(tmp_path / "lost")}
    own = {**environment([lost]), "PYTHON": sys.executable}
    done = in_namespaces(CABLE + RUN, cwd=tmp_path, env=own, timeout=300)
    near, far = ((tmp_path / f"{name}.log").read_text() for name in ("near", "far"))
    assert done.returncode == 0, done.stderr + near + far
    assert (tmp_path / "lost").exists()
    assert "lost contact with another process" in near and "going on from step-0" in near
    assert near.count("trained 10 steps") == 1 and "trained" not in far
    assert far.count("starting 1 process of 1 thread on each of 2 machines") == 2
    assert json.loads((tmp_path / "run/training.json").read_text())["completed"]
