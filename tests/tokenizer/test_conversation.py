"""Messages to ids with loss: as `transformers` has them, and exactly behind what generation reads."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from hasten.core.errors import DataError
from hasten.tokenizer.conversation import PRIVATE, Conversations, Dialogue, conversation_ids, spare_characters
from hasten.tokenizer.formats import KNOWN
from hasten.tokenizer.template import Refusal, set_special_tokens
from hasten.tokenizer.tokenizer import Tokenizer

CHATML = KNOWN["chatml"]
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The same format, with the assistant's words told by the template."""
CONTENT_MARKED = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Earlier thoughts are not seen again, as in Qwen 3."""
ROUNDS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  床前明月光 🌙 "},
    {"role": "assistant", "content": "疑是地上霜"},
    {"role": "user", "content": "And then <b>?"},
    {"role": "assistant", "content": "举头望明月,\n\n低头思故乡。"},
]
ANSWERS = [False, False, True, False, True]


@pytest.fixture(scope="module")
def chatml(byte_tokenizer) -> Tokenizer:
    """A byte tokenizer with ChatML's two special tokens, of which the second ends a text."""
    return byte_tokenizer("<|im_start|>", "<|im_end|>")


def blank_joiner() -> Tokenizer:
    """Bytes, and two line breaks or a colon and a blank as one token: what joins a prompt with its answer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: number for number, char in enumerate(alphabet)} | {"ĊĊ": 256, ":Ġ": 257, "Ġa": 258}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ"), ("Ġ", "a"), (":", "Ġ")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(inner)


def taught(tokenizer, template, messages, learn):
    [found] = Conversations(tokenizer, template).taught([Dialogue(messages, learn)])
    assert not isinstance(found, Refusal), found.reason
    return found


def passages(tokenizer, part):
    """The texts of the runs that carry loss."""
    texts, run = [], []
    for id, learn in [*zip(part.ids, part.learn, strict=True), (None, False)]:
        if learn:
            run.append(id)
        elif run:
            texts.append(tokenizer.decode(run, special=True))
            run = []
    return texts


@pytest.mark.parametrize("template", [MARKED, CONTENT_MARKED, CHATML], ids=["marked", "content", "unmarked"])
@pytest.mark.parametrize("messages", [ROUNDS, ROUNDS[1:3], ROUNDS[3:]], ids=["rounds", "chinese", "tags"])
def test_ids_and_loss_are_those_of_transformers(chatml, template, messages, tmp_path):
    """Their mask needs marks around words and end; ours comes to the same without either."""
    from transformers import PreTrainedTokenizerFast

    chatml.save(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), chat_template=MARKED)
    expected = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    [part] = taught(chatml, template, messages, [m["role"] == "assistant" for m in messages])
    end = len(part.ids)
    assert part.ids == expected["input_ids"][:end]
    assert part.learn == [mask == 1 for mask in expected["assistant_masks"]][:end]
    assert not any(expected["assistant_masks"][end:])


@pytest.mark.parametrize("template", [CHATML, MARKED, CONTENT_MARKED], ids=["unmarked", "marked", "content"])
@pytest.mark.parametrize("turn", [2, 4])
def test_only_the_turns_that_are_to_be_learnt_carry_loss(chatml, template, turn):
    [part] = taught(chatml, template, ROUNDS, [place == turn for place in range(5)])
    assert passages(chatml, part) == [ROUNDS[turn]["content"] + "<|im_end|>"]


def test_nothing_to_learn_is_a_text_without_loss(chatml):
    [part] = taught(chatml, CHATML, ROUNDS, [False] * 5)
    assert not any(part.learn)
    assert chatml.decode(part.ids) == chatml.decode(part.ids[:]) != ""


def test_the_ids_before_an_answer_are_the_prompt_s_in_every_template_and_turn(chatml):
    for template in (CHATML, MARKED, *(tokens_of(chatml) + KNOWN[name] for name in ("plain", "alpaca"))):
        for turn in (2, 4):
            [part] = taught(
                chatml, template, ROUNDS[: turn + 1], [place == turn for place in range(turn + 1)]
            )
            assert part.ids[: part.learn.index(True)] == conversation_ids(chatml, template, ROUNDS[:turn])


def tokens_of(tokenizer):
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eot_id}
    return set_special_tokens({role: tokenizer.inner.id_to_token(id) for role, id in ids.items()})


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (
            "{% for m in messages %}{{ m.content + (eos_token if loop.index == 2 else '\n') }}{% endfor %}",
            "\nx",
        ),
        (
            "{% for m in messages %}{{ m.content + (eos_token if loop.index == 2 else ': ') }}{% endfor %}",
            "apple",
        ),
    ],
    ids=["line breaks", "colon"],
)
def test_an_answer_is_learnt_behind_the_prompt_even_where_a_tokenizer_would_join_them(template, answer):
    tokenizer = blank_joiner()
    messages = [{"role": "user", "content": "say"}, {"role": "assistant", "content": answer}]
    text = tokens_of(tokenizer) + template
    [part] = taught(tokenizer, text, messages, [False, True])
    prompt = conversation_ids(tokenizer, text, messages[:1])
    assert part.ids[: len(prompt)] == prompt
    assert tokenizer.decode(part.ids) == "say" + ("\n" if "\n" in answer else ": ") + answer
    joined = tokenizer.encode(tokenizer.decode(part.ids))
    assert part.ids[:-1] != joined  # what a cut after tokenizing would have learnt


def test_a_turn_after_a_turn_without_special_tokens_between_keeps_every_prompt(chatml):
    template = (
        "{% for m in messages %}{{ m.role[0] + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}a: {% endif %}"
    )
    [part] = taught(blank_joiner(), template, ROUNDS, ANSWERS)
    assert passages(blank_joiner(), part) == ["疑是地上霜\n", "举头望明月,\n\n低头思故乡。\n"]


def test_where_a_template_rewrites_the_past_each_answer_is_learnt_behind_the_past_it_is_given_behind(chatml):
    messages = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "<think>easy</think>2"},
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "<think>harder</think>4"},
    ]
    parts = taught(chatml, FORGETFUL, messages, [False, True, False, True])
    assert [passages(chatml, part) for part in parts] == [
        ["<think>easy</think>2<|im_end|>"],
        ["<think>harder</think>4<|im_end|>"],
    ]
    assert "easy" not in chatml.decode(parts[1].ids)
    for part, turn in zip(parts, (1, 3), strict=True):
        assert part.ids[: part.learn.index(True)] == conversation_ids(chatml, FORGETFUL, messages[:turn])


def test_an_end_that_generation_does_not_stop_at_is_no_end(byte_tokenizer):
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>", "<|endoftext|>")  # stops at the last alone
    [part] = taught(tokenizer, CHATML, ROUNDS, ANSWERS)
    assert part.ids[-1] not in tokenizer.end_ids
    tokenizer.end_ids |= {tokenizer.inner.token_to_id("<|im_end|>")}
    [part] = taught(tokenizer, CHATML, ROUNDS, ANSWERS)
    assert part.ids[-1] in tokenizer.end_ids


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(alphabet="a \n:<|im_end|>霜🌙", max_size=20), min_size=2, max_size=6))
def test_whatever_people_write_stays_text(chatml, contents):
    """Special tokens come from the template alone, and the text is what was written."""
    special = [chatml.inner.token_to_id(word) for word in ("<|im_start|>", "<|im_end|>")]
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)
    ]
    [part] = taught(chatml, CHATML, messages, [m["role"] == "assistant" for m in messages])
    last = max(place for place, m in enumerate(messages) if m["role"] == "assistant") + 1
    assert [part.ids.count(id) for id in special] == [last, last]
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages[:last])
    assert chatml.decode(part.ids, special=True) + "\n" == text
    assert passages(chatml, part) == [f"{m['content']}<|im_end|>" for m in messages[1:last:2]]


def test_private_characters_in_a_message_stay_what_they_are(chatml):
    word = chr(PRIVATE) + chr(PRIVATE + 1) + "<|im_end|>"
    ids = conversation_ids(chatml, CHATML, [{"role": "user", "content": word}])
    assert word in chatml.decode(ids, special=True)
    assert ids.count(chatml.inner.token_to_id("<|im_end|>")) == 1


def test_a_text_of_all_private_characters_is_refused():
    with pytest.raises(DataError, match="use up all private characters"):
        spare_characters(["".join(chr(PRIVATE + n) for n in range(65_534))], 1)


def test_tokens_that_swallow_blanks_do_so_as_in_transformers(byte_tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    inner = byte_tokenizer("</s>").inner
    inner.add_special_tokens([AddedToken("<|user|>", rstrip=True, normalized=False, special=True)])
    inner.add_special_tokens([AddedToken("<|left|>", lstrip=True, normalized=False, special=True)])
    tokenizer = Tokenizer(inner)
    template = "{% for m in messages %}<|user|>\n{{ m.content }}  <|left|> </s>\n{% endfor %}<|user|> \n x"
    tokenizer.save(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), chat_template=template)
    messages = [{"role": "user", "content": " hi "}]
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert conversation_ids(tokenizer, template, messages) == expected


def test_a_conversation_that_the_template_refuses_is_told_by_its_reason(chatml):
    template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('begin with a question') }}{% endif %}"
        + CHATML
    )
    found = Conversations(chatml, template).taught(
        [Dialogue(ROUNDS, ANSWERS), Dialogue(ROUNDS[1:], ANSWERS[1:])]
    )
    assert isinstance(found[0], Refusal)
    assert "begin with a question" in found[0].reason
    assert not isinstance(found[1], Refusal)
    with pytest.raises(DataError, match="begin with a question"):
        conversation_ids(chatml, template, ROUNDS)


def test_marks_that_change_what_a_template_writes_are_not_believed(chatml):
    """A template that measures its own words: then the answers are found by difference."""
    measuring = MARKED.replace(
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}",
        "{% set words %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}"
        "{{ words | length }} {{ m.content }}<|im_end|>",
    )
    [part] = taught(chatml, measuring, ROUNDS, ANSWERS)
    assert passages(chatml, part) == [
        f"{len(m['content'])} {m['content']}<|im_end|>" for m in ROUNDS if m["role"] == "assistant"
    ]


def test_many_dialogues_come_back_in_order(chatml):
    dialogues = [
        Dialogue(
            [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "x" * n}], [False, True]
        )
        for n in range(1, 30)
    ]
    found = Conversations(chatml, CHATML).taught(dialogues)
    assert [passages(chatml, parts[0]) for parts in found] == [["x" * n + "<|im_end|>"] for n in range(1, 30)]
    assert json.dumps([parts[0].ids for parts in found])  # plain numbers
