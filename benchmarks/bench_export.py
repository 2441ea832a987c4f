"""Export of C²-Syn at full size: 50,000 groups to 750,000 pairs as Parquet, and both read back through `load_dataset`.

The groups are the seed set's, each text made its own by a number, so that nothing repeats from group to group. Every step
runs in a process of its own, which measures its own peak memory.

python -m benchmarks.bench_export
"""

import logging
import multiprocessing
import resource
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, to_json_line, write_json
from course_correction.base.run_folder import library_versions
from course_correction.base.settings import parse_settings

logger = logging.getLogger("course_correction")


@dataclass
class BenchSettings:
    """What is timed."""

    groups: int = field(default=50_000, metadata={"help": "ranked groups"})
    output_dir: str = field(default="runs/bench-export", metadata={"help": "where the files and bench_export.json go"})

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.groups < 1:
            raise UsageError(f"groups is {self.groups}, but must be at least 1.")


def write_groups(path: Path, count: int) -> int:
    """Write `count` groups unlike one another, and return the bytes of their six texts, all together."""
    from c2_syn import SynthesisSettings, synthesize

    seed = list(read_jsonl(synthesize(SynthesisSettings(output_dir=str(path.parent / "seed")))))
    text_bytes = 0
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            group = dict(seed[number % len(seed)])
            group["request_id"] += f"-{number}"
            group["request"] += f" ({number})"
            group["responses"] = [f"{response} ({number})" for response in group["responses"]]
            text_bytes += sum(len(response.encode()) for response in group["responses"])
            file.write(to_json_line(group))
    return text_bytes


def export_both(folder: Path) -> int:
    """Export `groups.jsonl`; returns the number of pairs."""
    from c2_syn import SynthesisSettings, export

    write_json(folder / "selection.json", {"kept": 0, "dropped": {}})
    return export(folder / "groups.jsonl", folder / "export", SynthesisSettings())["pairs"]


def read_back(folder: Path, config: str, streaming: bool) -> int:
    """Read every row; returns their number."""
    from datasets import load_dataset

    options = {} if streaming else {"cache_dir": str(folder / "cache")}
    rows = load_dataset(str(folder / "export"), config, split="train", streaming=streaming, **options)
    if streaming:
        return sum(1 for _ in rows)
    return sum(len(batch["request_id"]) for batch in rows.iter(1000))


def _measured(work: Any, arguments: tuple[Any, ...], answers: Any) -> None:
    start = time.perf_counter()
    try:
        value = work(*arguments)
    except UsageError as error:
        answers.put({"error": str(error)})
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answers.put({"value": value, "seconds": round(time.perf_counter() - start, 1), "peak_gib": round(peak, 2)})


def apart(work: Any, *arguments: Any) -> dict[str, Any]:
    """Run `work` in a process of its own; returns its value, seconds and peak memory."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_measured, args=(work, arguments, answers))
    process.start()
    answer = None
    while answer is None:
        try:
            answer = answers.get(timeout=1)
        except Exception:
            if process.exitcode is not None:
                raise UsageError(f"{work.__name__} failed.") from None
    process.join()
    if "error" in answer:
        raise UsageError(answer["error"])
    return answer


def main() -> None:
    """Write, export, read back; print seconds, memory and sizes."""
    (settings,) = parse_settings([BenchSettings], description=__doc__)
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    steps = {"groups written": apart(write_groups, folder / "groups.jsonl", settings.groups)}
    text_bytes = steps["groups written"].pop("value")
    steps["export"] = apart(export_both, folder)
    for config in ("ranked", "pairs"):
        for streaming in (False, True):
            name = f"{config} read back{', streaming' if streaming else ''}"
            steps[name] = apart(read_back, folder, config, streaming)
            logger.info(f"{name}: {steps[name]['value']} rows")
    sizes = {
        name: sum(file.stat().st_size for file in (folder / "export" / name).glob("*.parquet"))
        for name in ("ranked", "pairs")
    }
    for name, step in steps.items():
        print(f"{name:30} {step['seconds']:7.1f} s, peak {step['peak_gib']:.2f} GiB")
    for name, size in sizes.items():
        print(f"{name:30} {size / 2**20:7.1f} MiB, {size / text_bytes:.2f} of the six texts' {text_bytes / 2**20:.1f} MiB")
    result = {"settings": asdict(settings), "versions": library_versions(), "steps": steps, "bytes": sizes}
    write_json(folder / "bench_export.json", result | {"text_bytes": text_bytes})


if __name__ == "__main__":
    run_script(main)
