"""Captions, several labels, numbers and boxes: from Hugging Face data sets to S3, two ranks, a resume, a training.

Two data sets are encoded from what `datasets` saved, one a folder of Arrow files and one of parquet. Two processes read
each task's data set from the object store with workers, stop within an epoch; two others go on, then train.
"""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests import warm
from walloc_data import LatentDataset, create_latent_model, encode_dataset
from walloc_data.adapters import save_latent_model
from walloc_data.dataset import boxes_to_pixels
from walloc_data.serving import predict

pytestmark = [pytest.mark.object_store, pytest.mark.slow]

NUM = 64
SIDE = 64  # pixels
ATTRIBUTES = ["bright", "wide", "colourful", "detailed"]
TASKS = ("caption", "labels", "number", "boxes")


def described(picture: Image.Image, index: int) -> dict[str, Any]:
    """Columns of a picture, measured in it."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)
    height, width = pixels.shape[:2]
    facts = [
        pixels.mean() > 110,
        width > height,
        pixels.std(axis=2).mean() > 12,
        np.abs(np.diff(pixels, axis=1)).mean() > 9,
    ]
    words = [name for name, holds in zip(ATTRIBUTES, facts, strict=True) if holds]
    brightest = np.unravel_index(pixels.mean(2).argmax(), (height, width))
    boxes = [[0.0, 0.0, width / 2, height / 3], [float(brightest[1]), float(brightest[0]), width, height]]
    return {
        "caption": f"№ {index}: {', '.join(words) or 'nothing'} — {width} × {height}" if index % 9 else None,
        "attributes": [bool(fact) for fact in facts],
        "tags": [i for i, fact in enumerate(facts) if fact],
        "luminance": float(np.float32(pixels.mean())),
        "boxes": boxes[: index % 3],
    }


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> list[dict[str, Any]]:
    """64 photographs of ten classes, with what is said of them."""
    found: list[dict[str, Any]] = []
    with tarfile.open(shared_data / "imagenette160-val.tar") as tar:
        for number, member in enumerate(member for member in tar if member.isfile()):
            if number % 15 == 0 and len(found) < NUM:
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                picture = Image.open(file)
                label = Path(member.name).parts[-2]
                name = f"{len(found)}.jpg"
                found.append({"image": {"bytes": data, "path": name}, "label": label} | described(picture, len(found)))
    assert len(found) == NUM
    return found


@pytest.fixture(scope="module")
def saved(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The data sets, as `datasets` saves them: one with captions and labels, one with numbers and boxes."""
    classes = datasets.ClassLabel(names=sorted({row["label"] for row in rows}))
    kinds = {
        "image": datasets.Image(),
        "label": classes,
        "caption": datasets.Value("string"),
        "attributes": datasets.Sequence(datasets.Value("bool"), length=4),
        "tags": datasets.Sequence(datasets.ClassLabel(names=ATTRIBUTES)),
        "luminance": datasets.Value("float32"),
        "boxes": datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4)),
    }

    def made(*names: str) -> datasets.Dataset:
        features = datasets.Features({name: kinds[name] for name in ("image", "label", *names)})
        return datasets.Dataset.from_list([{name: row[name] for name in features} for row in rows], features=features)

    root = tmp_path_factory.mktemp("saved")
    made("caption", "attributes", "tags").save_to_disk(root / "arrow")
    (root / "parquet").mkdir()
    made("luminance", "boxes").to_parquet(root / "parquet" / "train-00000-of-00001.parquet")
    return {"arrow": root / "arrow", "parquet": root / "parquet"}


SCRIPT = """
import json, os, sys
import torch
import torch.distributed as dist
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from torch.nn.parallel import DistributedDataParallel
from walloc_data import LatentDataset, create_latent_model
from walloc_data.dataset import boxes_to_cells

url, out, stage = sys.argv[1:]
rank = int(os.environ["RANK"])
common = {"shuffle": True, "seed": 3}
tasks = {
    "caption": LatentDataset(f"{url}/arrow", columns=["caption", "source_index"], **common),
    "labels": LatentDataset(f"{url}/arrow", target="attributes", columns=["tags", "source_index"], **common),
    "number": LatentDataset(f"{url}/parquet", target="luminance", columns=["source_index"], as_dict=True, **common),
    "boxes": LatentDataset(f"{url}/parquet", target=None, columns=["boxes", "crop", "source_index"], **common),
}
read = {}
for name, data in tasks.items():
    loader = data.loader(batch_size=8, num_workers=1, drop_last=True)
    if stage == "begin":
        batches = iter(loader)
        read[name] = [next(batches)]  # one of four
        if rank == 0:
            with open(f"{out}/{name}.json", "w") as file:
                json.dump(loader.state_dict(), file)
    else:
        with open(f"{out}/{name}.json") as file:
            loader.load_state_dict(json.load(file))
        read[name] = list(loader)
torch.save(read, f"{out}/{stage}-{rank}.pt")

WORDS = ("bright", "wide", "colourful")

def has_words(batch):
    return torch.tensor([[float(word in (text or "")) for word in WORDS] for text in batch[2]])

def centres(batch):
    found = torch.zeros(len(batch[0]), 2)
    for row, (boxes, crop) in enumerate(zip(batch[1], batch[2])):
        if len(boxes):
            cells = boxes_to_cells(boxes, crop)[0]
            found[row] = (cells[:2] + cells[2:]) / 2 / 8
    return found

def step(name, batch):
    if name == "caption":
        return batch[0], has_words(batch), binary_cross_entropy_with_logits
    if name == "labels":
        return batch[0], batch[1].float(), binary_cross_entropy_with_logits
    if name == "number":
        return batch["latent"], (batch["luminance"][:, None] - 110) / 40, smooth_l1_loss
    return batch[0], centres(batch), smooth_l1_loss

if stage == "go on":
    dist.init_process_group("gloo")
    losses = {}
    for name, data in tasks.items():
        torch.manual_seed(0)
        asked = {"caption": {"num_classes": 3}, "boxes": {"num_classes": 2}}.get(name, {})
        model = DistributedDataParallel(create_latent_model("test_convnext", dataset=data, **asked))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        loader = data.loader(batch_size=8, drop_last=True)
        losses[name] = []
        for epoch in range(3):
            total = 0.0
            for batch in loader:
                latents, wanted, loss_of = step(name, batch)
                loss = loss_of(model(latents), wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach())
            losses[name].append(total)
    torch.save(losses, f"{out}/losses-{rank}.pt")
    dist.destroy_process_group()
"""


@pytest.fixture
def trained(
    saved: dict[str, Path], credentials: None, make_bucket: Callable[[str], dict[str, Any]], tmp_path: Path
) -> tuple[str, Path]:
    """Run two processes that read, stop, resume and train; return the URL and the folder of their results."""
    make_bucket("whole-samples")
    url = "s3://whole-samples"
    for name, folder in saved.items():
        summary = encode_dataset(folder, f"{url}/{name}", size_px=SIDE, samples_per_shard=16, progress=False)
        assert (summary.num_samples, summary.num_failures) == (NUM, 0)
    (tmp_path / "script.py").write_text(SCRIPT)
    for stage in ("begin", "go on"):
        arguments = [tmp_path / "script.py", url, tmp_path, stage]
        warm.launch(arguments, world_size=2, cwd=tmp_path, preload=("s3fs", "timm", "pyarrow.parquet"))
    return url, tmp_path


def test_whole_samples_come_back_as_they_went_in(
    trained: tuple[str, Path], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    url, folder = trained
    parts = {stage: [torch.load(folder / f"{stage}-{rank}.pt") for rank in (0, 1)] for stage in ("begin", "go on")}
    for name in TASKS:
        batches = [batch for stage in parts.values() for batch in zip(*(rank[name] for rank in stage), strict=True)]
        assert len(batches) == 4
        order = [part["source_index"] if name == "number" else part[-1] for batch in batches for part in batch]
        assert [len(part) for part in order] == [8] * 8
        expected = LatentDataset(f"{url}/arrow", target=None, columns=["source_index"], shuffle=True, seed=3)
        whole = [index for _, index in expected.loader(global_batch_size=16)]
        # As one process without a stop has it, though two have read it, twice two.
        assert torch.equal(torch.cat(order), torch.cat(whole))
        assert sorted(torch.cat(order).tolist()) == list(range(NUM))
        for batch in batches:
            for part in batch:
                check(name, part, rows)
    for rank in (0, 1):
        for name, losses in torch.load(folder / f"losses-{rank}.pt").items():
            assert losses[-1] < 0.95 * losses[0], (name, losses)

    model = create_latent_model("test_convnext", dataset=f"{url}/arrow", split="train")
    save_latent_model(model, tmp_path / "model")
    (tmp_path / "0.jpg").write_bytes(rows[0]["image"]["bytes"])
    [prediction] = predict(tmp_path / "model", [tmp_path / "0.jpg"], codec=f"{url}/arrow")
    assert prediction.name in {row["label"] for row in rows}
    assert [prediction] == predict(tmp_path / "model", [tmp_path / "0.jpg"])  # the bundled codec, which is the same


def check(name: str, batch: Any, rows: list[dict[str, Any]]) -> None:
    """Compare a batch with what its samples were before they were encoded."""
    index = batch["source_index"] if name == "number" else batch[-1]
    origin = [rows[i] for i in index.tolist()]
    latents = batch["latent"] if name == "number" else batch[0]
    assert (latents.shape, latents.dtype) == ((8, 12, SIDE // 8, SIDE // 8), torch.int8)
    if name == "caption":
        _, labels, captions, _ = batch
        names = sorted({row["label"] for row in rows})
        assert [names[label] for label in labels.tolist()] == [row["label"] for row in origin]
        assert captions == [row["caption"] for row in origin]
    elif name == "labels":
        _, attributes, tags, _ = batch
        assert attributes.dtype == torch.bool
        assert attributes.tolist() == [row["attributes"] for row in origin]
        assert tags == [row["tags"] for row in origin]
    elif name == "number":
        assert sorted(batch) == ["latent", "luminance", "source_index"]
        assert batch["luminance"].dtype == torch.float32
        assert batch["luminance"].tolist() == [row["luminance"] for row in origin]
    else:
        _, boxes, crops, _ = batch
        for found, crop, row in zip(boxes, crops, origin, strict=True):
            np.testing.assert_allclose(found, np.array(row["boxes"], dtype=np.float32).reshape(-1, 4).tolist() or [])
            picture = Image.open(io.BytesIO(row["image"]["bytes"]))
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            for box, mapped in zip(row["boxes"], boxes_to_pixels(found, crop, clip=False).tolist(), strict=True):
                by_hand = (np.array(box) - [left, top, left, top]) * SIDE / side
                np.testing.assert_allclose(mapped, by_hand, atol=SIDE / side)  # a pixel of the source, in centring
