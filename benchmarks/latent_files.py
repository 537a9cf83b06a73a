"""Ways to store a latent without loss: bytes, and milliseconds to write and to read.

    python -m benchmarks.latent_files [--shared ../shared/data] [--repeats 5]

The packed latents of the Kodak pictures and of 64 Imagenette pictures, each as one file. JPEG-LS is CharLS through
the package `pillow-jpls`, in each of its three interleavings of the colours. One thread, CPU time; the ways take turns,
and the medians are over the repeats.
"""

import argparse
import io
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.results import shown, spread, write_results
from walloc_data.codec import load_codec
from walloc_data.latents import decode_webp, encode_webp, pack

Pixels = npt.NDArray[np.uint8]


def pillow_writer(kind: str, **options: object) -> Callable[[Pixels], bytes]:
    def write(packed: Pixels) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(packed).save(buffer, kind, **options)
        return buffer.getvalue()

    return write


def read_pillow(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)))


def ways() -> dict[str, tuple[Callable[[Pixels], bytes], Callable[[bytes], Pixels]]]:
    import pillow_jpls  # noqa: F401  registers the format

    jpegls = {
        f"JPEG-LS, colours by {by}": (pillow_writer("JPEG-LS", near_lossless=0, interleave=by), read_pillow)
        for by in ("none", "line", "sample")
    }
    return {
        "WebP, ours": (encode_webp, decode_webp),
        "WebP, ours, `--effort fast`": (lambda packed: encode_webp(packed, effort="fast"), decode_webp),
        "WebP, Pillow's default": (pillow_writer("WEBP", lossless=True), decode_webp),
        **jpegls,
    }


def packed_latents(shared: Path) -> dict[str, list[Pixels]]:
    codec, _ = load_codec(decoder=False)

    def packed(picture: Image.Image) -> Pixels:
        pixels = np.array(picture.convert("RGB"))
        height, width = (side // 8 * 8 for side in pixels.shape[:2])
        images = torch.from_numpy(pixels[:height, :width]).permute(2, 0, 1)[None]
        return np.asarray(pack(codec.encode(images))[0])

    kodak = [packed(Image.open(path)) for path in sorted((shared / "kodak").glob("*.png"))]
    small = []
    with tarfile.open(shared / "imagenette160-val.tar") as tar:
        for member in tar:
            if member.isfile() and len(small) < 64:
                small.append(packed(Image.open(io.BytesIO(tar.extractfile(member).read()))))  # type: ignore[union-attr]
    return {"kodak_768x512": kodak, "imagenette_160": small}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, dict[str, object]]] = {}
    for name, latents in packed_latents(args.shared).items():
        times: dict[str, dict[str, list[float]]] = {way: {"write": [], "read": []} for way in ways()}
        sizes: dict[str, float] = {}
        for _ in range(args.repeats):
            for way, (write, read) in ways().items():
                begin = time.process_time()
                files = [write(packed) for packed in latents]
                middle = time.process_time()
                back = [read(data) for data in files]
                end = time.process_time()
                if not all(np.array_equal(a, b) for a, b in zip(latents, back, strict=True)):
                    raise SystemExit(f"{way} is not lossless")
                times[way]["write"].append(1e3 * (middle - begin) / len(latents))
                times[way]["read"].append(1e3 * (end - middle) / len(latents))
                sizes[way] = sum(map(len, files)) / len(latents)
        results[name] = {
            way: {"bytes": sizes[way], "write_ms": spread(found["write"]), "read_ms": spread(found["read"])}
            for way, found in times.items()
        }
        for way, row in results[name].items():
            print(f"{name:16} {way:30} {row['bytes']:9.0f} {row['write_ms']} {row['read_ms']}")
    print(write_results("latent_files", results, arguments=shown(["--repeats", str(args.repeats)])))


if __name__ == "__main__":
    main()
