"""What evaluation.json tells of a language model, an encoder, a translator or a classifier."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of what is read: extra keys are left alone, so that newer files open in older reports."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Score(Record):
    """How well text was predicted (`evaluate/language.py`)."""

    bits_per_byte: float
    stderr: float | None = None
    loss: float
    perplexity: float
    accuracy: float
    tokens: int
    bytes: int
    documents: int | None = None


class BeforeAndAfter(Record):
    """The base and the model on the same texts; `change` is in bits a byte (`evaluate/continued.py`)."""

    before: Score
    after: Score
    change: float


class Baseline(Record):
    """What a compressor made of the same text."""

    bits_per_byte: float
    bytes: int


class ParseRate(Record):
    """Share of snippets that parse."""

    rate: float
    stderr: float | None = None
    parsed: int
    snippets: int


class CodeScore(ParseRate):
    """The model's parse rate beside that of the documents' authors."""

    authors: ParseRate | None = None


class MaskedScore(Record):
    """How well an encoder found hidden tokens, beside guesses from counts (`evaluate/masked.py`)."""

    split: str
    accuracy: float
    stderr: float | None = None
    loss: float
    perplexity: float
    tokens: int
    share: float
    baselines: dict[str, float] = {}


class Overlap(Record):
    """A sacreBLEU score with half of its 95% interval."""

    score: float
    interval: float | None = None
    signature: str


class Translated(Record):
    """A source, the model's text and a person's."""

    source: str
    text: str
    reference: str


class Translation(Record):
    """How a model's translations compare with references (`evaluate/translation.py`)."""

    split: str
    beams: int
    bleu: Overlap
    chrf: Overlap
    pairs: int
    tokens_per_second: float | None = None
    unfinished: int = 0
    examples: list[Translated] = []


class ClassScore(Record):
    """One class: how many of its texts were found, and of those taken for it, how many are right."""

    name: str
    precision: float
    recall: float
    f1: float
    examples: int


class Bin(Record):
    """Texts of which a classifier was about equally sure."""

    low: float
    high: float
    examples: int
    confidence: float | None = None
    accuracy: float | None = None


class Calibration(Record):
    """Whether a classifier is as often right as it is sure (`evaluate/calibration.py`)."""

    ece: float
    ece_mass: float
    brier: float
    nll: float
    bins: list[Bin] = []


class Tempered(Record):
    """The same after logits are divided by a temperature."""

    temperature: float
    fitted_on: int
    calibration: Calibration


class Mistake(Record):
    """A text that was taken for another class."""

    text: str
    pair: str | None = None
    label: str
    predicted: str
    confidence: float


class Finer(Record):
    """How well the labels are told apart that the classes are groups of."""

    labels: int
    accuracy: float


class Classification(Record):
    """How well classes of texts were told apart (`evaluate/classify.py`)."""

    split: str
    examples: int
    left_out: int = 0
    accuracy: float
    interval: tuple[float, float]
    macro_f1: float
    majority: float
    majority_macro_f1: float
    classes: list[ClassScore]
    confusion: list[list[int]]
    calibration: Calibration
    tempered: Tempered | None = None
    finer: Finer | None = None
    mistakes: list[Mistake] = []
