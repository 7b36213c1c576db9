import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetclip.calibration import Calibration, calibration_error, fit_calibration, probabilities, reliability

PLAIN = Calibration()


def drawn(logits: np.ndarray, seed: int, noise: float = 0.0) -> np.ndarray:
    """Listed values drawn from the softmax of `logits`, a share of them at random, as bool [n, values]."""
    random, values = np.random.default_rng(seed), logits.shape[1]
    sums = np.cumsum(probabilities(logits, PLAIN, multi_valued=False), axis=1)
    chosen = (random.random((len(logits), 1)) > sums[:, :-1]).sum(axis=1)
    chosen = np.where(random.random(len(logits)) < noise, random.integers(0, values, len(logits)), chosen)
    return np.eye(values, dtype=bool)[chosen]


def loss(read: np.ndarray, listed: np.ndarray, *, multi_valued: bool) -> float:
    told = np.where(listed, read, 1 - read).ravel() if multi_valued else (read * listed).sum(axis=1)
    return float(-np.log(told).mean())


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("noise", [0.0, 0.12])
def test_a_known_scaling_and_a_known_share_of_noise_are_found(scale: float, noise: float) -> None:
    logits = np.random.default_rng(0).normal(size=(20_000, 4)) * 4
    found = fit_calibration(logits * scale, drawn(logits, 1, noise), multi_valued=False)
    assert found.temperature == pytest.approx(scale, rel=0.06)
    assert found.noise == pytest.approx(noise, abs=0.012)


def test_the_temperature_of_sigmoids_undoes_a_known_scaling() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 3)) * 2
    listed = random.random((20_000, 3)) < probabilities(logits, PLAIN, multi_valued=True)
    assert fit_calibration(logits * 3, listed, multi_valued=True).temperature == pytest.approx(3, rel=0.06)


def test_wrong_cells_make_no_photo_doubtful() -> None:
    """Photos that are read without fail, of a table with a fifth of random cells: only the noise explains that."""
    random = np.random.default_rng(0)
    logits = np.eye(4)[random.integers(0, 4, 5_000)] * random.uniform(8, 60, (5_000, 1))
    found = fit_calibration(logits, drawn(logits, 1, noise=0.2), multi_valued=False)
    read = probabilities(logits, found, multi_valued=False).max(axis=1)
    assert found.noise == pytest.approx(0.2, abs=0.02)
    assert read.mean() == pytest.approx(0.85, abs=0.02)
    assert read.std() < 0.01


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=30)
def test_calibration_never_raises_the_loss_it_is_fitted_on(seed: int, multi_valued: bool) -> None:
    random = np.random.default_rng(seed)
    logits, listed = random.normal(size=(60, 3)) * random.uniform(0.1, 9), random.random((60, 3)) < 0.4
    listed[:, 0] |= ~listed.any(axis=1)
    found = fit_calibration(logits, listed, multi_valued=multi_valued)
    after, before = (probabilities(logits, each, multi_valued=multi_valued) for each in (found, PLAIN))
    # it is held at 1 and 0 a little
    assert loss(after, listed, multi_valued=multi_valued) <= loss(before, listed, multi_valued=multi_valued) + 5e-3


@given(st.integers(1, 12), st.integers(0, 1000))
def test_a_few_right_answers_do_not_make_certain(rows: int, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(rows, 3))
    found = fit_calibration(logits, np.eye(3, dtype=bool)[logits.argmax(axis=1)], multi_valued=False)
    assert 0.05 < found.temperature <= 1.0
    assert found.noise == 0.0


def test_rows_that_list_nothing_do_not_count() -> None:
    logits, listed = np.random.default_rng(0).normal(size=(50, 3)), np.zeros((50, 3), dtype=bool)
    assert fit_calibration(logits, listed, multi_valued=False) == PLAIN
    listed[:20] = drawn(logits[:20], 2)
    whole = fit_calibration(logits, listed, multi_valued=False)
    assert whole == fit_calibration(logits[:20], listed[:20], multi_valued=False)


def test_answers_as_often_right_as_sure_have_no_error_and_overconfident_ones_have() -> None:
    logits = np.random.default_rng(0).normal(size=(50_000, 4)) * 2
    truth = drawn(logits, 3)

    def error(temperature: float) -> float:
        read = probabilities(logits, Calibration(temperature), multi_valued=False)
        best = read.argmax(axis=1)
        return calibration_error(read.max(axis=1), truth[np.arange(len(best)), best])

    assert error(1.0) < 0.01
    assert error(0.3) > 0.1


def test_every_answer_is_in_one_bin() -> None:
    sure = np.r_[np.random.default_rng(0).random(1000), 0.0, 1.0, 1 / 15]
    bins = reliability(sure, sure > 0.5)
    assert sum(each.items for each in bins) == 1003
    assert all(each.low - 1e-9 <= each.confidence <= each.high + 1e-9 for each in bins)
