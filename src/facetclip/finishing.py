"""From the best weights of a training to the model that ships: blended with the start, and calibrated.

Both are chosen on the validation split, by one process, and end in `model` beside `best`, which stays as it was.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from facetclip.batches import Inputs
from facetclip.files import replace_folder
from facetclip.index import ShardIndex
from facetclip.model import AttributeReader, load_model, save_model
from facetclip.tuning import blend
from facetclip.validation import Judgement, judge, logits_of

ALPHAS = (0.2, 0.4, 0.6, 0.8)  # beside 1, which is the trained model itself


def finish_model(
    best: Path, out: Path, index: ShardIndex, inputs: Inputs, *, start: AttributeReader | None, device: torch.device
) -> Judgement:
    """Write the finished model of the weights in `best` to `out`; returns what it is worth on the validation split.

    `start`: what the weights may be blended with (None: not at all). Without a validation label the weights stay as
    they are and nothing is calibrated.
    """
    reader = load_model(str(best)).to(device)
    rows = index.rows("validation")
    labels = index.label_matrix(rows)
    tuned = {name: weight.detach().clone() for name, weight in reader.state_dict().items()}
    origin = {} if start is None else {**start.to(device).state_dict()}
    if start is not None and reader.classifier is not None:
        origin["classifier"] = start.eval().embed_prompts().detach()

    def judged(alpha: float) -> Judgement:
        reader.train()  # forgets the prompt features of other weights
        reader.load_state_dict(blend(origin, tuned, alpha) if alpha < 1 else tuned)
        return judge(logits_of(reader, inputs, rows).cpu().numpy(), labels, index.schema)

    alphas = (1.0, *(ALPHAS if start is not None and (labels >= 0).any() else ()))
    judgements = [judged(alpha) for alpha in alphas]
    losses = [np.inf if judgement.loss is None else judgement.loss for judgement in judgements]
    chosen = int(np.argmin(losses))
    judgement = judged(alphas[chosen])
    metrics = {**reader.card.metrics, "blend": alphas[chosen]}
    if judgement.loss is not None:
        metrics["validation_loss"] = judgement.loss
    reader.calibration = judgement.calibration
    reader.card = replace(reader.card, metrics=metrics, calibration=judgement.calibration)
    with replace_folder(out) as beside:
        save_model(reader, beside)
    return judgement
