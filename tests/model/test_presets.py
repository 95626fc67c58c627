"""Presets against what their authors published."""

import pytest
import torch

from hasten.model.config import ModelConfig
from hasten.model.presets import PRESETS
from hasten.model.transformer import Decoder

# From the checkpoints' own pages and files; GPT-2's without the copy that a tied head would be.
EXACT = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
}
# Table 2.1 of Brown et al. 2020: layers, width, width of a head, and the size that names the model.
GPT_3 = {
    "gpt3-125m": (12, 768, 64, 125e6),
    "gpt3-350m": (24, 1024, 64, 350e6),
    "gpt3-760m": (24, 1536, 96, 760e6),
    "gpt3-1.3b": (24, 2048, 128, 1.3e9),
    "gpt3-2.7b": (32, 2560, 80, 2.7e9),
    "gpt3-6.7b": (32, 4096, 128, 6.7e9),
    "gpt3-13b": (40, 5140, 128, 13e9),
    "gpt3-175b": (96, 12_288, 128, 175e9),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_with_the_parameters_its_formula_counts(name):
    config = ModelConfig.model_validate({"preset": name, "vocab_size": PRESETS[name].get("vocab_size", 4096)})
    with torch.device("meta"):
        model = Decoder(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters


@pytest.mark.parametrize(("name", "size"), EXACT.items())
def test_a_published_model_has_its_published_number_of_parameters(name, size):
    assert ModelConfig(preset=name).num_parameters == size


@pytest.mark.parametrize(("name", "row"), GPT_3.items())
def test_gpt_3_comes_in_the_papers_eight_sizes(name, row):
    config = ModelConfig(preset=name)
    layers, dim, head_dim, size = row
    assert (config.num_layers, config.dim, config.head_dim) == (layers, dim, head_dim)
    assert config.max_positions == 2048
    assert config.num_parameters == pytest.approx(size, rel=0.02)  # the paper rounds to two digits
