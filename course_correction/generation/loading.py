"""Load chat models and tokenizers, offline or from the Hub. Knows nothing of prompts, judges or sampling."""

import contextlib
import os
import warnings
from pathlib import Path

from course_correction.base.errors import UsageError
from course_correction.generation.chat_format import read_chat_template
from course_correction.generation.offline_models import pinned_revision, quiet_libraries, resolve_model_name
from course_correction.generation.protocol import Model, Tokenizer

# The files of a model's or adapter's folder that decide what it writes.
_DECIDING_FILES = (
    *("*.safetensors", "*.bin", "adapter_config.json", "config.json", "generation_config.json", "chat_template*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
)


def load_tokenizer(
    name: str, revision: str | None = None, trust_remote_code: bool = False, chat_template: str | None = None
) -> Tokenizer:
    """Load a chat tokenizer.

    Args:
        name: Hub id, folder, or an offline model.
        revision: Its revision on the Hub.
        trust_remote_code: As for `from_pretrained`.
        chat_template: A .jinja file that replaces the tokenizer's own template.

    Raises:
        UsageError: If it cannot be loaded, or has no chat template.
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
            f"The tokenizer of {name} has no chat template, so a prefill cannot be rendered. Use a chat model, or pass "
            "the format that it was trained with as --chat_template, a .jinja file."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    name: str,
    adapter: str | None = None,
    dtype: str = "auto",
    attn_implementation: str = "sdpa",
    revision: str | None = None,
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
) -> Model:
    """Load a causal language model for sampling, on the GPU if there is one, with a LoRA adapter on top if named.

    Raises:
        UsageError: If model or adapter cannot be loaded, or the adapter belongs to another base model.
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


def load_reference_model(
    reference: str,
    evaluated: str,
    *,
    revision: str | None,
    dtype: str,
    attn_implementation: str,
    load_in_4bit: bool,
) -> Model:
    """Load the model that an evaluated model is compared with.

    Args:
        reference: Its Hub id or folder.
        evaluated: The evaluated model's, without adapter.
        revision: The evaluated model's revision, which applies to the reference only if both are the same repository.
        dtype: As for `load_model`.
        attn_implementation: Likewise.
        load_in_4bit: Likewise.
    """
    return load_model(
        reference,
        dtype=dtype,
        attn_implementation=attn_implementation,
        revision=revision if reference == evaluated else None,
        load_in_4bit=load_in_4bit,
    )


def _add_adapter(model: Model, name: str, adapter: str) -> Model:
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # What does not fit is counted below.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            loaded = PeftModel.from_pretrained(model, adapter)
        _check_fit(loaded, name, adapter)
        return loaded
    except UsageError:
        raise
    except (RuntimeError, KeyError) as error:
        raise UsageError(
            f"The adapter {adapter} does not fit {name} ({str(error).splitlines()[0][:120]}). "
            "Load it on the base model that it was trained on."
        ) from None
    except Exception as error:
        raise explain_loading_error(adapter, error) from None


def _check_fit(loaded: Model, name: str, adapter: str) -> None:
    """Refuse an adapter of which a part was not applied: PEFT leaves that part at its random start, and only warns.

    Compiled or sharded models save other names, and another base model has other layers.

    Raises:
        UsageError: With the number of weights that fit.
    """
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    expected = set(get_peft_model_state_dict(loaded, save_embedding_layers=False))
    # An adapter may hold embeddings too, which PEFT loads into the base model.
    saved = set(load_peft_weights(adapter, device="cpu")) - (set(loaded.state_dict()) - expected)
    if saved != expected:
        raise UsageError(
            f"{len(saved & expected)} of the {len(saved)} weights of the adapter {adapter} fit {name}, and {len(expected)} "
            "are expected. Load it on the base model that it was trained on, or save it from the unwrapped model."
        )


def has_fast_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware. A CPU that does not is much faster in float32."""
    import torch

    if torch.cuda.is_available():
        return True
    capabilities = torch.cpu.get_capabilities()
    # "bf16" is ARM's name.
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def pick_dtype(dtype: str | None) -> str:
    """Return the dtype to load weights in: `auto`, the checkpoint's own, becomes float32 where bfloat16 is slow."""
    dtype = dtype or "auto"
    return "float32" if dtype == "auto" and not has_fast_bfloat16() else dtype


def weights_identity(folder: Path) -> str:
    """Return a digest of what a local folder of a model or adapter gives to its rows, so that a change is not overlooked.

    These are the weights, their strength (`lora_alpha`), the tokenizer, the chat template and the generation config. Small
    files, such as adapters, are hashed whole. Larger files count by name, size and modification time.
    """
    import hashlib

    digest = hashlib.sha256()
    for file in sorted({file for pattern in _DECIDING_FILES for file in folder.glob(pattern)}):
        status = file.stat()
        digest.update(f"{file.name} {status.st_size}".encode())
        digest.update(file.read_bytes() if status.st_size < 1 << 28 else str(status.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


def check_reachable(name: str, revision: str | None) -> None:
    """Fail within seconds if a model is neither local nor on the Hub; the Hub client alone retries for most of a minute.

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


def explain_loading_error(name: str, error: Exception) -> UsageError:
    """Return the error that the Hub or a library raised while loading `name` as one line with a remedy."""
    from huggingface_hub import errors
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    unreachable = (HfHubHTTPError, ConnectionError, getattr(errors, "HTTPError", ConnectionError))

    chain: list[BaseException] = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(earlier)
    if any(isinstance(link, GatedRepoError) for link in chain) or "gated repo" in str(error):
        return UsageError(
            f"{name} is gated. Accept its terms on the Hub, log in with `hf auth login` or set HF_TOKEN, and run again."
        )
    if any(isinstance(link, RevisionNotFoundError) for link in chain):
        return UsageError(f"{name} does not have this revision on the Hub. Check the revision.")
    if any(isinstance(link, RepositoryNotFoundError) for link in chain) or "is not a local folder" in str(error):
        return UsageError(f"{name} is neither a local folder nor a model on the Hub that you can access.")
    if any(isinstance(link, unreachable) for link in chain) or "couldn't connect" in str(error):
        return UsageError(
            f"{name} cannot be downloaded: no connection to the Hub. Check the network, or pass a local folder."
        )
    return UsageError(f"{name} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning each to the system.

    Logits of a 49K vocabulary take hundreds of megabytes per step. Returning and faulting them in again takes much of the
    time of a CPU training step. Without glibc this does nothing.
    """
    import ctypes

    trim_threshold, mmap_max, arena_max = -1, -4, -8
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        # The backward pass runs in its own thread, whose arena would return its memory after every operation.
        libc.mallopt(arena_max, 1)
