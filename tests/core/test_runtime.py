"""Where a process runs, and what a result depends on."""

import pytest
import torch

from hasten.core import runtime
from hasten.core.errors import ConfigError


def test_one_process_has_rank_zero_and_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    here = runtime.start("cpu")
    assert (here.device, here.rank, here.world_size, here.group) == (torch.device("cpu"), 0, 1, None)


@pytest.mark.parametrize("has_gpu, device", [(False, "cpu"), (True, "cuda:3")])
def test_auto_takes_this_processs_gpu_where_there_is_one(monkeypatch, has_gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert runtime.choose_device("auto") == torch.device(device)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigError, match="'cuda' was asked for and there is no CUDA GPU here; write cpu or auto"
    ):
        runtime.choose_device("cuda")


@pytest.mark.parametrize(
    "flags, fast",
    [("avx2 avx512f", False), ("avx512_bf16", True), ("amx_bf16 amx_tile", True), ("asimd bf16", True)],
)
def test_bf16_counts_as_fast_where_the_processor_multiplies_in_it(monkeypatch, flags, fast):
    monkeypatch.setattr(runtime, "cpu_flags", lambda: set(flags.split()))
    assert runtime.has_fast_bf16(torch.device("cpu")) is fast


@pytest.mark.parametrize(
    "text", ["processor: 0\nflags\t\t: fpu avx2\n", "processor: 0\nFeatures\t: fpu avx2\n"]
)
def test_processor_flags_are_read_on_x86_and_on_arm(tmp_path, monkeypatch, text):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(runtime, "Path", lambda _: tmp_path / "cpuinfo")
    assert runtime.cpu_flags() == {"fpu", "avx2"}


def test_a_system_without_cpuinfo_has_no_flags(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "Path", lambda _: tmp_path / "none")
    assert runtime.cpu_flags() == set()


def test_the_environment_names_versions_and_machine():
    found = runtime.environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert {"hasten", "commit", "python", "platform", "processor", "gpu"} <= found.keys()
