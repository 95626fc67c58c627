"""Stop strings and streaming, against a scan of the whole text character by character."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.generate.text import GrowingText, first_stop, undecided


class Pieces:
    """A token stream in which token i is the i-th of some pieces of text."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def step(self, token: int) -> str:
        return self.pieces[token]


def run(pieces: list[str], stop: list[str]) -> tuple[str, list[str], bool]:
    """Text, streamed pieces, and whether a stop string was met."""
    streamed: list[str] = []
    growing = GrowingText(Pieces(pieces), stop, streamed.append)
    met = any(growing.push(token) for token in range(len(pieces)))  # any() ends with the first True
    return growing.text if met else growing.finish(), streamed, met


def cut_by_reading_on(text: str, stop: list[str]) -> tuple[str, bool]:
    """Read character by character; the first time the text read ends with a stop string, cut it off."""
    for end in range(1, len(text) + 1):
        ending = [word for word in stop if text[:end].endswith(word)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def test_a_stop_string_inside_one_token_is_cut_off():
    assert run(["one", " two\n\nthree"], ["\n\n"]) == ("one two", ["one", " two"], True)


def test_a_stop_string_across_tokens_is_never_streamed():
    text, streamed, met = run(["He said ", "E", "N", "D", " more"], ["END"])
    assert (text, met) == ("He said ", True)
    assert "".join(streamed) == "He said "


def test_the_beginning_of_a_stop_string_is_shown_once_it_goes_on_differently():
    text, streamed, met = run(["E", "N", "V", "Y"], ["END"])
    assert (text, met) == ("ENVY", False)
    assert streamed == ["ENV", "Y"]


def test_the_beginning_of_a_stop_string_at_the_end_is_text():
    assert run(["a", "E", "N"], ["END"])[0] == "aEN"


def test_a_chinese_stop_string_works_across_tokens():
    assert run(["床前明月", "光", "。", "疑是"], ["光。疑"])[0] == "床前明月"


def test_the_stop_string_complete_first_wins():
    assert first_stop("xabc", ["abc", "b"]) == 2
    assert first_stop("xabc", ["bc", "abc"]) == 1  # both complete with c: the longer began first
    assert first_stop("xyz", ["abc"]) is None


def test_only_an_end_that_begins_a_stop_string_is_undecided():
    assert undecided("abab", ["abac"]) == 2
    assert undecided("abab", ["x"]) == 0
    assert undecided("", ["x"]) == 0
    assert undecided("ab", []) == 0


letters = st.text(alphabet="ab光\n", max_size=5)


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(letters, max_size=12), stop=st.lists(letters.filter(bool), max_size=3))
def test_text_does_not_depend_on_where_tokens_are_cut(pieces, stop):
    text, streamed, met = run(pieces, stop)
    assert (text, met) == cut_by_reading_on("".join(pieces), stop)
    assert "".join(streamed) == text
    assert not any(word in text for word in stop)
    assert all(streamed)
