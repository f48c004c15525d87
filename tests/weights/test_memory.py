"""The memory of a merge: a few chunks per model and thread, whatever the size of the models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.weights.folders import family

PROGRAM = """
import sys
from pathlib import Path
from multitune.weights.config import MergeConfig
from multitune.weights.merging import merge
folder, method, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
models = [str(folder / f"model{number}") for number in range(count)]
config = MergeConfig(method=method, base=str(folder / "base"), models=models)
print(merge(config, folder / f"out-{method}-{count}", threads=2).peak_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is told by Linux alone")
def test_memory_does_not_grow_with_layers_and_little_with_models(tmp_path: Path) -> None:
    family(tmp_path / "shallow", 6, torch.bfloat16, width=512, layers=2)
    family(tmp_path / "deep", 6, torch.bfloat16, width=512, layers=8)

    def peak(kind: str, method: str, models: int) -> int:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / kind), method, str(models)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    added = sum((file.stat().st_size for file in (tmp_path / "deep").rglob("*.safetensors")), start=0)
    added -= sum((file.stat().st_size for file in (tmp_path / "shallow").rglob("*.safetensors")), start=0)
    assert added > 100e6
    for method in ("linear", "breadcrumbs"):
        deep = peak("deep", method, 6)
        # of more than 100 MB that were added; samples meet both threads' counters of a window, or one's
        assert deep - peak("shallow", method, 6) < 32e6
        assert deep - peak("deep", method, 2) < 4 * 2 * 10e6  # 10 MB per model and thread: 6 are seen, 8 at times
