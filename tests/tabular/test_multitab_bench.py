"""The benchmark's ground truth: cosines, variances and covariances to the stated digits; splits of one truth."""

from __future__ import annotations

import numpy as np
import pytest

from multitune.errors import MultituneError
from multitune.tabular import MultiTabBench
from multitune.tabular.multitab_bench import correlation_matrix, hermite_coefficients


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.95, 1.0, -1 / 6])
def test_directions_have_the_cosines_that_were_asked(correlation):
    bench = MultiTabBench(correlation=correlation)
    np.testing.assert_allclose(bench.W @ bench.W.T, bench.P, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(bench.W, axis=1), 1, atol=1e-7)


def test_a_matrix_of_cosines():
    P = [[1, 0.9, 0], [0.9, 1, 0.3], [0, 0.3, 1]]
    bench = MultiTabBench(3, 3, correlation=P, degrees=1)
    np.testing.assert_allclose(bench.W @ bench.W.T, P, atol=1e-7)


def test_hermite_coefficients():
    expected = {1: [0, 1], 2: [1, 1, 1], 3: [1, 4, 1, 1], 4: [4, 4, 7, 1, 1]}
    for degree, coefficients in expected.items():
        np.testing.assert_allclose(hermite_coefficients(degree), coefficients)


def test_variances_by_degree():
    bench = MultiTabBench(4, 8, degrees=[1, 2, 3, 4], noise=0.5)
    np.testing.assert_allclose(np.diag(bench.covariance()), np.array([1, 3, 24, 144]) + 0.25)


def test_correlations_between_degrees():
    covariance = MultiTabBench(4, 8, correlation=0.4, degrees=[1, 2, 3, 4], noise=0).covariance()
    deviation = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(deviation, deviation)
    assert correlation[0, 2] == pytest.approx(0.3266, abs=5e-5)
    assert correlation[1, 3] == pytest.approx(0.1848, abs=5e-5)


def test_samples_have_the_covariance_that_was_computed():
    bench = MultiTabBench(3, 5, correlation=0.6, degrees=[1, 2, 2], noise=[0.1, 0.0, 1.0])
    table = bench.sample(200_000)
    np.testing.assert_allclose(np.cov(table.Y.T), bench.covariance(), rtol=0.03)
    np.testing.assert_allclose((table.Y - table.signal).std(axis=0), [0.1, 0, 1], rtol=0.01, atol=1e-12)


def test_targets_are_the_polynomials_of_the_projections():
    bench = MultiTabBench(2, 4, degrees=[1, 3], noise=0)
    table = bench.sample(10)
    z = table.X @ bench.W.T
    np.testing.assert_allclose(table.Y[:, 0], z[:, 0])
    np.testing.assert_allclose(table.Y[:, 1], z[:, 1] + z[:, 1] ** 2 + z[:, 1] ** 3)


def test_splits_share_the_truth_and_no_row():
    bench = MultiTabBench(seed=3)
    train, test = bench.sample(50), bench.sample(50, "test")
    assert not np.isin(train.X, test.X).any()
    np.testing.assert_array_equal(train.X, MultiTabBench(seed=3).sample(50).X)
    np.testing.assert_array_equal(bench.W, MultiTabBench(seed=3).W)
    assert not np.allclose(bench.W, MultiTabBench(seed=4).W)
    assert bench.degrees == [1, 3, 2, 3, 4, 2, 3] and bench.W.shape == (7, 32)


def test_targets_are_cut_into_classes_of_equal_size_alike_in_all_splits():
    bench = MultiTabBench(3, 4, degrees=[1, 2, 3], classes=[0, 2, 4], noise=0.1)
    assert bench.kinds == ["regression", "binary", "multiclass"]
    table = bench.sample(40_000, "test")
    np.testing.assert_allclose(np.bincount(table.Y[:, 1].astype(int)) / 40_000, [0.5] * 2, atol=0.01)
    np.testing.assert_allclose(np.bincount(table.Y[:, 2].astype(int)) / 40_000, [0.25] * 4, atol=0.01)
    assert np.corrcoef(table.signal[:, 1], table.Y[:, 1])[0, 1] > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": 5, "features": 4}, "5 directions with given cosines need as many features, and there are 4"),
        ({"targets": 4, "correlation": -0.5}, "No 4 directions have a cosine of -0.5"),
        ({"targets": 4, "correlation": 1.2}, "No 4 directions have a cosine of 1.2"),
        ({"targets": 2, "correlation": np.eye(3)}, "The matrix of cosines is \\(3, 3\\)"),
        ({"targets": 2, "correlation": [[1, 0.5], [0.4, 1]]}, "not symmetric"),
        ({"targets": 2, "correlation": [[2, 0.5], [0.5, 1]]}, "ones on its diagonal"),
        ({"targets": 3, "correlation": [[1, 0.9, 0.9], [0.9, 1, -0.9], [0.9, -0.9, 1]]}, "an eigenvalue of -0.8"),
        ({"targets": 3, "degrees": [1, 2]}, "2 degrees for 3 targets"),
        ({"degrees": 0}, "The degrees are"),
        ({"noise": -1.0}, "the noise"),
        ({"classes": 1}, "the classes"),
    ],
)
def test_what_is_impossible_is_refused(arguments, message):
    with pytest.raises(MultituneError, match=message):
        MultiTabBench(**arguments)


def test_the_lowest_cosine_of_all_pairs_is_possible():
    np.testing.assert_allclose(np.linalg.eigvalsh(correlation_matrix(-1 / 3, 4))[0], 0, atol=1e-12)
    assert correlation_matrix(0.3, 1).tolist() == [[1]]
