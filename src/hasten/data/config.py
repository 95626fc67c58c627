"""What text to train on, how to clean, split and tokenize it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hasten.core.config import Config
from hasten.data.tasks.chat import ChatConfig
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.preferences import PreferencesConfig
from hasten.data.tasks.spans import SpansConfig
from hasten.tokenizer.train import TokenizerConfig

STDLIB = "stdlib"
GLOB = re.compile(r"[*?\[]")


class SourceConfig(Config):
    """One source of text: files, or a data set of the Hugging Face hub.

    A bare string stands for `paths: [string]`.  Text, Markdown and program files are one document
    each (`separator` cuts them further); each row of jsonl, csv, tsv or parquet is a document; `.gz` and
    `.zst` are read as they are.  The word `stdlib` means the source of Python's standard library.
    """

    name: str = Field("", description="in reports and file names; by default the first path's own name")
    paths: tuple[str, ...] = Field(
        (), description="files, folders, globs such as data/**/*.txt.gz, or `stdlib`"
    )
    hub: str | None = Field(
        None, description="a data set's name on the hub, for example roneneldan/TinyStories"
    )
    hub_config: str | None = None
    hub_split: str = "train"
    hub_revision: str | None = Field(None, description="a commit, so that the same data come tomorrow")
    weight: float | None = Field(None, gt=0, description="share in the mixture; by default its size")
    text_field: str = Field("text", description="the field or column that holds the text")
    source_field: str | None = Field(
        None, description="pairs: the field or column that is read, for example en"
    )
    target_field: str | None = Field(
        None, description="pairs: the field or column that is written, for example de"
    )
    separator: str | None = Field(None, min_length=1, description="cuts plain text into documents")

    @model_validator(mode="before")
    @classmethod
    def spell_out(cls, data: Any) -> Any:
        """A string is one path; `paths` may be one string, or the list that YAML has for a tuple."""
        if isinstance(data, str):
            return {"paths": (data,)}
        if isinstance(data, dict) and isinstance(paths := data.get("paths"), str | list):
            return {**data, "paths": (paths,) if isinstance(paths, str) else tuple(paths)}
        return data

    @model_validator(mode="after")
    def check_one_origin(self) -> "SourceConfig":
        if bool(self.paths) == bool(self.hub):
            raise ValueError(
                "a source has either `paths: [...]` or `hub: owner/name`; give exactly one of them"
            )
        if self.name and not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name '{self.name}' becomes a file name; use letters, digits, '.', '_' and '-'")
        if (self.source_field is None) != (self.target_field is None):
            raise ValueError(
                "a source of pairs has both source_field and target_field; give the other one too"
            )
        return self

    @property
    def is_pairs(self) -> bool:
        """Whether a row is a pair of texts."""
        return self.source_field is not None

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a row that hold text: one, or two of a pair."""
        if self.source_field is not None and self.target_field is not None:
            return self.source_field, self.target_field
        return (self.text_field,)

    @property
    def title(self) -> str:
        """The name, or one made from the first path."""
        if self.name:
            return self.name
        parts = Path(GLOB.split(self.paths[0])[0] if self.paths else self.hub or "").parts
        return re.sub(r"[^\w-]+", "-", parts[-1].split(".")[0] if parts else "").strip("-") or "text"


class CleanConfig(Config):
    """Which documents are dropped, and what is mended in the rest; `null` switches a rule off.

    Prose is judged by the rules of Gopher (Rae et al. 2021, appendix A.1.1) and C4 (Raffel et al. 2020,
    section 2.2), programs by those of The Stack (Kocetkov et al. 2022) and StarCoder (Li et al. 2023).
    Thresholds that presume long English web pages begin at null or mild; the paper's value is noted.
    """

    profile: Literal["auto", "prose", "code", "off"] = Field(
        "auto", description="auto goes by the file's extension"
    )
    repair: bool = Field(
        True, description="prose: mend mojibake, compose to Unicode NFC, drop control characters"
    )
    min_words: int | None = Field(
        3, ge=1, description="prose; Gopher 50; each Chinese or Japanese character counts"
    )
    max_words: int | None = Field(None, ge=1, description="prose; Gopher 100,000")
    mean_word_length: tuple[float, float] | None = Field((2.0, 12.0), description="prose; Gopher 3 to 10")
    min_alphabetic: float | None = Field(0.6, description="prose: share of words with a letter; Gopher 0.8")
    max_symbols: float | None = Field(0.1, description="prose: '#' and ellipses per word; Gopher 0.1")
    max_bullet_lines: float | None = Field(0.9, description="prose: share of lines; Gopher 0.9")
    max_ellipsis_lines: float | None = Field(0.3, description="prose: share of lines; Gopher 0.3")
    min_stop_words: int | None = Field(
        None, description="English prose only; Gopher 2 of: the be to of and that have with"
    )
    repetition: bool = Field(
        True, description="prose: Gopher's table of repeated lines and n-grams, of 100 words and more"
    )
    placeholders: bool = Field(True, description="prose: drop pages of 'lorem ipsum' (C4)")
    max_line_length: int | None = Field(20_000, description="code: characters; The Stack 1,000")
    max_mean_line_length: float | None = Field(200.0, description="code: characters; The Stack 100")
    min_alphanumeric: float | None = Field(0.25, description="code: share of characters; The Stack 0.25")
    drop_generated: bool = Field(
        False, description="code: drop files that say 'generated' in their first lines"
    )
    exact_duplicates: bool = True
    near_duplicates: float | None = Field(
        0.6,
        ge=0.5,
        le=1,
        description="drop documents whose sets of three-word runs have at least this Jaccard index",
    )
    contamination: float = Field(
        0.3,
        gt=0,
        le=1,
        description="share of eight-word runs of a protected passage that condemns a document",
    )


class PairsConfig(Config):
    """Which pairs are dropped and mended: `clean` is made for documents and touches no pair.

    A pair with an empty side always goes.  Of held-out sources nothing else does.
    """

    repair: bool = Field(
        True, description="mend mojibake, compose to Unicode NFC, drop control characters on both sides"
    )
    max_words: int | None = Field(
        None,
        ge=1,
        description="drop pairs with a longer side; a Chinese or Japanese character counts as a word",
    )
    max_ratio: float | None = Field(
        9.0, ge=1, description="drop pairs with one side so many times as many words as the other; Moses: 9"
    )
    exact_duplicates: bool = Field(True, description="drop pairs that are equal on both sides")
    near_duplicates: float | None = Field(
        None, ge=0.5, le=1, description="as data.clean.near_duplicates, over the words of both sides"
    )
    too_long: Literal["error", "drop"] = Field(
        "error", description="what a pair does that fits no row; dropped ones are counted"
    )


class MaskingConfig(Config):
    """What an encoder has to find out: drawn anew in every epoch (Liu et al. 2019, RoBERTa, 4.1).

    The defaults are BERT's (Devlin et al. 2019, 3.1); modern encoders take `share: 0.3, as_mask: 1.0,
    as_random: 0.0` (Wettig et al. 2023, "Should You Mask 15% in Masked Language Modeling?").
    """

    share: float = Field(0.15, gt=0, lt=1, description="of all tokens in a row that have to be predicted")
    as_mask: float = Field(
        0.8, ge=0, le=1, description="share of those that the model sees as the mask token"
    )
    as_random: float = Field(0.1, ge=0, le=1, description="share of those that it sees as a random token")
    whole_words: bool = Field(True, description="all tokens of a word are chosen together, or none")

    @model_validator(mode="after")
    def check_shares(self) -> "MaskingConfig":
        if self.as_mask + self.as_random > 1 + 1e-9:
            raise ValueError(
                f"as_mask ({self.as_mask}) and as_random ({self.as_random}) are more than all; write less:"
                " the rest is seen as it is"
            )
        return self


class SplitConfig(Config):
    """Which documents are held out.  Near-duplicates never end up on both sides: they are removed first."""

    validation: float = Field(0.05, ge=0, le=0.5, description="share of the documents, or of each one's end")
    test: float = Field(0.05, ge=0, le=0.5)
    by: Literal["auto", "document", "position"] = Field(
        "auto",
        description="document: by a hash of its name; position: each one's end; auto goes by their number",
    )
    validation_sources: tuple[SourceConfig, ...] = ()
    test_sources: tuple[SourceConfig, ...] = ()

    @model_validator(mode="after")
    def check_rest(self) -> "SplitConfig":
        if self.share("validation") + self.share("test") >= 1:
            raise ValueError(
                f"validation ({self.validation}) and test ({self.test}) leave nothing to train on; write less"
            )
        return self

    def share(self, split: Literal["validation", "test"]) -> float:
        """What is taken of the training sources: nothing where the split has sources of its own."""
        return 0.0 if getattr(self, f"{split}_sources") else float(getattr(self, split))


Examples = Literal["language_model", "masked", "pairs", "task"]
Task = Annotated[ChatConfig | LabelledConfig | PreferencesConfig | SpansConfig, Field(discriminator="kind")]


class DataConfig(Config):
    """Text to tokens: sources, cleaning, held-out splits and the tokenizer."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    examples: Examples | None = Field(
        None,
        description="what a row asks: the next token, masked tokens, or the target of a pair; null: what"
        " model.kind learns from",
    )
    task: Task | None = Field(
        None, description="rows with labels, answers, conversations or preferences, in place of texts"
    )
    leave_out: tuple[Literal["leak", "duplicates", "conflicts"], ...] = Field(
        (),
        description="training rows of a task that go: those that held-out rows repeat, that say again what"
        " another says, or that contradict each other; they are counted",
    )
    waive: tuple[str, ...] = Field(
        (), description="names of checks whose failure shall not stop a run, for example [leak]"
    )
    clean: CleanConfig = CleanConfig()
    pairs: PairsConfig = PairsConfig()
    masking: MaskingConfig = MaskingConfig()
    split: SplitConfig = SplitConfig()
    tokenizer: TokenizerConfig | Path = Field(
        TokenizerConfig(), description="how to train one, or the path of one"
    )
    row_tokens: int = Field(512, ge=2, description="tokens in one row of a batch; of pairs: target tokens")
    source_row_tokens: int | None = Field(
        None, ge=2, description="pairs: source tokens in one row of a batch; null: as many as row_tokens"
    )
    decontaminate_against: tuple[SourceConfig, ...] = Field(
        (), description="benchmarks that training must not see"
    )
    on_bad_line: Literal["error", "skip"] = Field(
        "error", description="what a malformed row does; skipped ones are counted"
    )
    cache: Path = Path("runs/data")

    @model_validator(mode="after")
    def check_names(self) -> "DataConfig":
        for sources in (self.sources, self.split.validation_sources, self.split.test_sources):
            titles = [source.title for source in sources]
            for title in titles:
                if titles.count(title) > 1:
                    raise ValueError(
                        f"two sources are called '{title}'; give one of them a `name:` of its own"
                    )
        kinds = {source.is_pairs for source in self.all_sources}
        if len(kinds) > 1:
            raise ValueError(
                "some sources are pairs and some are not; give all of them source_field and target_field,"
                " or none"
            )
        if self.split.by == "position" and self.stays_whole:
            raise ValueError(
                "split.by: position cuts texts, and pairs and records stay whole; write document, or auto"
            )
        if self.task is not None and (self.is_pairs or self.examples not in (None, "task")):
            raise ValueError(
                "data.task says how rows are read; leave out data.examples, source_field and target_field"
            )
        weights = [source.weight is None for source in self.sources]
        if any(weights) and not all(weights):
            raise ValueError("some sources have a weight and some have none; give all of them one, or none")
        return self

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        """Those of training and the held-out ones."""
        return (*self.sources, *self.split.validation_sources, *self.split.test_sources)

    @property
    def is_pairs(self) -> bool:
        """Whether rows are pairs of texts."""
        return self.sources[0].is_pairs

    @property
    def source_tokens(self) -> int:
        """Source tokens in one row of pairs, 0 without pairs."""
        return (self.source_row_tokens or self.row_tokens) if self.is_pairs else 0

    @property
    def stays_whole(self) -> bool:
        """Whether texts are no documents to be cut, but pairs or records."""
        return self.is_pairs or self.task is not None

    @property
    def near_duplicates(self) -> float | None:
        """From which likeness on a document, or a pair, repeats another; None looks for none.

        Of a task nothing is dropped unasked: its checks say what repeats (`tasks/checks.py`).
        """
        if self.task is not None:
            return None
        return self.pairs.near_duplicates if self.is_pairs else self.clean.near_duplicates

    @property
    def exact_duplicates(self) -> bool:
        """Whether equal documents, or pairs, are looked for."""
        if self.task is not None:
            return False
        return self.pairs.exact_duplicates if self.is_pairs else self.clean.exact_duplicates
