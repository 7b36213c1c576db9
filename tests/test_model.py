import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from small_shop import SHAPE
from transformers import AutoTokenizer, CLIPModel, SiglipConfig, SiglipModel

from facetclip.config import Tuning
from facetclip.errors import UserError
from facetclip.model import AttributeReader, load_model, save_model
from facetclip.schema import Schema
from facetclip.scratch import new_model
from facetclip.tuning import tune

SCHEMA = Schema.model_validate(
    {
        "columns": {"item": "item", "product": "product", "image": "image"},
        "attributes": {
            "lid": {
                "column": "lid",
                "values": ["yes", "no"],
                "prompts": {"yes": "a pot with a lid", "no": "a pot without a lid"},
            },
            "colour": {
                "column": "colour",
                "values": ["red", "blue", "green"],
                "template": "a {value} pot on white ground",
            },
        },
    }
)


PROMPTS = [texts[0] for attribute in SCHEMA.attributes.values() for texts in attribute.training_prompts]


@pytest.fixture(scope="module")
def reader() -> AttributeReader:
    return new_model(SHAPE, SCHEMA, PROMPTS, seed=3).eval()


@pytest.fixture(scope="module")
def folder(reader: AttributeReader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(reader, tmp_path_factory.mktemp("model"))


def photos(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def test_a_stored_model_reads_the_same_scores(reader: AttributeReader, folder: Path) -> None:
    again = load_model(str(folder))
    assert again.schema == SCHEMA
    assert again.schema.names == ("lid", "colour")
    with torch.no_grad():
        for ours, theirs in zip(reader(photos()).logits, again(photos()).logits, strict=True):
            assert torch.equal(ours, theirs)


def test_plain_transformers_loads_the_folder_and_gives_the_same_logits(reader: AttributeReader, folder: Path) -> None:
    clip = CLIPModel.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Padded to the full length, as the usual scripts do: truncating to the longest prompt must be exact.
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=SHAPE.positions, return_tensors="pt")
    pixels = (photos().float() / 255 - reader.mean) / reader.std
    with torch.no_grad():
        plain = clip(pixel_values=pixels, **tokens).logits_per_image
        ours = torch.cat(reader(photos()).logits, dim=1)
    assert clip.logit_scale.shape == ()
    assert torch.allclose(plain, ours, atol=1e-4)


def test_a_new_model_is_a_function_of_its_seed() -> None:
    words = ["a pot with a lid"]
    first, same, other = (new_model(SHAPE, SCHEMA, words, seed=seed) for seed in (1, 1, 2))
    weights = [reader.clip.vision_model.embeddings.patch_embedding.weight for reader in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_tokenizer_knows_every_byte_and_survives_its_files(reader: AttributeReader, folder: Path) -> None:
    again = AutoTokenizer.from_pretrained(folder)
    for text in ("a pot with a lid", "crème brûlée 1/4 zip", "漢字 & emoji 🙂"):
        ids = reader.tokenizer(text).input_ids
        assert again(text).input_ids == ids
        assert ids[0] == reader.tokenizer.bos_token_id
        assert ids[-1] == reader.tokenizer.eos_token_id
        assert reader.tokenizer.eos_token_id not in ids[1:-1]


def test_captions_are_padded_to_a_few_lengths_where_77_is_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = new_model(SHAPE, SCHEMA, PROMPTS, seed=3)
    monkeypatch.setattr(reader.clip.config.text_config, "max_position_embeddings", 77)
    lengths = {reader.tokenise(["word " * count], 16).shape[1] for count in range(0, 100, 5)}
    assert lengths == {16, 32, 48, 64, 77}


@torch.no_grad()
def test_captions_padded_to_a_few_lengths_read_the_same(reader: AttributeReader) -> None:
    most = reader.clip.config.text_config.max_position_embeddings
    for texts in (["red"], ["a red shirt", "blue"], ["word " * 200]):
        plain, padded = reader.tokenise(texts), reader.tokenise(texts, 16)
        assert padded.shape[1] == min(most, -(-plain.shape[1] // 16) * 16)
        assert torch.allclose(reader.embed_texts(padded), reader.embed_texts(plain), atol=1e-6)


def test_a_half_precision_folder_loads_in_full_precision(reader: AttributeReader, tmp_path: Path) -> None:
    half = save_model(reader, tmp_path / "half", half=True)
    assert (half / "model.safetensors").stat().st_size < 1.5e6
    again = load_model(str(half))
    assert again.clip.logit_scale.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(reader(photos()).logits[0], again(photos()).logits[0], atol=0.1)


def test_prompt_features_are_kept_while_reading_and_dropped_for_training(folder: Path) -> None:
    reader = load_model(str(folder))
    with torch.no_grad():
        assert reader.embed_prompts() is reader.embed_prompts()
    reader.train()
    assert reader.embed_prompts() is not reader.embed_prompts()


def test_a_locked_text_tower_gets_no_gradient_and_is_run_once(folder: Path) -> None:
    reader = load_model(str(folder))
    tune(reader, Tuning(mode="image_tower"))
    reader.train()
    assert reader.embed_prompts() is reader.embed_prompts()
    reader(photos()).logits[0].sum().backward()
    assert reader.clip.text_projection.weight.grad is None
    assert reader.clip.visual_projection.weight.grad is not None


def test_siglip_is_read_by_the_same_class(tmp_path: Path, reader: AttributeReader) -> None:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(reader.tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))  # type: ignore[arg-type]  # dicts are taken
    siglip.save_pretrained(tmp_path)
    reader.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), SCHEMA)
    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
    with torch.no_grad():
        logits = loaded(photos()).logits
    assert [scores.shape for scores in logits] == [(3, 2), (3, 3)]
    stored = load_model(str(save_model(loaded, tmp_path / "again")))
    with torch.no_grad():
        assert torch.equal(stored(photos()).logits[1], logits[1])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "expected a folder, a hub id"),
        ("./missing", "expected a folder, a hub id"),
        ("nonsense", "expected a folder, a hub id"),
    ],
)
def test_a_wrong_path_is_refused_in_one_line(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_model(source, SCHEMA)
    assert "\n" not in str(error.value)


def test_folders_that_hold_no_clip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(tmp_path), SCHEMA)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="type 'bert'; expected one of clip, siglip"):
        load_model(str(tmp_path), SCHEMA)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("a weight is gone", "lacks 1 of its weights in their shapes, such as visual_projection.weight"),
        ("a weight has another shape", "lacks 1 of its weights in their shapes, such as visual_projection.weight"),
        ("cut in half", "cannot be loaded"),
        ("no vocabulary", "brings no vocabulary"),
        ("card", "facetclip.json: is no model card"),
        ("preprocessor", "preprocessor_config.json: is no table"),
    ],
)
def test_a_damaged_folder_is_refused_and_never_made_up_for(
    folder: Path, tmp_path: Path, harm: str, message: str
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    if harm == "a weight is gone":
        del weights["visual_projection.weight"]
    if harm == "a weight has another shape":
        weights["visual_projection.weight"] = weights["visual_projection.weight"][:, :3].contiguous()
    path.write_bytes(save(weights, {"format": "pt"}))
    if harm == "cut in half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if harm == "no vocabulary":
        (tmp_path / "model" / "tokenizer.json").unlink()
    for name, file in (("card", "facetclip.json"), ("preprocessor", "preprocessor_config.json")):
        if harm == name:
            (tmp_path / "model" / file).write_text("[1")
    with pytest.raises(UserError, match=message) as error:
        load_model(str(tmp_path / "model"), SCHEMA)
    assert "\n" not in str(error.value)


def test_a_scale_above_the_cap_reads_as_the_cap_and_can_come_down() -> None:
    reader = new_model(SHAPE, SCHEMA, PROMPTS, seed=3)
    with torch.no_grad():
        reader.clip.logit_scale.fill_(4.8)
    assert reader.scale.item() == pytest.approx(100, rel=1e-5)
    reader.scale.sum().backward()
    assert reader.clip.logit_scale.grad.item() == pytest.approx(100, rel=1e-5)


def test_a_plain_clip_needs_a_schema(folder: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="brings no schema"):
        load_model(str(tmp_path))
    assert load_model(str(tmp_path), SCHEMA).schema == SCHEMA


def test_pickled_weights_are_never_loaded(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.save(CLIPModel.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(tmp_path), SCHEMA)
