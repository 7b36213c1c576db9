from pathlib import Path

import pytest

from facetclip.config import read_run
from facetclip.errors import UserError

RUN = """
[data]
shards = "shards"
[model]
start = "starter"
[train]
steps = 10
batch = 8
[output]
folder = "runs/x"
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def test_a_misspelt_key_is_refused_with_a_suggestion(run_file: Path) -> None:
    run_file.write_text(RUN.replace("steps", "stpes"))
    with pytest.raises(UserError) as error:
        read_run(run_file)
    assert "run.toml: train: unknown key 'stpes'; did you mean 'steps'?" in str(error.value)


def test_a_misspelt_section_is_refused_with_a_suggestion(run_file: Path) -> None:
    run_file.write_text(RUN + "[optimiser]\nlr = 1\n")
    with pytest.raises(UserError, match="unknown key 'optimiser'; did you mean 'optimizer'"):
        read_run(run_file)


def test_a_misspelt_key_of_an_optional_table_is_refused_with_a_suggestion(run_file: Path) -> None:
    run_file.write_text(RUN.replace('start = "starter"', "[model.new]\nimage_sise = 64"))
    with pytest.raises(UserError, match=r"model\.new: unknown key 'image_sise'; did you mean 'image_size'"):
        read_run(run_file)


@pytest.mark.parametrize("name", ["shop/x", "models:x", " "])
def test_a_name_that_mlflow_would_not_take_is_refused_before_the_training(run_file: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.register_as: MLflow takes no name"):
        read_run(run_file, [f"tracking.register_as={name!r}"])
    assert read_run(run_file, ["tracking.register_as="]).tracking.register_as == ""


def test_overrides_replace_values_and_keep_words_as_text(run_file: Path) -> None:
    run = read_run(run_file, ["train.steps=20", "model.start=some/folder", "optimizer.lr=1e-3", "augment.flip=false"])
    assert (run.train.steps, run.model.start, run.optimizer.lr, run.augment.flip) == (20, "some/folder", 1e-3, False)


@pytest.mark.parametrize("override", ["train.steps", "steps=3", "train.steps.x=1", "=3"])
def test_a_malformed_override_is_refused(run_file: Path, override: str) -> None:
    with pytest.raises(UserError, match="override"):
        read_run(run_file, [override])


def test_wrong_values_are_all_reported_at_once(run_file: Path) -> None:
    with pytest.raises(UserError) as error:
        read_run(run_file, ["train.steps=0", "train.batch=many", "sampling.strategy=fair"])
    text = str(error.value)
    assert all(name in text for name in ("train.steps", "train.batch", "sampling.strategy"))
    assert len(text.splitlines()) == 3


def test_a_run_names_one_start(run_file: Path) -> None:
    run_file.write_text(RUN.replace('start = "starter"', ""))
    with pytest.raises(UserError, match="give either start"):
        read_run(run_file)


NEW = {
    **{"image_size": 64, "patch_size": 16, "vision_width": 32, "vision_layers": 1, "vision_heads": 4},
    **{"text_width": 32, "text_layers": 1, "text_heads": 4, "embedding": 16},
}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"vision_heads": 3}, "vision_width = 32 is not divisible by vision_heads = 3"),
        ({"text_heads": 64}, "text_width = 32 is not divisible by text_heads = 64"),
        ({"patch_size": 128}, "image_size = 64 is not divisible by patch_size = 128"),
        ({"image_size": 72}, "image_size = 72 is not divisible by patch_size = 16"),
    ],
)
def test_a_shape_that_no_model_has_is_refused(run_file: Path, changed: dict[str, int], told: str) -> None:
    shape = "".join(f"{name} = {value}\n" for name, value in (NEW | changed).items())
    run_file.write_text(RUN.replace('start = "starter"', f"[model.new]\n{shape}"))
    with pytest.raises(UserError, match=f"model.new: {told}"):
        read_run(run_file)


def test_an_optimizer_that_never_forgets_is_refused(run_file: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer\.beta2: .* less than 1, found 1"):
        read_run(run_file, ["optimizer.beta2=1"])


def test_adapters_nowhere_are_refused(run_file: Path) -> None:
    with pytest.raises(UserError, match=r"tuning\.places"):
        read_run(run_file, ["tuning.places=[]"])


def test_an_absent_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: cannot be read"):
        read_run(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[data\n")
    with pytest.raises(UserError, match=r"broken\.toml: not TOML"):
        read_run(broken)


def test_the_runs_that_ship_are_valid() -> None:
    runs = sorted((Path(__file__).parents[1] / "training" / "runs").glob("*.toml"))
    checked = [read_run(path) for path in runs if not path.stem.endswith("schema")]
    assert checked


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(run_file: Path, seed: int) -> None:
    with pytest.raises(UserError, match=r"train\.seed"):
        read_run(run_file, [f"train.seed={seed}"])


@pytest.mark.parametrize("setting", ["threads=0", "threads=many", "ahead=0", "ahead=65", "threads=257"])
def test_a_loader_without_threads_or_with_hundreds_is_refused(run_file: Path, setting: str) -> None:
    with pytest.raises(UserError, match=rf"loading\.{setting.partition('=')[0]}"):
        read_run(run_file, [f"loading.{setting}"])


def test_hues_cannot_be_changed_by_a_run_file(run_file: Path) -> None:
    with pytest.raises(UserError, match="augment: unknown key 'hue'"):
        read_run(run_file, ["augment.hue=0.1"])
