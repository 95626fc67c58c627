"""The command line: `hasten VERB recipe.yaml key=value ...`.

Only the verb that is asked for is imported: `hasten --help` answers without torch.
"""

import importlib
import keyword
import os
import sys
from collections.abc import Callable, Sequence

from hasten import __version__
from hasten.core import worker
from hasten.core.allocator import settle_allocator
from hasten.core.errors import ConfigError, HastenError, did_you_mean

VERBS = {
    "journey": "every stage of a recipe in turn; a stage whose inputs are unchanged is not run again",
    "prepare": "files to clean, tokenised, memory-mapped shards",
    "train": "train a model; run again, it resumes where it stopped",
    "evaluate": "score the trained model on the held-out test text",
    "generate": "continue prompts",
    "translate": "translate lines with a model that reads a source",
    "classify": "tell the class of each line or row, with a classifier",
    "answer": "find the answers to questions in a text, with a model that was trained to",
    "chat": "talk with a model in the terminal",
    "inspect": "see what a model looks at in your text, head by head, and what it expected",
    "embed": "vectors of texts from an encoder, and how near they are to each other",
    "import": "make a checkpoint of a Hugging Face folder, a model of the hub or a GGUF file",
    "export": "write a model for transformers (to=hf), llama.cpp (to=gguf) or peft (to=peft)",
    "merge": "fold an adapter into its base: a plain model, compared before it is written",
    "compress": "a smaller, faster model by a chain of methods, or for a target, and what it costs",
    "report": "draw report.html from the files of one or several runs",
    "bench": "measure this machine, and what each technique is worth on it",
    "job": "write a training's job file for Slurm, Kubernetes or SkyPilot",
    "plan": "how to spread a training over devices: memory, time and cost of every layout",
    "show": "the resolved recipe, parameters, FLOPs and memory; starts nothing",
    "recipes": "list the recipes that ship: purpose, hardware, time",
    "init": "copy a recipe that ships into your folder",
    "schema": "print the JSON schema of recipes, for editors",
}

COMPUTING = {
    "journey",
    "train",
    "evaluate",
    "generate",
    "translate",
    "classify",
    "answer",
    "chat",
    "inspect",
    "embed",
    "import",
    "export",
    "merge",
    "compress",
    "bench",
}
"""Verbs that take and give back much memory."""

MODULES = {
    "models": ("inspect", "embed", "import", "export", "merge"),
    "machine": ("bench", "plan", "job"),
    "recipes": ("show", "recipes", "init", "schema"),
}
"""Of `hasten.verbs`; the other verbs are stages."""

EXAMPLES = """\
examples:
  hasten journey demo                                 from text to a tested model, with a report
  hasten journey demo data.sources=[my/texts]         the same on your own files
  hasten init demo my.yaml                            a recipe of your own to edit
  hasten train my.yaml train.minutes=10 seed=1        change anything without editing
  hasten generate runs/demo generate.prompts='["def main("]'
  hasten inspect runs/demo "def main("               attention and next-token probabilities, as a page
  hasten import path/to/model                        a model of others, as a checkpoint
  hasten export runs/demo to=gguf                     and one of yours for llama.cpp
  hasten report runs/first runs/second                compare runs
  hasten compress runs/demo --target size=25%         a quarter of the size, and what that costs
  hasten plan gpt2 hardware=h100x8x16                 what fits on 128 GPUs, how fast, at what cost
  hasten bench                                        ten minutes: the speed ledger of this machine

A recipe is a YAML file, the name of one that ships, or a run's folder.  `hasten VERB --help` says more.
Exit codes: 0 done, 1 interrupted or failed, 2 something to mend in what was asked; of one process of
several also 75 another is gone, 76 stopped by the watchdog: start all again, and the training goes on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the process's exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and words and words[0] in COMPUTING:
        settle_allocator()
    worker.hush()
    try:
        return run(words)
    except HastenError as error:
        return worker.tell(error)
    except KeyboardInterrupt:
        print("\nhasten: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output (head, less) has left: not an error, but nothing more may be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if worker.rank() is None:
            raise
        return worker.tell(error)  # eight tracebacks say less than one: the launcher chooses


def run(words: Sequence[str]) -> int:
    """Find the verb and hand it the rest of the words."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"hasten {__version__}")
        return 0
    verb, *rest = words
    if verb not in VERBS:
        raise ConfigError(
            f"there is no verb '{verb}'.{did_you_mean(verb, VERBS)} Choose from {', '.join(VERBS)}"
        )
    if any(word in ("-h", "--help") for word in rest):
        print(verb_help(verb))
        return 0
    return int(function_of(verb)(rest) or 0)


def function_of(verb: str) -> Callable[[Sequence[str]], int | None]:
    """The function behind a verb; Python has a word `import` of its own, so that one is `import_`."""
    name = f"{verb}_" if keyword.iskeyword(verb) else verb
    module = next((module for module, verbs in MODULES.items() if verb in verbs), "stages")
    return getattr(importlib.import_module(f"hasten.verbs.{module}"), name)


def overview() -> str:
    """What `hasten --help` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {purpose}" for verb, purpose in VERBS.items()]
    title = ["hasten VERB RECIPE [key=value ...]", "", "Train Transformer language models, fast.", ""]
    return "\n".join([*title, *lines, "", EXAMPLES])


def verb_help(verb: str) -> str:
    """What `hasten VERB --help` prints: the docstring of the verb's function."""
    text = function_of(verb).__doc__ or ""
    return "\n".join(line.strip() for line in text.strip().splitlines())


if __name__ == "__main__":
    sys.exit(main())
