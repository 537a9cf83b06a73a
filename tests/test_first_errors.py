"""First errors of a new user: one line that says what, where and what to do; and nothing half-written."""

import os
from pathlib import Path

import pytest

from tests import warm
from walloc_data import encode_dataset
from walloc_data.cli import main

Captured = pytest.CaptureFixture[str]

OFFLINE = "import time; time.sleep = lambda seconds: None"  # between huggingface_hub's tries


RUN = "import sys; from walloc_data.cli import main; sys.exit(main(sys.argv[1:]))"


def without(*modules: str) -> str:
    """The command line where these modules are not installed."""
    return f"import sys; sys.modules.update(dict.fromkeys({modules!r})); {RUN}"


def run(code: str, *arguments: str | Path, **environment: str) -> tuple[int, list[str]]:
    """(exit code, lines on stderr) of a new process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HF_"))}
    done = warm.run(["-W", "ignore", "-c", code, *arguments], env=kept | environment)
    lines = done.stderr.strip().splitlines()
    return done.returncode, [line for line in lines if not line.endswith("listing the pictures ...")]  # if slow


@pytest.mark.slow
def test_without_a_network_two_lines_say_so(tmp_path: Path) -> None:
    # A port that refuses is what no network looks like, without waiting for it.
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    code, lines = run(f"{OFFLINE}; {RUN}", "encode", "hf:nobody/nothing", tmp_path / "out", **environment)
    assert code == 1
    assert len(lines) == 2
    assert lines[0] == "hf:nobody/nothing: the Hub does not answer yet; retrying for half a minute"
    assert lines[1].startswith("walloc-data: hf:nobody/nothing: the Hub does not answer (")
    assert lines[1].endswith("Without a network, use a folder written by save_to_disk, or parquet files")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_bucket_without_credentials_names_the_variables(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    code, lines = run(
        RUN,
        "info",
        "s3://nobody/nothing",
        **environment,
    )
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("walloc-data: listing s3://nobody/nothing/")
    assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws" in lines[0]


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])  # no machine has any of these
def test_a_device_that_is_not_there_is_named_before_anything_is_written(
    imagenette_folder: Path, tmp_path: Path, capsys: Captured, device: str
) -> None:
    assert main(["encode", str(imagenette_folder), str(tmp_path / "out"), "--device", device]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"walloc-data: device '{device}' cannot be used here (")
    assert error.endswith("): use 'cpu', or 'cuda' where torch.cuda.is_available()\n")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["verify", "preview"])
def test_a_pillow_without_webp_is_named(command: str, tmp_path: Path, imagenette_folder: Path) -> None:
    latents = tmp_path / "latents"
    encode_dataset(imagenette_folder, latents, size_px=32, progress=False)
    code, lines = run(
        without("PIL._webp", "imagecodecs"), command, latents, *(["-o", tmp_path / "x.png"] * (command != "verify"))
    )
    assert code == 1
    assert "this Pillow was built without WebP. Its wheels have it: pip install" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("s3fs", "s3", ("info", "s3://bucket/latents")),
        ("ray", "ray", ("encode", "{pictures}", "{out}", "--engine", "ray")),
        ("shtab", "completion", ("completion", "bash")),
    ],
)
def test_a_missing_extra_is_named_with_its_command(
    module: str, extra: str, arguments: tuple[str, ...], tmp_path: Path, imagenette_folder: Path
) -> None:
    paths = {"pictures": imagenette_folder, "out": tmp_path / "out"}
    code, lines = run(without(module), *(argument.format(**paths) for argument in arguments))
    assert code == 1
    assert lines[-1].endswith(f"pip install 'walloc_data[{extra}]'")
    assert lines[-1].startswith("walloc-data: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("encode", "{tmp}/nowhere", "{tmp}/out"),
            "nowhere: no such folder. Sources are a folder, an archive, hf:NAME",
        ),
        (("encode", "{tmp}/empty", "{tmp}/out"), "empty: no pictures below it (names ending in .avif"),
        (
            ("encode", "parquet:{tmp}/*.parquet", "{tmp}/out", "--label-column", "kind"),
            "no column 'kind'; it has ['image",
        ),
        (
            ("encode", "parquet:{tmp}/*.parquet", "{tmp}/out", "--image-column", "text"),
            "holds Value('string'), not pictures",
        ),
        (("info", "{tmp}/empty"), "empty"),
        (("decode", "{tmp}/empty", "-o", "{tmp}/pictures"), "empty"),
    ],
)
def test_what_is_not_there_is_named(arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    if "parquet" in arguments[1]:
        import datasets
        from PIL import Image

        rows = {"image": [Image.new("RGB", (16, 16))], "text": ["a cat"]}
        datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
        capsys.readouterr()
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 1
    # datasets' own progress, and the word that a slow machine gets, are not errors.
    other = ("examples/s", "listing the pictures ...")
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not any(text in line for text in other)]
    assert len(lines) == 1
    assert lines[0].startswith("walloc-data: ")
    assert said in lines[0]
    assert not (tmp_path / "out").exists()


def test_labels_that_are_not_there_leave_a_data_set_without(tmp_path: Path, capsys: Captured) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / "a.png")
    assert main(["encode", str(tmp_path / "pictures"), str(tmp_path / "out"), "--no-preview"]) == 0
    assert main(["info", str(tmp_path / "out")]) == 0
    assert "without labels" in capsys.readouterr().out
