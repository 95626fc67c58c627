"""Every mesh takes the steps of one process: loss, gradient norm, weights; first weights bit for bit."""

import pytest
from parity import CASES, MESHES, compare

RUNS = {size: [(mesh, case, "adamw") for mesh in meshes for case in CASES] for size, meshes in MESHES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("processes", MESHES)
def test_a_mesh_trains_as_one_process_does(processes: int) -> None:
    for result in compare(processes, RUNS[processes]):
        assert result["initial_weights_equal"], result
        assert result["loss"] < 1e-6, result
        assert result["norm"] < 5e-6, result
        assert result["measured"] < 1e-6, result
        assert result["weights"] < 1e-5, result
