"""An adapter folded into its base, as a checkpoint that needs no adapter: the work of `hasten merge`.

What comes out is compared with base and adapter before it is written, in the types that it is written in.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from pydantic import Field, PositiveFloat

from hasten import __version__
from hasten.adapt.lora import adapted_layers, switched_off
from hasten.adapt.merge import Divergence, divergence, merged, random_inputs
from hasten.adapt.nf4 import packed_weights
from hasten.adapt.peft import adapter_base, is_adapter, load_adapter
from hasten.core.config import Config
from hasten.core.console import say
from hasten.core.errors import CheckpointError, ConfigError
from hasten.core.files import publish, write_json
from hasten.exchange.pack import write_checkpoint
from hasten.exchange.parcel import Parcel, described, opened, title_of
from hasten.exchange.run import refuse_existing
from hasten.model.interop import narrowed
from hasten.model.transformer import Transformer
from hasten.tokenizer.template import template_source
from hasten.train.held import weights_of
from hasten.train.load import load_adapted
from hasten.train.restore import checkpoint_in

RECORD = "merge.json"


class MergeConfig(Config):
    """How an adapter is folded into its base."""

    output: Path | None = Field(None, description="the checkpoint's folder; by default models/NAME-merged")
    base: Path | None = Field(
        None, description="the model that an adapter of PEFT's belongs to; by default what its folder names"
    )
    bound: PositiveFloat = Field(
        1e-3,
        description="largest mean divergence of the merged model from base and adapter, in nats a token"
        " (of hidden states, where there is no head, the largest difference)",
    )


@dataclass(frozen=True)
class Comparison:
    """How far a merged model is from base and adapter, and how far the base alone is."""

    merged: Divergence
    base: Divergence


def merge(name: str, config: MergeConfig) -> Path:
    """Write the run, checkpoint or adapter `name` as a checkpoint of a plain model; its folder.

    ConfigError where there is no adapter; CheckpointError where the merged model is further from it than
    `config.bound`, with nothing written.
    """
    place = Path(name).expanduser()
    output = config.output or Path("models") / f"{title_of(place)}-merged"
    refuse_existing(output)
    parcel = opened_with_adapter(place, config.base)
    if dict(packed_weights(parcel.model)):
        say(
            f"{name}: was trained beside its base in four bits (NF4), and is merged into these numbers, not"
            " into those that they were rounded from"
        )
    model = merged(parcel.model)
    result = replace(parcel, model=model, types=types_of(parcel, model))
    round_weights(result, parcel)
    comparison = compared(parcel, result)
    say(f"{name}: {told(comparison)}")
    refuse_beyond(comparison.merged, config.bound, name, result)
    with publish(output, {"step": 0, "metric": None, "parent": name}) as folder:
        write_checkpoint(folder, result)
        write_json(folder / RECORD, {"hasten": __version__, "name": name, **asdict(comparison)})
    say(f"{output}: {described(result, result.types.values())}; every verb takes this folder")
    return output


def opened_with_adapter(place: Path, base: Path | None) -> Parcel:
    """An adapted model and what belongs to it."""
    if is_adapter(place):
        return opened_beside(place, base or Path(adapter_base(place)).expanduser())
    if base is not None:
        raise ConfigError(f"{place}: is no adapter of PEFT's, so base={base} cannot matter; leave it out")
    folder = checkpoint_in(place)
    model, tokenizer = load_adapted(folder)
    if not adapted_layers(model):
        raise ConfigError(
            f"{place}: has no adapter to merge; give a run with `adapt:`, or a folder with an"
            " adapter_config.json"
        )
    return Parcel(model, {}, tokenizer, template_source(folder), folder, title_of(place))


def opened_beside(adapter: Path, base: Path) -> Parcel:
    """A base, and the adapter of PEFT's beside it."""
    if not base.exists():
        raise ConfigError(
            f"{adapter}: belongs to the base {str(base)!r}, which is no folder here; write"
            " base=path/to/folder"
        )
    parcel = opened(base)
    load_adapter(adapter, parcel.model)
    parcel.model.eval()
    template = template_source(adapter)  # what it was trained with, where it says so
    return parcel if template is None else replace(parcel, template=template)


def types_of(parcel: Parcel, model: Transformer) -> dict[str, torch.dtype]:
    """The type that each number of the merged `model` goes out in: as it came; a run's are float32."""
    return {name: parcel.types.get(name, torch.float32) for name in weights_of(model)}


@torch.no_grad()
def round_weights(result: Parcel, parcel: Parcel) -> None:
    """Bring merged weights to the types they are written in, so that what is compared is what is written."""
    for name in adapted_layers(parcel.model):
        weight = result.model.get_parameter(f"{name}.weight")
        kind = result.types[f"{name}.weight"]
        weight.copy_(narrowed(weight, kind, f"{name}.weight").to(weight.dtype))


def compared(parcel: Parcel, result: Parcel) -> Comparison:
    """Both models on the same random text."""
    inputs = random_inputs(parcel.model)
    apart = divergence(parcel.model, result.model, inputs)
    with switched_off(parcel.model):
        alone = divergence(result.model, parcel.model, inputs)
    return Comparison(apart, alone)


def told(comparison: Comparison) -> str:
    """A comparison in words."""
    ours, base = comparison.merged, comparison.base
    return (
        f"merged, scores differ from base and adapter by {ours.largest:.2g} at most, {ours.kl:.2g} nats a"
        f" token (without the adapter by {base.largest:.2g} and {base.kl:.2g})"
    )


def refuse_beyond(apart: Divergence, bound: float, name: str, result: Parcel) -> None:
    """Refuse a merged model that is another model."""
    headless = result.model.config.head == "none"
    figure, unit = (apart.largest, "in a hidden state") if headless else (apart.kl, "nats a token")
    if not figure <= bound:
        kinds = " and ".join(sorted({str(kind).removeprefix("torch.") for kind in result.types.values()}))
        raise CheckpointError(
            f"{name}: merged into weights of {kinds} it differs by {figure:.3g} {unit}, above"
            f" bound={bound:g}; give a base in a longer type, or, if that is near enough, a larger bound="
        )
