import pytest
import torch
from torch import nn

from facetclip.averaging import MovingAverage


def test_without_a_decay_nothing_is_kept_nor_swapped() -> None:
    module = nn.Linear(2, 2)
    average = MovingAverage(module, 0.0)
    before = module.weight.detach().clone()
    average.update(1)
    with average.applied():
        assert torch.equal(module.weight, before)
    assert average.average == {}


def test_the_average_follows_the_weights_and_forgets_the_start() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 0.0)
    average = MovingAverage(module, 0.9)
    nn.init.constant_(module.weight, 1.0)
    for step in range(1, 101):
        average.update(step)
    assert average.average["weight"].item() == pytest.approx(1.0, abs=1e-3)


def test_the_weights_come_back_even_after_an_error() -> None:
    module = nn.Linear(2, 2)
    average = MovingAverage(module, 0.5)
    nn.init.ones_(module.weight)

    def fail_within() -> None:
        with average.applied():
            assert not torch.equal(module.weight, torch.ones(2, 2))
            raise KeyError

    with pytest.raises(KeyError):
        fail_within()
    assert torch.equal(module.weight, torch.ones(2, 2))


def test_a_stored_average_goes_on_where_it_was() -> None:
    module = nn.Linear(2, 2)
    one, other = MovingAverage(module, 0.9), MovingAverage(module, 0.9)
    nn.init.ones_(module.weight)
    one.update(1)
    other.load(one.average)
    for average in (one, other):
        average.update(2)
    assert torch.equal(one.average["weight"], other.average["weight"])


def test_an_average_that_was_not_kept_begins_with_the_weights_as_they_are() -> None:
    module = nn.Linear(2, 2)
    average = MovingAverage(module, 0.9)
    nn.init.ones_(module.weight)
    average.load({})
    assert torch.equal(average.average["weight"], module.weight)
    MovingAverage(module, 0.0).load(average.average)  # one that is no longer wanted is passed over


def test_locked_weights_are_not_averaged() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    assert set(MovingAverage(module, 0.9).average) == {"1.weight", "1.bias"}
