"""Every way to fine-tune: stopped and resumed, stored and read back, it says the same."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fleet import launch_fleet
from small_shop import make_labels, make_reader, make_shards
from test_extract import Launched
from test_trainer import make_run
from transformers import SiglipConfig, SiglipModel

from facetclip import extract as extraction
from facetclip import features, feed
from facetclip.batches import PixelReader
from facetclip.config import RunConfig, Tuning
from facetclip.errors import UserError
from facetclip.extract import FromShards, extract
from facetclip.features import FeatureReader
from facetclip.feed import check_run
from facetclip.index import open_index
from facetclip.launch import make_accelerator
from facetclip.model import AttributeReader, load_model, save_model
from facetclip.optimizers import build_optimizer
from facetclip.runs import fit, run_training
from facetclip.scores import score_rows
from facetclip.trainer import Trainer
from facetclip.tuning import TEXT, blend, layer_depths, plain_weights, rate_factors, tune
from facetclip.validation import judge, logits_of

MODES: dict[str, dict[str, Any]] = {
    "zero_shot": {},
    "probe": {},
    "prompt": {},
    "prompt of each value": {"mode": "prompt", "per_value": True, "context": 2},
    "lora": {"rank": 2},
    "image_tower": {},
    "last_blocks": {"blocks": 1},
    "full": {"layer_decay": 0.7},
}
EVERY = [pytest.param({"mode": name, **spec}, id=name) for name, spec in MODES.items()]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and a model folder to start from."""
    folder = tmp_path_factory.mktemp("shop")
    index = make_shards(folder / "shards", 80, validation=True)
    save_model(make_reader(3, index.schema), folder / "start")
    return folder


def run_of(shop: Path, out: Path, tuning: dict[str, Any], **changes: Any) -> RunConfig:
    sections: dict[str, Any] = {
        "model": {"start": str(shop / "start"), "new": None},
        "train": {"steps": 8, "batch": 16, "average": 0.5, "log_every": 4},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "validation": {"every": 4},
        "checkpoint": {"every": 4},
        "output": {"folder": str(out)},
        "tuning": tuning,
    }
    return make_run(shop, **{name: sections.get(name, {}) | changes.get(name, {}) for name in {*sections, *changes}})


def trained(run: RunConfig) -> Trainer:
    trainer = Trainer(run, make_accelerator())
    fit(trainer)
    return trainer


class Stopped(Exception):
    pass


def stop_at_first_save(trainer: Trainer) -> None:
    save = trainer.save

    def save_and_stop() -> None:
        save()
        raise Stopped

    trainer.save = save_and_stop  # type: ignore[method-assign]  # a kill just after a checkpoint


def scores_of(model: Path, trainer: Trainer) -> dict[str, np.ndarray]:
    return score_rows(load_model(str(model)), trainer.index, trainer.index.rows("test")).probabilities


@pytest.mark.parametrize("tuning", EVERY)
def test_train_stop_resume_reload_and_extract_give_the_same_scores(
    shop: Path, tmp_path: Path, tuning: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(run_of(shop, tmp_path / "whole", tuning))
    stopped = Trainer(run_of(shop, tmp_path / "parts", tuning), make_accelerator())
    stop_at_first_save(stopped)
    if tuning["mode"] != "zero_shot":
        with pytest.raises(Stopped):
            stopped.train()
        assert stopped.state.step == 4
    resumed = trained(run_of(shop, tmp_path / "parts", tuning))
    assert resumed.state == whole.state
    ours, theirs = (scores_of(tmp_path / name / "model", whole) for name in ("whole", "parts"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)

    # what was written is what was trained: adapters merged, a learned context become a classifier
    rows = whole.index.rows("validation")
    best, last = load_model(str(tmp_path / "whole" / "best")), whole.state.best_step == whole.state.step
    with whole.average.applied():
        in_memory = logits_of(whole.reader, whole.inputs, rows)
    if last:
        assert torch.allclose(logits_of(best, whole.inputs, rows), in_memory, atol=1e-4)

    monkeypatch.setattr(extraction, "_processes", lambda: Launched(0, 1))
    extract(str(tmp_path / "whole" / "model"), FromShards(shop / "shards"), tmp_path / "scores")
    lines = [line for path in sorted((tmp_path / "scores").glob("part-*")) for line in pq.read_table(path).to_pylist()]
    everything = score_rows(load_model(str(tmp_path / "whole" / "model")), whole.index, np.arange(len(whole.index)))
    attributes = len(whole.index.schema.names)
    for place, line in enumerate(lines):
        expected = everything.probabilities[line["attribute"]][place // attributes]
        np.testing.assert_allclose(line["probabilities"], expected, atol=1e-5)


@pytest.mark.parametrize("tuning", EVERY)
def test_the_plain_weights_of_a_trained_model_read_as_it_does(shop: Path, tmp_path: Path, tuning: dict[str, Any]):
    trainer = Trainer(run_of(shop, tmp_path / "run", tuning), make_accelerator())
    trainer.train()
    reader = trainer.reader.eval()
    stored = load_model(str(save_model(reader, tmp_path / "stored", weights=plain_weights(reader))))
    rows = trainer.index.rows("test")
    pixels = PixelReader(trainer.index, reader.preprocessing.size, "pad").pixels(rows)
    with torch.no_grad():
        for ours, theirs in zip(reader(pixels).logits, stored(pixels).logits, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


MOVES = {
    "zero_shot": set(),
    "probe": {"classifier", "bias"},
    "prompt": {"context", "bias"},
    "lora": {"lora_A", "lora_B", "bias"},
    "image_tower": {"vision_model", "visual_projection", "logit_scale", "bias"},
    "last_blocks": {"layers.1.", "projection", "final_layer_norm", "post_layernorm", "logit_scale", "bias"},
}


@pytest.mark.parametrize("mode", MOVES)
def test_only_what_a_mode_names_is_trained(shop: Path, tmp_path: Path, mode: str) -> None:
    trainer = Trainer(run_of(shop, tmp_path / "run", MODES[mode] | {"mode": mode}), make_accelerator())
    moving = {name for name, weight in trainer.reader.named_parameters() if weight.requires_grad}
    assert all(any(part in name for part in MOVES[mode]) for name in moving), moving
    assert all(any(part in name for name in moving) for part in MOVES[mode]), moving
    before = {name: weight.detach().clone() for name, weight in trainer.reader.named_parameters()}
    trainer.train()
    for name, weight in trainer.reader.named_parameters():
        assert name in moving or torch.equal(weight, before[name]), name
    assert mode == "zero_shot" or any(
        not torch.equal(weight, before[name]) for name, weight in trainer.reader.named_parameters()
    )


def make_siglip(shop: Path, out: Path) -> None:
    """A SigLIP of random weights with the words of the shop's start."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = load_model(str(shop / "start")).tokenizer
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    shape = SiglipConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8})  # type: ignore[arg-type]  # dicts are taken
    SiglipModel(shape).save_pretrained(out)
    tokenizer.save_pretrained(out)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("tuning", EVERY)
def test_every_weight_that_trains_gets_a_gradient(
    shop: Path, tmp_path: Path, tuning: dict[str, Any], family: str
) -> None:
    """Processes wait for each other's gradient of every one, so one that is not used ends a launch in an error."""
    if tuning["mode"] == "zero_shot" or (tuning["mode"] == "prompt" and family == "siglip"):
        pytest.skip("trains nothing, or is refused")
    start = shop / "start"
    if family == "siglip":
        start = tmp_path / "siglip"
        make_siglip(shop, start)
    run = run_of(shop, tmp_path / "run", tuning, model={"start": str(start)})
    trainer = Trainer(run, make_accelerator())
    (planned,) = trainer.feed.planned(0, 1)
    trainer.reader.train()
    trainer.gradients.of(trainer.feed.portion(trainer.inputs, planned))
    unused = [
        name for name, weight in trainer.reader.named_parameters() if weight.requires_grad and weight.grad is None
    ]
    assert unused == []


def test_a_probe_starts_where_zero_shot_stands(shop: Path) -> None:
    zero_shot, probe = (load_model(str(shop / "start")) for _ in range(2))
    tune(probe, Tuning(mode="probe"))
    features = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    with torch.no_grad():
        for ours, theirs in zip(probe.eval().logits(features), zero_shot.logits(features), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_fresh_adapter_changes_nothing(shop: Path) -> None:
    plain, adapted = (load_model(str(shop / "start")) for _ in range(2))
    tune(adapted, Tuning(mode="lora"))
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        for ours, theirs in zip(adapted.eval()(pixels).logits, plain(pixels).logits, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", ["probe", "prompt"])
def test_cached_features_give_the_gradient_of_the_photos(shop: Path, tmp_path: Path, mode: str) -> None:
    gradients = []
    for cache in (True, False):
        still = {"flip": False, "smallest_crop": 1.0, "brightness": 0.0}
        run = run_of(shop, tmp_path / str(cache), {"mode": mode, "cache": cache}, augment=still)
        trainer = Trainer(run, make_accelerator())
        assert isinstance(trainer.inputs, FeatureReader) is cache
        (planned,) = trainer.feed.planned(0, 1)
        trainer.reader.train()
        trainer.gradients.of(trainer.feed.portion(trainer.inputs, planned))
        gradients.append({n: w.grad for n, w in trainer.reader.named_parameters() if w.grad is not None})
    cached, fresh = gradients
    assert cached
    assert cached.keys() == fresh.keys()
    for name, gradient in cached.items():
        assert (gradient - fresh[name]).abs().max() <= 1e-5, name


def test_features_that_one_process_alone_finds_are_computed_by_all(shop: Path, tmp_path: Path) -> None:
    runs = [
        run_of(shop, tmp_path / name, {"mode": "probe"}, data={"features": str(tmp_path / name / "features")})
        for name in ("one", "other")
    ]
    (alone,) = (Trainer(run, make_accelerator()).inputs for run in runs[:1])
    assert isinstance(alone, FeatureReader)

    def work() -> None:
        inputs = Trainer(runs[int(os.environ["RANK"])], make_accelerator()).inputs
        assert isinstance(inputs, FeatureReader)
        assert torch.allclose(inputs.features, alone.features, atol=1e-6)

    ended = launch_fleet(tmp_path / "fleet", 2, work, seconds=30)
    assert ended.codes == [0, 0], ended.errors


def test_features_are_computed_once_for_all_runs_and_anew_for_another_model(shop: Path, tmp_path: Path) -> None:
    data = {"data": {"shards": str(shop / "shards"), "features": str(tmp_path / "features")}}
    first = Trainer(run_of(shop, tmp_path / "a", {"mode": "probe"}, **data), make_accelerator())
    (file,) = (tmp_path / "features").iterdir()
    written = file.stat().st_mtime_ns
    second = Trainer(run_of(shop, tmp_path / "b", {"mode": "prompt"}, **data), make_accelerator())
    assert file.stat().st_mtime_ns == written
    assert isinstance(first.inputs, FeatureReader)
    assert isinstance(second.inputs, FeatureReader)
    assert torch.equal(first.inputs.features, second.inputs.features)
    save_model(make_reader(4, first.index.schema), tmp_path / "other")
    other = data | {"model": {"start": str(tmp_path / "other"), "new": None}}
    Trainer(run_of(shop, tmp_path / "c", {"mode": "probe"}, **other), make_accelerator())
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_the_text_tower_runs_once_where_it_is_locked(shop: Path) -> None:
    reader = load_model(str(shop / "start"))
    tune(reader, Tuning(mode="image_tower"))
    assert reader.text_locked
    assert not any(w.requires_grad for n, w in reader.named_parameters() if n.startswith(TEXT))
    reader.train()
    once = reader.embed_prompts()
    reader.eval()
    reader.train()
    assert reader.embed_prompts() is once


def test_deeper_layers_have_lower_rates(shop: Path) -> None:
    reader = load_model(str(shop / "start"))
    depths = layer_depths(reader)
    assert depths["clip.visual_projection.weight"] == 0
    assert depths["clip.vision_model.encoder.layers.1.mlp.fc1.weight"] == 1
    assert depths["clip.vision_model.encoder.layers.0.mlp.fc1.weight"] == 2
    assert depths["clip.vision_model.embeddings.patch_embedding.weight"] == 3
    factors = rate_factors(reader, 0.5)
    assert factors["clip.text_model.embeddings.token_embedding.weight"] == 0.125
    run = make_run(shop)
    groups = build_optimizer(reader, run.optimizer, factors).param_groups
    assert {group["factor"] for group in groups} == {1.0, 0.5, 0.25, 0.125}


def test_a_blend_lies_between_and_its_ends_are_both(shop: Path) -> None:
    start, tuned = make_reader(1).state_dict(), make_reader(2).state_dict()
    for alpha, end in ((0.0, start), (1.0, tuned)):
        assert all(
            torch.allclose(weight.float(), end[name].float()) for name, weight in blend(start, tuned, alpha).items()
        )
    middle = blend(start, tuned, 0.25)["clip.visual_projection.weight"]
    by_hand = 0.75 * start["clip.visual_projection.weight"] + 0.25 * tuned["clip.visual_projection.weight"]
    assert torch.allclose(middle, by_hand)


def test_the_blend_and_the_calibration_are_chosen_on_the_validation_split(shop: Path, tmp_path: Path) -> None:
    trainer = Trainer(run_of(shop, tmp_path / "run", {"mode": "full"}), make_accelerator())
    result, judgement = fit(trainer)
    model = load_model(str(tmp_path / "run" / "model"))
    assert judgement is not None
    assert judgement.loss is not None
    assert judgement.loss <= result.loss + 1e-6  # alpha 1 is among the choices
    assert model.card.metrics["blend"] in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert model.calibration == judgement.calibration
    labels = trainer.index.label_matrix(trainer.index.rows("validation"))
    assert set(model.calibration) == {
        name for place, name in enumerate(trainer.index.schema.names) if (labels[:, place] >= 0).any()
    }


@pytest.mark.parametrize("mode", ["probe", "prompt", "full"])
def test_a_training_that_only_harmed_ships_its_start(shop: Path, tmp_path: Path, mode: str) -> None:
    run = run_of(shop, tmp_path / "run", {"mode": mode}, optimizer={"lr": 1.0, "warmup_steps": 0})
    trainer = Trainer(run, make_accelerator())
    rows = trainer.index.rows("validation")
    start = load_model(str(shop / "start"))
    labels = trainer.index.label_matrix(rows)
    zero_shot = judge(logits_of(start, trainer.inputs, rows).numpy(), labels, trainer.index.schema)
    _, judgement = fit(trainer)
    assert judgement is not None
    assert judgement.loss is not None
    assert zero_shot.loss is not None
    assert judgement.loss <= zero_shot.loss + 1e-6


def refuse(shop: Path, tmp_path: Path, message: str, tuning: dict[str, Any], **changes: Any) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(run_of(shop, tmp_path / "run", tuning, **changes), make_accelerator())


def test_settings_that_do_not_fit_are_refused_with_advice(shop: Path, tmp_path: Path) -> None:
    contrast = {"objective": {"contrastive": 1.0}}
    refuse(shop, tmp_path, "'probe' trains no tower", {"mode": "probe"}, **contrast)
    refuse(shop, tmp_path, "micro_batch", {"mode": "full"}, **contrast, train={"micro_batch": 4})
    for place in ("nowhere", "mlp", "layer_norm1"):
        told = f"no linear layer of the model is called {place}; those are called fc1, fc2, k_proj, out_proj, q_proj"
        refuse(shop, tmp_path, told, {"mode": "lora", "places": ["q_proj", place]})
    refuse(shop, tmp_path, "leaves room for", {"mode": "prompt", "context": 40})
    refuse(shop, tmp_path, "sampling.over: no attribute 'size'", {"mode": "full"}, sampling={"over": ["size"]})
    refuse(
        shop, tmp_path, "objective.weights: no attribute 'size'", {"mode": "full"}, objective={"weights": {"size": 2}}
    )
    titles = {"objective": {"contrastive": 1.0, "captions": "titles"}}
    with pytest.raises(UserError, match="title"):
        trained(run_of(shop, tmp_path / "titled", {"mode": "full"}, **titles))


def test_a_run_that_could_learn_nothing_or_not_evenly_is_refused(shop: Path, tmp_path: Path) -> None:
    nothing = {"weights": dict.fromkeys(("category", "sleeve", "colour"), 0.0)}
    refuse(shop, tmp_path, "every attribute counts 0", {"mode": "full"}, objective=nothing)
    run, index = run_of(shop, tmp_path / "run", {}), open_index(shop / "shards")
    alone = run.model_copy(update={"train": run.train.model_copy(update={"batch": 1})})
    with pytest.raises(UserError, match="2 processes need one photo each"):
        check_run(alone, index, 2)
    uneven = run.model_copy(update={"train": run.train.model_copy(update={"batch": 5, "micro_batch": 2})})
    check_run(uneven, index, 1)
    with pytest.raises(UserError, match="unequally many parts"):
        check_run(uneven, index, 2)


def test_photos_without_a_title_are_no_pairs_of_each_other(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "captions_of", lambda index, rows, kind, schema: ["red shirt", ""] * (len(rows) // 2))
    trainer = Trainer(run_of(shop, tmp_path / "run", {}, objective={"contrastive": 1.0}), make_accelerator())
    (planned,) = trainer.feed.planned(0, 1)
    portion = trainer.feed.portion(trainer.inputs, planned)
    assert portion.groups is not None
    assert portion.groups.tolist() == [0, -1] * 8
    assert portion.captioned == 8


def test_the_loss_of_a_guess_knows_how_often_each_value_is_drawn(tmp_path: Path) -> None:
    """A model that answers the same whatever it sees can do so well on skewed values; that is no learning."""
    rare = np.where(np.arange(80) % 20 < 2, 1, 0).astype(np.int16)
    make_shards(tmp_path / "shards", 80, labels={"category": rare})
    natural = {"sampling": {"strategy": "natural"}, "objective": {"weights": {"sleeve": 0.0, "colour": 0.0}}}
    run = make_run(tmp_path, **natural)
    share = rare[open_index(tmp_path / "shards").rows("train")].mean()
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert Trainer(run, make_accelerator()).feed.chance == pytest.approx(entropy, abs=0.02)


def test_features_of_another_precision_are_not_taken_for_these(shop: Path) -> None:
    reader, index = load_model(str(shop / "start")), open_index(shop / "shards")
    keys = {features._key(reader, index, index.rows("train"), precision) for precision in ("no", "bf16", "fp16")}
    assert len(keys) == 3


def test_a_batch_whose_labels_weigh_nothing_teaches_nothing(shop: Path, tmp_path: Path) -> None:
    """Here photo by photo: some carry no label but of an attribute that counts 0."""
    weights = {"weights": {"category": 0.0, "colour": 0.0}}
    trained(run_of(shop, tmp_path / "run", {"mode": "probe"}, train={"batch": 1}, objective=weights))


@pytest.mark.parametrize("mode", ["full", "zero_shot"])
def test_weights_of_another_mode_are_refused_even_where_the_change_is_let_through(
    shop: Path, tmp_path: Path, mode: str
) -> None:
    trained(run_of(shop, tmp_path / "run", {"mode": "probe"}))
    other = Trainer(run_of(shop, tmp_path / "run", {"mode": mode}), make_accelerator())
    with pytest.raises(UserError, match="its checkpoint trained other weights"):
        fit(other, ["tuning.mode"])


@pytest.mark.parametrize(
    ("tuning", "changes", "allowed", "told"),
    [
        ({"mode": "lora"}, {"tuning": {"rank": 2}}, "tuning.rank", r"lora_A.* of \[8, 32\], where .* \[2, 32\]"),
        ({"mode": "prompt"}, {"tuning": {"context": 2}}, "tuning.context", r"context of \[4, 32\], where .* \[2, 32\]"),
        (
            {"mode": "probe"},
            {"optimizer": {"name": "muon"}},
            "optimizer.name",
            "'adamw', which 'muon' cannot go on from",
        ),
        ({"mode": "probe"}, {"optimizer": {"name": "sgd"}}, "optimizer.name", "'adamw', which 'sgd' cannot go on from"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_even_where_the_change_is_let_through(
    shop: Path, tmp_path: Path, tuning: dict[str, Any], changes: dict[str, Any], allowed: str, told: str
) -> None:
    trained(run_of(shop, tmp_path / "run", tuning))
    other = Trainer(run_of(shop, tmp_path / "run", tuning | changes.pop("tuning", {}), **changes), make_accelerator())
    with pytest.raises(UserError, match=f"its checkpoint .*{told}; take another output.folder"):
        fit(other, [allowed])


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_an_average_may_be_begun_or_dropped_on_the_way(shop: Path, tmp_path: Path, average: float) -> None:
    trained(run_of(shop, tmp_path / "run", {"mode": "probe"}, train={"average": 0.9 - average, "steps": 8}))
    run = run_of(shop, tmp_path / "run", {"mode": "probe"}, train={"average": average, "steps": 10})
    trainer = Trainer(run, make_accelerator())
    fit(trainer, ["train.average", "train.steps", "optimizer.lr", "optimizer.warmup_steps"])
    assert trainer.state.step == 10


def test_answers_that_are_no_numbers_stop_a_run_in_one_line(shop: Path, tmp_path: Path) -> None:
    run = run_of(shop, tmp_path / "run", {"mode": "probe"}, train={"average": 0.0})
    trainer = Trainer(run, make_accelerator())
    with torch.no_grad():
        trainer.reader.classifier.fill_(math.nan)  # type: ignore[union-attr]  # a probe has one
    with pytest.raises(UserError, match="answers are no numbers"):
        trainer.validate()


def test_an_unlabelled_validation_split_is_said_and_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    labels = make_labels(40)
    for column in labels.values():
        column[np.arange(40) % 4 == 3] = -1  # the validation split
    index = make_shards(tmp_path / "shards", 40, labels=labels, validation=True)
    save_model(make_reader(3, index.schema), tmp_path / "start")
    outcome = run_training(run_of(tmp_path, tmp_path / "run", {"mode": "probe"}))
    assert "no label in the validation split" in capsys.readouterr().out
    model = load_model(str(outcome.model))
    assert model.calibration == {}
    assert model.card.metrics == {"step": 8, "blend": 1.0}


def learns(reader: AttributeReader) -> bool:
    return any(weight.requires_grad for weight in reader.parameters())


def test_zero_shot_keeps_the_start_and_only_calibrates_it(shop: Path, tmp_path: Path) -> None:
    trainer = trained(run_of(shop, tmp_path / "run", {"mode": "zero_shot"}))
    assert not learns(trainer.reader)
    start, model = load_model(str(shop / "start")), load_model(str(tmp_path / "run" / "model"))
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in start.state_dict().items())
    assert model.calibration


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_patience_stops_a_run_that_gets_no_better(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float
) -> None:
    useless = {"steps": 60, "patience": 2, "average": average}
    rare = {"optimizer": {"lr": 1e-12}, "validation": {"every": 2}, "checkpoint": {"every": 100}}
    run = run_of(shop, tmp_path / "run", {"mode": "full"}, train=useless, **rare)
    trainer = trained(run)
    assert trainer.state.step < 60
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == f"step-{trainer.state.step:08d}"
    assert trainer.state.step - trainer.state.best_step == 4
    monkeypatch.setattr(Trainer, "train_step", None)
    again = trained(run)  # resuming does not train on
    assert again.state.step == trainer.state.step


def test_a_catalog_without_a_validation_split_is_neither_calibrated_nor_blended(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards", 40)
    save_model(make_reader(3, index.schema), tmp_path / "start")
    trainer = trained(run_of(tmp_path, tmp_path / "run", {}))
    best, shipped = load_model(str(tmp_path / "run" / "best")), load_model(str(tmp_path / "run" / "model"))
    assert shipped.calibration == {}
    assert trainer.state.best_step == trainer.steps
    assert all(torch.equal(weight, best.state_dict()[name]) for name, weight in shipped.state_dict().items())
