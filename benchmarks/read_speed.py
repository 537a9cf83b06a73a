"""Samples per second and core into tensors: latents against pixels through four other libraries, side by side.

    python -m benchmarks.read_speed --data FOLDER [--repeats 5] [--pictures 8192] [--shared ../shared/data]
        [--endpoint http://127.0.0.1:8085] [--skip litdata streaming]

FOLDER keeps what is prepared (about 1 GB) for the next run. Needs imagecodecs, litdata and mosaicml-streaming; what is
missing is left out and named. Each pipeline has a process of its own, all on one core with one thread; they take turns,
so that a noisy machine is noisy for all. Speeds are per second of CPU time, of all threads of the process; of repeats
the median is kept, with the spread. Times of the index are CPU time too. With --endpoint (an S3 store with the test
account of Swift) an epoch of training from a cold cache is timed against one from local disk, in wall time.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.read_pipelines import PIPELINES, PREPARE, prepare_pictures
from benchmarks.results import spread, write_results


def work(name: str, root: Path, core: int, pipe: Connection) -> None:
    """A process of one pipeline: told to go, answers with CPU seconds for its number of samples."""
    os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    _, read, count = PIPELINES[name]
    batches = read(root)
    for _ in range(3):
        latents, _ = next(batches)
    pipe.send((str(latents.dtype), tuple(latents.shape)))
    while pipe.recv():
        done, begin, wall = 0, time.process_time(), time.perf_counter()
        while done < count:
            latents, _ = next(batches)
            done += len(latents)
        pipe.send((done / (time.process_time() - begin), done / (time.perf_counter() - wall)))
    os._exit(0)  # some of them keep threads that do not end


def compare(root: Path, names: list[str], *, repeats: int, core: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in names:
        pipe, other = context.Pipe()
        context.Process(target=work, args=(name, root, core, other)).start()
        other.close()
        dtype, shape = pipe.recv()
        print(f"{name}: {dtype} {shape}")
        pipes[name] = pipe
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name, pipe in pipes.items():
            pipe.send(True)
            cpu, wall = pipe.recv()
            speeds[name].append(cpu)
            print(f"{repeat + 1}/{repeats} {name}: {cpu:.0f} per CPU second, {wall:.0f} per second")
    for pipe in pipes.values():
        pipe.send(False)
    base = speeds["webdataset_jpeg"]
    return {
        name: {
            "samples_per_cpu_second": spread(values),
            "times_webdataset_jpeg": spread([value / other for value, other in zip(values, base, strict=True)]),
        }
        for name, values in speeds.items()
    }


def decoders(root: Path, *, repeats: int) -> dict[str, Any]:
    """CPU microseconds for one packed latent of 64 x 64 pixels, by decoder; all must agree on every pixel."""
    import warnings

    import torch

    from walloc_data import LatentDataset
    from walloc_data.latents import decode_webp

    dataset = LatentDataset(root / "latents", cache_folder=root / "cache")
    shard = (root / "latents" / dataset.record.shards[0].name).read_bytes()
    rows = dataset.index[:256]
    payloads = [shard[row["offset"] : row["offset"] + row["length"]] for row in rows]
    found: dict[str, Callable[[bytes], Any]] = {"pillow": decode_webp}
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        buffer = np.empty((64, 64, 3), np.uint8)
        found["imagecodecs"] = lambda data: imagecodecs.webp_decode(data, out=buffer)
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(0)
        found["opencv"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    for name in ("torchvision.io", "torchcodec.decoders"):
        if importlib.util.find_spec(name.partition(".")[0]):
            decode = getattr(importlib.import_module(name), "decode_webp", None)
            if decode is not None:
                found[name.partition(".")[0]] = lambda data, decode=decode: (
                    decode(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()
                )
    result = {}
    for name, decode in found.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision announces that its decoder will go
            times = []
            for _ in range(repeats):
                begin = time.process_time()
                for data in payloads:
                    decode(data)
                times.append((time.process_time() - begin) / len(payloads) * 1e6)
            same = all(np.array_equal(decode(data), decode_webp(data)) for data in payloads[:32])
        result[name] = {"cpu_us": spread(times), "same_pixels_as_pillow": same}
        print(f"decode with {name}: {statistics.median(times):.1f} us, same pixels: {same}")
    return result


def index_times(root: Path, *, num_samples: int = 1_281_167) -> dict[str, float]:
    """CPU seconds to open a data set of ImageNet's length, the first time and later, and to plan a whole epoch."""
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    from walloc_data import LatentDataset
    from walloc_data.format import (
        ChannelStatistics,
        CodecSpec,
        EncodeSettings,
        Manifest,
        ShardRecord,
        SplitRecord,
        index_name,
        shard_name,
    )

    spec = CodecSpec("synthetic", 3, 3, 12, 8, "bior4.4", "0" * 64)
    sizes = [min(2048, num_samples - first) for first in range(0, num_samples, 2048)]
    shards = tuple(
        ShardRecord(shard_name("train", i), size, size * 6144, hashlib.sha256(str(i).encode()).hexdigest())
        for i, size in enumerate(sizes)
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "index").mkdir()
        rows = np.arange(num_samples)
        within = np.concatenate([np.arange(size) for size in sizes])
        table = pa.table(
            {
                "key": np.char.zfill(rows.astype(str), 9),
                "shard": np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
                "offset": within * 6144 + 512,
                "length": np.full(num_samples, 5000, np.int32),
                "label": rows % 1000,
                "height": np.full(num_samples, 256, np.int32),
                "width": np.full(num_samples, 256, np.int32),
                "source_index": rows,
            }
        )
        pq.write_table(table, folder / index_name("train"))
        split = SplitRecord({}, num_samples, 0, shards, (12, 32, 32), True, ChannelStatistics.zero(spec))
        names = tuple(f"class{i}" for i in range(1000))
        (folder / "walloc.json").write_text(Manifest(spec, EncodeSettings(), names, {"train": split}, {}).to_json())
        del rows, within, table
        times = {}
        for name in ("first_open_s", "later_open_s"):
            begin = time.process_time()
            dataset = LatentDataset(folder, shuffle=True, cache_folder=folder / "cache")
            loader = dataset.loader(batch_size=256, drop_last=True)
            times[name] = time.process_time() - begin
        begin = time.process_time()
        loader.batching.batch(3, 2500)
        times["plan_and_first_batch_of_an_epoch_s"] = time.process_time() - begin
        begin = time.process_time()
        for number in range(len(loader)):
            loader.batching.batch(4, number)
        times["all_batches_of_an_epoch_s"] = time.process_time() - begin
        begin = time.process_time()
        for _ in range(100):
            json.dumps(loader.state_dict())
        times["state_dict_s"] = (time.process_time() - begin) / 100
    print(times)
    return times


def sizes(root: Path) -> dict[str, float]:
    """Bytes on disk for one sample of 256 x 256 pixels."""
    from walloc_data import LatentDataset

    dataset = LatentDataset(root / "latents", cache_folder=root / "cache")
    files = list((root / "pictures").glob("*/*.jpg"))
    return {
        "jpeg_q90": sum(path.stat().st_size for path in files) / len(files),
        "webp_in_shard": float(dataset.index["length"].mean()),
        "shard": sum(shard.num_bytes for shard in dataset.record.shards) / len(dataset),
        "decoded_array": float(np.prod(dataset.latent_shape or ())),
        "raw_pixels_uint8": 256 * 256 * 3.0,
    }


def remote_epoch(root: Path, endpoint: str, *, repeats: int) -> dict[str, Any]:
    """Wall seconds for an epoch of training a small model: from S3 with a cold cache, and from local shards."""
    import fsspec
    import torch
    from torch import nn

    from walloc_data import LatentDataset

    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test:tester",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    fs = fsspec.filesystem("s3")
    bucket = "read-speed"
    if not fs.exists(bucket):
        fs.mkdir(bucket)
    fs.put(str(root / "latents") + "/", f"{bucket}/latents/", recursive=True)
    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Conv2d(12, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def epoch(url: str) -> tuple[float, float]:
        with tempfile.TemporaryDirectory(dir=root) as cache:
            dataset = LatentDataset(url, shuffle=True, window_shards=4, cache_folder=cache)
            begin, first = time.perf_counter(), 0.0
            for latents, labels in dataset.loader(batch_size=128, num_workers=1, drop_last=True):
                first = first or time.perf_counter() - begin
                loss = nn.functional.cross_entropy(model(latents.float() / 16), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return time.perf_counter() - begin, first

    remote, local = [], []
    for _ in range(repeats):
        local.append(epoch(str(root / "latents")))
        remote.append(epoch(f"s3://{bucket}/latents"))
        print(f"epoch from disk {local[-1][0]:.2f} s, from S3 {remote[-1][0]:.2f} s")
    return {
        "local_s": spread([total for total, _ in local]),
        "s3_cold_s": spread([total for total, _ in remote]),
        "s3_over_local": spread([a / b for (a, _), (b, _) in zip(remote, local, strict=True)]),
        "first_batch_local_s": spread([first for _, first in local]),
        "first_batch_s3_s": spread([first for _, first in remote]),
    }


def clients(endpoint: str, *, repeats: int, num_bytes: int = 11_000_000) -> dict[str, Any]:
    """Megabytes per second and per CPU second of whole shards fetched to disk, by client."""
    import fsspec

    data = np.random.default_rng(0).bytes(num_bytes)
    options: dict[str, Any] = {"key": "test:tester", "secret": "testing", "endpoint_url": endpoint}
    fs = fsspec.filesystem("s3", **options)
    if not fs.exists("read-speed"):
        fs.mkdir("read-speed")
    fs.pipe_file("read-speed/shard", data)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "shard"
        found: dict[str, Callable[[], object]] = {"s3fs": lambda: fs.get_file("read-speed/shard", str(target))}
        if importlib.util.find_spec("obstore"):
            import obstore
            from obstore.store import S3Store

            store = S3Store(
                "read-speed",
                endpoint=endpoint,
                access_key_id="test:tester",
                secret_access_key="testing",
                region="us-east-1",
                virtual_hosted_style_request=False,
                client_options={"allow_http": True},
            )
            found["obstore"] = lambda: target.write_bytes(memoryview(obstore.get(store, "shard").bytes()))
        result = {}
        for name, fetch in found.items():
            fetch()
            walls, cpus = [], []
            for _ in range(repeats):
                begin, cpu = time.perf_counter(), time.process_time()
                for _ in range(8):
                    fetch()
                walls.append(8 * num_bytes / 1e6 / (time.perf_counter() - begin))
                cpus.append(8 * num_bytes / 1e6 / (time.process_time() - cpu))
            result[name] = {"mb_per_second": spread(walls), "mb_per_cpu_second": spread(cpus)}
            print(name, result[name])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder for prepared files")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="Kodak and photos-halfres.tar")
    parser.add_argument("--pictures", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--core", type=int, default=0, help="the core that all pipelines are pinned to")
    parser.add_argument("--endpoint", help="endpoint of an S3 store, for the network part")
    parser.add_argument("--skip", nargs="*", default=[], help="pipelines to leave out")
    arguments = parser.parse_args()
    root = arguments.data
    if not (root / "pictures").exists():
        prepare_pictures(root, arguments.shared, count=arguments.pictures)
    missing = [name for name in ("litdata", "streaming") if importlib.util.find_spec(name) is None]
    for name, prepare in PREPARE.items():
        if not (root / name).exists() and name not in missing + arguments.skip:
            print(f"preparing {name}")
            try:
                prepare(root)
            except BaseException:
                shutil.rmtree(root / name, ignore_errors=True)
                raise
    names = [name for name, (kind, _, _) in PIPELINES.items() if kind not in missing + arguments.skip]
    results: dict[str, Any] = {
        "pipelines": compare(root, names, repeats=arguments.repeats, core=arguments.core),
        "decoders": decoders(root, repeats=arguments.repeats),
        "imagenet_index": index_times(root),
        "bytes_per_sample": sizes(root),
        "left_out": missing + arguments.skip,
    }
    if arguments.endpoint:
        results["s3_clients"] = clients(arguments.endpoint, repeats=arguments.repeats)
        results["training_epoch"] = remote_epoch(root, arguments.endpoint, repeats=arguments.repeats)
    # Folders and endpoints of this machine are not published.
    shown = ["--data", "FOLDER", "--repeats", str(arguments.repeats), "--pictures", str(arguments.pictures)]
    print(write_results("read_speed", results, arguments=shown + (["--endpoint", "URL"] if arguments.endpoint else [])))


if __name__ == "__main__":
    main()
