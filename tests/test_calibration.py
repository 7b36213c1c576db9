import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetclip.calibration import calibration_error, fit_temperature, log_loss, probabilities, reliability


def drawn(logits: np.ndarray, seed: int) -> np.ndarray:
    """Truth drawn from the softmax of `logits`, as bool [n, values]."""
    random = np.random.default_rng(seed)
    sums = np.cumsum(probabilities(logits, 1.0, multi_valued=False), axis=1)
    return np.eye(logits.shape[1], dtype=bool)[(random.random((len(logits), 1)) > sums[:, :-1]).sum(axis=1)]


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_known_scaling(scale: float) -> None:
    logits = np.random.default_rng(0).normal(size=(20000, 4)) * 2
    assert fit_temperature(logits * scale, drawn(logits, 1), multi_valued=False) == pytest.approx(scale, rel=0.05)


def test_the_temperature_of_sigmoids_undoes_a_known_scaling() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20000, 3)) * 2
    listed = random.random((20000, 3)) < probabilities(logits, 1.0, multi_valued=True)
    assert fit_temperature(logits * 3, listed, multi_valued=True) == pytest.approx(3, rel=0.06)


@given(st.integers(0, 10**6), st.booleans())
@settings(deadline=None, max_examples=30)
def test_calibration_never_raises_the_loss_it_is_fitted_on(seed: int, multi_valued: bool) -> None:
    random = np.random.default_rng(seed)
    logits, listed = random.normal(size=(30, 3)) * random.uniform(0.1, 9), random.random((30, 3)) < 0.4
    listed[:, 0] |= ~listed.any(axis=1)
    temperature = fit_temperature(logits, listed, multi_valued=multi_valued)
    after = log_loss(logits / temperature, listed, multi_valued=multi_valued)
    assert after <= log_loss(logits, listed, multi_valued=multi_valued) + 5e-3  # it is held at 1 a little


def test_rows_that_list_nothing_do_not_count() -> None:
    logits, listed = np.random.default_rng(0).normal(size=(50, 3)), np.zeros((50, 3), dtype=bool)
    assert fit_temperature(logits, listed, multi_valued=False) == 1.0
    listed[:20] = drawn(logits[:20], 2)
    whole = fit_temperature(logits, listed, multi_valued=False)
    assert whole == fit_temperature(logits[:20], listed[:20], multi_valued=False)


def test_answers_as_often_right_as_sure_have_no_error_and_overconfident_ones_have() -> None:
    logits = np.random.default_rng(0).normal(size=(50000, 4)) * 2
    truth = drawn(logits, 3)

    def error(temperature: float) -> float:
        read = probabilities(logits, temperature, multi_valued=False)
        best = read.argmax(axis=1)
        return calibration_error(read.max(axis=1), truth[np.arange(len(best)), best])

    assert error(1.0) < 0.01
    assert error(0.3) > 0.1


def test_every_answer_is_in_one_bin() -> None:
    sure = np.r_[np.random.default_rng(0).random(1000), 0.0, 1.0, 1 / 15]
    bins = reliability(sure, sure > 0.5)
    assert sum(each.items for each in bins) == 1003
    assert all(each.low - 1e-9 <= each.confidence <= each.high + 1e-9 for each in bins)
