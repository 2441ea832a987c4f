"""Checkpoints of a training: whole or invisible, so that a training that is killed while it saves is not lost."""

import json
import logging
import re
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

# A checkpoint is written in here and renamed when it is whole.
UNFINISHED = ".unfinished"
STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint with the highest step that was written to its end; None if there is none.

    Those that a kill left unfinished are named and skipped.

    Args:
        folder: The output folder of a training.
    """
    if not folder.is_dir():
        return None
    for path in (folder / UNFINISHED).glob("checkpoint-*"):
        logger.info(f"{path.name} was not finished and is skipped.")
    numbered = [
        (int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()
    ]
    for _, path in sorted(numbered, reverse=True):
        if _is_whole(path):
            return path
        logger.info(f"{path.name} is not whole and is skipped.")
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Return whether the state, which is written last, is there, and weights beside it. Older versions did not rename."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # Sharded weights lie in folders. training_args.bin holds none.
    names = [path.name for path in checkpoint.iterdir() if path.suffix in (".safetensors", ".bin") or path.is_dir()]
    has_weights = any(name != "training_args.bin" for name in names)
    return isinstance(state, dict) and "global_step" in state and has_weights


def publish_checkpoint(folder: Path) -> None:
    """Move the whole checkpoint in the folder for unfinished ones to its place, in one step."""
    for path in (folder / UNFINISHED).glob("checkpoint-*"):
        target = folder / path.name
        # An earlier training that was resumed before this step may have left one.
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
