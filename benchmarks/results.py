"""Results of benchmarks: JSON under benchmarks/results/ with the command and the machine."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine_facts() -> dict[str, Any]:
    """Return the processor, cores and versions, for judging timings."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    packages = ("torch", "numpy", "pillow", "timm", "datasets", "webdataset")
    versions = {name: metadata.version(name) for name in packages}
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "packages": versions}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and the smallest and largest: this is how a noisy machine is reported honestly."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def shown(given: Sequence[str]) -> list[str]:
    """Return the arguments of a command for publication, without folders of this machine."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in given]
    return [f"'{word}'" if " " in word else word for word in words]


def write_results(name: str, results: dict[str, Any], *, arguments: Sequence[str] | None = None) -> Path:
    """Write benchmarks/results/{name}.json: results, the command that made them, and the machine."""
    module = sys.modules["__main__"].__spec__
    command = f"python -m {module.name}" if module is not None else f"python {Path(sys.argv[0]).name}"
    command = " ".join([command, *(sys.argv[1:] if arguments is None else arguments)])
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    value = {"command": command, "machine": machine_facts(), "results": results}
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    return path
