"""Train course-correction by DPO on C²-Syn: LoRA, QLoRA or all weights, by recipe.

`objective: grouped` computes the 15 pair losses of a ranked group from its 6 responses; `objective: pairwise` is stock TRL.

accelerate launch train_dpo.py --config recipes/smollm2-135m/dpo_lora.yaml --output_dir runs/dpo
accelerate launch --config_file recipes/accelerate/zero3.yaml train_dpo.py --config recipes/llama2-7b-chat/dpo_full.yaml
"""

import logging

from course_correction.base.console import run_script
from course_correction.training.command_line import parse_command_line

logger = logging.getLogger("course_correction")


def main() -> None:
    """Parse, train, report where the result is."""
    settings, recipe = parse_command_line(__doc__)
    # It imports torch and TRL, which --help does without.
    from course_correction.training.run import train

    folder = train(*settings, recipe=recipe)
    logger.info(f"Saved to {folder}")


if __name__ == "__main__":
    run_script(main, resume="Run the same command with --resume_from_checkpoint last to resume.")
