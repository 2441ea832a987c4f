"""Models that the benchmarks of sampling run on."""

import tempfile
from pathlib import Path
from typing import Any

RANDOM_7B = "llama2-7b-shape"


def random_model_folder(folder: Path) -> str:
    """Save a config of Llama-2-7B's shape with SmolLM2's tokenizer, and return the folder; weights come later."""
    from transformers import LlamaConfig

    from course_correction.generation.loading import load_tokenizer

    config = LlamaConfig(
        vocab_size=49152, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    config.save_pretrained(folder)
    load_tokenizer("smollm2-135m", None, False).save_pretrained(folder)
    return str(folder)


def load_for_bench(name: str, dtype: str) -> tuple[Any, Any]:
    """Return model and tokenizer; for `llama2-7b-shape` random weights on the GPU."""
    import torch

    from course_correction.generation.loading import load_model, load_tokenizer

    if name != RANDOM_7B:
        return load_model(name, dtype=dtype), load_tokenizer(name)
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        path = random_model_folder(Path(folder))
        tokenizer = load_tokenizer(path)
        config = AutoConfig.from_pretrained(path)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return model.eval(), tokenizer
