"""Hold imports and exports against transformers: one JSON object.

    python bench/interop.py --save bench/results/interop.json
    python bench/interop.py --models FOLDER      with real checkpoints: folders with config.json, .gguf files

For every family that hasten knows a tiny random model of transformers is saved, imported, held against the
original, exported, loaded by transformers and held again; every tensor must come out bit for bit as it went
in.  Differences are the largest of any logit (of an encoder: any hidden state), in float32.  Real checkpoints
are held against transformers where it loads them, and imported and exported in the same way.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from hasten.core.errors import HastenError
from hasten.core.files import write_json
from hasten.core.runtime import environment
from hasten.exchange.options import ExportConfig, ImportConfig
from hasten.exchange.run import bring_in, send_out
from hasten.model.families.registry import FAMILIES
from hasten.model.transformer import Transformer
from hasten.train.load import load_model

VOCAB, ROWS, LENGTH, SEED = 64, 2, 24, 0
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32, "word_embed_proj_dim": 32,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_decoder_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4,
    "num_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "d_kv": 8, "intermediate_size": 48, "hidden_dim": 48, "ffn_dim": 48, "d_ff": 48,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 48, "n_positions": 48,
    "decoder_vocab_size": VOCAB, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 0,
    "decoder_start_token_id": 1, "forced_eos_token_id": 0, "sliding_window": 8,
}  # fmt: skip
"""A tiny size for each field that configurations of transformers have; each family takes what it knows."""
TOLERANCE = 1e-5
"""Of the largest output where that is above one: what float32 can keep of a score of 30 is less."""


def tiny(kind: str) -> nn.Module:
    """A random model of the family `kind`, no parameter at its start."""
    known = transformers.AutoConfig.for_model(kind).to_dict()
    sizes = {name: value for name, value in SIZES.items() if name in known}
    config = transformers.AutoConfig.for_model(
        kind, **{**sizes, "layer_types": None} if "layer_types" in known else sizes
    )
    torch.manual_seed(SEED)
    model = class_for(config)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # a table that is computed stays computed
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def class_for(config: Any) -> Any:
    """The class of transformers that a configuration means: with a head where it writes."""
    if config.is_encoder_decoder:
        return transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
    causal = config.model_type not in ("bert", "roberta", "distilbert")
    return (transformers.MODEL_FOR_CAUSAL_LM_MAPPING if causal else transformers.MODEL_MAPPING)[type(config)]


@torch.no_grad()
def outputs_of_theirs(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits, or hidden states of a model without a head."""
    extra = {"decoder_input_ids": tokens.flip(1)} if model.config.is_encoder_decoder else {}
    out = model(tokens, **extra)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


@torch.no_grad()
def outputs_of_ours(model: Transformer, tokens: Tensor) -> Tensor:
    """The same of ours."""
    hidden = model(tokens.flip(1), source=tokens) if model.config.kind == "seq2seq" else model(tokens)
    return hidden if model.config.head == "none" else model.logits(hidden)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder."""
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def difference(one: Tensor, two: Tensor) -> float:
    """The largest difference of any number."""
    return (one - two).abs().max().item()


def round_trip(theirs: nn.Module, source: Path, folder: Path, scratch: Path) -> dict[str, Any]:
    """Import `source`, export it, and hold both against `theirs`; times in seconds."""
    tokens = torch.randint(3, min(theirs.config.vocab_size, 60), (ROWS, LENGTH))
    expected = outputs_of_theirs(theirs, tokens)
    checkpoint, seconds_in = timed(lambda: bring_in(str(source), ImportConfig(output=scratch / "in")))
    ours, _ = load_model(checkpoint)
    out, seconds_out = timed(lambda: send_out(str(checkpoint), ExportConfig(to="hf", output=scratch / "out")))
    again = type(theirs).from_pretrained(out, attn_implementation="eager", dtype=torch.float32).eval()
    before, after = tensors_of(folder), tensors_of(out)
    kept = {name for name in before if name in after and torch.equal(before[name], after[name])}
    return {
        "parameters": ours.config.num_parameters,
        "import_seconds": round(seconds_in, 3),
        "export_seconds": round(seconds_out, 3),
        "import_difference": difference(outputs_of_ours(ours, tokens), expected),
        "export_difference": difference(outputs_of_theirs(again, tokens), expected),
        "largest_output": expected.abs().max().item(),
        "tensors": len(before),
        "tensors_kept_bit_for_bit": len(kept),
        "tensors_not_written": sorted(before.keys() - kept),
    }


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """A result and how many seconds it took."""
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def family(kind: str) -> dict[str, Any]:
    """One family's tiny model in and out."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "theirs"
        theirs = tiny(kind)
        theirs.save_pretrained(folder)
        return round_trip(theirs, folder, folder, Path(scratch))


def real(place: Path) -> dict[str, Any]:
    """A published folder in and out, held against transformers."""
    with tempfile.TemporaryDirectory() as scratch:
        config = transformers.AutoConfig.from_pretrained(place)
        options = {"attn_implementation": "eager", "dtype": torch.float32}
        theirs = class_for(config).from_pretrained(place, **options).eval()
        return round_trip(theirs, place, place, Path(scratch))


def packed(place: Path) -> dict[str, Any]:
    """A GGUF file in, and out as a folder that transformers is held against; bench/gguf.py has llama.cpp."""
    tokens = torch.randint(3, 60, (ROWS, LENGTH))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint, seconds_in = timed(lambda: bring_in(str(place), ImportConfig(output=folder / "in")))
        out, seconds_out = timed(
            lambda: send_out(str(checkpoint), ExportConfig(to="hf", output=folder / "out"))
        )
        ours, _ = load_model(checkpoint)
        expected = outputs_of_ours(ours, tokens)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
        return {
            "parameters": ours.config.num_parameters,
            "import_seconds": round(seconds_in, 3),
            "export_seconds": round(seconds_out, 3),
            "export_difference": difference(outputs_of_theirs(theirs, tokens), expected),
            "largest_output": expected.abs().max().item(),
        }


def attempt(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a call, or why there are none."""
    try:
        return call()
    except (HastenError, OSError, ImportError, ValueError) as error:
        return {"error": str(error)}


def published(folder: Path) -> list[Path]:
    """The checkpoints below a folder: folders with config.json and safetensors, and GGUF files."""
    folders = [p.parent for p in sorted(folder.rglob("config.json")) if list(p.parent.glob("*.safetensors"))]
    return [*folders, *sorted(folder.rglob("*.gguf"))]


def holds(result: dict[str, Any]) -> bool:
    """Whether a checkpoint came in and went out as it should."""
    if "error" in result:
        return False
    allowed = TOLERANCE * max(1.0, result["largest_output"])
    return max(result.get("import_difference", 0.0), result["export_difference"]) <= allowed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print one JSON object, and return 1 where something differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), help="by default all")
    parser.add_argument("--models", nargs="*", type=Path, default=[], help="folders with real checkpoints")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args(arguments)
    torch.manual_seed(SEED)
    printed, sys.stdout = sys.stdout, sys.stderr  # the result alone is on standard output
    try:
        families = {kind: attempt(partial(family, kind)) for kind in options.families}
        places = [place for folder in options.models for place in published(folder)]
        checkpoints = {
            place.name: attempt(partial(packed if place.is_file() else real, place)) for place in places
        }
    finally:
        sys.stdout = printed
    results = [*families.values(), *checkpoints.values()]
    result = {
        "environment": {**environment(), "transformers": transformers.__version__},
        "families": families,
        "checkpoints": checkpoints,
        "all_hold": all(map(holds, results)),
    }
    if options.save:
        write_json(options.save, result)
    print(json.dumps(result))
    return 0 if result["all_hold"] else 1


if __name__ == "__main__":
    sys.exit(main())
