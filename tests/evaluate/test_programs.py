"""Problems are read, answers become programs, and the authors' own solve all of them."""

import gzip
import json
import math
from itertools import combinations
from pathlib import Path
from statistics import NormalDist

import pytest

from hasten.core.errors import ConfigError, DataError
from hasten.evaluate import sandbox
from hasten.evaluate.pass_at_k import mean_pass_at_k, pass_at_k
from hasten.evaluate.programs import Problem, code_of, pass_record, problem_of, read_problems
from hasten.evaluate.sandbox import SandboxConfig, Verdict, run

SHARED = Path(__file__).parents[3] / "shared" / "data" / "code"
MBPP = {
    "task_id": 7,
    "text": "Write a function to add two numbers.",
    "code": "def add(a, b):\r\n    return a + b",
    "test_setup_code": "",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
    "challenge_test_list": [],
}
HUMANEVAL = {
    "task_id": "HumanEval/1",
    "prompt": 'import math\n\n\ndef one():\n    return 1\n\n\ndef root(x):\n    """ Root of x. """\n',
    "entry_point": "root",
    "canonical_solution": "    return math.sqrt(x) * one()\n",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n    assert one() == 1\n",
}


def works(problem: Problem, completion: str) -> bool:
    """Whether a completion's program passes its tests, run here: these are our own."""
    program = problem.program(completion)
    space: dict = {}
    try:
        exec(program.text, space)
        for test in program.tests:
            exec(test, space)
    except Exception:
        return False
    return True


def test_solutions_and_answers_of_base_and_chat_models_become_programs():
    mbpp, human = problem_of(MBPP, "here"), problem_of(HUMANEVAL, "here")
    whole = "def root(x):\n    return math.sqrt(x)\n"
    for problem, completion in [
        (mbpp, mbpp.solution),
        (mbpp, f"{mbpp.solution}\n[DONE]\nprose that is no Python"),
        (mbpp, f"Here it is:\n\n```python\n{MBPP['code']}\n```\nUse it so:\n```python\nadd()\n```"),
        (mbpp, f"```\n{MBPP['code']}"),
        (human, human.solution),
        (human, f"{human.solution}\ndef root(x):\n    return 0\n"),
        (human, f"{human.solution}\nif True:\n    root = None\n"),
        (human, f"Sure!\n```python\n{whole}```"),
        (human, "```python\n    return x ** 0.5\n```"),
    ]:
        assert works(problem, completion), completion
    assert not works(mbpp, "def add(a, b):\n    return a - b")
    assert not works(human, "    return x\n")


def test_code_is_cut_where_it_ends():
    assert code_of("a\n[DONE]\nb", ("[DONE]",)) == "a\n"
    assert code_of("a\ndef b\nclass c", ("\nclass ", "\ndef ")) == "a"
    assert code_of("a", ("\nclass ",)) == "a"
    assert code_of("x\n```py\na\ndef b\n```\n", ("\ndef ",)) == "a\ndef b\n"
    assert code_of("", ("[DONE]",)) == ""


def test_a_prompt_of_mbpp_is_the_paper_s():
    problem, shot = problem_of(MBPP, "here"), problem_of({**MBPP, "text": "Add."}, "here")
    tests = "assert add(1, 2) == 3\nassert add(0, 0) == 0"
    begin = "You are an expert Python programmer, and here is your task: "
    asked = f"{begin}{MBPP['text']} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    assert problem.prompt() == asked
    shown = f"{begin}Add. Your code should pass these tests:\n\n{tests}\n[BEGIN]\n{shot.solution}\n[DONE]\n\n"
    assert problem.prompt([shot]) == shown + asked
    assert tests in problem.chat_prompt()
    human = problem_of(HUMANEVAL, "here")
    assert human.prompt() == HUMANEVAL["prompt"] and HUMANEVAL["prompt"] in human.chat_prompt()


def test_files_are_read_packed_or_not(tmp_path):
    text = "\n".join(json.dumps(row) for row in (MBPP, HUMANEVAL)) + "\n\n"
    (tmp_path / "plain.jsonl").write_text(text)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    found = read_problems(tmp_path / "plain.jsonl")
    assert [problem.id for problem in found] == ["7", "HumanEval/1"]
    assert [problem.format for problem in found] == ["mbpp", "humaneval"]
    assert read_problems(tmp_path / "packed.jsonl.gz") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no problem"),
        ("{", "is not JSON"),
        ("[1]", "should hold a mapping"),
        ('{"text": "a"}', "is no problem for a program"),
        (json.dumps({**MBPP, "test_list": "assert 1"}), "test_list should be list, got str"),
        (json.dumps({**MBPP, "test_list": [1]}), "test_list should hold lines of Python"),
        (json.dumps({**HUMANEVAL, "entry_point": None}), "entry_point should be str"),
    ],
    ids=["empty", "json", "list", "columns", "kind", "lines", "null"],
)
def test_what_is_no_problem_is_named(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_problems(path)


def drawn(n: int, c: int, k: int) -> float:
    """The share of all draws of k out of n programs, c of them right, that hold a right one."""
    draws = list(combinations(range(n), k))
    return sum(any(one < c for one in draw) for draw in draws) / len(draws)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_chance_of_a_right_one_among_k_drawn(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            assert pass_at_k(n, c, k) == pytest.approx(drawn(n, c, k))


def test_pass_at_k_of_many_problems_has_the_error_of_a_mean():
    found = mean_pass_at_k([(2, 1), (2, 0), (4, 4)], 1)
    assert found.score == pytest.approx(0.5)
    stderr = math.sqrt((0.0 + 0.25 + 0.25) / 2 / 3)
    assert found.interval == pytest.approx(NormalDist().inv_cdf(0.975) * stderr)
    assert (found.problems, found.samples) == (3, 2)
    assert mean_pass_at_k([(1, 1)], 1).interval is None
    with pytest.raises(ConfigError, match="pass@3 cannot be had from 2 programs"):
        mean_pass_at_k([(4, 1), (2, 1)], 3)
    with pytest.raises(DataError, match="no problem to score"):
        mean_pass_at_k([], 1)


def test_a_record_counts_verdicts():
    verdicts = [[Verdict("passed"), Verdict("failed")], [Verdict("timeout"), Verdict("failed")]]
    found = pass_record(verdicts, [1, 2])
    assert found["pass@1"]["score"] == 0.25 and found["pass@2"]["score"] == 0.5
    assert found["verdicts"] == {"failed": 2, "passed": 1, "timeout": 1}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared files are not here")
@pytest.mark.parametrize("name", ["mbpp_dev.jsonl", "mbpp_prompt.jsonl", "humaneval.jsonl.gz"])
def test_the_authors_solutions_solve_their_problems(name):
    problems = read_problems(SHARED / name)[:: 1 if name == "mbpp_prompt.jsonl" else 8]
    config = SandboxConfig(workers=2)
    try:
        sandbox.check(config)
    except ConfigError as error:
        pytest.skip(str(error))
    found = run([problem.program(problem.solution) for problem in problems], config)
    assert [one.kind for one in found] == ["passed"] * len(problems)
    nothing = run(
        [problem.program({"mbpp": "pass"}.get(problem.format, "    pass\n")) for problem in problems]
    )
    assert not any(one.passed for one in nothing)
