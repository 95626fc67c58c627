"""Conversations, typed and read by a program instead of a person."""

from collections.abc import Callable, Iterable

import pytest
import torch

from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.serve.chat import chat
from hasten.tokenizer.conversation import conversation_ids
from hasten.tokenizer.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    "<|im_start|>assistant: "
)
GREEDY = GenerateConfig(temperature=0.0, max_new_tokens=8)


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer) -> Tokenizer:
    """Bytes, and two special tokens of which the second ends an answer."""
    return byte_tokenizer("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def model() -> Decoder:
    """A decoder that answers with any character that can be typed, never twice the same."""
    config = {"vocab_size": 258, "dim": 32, "num_layers": 2, "num_heads": 4, "max_positions": 160}
    model = build(ModelConfig.model_validate(config), seed=3).eval()
    with torch.no_grad():
        model.head.weight.mul_(30)
        model.head.weight[94:] = 0  # logits of all but the printable bytes
    return model


def converse(
    model: Decoder,
    tokenizer: Tokenizer,
    lines: Iterable[str],
    *,
    template: str | None = None,
    config: GenerateConfig = GREEDY,
    write: Callable[[str], None] | None = None,
) -> list[str]:
    """What is shown before the first line and after each, until the lines or the conversation end."""
    shown, typed = [""], iter(lines)

    def read(prompt: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        shown.append("")
        return line

    def show(text: str) -> None:
        shown[-1] += text
        if write is not None:
            write(text)

    chat(model, tokenizer, config, template, read=read, write=show)
    return shown


def test_a_base_model_says_that_it_continues_text(model, tokenizer):
    [greeting] = converse(model, tokenizer, [])
    assert "has no chat template: it does not answer, it goes on with what you write" in greeting


def test_a_base_model_goes_on_with_the_text_so_far(model, tokenizer):
    _, first, second, third = converse(model, tokenizer, ["从前有座山", "Then", ""])
    texts = [answer.removesuffix("\n") for answer in (first, second, third)]
    prompt = "从前有座山"
    for text, next_line in zip(texts, ["\nThen", "", ""], strict=True):
        [alone] = generate(model, tokenizer, [prompt], GREEDY)
        assert text == alone.text != ""
        prompt += text + next_line


def test_a_chat_model_reads_the_whole_conversation(model, tokenizer):
    greeting, first, second = converse(model, tokenizer, ["你好", "Why?"], template=TEMPLATE)
    assert "continue" not in greeting
    messages = [{"role": "user", "content": "你好"}]
    for answer, question in ((first, "Why?"), (second, "")):
        ids = conversation_ids(tokenizer, TEMPLATE, messages)
        start = len(ids)
        while len(ids) < start + 8:
            with torch.no_grad():
                ids.append(int(model.logits(model(torch.tensor([ids]))[0, -1]).argmax()))
        assert answer == tokenizer.decode(ids[start:]) + "\n"
        messages += [
            {"role": "assistant", "content": answer.strip()},
            {"role": "user", "content": question},
        ]


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "template"])
def test_reset_begins_anew(model, tokenizer, template):
    _, first, forgotten, again = converse(model, tokenizer, ["Hi", "/reset", "Hi"], template=template)
    assert forgotten == "Forgotten.\n"
    assert again == first


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "template"])
def test_the_same_lines_and_seed_give_the_same_conversation(model, tokenizer, template):
    lines, config = ["Hi", "Hi", "Hi"], GenerateConfig(temperature=1.5, max_new_tokens=8, seed=4)
    once = converse(model, tokenizer, lines, template=template, config=config)
    assert once == converse(model, tokenizer, lines, template=template, config=config)
    other = config.model_copy(update={"seed": 5})
    assert once != converse(model, tokenizer, lines, template=template, config=other)


def test_quit_leaves_and_nothing_more_is_read(model, tokenizer):
    assert len(converse(model, tokenizer, ["/quit", "Hi"])) == 2


def test_interrupting_at_the_prompt_leaves(model, tokenizer):
    def read(prompt: str) -> str:
        raise KeyboardInterrupt

    chat(model, tokenizer, GREEDY, None, read=read, write=lambda text: None)


def test_help_names_every_command(model, tokenizer):
    _, shown = converse(model, tokenizer, ["/help"])
    assert all(command in shown for command in ("/reset", "/help", "/quit"))


def test_an_unknown_command_is_not_sent_to_the_model(model, tokenizer):
    _, shown, first = converse(model, tokenizer, ["/rest", "Hi"])
    assert shown.startswith("There is no /rest. Did you mean '/reset'? With a space before it, it is text.")
    assert first == converse(model, tokenizer, ["Hi"])[1]


def test_a_command_after_a_space_is_text(model, tokenizer):
    [expected] = generate(model, tokenizer, [" /quit"], GREEDY)
    assert converse(model, tokenizer, [" /quit"])[1] == expected.text + "\n"


def test_an_answer_is_shown_while_it_grows(model, tokenizer):
    pieces: list[str] = []
    shown = converse(model, tokenizer, ["Hi"], write=pieces.append)
    assert "".join(pieces[1:]) == shown[1]
    assert len(pieces) == 1 + 8 + 1  # the greeting, eight characters, the end of the line


def test_interrupting_an_answer_keeps_what_was_shown(model, tokenizer):
    count = 0

    def interrupt(text: str) -> None:
        nonlocal count
        count += 1
        if count == 4:  # the greeting and three characters
            raise KeyboardInterrupt

    _, first, second = converse(model, tokenizer, ["Hi", "Go"], write=interrupt)
    whole = converse(model, tokenizer, ["Hi"])[1]
    assert first == whole[:3] + "\n"
    [continued] = generate(model, tokenizer, ["Hi" + whole[:3] + "\nGo"], GREEDY)
    assert second == continued.text + "\n"


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "template"])
def test_a_line_longer_than_the_context_is_refused_and_taken_back(model, tokenizer, template):
    _, refused, answer = converse(model, tokenizer, ["x" * 300, "Hi"], template=template)
    assert "the model's context 160; shorten it" in refused
    assert answer == converse(model, tokenizer, ["Hi"], template=template)[1]


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "template"])
def test_a_long_conversation_forgets_its_beginning_and_says_so(model, tokenizer, template):
    answers = converse(model, tokenizer, ["And what happened then?"] * 8, template=template)[1:]
    notice = "(the context is full: the model no longer knows the beginning)\n"
    assert not answers[0].startswith(notice)
    assert any(answer.startswith(notice) for answer in answers)
    # The room that was made is enough: every answer is whole.
    assert all(len(answer.removeprefix(notice)) == 8 + 1 for answer in answers)


def test_a_template_that_fails_is_named_and_the_line_taken_back(model, tokenizer):
    _, shown, second = converse(model, tokenizer, ["a", "b"], template="{{ messages[0].nothing.at.all }}")
    assert shown.startswith("(chat template: ")
    assert second == shown


def test_an_answer_that_ends_is_followed_by_the_next_question(tokenizer):
    """A model whose every answer is empty: it ends at once."""
    config = {"vocab_size": 258, "dim": 32, "num_layers": 1, "num_heads": 2, "norm": "layer"}
    silent, only_end = (
        build(ModelConfig.model_validate(config), seed=0).eval(),
        GenerateConfig(temperature=0.0),
    )
    with torch.no_grad():
        silent.norm.weight.zero_()
        silent.norm.bias.fill_(1)
        silent.head.weight.zero_()
        silent.head.weight[tokenizer.eot_id] = 1
    assert converse(silent, tokenizer, ["a", "b"], template=TEMPLATE, config=only_end)[1:] == ["\n", "\n"]
    plain = converse(silent, tokenizer, ["a"], config=only_end)[1]
    assert plain == "\n(here the model ends the text; /reset begins another)\n"
