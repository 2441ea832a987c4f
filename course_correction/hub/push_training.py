"""Push a training to the Hub: checkpoints while it runs, the model with its card at the end. Fetch a checkpoint back.

The trainer's own pushes are not used: their card is wrong for adapters, and `training_args.bin` holds paths and names of the
machine.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import os
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from course_correction.base.checkpoints import last_whole_checkpoint
from course_correction.base.errors import UsageError
from course_correction.base.files import write_json
from course_correction.base.redaction import public_json
from course_correction.hub.client import one_line, with_retries
from course_correction.hub.push import HubRepo, open_repo, push, read_file
from course_correction.hub.push_evaluation import carry_over

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import HubStrategy

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last-checkpoint"
_MODEL_FILES = (
    *("adapter_config.json", "adapter_model.*", "config.json", "generation_config.json"),
    *("model*.safetensors", "*.index.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "chat_template.jinja", "*.model"),
)
_RESULT_FILES = ("README.md", "recipe.yaml", "train_metrics.json", "training.png")
# Pickled settings with paths in them, and PEFT's card, which names the folder that the base model was read from.
_NEVER = ("training_args.bin", "README.md")
_REWRITTEN = ("adapter_config.json", "config.json", "trainer_state.json", "train_metrics.json", "run.json")


def open_model_repo(training: TrainingArguments) -> HubRepo:
    """Return the repository that a training's settings name. It is created if it does not exist, private by default.

    Raises:
        UsageError: If none is named, the token may not write, or the settings hold a token.
    """
    if training.hub_token:
        raise UsageError("hub_token would be written to files. Log in by `hf auth login`, or set HF_TOKEN.")
    if not training.hub_model_id:
        raise UsageError("push_to_hub needs --hub_model_id owner/name.")
    return open_repo(training.hub_model_id, "model", training.hub_private_repo is not False)


def _content(path: Path, base_model: str) -> Path | bytes:
    if not any(fnmatch(path.name, pattern) for pattern in _REWRITTEN):
        return path
    content = path.read_bytes()
    if path.name == "adapter_config.json":
        # PEFT writes the folder that the base model was read from.
        config = json.loads(content) | {"base_model_name_or_path": base_model}
        content = json.dumps(config, indent=2).encode()
    return public_json(content)


def name_base_model(folder: Path, base_model: str) -> None:
    """Write the base model's Hub id to a saved adapter's config, where PEFT writes the path of its folder."""
    path = folder / "adapter_config.json"
    if path.exists():
        config = json.loads(path.read_text())
        write_json(path, config | {"base_model_name_or_path": base_model})


def model_files(folder: Path, base_model: str, patterns: tuple[str, ...] = ()) -> dict[str, Path | bytes]:
    """Return the files of a saved model or adapter and its tokenizer, by name, without paths of this machine."""
    return {
        path.name: _content(path, base_model)
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in (*_MODEL_FILES, *patterns))
    }


def push_model(repo: HubRepo, folder: Path, base_model: str) -> str:
    """Push a finished training in one commit: weights, tokenizer, recipe, metrics, plot and card. Return its URL."""
    files = model_files(folder, base_model, _RESULT_FILES)
    with one_line(repo.repo_id):
        # The card keeps the evaluations of this model that were pushed before.
        files["README.md"] = carry_over((folder / "README.md").read_text(), read_file(repo, "README.md")).encode()
    # Shards of an earlier push under other names would be loaded together with the new ones.
    return push(repo, files, "Trained to course-correct", stale=["*.safetensors", "*.index.json", "*.bin"])


class PushCheckpoints(TrainerCallback):
    """Pushes checkpoints in the background, by `hub_strategy`. A push that fails does not stop the training.

    `every_save` pushes the weights, `checkpoint` also the whole checkpoint as `last-checkpoint`, and `all_checkpoints` each
    checkpoint under its own name.
    """

    def __init__(self, repo: HubRepo, strategy: HubStrategy | str, base_model: str) -> None:
        """Take the repository, one of the strategies of transformers, and the base model's Hub id."""
        self.repo, self.strategy, self.base_model = repo, str(getattr(strategy, "value", strategy)), base_model
        self._worker = concurrent.futures.ThreadPoolExecutor(1)
        self._running: concurrent.futures.Future[None] | None = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Push the checkpoint of this step, unless the last push is still running."""
        if self.strategy == "end":
            return
        if torch.distributed.is_initialized():
            # Each process has written its part of the checkpoint.
            torch.distributed.barrier()
        if not state.is_world_process_zero:
            return
        if self._running is not None and not self._running.done() and not args.hub_always_push:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for left in Path(args.output_dir).glob(".push-*"):
            # Left by a killed process; the last push of this one is done.
            shutil.rmtree(left, ignore_errors=True)
        try:
            # Links, because the trainer deletes old checkpoints during the push.
            held = Path(tempfile.mkdtemp(prefix=".push-", dir=args.output_dir))
            shutil.copytree(checkpoint, held / "checkpoint", copy_function=_link)
            run = Path(args.output_dir) / "run.json"
            if run.exists():
                shutil.copy(run, held / "checkpoint" / run.name)
        except OSError as error:
            logger.info(f"This checkpoint was not pushed, training continues: {error.strerror}")
            return
        self._running = self._worker.submit(self._push, held, checkpoint.name, f"{state.global_step} of {state.max_steps}")

    def finish(self) -> None:
        """Wait for the running push."""
        self._worker.shutdown()

    def _push(self, held: Path, name: str, steps: str) -> None:
        try:
            folder = held / "checkpoint"
            card = f"---\nbase_model: {self.base_model}\ntags:\n- course-correction\n---\n\nIn training: step {steps}.\n"
            files: dict[str, Path | bytes] = {"README.md": card.encode(), **model_files(folder, self.base_model)}
            files["README.md"] = carry_over(card, read_file(self.repo, "README.md")).encode()
            place = {"checkpoint": LAST_CHECKPOINT, "all_checkpoints": name}.get(self.strategy)
            stale = []
            if place:
                stale = [f"{place}/*"]
                files |= {
                    f"{place}/{path.relative_to(folder)}": _content(path, self.base_model)
                    for path in sorted(folder.rglob("*"))
                    if path.is_file() and path.name not in _NEVER
                }
            push(self.repo, files, f"Training in progress, step {steps}", stale=stale)
        except Exception as error:
            logger.info(f"This checkpoint was not pushed, training continues: {' '.join(str(error).split())}")
        finally:
            shutil.rmtree(held, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def find_checkpoint(wanted: str | None, folder: Path, repo: HubRepo | None, accelerator: Accelerator) -> str | None:
    """Return the checkpoint to resume from, or None to start at the beginning.

    Args:
        wanted: `resume_from_checkpoint`: a folder, or `last` for the last one in the output folder, else on the Hub.
        folder: The output folder.
        repo: The repository of the model, if it is pushed.
        accelerator: The processes of the training; the main one fetches.
    """
    if wanted not in {"true", "True", "last"}:
        return wanted
    checkpoint = last_whole_checkpoint(folder)
    if checkpoint is None and repo is not None:
        if accelerator.is_main_process:
            fetch_checkpoint(repo.repo_id, folder)
        accelerator.wait_for_everyone()
        checkpoint = last_whole_checkpoint(folder)
    if checkpoint is None:
        logger.info(f"No checkpoint in {folder}: training starts at the beginning.")
    return str(checkpoint) if checkpoint else None


def fetch_checkpoint(repo_id: str, folder: Path) -> Path | None:
    """Fetch the checkpoint that an earlier training pushed, to resume from it; None if there is none.

    Args:
        repo_id: The model's repository.
        folder: Output folder of the training, where the checkpoint goes under its old name.

    Returns:
        The checkpoint's folder. The `run.json` that was pushed with it goes to `folder`.
    """
    with one_line(repo_id):
        return _fetch(repo_id, folder)


def _fetch(repo_id: str, folder: Path) -> Path | None:
    from huggingface_hub import HfApi, snapshot_download

    names = with_retries(lambda: HfApi().list_repo_files(repo_id), "looking for a checkpoint on the Hub")
    if f"{LAST_CHECKPOINT}/trainer_state.json" not in names:
        return None
    logger.info(f"Fetching {LAST_CHECKPOINT} of {repo_id}")
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        with_retries(
            lambda: snapshot_download(repo_id, allow_patterns=f"{LAST_CHECKPOINT}/*", local_dir=temporary),
            "fetching the checkpoint",
        )
        fetched = Path(temporary) / LAST_CHECKPOINT
        step = json.loads((fetched / "trainer_state.json").read_text())["global_step"]
        folder.mkdir(parents=True, exist_ok=True)
        if (fetched / "run.json").exists():
            os.replace(fetched / "run.json", folder / "run.json")
        target = folder / f"checkpoint-{step}"
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fetched, target)
    return target
