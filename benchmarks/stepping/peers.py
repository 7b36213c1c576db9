"""The peers' own training steps over inputs that lie on the device already, as floats and normalised for them."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import torch
from benchmarks.data.peers import torchvision_operators
from benchmarks.stepping.shapes import Shape, captions, open_clip_model, photos, transformers_config
from benchmarks.stepping.spec import Spec
from torch import Tensor

MOST = 1_000_000  # steps
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # mean, deviation
OPERATORS = None if torch.cuda.is_available() else torchvision_operators()  # before anything imports torchvision


class Loader:
    """Stands where a DataLoader does: the same batch, `count` times."""

    def __init__(self, images: Tensor, ids: Tensor) -> None:
        self.images, self.ids, self.count = images, ids, 1
        self.num_batches, self.num_samples = 1, len(images)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.count):
            yield self.images, self.ids

    def __len__(self) -> int:
        return self.count


def inputs(spec: Spec, shape: Shape) -> tuple[Tensor, Tensor]:
    """Normalised photos float [n, 3, size, size] and token ids [n, 77]."""
    pixels = torch.from_numpy(photos(shape.size, spec.batch)).to(spec.device).float()
    return (pixels / 255 - 0.45) / 0.27, torch.from_numpy(captions(shape, spec.batch)).to(spec.device)


class OpenClip:
    """`open_clip_train.train.train_one_epoch` with `ClipLoss` and the optimizer that its `main` makes.

    `locked` is its `--lock-text`, `compiled` its `--torchcompile`.
    """

    def __init__(self, spec: Spec, shape: Shape) -> None:
        from open_clip.loss import ClipLoss

        torch.manual_seed(0)
        if spec.device == "cuda":  # as its `main` does
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        model = open_clip_model(shape).to(spec.device)
        if spec.locked:
            model.lock_text_tower(unlocked_layers=0, freeze_layer_norm=True)
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        spared = [w for name, w in named if w.ndim < 2 or any(word in name for word in ("bn", "ln", "bias", "logit_"))]
        known = {id(weight) for weight in spared}
        groups = [
            {"params": spared, "weight_decay": 0.0},
            {"params": [weight for _, weight in named if id(weight) not in known], "weight_decay": 0.2},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.98), eps=1e-6)
        self.model = torch.compile(model) if spec.compiled else model
        self.loss = ClipLoss()
        self.loader = Loader(*inputs(spec, shape))
        self.args = Namespace(
            device=spec.device,
            precision={"fp32": "fp32", "bf16": "amp_bf16"}[spec.precision],
            distill=False,
            accum_freq=1,
            skip_scheduler=True,
            grad_clip_norm=None,
            horovod=False,
            local_rank=0,
            rank=0,
            log_local=False,
            log_every_n_steps=100,
            batch_size=spec.batch,
            world_size=1,
            wandb=False,
            model="CLIP",
        )

    def steps(self, count: int) -> None:
        from open_clip_train.train import train_one_epoch

        self.loader.count = self.loader.num_batches = count
        data = {"train": Namespace(dataloader=self.loader, set_epoch=lambda epoch: None)}
        train_one_epoch(self.model, data, self.loss, 0, self.optimizer, None, None, None, self.args)

    def once(self) -> None:
        self.steps(1)

    @property
    def facts(self) -> dict[str, Any]:
        return {"captions": len(self.loader.ids), "tokens of a caption": self.loader.ids.shape[1]}


class _Batches:
    """Stands where a DataLoader does: the same batch as often as it is asked for."""

    def __init__(self, batch: dict[str, Any], most: int) -> None:
        self.batch, self.most = batch, most

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(self.most):
            yield dict(self.batch)

    def __len__(self) -> int:
        return self.most


def files_of(spec: Spec, shape: Shape) -> Any:
    """The loader of `run_clip.py`: photos read and transformed one by one in the training's own process, its default.

    It is Pillow that decodes, since torchvision's own decoder is not to be had beside a torch without CUDA.
    """
    from PIL import Image
    from torchvision.transforms import CenterCrop, ConvertImageDtype, Normalize, Resize
    from torchvision.transforms.functional import InterpolationMode, pil_to_tensor

    bicubic, size = InterpolationMode.BICUBIC, shape.size
    steps = [Resize([size], interpolation=bicubic), CenterCrop(size), ConvertImageDtype(torch.float), Normalize(*CLIP)]
    transform = torch.nn.Sequential(*steps)
    files = sorted(Path(spec.photos).rglob("*.jpg"))
    texts = torch.from_numpy(captions(shape, len(files)))

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return MOST * spec.batch

        def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
            with Image.open(files[place % len(files)]) as photo:
                return transform(pil_to_tensor(photo.convert("RGB"))), texts[place % len(files)]

    def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        ids = torch.stack([text for _, text in rows])
        pixels = torch.stack([photo for photo, _ in rows])
        return {"pixel_values": pixels, "input_ids": ids, "attention_mask": (ids != 0).long(), "return_loss": True}

    return torch.utils.data.DataLoader(Photos(), spec.batch, collate_fn=collate)


class Transformers:
    """`CLIPModel(return_loss=True)` under `Trainer`, with the arguments of the page of `run_clip.py`.

    One call of `train` is halted after each step, in a thread of its own, until it is told to go on.
    """

    def __init__(self, spec: Spec, shape: Shape) -> None:
        from transformers import CLIPModel, Trainer, TrainerCallback, TrainingArguments

        torch.manual_seed(0)
        images, ids = inputs(spec, shape)
        batch = {"pixel_values": images, "input_ids": ids, "attention_mask": (ids != 0).long(), "return_loss": True}
        loader: Any = files_of(spec, shape) if spec.photos else _Batches(batch, MOST)
        told, done = Queue[int](), Queue[BaseException | None]()

        class Halting(TrainerCallback):
            left = 0

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                if not self.left:
                    self.left = told.get()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                self.left -= 1
                if not self.left:
                    done.put(None)

        class Resident(Trainer):
            def get_train_dataloader(self) -> Any:
                return loader

        self.batch, self._told, self._done = batch, told, done
        self.folder = TemporaryDirectory()
        arguments = TrainingArguments(
            output_dir=self.folder.name,
            per_device_train_batch_size=spec.batch,
            learning_rate=5e-5,
            warmup_steps=0,
            weight_decay=0.1,
            remove_unused_columns=False,
            max_steps=MOST,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=spec.device == "cpu",
            bf16=spec.precision == "bf16",
            torch_compile=spec.compiled,
        )
        rows: Any = range(spec.batch)
        model = CLIPModel(transformers_config(shape))
        self.trainer = Resident(model=model, args=arguments, train_dataset=rows, callbacks=[Halting()])
        Thread(target=self._train, daemon=True).start()

    def _train(self) -> None:
        try:
            self.trainer.train()
        except BaseException as error:
            self._done.put(error)

    def steps(self, count: int) -> None:
        self._told.put(count)
        if (error := self._done.get()) is not None:
            raise error

    def once(self) -> None:
        """One forward and backward pass."""
        self.trainer.model.train()
        self.trainer.model(**self.batch).loss.backward()
        self.trainer.model.zero_grad()

    @property
    def facts(self) -> dict[str, Any]:
        ids = self.batch["input_ids"]
        return {"captions": len(ids), "tokens of a caption": ids.shape[1]}
