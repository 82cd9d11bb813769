"""Loads reference cases and compares with the tolerance that their page states."""

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1] / "data" / "reference"


def cases(paper: str, pattern: str) -> list:
    """One pytest parameter per file, so that a failure names its case."""
    found = sorted((ROOT / paper).glob(pattern))
    assert found, f"no reference cases {pattern} in {ROOT / paper}"
    return [pytest.param(dict(np.load(path, allow_pickle=False)), id=path.stem) for path in found]


def close(got, want, rtol: float = 0.0, atol: float = 0.0):
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)
