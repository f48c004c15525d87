"""Two processes take the steps that one takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.tabular.fit_in_processes import main

SCRIPT = Path(__file__).with_name("fit_in_processes.py")


def test_two_processes_fit_what_one_fits(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run([*launch, str(SCRIPT), str(tmp_path)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    main(tmp_path)
    alone, first, second = (np.load(tmp_path / f"{name}.npy") for name in ("alone", "0", "1"))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, alone, atol=2e-4)
    np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}-unseeded.npy") for name in ("0", "1")))
