"""What is done with a finished model."""

from pathlib import Path

from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.verbs.words import Words, recipe_of


def inspect(words: Words) -> None:
    """hasten inspect RECIPE|RUN|MODEL "TEXT" [key=value ...]

    Runs the model once on your text and shows where each head looks and what the model expected at
    each place, as a page (inspect.html in the output folder), as text, or as JSON.  An encoder fills
    each [MASK]; an encoder-decoder reads source= and has written target=, by default its own.

    format=text   format=json   page=my.html   top=10   layers=[0,5]   mask=each   target='Ein Hund.'
    """
    from hasten.recipe import Recipe
    from hasten.report.inspect.config import from_words

    config, overrides = from_words(words[1:], Recipe.model_fields)
    recipe = recipe_of([*words[:1], *overrides], "inspect")
    from hasten import stages

    say(stages.inspect(recipe, config))


def embed(words: Words) -> None:
    """hasten embed RUN|MODEL [key=value ...]

    Makes a vector of each text, so that near in meaning is near in angle, with an encoder such as
    BERT or a model of sentence-transformers, whose pooling it follows.  Prints the cosine of every
    two texts, and writes the vectors where output= says.

    texts='["A cat.", "Eine Katze."]'   file=texts.txt   output=vectors.npy   pooling=first   truncate=true
    """
    if not words or "=" in words[0]:
        raise ConfigError(
            'hasten embed needs a model first: hasten embed runs/mine texts=\'["a text", "another"]\''
        )
    from hasten.core import config
    from hasten.evaluate.embed import EmbedConfig
    from hasten.evaluate.vectors import embed_texts

    embed_texts(Path(words[0]), config.parse(EmbedConfig, config.override({}, words[1:]), "embed"))


def import_(words: Words) -> None:
    """hasten import FOLDER|FILE.gguf|OWNER/NAME [key=value ...]

    Makes a checkpoint that every verb takes out of a Hugging Face folder (config.json, safetensors,
    tokenizer, chat template, generation settings), a GGUF file, or a model of the hub, and notes in
    origin.json where each byte came from.  Nothing of the folder is run; what hasten cannot hold is
    refused by name.

    output=models/mine   revision=main   pickle=true (weights that exist only as pytorch_model.bin)
    """
    from hasten.exchange.options import ImportConfig, read_options
    from hasten.exchange.run import bring_in

    bring_in(*read_options(ImportConfig, words, "import"))


def export(words: Words) -> None:
    """hasten export RUN|CHECKPOINT|FOLDER to=hf|gguf|peft [key=value ...]

    Writes the model with its tokenizer, chat template and generation settings: to=hf a folder that
    transformers loads with equal logits, to=gguf a file that llama.cpp loads.  An imported model's
    numbers go out in the type they came in.  Of a run with `adapt:` to=peft writes the adapter alone,
    as peft loads it beside base=.

    output=exports/mine   dtype=float32|bfloat16|float16   max_shard_bytes=2000000000   (to=gguf:
    dtype=float32|float16|q8_0|q4_0; a quantised model keeps its integers)
    """
    from hasten.exchange.options import ExportConfig, check_peft, read_options

    name, config = read_options(ExportConfig, words, "export")
    check_peft(config)
    if config.to == "peft":
        from hasten.exchange.adapter import send_adapter

        send_adapter(Path(name).expanduser(), config.output, config.base)
        return
    from hasten.exchange.run import send_out

    send_out(name, config)


def merge(words: Words) -> None:
    """hasten merge RUN|CHECKPOINT|ADAPTER [key=value ...]

    Folds a LoRA adapter, of a run of ours or in PEFT's format, into the weights of its base: a
    checkpoint that every verb takes.  What comes out is compared with base and adapter, and refused
    where they differ by more than bound (nats a token).

    output=models/mine   base=path/to/base (of an adapter in PEFT's format)   bound=0.001
    """
    if not words or "=" in words[0]:
        raise ConfigError("hasten merge needs an adapter first: hasten merge runs/mine output=models/mine")
    from hasten.core import config
    from hasten.exchange.merge import MergeConfig
    from hasten.exchange.merge import merge as fold

    fold(words[0], config.parse(MergeConfig, config.override({}, words[1:]), "hasten merge"))
