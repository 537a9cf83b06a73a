"""Whole conversions: samples a second, where each millisecond goes, beside what libjpeg and libwebp alone take.

    python -m benchmarks.convert_speed [--repeats 3] [--shared ../shared/data] [--limit N]
    python -m benchmarks.convert_speed --workers       the same conversions with two workers, on an idle machine

1. Imagenette (9469 JPEGs of 224 px) as it is, one worker in a process of its own. Times are CPU time, so that other
   programs on the machine count little; of the repeats the median is kept, with the spread. The floor is libjpeg
   reading the same files and libwebp writing the same latents losslessly (method 4, at quality 0, the quickest that
   is no larger than Pillow's default, and at that default), and nothing else.
2. Peak memory of one process on 1000 pictures and on all.
3. An estimate for ImageNet-1k and for a billion pictures: 900 photographs of ImageNet's classes, doubled to about
   ImageNet's usual 500 x 375 and saved at quality 98, near the 108 kB that ImageNet's files have on average (its
   training tar is 138 GB), encoded at 256 px.

With --workers: wall-clock time from the call to the manifest, workers' start included, with one worker and with two in
turn; and the CPU time of all processes together, which tells what a second worker costs where the clock is disturbed.
Once over Imagenette, and once over four times as many pictures, where the start weighs less.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import types
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.results import spread, write_results

ROOT = Path(__file__).resolve().parents[1]
IMAGENET_PICTURES = 1_281_167
BILLION = 10**9


def unpack_tar(path: Path, target: Path, *, limit: int | None) -> int:
    """Pictures of a tar as a class folder; their number."""
    number = 0
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and (limit is None or number < limit):
                parts = Path(member.name).parts
                place = target / (parts[-2] if len(parts) > 1 else "all") / parts[-1]
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
                number += 1
    return number


def doubled(path: Path, target: Path, *, limit: int | None) -> None:
    """Pictures of a tar at twice their size, saved as ImageNet's files are about as large."""
    (target / "all").mkdir(parents=True)
    with tarfile.open(path) as tar:
        for number, member in enumerate(tar):
            if member.isfile() and (limit is None or number < limit):
                with Image.open(tar.extractfile(member)) as image:  # type: ignore[arg-type]
                    larger = image.convert("RGB").resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS)
                larger.save(target / "all" / Path(member.name).name, quality=98)


def convert(source: Path, out: Path, options: dict[str, Any], *, cpu_clock: bool) -> dict[str, Any]:
    """One conversion in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.convert_speed", "--child", source, out, json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"CPU_CLOCK": "1"} if cpu_clock else {})
    result = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def child(source: str, out: str, options: dict[str, Any]) -> None:
    """The fresh process: convert, print what it cost."""
    import torch

    from walloc_data import encode_dataset
    from walloc_data.codec import load_codec
    from walloc_data.convert import shard, worker

    torch.set_num_threads(1)
    if os.environ.get("CPU_CLOCK"):
        shard.time = worker.time = types.SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    codec = load_codec(decoder=False)[0]
    before = time.process_time()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    summary = encode_dataset(source, out, codec=codec, progress=False, **options)
    value = summary.to_dict() | {
        "wall_s": time.perf_counter() - begin,
        "cpu_s": time.process_time() - begin_cpu,
        "cpu_of_all_s": sum(
            usage.ru_utime + usage.ru_stime
            for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )
        - before,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "stages_s": json.loads((Path(out) / ".walloc/train/log.jsonl").read_text().splitlines()[-1])["stages_s"],
    }
    print(json.dumps(value))


def floor(source: Path, out: Path) -> dict[str, float]:
    """CPU milliseconds a sample of libjpeg and libwebp alone, on a data set's own files and latents."""
    from walloc_data.latents import decode_webp

    files = [path.read_bytes() for path in sorted(source.rglob("*.*"))]
    begin = time.process_time()
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    libjpeg = (time.process_time() - begin) / len(files) * 1e3
    pictures = []
    for path in sorted((out / "data").glob("*.tar")):
        with tarfile.open(path) as tar:
            pictures += [
                Image.fromarray(decode_webp(tar.extractfile(member).read()))  # type: ignore[union-attr]
                for member in tar
                if member.name.endswith(".webp")
            ]
    result = {"libjpeg": libjpeg}
    for name, quality in (("libwebp", 0), ("libwebp_as_pillow_sets_it", 80)):
        begin = time.process_time()
        for picture in pictures:
            picture.save(io.BytesIO(), "WEBP", lossless=True, method=4, quality=quality)
        result[name] = (time.process_time() - begin) / len(pictures) * 1e3
    return result


def one_worker(source: Path, folder: Path, *, repeats: int, options: dict[str, Any]) -> dict[str, Any]:
    """CPU time of whole conversions, by stage."""
    runs = [
        convert(source, folder / f"{number}", options | {"overwrite": True}, cpu_clock=True)
        for number in range(repeats)
    ]
    samples = runs[0]["num_samples"]
    stages = {
        stage: spread([run["stages_s"].get(stage, 0.0) / samples * 1e3 for run in runs])
        for stage in runs[0]["stages_s"]
    }
    milliseconds = [run["cpu_s"] / samples * 1e3 for run in runs]
    stages["everything_else"] = spread([(run["cpu_s"] - sum(run["stages_s"].values())) / samples * 1e3 for run in runs])
    return {
        "samples": samples,
        "failures": runs[0]["num_failures"],
        "source_bytes_a_sample": runs[0]["source_bytes"] / samples,
        "shard_bytes_a_sample": runs[0]["shard_bytes"] / samples,
        "webp_bytes_a_sample": runs[0]["webp_bytes"] / samples,
        "bits_per_pixel": runs[0]["bits_per_pixel"],
        "cpu_ms_a_sample": spread(milliseconds),
        "samples_per_s_per_core": spread([1e3 / value for value in milliseconds]),
        "stages_cpu_ms_a_sample": stages,
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
    }


def workers(shared: Path, folder: Path, *, repeats: int, limit: int | None) -> dict[str, Any]:
    """Two workers against one, on the clock."""
    results: dict[str, Any] = {}
    for copies in (1, 4):
        source = folder / f"source-{copies}"
        total = sum(unpack_tar(shared / "imagenette160-train.tar", source / str(i), limit=limit) for i in range(copies))
        found: dict[str, Any] = {"load_before": [], "wall_s": {1: [], 2: []}, "cpu_of_all_s": {1: [], 2: []}}
        for number in range(repeats):
            for count in (1, 2):
                found["load_before"].append(round(os.getloadavg()[0], 2))
                options = {"workers": count, "samples_per_shard": 512}
                run = convert(source, folder / f"out-{copies}-{number}-{count}", options, cpu_clock=False)
                for key in ("wall_s", "cpu_of_all_s"):
                    found[key][count].append(run[key])
        found["times_faster"] = spread([one / two for one, two in zip(*found["wall_s"].values(), strict=True)])
        results[f"{total}_pictures"] = found
    return results


def estimate(found: dict[str, Any], pictures: int) -> dict[str, float]:
    """Core hours and bytes for a number of pictures, at a measured rate."""
    return {
        "pictures": pictures,
        "core_hours": pictures * found["cpu_ms_a_sample"]["median"] / 3.6e6,
        "shard_bytes": pictures * found["shard_bytes_a_sample"],
        "source_bytes": pictures * found["source_bytes_a_sample"],
    }


def main() -> None:
    """Measure and write benchmarks/results/convert_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--limit", type=int, help="fewer pictures, to try the benchmark out; writes no results")
    parser.add_argument("--workers", action="store_true", help="compare wall-clock times of two workers and one")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1], json.loads(args.child[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.workers:
            found = workers(args.shared, folder, repeats=args.repeats, limit=args.limit)
            print(json.dumps(found, indent=1) if args.limit else write_results("convert_workers", found))
            return
        total = unpack_tar(args.shared / "imagenette160-train.tar", folder / "all", limit=args.limit)
        unpack_tar(args.shared / "imagenette160-train.tar", folder / "few", limit=min(1000, total))
        doubled(args.shared / "photos-halfres.tar", folder / "photos", limit=args.limit)
        options = {"samples_per_shard": 512}
        results: dict[str, Any] = {}
        for effort in ("default", "fast"):
            given = options | {"webp_effort": effort}
            found = one_worker(folder / "all", folder / effort, repeats=args.repeats, options=given)
            results[f"imagenette_{effort}"] = found
            photos = one_worker(
                folder / "photos", folder / f"photos-{effort}", repeats=args.repeats, options=given | {"size_px": 256}
            )
            photos["estimates"] = {
                "imagenet_1k": estimate(photos, IMAGENET_PICTURES),
                "a_billion": estimate(photos, BILLION),
            }
            results[f"photos_at_256_{effort}"] = photos
        results["floor_cpu_ms_a_sample"] = alone = floor(folder / "all", folder / "default" / "0")
        for effort in ("default", "fast"):
            cost = results[f"imagenette_{effort}"]["cpu_ms_a_sample"]["median"]
            results[f"imagenette_{effort}"]["times_the_floor"] = cost / (alone["libjpeg"] + alone["libwebp"])
        few = one_worker(folder / "few", folder / "few-out", repeats=1, options=options)
        results["peak_memory_bytes"] = {
            f"{few['samples']}_pictures": few["peak_memory_bytes"],
            f"{total}_pictures": results["imagenette_default"]["peak_memory_bytes"],
        }
    if args.limit is None:
        print(write_results("convert_speed", results))
    else:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
