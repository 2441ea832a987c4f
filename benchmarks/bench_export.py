"""Export of C²-Syn at full size: 50,000 groups to 750,000 pairs as Parquet, and both read back through `load_dataset`.

The groups are those of the seed set, with a number in each text, so that no text repeats across groups. Each step runs in
its own process, which measures its own peak memory.

python -m benchmarks.bench_export
python -m benchmarks.bench_export --smallest true   # one group: tries the benchmark out
"""

import logging
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty
from typing import Any, cast

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, to_json_line, write_json
from course_correction.base.run_folder import library_versions
from course_correction.base.settings import check_values, parse_settings, setting
from course_correction.hub.dataset_exports import C2SynSettings, export_c2_syn
from course_correction.synthesis.ranked_groups import RankedGroup
from course_correction.synthesis.run import synthesize
from course_correction.synthesis.settings import SynthesisSettings

logger = logging.getLogger("course_correction")


@dataclass
class BenchSettings:
    """What is timed."""

    groups: int = setting(50_000, "number of ranked groups", group="data", identity=(), common=True, at_least=1)
    smallest: bool = setting(False, "export one group, whatever `groups` is", group="data", identity=(), common=True)
    output_dir: str = setting(
        "runs/bench-export", "folder of the files and of bench_export.json", group="output", identity=(), common=True
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_values(self)


def write_groups(path: Path, count: int) -> int:
    """Write `count` groups whose texts all differ, and return the number of bytes of their responses."""
    groups_file = synthesize(SynthesisSettings(output_dir=str(path.parent / "seed")))
    assert groups_file is not None
    seed = cast(list[RankedGroup], list(read_jsonl(groups_file)))
    text_bytes = 0
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            group = seed[number % len(seed)].copy()
            group["request_id"] += f"-{number}"
            group["request"] += f" ({number})"
            group["responses"] = [f"{response} ({number})" for response in group["responses"]]
            text_bytes += sum(len(response.encode()) for response in group["responses"])
            file.write(to_json_line(dict(group)))
    return text_bytes


def export_both(folder: Path) -> int:
    """Export `groups.jsonl`, and return the number of pairs."""
    write_json(folder / "selection.json", {"kept": 0, "dropped": {}})
    return export_c2_syn(folder / "groups.jsonl", folder / "export", C2SynSettings())["pairs"]


def read_back(folder: Path, config: str, streaming: bool) -> int:
    """Read all rows, and return their number."""
    from datasets import load_dataset

    export = str(folder / "export")
    if streaming:
        return sum(1 for _ in load_dataset(export, config, split="train", streaming=True))
    rows = load_dataset(export, config, split="train", cache_dir=str(folder / "cache"))
    return sum(len(batch["request_id"]) for batch in rows.iter(1000))


def _measured(work: Callable[..., int], arguments: tuple[Any, ...], answers: Any) -> None:
    start = time.perf_counter()
    try:
        value = work(*arguments)
    except UsageError as error:
        answers.put({"error": str(error)})
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answers.put({"value": value, "seconds": round(time.perf_counter() - start, 1), "peak_gib": round(peak, 2)})


def run_apart(work: Callable[..., int], *arguments: Any) -> dict[str, Any]:
    """Run `work` in its own process, and return its value, seconds and peak memory."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_measured, args=(work, arguments, answers))
    process.start()
    answer = None
    while answer is None:
        try:
            answer = answers.get(timeout=1)
        except Empty:
            if process.exitcode is not None:
                raise UsageError(f"{work.__name__} failed with exit status {process.exitcode}.") from None
    process.join()
    if "error" in answer:
        raise UsageError(answer["error"])
    return answer


def main() -> None:
    """Write groups, export them, read them back; print seconds, memory and sizes."""
    (settings,) = parse_settings([BenchSettings], description=__doc__)
    if settings.smallest:
        settings = replace(settings, groups=1)
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    steps = {"groups written": run_apart(write_groups, folder / "groups.jsonl", settings.groups)}
    text_bytes = steps["groups written"].pop("value")
    steps["export"] = run_apart(export_both, folder)
    for config in ("ranked", "pairs"):
        for streaming in (False, True):
            name = f"{config} read back{', streaming' if streaming else ''}"
            steps[name] = run_apart(read_back, folder, config, streaming)
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
