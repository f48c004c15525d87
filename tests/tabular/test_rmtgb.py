"""R-MTGB: the laws of the algorithm, for both engines where they hold for both."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingRegressor

from multitune.tabular import RMTGBClassifier, RMTGBRegressor
from multitune.tabular.boosting_blocks import combined, sigmoid, theta_gradient
from multitune.tabular.boosting_losses import SoftmaxLoss, SquaredLoss

ENGINES = pytest.mark.parametrize("engine", ["hist", "exact"])


@pytest.fixture(scope="module")
def table():
    """Three tasks of 40, 60 and 80 rows; the last one follows another function. Values that float32 holds."""
    random = np.random.default_rng(0)
    X = random.normal(size=(180, 3)).astype(np.float32).astype(np.float64)
    task = np.repeat([0, 1, 2], [40, 60, 80])
    y = np.where(task == 2, -X[:, 0], X[:, 0]) + 0.5 * np.sin(3 * X[:, 1]) + 0.1 * task
    shuffled = random.permutation(180)
    return X[shuffled], y[shuffled], task[shuffled]


def classes_of(y):
    return np.digitize(y, [-0.4, 0.5])


# Invariant 1
@ENGINES
def test_block_3_alone_is_one_booster_per_task(table, engine):
    X, y, task = table
    for depth in (1, 3):
        booster = RMTGBRegressor((0, 0, 20), 0.3, depth, engine=engine).fit(X, y, task=task)
        for r in range(3):
            here = task == r
            alone = GradientBoostingRegressor(init="zero", n_estimators=20, learning_rate=0.3, max_depth=depth).fit(
                X[here], y[here]
            )
            np.testing.assert_allclose(booster.predict(X[here], task=task[here]), alone.predict(X[here]), atol=1e-10)


@ENGINES
def test_block_1_alone_is_one_booster_for_all(table, engine):
    X, y, task = table
    booster = RMTGBRegressor((20, 0, 0), 0.3, 2, engine=engine).fit(X, y, task=task)
    plain = GradientBoostingRegressor(init="zero", n_estimators=20, learning_rate=0.3, max_depth=2).fit(X, y)
    np.testing.assert_allclose(booster.predict(X, task=task), plain.predict(X), atol=1e-10)
    single = RMTGBRegressor((20, 0, 0), 0.3, 2, engine=engine).fit(X, y)
    np.testing.assert_allclose(single.predict(X), booster.predict(X, task=task), atol=1e-10)


# Invariant 2
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_the_gradient_on_theta(outputs, kind):
    random = np.random.default_rng(1)
    N, T, K = 50, 4, outputs if kind == "regression" else 3
    task, weight = np.sort(random.integers(0, T, N)), random.uniform(0.5, 2, N)
    values = {name: random.normal(size=(N, K)) for name in ("m", "p", "q", "h")}
    loss = SquaredLoss() if kind == "regression" else SoftmaxLoss()
    y = random.normal(size=(N, K)) if kind == "regression" else np.eye(K)[random.integers(0, K, N)]
    theta = random.normal(size=T)

    def total(theta_T):
        return weight @ loss.loss(y, combined(values, sigmoid(theta_T)[task]))

    g = loss.residual(y, combined(values, sigmoid(theta)[task]))
    gradient = theta_gradient(theta, task, weight, g, values["p"], values["q"])
    step = 1e-5
    for r in range(T):
        e = step * np.eye(T)[r]
        difference = (total(theta + e) - total(theta - e)) / (2 * step)
        assert gradient[r] == pytest.approx(difference, rel=1e-6)


# Invariant 3
@ENGINES
def test_p_and_q_may_change_places(table, engine):
    X, y, task = table
    theta0 = np.array([0.1, -0.05, 0.2])
    one = RMTGBRegressor((3, 20, 5), 0.2, 2, theta0=theta0, engine=engine).fit(X, y, task=task)
    other = RMTGBRegressor((3, 20, 5), 0.2, 2, theta0=-theta0, engine=engine).fit(X, y, task=task)
    np.testing.assert_allclose(other.theta_, -one.theta_, atol=1e-9)
    np.testing.assert_allclose(other.outlier_score_, one.outlier_score_, atol=1e-9)
    np.testing.assert_allclose(other.predict(X, task=task), one.predict(X, task=task), atol=1e-9)


@ENGINES
def test_tasks_are_labels_and_no_numbers(table, engine):
    X, y, task = table
    theta0 = np.array([0.1, -0.05, 0.2])
    one = RMTGBRegressor((2, 15, 5), 0.2, 2, theta0=theta0, engine=engine).fit(X, y, task=task)
    renamed = np.array(["zoo", "ant", "mud"])[task]  # sorted: ant (1), mud (2), zoo (0)
    other = RMTGBRegressor((2, 15, 5), 0.2, 2, theta0=theta0[[1, 2, 0]], engine=engine).fit(X, y, task=renamed)
    assert other.tasks_.tolist() == ["ant", "mud", "zoo"]
    np.testing.assert_allclose(other.theta_, one.theta_[[1, 2, 0]], atol=1e-9)
    np.testing.assert_allclose(other.predict(X, task=renamed), one.predict(X, task=task), atol=1e-9)


# Invariant 4
@ENGINES
def test_a_theta_of_zero_stays_there(table, engine):
    X, y, task = table
    booster = RMTGBRegressor((0, 15, 0), 0.4, 2, theta0=np.zeros(3), engine=engine).fit(X, y, task=task)
    np.testing.assert_array_equal(booster.theta_, 0)
    pooled = RMTGBRegressor((15, 0, 0), 0.2, 2, engine=engine).fit(X, y, task=task)
    np.testing.assert_allclose(booster.predict(X, task=task), pooled.predict(X, task=task), atol=1e-10)
    p, q = (np.zeros((len(X), 1)) for _ in range(2))
    booster.boosted_.trees["p"].add_to(p, X)
    booster.boosted_.trees["q"].add_to(q, X)
    np.testing.assert_allclose(p, q, atol=1e-12)


def test_an_equal_theta_shrinks_the_first_iteration_and_moves_later(table):
    X, y, task = table
    s = 1 / (1 + np.exp(-0.7))
    booster = RMTGBRegressor((0, 3, 0), 0.5, 2, theta0=np.full(3, 0.7)).fit(X, y, task=task)
    first = next(booster.staged_predict(X, task=task))
    pooled = RMTGBRegressor((1, 0, 0), 0.5, 2).fit(X, y, task=task)
    np.testing.assert_allclose(first, (s**2 + (1 - s) ** 2) * pooled.predict(X, task=task), atol=1e-12)
    np.testing.assert_array_equal(booster.boosted_.theta_IT[1], 0.7)
    assert np.ptp(booster.theta_) > 0


# Invariant 5
@ENGINES
def test_the_worked_example(engine):
    X, y, task = [[0], [1], [0], [1]], [1, -1, -1, 1], [0, 0, 1, 1]
    signs = np.array([1, -1, -1, 1])
    theta0 = {0: np.log(3), 1: -np.log(3)}
    expected = {
        1: (0.0625, np.log(3)),
        2: (0.12504088, 1.1425576),
        3: (0.19326504, 1.22026673),
    }
    for n2, (size, theta) in expected.items():
        booster = RMTGBRegressor((0, n2, 0), 0.5, 1, theta0=theta0, engine=engine).fit(X, y, task=task)
        np.testing.assert_allclose(booster.predict(X, task=task), size * signs, atol=5e-9)
        np.testing.assert_allclose(booster.theta_, [theta, -theta], atol=5e-8)


# Invariant 6
@ENGINES
def test_a_task_is_answered_alike_alone_and_in_company(table, engine):
    X, y, task = table
    booster = RMTGBRegressor((5, 10, 5), engine=engine, random_state=0).fit(X, y, task=task)
    whole = X.copy()
    together = booster.predict(whole, task=task)
    np.testing.assert_array_equal(whole, X)
    for r in range(3):
        np.testing.assert_array_equal(booster.predict(X[task == r], task=task[task == r]), together[task == r])


@ENGINES
def test_the_order_of_rows_is_irrelevant(table, engine):
    X, y, task = table
    order = np.random.default_rng(2).permutation(len(X))
    one = RMTGBRegressor((5, 10, 5), engine=engine, random_state=0).fit(X, y, task=task)
    other = RMTGBRegressor((5, 10, 5), engine=engine, random_state=0).fit(X[order], y[order], task=task[order])
    np.testing.assert_allclose(other.predict(X, task=task), one.predict(X, task=task), atol=1e-9)
    np.testing.assert_allclose(other.theta_, one.theta_, atol=1e-9)


# Invariant 7
@ENGINES
def test_a_task_does_not_hear_of_the_others_in_block_3(table, engine):
    X, y, task = table
    changed = np.where(task == 1, -3 * y, y)
    one = RMTGBRegressor((0, 0, 15), engine=engine, random_state=0).fit(X, y, task=task)
    other = RMTGBRegressor((0, 0, 15), engine=engine, random_state=0).fit(X, changed, task=task)
    here = task != 1
    np.testing.assert_array_equal(one.predict(X[here], task=task[here]), other.predict(X[here], task=task[here]))


@ENGINES
@pytest.mark.parametrize("estimator", [RMTGBRegressor, RMTGBClassifier])
def test_a_weight_of_two_is_two_rows_and_a_weight_of_zero_none(table, engine, estimator):
    X, y, task = table
    y = classes_of(y) if estimator is RMTGBClassifier else y
    weight = np.random.default_rng(3).integers(0, 3, len(X))
    rows = np.repeat(np.arange(len(X)), weight)
    # Deeper nodes of the exact engine are so small that several features split them equally well.
    settings = {"n_estimators": (4, 10, 4), "max_depth": 3 if engine == "hist" else 1, "theta0": [0.1, -0.1, 0.2]}
    settings |= {"engine": engine, "random_state": 0}
    weighted = estimator(**settings).fit(X, y, task=task, sample_weight=weight)
    repeated = estimator(**settings).fit(X[rows], y[rows], task=task[rows])
    np.testing.assert_allclose(weighted.theta_, repeated.theta_, atol=1e-9)
    np.testing.assert_allclose(weighted._raw(X, task), repeated._raw(X, task), atol=1e-9)


# Invariant 8
@ENGINES
def test_a_seed_decides_everything(table, engine):
    X, y, task = table
    fitted = []
    for global_seed in (1, 2):
        np.random.seed(global_seed)
        fitted.append(RMTGBRegressor((2, 10, 2), engine=engine, random_state=7).fit(X, y, task=task))
    np.testing.assert_array_equal(fitted[0].theta_, fitted[1].theta_)
    np.testing.assert_array_equal(fitted[0].predict(X, task=task), fitted[1].predict(X, task=task))
    assert np.any(RMTGBRegressor((2, 10, 2), random_state=8).fit(X, y, task=task).theta_ != fitted[0].theta_)


@ENGINES
def test_probabilities_add_up_to_one(table, engine):
    X, y, task = table
    booster = RMTGBClassifier((2, 10, 2), engine=engine, random_state=0).fit(X, classes_of(y), task=task)
    probability = booster.predict_proba(X, task=task)
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(booster.classes_[probability.argmax(axis=1)], booster.predict(X, task=task))


def test_the_engines_agree(table):
    X, y, task = table
    settings = {"n_estimators": (5, 20, 10), "theta0": [0.1, -0.1, 0.2], "max_depth": 3}
    for targets, estimator in (
        (y, RMTGBRegressor),
        (np.stack([y, y**2], 1), RMTGBRegressor),
        (classes_of(y), RMTGBClassifier),
    ):
        one = estimator(engine="hist", **settings).fit(X, targets, task=task)
        other = estimator(engine="exact", **settings).fit(X, targets, task=task)
        np.testing.assert_allclose(one._raw(X, task), other._raw(X, task), atol=1e-6)
        np.testing.assert_allclose(one.theta_, other.theta_, atol=1e-6)


def test_the_task_that_does_not_belong_stands_out(table):
    X, y, task = table
    booster = RMTGBRegressor(random_state=0).fit(X, y, task=task)
    assert booster.task_table().index[0] == 2
    median = np.median(booster.theta_)
    by_definition = 2 / (1 + np.exp(-np.abs(booster.theta_ - median))) - 1
    np.testing.assert_allclose(booster.outlier_score_, by_definition, atol=1e-12)
    np.testing.assert_allclose(booster.task_weight_, 1 / (1 + np.exp(-booster.theta_)), atol=1e-12)


def test_the_parts_add_up_and_stages_lead_to_the_end(table):
    X, y, task = table
    booster = RMTGBRegressor((4, 6, 3), random_state=0).fit(X, y, task=task)
    predicted = booster.predict(X, task=task)
    np.testing.assert_allclose(sum(booster.parts(X, task=task).values())[:, 0], predicted, atol=1e-12)
    stages = list(booster.staged_predict(X, task=task))
    assert len(stages) == 13
    np.testing.assert_allclose(stages[-1], predicted, atol=1e-12)
    losses = [0.5 * np.mean((y - stage) ** 2) for stage in stages]
    np.testing.assert_allclose(booster.training_loss_, losses, atol=1e-12)


def test_how_theta_steps(table):
    X, y, task = table
    settings = {"n_estimators": (0, 2, 0), "theta0": [0.1, -0.1, 0.2], "max_depth": 2}

    def moved(**more):
        booster = RMTGBRegressor(**settings, **more).fit(X, y, task=task)
        return booster.theta_ - booster.boosted_.theta_IT[0]

    plain = moved()
    np.testing.assert_allclose(moved(theta_learning_rate=0.3), 3 * plain, atol=1e-12)
    np.testing.assert_array_equal(moved(theta_learning_rate=0.0), 0)
    np.testing.assert_allclose(moved(theta_reduction="mean"), plain * 60 / np.array([40, 60, 80]), atol=1e-12)
    np.testing.assert_allclose(moved(theta_standardize=True), plain / y.var(), atol=1e-12)
    theta0 = np.array([0.1, -0.1, 0.2])
    twice_pulled = (1 - 0.1 * 0.5) * theta0  # one step without a gradient, as p == q == 0
    np.testing.assert_allclose(
        RMTGBRegressor((0, 1, 0), theta0=theta0, theta_l2=0.5).fit(X, y, task=task).theta_, twice_pulled, atol=1e-12
    )
    clipped = RMTGBRegressor((0, 30, 0), 0.5, theta0=theta0, theta_clip=0.15).fit(X, y, task=task).theta_
    assert np.abs(clipped).max() == 0.15


def test_restarts_keep_the_best_run(table):
    X, y, task = table
    settings = {"n_estimators": (2, 10, 2), "random_state": 3}
    several = RMTGBRegressor(n_init=4, **settings).fit(X, y, task=task)
    one = RMTGBRegressor(**settings).fit(X, y, task=task)
    assert several.training_loss_[-1] <= one.training_loss_[-1]
    assert len(several.training_loss_) == 14


def test_every_block_stops_early_and_goes_back_to_its_best(table):
    X, y, task = table
    noisy = y + np.random.default_rng(5).normal(size=len(y))
    booster = RMTGBRegressor((60, 60, 60), 0.3, early_stopping=True, n_iter_no_change=5, random_state=0)
    booster.fit(X, noisy, task=task)
    assert sum(booster.n_iter_) < 100
    assert len(booster.validation_loss_) == sum(booster.n_iter_) == len(booster.training_loss_)
    for n, iterations in zip(np.cumsum(booster.n_iter_), booster.n_iter_, strict=True):
        block = booster.validation_loss_[n - iterations : n]
        assert not block or block[-1] == min(block)
    assert len(list(booster.staged_predict(X, task=task))) == sum(booster.n_iter_)


def test_the_loss_on_an_evaluation_set_is_that_of_the_stages(table):
    X, y, task = table
    half = np.arange(len(X)) % 2 == 0
    booster = RMTGBRegressor((3, 3, 3), random_state=0)
    booster.fit(X[half], y[half], task=task[half], eval_set=(X[~half], y[~half], task[~half]))
    stages = booster.staged_predict(X[~half], task=task[~half])
    losses = [0.5 * np.mean((y[~half] - stage) ** 2) for stage in stages]
    np.testing.assert_allclose(booster.validation_loss_, losses, atol=1e-12)
    assert booster.n_iter_ == (3, 3, 3)
