"""A picture scores exactly as its stored latent, from a folder that holds all it needs, exported or not."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from walloc_data import LatentDataset, create_latent_model, encode_dataset
from walloc_data.adapters import save_latent_model
from walloc_data.cli import main
from walloc_data.codec import load_codec
from walloc_data.codec.wavelets import filter_taps
from walloc_data.errors import CodecError, ModelError, SourceError
from walloc_data.format import EncodeSettings
from walloc_data.serving import PictureClassifier, attach_codec, load_classifier, predict
from walloc_data.sources import open_source
from walloc_data.transforms import CenterCrop, LatentOperators, Resize


@pytest.fixture(scope="module", params=[96, 100], ids=["whole cells", "padded"])
def served(request, imagenette_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """(latents, model, model folder) of pictures scaled to a size that is, or is not, a multiple of 8."""
    out = tmp_path_factory.mktemp("latents")
    encode_dataset(imagenette_folder, out, split="train", size_px=request.param, shuffle_seed=None, progress=False)
    torch.manual_seed(0)
    model = create_latent_model("test_convnext", dataset=out).eval()
    torch.nn.init.normal_(model.head.fc.weight, std=1.0)
    folder = save_latent_model(model, out / "model")
    attach_codec(folder, dataset=out)
    return out, model, folder


def files_of(dataset: LatentDataset, source: Path) -> list[Path]:
    opened = open_source(source)
    return [source / opened.read(int(index)).name for index in dataset.index["source_index"]]


@pytest.mark.slow
def test_pictures_score_exactly_as_their_stored_latents(served, imagenette_folder):
    out, model, folder = served
    dataset = LatentDataset(out, split="train")
    classifier = load_classifier(folder)
    latents = torch.stack([latent for latent, _ in dataset])
    with torch.inference_mode():
        stored = model(latents).softmax(1)
    predictions = classifier.predict_files(files_of(dataset, imagenette_folder))
    for row, prediction in zip(stored, predictions, strict=True):
        assert prediction.label == int(row.argmax())
        assert prediction.probability == pytest.approx(float(row.max()), abs=1e-5)
        assert prediction.name == dataset.class_names[prediction.label]
        assert [value for _, value in prediction.top] == pytest.approx(row.topk(5).values.tolist(), abs=1e-5)
    assert len({prediction.label for prediction in predictions}) > 1


@pytest.mark.slow
def test_the_codec_may_be_named_by_its_data_set(served, imagenette_folder, capsys):
    out, _, folder = served
    files = files_of(LatentDataset(out, split="train"), imagenette_folder)[:2]
    assert predict(folder, files, codec=out) == predict(folder, files, codec=out / "codec") == predict(folder, files)
    assert main(["predict", str(folder), str(files[0]), "--codec", str(out)]) == 0
    assert capsys.readouterr().out.startswith(str(files[0]))


def test_files_of_more_than_8_bits_are_read_by_the_data_sets_settings(served, tmp_path):
    import tifffile

    classifier = load_classifier(served[2])
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "8.png")
    tifffile.imwrite(tmp_path / "12.tif", pixels.astype(np.uint16) * 16, photometric="rgb")
    [plain] = classifier.predict_files([tmp_path / "8.png"])
    [scaled] = classifier.predict_files([tmp_path / "12.tif"], settings=EncodeSettings(max_value=255 * 16))
    assert scaled.top == plain.top
    [dark] = classifier.predict_files([tmp_path / "12.tif"])
    assert dark.top != plain.top


def test_tensors_of_any_size_are_scaled_like_the_converter_within_a_grey_level(served):
    folder = served[2]
    classifier = load_classifier(folder)
    size = classifier.config.size_px
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, 24, 30, generator=generator)
    smooth = torch.nn.functional.interpolate(small, size=(190, 240), mode="bicubic").clamp(0, 1)
    picture = (smooth * 255).to(torch.uint8)
    from walloc_data.pictures import resize_and_crop

    array = resize_and_crop(Image.fromarray(picture[0].permute(1, 2, 0).numpy()), settings=EncodeSettings(size_px=size))
    expected = classifier.encode(torch.from_numpy(np.array(array)).permute(2, 0, 1)[None])
    assert (classifier.encode(picture).float() - expected.float()).abs().max() <= 3
    assert classifier(picture).shape == (1, 10)


@pytest.mark.slow
def test_predict_takes_a_folder_and_pictures_and_nothing_else(served, imagenette_folder):
    _, _, folder = served
    paths = sorted(imagenette_folder.rglob("*.JPEG"))[:3]
    results = predict(folder, paths, top=2)
    assert [Path(result.picture) for result in results] == paths
    assert all(len(result.top) == 2 for result in results)
    assert str(results[0]).startswith(f"{paths[0]}: n0")
    assert predict(folder, str(paths[0]), top=2)[0].top == results[0].top
    with Image.open(paths[0]) as opened:
        in_memory = load_classifier(folder).predict([opened], top=2)
    assert in_memory[0].top == results[0].top
    with pytest.raises(ModelError, match="top must be an integer of at least 1, not 0"):
        predict(folder, paths, top=0)
    with Image.open(paths[0]) as opened:
        array = np.asarray(opened.convert("RGB"))
    classifier = load_classifier(folder)
    for same in (array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        assert classifier.predict([same], top=2)[0].top == in_memory[0].top
    for wrong, message in (
        ([str(paths[0])], r"^picture 0 is a path: `predict_files` takes paths"),
        (str(paths[0]), r"^pass a list of pictures, not str"),
        (Image.fromarray(array), r"^pass a list of pictures, not \w+"),
        ([array, array / 200], r"^picture 1: cannot be classified: floats from .* not all multiples of 1/255"),
        ([array[..., :2]], r"^picture 0: cannot be classified: an array of shape \(\d+, \d+, 2\): pictures are"),
        ([array[:0]], r"^picture 0: cannot be classified: an array of shape .* without pixels"),
        ([None], r"^picture 0: cannot be classified: a NoneType is no picture"),
        (None, r"^pass a list of pictures, not NoneType"),
    ):
        with pytest.raises(SourceError, match=message):
            classifier.predict(wrong)
    with pytest.raises(SourceError, match="paths of pictures must be text or Path objects, not int"):
        classifier.predict_files([3])


@pytest.mark.slow
def test_a_picture_in_memory_scores_as_its_file(served, imagenette_folder, tmp_path):
    """Turned by its EXIF data, transparent, or of 16 bits."""
    classifier = load_classifier(served[2])
    with Image.open(next(imagenette_folder.rglob("*.JPEG"))) as image:
        pixels = image.convert("RGB")
    exif = pixels.getexif()
    exif[0x0112] = 6
    pixels.save(tmp_path / "turned.jpg", exif=exif)
    alpha = Image.linear_gradient("L").resize(pixels.size)
    Image.merge("RGBA", (*pixels.split(), alpha)).save(tmp_path / "transparent.png")
    Image.fromarray(np.asarray(pixels.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    paths = sorted(tmp_path.iterdir())
    expected = [prediction.top for prediction in classifier.predict_files(paths)]
    for load in (False, True):
        images = [Image.open(path) for path in paths]
        for image in images if load else ():
            image.load()
        assert [prediction.top for prediction in classifier.predict(iter(images))] == expected
        for image in images:
            image.close()


@pytest.mark.slow
def test_the_command_reads_files_of_more_than_8_bits_as_encode_does(served, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "8.png")
    Image.fromarray(np.round(pixels * (1023 / 255)).astype(np.uint16)).save(tmp_path / "10.png")
    [expected] = predict(served[2], [tmp_path / "8.png"])
    command = ["predict", str(served[2]), str(tmp_path / "10.png"), "--json"]
    found = []
    for options in (["--max-value", "1023"], []):
        assert main([*command, *options]) == 0
        found.append(json.loads(capsys.readouterr().out)["predictions"][0]["probability"])
    assert found[0] == expected.probability
    assert found[1] != expected.probability  # nearly black


def test_files_that_are_no_pictures_are_named(served, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"not a picture")
    for path in (tmp_path / "bad.jpg", tmp_path / "absent.jpg"):
        with pytest.raises(SourceError, match=f"{path.name}: cannot be classified"):
            predict(served[2], [path])


def test_a_bad_file_does_not_hide_the_predictions_of_the_others(served, imagenette_folder, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    good = sorted(imagenette_folder.rglob("*.JPEG"))[0].read_bytes()
    (folder / "0.jpg").write_bytes(b"not a picture")
    (folder / "1.jpg").write_bytes(good)
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe.jpg")
    (tmp_path / "empty").mkdir()
    absent = tmp_path / "absent.jpg"
    code = main(["predict", str(served[2]), *map(str, (absent, tmp_path / "empty", folder)), "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert code == 1
    assert [item["picture"] for item in found["predictions"]] == [str(folder / "1.jpg")]
    start = "walloc-data: "
    lines = [line for line in said.err.splitlines() if line.startswith(start)]
    assert [line.removeprefix(start) for line in lines] == found["problems"]
    assert found["problems"][0] == f"{absent}: cannot be classified: No such file or directory"
    assert found["problems"][1].startswith(f"{tmp_path / 'empty'}: cannot be classified: no pictures below it")
    assert found["problems"][2:] == [
        f"{folder / '0.jpg'}: cannot be classified: not a picture in a supported format",
        f"{folder / 'pipe.jpg'}: cannot be classified: a named pipe, not a file",
    ]


def test_another_codec_is_refused_and_a_missing_one_asked_for(served, tmp_path):
    _, model, _ = served
    other, _ = load_codec(None, decoder=False)
    with torch.no_grad():
        other.encoder[0].weight.mul_(0.5)
    with pytest.raises(ModelError, match="the model was made for latents of codec"):
        PictureClassifier(model, other)
    from dataclasses import replace

    alien = create_latent_model("test_convnext", dataset=served[0])
    alien.latent_config = replace(alien.latent_config, codec=other.spec)
    save_latent_model(alien, tmp_path)
    with pytest.raises(CodecError, match="neither in the folder nor bundled: pass codec="):
        load_classifier(tmp_path)


@pytest.fixture
def classifier(served, request):
    """With weights that tell the pictures apart."""
    out = served[0]
    torch.manual_seed(0)
    model = create_latent_model("test_convnext", dataset=out, normalization=request.param).eval()
    torch.nn.init.normal_(model.head.fc.weight, std=1.0)
    codec, _ = load_codec(out / "codec", decoder=False)
    return PictureClassifier(model, codec).eval()


@pytest.fixture
def pictures(classifier, imagenette_folder):
    """(8, 3, size, size) uint8."""
    size = classifier.config.size_px
    paths = sorted(imagenette_folder.rglob("*.JPEG"))[::5]
    images = [np.array(Image.open(path).convert("RGB").resize((size, size))) for path in paths]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


BOTH = pytest.mark.parametrize(
    ("served", "classifier"), [(96, "standard"), (100, "expand")], indirect=True, ids=["whole cells", "padded"]
)


@pytest.mark.slow
@pytest.mark.parametrize(("served", "classifier"), [(100, "expand")], indirect=True)
def test_exporting_a_classifier_twice_leaves_it_as_it_was(classifier, pictures):
    filter_taps.cache_clear()  # as in a process that has encoded nothing yet
    with torch.inference_mode():
        expected = classifier(pictures)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    for module in (classifier.exportable(), classifier, classifier.exportable()):
        program = torch.export.export(module, (pictures[:2],), dynamic_shapes=(batch,))
        for number in (1, 5):
            logits = program.module()(pictures[:number])
            assert torch.equal(logits.argmax(1), expected[:number].argmax(1))
    with torch.inference_mode():
        torch.testing.assert_close(classifier.exportable()(pictures), expected, rtol=0, atol=0.1)
        assert torch.equal(classifier(pictures), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's own making, where it leaves the encoder to Python
@pytest.mark.parametrize(("served", "classifier"), [(100, "standard")], indirect=True)
def test_a_compiled_classifier_is_as_exact_as_an_eager_one(classifier, pictures):
    with torch.no_grad():
        compiled = torch.compile(classifier, backend="eager")(pictures)
        assert torch.equal(compiled, classifier(pictures))


@pytest.mark.slow
@BOTH
def test_onnx_takes_any_number_of_pictures(classifier, pictures, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with torch.inference_mode():
        expected = classifier(pictures)
    path = tmp_path / "model.onnx"
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        torch.onnx.export(
            classifier, (pictures[:2],), path, dynamo=True, verbose=False, dynamic_shapes=(batch,), optimize=False
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    assert given.shape[0] == "batch"
    for number in (1, len(pictures)):
        (logits,) = session.run(None, {given.name: pictures[:number].numpy()})
        assert (logits.argmax(1) == expected[:number].argmax(1).numpy()).all()
        np.testing.assert_allclose(logits, expected[:number].numpy(), atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("view", ["resize", "crop"])
def test_a_model_of_another_size_than_stored_serves_what_validation_sees(view, imagenette_folder, tmp_path):
    encode_dataset(imagenette_folder, tmp_path, split="train", size_px=96, shuffle_seed=None, progress=False)
    dataset = LatentDataset(tmp_path, split="train")
    torch.manual_seed(0)
    shape = (12, 8, 8)
    model = create_latent_model("test_vit", dataset=dataset, input_shape=shape, view=view, patch_size=2).eval()
    torch.nn.init.normal_(model.head.weight, std=1.0)
    operators = LatentOperators.load(tmp_path)
    whole = Resize(8, operators=operators) if view == "resize" else CenterCrop(8)
    folder = save_latent_model(model, tmp_path / "model")
    attach_codec(folder, dataset=tmp_path)
    latents = torch.stack([latent for latent, _ in dataset])
    with torch.inference_mode():
        stored = model(whole(latents)).softmax(1)
    classifier = load_classifier(folder)
    assert classifier.config.view == view
    predictions = classifier.predict_files(files_of(dataset, imagenette_folder))
    for row, prediction in zip(stored, predictions, strict=True):
        assert prediction.probability == pytest.approx(float(row.max()), abs=1e-5)
    if view == "resize":
        with pytest.raises(
            ModelError, match="takes latents downscaled to 8 x 8 cells: pass the operators of its codec"
        ):
            PictureClassifier(model, load_codec(None, decoder=False)[0])
        pictures = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        exported = torch.export.export(classifier.exportable(), (pictures,)).module()
        assert (exported(pictures) - classifier(pictures)).abs().max() < 0.05 * classifier(pictures).std()
