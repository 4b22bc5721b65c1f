"""Cost of a direction: counter-based normals and signs against torch.randn and NumPy's Philox, per element."""

import numpy as np
import pytest
import torch
from interleave import medians

from fastscape.ops.direction.reference import draw


@pytest.mark.parametrize("size", [20_000, 1_000_000], ids=lambda size: f"{size}-elements")
def test_draw(benchmark, size):
    first = draw(1, 0, [7], [size])[0]
    assert torch.equal(first, draw(1, 0, [7], [size])[0])
    assert abs(float(first.double().square().mean()) - 1) < 5 * (2 / size) ** 0.5
    generator = np.random.Generator(np.random.Philox(1))
    times = medians(
        {
            "normals": lambda: draw(1, 0, [7], [size]),
            "signs": lambda: draw(1, 0, [7], [size], "rademacher"),
            "torch.randn": lambda: torch.randn(size),
            "numpy Philox": lambda: generator.standard_normal(size, dtype=np.float32),
        }
    )
    benchmark.extra_info["ns per element"] = {name: round(1e9 * seconds / size, 2) for name, seconds in times.items()}
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark(draw, 1, 0, [7], [size])
