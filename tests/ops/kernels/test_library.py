"""The compiled library: built once, found again, and absent for a stated reason."""

import ctypes
from pathlib import Path

import pytest
import torch

from hasten.ops.kernels import library as kernels

WITH_COMPILER = pytest.mark.skipif(kernels.compiler() is None, reason="there is no C++ compiler here")


@pytest.fixture
def tripling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and two sources to compile into it."""
    sources = tmp_path / "cpu"
    sources.mkdir()
    (sources / "three.h").write_text("static const float THREE = 3.0f;\n")
    (sources / "triple.cpp").write_text(
        '#include "three.h"\n'
        'extern "C" void triple(float* x, long n) {\n'
        "#pragma omp parallel for\n"
        "    for (long i = 0; i < n; ++i) x[i] *= THREE;\n"
        "}\n"
    )
    monkeypatch.setattr(kernels, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return sources


@WITH_COMPILER
def test_sources_are_compiled_and_called(tripling: Path) -> None:
    x = torch.arange(5.0)
    ctypes.CDLL(str(kernels.built())).triple(kernels.address(x), ctypes.c_long(5))
    assert x.tolist() == [0, 3, 6, 9, 12]


@WITH_COMPILER
def test_compiled_once_and_again_when_a_source_changes(tripling: Path) -> None:
    first = kernels.built()
    written = first.stat().st_mtime_ns
    assert kernels.built() == first and first.stat().st_mtime_ns == written
    (tripling / "three.h").write_text("static const float THREE = 9.0f;\n")
    assert kernels.built() != first
    assert sorted(p.suffix for p in first.parent.iterdir()) == [".so", ".so"], (
        "nothing half-made stays behind"
    )


def test_switched_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_KERNELS", "off")
    assert kernels.why_not() == "HASTEN_KERNELS is off"


def test_a_processor_without_the_instructions_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cpu_flags", lambda: {"avx2"})
    monkeypatch.delenv("HASTEN_KERNELS", raising=False)
    assert "AVX-512" in str(kernels.why_not())


@WITH_COMPILER
def test_a_compiler_that_fails_is_said_and_lived_with(
    tripling: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tripling / "triple.cpp").write_text("this is no C++\n")
    monkeypatch.setattr(kernels, "why_not", lambda: None)
    kernels.library.cache_clear()
    try:
        assert kernels.library() is None
        assert "could not be compiled" in capsys.readouterr().out
    finally:
        kernels.library.cache_clear()
