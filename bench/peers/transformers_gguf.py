"""transformers reads a GGUF file: python transformers_gguf.py FILE TOKENS, TOKENS a JSON list of ids.

Prints {"logits": scores of the last token's successor, "parameters": n} as one line of JSON.
"""

import json
import sys
from pathlib import Path

import torch
import transformers


def main() -> None:
    """In float32, as it dequantises by itself."""
    path, tokens = Path(sys.argv[1]), json.loads(sys.argv[2])
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    with torch.inference_mode():
        scores = model(torch.tensor([tokens])).logits[0, -1]
    count = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"logits": scores.tolist(), "parameters": count}))


if __name__ == "__main__":
    main()
