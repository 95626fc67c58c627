"""How many processes are started, what is said of their ends, and job files that schedulers can read."""

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from hasten import lookup as recipes
from hasten.cli import main
from hasten.core import config
from hasten.core.errors import ConfigError
from hasten.core.worker import ERROR_FILE, LAUNCHER, Failure, tell
from hasten.launch import network
from hasten.launch.agent import Agent
from hasten.launch.causes import Cause, root_cause
from hasten.launch.options import LaunchConfig, processes_here, split_words
from hasten.launch.start import number_of_processes
from hasten.lookup import find
from hasten.parallel.config import ParallelConfig
from hasten.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel"))
from launched import environment, hasten, write_recipe


@pytest.mark.parametrize(
    "parallel, options, gpus, number",
    [
        ({}, {}, 0, 1),
        ({}, {}, 8, 8),
        ({"data": 2}, {}, 0, 2),
        ({"shard": 2, "tensor": 2}, {}, 0, 4),
        ({"shard": 4}, {}, 8, 8),
        ({"data": 2}, {}, 8, 2),
        ({"data": 4}, {"nodes": 2, "meet": "a:1"}, 0, 2),
        ({}, {"nodes": 2, "meet": "a:1"}, 4, 4),
        ({}, {"nodes": 2, "meet": "a:1"}, 0, 1),
        ({"shard": 8}, {"nodes": 2, "meet": "a:1"}, 0, 4),
        ({}, {"processes": 3}, 0, 3),
    ],
)
def test_as_many_processes_as_gpus_or_as_the_degrees_make_up(parallel, options, gpus, number):
    assert processes_here(ParallelConfig(**parallel), LaunchConfig(**options), gpus) == number


@pytest.mark.parametrize(
    "parallel, options, gpus, complaint",
    [
        ({"shard": 3}, {}, 8, "shard 3 takes a multiple of 3 processes and there are 8"),
        ({"data": 16}, {}, 8, "16 processes on each machine need as many GPUs and there are 8"),
        ({"data": 3}, {"nodes": 2, "meet": "a:1"}, 0, "3 processes cannot be shared equally by 2 machines"),
        ({"data": 2}, {"processes": 3}, 0, "parallel: data 2 takes 2 processes and there are 3"),
    ],
)
def test_degrees_that_do_not_fit_are_refused(parallel, options, gpus, complaint):
    with pytest.raises(ConfigError, match=complaint):
        processes_here(ParallelConfig(**parallel), LaunchConfig(**options), gpus)


def test_launch_words_are_told_from_the_recipes():
    options, words = split_words(["my.yaml", "nodes=2", "train.steps=3", "meet=10.0.0.1:29400", "restarts=0"])
    assert words == ["my.yaml", "train.steps=3"]
    assert options == LaunchConfig(nodes=2, meet="10.0.0.1:29400", restarts=0)


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["nodes=2"], "meet is missing; write meet=HOST:29400"),
        (["nodes=2", "meet=here"], "meet is 'here'; write HOST:PORT"),
        (["meet=here:99999"], "meet is 'here:99999'; write HOST:PORT"),
        (["restarts=-1"], "restarts should be greater than or equal to 0"),
        (["nodes=many"], "nodes should be"),
    ],
)
def test_a_launch_word_that_cannot_be_is_refused(words, complaint):
    with pytest.raises(ConfigError, match=complaint):
        split_words(words)


def test_under_another_launcher_one_process_trains_itself(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    recipe = Recipe(parallel=ParallelConfig(data=4))
    assert number_of_processes(recipe, LaunchConfig()) == 1
    with pytest.raises(
        ConfigError, match=r"restarts is for hasten's own launcher and another one \(torchrun\)"
    ):
        number_of_processes(recipe, LaunchConfig(restarts=1))


def failure(exit_code: int, told: Failure | None = None, at: float = 100.0) -> Any:
    data = {"hasten": vars(told)} if told else {}
    return SimpleNamespace(exitcode=exit_code, error_file_data=data, timestamp=at)


def said(rank: int, sentence: str, at: float = 100.0) -> Failure:
    return Failure(rank, f"host-{rank}", sentence, time=at)


CAUSES = {
    "killed, and the other lost contact": (
        {0: failure(75, said(0, "lost contact")), 1: failure(-9)},
        (-9, "rank 1 on .* was killed by SIGKILL"),
    ),
    "a mistake before all else": (
        {0: failure(2, said(0, "write another `output`", 101)), 1: failure(1, said(1, "KeyError: 'x'"))},
        (2, "rank 0 on host-0: write another `output`"),
    ),
    "of two exceptions the first": (
        {0: failure(1, said(0, "KeyError: 'x'", 101)), 1: failure(1, said(1, "ValueError: y", 100.5))},
        (1, "rank 1 on host-1: ValueError: y"),
    ),
    "the watchdog speaks of others": (
        {0: failure(76, said(0, "nothing moved: rank 1 does not answer")), 1: failure(-9)},
        (76, "^nothing moved: rank 1 does not answer$"),
    ),
    "told to end": ({0: failure(-15), 1: failure(-11)}, (-11, "rank 1 on .* was killed by SIGSEGV")),
    "without a word": ({3: failure(17)}, (17, "rank 3 on .* ended with exit code 17")),
}


@pytest.mark.parametrize("failures, expected", CAUSES.values(), ids=CAUSES)
def test_the_failure_that_the_others_followed_from_is_found(failures, expected):
    cause = root_cause(failures)
    assert cause.exit_code == expected[0] and re.search(expected[1], cause.sentence)


@pytest.mark.parametrize("launched", [True, False])
def test_a_worker_tells_its_launcher_in_a_file_and_others_on_the_terminal(
    launched, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    if launched:
        monkeypatch.setenv(LAUNCHER, "1")
    assert tell(ConfigError("write less")) == 2
    told = capsys.readouterr().err
    assert told == ("" if launched else "hasten: rank 3: write less\n")
    data = yaml.safe_load((tmp_path / "error.json").read_text())
    found = Failure.read(data)
    assert found is not None and (found.rank, found.sentence, found.trace) == (3, "write less", "")
    assert data["message"]["extraInfo"]["py_callstack"] == "write less", "as torch's agent wants it"


def judged(
    *saved: object, restarts: int, causes: list[Cause], stopping: bool = False
) -> tuple[Any, list[int]]:
    """An agent that has judged some causes, and what it would still start again after each."""
    left, values = list[int](), iter(saved)
    agent: Any = Agent.__new__(Agent)
    agent.limit, agent.progress = restarts, lambda: next(values)
    agent.fruitless, agent.saved, agent.stopping, agent.cause = 0, None, stopping, None
    for cause in causes:
        agent._remaining_restarts = 100
        agent.judge(cause)
        left.append(agent._remaining_restarts)
    return agent, left


KILLED = Cause(-9, "rank 1 on here was killed by SIGKILL")


def test_it_starts_again_as_long_as_something_new_is_saved(capsys):
    agent, left = judged("a", "b", "c", "c", "c", restarts=2, causes=[KILLED] * 5)
    assert left == [100, 100, 100, 100, 0] and agent.fruitless == 3
    assert (
        capsys.readouterr().out.count("rank 1 on here was killed by SIGKILL; all processes start again") == 4
    )


@pytest.mark.parametrize(
    "cause, stopping",
    [(Cause(2, "rank 0 on here: write less"), False), (KILLED, True)],
    ids=["mistake", "asked"],
)
def test_it_does_not_start_again_after_a_mistake_or_when_asked_to_stop(cause, stopping):
    agent, left = judged("a", restarts=9, causes=[cause], stopping=stopping)
    assert left == [0] and agent.cause is cause


def test_this_machines_addresses_are_found_by_the_kernel():
    assert network.address_towards("127.0.0.1:1") == "127.0.0.1" and network.is_here("127.0.0.1:1")
    assert network.interface_with("127.0.0.1") == "lo"
    assert network.interface_with("192.0.2.77") is None
    with pytest.raises(ConfigError, match=r"meet: no-such-host\.invalid cannot be reached from here"):
        network.address_towards("no-such-host.invalid:1")


JOBS = {
    "slurm": ["partition=p1", "account=0012", "hours=1.5", "cpus=16"],
    "kubernetes": ["image=registry/me:1", "volume=disk"],
    "skypilot": ["gpu=L4", "spot=true"],
}
TRICKY = 'generate.prompts=["it\'s $HOME & `x`"]'
"""An override that a shell would make something else of."""


def job(folder: Path, to: str, *words: str) -> str:
    """The text of a job file for two machines of four GPUs."""
    write_recipe(folder)
    arguments = ["nodes=2", "gpus=4", "parallel.shard=8", TRICKY, "device=auto", *words]
    assert main(["job", "recipe.yaml", f"to={to}", *arguments, *JOBS[to], "file=job"]) == 0
    return (folder / "job").read_text()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_slurm_job_is_a_script_with_its_options_ahead_of_all_commands(here):
    text = job(here, "slurm")
    subprocess.run(["bash", "-n", "job"], check=True)
    lines = text.splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--nodes=2", "--gpus-per-node=4", "--cpus-per-task=16", "--time=1:30:00", "--requeue"} <= {
        *options
    }
    assert {"--partition=p1", "--account=0012", "--signal=TERM@300", "--job-name=run"} <= {*options}
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_a_kubernetes_job_gives_pods_names_to_meet_under(here):
    service, work = yaml.safe_load_all(job(here, "kubernetes"))
    pod = work["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert service["kind"] == "Service" and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": work["metadata"]["name"]}
    assert work["spec"]["completions"] == work["spec"]["parallelism"] == 2
    assert pod["subdomain"] == service["metadata"]["name"] and pod["restartPolicy"] == "Never"
    assert container["command"][:3] == ["hasten", "train", "recipe.yaml"] and TRICKY in container["command"]
    assert {"nodes=2", "meet=run-0.run:29400", "stopped=75"} <= {*container["command"]}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    codes = [rule["onExitCodes"]["values"] for rule in work["spec"]["podFailurePolicy"]["rules"][:2]]
    assert codes == [[2], [75]]


def test_a_skypilot_task_runs_the_same_command_on_each_machine(here):
    task = yaml.safe_load(job(here, "skypilot"))
    assert task["num_nodes"] == 2
    assert task["resources"] == {"accelerators": "L4:4", "use_spot": True}
    assert task["volumes"] == {"/shared": "hasten"}
    for script in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[script], text=True, check=True)
    ran = subprocess.run(
        ["bash", "-c", f'hasten() {{ printf "%s\\n" "$@"; }}\n{task["run"]}'],
        env={**os.environ, "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NUM_NODES": "2"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert ran[:2] == ["train", "recipe.yaml"] and TRICKY in ran
    assert {"output=/shared/run", "nodes=2", "meet=10.0.0.5:29400"} <= {*ran}


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["to=slrum"], "to cannot be 'slrum'. Did you mean 'slurm'?"),
        ([], "to is missing"),
        (["to=slurm", "nods=2"], "hasten job has no key 'nods'. Did you mean 'nodes'?"),
        (["to=kubernetes"], "image is missing; write image=REGISTRY/NAME:TAG"),
        (["to=slurm", "name=My run"], "name is 'My run'; write lower-case letters"),
        (["to=slurm", "gpus=4", "parallel.data=2", "nodes=3"], "2 processes cannot be shared equally"),
        (["to=slurm", "hours=0.05"], "hours is 0.05, no more than grace_minutes"),
        (["to=slurm", "output=a\nb"], "holds a line break"),
        (["to=slurm", "file=recipe.yaml"], "recipe.yaml: is there already"),
    ],
)
def test_a_job_that_cannot_be_is_refused(words, complaint, here, capsys):
    write_recipe(here)
    assert main(["job", "recipe.yaml", *words]) == 2
    assert complaint in capsys.readouterr().err


GUIDES = [Path(__file__).parents[2] / "docs" / name for name in ("parallel.md", "parallel.zh-CN.md")]


def lines_of(guide: Path) -> list[str]:
    """The commands in a guide's blocks, without what follows a #."""
    blocks = re.findall(r"```bash\n(.*?)```", guide.read_text(encoding="utf-8"), re.S)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("command", lines_of(GUIDES[0]))
def test_every_command_of_the_guide_can_be_given(command, here):
    name, verb, recipe, *words = shlex.split(command)
    (here / recipe).write_text(find("demo").read_text(encoding="utf-8"), encoding="utf-8")
    assert name == "hasten"
    if verb == "job":
        assert main([verb, recipe, *words]) == 0
        return
    options, overrides = split_words(words)
    parallel = recipes.load(here / recipe, overrides).parallel
    assert processes_here(parallel, options, 8 if parallel.data == "auto" else 0) >= 1


def test_both_guides_have_the_same_commands_and_a_section_that_loads():
    english, chinese = GUIDES
    assert lines_of(english) == lines_of(chinese)
    for guide in GUIDES:
        (block,) = re.findall(r"```yaml\n(.*?)```", guide.read_text(encoding="utf-8"), re.S)
        assert config.parse(Recipe, yaml.safe_load(block), guide.name).parallel.shard == 8


SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do shift; done
"$@" > host-0.log 2>&1 & first=$!
"$@" > host-1.log 2>&1 & second=$!
wait $first; code=$?
wait $second; other=$?
exit $((code > other ? code : other))
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
    "show hostnames") echo 127.0.0.1; echo 127.0.0.2 ;;
    "requeue 77") echo "$2" >> requeued ;;
    *) exit 1 ;;
esac
"""


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.slow
def test_the_slurm_job_trains_on_two_hosts_and_goes_on_after_it_was_asked_to_stop(here):
    """Slurm's programs are stood in for: `srun` starts the command twice on this machine."""
    write_recipe(here)
    words = ["to=slurm", "nodes=2", "gpus=0", "cpus=1", "parallel.shard=2", "port=21000", "file=job"]
    assert main(["job", "recipe.yaml", *words]) == 0
    programs = here / "programs"
    programs.mkdir()
    write_program(programs / "srun", SRUN)
    write_program(programs / "scontrol", SCONTROL)
    write_program(programs / "hasten", f'#!/bin/bash\nexec {sys.executable} -m hasten "$@"\n')
    asked = {"rank": 1, "step": 5, "act": "term", "once": str(here / "asked")}
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[0-1]", "SLURM_JOB_NUM_NODES": "2"}
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    own = {**environment([asked]), **slurm, **path}
    codes = [subprocess.run(["bash", "job"], env=own, timeout=600, check=False).returncode for _ in range(2)]
    logs = "".join((here / f"host-{number}.log").read_text() for number in (0, 1))
    assert codes == [75, 0], logs
    assert (here / "requeued").read_text() == "77\n"
    assert "starting 1 process of 1 thread on each of 2 machines, which meet at 127.0.0.1:21077" in logs
    assert logs.count("going on from step-000005") == 1 and logs.count("trained 10 steps") == 1
    assert (here / "run/checkpoints/step-000010/manifest.json").is_file()


@pytest.mark.slow
def test_a_journey_trains_in_several_processes_and_does_the_rest_in_one(here):
    write_recipe(here, steps=2)
    done = hasten(here, "journey", "recipe.yaml", "parallel.data=2", "report.lang=zh")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("starting 2 processes") == 1
    assert "[5/5] report: done" in done.stdout
    for file in ("training.json", "evaluation.json", "samples.json", "report.html"):
        assert (here / "run" / file).is_file()
    assert "[2/5] train: unchanged, kept" in hasten(here, "journey", "recipe.yaml", "parallel.data=2").stdout


@pytest.mark.slow
def test_ctrl_c_reaches_the_processes_which_save(here):
    """As a terminal sends it: to the whole foreground group, the launcher passes it on once more."""
    write_recipe(here, steps=10**6, checkpoint_every=None)
    log = (here / "log").open("w+")
    training = subprocess.Popen(
        [sys.executable, "-m", "hasten", "train", "recipe.yaml", "parallel.data=2", "stopped=75"],
        env=environment(),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        while not (here / "run/metrics.jsonl").exists() or not (here / "run/metrics.jsonl").stat().st_size:
            assert training.poll() is None, (here / "log").read_text()
            time.sleep(0.1)
        os.killpg(training.pid, signal.SIGINT)
        assert training.wait(timeout=300) == 75
    finally:
        if training.poll() is None:
            training.kill()
    text = (here / "log").read_text()
    assert text.count("SIGINT: saving after this step") == 1 and "stopped and saved" in text
    assert len(list((here / "run/checkpoints").glob("step-*"))) == 1
