"""Load chat models and tokenizers, offline or from the Hub. Knows nothing of what they are asked."""

import contextlib
import os
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.generation.offline_models import pinned_revision, quiet_libraries, resolve_model_name


def keep_freed_memory() -> None:
    """Let glibc keep big freed blocks instead of giving each back to the system.

    Logits of a 49K vocabulary are hundreds of megabytes a step; returning and faulting them in anew takes much of the
    time of a CPU training step. Elsewhere than on glibc this does nothing.
    """
    import ctypes

    trim_threshold, mmap_max, arena_max = -1, -4, -8
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        # The backward pass has a thread of its own, whose arena would give its memory back after every operation.
        libc.mallopt(arena_max, 1)


def check_reachable(name: str, revision: str | None) -> None:
    """Fail within seconds if a model is neither here nor to be had; the Hub client alone retries for most of a minute.

    Raises:
        UsageError: Naming the model and the remedy.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    repository = resolve_model_name(name)
    if Path(repository).is_dir() or constants.HF_HUB_OFFLINE:
        return
    try:
        if isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str):
            return
        get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision), timeout=10)
    except Exception as error:
        raise explain_loading_error(name, error) from None


def read_chat_template(path: str | None) -> str | None:
    """Return the text of a .jinja file; None without one.

    Raises:
        UsageError: If it cannot be read.
    """
    try:
        return Path(path).read_text() if path else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise UsageError(f"chat_template {path} cannot be read: {reason}.") from None


def load_tokenizer(
    name: str, revision: str | None = None, trust_remote_code: bool = False, chat_template: str | None = None
) -> Any:
    """Load a chat tokenizer.

    Args:
        name: Hub id, folder, or the offline model.
        revision: Its revision on the Hub.
        trust_remote_code: As for `from_pretrained`.
        chat_template: A .jinja file to take the place of the tokenizer's own template.

    Raises:
        UsageError: If it cannot be had, or has no chat template.
    """
    from transformers import AutoTokenizer

    quiet_libraries()
    check_reachable(name, pinned_revision(name, revision))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve_model_name(name), revision=pinned_revision(name, revision), trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise explain_loading_error(name, error) from None
    if chat_template:
        tokenizer.chat_template = read_chat_template(chat_template)
    if not tokenizer.chat_template:
        raise UsageError(
            f"The tokenizer of {name} has no chat template, so a prefill cannot be rendered. Use a chat model, or give "
            "the format that it was trained with by --chat_template, a .jinja file."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def has_fast_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware; a CPU that does not is much faster in float32."""
    import torch

    if torch.cuda.is_available():
        return True
    capabilities = torch.cpu.get_capabilities()
    # The last one is ARM's.
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def pick_dtype(dtype: str | None) -> str:
    """Return the dtype to load weights in: `auto`, the checkpoint's, becomes float32 where bfloat16 is slow."""
    dtype = dtype or "auto"
    return "float32" if dtype == "auto" and not has_fast_bfloat16() else dtype


def load_model(
    name: str,
    adapter: str | None = None,
    dtype: str = "auto",
    attn_implementation: str = "sdpa",
    revision: str | None = None,
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """Load a causal language model for sampling, on the GPU if there is one, with a LoRA adapter on top if named.

    Raises:
        UsageError: If model or adapter cannot be had, or the adapter belongs to another base model.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    keep_freed_memory()
    quiet_libraries()
    check_reachable(name, pinned_revision(name, revision))
    dtype = pick_dtype(dtype)
    quantization = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        if load_in_4bit
        else None
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            resolve_model_name(name),
            revision=pinned_revision(name, revision),
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=attn_implementation,
            quantization_config=quantization,
            trust_remote_code=trust_remote_code,
            device_map={"": int(os.environ.get("LOCAL_RANK", 0))} if device == "cuda" else None,
        )
    except Exception as error:
        raise explain_loading_error(name, error) from None
    if adapter:
        model = _add_adapter(model, name, adapter)
    return model.eval()


def _add_adapter(model: Any, name: str, adapter: str) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter)
    except (RuntimeError, KeyError) as error:
        raise UsageError(
            f"The adapter {adapter} does not fit {name} ({str(error).splitlines()[0][:120]}). "
            "Load it on the base model that it was trained on."
        ) from None
    except Exception as error:
        raise explain_loading_error(adapter, error) from None


def explain_loading_error(name: str, error: Exception) -> UsageError:
    """Turn what the Hub or a library raised while loading `name` into one line with a remedy."""
    from huggingface_hub import errors
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    unreachable = (HfHubHTTPError, ConnectionError, getattr(errors, "HTTPError", ConnectionError))

    chain = [error]
    while chain[-1].__cause__ is not None or chain[-1].__context__ is not None:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    if any(isinstance(link, GatedRepoError) for link in chain) or "gated repo" in str(error):
        return UsageError(
            f"{name} is gated. Accept its terms on the Hub, then `hf auth login` or set HF_TOKEN, and run again."
        )
    if any(isinstance(link, RevisionNotFoundError) for link in chain):
        return UsageError(f"{name} has no such revision on the Hub.")
    if any(isinstance(link, RepositoryNotFoundError) for link in chain) or "is not a local folder" in str(error):
        return UsageError(f"{name} is neither a local folder nor a model on the Hub that this login can see.")
    if any(isinstance(link, unreachable) for link in chain) or "couldn't connect" in str(error):
        return UsageError(f"{name} cannot be fetched: the Hub is out of reach. Check the network, or give a local folder.")
    return UsageError(f"{name} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def weights_identity(folder: Path) -> str:
    """Stand for the weights in a local folder, so that a retrained model is not taken for the one evaluated before.

    Adapters are read whole; of bigger files size and time of change are taken.
    """
    import hashlib

    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        status = file.stat()
        digest.update(f"{file.name} {status.st_size}".encode())
        digest.update(file.read_bytes() if status.st_size < 1 << 28 else str(status.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
