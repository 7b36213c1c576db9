"""A run is one TOML file: everything scientific about a training. Unknown keys are refused, all errors at once."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from facetclip.errors import UserError

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


Precision = Literal["fp32", "bf16", "fp16"]
Form = Literal["schema", "value", "named", "sentence", "several"]
# Caption form -> the templates whose features are averaged; `schema` stands for what the schema file says.
FORMS: dict[str, tuple[str, ...]] = {
    "value": ("{value}",),
    "named": ("{attribute}: {value}",),
    "sentence": ("a photo of a product, {attribute} {value}.",),
    "several": ("{value}", "{attribute}: {value}", "a photo of a product, {attribute} {value}.", "{value} {attribute}"),
}
Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A frozen table that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def closest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'steps'?` or nothing.

    >>> closest("stpes", ["steps", "seed"])
    "; did you mean 'steps'?"
    """
    folded = {word.casefold(): word for word in known}
    near = difflib.get_close_matches(name[:200].casefold(), list(folded), n=1, cutoff=0.6)  # a megabyte takes seconds
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; UserError when it is absent or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from error


def validated(model: type[Model], table: Mapping[str, Any], source: str) -> Model:
    """`table` as a `model`; one UserError that lists every mistake with its place in `source`."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        lines = [f"{source}: {_complaint(model, issue)}" for issue in error.errors(include_url=False)]
        raise UserError("\n".join(lines)) from None


def _complaint(model: type[BaseModel], issue: Any) -> str:
    place = [str(part) for part in issue["loc"]]
    where = ".".join(place)
    if issue["type"] == "extra_forbidden":
        section, key = ".".join(place[:-1]), place[-1]
        return f"{section + ': ' if section else ''}unknown key {key!r}{closest(key, _keys_at(model, place[:-1]))}"
    if issue["type"] == "missing":
        return f"{where}: required, but not given"
    text = issue["msg"].removeprefix("Value error, ")
    shown = repr(issue["input"])
    found = "" if issue["type"] == "value_error" or len(shown) > 80 else f", found {shown}"
    return f"{where + ': ' if where else ''}{text}{found}"


def _keys_at(model: Any, place: list[str]) -> list[str]:
    """The keys of the table at `place`, through nested models and `dict[str, Model]`."""
    for part in place:
        fields = getattr(model, "model_fields", {})
        model = _model_in(fields[part].annotation) if part in fields else model
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The first model class inside an annotation such as `dict[str, Attribute]` or `NewModel | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


class Data(Strict):
    """`shards`: where they lie, a folder or a URL. `labelled`: how many of their labelled training photos count (none:
    all of them). `features`: the folder in which features that are computed once are kept (none: the run folder's).
    `cache`: the folder that shards from a URL are kept in (none: FACETCLIP_CACHE, or the user's cache folder), and
    `cache_bytes`: the most that they may take there (none: FACETCLIP_CACHE_BYTES, or no limit).
    """

    shards: str
    cache: str | None = None
    cache_bytes: Positive | None = None
    features: str | None = None
    labelled: Positive | None = None


class NewModel(Strict):
    """The shape of a CLIP made from scratch; its tokenizer is trained on the captions of the shards."""

    image_size: Positive
    patch_size: Positive
    vision_width: Positive
    vision_layers: Positive
    vision_heads: Positive
    text_width: Positive
    text_layers: Positive
    text_heads: Positive
    embedding: Positive
    vocabulary: Positive = 1024
    positions: Positive = 32

    @model_validator(mode="after")
    def _whole_parts(self) -> "NewModel":
        for whole, part in (
            ("image_size", "patch_size"),
            ("vision_width", "vision_heads"),
            ("text_width", "text_heads"),
        ):
            size, divisor = getattr(self, whole), getattr(self, part)
            if size % divisor:
                raise ValueError(f"{whole} = {size} is not divisible by {part} = {divisor}")
        return self


class ModelChoice(Strict):
    """What training starts from: a folder, a hub id, `starter`, or a new model; and how photos become square."""

    start: str | None = None
    new: NewModel | None = None
    fit: Literal["pad", "crop"] = "pad"

    @model_validator(mode="after")
    def _one_of(self) -> "ModelChoice":
        if (self.start is None) == (self.new is None):
            raise ValueError("give either start = 'folder, hub id or starter' or a table [model.new], not both")
        return self


class Prompting(Strict):
    """The caption form of the values (see `FORMS`); `schema`: as the schema says."""

    form: Form = "schema"


class Training(Strict):
    """How long and in what portions: `batch` is the global batch, over all processes.

    `steps`: by `facetclip.presets` where not given. `micro_batch`: the photos that a process works on at a time, their
    gradients added up; `auto`: as many as fit its memory; none: its whole share. `recompute`: keep no layer's inner
    activations for the backward pass. `compile`: the towers' layers, in training. `patience`: validations without a
    better one after which training stops, 0 for never. `average`: decay of the moving average of the weights that is
    validated and kept, 0 for none.
    `precision`: the launcher's choice where not given; where given, a launcher that says otherwise is refused.
    `reduce`: what gradients are rounded to on their way between processes, and summed in, under DDP.
    `nonfinite`: at a loss or gradient that is no number, `stop`, or `skip` the update, at most `most_skipped` times.
    """

    steps: Positive | None = None
    batch: Positive
    micro_batch: Positive | Literal["auto"] | None = None
    recompute: bool = False
    compile: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    patience: Annotated[int, Field(ge=0)] = 0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Precision | None = None
    reduce: Literal["fp32", "bf16"] = "fp32"
    nonfinite: Literal["stop", "skip"] = "stop"
    most_skipped: Annotated[int, Field(ge=0)] = 10
    log_every: Positive = 10


class Tuning(Strict):
    """What of the model is trained (see `facetclip.tuning`).

    `blocks`: of `last_blocks`. `rank`, `strength` and `places`: of `lora`. `context`, `per_value`: how many vectors
    `prompt` learns, and whether each value has its own. `layer_decay`: what the rate is multiplied by from one layer to
    the next lower one. `interpolate`: choose between the start's weights and the trained ones on the validation split.
    `cache`: compute the photos' features once where the image tower is frozen.
    """

    mode: Literal["zero_shot", "probe", "prompt", "lora", "image_tower", "last_blocks", "full"] = "full"
    blocks: Positive = 2
    rank: Positive = 8
    strength: Annotated[float, Field(gt=0)] = 16.0
    places: Annotated[tuple[str, ...], Field(min_length=1)] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    context: Positive = 4
    per_value: bool = False
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    interpolate: bool = True
    cache: bool = True


class Objective(Strict):
    """What is minimised: `attributes` and `contrastive` weigh the two losses of `facetclip.losses`.

    `form` and `captions`: of the contrastive one; captions are made of the known values, or are the titles.
    `label_smoothing`: the share of a label that all values get alike. `noise`: the share of cells taken to say anything
    at random. `logit_adjustment`: tau, 0 for none. `weights`: what a label of an attribute counts, 1 where not given.
    """

    attributes: NonNegative = 1.0
    contrastive: NonNegative = 0.0
    form: Literal["softmax", "sigmoid"] = "softmax"
    captions: Literal["values", "titles"] = "values"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    logit_adjustment: NonNegative = 0.0
    weights: dict[str, NonNegative] = {}

    @model_validator(mode="after")
    def _something(self) -> "Objective":
        if self.attributes == self.contrastive == 0:
            raise ValueError("attributes and contrastive are both 0; nothing would be learned")
        return self


class Optimizer(Strict):
    """The update rule and the learning rate as a function of the step: linear warm-up, then cosine to `final_lr`.

    `lr` and `warmup_steps`: by `facetclip.presets` where not given (the rates are AdamW's: give your own with `muon`
    and `sgd`). `beta2`: of AdamW and Muon. `clip_norm`: gradients longer than that are shortened to it, 0 for never.
    """

    name: Literal["adamw", "muon", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] | None = None
    final_lr: NonNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    weight_decay: NonNegative = 0.05
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    clip_norm: NonNegative = 1.0


class Sampling(Strict):
    """Which items make up an epoch (see `facetclip.sampling`). `over`: the attributes that are balanced; none: all.

    `window`: so many shards are drawn from at a time, where they do not all fit `data.cache_bytes`; none: all.
    """

    strategy: Literal["balanced", "square_root", "natural"] = "balanced"
    over: tuple[str, ...] = ()
    max_repeats: Positive = 4
    window: Positive | None = None


class Augmentation(Strict):
    """What may change in a training photo without changing any attribute; there is nothing that changes hues.

    `flip`: mirror every second one; false where an attribute tells left from right. `smallest_crop`: the least of each
    edge that is kept, 1 where an attribute may lie at the border. `brightness`: by how much of itself light changes; 0
    where black, grey and white are values.
    """

    flip: bool = True
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.8
    brightness: Fraction = 0.1


class Loading(Strict):
    """How photos are brought to a process; no number of the training depends on it.

    `threads`: that decode (none: the process's share of the machine's processors, between 2 and 16). `ahead`: batches
    that are ready while one is worked on.
    """

    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    ahead: Annotated[int, Field(ge=1, le=64)] = 2


class Validation(Strict):
    """When the validation split is measured (twenty times where not given); the best model by it is kept."""

    every: Positive | None = None


class Checkpoints(Strict):
    """When the state is saved, and how many saves are kept. `every`: so many steps (where not given, at each
    validation, as long as saving takes no more than a fiftieth of the time); `minutes`: also when so many have
    passed."""

    every: Positive | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    keep: Positive = 2


class Watch(Strict):
    """`timeout`: seconds without a step (or a few photos of a validation, or a save) after which a process leaves the
    stacks of its threads behind and ends; 0 for never."""

    timeout: NonNegative = 1800.0


class Output(Strict):
    """The run folder."""

    folder: str


class Tracking(Strict):
    """Where MLflow files the run, and the registered model that its finished model becomes (none: not registered)."""

    experiment: str = "facetclip"
    register_as: str | None = None

    @field_validator("register_as")
    @classmethod
    def _nameable(cls, name: str | None) -> str | None:
        if name and (not name.strip() or set(name) & {"/", ":"}):
            raise ValueError(f"MLflow takes no name with / or : in it for a registered model, found {name!r}")
        return name


class RunConfig(Strict):
    """One training, whole."""

    data: Data
    model: ModelChoice
    train: Training
    output: Output
    prompts: Prompting = Prompting()
    tuning: Tuning = Tuning()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    sampling: Sampling = Sampling()
    augment: Augmentation = Augmentation()
    loading: Loading = Loading()
    validation: Validation = Validation()
    checkpoint: Checkpoints = Checkpoints()
    watch: Watch = Watch()
    tracking: Tracking = Tracking()


def read_run(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The run in `path` with `section.key=value` overrides, whose values are TOML or else text."""
    table = read_toml(path)
    for override in overrides:
        _override(table, override)
    return validated(RunConfig, table, path.name)


def _override(table: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not sections or not key:
        raise UserError(f"override {override!r}: expected section.key=value, such as train.steps=200")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise UserError(f"override {override!r}: {section!r} is not a section")
    try:
        table[key] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[key] = text
