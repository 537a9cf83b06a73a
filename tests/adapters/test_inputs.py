"""A model takes latents alone: pictures, packed latents and integers that a reader spoiled are refused by name."""

from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from walloc_data import LatentDataset, create_latent_model, encode_dataset
from walloc_data.errors import ModelError
from walloc_data.interop import unpack_picture


@pytest.fixture(scope="module", params=["standard", "expand"])
def model(request, spec, statistics):
    torch.manual_seed(0)
    return create_latent_model(
        "test_convnext",
        codec=spec,
        statistics=statistics,
        num_classes=3,
        input_shape=(12, 20, 20),
        normalization=request.param,
    ).eval()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64, torch.float16, torch.float32, torch.float64])
def test_the_integers_may_be_of_any_signed_type_or_floats(model, latents, dtype):
    torch.testing.assert_close(model(latents.to(dtype)), model(latents), rtol=1e-5, atol=1e-5)


REFUSED = [
    (torch.zeros(2, 12, 20, 20, dtype=torch.uint8), r"got torch.uint8 \(2, 12, 20, 20\): the integers are signed"),
    (torch.zeros(2, 3, 40, 40), r"got torch.float32 \(2, 3, 40, 40\): these are pictures, or latents still packed.*"
     r"PictureClassifier; packed latents through walloc_data.interop.unpack_picture"),
    (torch.zeros(2, 3, 160, 160, dtype=torch.uint8), "these are pictures, or latents still packed"),
    (torch.zeros(2, 40, 40, 3, dtype=torch.uint8), "these are pictures, or latents still packed"),
    (torch.zeros(12, 20, 20, dtype=torch.int8), r"got torch.int8 \(12, 20, 20\): add a batch dimension"),
    (torch.zeros(2, 48, 20, 20, dtype=torch.int8), r"takes latents \(N, 12, h, w\).*were they encoded by the codec"),
    (torch.zeros(2, 12, 20, 20, dtype=torch.bool), "got torch.bool"),
    (torch.zeros(2, 12, 20, 20, dtype=torch.complex64), "got torch.complex64"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=lambda value: value[:20] if isinstance(value, str) else None)
def test_what_is_no_latent_is_refused_by_name(model, given, words):
    with pytest.raises(ModelError, match=words):
        model(given)


def test_a_stem_of_two_layers_refuses_too(spec, statistics):
    model = create_latent_model(
        "test_vit", codec=spec, statistics=statistics, num_classes=3, input_shape=(12, 20, 20), stem_hidden_channels=8
    )
    with pytest.raises(ModelError, match=r"got torch.uint8 \(2, 12, 20, 20\)"):
        model(torch.zeros(2, 12, 20, 20, dtype=torch.uint8))


@pytest.mark.slow
@torch.no_grad()
def test_the_check_is_no_obstacle_to_compiling_and_exporting(model, latents):
    torch.compiler.reset()  # what was refused before is not compiled again
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (latents[:2],), dynamic_shapes=(batch,))
    torch.testing.assert_close(program.module()(latents), model(latents))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(latents), model(latents))
    with pytest.raises(ModelError, match="the integers are signed"):
        torch.compile(model, backend="eager")(torch.zeros(2, 12, 20, 20, dtype=torch.uint8))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(8):
        (folder / "pictures" / f"class {i % 2}").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((96, 96))
        picture.save(folder / "pictures" / f"class {i % 2}" / f"{i}.png")
    encode_dataset(folder / "pictures", folder / "latents", progress=False)
    return folder / "latents"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
class TestLoadersOfTimm:
    """`create_loader` is made for pictures: what it gives is refused, and torch's own DataLoader does it."""

    @pytest.fixture
    def dataset(self, encoded):
        return timm.data.create_dataset("wds/latents", root=str(encoded), split="train", transform=unpack_picture)

    @pytest.fixture
    def model(self, encoded):
        torch.manual_seed(0)
        return create_latent_model("test_convnext", dataset=encoded).eval()

    def test_its_transform_of_pictures_is_noticed(self, dataset, model):
        loader = timm.data.create_loader(
            dataset, input_size=(3, 24, 24), batch_size=4, use_prefetcher=False, num_workers=0
        )
        pictures, _ = next(iter(loader))
        with pytest.raises(ModelError, match=r"got torch.float32 \(4, 3, 24, 24\): these are pictures, or latents st"):
            model(pictures)

    def test_its_unsigned_collation_is_noticed(self, dataset, model):
        loader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=timm.data.loader.fast_collate)
        latents, _ = next(iter(loader))
        with pytest.raises(ModelError, match="a reader made uint8 of them"):
            model(latents)

    def test_the_remedy_gives_the_same_logits(self, dataset, model, encoded):
        loader = torch.utils.data.DataLoader(dataset, batch_size=8)
        latents, _ = next(iter(loader))
        expected, _ = next(iter(LatentDataset(encoded).loader(batch_size=8)))
        assert torch.equal(model(latents), model(expected))
