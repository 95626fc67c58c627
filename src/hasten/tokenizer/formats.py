"""The chat template that a conversation is written with: the model's own, a file's, or a known one."""

from dataclasses import dataclass
from pathlib import Path

from hasten.core.errors import ConfigError, did_you_mean
from hasten.tokenizer.template import LONGEST_TEMPLATE, find_template, set_special_tokens, template_source
from hasten.tokenizer.tokenizer import Tokenizer

SUFFIX = ".jinja"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""OpenAI's format, of Qwen, SmolLM2 and many others; the two special tokens have to be in the vocabulary."""
PLAIN = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'Q: ' + message['content'] + '\\nA:' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ('' if message['content'][:1].isspace() else ' ') + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ raise_exception('plain knows the roles system, user and assistant') }}{% endif %}"
    "{% endfor %}"
)
"""`Q: question`, line break, `A: answer`, end of text: for models without a template, in any language.

The blank before the answer belongs to the answer, as byte-level tokenizers have it.
"""
ALPACA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] != 'system' %}"
    "{{ 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\\n\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '### Instruction:\\n' + message['content'] + '\\n\\n### Response:\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + '\\n\\n' }}"
    "{% else %}{{ raise_exception('alpaca knows the roles system, user and assistant') }}{% endif %}"
    "{% endfor %}"
)
"""Stanford Alpaca's (Taori et al. 2023), an input behind its instruction."""
KNOWN = {"chatml": CHATML, "plain": PLAIN, "alpaca": ALPACA}
DEFAULT = "plain"


@dataclass(frozen=True)
class ChatTemplate:
    """A template that has been decided on."""

    name: str  # as messages to a person call it
    source: str  # what `chat_template.jinja` beside a model holds
    text: str  # what is rendered: `source` with the tokenizer's special tokens set before it


def choose_template(named: str | None, tokenizer: Tokenizer, base: Path | None) -> ChatTemplate:
    """The template that a recipe names, by a file or a known name; else that of `base`; else `plain`.

    Raises ConfigError for a name or a file that is not there, and for a known one that the tokenizer cannot
    write; DataError for a damaged file.
    """
    if named is None and base is not None and (text := find_template(base)) is not None:
        return ChatTemplate(f"{base}'s own", template_source(base) or "", text)
    if named is not None and named.endswith(SUFFIX):
        return with_tokens(named, read_template(Path(named)), tokenizer)
    name = named or DEFAULT
    if name not in KNOWN:
        near = did_you_mean(name, KNOWN)
        raise ConfigError(
            f"data.task.template: there is no template '{name}'.{near} Choose from {', '.join(KNOWN)}, or"
            f" give the path of a {SUFFIX} file"
        )
    if name == "chatml":
        check_chatml(tokenizer)
    return with_tokens(name, KNOWN[name], tokenizer)


def template_source_of(named: str | None, base: Path | None) -> str:
    """The Jinja text that `choose_template` would decide on, or the name of a known one."""
    if named is not None:
        return read_template(Path(named)) if named.endswith(SUFFIX) else named
    return (base is not None and find_template(base)) or DEFAULT


def read_template(path: Path) -> str:
    """The template in a file of bounded size."""
    if not path.is_file():
        raise ConfigError(
            f"data.task.template: {path} is not there; give a {SUFFIX} file, or one of {', '.join(KNOWN)}"
        )
    with path.open("rb") as file:
        data = file.read(4 * LONGEST_TEMPLATE + 1)
    try:
        source = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"data.task.template: {path} is not UTF-8 text; give a {SUFFIX} file") from None
    if len(source) > LONGEST_TEMPLATE:
        raise ConfigError(
            f"data.task.template: {path} is longer than {LONGEST_TEMPLATE:,} characters; give a shorter one"
        )
    return source


def with_tokens(name: str, source: str, tokenizer: Tokenizer) -> ChatTemplate:
    """A template that uses the tokens which `Tokenizer.save` names beside it."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eot_id, "pad_token": tokenizer.pad_id}
    spelled = {role: tokenizer.inner.id_to_token(id) for role, id in ids.items()}
    return ChatTemplate(name, source, set_special_tokens(spelled) + source)


def check_chatml(tokenizer: Tokenizer) -> None:
    """Refuse ChatML where its tokens are not single ones, or generation would run past an answer's end."""
    added = tokenizer.inner.get_added_tokens_decoder()
    special = {token.content: id for id, token in added.items() if token.special}
    missing = [word for word in (IM_START, IM_END) if word not in special]
    if missing:
        raise ConfigError(
            f"data.task.template: chatml needs the special token {missing[0]}, which the tokenizer lacks;"
            " write template: plain, or begin from a model that has it"
        )
    if special[IM_END] not in tokenizer.end_ids:
        raise ConfigError(
            f"data.task.template: chatml ends an answer with {IM_END}, at which generation does not stop"
            f" with this tokenizer; name {IM_END} as eos_token in tokenizer_config.json, or write template:"
            " plain"
        )
