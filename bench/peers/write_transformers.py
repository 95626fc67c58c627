"""transformers: `generate` with its default cache, or with a static one, which it compiles."""

from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


def opened(
    *, folder: str, dtype: str, static: bool, threads: int
) -> Callable[[list[list[int]], int], list[list[int]]]:
    """What continues prompts."""
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def write(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        config = GenerationConfig(
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            cache_implementation="static" if static else None,
        )
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return out[:, ids.shape[1] :].tolist()

    return write
