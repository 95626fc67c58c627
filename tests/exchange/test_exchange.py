"""Models in and out by command: nothing of them is lost, equal logits, one sentence for each mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers

from hasten.cli import main
from hasten.core.files import damage
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.load import load_model

transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
GENERATION = {
    "bos_token_id": 256,
    "eos_token_id": [256, 257],
    "temperature": 0.6,
    "top_p": 0.9,
    "do_sample": True,
}


def make_theirs(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """A tiny Llama with all that comes along, as transformers saves it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=False)
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder, **options)
    inner = tokenizers.Tokenizer(
        models.BPE(
            vocab={char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]
        )
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|start|>", "<|end|>"])
    inner.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|end|>"
    })  # fmt: skip
    write(folder / "generation_config.json", GENERATION)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write(path: Path, values: Any) -> None:
    """JSON to a file."""
    path.write_text(json.dumps(values))


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model of others, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return make_theirs(tmp_path / "theirs")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_model_comes_in_and_goes_out_bit_for_bit(dtype, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_theirs(tmp_path / "theirs", dtype, max_shard_size="10KB")
    assert main(["import", "theirs"]) == 0
    assert "models/theirs: decoder of" in capsys.readouterr().out.splitlines()[-1]
    assert damage(Path("models/theirs")) is None
    assert main(["export", "models/theirs", "--to", "hf", "max_shard_bytes=20000"]) == 0
    assert "exports/theirs: decoder of" in capsys.readouterr().out.splitlines()[-1]
    before, after = tensors(Path("theirs")), tensors(Path("exports/theirs"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    assert len(list(Path("exports/theirs").glob("*.safetensors"))) > 1
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert Path("exports/theirs", name).read_bytes() == Path("theirs", name).read_bytes()
    tokens = torch.randint(0, 256, (2, 20))
    one, two = (transformers.AutoModelForCausalLM.from_pretrained(f) for f in ("theirs", "exports/theirs"))
    assert torch.equal(one(tokens).logits, two(tokens).logits)
    assert two.generation_config.eos_token_id == [256, 257]
    ours, _ = load_model(Path("models/theirs"))
    expected = one.float()(tokens).logits
    torch.testing.assert_close(ours.logits(ours(tokens)), expected, rtol=1e-5, atol=1e-5)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def test_a_checkpoint_says_where_it_is_from_and_every_verb_takes_it(theirs, capsys):
    main(["import", "theirs", "output=models/with space/名字"])
    folder = Path("models/with space/名字")
    origin = json.loads((folder / "origin.json").read_text())
    assert origin["name"] == "theirs"
    assert origin["types"] == {"float32": 21}
    assert origin["files"]["model.safetensors"]["bytes"] == (theirs / "model.safetensors").stat().st_size
    assert len(origin["files"]["config.json"]["sha256"]) == 64
    _, tokenizer = load_model(folder)
    assert tokenizer is not None
    assert tokenizer.end_ids == {256, 257}
    capsys.readouterr()
    words = ["generate.prompts=[ab]", "generate.max_new_tokens=4"]
    assert main(["generate", str(folder), *words]) == 0
    assert capsys.readouterr().out.startswith("ab")
    rows = [json.dumps({"text": f"some text to score, number {n} of them"}) for n in range(20)]
    Path("text.jsonl").write_text("\n".join(rows))
    words = ["data.sources=[text.jsonl]", "data.split={validation: 0, test: 0.5}", "evaluate.split=test"]
    words += [f"data.tokenizer={folder}/tokenizer.json", "data.row_tokens=16"]
    assert main(["evaluate", str(folder), *words, "evaluate.context=32", "evaluate.stride=16"]) == 0


def test_types_may_be_changed_on_the_way_out_and_must_hold_the_numbers(theirs, capsys):
    assert main(["export", "theirs", "to=hf", "dtype=bfloat16", "output=half"]) == 0
    assert {tensor.dtype for tensor in tensors(Path("half")).values()} == {torch.bfloat16}
    assert json.loads(Path("half/config.json").read_text())["dtype"] == "bfloat16"
    values = load_file(theirs / "model.safetensors")
    values["model.norm.weight"] += 1e5
    save_file(values, theirs / "model.safetensors", metadata={"format": "pt"})
    assert main(["export", "theirs", "to=hf", "dtype=float16", "output=small"]) == 2
    assert "'model.norm.weight' holds numbers beyond float16; write dtype=bfloat16" in capsys.readouterr().err
    assert not Path("small").exists()
    assert not list(Path().glob("small*")), "no temporary folder stays"


@torch.no_grad()
def test_a_run_of_ours_goes_out_with_its_tokenizer(tmp_path, monkeypatch, byte_tokenizer):
    monkeypatch.chdir(tmp_path)
    shape = ModelConfig(vocab_size=257, dim=16, num_layers=1, num_heads=2, activation="swiglu", ffn_dim=24)
    from hasten.exchange.pack import write_checkpoint
    from hasten.exchange.parcel import Parcel

    model, tokenizer = build(shape, seed=0).eval(), byte_tokenizer("<|endoftext|>")
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    Path("run").mkdir()
    write_checkpoint(Path("run"), Parcel(model, types, tokenizer, None, None, "run"))
    from hasten.core.files import write_manifest

    write_manifest(Path("run"), {"step": 1, "metric": None, "parent": None})
    assert main(["export", "run", "to=hf"]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained("exports/run")
    cut = transformers.AutoTokenizer.from_pretrained("exports/run")
    tokens = torch.tensor([tokenizer.encode("hello")])
    assert cut("hello")["input_ids"] == tokens[0].tolist()
    assert cut.eos_token_id == theirs.config.eos_token_id == 256
    torch.testing.assert_close(theirs(tokens).logits, model.logits(model(tokens)), rtol=1e-5, atol=1e-5)


def test_a_gguf_file_goes_out_and_comes_in(theirs, capsys):
    assert main(["export", "theirs", "to=gguf", "dtype=float32"]) == 0
    assert "exports/theirs.gguf: decoder of" in capsys.readouterr().out
    assert main(["import", "exports/theirs.gguf", "output=back"]) == 0
    before, tokenizer = load_model(theirs)
    after, again = load_model(Path("back"))
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(after(tokens), before(tokens))
    assert again is not None and tokenizer is not None
    assert again.encode("cat 猫") == tokenizer.encode("cat 猫")
    assert Path("back/chat_template.jinja").read_text() == TEMPLATE


def test_a_pickle_comes_in_by_flag_and_goes_out_as_safetensors(theirs, capsys):
    values = load_file(theirs / "model.safetensors")
    torch.save(values, theirs / "pytorch_model.bin")
    (theirs / "model.safetensors").unlink()
    assert main(["import", "theirs"]) == 2
    assert "a pickle, which can hold a program" in capsys.readouterr().err
    assert main(["import", "theirs", "pickle=true"]) == 0
    assert main(["export", "models/theirs", "to=hf"]) == 0
    after = tensors(Path("exports/theirs"))
    assert all(torch.equal(after[name], tensor) for name, tensor in values.items())


@pytest.mark.parametrize("name", ["..", ".", "./theirs/..", "theirs/../theirs", "theirs/"])
def test_names_with_dots_mean_the_folder_they_lead_to(name, theirs, monkeypatch):
    inside = theirs / "deep"
    inside.mkdir()
    monkeypatch.chdir({"..": inside, ".": theirs}.get(name, theirs.parent))
    if name == "./theirs/..":
        for path in theirs.iterdir():
            if path.is_file():
                shutil.copyfile(path, theirs.parent / path.name)
    assert main(["import", name, "output=made"]) == 0
    assert Path("made/model.yaml").is_file()


MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing": (["import"], "hasten import needs a model first"),
    "no such folder": (["import", "nowhere"], "nowhere: there is no such folder or file"),
    "a file": (["import", "theirs/config.json"], "is a file; give the folder that holds it"),
    "an unknown option": (["import", "theirs", "pikle=true"], "has no field 'pikle'. Did you mean 'pickle'?"),
    "an option of the wrong kind": (["import", "theirs", "pickle=maybe"], "pickle should be"),
    "a revision of a folder": (["import", "theirs", "revision=main"], "revision=main cannot matter"),
    "the output is there": (["import", "theirs", "output=theirs"], "theirs: is there already"),
    "no format": (["export", "theirs"], "to is missing; add `to: ...`"),
    "an unknown format": (["export", "theirs", "to=onnx"], "to cannot be 'onnx'"),
    "a type of the other format": (["export", "theirs", "to=hf", "dtype=q8_0"], "dtype=q8_0 is for to=gguf"),
    "another": (["export", "theirs", "to=gguf", "dtype=bfloat16"], "is not written to GGUF"),
    "no model": (["export", "theirs/none", "to=hf"], "theirs/none: there is no such folder"),
    "shards of nothing": (["export", "theirs", "to=hf", "max_shard_bytes=0"], "greater than or equal to 1"),
}  # fmt: skip


@pytest.mark.parametrize("words, complaint", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_one_sentence(words, complaint, theirs, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not Path("models").exists()
    assert not Path("exports").exists()


LUGGAGE: dict[str, tuple[str, str, str]] = {
    "code of a tokenizer": (
        "tokenizer_config.json", '{"auto_map": {"AutoTokenizer": "x.T"}}', "asks for code of"
    ),
    "settings that are none": ("generation_config.json", "[1]", "should hold a mapping, got list"),
    "ends that are none": (
        "generation_config.json", '{"eos_token_id": 99999}', "ends texts with the token 99999"
    ),
    "a template beyond measure": ("chat_template.jinja", "x" * 500_000, "more than 400,000 bytes"),
    "a tokenizer that is none": ("tokenizer.json", "{}", "is not a tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("file, content, complaint", LUGGAGE.values(), ids=LUGGAGE)
def test_what_comes_along_is_looked_at_before_it_comes_in(file, content, complaint, theirs, capsys):
    (theirs / file).write_text(content)
    assert main(["import", "theirs"]) == 2
    assert complaint in capsys.readouterr().err
    assert not Path("models").exists()


def test_a_link_beside_the_weights_that_leads_out_is_refused(theirs, capsys):
    secret = theirs.parent / "secret"
    secret.write_text("{}")
    (theirs / "special_tokens_map.json").symlink_to(secret)
    assert main(["import", "theirs"]) == 2
    assert "is a link that leads out of its folder" in capsys.readouterr().err


def test_older_tokenizer_files_become_a_tokenizer_json(theirs):
    (theirs / "tokenizer.json").unlink()
    (theirs / "tokenizer_config.json").unlink()
    (theirs / "generation_config.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "c"]
    (theirs / "vocab.txt").write_text("\n".join(words) + "\n")
    assert main(["import", "theirs"]) == 0
    _, tokenizer = load_model(Path("models/theirs"))
    assert tokenizer is not None
    assert tokenizer.encode("AB c") == Tokenizer.load(theirs).encode("AB c") == [5, 6, 7]


def test_a_model_without_a_tokenizer_comes_in_and_goes_out(theirs):
    for path in theirs.glob("*token*"):
        path.unlink()
    (theirs / "generation_config.json").unlink()
    assert main(["import", "theirs"]) == 0
    assert main(["export", "models/theirs", "to=hf"]) == 0
    assert not Path("exports/theirs/tokenizer.json").exists()
    assert main(["export", "models/theirs", "to=gguf"]) == 2


def in_cache(theirs: Path, cache: Path) -> str:
    """Lay a folder down as the hub's cache holds it; the commit."""
    repository, commit = cache / "models--owner--tiny", "a" * 40
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(theirs.iterdir())):
        shutil.copyfile(path, repository / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    return commit


def test_a_name_of_the_hub_is_taken_from_its_cache_and_else_refused_in_a_sentence(theirs, tmp_path):
    pytest.importorskip("huggingface_hub")
    commit = in_cache(theirs, tmp_path / "cache")
    environment = {
        "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "HOME": str(tmp_path),
    }  # fmt: skip

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hasten", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    done = run("import", "owner/tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("models/tiny: decoder of")
    assert json.loads(Path("models/tiny/origin.json").read_text())["revision"] == commit
    for words in ("owner/other",), ("owner/tiny", "revision=v2", "output=other"):
        done = run("import", *words)
        assert done.returncode == 2
        assert "of the hub cannot be fetched" in done.stderr
        assert "hasten import path/to/folder" in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
