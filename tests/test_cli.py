import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests import warm
from walloc_data.cli import COMMANDS, main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def encoded(imagenette_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "latents"
    assert main(["encode", str(imagenette_folder), str(out), "--size", "96", "--samples-per-shard", "16"]) == 0
    return out


def test_the_command_line_answers_without_loading_a_room() -> None:
    code = "import sys; from walloc_data.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in found.stdout for name in COMMANDS)
    assert not {"torch", "numpy", "PIL", "timm", "datasets"} & set(found.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"walloc-data {command}" in capsys.readouterr().out.partition("examples:")[2]


def test_a_wrong_command_line_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["encode"])
    assert caught.value.code == 2
    assert "SOURCE" in capsys.readouterr().err


def test_encoding_ends_with_a_summary_and_json_for_machines(
    imagenette_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "encode", imagenette_folder, tmp_path / "x", "--size", 96, "--json")
    summary = json.loads(out)
    assert code == 0
    assert (summary["num_samples"], summary["num_failures"], summary["split"]) == (40, 0, "train")
    assert 0.3 < summary["bits_per_pixel"] < 1.5
    code, out, _ = run(capsys, "encode", imagenette_folder, tmp_path / "x", "--size", 96)
    assert code == 0
    assert out.startswith("train: 40 samples and 0 failures in 1 shard; ")
    assert "nothing to do" in out


def test_info_speaks_to_people_and_to_machines(encoded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", encoded)
    assert code == 0
    assert "40 samples, 0 failures, 3 shards" in out
    code, out, _ = run(capsys, "info", encoded, "--json")
    assert json.loads(out)["splits"]["train"]["latent_shape"] == [12, 12, 12]


def test_verify_accepts_what_encode_wrote_and_names_what_was_damaged(
    imagenette_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_folder = tmp_path / "x"
    run(capsys, "encode", imagenette_folder, out_folder, "--size", 64)
    assert run(capsys, "verify", out_folder)[0] == 0
    shard = out_folder / "data" / "train-00000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    code, out, _ = run(capsys, "verify", out_folder)
    assert code == 1
    assert "data/train-00000.tar" in out


def test_decode_writes_pictures_of_the_recorded_size(
    encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "decode", encoded, "-o", tmp_path, "--keys", "000000003", "000000007", "--json")
    assert code == 0
    paths = [Path(path) for path in json.loads(out)["pictures"]]
    assert sorted(path.name for path in paths) == ["000000003.png", "000000007.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert (picture.size, picture.mode) == ((96, 96), "RGB")


def test_decode_of_a_truncated_shard_says_so_in_sentences(
    encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(encoded, tmp_path / "latents")
    shard = out / "data" / "train-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-1024])
    code, _, said = run(capsys, "decode", out, "-o", tmp_path / "pictures")
    assert code == 1
    assert f"it was changed or truncated. `walloc-data verify {out}` finds all damage; copy the data set again" in said


@pytest.mark.parametrize("action", ["list", "clear"])
def test_a_folder_that_holds_no_cache_is_said_to_hold_none(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    code, out, _ = run(capsys, "cache", action, "--folder", tmp_path / "nope")
    assert (code, out) == (0, f"{tmp_path / 'nope'}: no such folder, so nothing is cached there\n")
    code, out, _ = run(capsys, "cache", action, "--folder", tmp_path / "photos")
    assert (code, out) == (0, f"{tmp_path / 'photos'}: not a cache, which has a folder shards, arrays or index\n")
    assert (
        "not a cache" in json.loads(run(capsys, "cache", action, "--folder", tmp_path / "photos", "--json")[1])["note"]
    )
    (tmp_path / "photos" / "index").mkdir()
    assert "index: 0 of 0.0 MB" in run(capsys, "cache", action, "--folder", tmp_path / "photos")[1]


@pytest.mark.slow
def test_preview_shows_the_originals_beside(
    encoded: Path, imagenette_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, plain = tmp_path / "sheet.png", tmp_path / "plain.png"
    original = ("--original", imagenette_folder)
    assert run(capsys, "preview", encoded, "-o", sheet, "--num-samples", 2, *original)[0] == 0
    assert run(capsys, "preview", encoded, "-o", plain, "--num-samples", 2)[0] == 0
    with Image.open(sheet) as beside, Image.open(plain) as alone:
        assert beside.width > alone.width
    (tmp_path / "pictures").mkdir()
    for split in ("train", "val"):
        (tmp_path / "pictures" / split).symlink_to(imagenette_folder)
    again = ("-o", plain, "--num-samples", 2, "--original", tmp_path / "pictures")
    assert run(capsys, "preview", encoded, *again)[0] == 0
    assert plain.read_bytes() == sheet.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "{tmp}/nothing"), "nothing"),
        (("verify", "{tmp}/nothing"), "nothing"),
        (("encode", "{tmp}/nothing", "{tmp}/x"), "no such folder"),
        (("decode", "{encoded}", "-o", "{tmp}", "--split", "test"), "no split 'test'; it has ['train']"),
        (("decode", "{encoded}", "-o", "{tmp}", "--keys", "nokey"), "nokey"),
        (
            ("decode", "{encoded}", "-o", "{encoded}/walloc.json"),
            "walloc.json: a file, or below a file; choose a folder",
        ),
        (("encode", "{folder}", "{tmp}/x", "--size", "0"), "size_px must be an integer in"),
        (("encode", "{folder}", "{tmp}/x", "--codec", "no-such-codec"), "no-such-codec"),
        (("encode", "{folder}", "{encoded}", "--size", "64", "--samples-per-shard", "16"), "size_px"),
    ],
)
def test_a_newcomer_s_mistake_is_one_helpful_line(
    arguments: tuple[str, ...],
    message: str,
    encoded: Path,
    imagenette_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [part.format(tmp=tmp_path, encoded=encoded, folder=imagenette_folder) for part in arguments]
    code, out, err = run(capsys, *filled)
    assert (code, out) == (1, "")
    assert err.startswith("walloc-data: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_codec_is_trained_and_used_from_the_command_line(
    imagenette_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec, out = tmp_path / "codec", tmp_path / "latents"
    few = sorted(path for path in imagenette_folder.iterdir() if path.is_dir())[0]
    code, text, said = run(capsys, "train-codec", few, "-o", codec, "--closed-form", "--name", "tiny-klt")
    assert code == 0
    assert "arranging channels" in said
    assert text.startswith("tiny-klt in ")
    assert run(capsys, "encode", imagenette_folder, out, "--size", 64, "--codec", codec)[0] == 0
    code, text, _ = run(capsys, "info", out, "--json")
    assert json.loads(text)["codec"]["name"] == "tiny-klt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder", "rgb-16x-v1", "--closed-form"], "--closed-form: cannot be combined with --encoder"),
        (["--encoder", "rgb-16x-v1", "--rate-weight", "0.01"], "--rate-weight: cannot be combined with --encoder"),
        (["--encoder", "rgb-16x-v1", "--target-bpp", "1"], "--target-bpp: cannot be combined with --encoder"),
        (
            ["--encoder", "rgb-16x-v1", "--levels", "3", "--latent-channels", "12", "--name", "x"],
            "--name, --latent-channels, --levels: cannot be combined with --encoder",
        ),
        (["--from-decoder", "x", "--keep-size"], "--from-decoder, --keep-size: only valid with --encoder CODEC"),
        (["--decoder-version", "3"], "--decoder-version: only valid with --encoder CODEC"),
    ],
)
def test_options_of_the_other_kind_of_training_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code, out, err = run(capsys, "train-codec", tmp_path, "-o", tmp_path / "codec", "--steps", 1, *options)
    assert (code, out) == (1, "")
    assert message in err
    assert not (tmp_path / "codec").exists()


def test_shells_complete_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    code, script, _ = run(capsys, "completion", "bash")
    assert code == 0
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "train-codec" in script
    assert "--samples-per-shard" in script


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(imagenette_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    arguments = ["encode", str(imagenette_folder), str(out), "--samples-per-shard", "1"]
    process = warm.Popen(["-m", "walloc_data", *arguments], stderr=subprocess.PIPE)
    while not list(out.glob("data/*.tar")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    if process.returncode == 0:
        pytest.skip("the conversion was over before the signal came")
    assert process.returncode == 130
    assert "interrupted" in err
    assert "to resume" in err
    assert "Traceback" not in err
    assert main(arguments) == 0
    assert main(["verify", str(out)]) == 0


@pytest.mark.slow
def test_the_exit_code_is_kept_where_nobody_reads_the_output(
    encoded: Path, imagenette_folder: Path, tmp_path: Path
) -> None:
    """As in `walloc-data verify ... | head` and `walloc-data encode ... 2>&1 | head`."""
    shutil.copytree(encoded, tmp_path / "damaged")
    (tmp_path / "damaged" / "_info.json").unlink()
    shutil.copytree(imagenette_folder, tmp_path / "photos")
    (tmp_path / "photos" / ".DS_Store").touch()  # a note on it is printed before the first picture is encoded
    for command, closed, code in (
        (["verify", encoded], "stdout", 0),
        (["verify", tmp_path / "damaged"], "stdout", 1),
        (["encode", tmp_path / "photos", tmp_path / "x", "--size", "32"], "stderr", 1),
    ):
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {closed: subprocess.PIPE}
        with warm.Popen(["-m", "walloc_data", *command], **streams) as process:
            getattr(process, closed).close()
            assert process.wait(120) == code, command
    assert not (tmp_path / "x" / "walloc.json").exists()


def test_options_that_are_not_what_they_should_be_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["encode", "a", "b", "--background", "white"], "'white' is not three numbers, such as 255,255,255"),
        (["info", "a", "--storage-options", "anon"], "'anon' is not a JSON object"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err


def test_transparent_pictures_lie_on_the_background_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "in" / "a.png")
    assert run(capsys, "encode", tmp_path / "in", tmp_path / "x", "--background", "200,30,30", "--no-preview")[0] == 0
    assert run(capsys, "decode", tmp_path / "x", "-o", tmp_path / "png")[0] == 0
    [decoded] = (tmp_path / "png").rglob("*.png")
    with Image.open(decoded) as picture:
        red, green, blue = picture.convert("RGB").getpixel((32, 32))  # type: ignore[misc]
    assert abs(red - 200) < 20
    assert abs(green - 30) < 20
    assert abs(blue - 30) < 20


def test_something_slow_says_what_it_is_doing(capsys: pytest.CaptureFixture[str]) -> None:
    from walloc_data.cli.command import log_if_slow

    said = ""
    deadline = time.monotonic() + 60
    with log_if_slow("quick", after_s=600), log_if_slow("photos: looking", after_s=0):
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
            said = capsys.readouterr().err
    assert said == "photos: looking\n"
