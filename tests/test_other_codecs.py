"""Data sets of 48 channels, and of cells that are not 8 px: every door opens to them as it does to the usual ones."""

import contextlib
import functools
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from walloc_data import LatentDataset, create_latent_model, encode_dataset
from walloc_data.adapters import PixelPrediction, fold_stem, latent_config, save_latent_model, stem_of, summarize
from walloc_data.codec import PictureSet, TrainConfig, load_codec, train_codec
from walloc_data.errors import CodecError, ModelError
from walloc_data.interop import unpack_picture, unpack_rows, unpack_sample
from walloc_data.serving import attach_codec, load_classifier

SIDE_PX = 112

# What these libraries do with files and sockets is theirs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Encoded(NamedTuple):
    pictures: Path  # one folder a class
    latents: Path
    J: int
    latent_dim: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.latent_dim, SIDE_PX // 2**self.J, SIDE_PX // 2**self.J


@pytest.fixture(scope="module", params=[(3, 48), (4, 12), (2, 12)], ids=["48 channels", "cells of 16 px", "of 4 px"])
def encoded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    from skimage import data

    folder = tmp_path_factory.mktemp("other")
    arrays = []
    for name, photograph in (("cat", data.chelsea()), ("coffee", data.coffee())):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            top, left = 60 * (i // 4), 80 * (i % 4)
            arrays.append(photograph[top : top + SIDE_PX, left : left + SIDE_PX])
            Image.fromarray(arrays[-1]).save(folder / "pictures" / name / f"{i}.png")
    J, latent_dim = request.param
    config = TrainConfig(name="other", J=J, latent_dim=latent_dim, closed_form=True, arrange=False)
    train_codec([PictureSet("photographs", arrays)], folder / "codec", config=config)
    # A small ViT's patches must divide the latents; samples_per_shard: the card must name several shards.
    encode_dataset(
        folder / "pictures", folder / "latents", codec=folder / "codec", samples_per_shard=16, progress=False
    )
    return Encoded(folder / "pictures", folder / "latents", J, latent_dim)


@pytest.fixture
def dataset(encoded: Encoded, tmp_path: Path) -> LatentDataset:
    dataset = LatentDataset(encoded.latents, cache_folder=tmp_path / "cache")
    assert dataset[0][0].shape == encoded.shape
    return dataset


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.slow
def test_the_card_publishes_code_that_gives_the_stored_integers(encoded: Encoded, dataset: LatentDataset) -> None:
    card = (encoded.latents / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(code) == 5
    given = []
    for block in code:
        here = block.replace("hf://datasets/OWNER/NAME", "NAME").replace("OWNER/NAME", "NAME")
        names: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(here.replace("NAME", str(encoded.latents)), "README.md", "exec"), names)
        if "logits" in names:
            assert tuple(names["logits"].shape) == (8, 2)
        elif "dataset" in names:
            assert tuple(names["latent"].shape) == encoded.shape
        elif "latent" in names:
            given.append(names["latent"])
    assert len(given) == 2  # by datasets and by webdataset: of the first sample
    for latent in given:
        assert torch.equal(torch.from_numpy(latent), dataset[0][0])


@pytest.mark.slow
def test_other_readers_give_the_stored_integers_or_say_what_is_missing(
    encoded: Encoded, dataset: LatentDataset, tmp_path: Path
) -> None:
    import webdataset
    import wids
    from datasets import load_dataset
    from timm.data import create_dataset

    expected = [latent for latent, _ in dataset]
    channels = {"latent_dim": encoded.latent_dim}
    sample = functools.partial(unpack_sample, **channels)
    shards = sorted(str(path) for path in (encoded.latents / "data").glob("*.tar"))
    rows = load_dataset(str(encoded.latents), split="train", cache_dir=str(tmp_path))
    index, cache = str(encoded.latents / "index" / "train.wids.json"), str(tmp_path / "wids")
    for number, latents in enumerate(
        [
            [latent for latent, _ in webdataset.WebDataset(shards, shardshuffle=False).map(sample)],
            [wids.ShardListDataset(index, cache_dir=cache, transformations=sample)[i][0] for i in range(len(expected))],
            rows.with_transform(functools.partial(unpack_rows, **channels))[:]["latent"],
            [
                latent
                for latent, _ in create_dataset(
                    "wds/latents",
                    root=str(encoded.latents),
                    split="train",
                    transform=functools.partial(unpack_picture, **channels),
                )
            ],
        ]
    ):
        assert len(latents) == len(expected), number
        assert all(torch.equal(a, b) for a, b in zip(latents, expected, strict=True)), number
    words = r"112 x 112 px, padded, whose packed latent is .* not 12 channels of 8-px cells. Pass latent_dim="
    for read in (
        lambda: next(iter(webdataset.WebDataset(shards, shardshuffle=False).map(unpack_sample))),
        lambda: next(iter(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").map(unpack_sample))),
        lambda: wids.ShardListDataset(index, cache_dir=cache, transformations=unpack_sample)[0],
        lambda: rows.with_transform(unpack_rows)[0],
    ):
        with pytest.raises(CodecError, match=words):
            read()


@pytest.mark.slow
def test_a_model_learns_and_meets_pictures(encoded: Encoded, dataset: LatentDataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_latent_model("test_convnext", dataset=dataset)
    latents, labels = next(iter(dataset.loader(batch_size=len(dataset))))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(latents), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.eval()(latents).argmax(1) == labels).float().mean() > 0.9
    assert summarize(model).picture_shape_px == (3, SIDE_PX, SIDE_PX)
    folder = save_latent_model(model, tmp_path / "model")
    attach_codec(folder, dataset=encoded.latents)
    classifier = load_classifier(folder)
    paths = [encoded.pictures / name / "5.png" for name in ("cat", "coffee")]
    assert [prediction.name for prediction in classifier.predict_files(paths)] == ["cat", "coffee"]
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths])).permute(0, 3, 1, 2)
    stored = {latent.numpy().tobytes() for latent in latents}
    assert {latent.numpy().tobytes() for latent in classifier.encode(pixels)} <= stored
    exported = torch.export.export(classifier, (pixels,)).module()(pixels)
    torch.testing.assert_close(exported, classifier(pixels), rtol=0, atol=0.1)


def test_patches_hold_as_many_pixels_as_the_pixel_models(encoded: Encoded, dataset: LatentDataset) -> None:
    model = create_latent_model("vit_tiny_patch16_224", dataset=dataset, depth=1)
    cells = 16 // 2**encoded.J
    assert stem_of(model).stride == (cells, cells)
    assert model.patch_embed.num_patches == (SIDE_PX // 16) ** 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage", "stride_px"),
    [
        ("resnet18", "layer1", 4),
        ("test_convnext", "stages.0", 4),
        ("regnety_002", "s1", 4),
        ("test_efficientnet", "blocks.0", 2),
    ],
)
def test_pixel_grid_gives_every_stage_the_pixel_models_grid(
    encoded: Encoded, dataset: LatentDataset, name: str, stage: str, stride_px: int
) -> None:
    import timm

    grids = []
    model = create_latent_model(name, dataset=dataset, geometry="pixel_grid").eval()
    pixel_model = timm.create_model(name, num_classes=2).eval()
    given = {model: dataset[0][0][None], pixel_model: torch.zeros(1, 3, SIDE_PX, SIDE_PX)}
    for module, inputs in given.items():
        handle = module.get_submodule(stage).register_forward_hook(lambda _, __, out: grids.append(out.shape[2:]))
        module(inputs)
        handle.remove()
    assert grids[0] == grids[1]


@pytest.mark.slow
def test_a_pixel_stem_folds_over_these_cells(encoded: Encoded, dataset: LatentDataset) -> None:
    import timm

    torch.manual_seed(0)
    pixel_model = timm.create_model("resnet18", num_classes=2).eval()
    model = create_latent_model(
        "resnet18",
        dataset=dataset,
        geometry="pixel_grid",
        pretrained=pixel_model,
        stem_bias=True,
        stem_kernel_cells=3,
    )
    codec, _ = load_codec(encoded.latents / "codec", decoder=False)
    paths = sorted(encoded.pictures.rglob("*.png"))
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths])).permute(0, 3, 1, 2)
    latents = codec.encode(pixels)
    sums = PixelPrediction.for_model(model, pixel_model)
    sums.update(latents, pixels)
    fold_stem(model, pixel_model, prediction=sums.solve())
    mean, std = (torch.tensor(pixel_model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = pixel_model.conv1((pixels / 255 - mean) / std)[..., 8:-8, 8:-8]
        folded = model.conv1(latents)[..., 8:-8, 8:-8]
    error = float((folded - expected).square().mean() / expected.var())
    assert error < {2: 0.03, 3: 0.03, 4: 0.15}[encoded.J]  # 12 channels of 16-px cells keep a 64th of the values


def test_cells_smaller_than_a_pixel_stems_stride_are_refused(spec_of_two_px: Any, statistics: Any) -> None:
    for geometry, works in (("pixel_grid", False), ("all_stages", True)):
        make = functools.partial(
            create_latent_model,
            "test_convnext",
            codec=spec_of_two_px,
            statistics=statistics,
            num_classes=2,
            input_shape=(12, 56, 56),
            geometry=geometry,
        )
        if works:
            assert latent_config(make()).geometry == geometry
        else:
            with pytest.raises(ModelError, match="cells of 2 px are smaller than the stride of its pixel stem, 4 px"):
                make()


@pytest.fixture
def spec_of_two_px() -> Any:
    from walloc_data.format import CodecSpec

    return CodecSpec(
        name="tiny", channels=3, J=1, latent_dim=12, latent_bits=8, wavelet="bior4.4", encoder_sha256="0" * 64
    )


@pytest.fixture
def statistics() -> Any:
    from walloc_data.format import ChannelStatistics

    return ChannelStatistics(((1,) * 256,) * 12)
