"""Problems whose answers are programs: MBPP and HumanEval, from their files to programs that can be run.

MBPP: Austin et al. 2021, "Program Synthesis with Large Language Models".  HumanEval: Chen et al. 2021,
"Evaluating Large Language Models Trained on Code".
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hasten.core.errors import DataError
from hasten.core.foreign import mapping
from hasten.data.formats import raw_lines
from hasten.evaluate.pass_at_k import mean_pass_at_k
from hasten.evaluate.sandbox import Program, Verdict

Format = Literal["mbpp", "humaneval"]
STOPS: dict[Format, tuple[str, ...]] = {
    "mbpp": ("[DONE]",),
    "humaneval": ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint"),
}
"""Where a model that goes on with a prompt has said what was asked, by the two papers."""
MBPP_PROMPT = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:"
    "\n\n{tests}\n[BEGIN]\n"
)
CHAT_PROMPT = "{text}\n\nYour code should pass these tests:\n\n{tests}\n\nAnswer with the Python code alone."
CHAT_PROMPT_HUMANEVAL = "Complete this Python function. Answer with the whole function alone.\n\n{text}"
FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
COLUMNS: dict[Format, dict[str, type]] = {
    "mbpp": {"text": str, "code": str, "test_setup_code": str, "test_list": list},
    "humaneval": {"prompt": str, "entry_point": str, "canonical_solution": str, "test": str},
}


@dataclass(frozen=True)
class Problem:
    """A task for a program.

    Of HumanEval, `text` is the beginning of the program: imports, perhaps functions, a header and what it
    says of itself.
    """

    id: str
    format: Format
    text: str
    tests: tuple[str, ...]
    solution: str
    """The author's own: a whole program in MBPP, in HumanEval what follows `text`."""
    setup: str = ""  # runs before the program
    entry_point: str = ""  # the function that HumanEval's tests call

    def prompt(self, shots: Sequence["Problem"] = ()) -> str:
        """What a base model goes on with; of MBPP after some problems with their solutions."""
        if self.format == "humaneval":
            return self.text
        asked = MBPP_PROMPT.format(text=self.text, tests="\n".join(self.tests))
        return "".join(f"{shot.prompt()}{shot.solution}\n[DONE]\n\n" for shot in shots) + asked

    def chat_prompt(self) -> str:
        """What a chat model is asked."""
        if self.format == "humaneval":
            return CHAT_PROMPT_HUMANEVAL.format(text=self.text)
        return CHAT_PROMPT.format(text=self.text, tests="\n".join(self.tests))

    def program(self, completion: str) -> Program:
        """What a model wrote, as a program with this problem's tests."""
        text = self.whole(code_of(completion, STOPS[self.format]))
        tests = (*self.tests, f"check({self.entry_point})") if self.entry_point else self.tests
        return Program(f"{self.setup}\n{text}" if self.setup else text, tests)

    def whole(self, code: str) -> str:
        """The code after HumanEval's text; where it has the function anew, after what stands before that."""
        if self.format == "mbpp":
            return code
        header = re.compile(rf"^def\s+{re.escape(self.entry_point)}\b", re.MULTILINE)
        if not header.search(code):
            return self.text + code
        found = header.search(self.text)
        return (self.text[: found.start()] if found else "") + code


def code_of(completion: str, stops: Sequence[str]) -> str:
    """The code in what a model wrote: its first fenced block, or all of it before the first stop string.

    A fence that is never closed was cut off by the budget.
    """
    if fenced := FENCE.search(completion):
        return fenced[1]
    ends = [at for stop in stops if (at := completion.find(stop)) >= 0]
    return completion[: min(ends, default=len(completion))]


def read_problems(path: Path) -> list[Problem]:
    """The problems in a .jsonl file, perhaps .gz; their format is told by their columns.

    Raises DataError for a row of neither, and where there is none.
    """
    rows = [(f"{path}:{number}", line) for number, line in raw_lines(path) if line.strip()]
    problems = [problem_of(mapping(line, where, DataError), where) for where, line in rows]
    if not problems:
        raise DataError(f"{path}: holds no problem; give a file of MBPP or HumanEval")
    return problems


def problem_of(row: dict[str, Any], where: str) -> Problem:
    """The problem in a row of MBPP or HumanEval."""
    form = next((form for form, columns in COLUMNS.items() if columns.keys() <= row.keys()), None)
    if form is None:
        known = " or ".join(", ".join(columns) for columns in COLUMNS.values())
        raise DataError(f"{where}: is no problem for a program; it needs the columns {known}")
    for name, kind in COLUMNS[form].items():
        if not isinstance(row[name], kind):
            raise DataError(f"{where}: {name} should be {kind.__name__}, got {type(row[name]).__name__}")
    name = str(row.get("task_id", where))
    if form == "humaneval":
        tests = (row["test"],)
        return Problem(name, form, row["prompt"], tests, row["canonical_solution"], "", row["entry_point"])
    if not all(isinstance(test, str) for test in row["test_list"]):
        raise DataError(f"{where}: test_list should hold lines of Python")
    return Problem(name, form, row["text"], tuple(row["test_list"]), row["code"], row["test_setup_code"])


def pass_record(verdicts: Iterable[Sequence[Verdict]], ks: Sequence[int]) -> dict[str, Any]:
    """{"pass@k": ..., "verdicts": how many of each kind} from the verdicts on each problem's programs."""
    of_problems = [list(group) for group in verdicts]
    results = [(len(group), sum(verdict.passed for verdict in group)) for group in of_problems]
    kinds = [verdict.kind for group in of_problems for verdict in group]
    scores = {f"pass@{k}": asdict(mean_pass_at_k(results, k)) for k in ks}
    return {**scores, "verdicts": {kind: kinds.count(kind) for kind in sorted(set(kinds))}}
