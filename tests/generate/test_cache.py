"""A decoder with a cache computes what the decoder computes without one."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasten.core.errors import ConfigError
from hasten.generate.cache import KeyValueCache
from hasten.model.transformer import Decoder
from hasten.ops.attention import attend

Make = Callable[..., Decoder]
fixtures_are_factories = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
shapes = st.fixed_dictionaries(
    {
        "position": st.sampled_from(["rotary", "learned", "none"]),
        "num_kv_heads": st.sampled_from([1, 2, 4]),
        "qk_norm": st.booleans(),
    }
)


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 257, (rows, length), generator=torch.Generator().manual_seed(length))


@fixtures_are_factories
@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=6), shape=shapes)
def test_any_way_of_feeding_the_prompt_gives_the_same_hidden_states(small_model: Make, cuts, shape):
    model, prompt = small_model(**shape), tokens(2, sum(cuts))
    with torch.no_grad(), KeyValueCache(model, padding=[0, 0], capacity=sum(cuts)) as cache:
        pieces = torch.cat([cache.read(piece) for piece in prompt.split(cuts, dim=1)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(pieces, model(prompt), rtol=1e-4, atol=1e-5)


@fixtures_are_factories
@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4), more=st.integers(1, 4), shape=shapes)
def test_rows_of_unequal_length_are_read_as_if_each_were_alone(small_model: Make, lengths, more, shape):
    model, longest = small_model(**shape), max(lengths)
    prompts, following = tokens(len(lengths), longest), tokens(len(lengths), more)
    padding = [longest - length for length in lengths]
    with torch.no_grad(), KeyValueCache(model, padding, capacity=longest + more) as cache:
        first = cache.read(prompts)
        then = torch.cat([cache.read(following[:, i : i + 1]) for i in range(more)], dim=1)
    for row, pad in enumerate(padding):
        with torch.no_grad():
            alone = model(torch.cat([prompts[row, pad:], following[row]])[None])[0]
        together = torch.cat([first[row, pad:], then[row]])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@fixtures_are_factories
@given(kept=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True))
def test_rows_that_stay_go_on_as_if_nobody_had_left(small_model: Make, kept):
    model, prompts, following = small_model(), tokens(5, 7), tokens(5, 3)
    with torch.no_grad(), KeyValueCache(model, padding=[0, 1, 2, 3, 4], capacity=10) as cache:
        cache.read(prompts)
        everyone = cache.read(following)
    with torch.no_grad(), KeyValueCache(model, padding=[0, 1, 2, 3, 4], capacity=10) as cache:
        cache.read(prompts)
        cache.keep(kept)
        stayed = cache.read(following[kept])
    torch.testing.assert_close(stayed, everyone[kept], rtol=1e-4, atol=1e-5)


def test_buffers_stay_in_place_while_they_fill(small_model: Make):
    with torch.no_grad(), KeyValueCache(small_model(), padding=[0], capacity=40) as cache:
        cache.read(tokens(1, 3))
        before = [slot.keys.data_ptr() for slot in cache.slots]
        for _ in range(37):
            cache.read(tokens(1, 1))
        assert [slot.keys.data_ptr() for slot in cache.slots] == before


def test_attention_sees_the_filled_part_alone(small_model: Make):
    """What lies behind the filled part is never read: not-a-number there changes nothing."""
    model, prompt = small_model(), tokens(1, 4)
    with torch.no_grad(), KeyValueCache(model, padding=[0], capacity=50) as cache:
        cache.read(prompt[:, :2])
        for slot in cache.slots:
            slot.keys[:, :, 2:] = slot.values[:, :, 2:] = torch.nan
        assert cache.read(prompt[:, 2:]).isfinite().all()


def test_the_model_gets_its_attention_back_even_after_an_error(small_model: Make):
    model = small_model()
    with pytest.raises(ConfigError), KeyValueCache(model, padding=[0], capacity=2) as cache:
        cache.read(tokens(1, 3))
    assert all(layer.attention.attend is attend for layer in model.layers.values())


def test_more_tokens_than_the_capacity_are_refused(small_model: Make):
    with KeyValueCache(small_model(), padding=[0], capacity=5) as cache:
        cache.read(tokens(1, 4))
        with pytest.raises(ConfigError, match="made for 5 positions and position 6 was asked for"):
            cache.read(tokens(1, 2))


def test_positions_that_were_never_learned_are_refused(small_model: Make):
    model = small_model(position="learned", max_positions=8)
    with KeyValueCache(model, padding=[0, 2], capacity=20) as cache:
        cache.read(tokens(2, 8))
        with pytest.raises(ConfigError, match="has learned 8 positions and cannot read 9 tokens; shorten"):
            cache.read(tokens(2, 1))
        cache.keep([1])  # the padded row has two positions left
        assert cache.read(tokens(1, 2)).shape == (1, 2, 32)
