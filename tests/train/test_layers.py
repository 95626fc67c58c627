"""A student of some layers computes what the base computes with these layers alone."""

import pytest
import torch

from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.fewer import renumbered, with_layers
from hasten.model.transformer import assemble, build
from hasten.train.layers import chosen, sides

SHAPE = {"vocab_size": 30, "dim": 16, "num_layers": 6, "num_heads": 2, "max_positions": 32}
KINDS = {
    "decoder": {"sliding_window": 3, "window_layers": (0, 3, 4)},
    "encoder": {"kind": "encoder"},
    "seq2seq": {"kind": "seq2seq", "num_encoder_layers": 5, "start_id": 1},
}


@pytest.mark.parametrize(
    ("rule", "count", "expected"),
    [
        ("spread", 4, [0, 3, 7, 11]),
        ("spread", 6, [0, 2, 4, 6, 8, 11]),
        ("spread", 12, list(range(12))),
        ("spread", 1, [11]),
        ("first", 3, [0, 1, 2]),
        ("last", 3, [9, 10, 11]),
        ((1, 5, 6), 99, [1, 5, 6]),
    ],
)
def test_which_layers_a_rule_takes(rule, count, expected):
    assert chosen(rule, 12, count) == expected


@pytest.mark.parametrize(
    ("rule", "count", "said"),
    [
        ("spread", 13, "would take 13 layers of a base that has 12"),
        ((0, 12), 2, r"layers is \[0, 12\], and the base has 12 layers; write numbers from 0 to 11"),
        ((3, 1), 2, "in rising order"),
        ((1, 1), 2, "each once"),
        ((), 2, "write numbers"),
    ],
)
def test_layers_that_are_not_there_are_refused(rule, count, said):
    with pytest.raises(ConfigError, match=said):
        chosen(rule, 12, count)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_its_base_without_the_other_layers(kind):
    base = build(ModelConfig.model_validate({**SHAPE, **KINDS[kind], "init_std": 0.3}), seed=0).eval()
    asked = ModelConfig.model_validate(
        {**SHAPE, "num_layers": 3, **({"num_encoder_layers": 2, "kind": kind} if kind == "seq2seq" else {})}
    )
    stay = sides("spread", base.config, asked)
    student = assemble(with_layers(base.config, stay))
    student.load_state_dict(renumbered(dict(base.named_parameters()), stay), strict=True)
    stacks = {"": base} if kind != "seq2seq" else {"encoder.": base.encoder, "decoder.": base.decoder}
    for side, stack in stacks.items():  # the same layers, taken out of the base
        layers = list(stack.layers.items())
        for name, _ in layers:
            if int(name) not in stay[side]:
                del stack.layers[name]
    tokens = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(0))
    given = {"source": tokens.flip(1)} if kind == "seq2seq" else {}
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(tokens, **given), base(tokens, **given), rtol=0, atol=0)
    assert [len(layers) for layers in stay.values()] == ([2, 3] if kind == "seq2seq" else [3])


def test_windows_go_with_their_layers():
    base = ModelConfig.model_validate({**SHAPE, **KINDS["decoder"]})
    assert with_layers(base, {"": [0, 2, 4]}).window_layers == (0, 2)
