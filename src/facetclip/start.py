"""The model that a training starts from."""

from facetclip.config import RunConfig
from facetclip.errors import UserError
from facetclip.index import ShardIndex
from facetclip.model import AttributeReader, load_model
from facetclip.scratch import new_model


def start_model(run: RunConfig, index: ShardIndex) -> AttributeReader:
    """The start of `run`, reading the attributes of the data in the run's caption form. UserError where its words do
    not tell two values apart."""
    schema = index.schema.worded(run.prompts.form)
    if run.model.new:
        prompts = [texts for attribute in schema.attributes.values() for texts in attribute.training_prompts]
        words = [text for texts in prompts for text in texts]
        reader = new_model(run.model.new, schema, words, seed=run.train.seed, fit=run.model.fit)
    else:
        reader = load_model(str(run.model.start), schema, fit=run.model.fit)
    check_words(reader)
    return reader


def check_words(reader: AttributeReader) -> None:
    """UserError where the prompts of two values of an attribute are the same tokens: the same words, or a difference
    beyond the length that the model reads, or in letters that its vocabulary does not know."""
    for ids, values in (
        (reader.training_ids, reader.training_values),
        (reader.reading_ids, reader.reading_values),
    ):
        tokens: dict[int, list[list[int]]] = {}
        for value, row in zip(values.tolist(), ids.tolist(), strict=True):
            tokens.setdefault(value, []).append(row)
        for span, (name, attribute) in zip(reader.spans, reader.schema.attributes.items(), strict=True):
            seen: dict[str, str] = {}
            for value, place in zip(attribute.values, range(span.start, span.stop), strict=True):
                same = seen.setdefault(str(sorted(tokens[place])), value)
                if same != value:
                    longest = reader.clip.config.text_config.max_position_embeddings
                    raise UserError(
                        f"{name}: the prompts of {same!r} and {value!r} are the same to this model, which reads "
                        f"{longest} tokens of its own vocabulary; word them differently (attributes.{name}.prompts)"
                    )
