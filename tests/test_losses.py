import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from facetclip.losses import AttributeObjective, Pairing, attribute_losses, contrastive_loss

Form = Literal["softmax", "sigmoid"]


def plainly(multi_valued: list[bool], **settings: object) -> AttributeObjective:
    return AttributeObjective(tuple(multi_valued), (1.0,) * len(multi_valued), **settings)  # type: ignore[arg-type]  # the test's own


def test_unlabelled_and_not_applicable_give_neither_loss_nor_gradient() -> None:
    logits = [torch.randn(5, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)]
    labels = torch.tensor([[0, -1], [2, 1], [-2, -1], [-1, -2], [1, -1]])
    sums = attribute_losses(logits, labels, plainly([False, False]))
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
        objective = plainly([multi])
        total = attribute_losses([logits], torch.full((4, 1), -1), objective).sum()
        total.backward()
        assert total.item() == objective.count(np.full((4, 1), -1)) == 0
        assert logits.grad is not None
        assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("multi", [False, True])
def test_parts_of_a_batch_add_up_to_the_batch(multi: bool) -> None:
    logits, labels, objective = torch.randn(9, 4), torch.randint(-2, 4, (9, 1)), plainly([multi], smoothing=0.1)
    whole = attribute_losses([logits], labels, objective)
    parts = sum(attribute_losses([logits[part]], labels[part], objective) for part in (slice(0, 2), slice(2, 9)))
    assert torch.allclose(whole, torch.as_tensor(parts))


def test_each_of_several_values_is_a_question_of_its_own() -> None:
    logits = torch.tensor([[1.5, -0.5, 0.25]])
    loss = attribute_losses([logits], torch.tensor([[0b101]]), plainly([True]))
    by_hand = -math.fsum(math.log(1 / (1 + math.exp(-x))) for x in (1.5, 0.5, 0.25))
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_a_weight_multiplies_an_attribute_and_its_count() -> None:
    logits, labels = [torch.randn(3, 2), torch.randn(3, 3)], torch.tensor([[0, 2], [1, -1], [-1, 0]])
    plain = attribute_losses(logits, labels, plainly([False, False]))
    weighted = AttributeObjective((False, False), (1.0, 0.25))
    assert torch.allclose(attribute_losses(logits, labels, weighted), plain * torch.tensor([1.0, 0.25]))
    assert weighted.count(labels.numpy()) == 2 + 0.25 * 2


def test_chance_is_the_least_loss_of_an_answer_that_sees_no_photo() -> None:
    """Whatever is added to the logits in training, and however skewed the values are: their entropy."""
    labels = np.array([[0, 0b01]] * 9 + [[1, 0b11]] * 3 + [[-1, -1]])
    priors = [torch.tensor([0.75, 0.25]).log(), torch.tensor([30.0, math.log(1 / 3)])]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    for shifts in (None, tuple(priors)):
        objective = AttributeObjective((False, True), (1.0, 1.0), noise=0.1, shifts=shifts)
        assert objective.chance(priors, labels) == pytest.approx(entropy, rel=1e-5)
    assert AttributeObjective((False, True), (0.0, 0.0)).chance(priors, labels) == 0.0


def test_what_is_added_to_the_logits_follows_them_to_their_device() -> None:
    logits, labels = torch.zeros(2, 3, device="meta"), torch.zeros(2, 1, dtype=torch.int64, device="meta")
    shifted = plainly([False], shifts=(torch.zeros(3),))
    assert attribute_losses([logits], labels, shifted).device.type == "meta"


def test_logit_adjustment_lets_the_likelihood_and_not_the_prior_decide() -> None:
    """Where photos say nothing, the adjusted model must end with equal logits, however skewed the labels are."""
    labels = torch.tensor([[0]] * 90 + [[1]] * 10)
    shifts = (torch.tensor([0.9, 0.1]).log(),)
    logits = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        attribute_losses([logits.expand(100, 2)], labels, plainly([False], shifts=shifts)).sum().backward()
        optimizer.step()
    assert logits.detach().diff().abs().item() < 1e-3


def pairing(photos: Tensor, captions: Tensor, groups: list[int], mine: slice) -> Pairing:
    return Pairing(functional.normalize(photos), functional.normalize(captions), torch.tensor(groups), mine)


def test_different_captions_give_the_symmetric_loss_of_clip() -> None:
    photos, captions, scale = torch.randn(6, 8), torch.randn(6, 8), torch.tensor([7.0])
    both = pairing(photos, captions, list(range(6)), slice(0, 6))
    logits, places = scale * both.images @ both.captions.T, torch.arange(6)
    by_hand = (functional.cross_entropy(logits, places) + functional.cross_entropy(logits.T, places)) / 2
    ours = contrastive_loss(both, scale, torch.zeros(1), "softmax") / 6
    assert torch.allclose(ours, by_hand, atol=1e-6)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_mixed_precision_leaves_the_contrast_alone(form: Form) -> None:
    both = pairing(torch.randn(6, 8), torch.randn(6, 8), list(range(6)), slice(0, 6))
    scale, bias = torch.tensor([100.0]), torch.tensor([-10.0])
    plain = contrastive_loss(both, scale, bias, form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_loss(both, scale, bias, form), plain)


def test_the_sigmoid_form_judges_every_pair_by_itself() -> None:
    photos, captions, scale, bias = torch.randn(4, 8), torch.randn(4, 8), torch.tensor([5.0]), torch.tensor([-2.0])
    both = pairing(photos, captions, [0, 1, 2, 3], slice(0, 4))
    logits = (scale * both.images @ both.captions.T + bias).tolist()
    by_hand = math.fsum(
        math.log1p(math.exp(-logits[i][j] if i == j else logits[i][j]))
        for i, j in itertools.product(range(4), range(4))
    )
    assert contrastive_loss(both, scale, bias, "sigmoid").item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_photos_of_one_caption_are_not_driven_apart(form: Form) -> None:
    """All captions alike: with the pairs as positives, no pair pushes a photo away from the caption."""
    captions = functional.normalize(torch.ones(3, 4), dim=1)
    near, apart = captions.clone(), torch.eye(4)[:3]
    same = [
        contrastive_loss(pairing(p, captions, [0, 0, 0], slice(0, 3)), torch.tensor([10.0]), torch.zeros(1), form)
        for p in (near, apart)
    ]
    assert same[0] <= same[1] + 1e-5
    if form == "softmax":  # nothing to tell apart: the loss is that of an even target, without a gradient
        assert same[0].item() == pytest.approx(3 * math.log(3), rel=1e-5)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_a_photo_without_a_caption_takes_no_part(form: Form) -> None:
    photos, captions, scale, bias = torch.randn(5, 8), torch.randn(5, 8), torch.tensor([4.0]), torch.tensor([-1.0])
    photos.requires_grad_()
    some = contrastive_loss(pairing(photos, captions, [0, -1, 1, -1, 0], slice(0, 5)), scale, bias, form)
    told = [0, 2, 4]
    alone = contrastive_loss(pairing(photos[told], captions[told], [0, 1, 0], slice(0, 3)), scale, bias, form)
    assert some.item() == pytest.approx(alone.item(), rel=1e-5)
    some.backward()
    assert photos.grad is not None
    assert photos.grad[[1, 3]].abs().max() == 0
    photos.grad = None
    none = contrastive_loss(pairing(photos, captions, [-1] * 5, slice(0, 5)), scale, bias, form)
    none.backward()
    assert none.item() == 0
    assert photos.grad is not None
    assert photos.grad.abs().max() == 0


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_the_shares_of_processes_add_up(form: Form) -> None:
    photos, captions, groups = torch.randn(6, 8), torch.randn(6, 8), [0, 1, 0, 2, 3, 1]
    whole, first, second = (
        contrastive_loss(pairing(photos, captions, groups, mine), torch.tensor([4.0]), torch.tensor([-1.0]), form)
        for mine in (slice(0, 6), slice(0, 2), slice(2, 6))
    )
    assert torch.allclose(whole, first + second, rtol=1e-5)


@pytest.mark.parametrize("multi", [False, True])
def test_a_label_that_contradicts_a_sure_model_hardly_moves_it_where_cells_may_be_wrong(multi: bool) -> None:
    label = torch.tensor([[0b10 if multi else 1]])
    pulls = {}
    for noise in (0.0, 0.1):
        for sure in (0.5, 8.0):
            logits = torch.tensor([[sure, -sure]], requires_grad=True)
            attribute_losses([logits], label, plainly([multi], noise=noise)).sum().backward()
            assert logits.grad is not None
            pulls[noise, sure] = logits.grad.abs().max().item()
    assert pulls[0.0, 8.0] > 0.99
    assert pulls[0.1, 8.0] < 0.01
    assert pulls[0.1, 0.5] > 0.5 * pulls[0.0, 0.5]


def test_the_noisy_loss_is_that_of_the_mixture() -> None:
    logits, label = torch.randn(1, 4), torch.tensor([[2]])
    told = logits.softmax(dim=1)[0, 2].item()
    loss = attribute_losses([logits], label, plainly([False], noise=0.2)).item()
    assert loss == pytest.approx(-math.log(0.8 * told + 0.2 / 4), rel=1e-5)
