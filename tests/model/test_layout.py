"""The words by which optimizers and parallelism know a parameter."""

import fnmatch

import pytest
import torch
from torch import nn

from hasten.model.config import ModelConfig
from hasten.model.layout import LAYOUT, role, word
from hasten.model.transformer import assemble

SHAPES = [
    {"preset": "hasten-tiny", "vocab_size": 64},
    {"preset": "gpt2"},
    {"preset": "qwen3-0.6b"},
    {"preset": "llama3-8b"},
    {"kind": "encoder", "vocab_size": 64, "position": "learned", "norm": "layer", "embedding_norm": "learned",
     "num_token_types": 2, "pooler": "tanh", "head_transform": True, "head_bias": True, "norm_place": "both",
     "attention_bias": True},
    {"kind": "encoder", "vocab_size": 64, "head": "token_classes", "num_classes": 3, "head_bias": True},
    {"kind": "seq2seq", "vocab_size": 64, "position": "relative", "qk_norm": True, "shared_embeddings": False,
     "num_encoder_layers": 2, "ffn_bias": True},
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_parameter_has_the_role_that_its_module_plays(shape):
    with torch.device("meta"):
        model = assemble(ModelConfig.model_validate({**shape, "num_layers": 1}))
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        module = modules[name.rpartition(".")[0]]
        if parameter.ndim == 1 or name.endswith("relative.weight"):
            assert role(name) == "vector", name
        elif isinstance(module, nn.Embedding):
            assert role(name) == "embedding", name
        else:
            assert role(name) == ("head" if module is model.head else "matrix"), name


HELD_WHOLE = {"positions", "token_types", "transform.dense", "pooler"}
"""Tables and linears that are small, or read by all heads."""


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_layout_names_every_linear_and_table_that_is_divided(shape):
    with torch.device("meta"):
        model = assemble(ModelConfig.model_validate({**shape, "num_layers": 2}))
    divided = {name for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))}
    named = {name for name, _ in model.named_modules() if word(name)}
    assert named == divided - HELD_WHOLE
    assert {name for name in named if word(name) == "rows"} == {
        name for name in divided if name.endswith((".out", ".down"))
    }


def test_every_pattern_of_the_layout_names_something():
    with torch.device("meta"):
        models = [assemble(ModelConfig.model_validate({**shape, "num_layers": 1})) for shape in SHAPES]
    names = [name for model in models for name, _ in (*model.named_modules(), *model.named_parameters())]
    for pattern in LAYOUT:
        assert fnmatch.filter(names, pattern), pattern


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_matrices_of_blocks_are_those_that_the_configuration_counts(shape):
    """What Muon orthogonalises, apart from the dense layers before a head."""
    config = ModelConfig.model_validate({**shape, "num_layers": 2})
    with torch.device("meta"):
        model = assemble(config)
    found = [
        (parameter.shape[1], parameter.shape[0])
        for name, parameter in model.named_parameters()
        if role(name) == "matrix" and "layers." in name
    ]
    assert sorted(found) == sorted(config.matrix_shapes)
