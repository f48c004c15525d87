"""A model that FSDP2 has dealt out to two processes is written whole, and goes on from what was written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "sharded_checkpoint.py"


def test_sharded_weights_and_optimiser_are_written_whole_and_dealt_out_again(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2
