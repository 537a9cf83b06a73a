"""The readers that `benchmarks.read_speed` compares: each prepares its own files, then yields batches of tensors.

Pixels: JPEG of 256 x 256 pixels, quality 90, decoded, RandomResizedCrop(224) and a flip, uint8 (B, 3, 224, 224). The
format of each library and its loader are used as its documentation shows them. Latents: int8 (B, 12, 32, 32).
"""

import io
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

Batches = Iterator[tuple[Tensor, Tensor]]
BATCH_SIZE = 64
LATENT_BATCH_SIZE = 256


def pictures_of(root: Path) -> list[tuple[Path, int]]:
    """The JPEG files of a class folder, in an order that mixes classes, with labels."""
    classes = sorted(path.name for path in (root / "pictures").iterdir())
    files = sorted((root / "pictures").glob("*/*.jpg"), key=lambda path: path.name)
    return [(path, classes.index(path.parent.name)) for path in files]


def pil_augment() -> Callable[[Image.Image], Tensor]:
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()])  # type: ignore[no-any-return]


def _forever(loader: Callable[[], Any]) -> Batches:
    while True:
        for batch in loader():
            yield batch[0], batch[1]


def _augmented(augment: Callable[[Image.Image], Tensor], picture: Image.Image) -> Tensor:
    return augment(picture.convert("RGB"))


# (a) webdataset


def prepare_webdataset(root: Path) -> None:
    import webdataset

    (root / "webdataset").mkdir()
    pattern = str(root / "webdataset" / "train-%05d.tar")
    with webdataset.ShardWriter(pattern, maxcount=1024, verbose=0) as writer:
        for i, (path, label) in enumerate(pictures_of(root)):
            writer.write({"__key__": f"{i:09d}", "jpg": path.read_bytes(), "cls": label})


def read_webdataset(root: Path) -> Batches:
    import webdataset

    shards = [str(path) for path in sorted((root / "webdataset").glob("*.tar"))]
    augment = partial(_augmented, pil_augment())
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(1000).decode("pil")
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(augment).batched(BATCH_SIZE)
    return _forever(lambda: webdataset.WebLoader(dataset, batch_size=None, num_workers=0))


# (b) litData


def _litdata_item(item: tuple[str, int]) -> dict[str, Any]:
    return {"image": Image.open(item[0]), "class": item[1]}


def prepare_litdata(root: Path) -> None:
    import litdata

    litdata.optimize(
        fn=_litdata_item,
        inputs=[(str(path), label) for path, label in pictures_of(root)],
        output_dir=str(root / "litdata"),
        chunk_bytes="64MB",
        num_workers=1,
    )


def read_litdata(root: Path) -> Batches:
    import litdata
    from torchvision.transforms import v2

    augment = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])

    class Dataset(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> tuple[Tensor, int]:
            item = super().__getitem__(index)
            return augment(item["image"]), item["class"]

    dataset = Dataset(str(root / "litdata"), shuffle=True, seed=0)
    return _forever(lambda: litdata.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=0))


# (c) mosaicml-streaming


def prepare_streaming(root: Path) -> None:
    import streaming

    columns = {"image": "jpeg", "class": "int"}
    with streaming.MDSWriter(out=str(root / "streaming"), columns=columns) as writer:
        for path, label in pictures_of(root):
            with Image.open(path) as picture:
                writer.write({"image": picture, "class": label})


def read_streaming(root: Path) -> Batches:
    import streaming

    streaming.base.util.clean_stale_shared_memory()
    augment = pil_augment()

    class Dataset(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> tuple[Tensor, int]:
            item = super().__getitem__(index)
            return _augmented(augment, item["image"]), item["class"]

    dataset = Dataset(local=str(root / "streaming"), shuffle=True, batch_size=BATCH_SIZE, shuffle_seed=0)
    return _forever(lambda: torch.utils.data.DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=0))


# (d) Hugging Face datasets


def prepare_datasets(root: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = [{"image": {"bytes": path.read_bytes(), "path": None}, "label": label} for path, label in pictures_of(root)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(root / "datasets"))


def read_datasets(root: Path) -> Batches:
    import datasets

    augment = pil_augment()

    def transform(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"image": [_augmented(augment, picture) for picture in rows["image"]], "label": rows["label"]}

    dataset = datasets.load_from_disk(str(root / "datasets")).with_transform(transform)

    def loader() -> Any:
        batches = torch.utils.data.DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=0)
        return ((batch["image"], batch["label"]) for batch in batches)

    return _forever(loader)


# Latents, through another reader and through ours.


def prepare_latents(root: Path) -> None:
    from walloc_data import encode_dataset

    encode_dataset(root / "pictures", root / "latents", samples_per_shard=1024, progress=False)


def read_latents_webdataset(root: Path) -> Batches:
    import webdataset

    from walloc_data.interop import unpack_sample

    shards = [str(path) for path in sorted((root / "latents" / "data").glob("*.tar"))]
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(1000).map(unpack_sample)
    dataset = dataset.batched(LATENT_BATCH_SIZE)
    return _forever(lambda: webdataset.WebLoader(dataset, batch_size=None, num_workers=0))


def read_ours(root: Path, *, cache: str = "shards", decoder: str = "fastest") -> Batches:
    from walloc_data import LatentDataset
    from walloc_data.dataset import decode

    if decoder == "pillow":
        decode._fast_decoder = lambda: None
    dataset = LatentDataset(root / "latents", shuffle=True, cache=cache, cache_folder=root / "cache")  # type: ignore[arg-type]
    loader = dataset.loader(batch_size=LATENT_BATCH_SIZE)
    return _forever(lambda: loader)


PREPARE: dict[str, Callable[[Path], None]] = {
    "webdataset": prepare_webdataset,
    "litdata": prepare_litdata,
    "streaming": prepare_streaming,
    "datasets": prepare_datasets,
    "latents": prepare_latents,
}
# Name of the pipeline: (what it reads, how, samples of one measurement).
PIPELINES: dict[str, tuple[str, Callable[[Path], Batches], int]] = {
    "webdataset_jpeg": ("webdataset", read_webdataset, 768),
    "litdata_jpeg": ("litdata", read_litdata, 768),
    "streaming_jpeg": ("streaming", read_streaming, 768),
    "datasets_jpeg": ("datasets", read_datasets, 768),
    "latents_webdataset": ("latents", read_latents_webdataset, 4096),
    "latents_shards_pillow": ("latents", partial(read_ours, decoder="pillow"), 8192),
    "latents_shards": ("latents", read_ours, 8192),
    "latents_array": ("latents", partial(read_ours, cache="array"), 131072),
}


def prepare_pictures(root: Path, shared: Path, *, count: int) -> None:
    """Write `count` JPEG files of 256 x 256 pixels into class folders.

    Kodak's photographs give crops at full resolution; the shared photographs are resized to 256 on the shorter side and
    cropped. Once through, they come again mirrored, then shifted.
    """
    import tarfile

    from torchvision.transforms import functional as F

    originals = [Image.open(path).convert("RGB") for path in sorted((shared / "kodak").glob("*.png"))]
    crops = [(p, x, y) for p in originals for y in range(0, p.height - 255, 64) for x in range(0, p.width - 255, 64)]
    pictures = [p.crop((x, y, x + 256, y + 256)) for p, x, y in crops]
    with tarfile.open(shared / "photos-halfres.tar") as tar:
        for member in tar:
            if member.isfile():
                file = tar.extractfile(member)
                assert file is not None
                picture = F.resize(Image.open(io.BytesIO(file.read())).convert("RGB"), 256, antialias=True)
                pictures.append(F.center_crop(picture, [256, 256]))
    shutil.rmtree(root / "pictures", ignore_errors=True)
    for i in range(count):
        again, number = divmod(i, len(pictures))
        picture = pictures[number] if again % 2 == 0 else F.hflip(pictures[number])
        shift = again // 2 * 8
        picture = F.center_crop(picture, [256 - shift, 256 - shift]).resize((256, 256)) if shift else picture
        path = root / "pictures" / f"class{number % 10}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
