import math

import torch
from torch.nn import functional

from facetclip.losses import attribute_losses


def test_unlabelled_and_not_applicable_give_neither_loss_nor_gradient() -> None:
    logits = [torch.randn(5, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)]
    labels = torch.tensor([[0, -1], [2, 1], [-2, -1], [-1, -2], [1, -1]])
    sums = attribute_losses(logits, labels, [False, False])
    sums.sum().backward()
    by_hand = functional.cross_entropy(logits[0][[0, 1, 4]], torch.tensor([0, 2, 1]), reduction="sum")
    assert torch.allclose(sums[0], by_hand)
    assert logits[0].grad is not None
    assert logits[0].grad[[2, 3]].abs().max() == 0
    assert logits[1].grad is not None
    assert logits[1].grad[[0, 2, 3, 4]].abs().max() == 0


def test_no_label_at_all_is_zero_and_not_nan() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    for multi in (False, True):
        total = attribute_losses([logits], torch.full((4, 1), -1), [multi]).sum()
        total.backward()
        assert total.item() == 0
        assert logits.grad is not None
        assert logits.grad.abs().max() == 0


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    logits, labels = torch.randn(9, 4), torch.randint(-2, 4, (9, 1))
    whole = attribute_losses([logits], labels, [False])
    parts = sum(attribute_losses([logits[part]], labels[part], [False]) for part in (slice(0, 2), slice(2, 9)))
    assert torch.allclose(whole, torch.as_tensor(parts))


def test_several_listed_values_share_the_target() -> None:
    loss = attribute_losses([torch.zeros(1, 4)], torch.tensor([[0b0011]]), [True])
    assert math.isclose(loss.item(), math.log(4), rel_tol=1e-6)
    one = torch.tensor([[2.0, 0.5, -1.0]])
    single = attribute_losses([one], torch.tensor([[1]]), [False], smoothing=0.1)
    masked = attribute_losses([one], torch.tensor([[0b010]]), [True], smoothing=0.1)
    assert torch.allclose(single, masked)
