"""The adapter of a run for others: what it trained, in PEFT's format, beside the name of its base."""

from pathlib import Path

from hasten.adapt.lora import adapted_layers
from hasten.adapt.peft import is_adapter, save_adapter
from hasten.core.config import load
from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.core.files import contents
from hasten.exchange.pack import carry, whole_folder
from hasten.exchange.parcel import title_of
from hasten.exchange.run import refuse_existing
from hasten.train.load import AdapterNote, load_adapted
from hasten.train.restore import checkpoint_in
from hasten.train.snapshot import ADAPTER


def send_adapter(place: Path, output: Path | None = None, base: str | None = None) -> Path:
    """Write the adapter of a run or a checkpoint as `peft` loads it; its folder.

    `base` is what it says that it belongs to: a Hugging Face folder or a name of the hub, by default the
    model that it was trained beside.  ConfigError where there is no adapter, or `peft` could not load that.
    """
    output = output or Path("exports") / f"{title_of(place)}-adapter"
    refuse_existing(output)
    folder = checkpoint_in(place)
    if not (folder / ADAPTER).is_file():
        what = "is in PEFT's format already" if is_adapter(folder) else "has no adapter"
        raise ConfigError(f"{place}: {what}; give a run with `adapt:`")
    base = base or base_of(folder)
    model, _ = load_adapted(folder)
    with whole_folder(output) as temporary:
        save_adapter(temporary, model, base)
        carry(folder, temporary)
    size = sum(path.stat().st_size for path in contents(output))
    say(f"{output}: an adapter of {len(adapted_layers(model))} layers, {size / 1e6:,.1f} MB, beside {base}")
    return output


def base_of(folder: Path) -> str:
    """The Hugging Face folder that a checkpoint's adapter was trained beside; ConfigError for one of ours."""
    base = load(AdapterNote, folder / ADAPTER).base
    if not (base / "config.json").is_file():
        raise ConfigError(
            f"{folder}: was trained beside {base}, which peft cannot load; write base= with the Hugging Face"
            " model that it was imported from, or with what `hasten export` makes of it (to=hf)"
        )
    return str(base)
