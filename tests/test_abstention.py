import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facetclip.abstention import (
    TARGETS,
    Agreement,
    Cutoff,
    agreement,
    answers,
    cutoff,
    cutoffs,
    fused,
    of_product,
    of_siblings,
    shipped_answers,
    true_precision,
    with_word,
    without_noise,
    word_noise,
)
from facetclip.calibration import Calibration, fit_calibration, probabilities
from facetclip.metrics import listed_values
from facetclip.schema import Attribute

SHAPE = Attribute(column="shape", values=("round", "square", "oval"))
CLEAN = Agreement(right=1.0, wrong=0.0)
COLOUR = Attribute(column="colour", values=("red", "green", "blue"), separator="|")


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("target", TARGETS)
def test_as_many_answers_are_given_as_keep_the_precision(noise: float, target: float) -> None:
    random = np.random.default_rng(0)
    sure = random.uniform(1 / 3, 1, 4000)
    right = random.random(4000) < sure  # perfectly calibrated
    agrees = np.where(random.random(4000) < noise, random.random(4000) < 1 / 3, right)
    fresh = random.uniform(1 / 3, 1, 100_000)
    cut = cutoff(cutoffs(sure, agrees, agreement(SHAPE, noise)), target, fresh)
    if cut is None:  # hardly any are so sure, and a noisy table cannot vouch for a few
        assert target > (0.9 if noise else 0.97)
        return
    held = fresh >= cut
    assert (random.random(100_000) < fresh)[held].mean() >= target - 0.01  # the table's mistakes are not the answers'
    best = 2 * target - 1  # the mean of what lies above it is the target
    assert held.mean() >= (0.3 if noise else 0.6) * (1 - max(best, 1 / 3)) / (2 / 3)


def test_where_nothing_is_sure_enough_nothing_is_answered() -> None:
    random = np.random.default_rng(0)
    sure = random.random(500)
    assert cutoffs(sure, random.random(500) < 0.4, CLEAN) == ()
    assert cutoff((), 0.8, random.random(500)) is None
    assert cutoffs(np.zeros(0), np.zeros(0, dtype=bool), CLEAN) == ()


def test_few_rows_promise_nothing_and_more_no_more_than_they_expect() -> None:
    assert cutoffs(np.linspace(0.6, 0.9, 8), np.ones(8, dtype=bool), CLEAN) == ()
    few, many = (cutoffs(np.linspace(0.6, 0.9, n), np.ones(n, dtype=bool), CLEAN) for n in (30, 3000))
    assert few == ()  # all were right, and the twenty surest expect five of six to be, but they are few
    assert [each.precision for each in many] == [0.8, 0.85]
    given = (np.linspace(0.6, 0.9, 3000) >= many[0].threshold).sum()
    assert many[0].margin == pytest.approx(np.sqrt(0.8 * 0.2 / given))
    assert many[0].threshold == pytest.approx(0.7, abs=0.02)  # half of the way down the mean is 0.8


@given(
    sure=st.lists(st.floats(0, 1), max_size=40).map(np.array),
    fitted=st.floats(0, 1),
    wanted=st.floats(0.5, 0.9),
    margin=st.sampled_from([0.0, 0.05]),
)
def test_the_answers_given_expect_the_precision_and_the_margin_of_themselves(
    sure: np.ndarray, fitted: float, wanted: float, margin: float
) -> None:
    cut = cutoff([Cutoff(1.0, fitted, margin)], wanted, sure)
    assert cut is not None
    assert cut >= fitted
    held = sure[sure >= cut]
    assert not len(held) or held.mean() >= wanted + margin - 1e-9
    deeper = [lower for lower in sure if fitted <= lower < cut]
    assert all(sure[sure >= lower].mean() < wanted + margin + 1e-9 for lower in deeper)  # no more could be given


def test_gaps_that_are_harder_than_what_was_tried_ask_for_more() -> None:
    random = np.random.default_rng(0)
    tried = np.where(random.random(4000) < 0.5, random.uniform(0.98, 1, 4000), random.uniform(1 / 3, 1, 4000))
    fitted = cutoffs(tried, random.random(4000) < tried, CLEAN)  # half were told by other rows
    hard = random.uniform(1 / 3, 1, 100_000)  # none is
    right = random.random(100_000) < hard
    lax, cut = cutoff(fitted, 0.95, tried), cutoff(fitted, 0.95, hard)
    assert lax is not None
    assert cut is not None
    assert right[hard >= lax].mean() < 0.93
    assert 0.95 < right[hard >= cut].mean() < 0.965


def test_what_a_cell_lists_itself_has_no_say_in_its_answer() -> None:
    random = np.random.default_rng(0)
    products, read = np.repeat(np.arange(40), 3), random.dirichlet(np.ones(3), 120)
    labels = np.where(random.random(120) < 0.3, -1, products % 3)
    noise = word_noise(SHAPE, labels, products)
    _, sure, word = shipped_answers(SHAPE, read, Calibration(), products, labels)
    for place in range(120):
        emptied = labels.copy()
        emptied[place] = -1
        others = of_siblings(emptied, products)
        photos = fused(read, products, multi_valued=False)
        gap = with_word(photos, listed_values(SHAPE, others), noise, multi_valued=False)
        assert gap[place].max() == pytest.approx(sure[place])
        assert word[place] == others[place]


def test_certainty_that_the_table_contradicts_is_not_believed() -> None:
    random = np.random.default_rng(0)
    sure = random.uniform(0.95, 1, 200)
    assert cutoffs(sure, random.random(200) < 0.5, CLEAN) == ()


@given(noise=st.floats(0, 0.5), multi=st.booleans(), seed=st.integers(0, 99))
def test_taking_the_noise_off_undoes_putting_it_on(noise: float, multi: bool, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(5, 3)) * 3
    noisy = probabilities(logits, Calibration(1.0, noise), multi_valued=multi)
    clean = probabilities(logits, Calibration(1.0, 0.0), multi_valued=multi)
    assert np.allclose(without_noise(noisy, Calibration(1.0, noise), multi_valued=multi), clean, atol=1e-9)


def test_photos_of_one_product_answer_together() -> None:
    read = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    together = fused(read, np.array([7, 7, 3]), multi_valued=False)
    assert np.allclose(together.sum(axis=1), 1)
    assert np.array_equal(together[0], together[1])
    assert together[0].argmax() == 0
    assert np.allclose(together[2], read[2])
    yes = fused(np.array([[0.9, 0.1], [0.5, 0.1]]), np.array([0, 0]), multi_valued=True)
    assert yes[0] == pytest.approx([0.75, 0.1])


def test_an_attribute_is_the_products_where_its_photos_always_agree() -> None:
    products = np.repeat(np.arange(20), 3)
    assert of_product(products % 4, products)
    assert not of_product(np.arange(60) % 4, products)
    assert not of_product(np.where(np.arange(60) < 15, 1, -1), products)  # too few to tell


def test_slips_do_not_make_it_a_matter_of_the_photo() -> None:
    random = np.random.default_rng(0)
    products = np.repeat(np.arange(400), 2)
    slipped = np.where(random.random(800) < 0.04, random.integers(0, 4, 800), products % 4)
    assert of_product(slipped, products)
    varied = np.where(random.random(800) < 0.1, random.integers(0, 4, 800), products % 4)
    assert not of_product(varied, products)


def test_the_word_of_a_products_other_rows_is_worth_what_the_table_shows() -> None:
    random = np.random.default_rng(0)
    products = np.repeat(np.arange(2000), 2)
    slipped = np.where(random.random(4000) < 0.1, random.integers(0, 3, 4000), products % 3)
    noise = word_noise(SHAPE, np.where(random.random(4000) < 0.3, -1, slipped), products)
    assert noise == pytest.approx(0.1, abs=0.015)  # though of two cells either may be the wrong one
    assert word_noise(SHAPE, products % 3, products) < 0.001
    assert word_noise(SHAPE, np.arange(3), np.arange(3)) == pytest.approx(0.5)  # nobody has tried it
    assert word_noise(SHAPE, np.full(3, -1), np.arange(3)) == 1.0
    read = np.array([[0.2, 0.5, 0.3]])
    assert with_word(read, np.array([[True, False, False]]), 1.0, multi_valued=False) == pytest.approx(read)
    assert with_word(read, np.array([[True, False, False]]), 0.0, multi_valued=False).tolist() == [[1.0, 0.0, 0.0]]
    assert with_word(read, np.zeros((1, 3), dtype=bool), 0.1, multi_valued=False) == pytest.approx(read)
    yes = with_word(np.array([[0.5, 0.5, 0.9]]), np.array([[True, False, False]]), 0.2, multi_valued=True)
    assert yes == pytest.approx(np.array([[0.9, 0.1, 0.5]]))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-2, 3)), max_size=30))
def test_siblings_speak_where_all_the_others_say_the_same(cells: list[tuple[int, int]]) -> None:
    products, labels = (
        np.array(column, dtype=np.int64) for column in (zip(*cells, strict=True) if cells else ((), ()))
    )
    found = of_siblings(labels, products)
    for place, label in enumerate(found):
        others = (cell for at, cell in enumerate(cells) if at != place)
        said = {other for mine, other in others if mine == products[place] and other >= 0}
        assert label == (said.pop() if len(said) == 1 else -1)


def test_the_least_sure_value_of_several_decides() -> None:
    shown, sure = answers(COLOUR, np.array([[0.9, 0.6, 0.2]]))
    assert (shown.tolist(), sure.tolist()) == ([[True, True, False]], [0.6])
    shown, sure = answers(SHAPE, np.array([[0.1, 0.7, 0.2]]))
    assert (shown.tolist(), sure.tolist()) == ([[False, True, False]], [0.7])


def test_what_a_noisy_table_disagrees_in_is_no_fault_of_the_answers() -> None:
    for attribute, noise, expected in ((SHAPE, 0.3, (0.8, 0.1)), (COLOUR, 0.2, (0.9**3, 0.9**2 * 0.1))):
        table = agreement(attribute, noise)
        assert (table.right, table.wrong) == pytest.approx(expected)
    assert float(true_precision(0.95, Agreement(right=0.95, wrong=0.05))) == pytest.approx(1.0)
    assert float(true_precision(0.5, CLEAN)) == 0.5


@pytest.mark.parametrize(("values", "noise"), [(2, 0.0), (12, 0.04), (12, 0.1), (30, 0.04)])
def test_a_table_that_says_less_promises_no_more(values: int, noise: float) -> None:
    """Of 300 answers that claim .97 and more .85 are right: however noisy the table, .95 is hardly ever promised."""
    random = np.random.default_rng(0)
    tags = Attribute(column="tags", values=tuple(f"tag {number}" for number in range(values)), separator="|")
    table, promised = agreement(tags, noise), 0
    for _ in range(100):
        right = random.random(300) < 0.85
        agrees = random.random(300) < np.where(right, table.right, table.wrong)
        promised += any(each.precision >= 0.95 for each in cutoffs(random.uniform(0.97, 1, 300), agrees, table))
    assert promised <= 25


@pytest.mark.parametrize(("values", "noise"), [(4, 0.04), (12, 0.04), (12, 0.02)])
def test_slips_in_sets_of_many_values_are_no_fault_of_the_answers_either(values: int, noise: float) -> None:
    random = np.random.default_rng(0)
    tags = Attribute(column="tags", values=tuple(f"tag {number}" for number in range(values)), separator="|")
    true = random.random((4000, values)) < 0.3
    cells = np.where(random.random(true.shape) < noise, random.random(true.shape) < 0.5, true)
    known = cells.any(axis=1)
    logits = np.where(true, 8.0, -8.0) + random.normal(size=true.shape)  # always right
    calibration = fit_calibration(logits[known], cells[known], multi_valued=True)
    read = probabilities(logits, calibration, multi_valued=True)
    shown, sure, _ = shipped_answers(tags, read, calibration, None)
    table = agreement(tags, calibration.noise)
    agrees = (shown == cells).all(axis=1)[known]
    assert float(true_precision(agrees.mean(), table)) == pytest.approx(1.0, abs=0.01)
    assert [each.precision for each in cutoffs(sure[known], agrees, table)] == [*TARGETS]


def test_answers_that_are_equally_sure_are_given_together_or_not_at_all() -> None:
    right = np.arange(200) < 100
    assert cutoffs(np.ones(200), right, CLEAN) == ()
    sure = np.where(np.arange(200) < 60, 0.99, 0.9)
    assert {each.threshold for each in cutoffs(sure, right, CLEAN)} == {0.99}
