import pytest
import torch
from torch import nn

from facetclip.config import Optimizer
from facetclip.optimizers import Muon, build_optimizer, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_vectors_scalars_and_embeddings_do_not_decay() -> None:
    module = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "linear": nn.Linear(4, 3), "norm": nn.LayerNorm(3)})
    decayed, rest = build_optimizer(module, Optimizer(weight_decay=0.1)).param_groups
    assert [weight.shape for weight in decayed["params"]] == [(3, 4)]
    assert len(rest["params"]) == 4
    assert rest["weight_decay"] == 0


def test_locked_weights_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    optimizer = build_optimizer(module, Optimizer())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_outside_the_matrices_muon_is_adamw() -> None:
    torch.manual_seed(1)
    ours, theirs = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))
    muon = Muon([{"params": [ours], "matrices": False, "weight_decay": 0.1, "lr": 0.01}], betas=(0.9, 0.98))
    adam = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        ours.grad = torch.randn(7)
        assert ours.grad is not None
        theirs.grad = ours.grad.clone()
        muon.step()
        adam.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_every_rule_lowers_a_small_regression() -> None:
    for name in ("adamw", "muon", "sgd"):
        torch.manual_seed(0)
        module, inputs = nn.Linear(6, 6), torch.randn(64, 6)
        optimizer = build_optimizer(module, Optimizer(name=name, lr=0.02, weight_decay=0.0))  # type: ignore[arg-type]  # a literal
        losses = []
        for _ in range(60):
            loss = (module(inputs) - inputs).square().mean()
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < 0.7 * losses[0], name
