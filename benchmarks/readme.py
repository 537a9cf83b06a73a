"""Fill the tables of the pages from benchmarks/results/: `python -m benchmarks.readme`, `--check` to compare only.

Each table stands between `<!-- NAME -->` and `<!-- end NAME -->`; a function below makes it from a file of
results. So no number there was typed by hand, and a test holds the two together.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import adapt_plot
from benchmarks.learning import frontier_plot, plot
from benchmarks.learning.arms import ARMS
from benchmarks.results import RESULTS

NETWORK_NAMES = {"vit": "ViT", "resnet": "ResNet"}
ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "learning" / "README.md")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; every column but the first is aligned right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def times(value: dict[str, float]) -> str:
    """A ratio with its spread."""
    return f"{value['median']:.1f}x ({value['min']:.1f} to {value['max']:.1f})"


def encode_speed(results: dict[str, Any]) -> str:
    """Picture in memory to WebP bytes, one thread."""
    rows = []
    for pictures, name in (("kodak_768x512", "Kodak, 768x512"), ("crops_256_in_sixteens", "256-px crops, in sixteens")):
        for way, label in (("reference", "`walloc` 1.2.1"), ("default", "ours"), ("fast", "ours, `--effort fast`")):
            found = results[pictures][way]
            rows.append(
                (
                    f"{name}: {label}",
                    f"{found['ms_per_picture']['median']:.2f}",
                    times(found["times_faster"]),
                    f"{100 * (found['bytes_against_reference'] - 1):+.2f} %",
                )
            )
    return table(("pictures", "ms a picture", "times faster (spread)", "bytes"), rows)


def read_speed(results: dict[str, Any]) -> str:
    """Samples into shuffled training batches, per second of processor time."""
    labels = {
        "webdataset_jpeg": "webdataset: JPEG, Pillow, RandomResizedCrop(224)",
        "datasets_jpeg": "Hugging Face datasets: the same",
        "streaming_jpeg": "mosaicml-streaming: the same",
        "litdata_jpeg": "litdata: the same",
        "latents_webdataset": "our shards through webdataset",
        "latents_shards": "`LatentDataset`, from shards",
        "latents_array": '`LatentDataset(cache="array")`',
    }
    rows = []
    for name, label in labels.items():
        found = results["pipelines"][name]
        rows.append((label, f"{found['samples_per_cpu_second']['median']:,.0f}", times(found["times_webdataset_jpeg"])))
    return table(("256-px pictures", "samples / CPU second", "against webdataset (spread)"), rows)


def stored_bytes(results: dict[str, Any]) -> str:
    """Return the table of a picture's bytes on disk."""
    labels = {
        "with labels": "with labels, `{key}.cls`",
        "without labels": "without labels",
        "with labels and sample_json": "with labels and `--sample-json`",
    }
    header = (
        f"{results['size_px']}-px pictures, bytes each",
        "WebP latent",
        "tar, beside the latent",
        "shard",
        "index",
    )
    rows = [
        (label, *(f"{results[name][column]:,.0f}" for column in ("latent", "beside_the_latent", "shard", "index")))
        for name, label in labels.items()
    ]
    raw, jpeg = 3 * results["size_px"] ** 2, results["with labels"]["source"]
    text = f"A JPEG file has {jpeg:,.0f} bytes, its pixels {raw:,}, its decoded latent (the array cache) {raw // 16:,}."
    return f"{table(header, rows)}\n\n{text}"


def rate_distortion(results: dict[str, Any]) -> str:
    """Means over the Kodak pictures at hand."""
    labels = {
        "ours": "`rgb-16x-v1`",
        "ours, decoder 1": "`rgb-16x-v1`, its first decoder",
        "ours, linear decoder": "`rgb-16x-v1`, linear decoder",
        "ours, linear 5x5": "`rgb-16x-v1`, best linear decoder from 5x5 cells",
        "klt-16x": "`klt-16x`",
        "klt-16x, linear 5x5": "`klt-16x`, best linear decoder from 5x5 cells",
    }
    published = list(results["published"].values())
    bpp, psnr = (statistics.fmean(point[name] for point in published) for name in ("bpp", "psnr_db"))
    rows = [("WaLLoC, published weights", f"{bpp:.3f}", f"{psnr:.2f}", "")]
    for name, found in results["mean"].items():
        label = labels.get(name, name.replace("jpeg at", "JPEG, quality").replace("webp at", "lossy WebP, quality"))
        rows.append((label, f"{found['bpp']:.3f}", f"{found['psnr_db']:.2f}", f"{found['ms_ssim']:.4f}"))
    return table(("Kodak, 11 pictures", "bits per pixel", "PSNR, dB", "MS-SSIM"), rows)


def kodak_pictures(results: dict[str, Any]) -> str:
    """Picture by picture: ours, and the published codec."""
    rows = []
    for name, methods in results["pictures"].items():
        ours, published = methods["ours"], results["published"][name]
        difference = ours["psnr_db"] - published["psnr_db"]
        numbers = (ours["bpp"], published["bpp"], ours["psnr_db"], published["psnr_db"])
        rows.append(
            (name, *(f"{v:.3f}" for v in numbers[:2]), *(f"{v:.2f}" for v in numbers[2:]), f"{difference:+.2f}")
        )
    header = ("Kodak", "bpp", "bpp, published", "PSNR, dB", "PSNR, published", "difference")
    return table(header, rows)


def latent_files(results: dict[str, Any]) -> str:
    """Ways to store a latent without loss."""
    rows = []
    for pictures, name in (("kodak_768x512", "Kodak, 768x512"), ("imagenette_160", "Imagenette, 160 px")):
        for way, found in results[pictures].items():
            times = (f"{found[f'{what}_ms']['median']:.2f}" for what in ("write", "read"))
            rows.append((f"{name}: {way}", f"{found['bytes']:,.0f}", *times))
    return table(("one latent", "bytes", "write, ms", "read, ms"), rows)


def decode_speed(results: dict[str, Any]) -> str:
    """Against the published decoder's architecture."""
    found = results["decode_speed"]
    rows = [
        ("parameters", f"{found['parameters_ours']:,}", f"{found['parameters_published']:,}", ""),
        (
            "decoding 768x512, s",
            f"{found['seconds_whole_ours']['median']:.3f}",
            f"{found['seconds_whole_published']['median']:.2f}",
            times(found["ratio_whole"]),
        ),
    ]
    return table(("one thread", "`rgb-16x-v1`", "published architecture", "times faster (spread)"), rows)


def convert_speed(results: dict[str, Any]) -> str:
    """Return the table of the stages of a whole conversion."""
    columns = ("imagenette_default", "photos_at_256_default")
    stages = ("read", "decode", "resize", "pad", "encode", "count", "pack", "webp", "tar", "publish", "everything_else")
    rows = [
        (stage.replace("_", " "), *(f"{results[c]['stages_cpu_ms_a_sample'][stage]['median']:.2f}" for c in columns))
        for stage in stages
    ]
    rows.append(("all", *(f"{results[c]['cpu_ms_a_sample']['median']:.2f}" for c in columns)))
    rows.append(
        ("samples per second and core", *(f"{results[c]['samples_per_s_per_core']['median']:.0f}" for c in columns))
    )
    alone = results["floor_cpu_ms_a_sample"]
    rows.append(("libjpeg and libwebp alone", f"{alone['libjpeg']:.2f} + {alone['libwebp']:.2f}", ""))
    rows.append(("all, against these two", f"{results['imagenette_default']['times_the_floor']:.2f}x", ""))
    return table(("CPU ms a picture", "Imagenette, as it is", "photographs to 256 px"), rows)


def two_workers(results: dict[str, Any]) -> str:
    """Whole conversions by the clock, workers' start included."""
    rows = []
    for name, found in sorted(results.items(), key=lambda item: int(item[0].partition("_")[0])):
        one, two = (statistics.median(found["wall_s"][number]) for number in ("1", "2"))
        rows.append((f"{int(name.partition('_')[0]):,}", f"{one:.1f}", f"{two:.1f}", times(found["times_faster"])))
    return table(("pictures", "one worker, s", "two workers, s", "times faster (spread)"), rows)


def gpu(results: dict[str, Any]) -> str:
    """Return the table of encoding on a GPU."""
    analysis = results["analysis_megapixels_per_s"]
    rows = [
        (
            "latents that differ from the CPU's",
            f"{results['agreement']['different']} of {results['agreement']['latents']:,}",
        )
    ]
    rows.append(("analysis on one CPU thread, MP/s", f"{analysis['one_cpu_thread']:.0f}"))
    rows += [
        (f"analysis of {batch} pictures of 256 px, MP/s: {label}", f"{analysis[batch][way]['median']:,.0f}")
        for batch in ("16", "128", "1024")
        for way, label in (("ours", "ours"), ("reference", "`walloc` 1.2.1"))
    ]
    rows += [
        (
            f"whole conversion of {row['pictures']:,} JPEG files, {row['workers']} workers, `--device {row['device']}`",
            f"{row['seconds']:.1f} s",
        )
        for row in results["conversions"]
    ]
    return table((results["gpu"], ""), rows)


def estimates(results: dict[str, Any]) -> str:
    """Return the table of times and bytes for larger data sets, at 256 px."""
    found = results["photos_at_256_default"]["estimates"]
    rows = []
    for name, label in (("imagenet_1k", "ImageNet-1k"), ("a_billion", "a billion pictures")):
        hours, gigabytes = found[name]["core_hours"], found[name]["shard_bytes"] / 1e9
        rows.append((label, f"{found[name]['pictures']:,}", f"{hours:,.0f}", f"{hours / 64:,.2f}", f"{gigabytes:,.0f}"))
    return table(("at 256 px", "pictures", "core hours", "hours on 64 cores", "GB of shards"), rows)


def train_example(results: dict[str, Any]) -> str:
    """The example's result on Imagenette."""
    row = (
        f"{results['arguments']['model']}, depth {results['arguments']['model_kwargs']['depth']}",
        results["arguments"]["epochs"],
        f"{results['top1']:.1f}",
        f"{results['ema_top1']:.1f}",
    )
    return table(("Imagenette 160 px, 25 tokens", "epochs", "top-1, %", "EMA top-1, %"), [row])


def folded(results: dict[str, Any]) -> str:
    """A classifier of pixels made one of latents, with its first layer folded; and with its first stages imitated."""
    skipped = json.loads((RESULTS / "folded_imagenette160_skipped.json").read_text())["results"]
    both = (results, skipped)
    labels = {
        "pixels": "the pixel model, on pixels",
        "copied, stem random": "its weights on latents, what is new random",
        "before fine-tuning": "what is new folded, or imitating",
    }
    rows = [(label, *(f"{found[key]:.1f}" for found in both)) for key, label in labels.items()]
    for name in ("fine-tuned", "from scratch"):
        for epoch in range(len(results[name])):
            rows.append((f"{name}, epoch {epoch + 1}", *(f"{found[name][epoch]:.1f}" for found in both)))
    return table(("Imagenette 160 px, top-1, %", "ViT, patches of 32 px, folded", "ResNet, first stage skipped"), rows)


def serving_speed(results: dict[str, Any]) -> str:
    """Pictures a second of whole classifiers."""
    ways = ("pixel model", "pictures through the codec", "stored latents")
    rows = [(row["model"], *(f"{row[way]['median']:.1f}" for way in ways)) for row in results["rows"]]
    return table((f"{results['size_px']} px", *ways), rows)


def adapt_speed(results: dict[str, Any]) -> str:
    """Pictures a second of an ImageNet network, reading included."""
    rows = []
    for name, row in results["rows"].items():
        rate = row["pictures_a_second"]
        text = f"{rate['median']:.1f} ({rate['min']:.1f} to {rate['max']:.1f})"
        rows.append((name, text, f"{row['reading_ms']['median']:.2f}", f"{row['network_ms']['median']:.1f}"))
    header = (f"{results['seen_px']} px, one thread", "pictures a second", "reading, ms", "network, ms")
    return table(header, rows)


def learning_costs(name: str) -> str:
    """Every arm of the learning experiment on one data set, with what it costs."""
    return table(plot.HEADER, [(NETWORK_NAMES[model], *rest) for model, *rest in plot.rows(name)])


def learning(suffix: str = "") -> str:
    """Every arm's accuracy on both data sets, with both networks."""
    found = {name: plot.load(f"{name}{suffix}") for name in LEARNING}
    columns = [(name, model) for name in LEARNING for model in NETWORK_NAMES]
    rows = []
    for arm in ARMS:
        runs = [found[name].get((model, arm), []) for name, model in columns]
        if any(runs):
            rows.append((arm, *map(plot.accuracy_text, runs)))
    titles = (f"{name.capitalize()}, {NETWORK_NAMES[model]}" for name, model in columns)
    return table(("accuracy, %", *titles), rows)


def transform_fidelity(results: dict[str, Any]) -> str:
    """Return the table of each transform's error."""
    rows = [
        (row["transform"], f"{row['error']:.3f}", f"{row['psnr_db']:.1f}", f"{row['codec_psnr_db']:.1f}")
        for row in results["rows"]
    ]
    return table(("transform of latents", "error / variance", "PSNR, dB", "of the codec alone"), rows)


# The data sets of `benchmarks.learning`, whose results are kept apart, a line a run; and how each was run.
LEARNING = {
    "imagenette": "PICTURES --size-px 160 --work SCRATCH --name imagenette",
    "imagewoof": "PICTURES --size-px 256 --work SCRATCH --patch-cells 8 --name imagewoof",
}
FRONTIER = "python -m benchmarks.learning.frontier train"
SMALL = (
    "--model resnet18 --model-kwargs "
    '\'{"geometry":"all_stages","channels":[32,64,128,256],"stem_hidden_channels":48}\''
    " --lrs 4e-3 --epochs 40 --validate-every 5 --keep-weights"
)
FRONTIER_RUNS = (  # of the small network, the same with progressive resizing, and the large one
    f"{FRONTIER} .frontier --results RUNS --limit-s 90000 --threads 1"
    f" --arms latents-crops latents-shifts reduced-crops pixels-crops {SMALL}",
    f"{FRONTIER} .frontier --results RUNS --limit-s 90000 --threads 1"
    f" --arms latents-crops --seeds 0 --cells-before 12 14 {SMALL}",
    f"{FRONTIER} .frontier320 --results RUNS320 --limit-s 90000 --threads 1"
    " --matmul-gradients --arms latents-crops reduced-crops --seeds 0 --model resnet18d --model-kwargs "
    '\'{"geometry":"skip_early","stem_hidden_channels":64}\''
    " --cells 24 --cells-before 16 20 --lrs 4e-3 --epochs 36 --validate-every 5 --keep-weights",
)
# Name on a page: (results file, function).
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "adapt_speed": ("adapt_speed", adapt_speed),
    "convert_speed": ("convert_speed", convert_speed),
    "decode_speed": ("rate_distortion", decode_speed),
    "encode_speed": ("encode_speed", encode_speed),
    "encode_speed_again": ("encode_speed_again", encode_speed),
    "estimates": ("convert_speed", estimates),
    "folded": ("folded_imagenette160", folded),
    "gpu": ("gpu", gpu),
    "kodak_pictures": ("rate_distortion", kodak_pictures),
    "latent_files": ("latent_files", latent_files),
    "rate_distortion": ("rate_distortion", rate_distortion),
    "read_speed": ("read_speed", read_speed),
    "serving_speed": ("serving_speed", serving_speed),
    "stored_bytes": ("stored_bytes", stored_bytes),
    "two_workers": ("convert_workers", two_workers),
    "train_example": ("train_imagenette160", train_example),
    "transform_fidelity": ("transform_fidelity", transform_fidelity),
}


def headline() -> str:
    """Return the README's table: one row for each thing that was measured, with the command that measures it."""

    def load(name: str) -> tuple[dict[str, Any], str]:
        value = json.loads((RESULTS / f"{name}.json").read_text())
        return value["results"], f"`{value['command']}`"

    encode, encode_command = load("encode_speed")
    convert, convert_command = load("convert_speed")
    read, read_command = load("read_speed")
    codec, codec_command = load("rate_distortion")
    kodak = encode["kodak_768x512"]
    per_core = [convert[c]["samples_per_s_per_core"]["median"] for c in ("photos_at_256_default", "imagenette_default")]
    shards, array = (read["pipelines"][name] for name in ("latents_shards", "latents_array"))
    published = list(codec["published"].values())
    bpp, psnr = (statistics.fmean(point[name] for point in published) for name in ("bpp", "psnr_db"))
    ours, slowdown = codec["mean"]["ours"], codec["decode_speed"]["ratio_whole"]
    rows = [
        (
            "encode 768 x 512 to WebP, one thread",
            f"{kodak['default']['ms_per_picture']['median']:.1f} ms",
            f"reference implementation: {kodak['reference']['ms_per_picture']['median']:.1f} ms",
            encode_command,
        ),
        (
            "convert JPEG files, one core",
            f"{per_core[0]:.0f} (photographs to 256 px) to {per_core[1]:.0f} (160 px) pictures/s",
            f"{convert['imagenette_default']['times_the_floor']:.2f}x the time of libjpeg and libwebp alone",
            convert_command,
        ),
        (
            "read 256-px pictures from shards",
            f"{shards['samples_per_cpu_second']['median']:,.0f} latents per CPU second",
            f"webdataset with JPEG: {times(shards['times_webdataset_jpeg'])} slower",
            read_command,
        ),
        (
            'the same, `cache="array"` (decoded once)',
            f"{array['samples_per_cpu_second']['median']:,.0f} latents per CPU second",
            "copies decoded arrays from a memory-mapped file: nothing is decompressed",
            read_command,
        ),
        (
            "quality, 11 Kodak pictures",
            f"{ours['psnr_db']:.2f} dB at {ours['bpp']:.3f} bits per pixel",
            f"published codec: {psnr:.2f} dB at {bpp:.3f}; decodes {times(slowdown)} slower",
            codec_command,
        ),
        learning_row(),
    ]
    return table(("what", "measured", "compared with", "command"), rows).replace("---:", "---")


def learning_row() -> tuple[str, str, str, str]:
    """Return the headline's row on accuracy: the best runs on latents, and pixels reduced to as many values."""
    groups = frontier_plot.groups(frontier_plot.load())
    (model, _, epochs), runs = max(
        groups.items(), key=lambda item: max((run["top1"] for run in item[1].get("latents-crops", [])), default=0)
    )
    latents = runs["latents-crops"]
    size = max(int(cells) for cells in latents[0]["top1_by_cells"])
    ours, theirs = (
        frontier_plot.spread([run["top1_by_cells"][str(size)] for run in runs[arm]])
        for arm in ("latents-crops", "reduced-crops")
    )
    seconds = frontier_plot.seconds_by_epoch(latents[0])
    hours = f", {sum(map(sum, seconds)) / 3600:.1f} hours of one core" if seconds else ""
    return (
        f"train from scratch on Imagewoof: {model}, {epochs} epochs{hours}",
        f"{ours} % top-1 on latents of {8 * size} px",
        f"pixels reduced to as many values: {theirs} %",
        "see [there](benchmarks/learning/README.md#latents-reduced-pixels-all-pixels)",
    )


ADAPT = "python -m benchmarks.adapt_imagenet PICTURES --work SCRATCH --name imagewoof"
TRANSFER = "python -m benchmarks.adapt_transfer PICTURES --work SCRATCH --name imagewoof"


def adapted() -> dict[str, tuple[str, str]]:
    """Return the tables of an ImageNet network on pixels, on reduced and decoded ones, and adapted to latents."""
    count = adapt_plot.load("adapt", "imagewoof")[0]["pictures"]
    seen = (f"{count:,} pictures of Imagewoof, 224 px", "among ten, %", "of 1000, %", "GMAC")
    sizes = ("among ten / of 1000, %", "GMAC", *(label for _, label in adapt_plot.DRAWN.values()))
    others = ("among ten / of 1000, %", "pictures", *adapt_plot.OTHERS_ARMS.values())
    elsewhere = (
        "Imagewoof, 160 px, among ten / of 1000, %",
        "adapted without training",
        "adapted on Imagenette",
        "adapted on Imagewoof",
    )
    nette = f"{ADAPT.replace('imagewoof', 'imagenette')} --seen-px 160 --stored-px 160"
    lite2 = f"{ADAPT} --model tf_efficientnet_lite2 --every 3"
    return {
        "adapt": (table(seen, adapt_plot.frozen_rows("imagewoof", arms=adapt_plot.README_ARMS)), ""),
        "adapt_all": (
            table(seen, adapt_plot.frozen_rows("imagewoof")),
            f"{ADAPT}`\n\n`{ADAPT} --arms imitating --stem-epochs 2 --epochs 0 --lr 2e-4`\n\n`"
            f'{ADAPT} --arms "imitating, skip_early" --stem-epochs 2',
        ),
        "adapt_others": (table(others, adapt_plot.other_rows()), f"{lite2}`\n\n`{nette}"),
        "adapt_sizes": (
            table(sizes, adapt_plot.size_rows("imagewoof")),
            f"{ADAPT} --seen-px SIZE",
        ),
        "adapt_elsewhere": (
            table(elsewhere, adapt_plot.elsewhere_rows("imagewoof", "imagenette")),
            f"{ADAPT} --seen-px 160 --adapt-on OTHERS --adapt-name imagenette --adapt-stored-px 160",
        ),
        "adapt_transfer": (
            table(adapt_plot.transfer_header("imagewoof"), adapt_plot.transfer_rows("imagewoof")),
            f"{TRANSFER} --epochs 0 1 --seen-px 224`\n\n`"
            f"{TRANSFER} --epochs 1 --seen-px SIZE --no-probe --lr 3e-4 --head-lr 3e-3",
        ),
    }


def bodies() -> dict[str, tuple[str, str]]:
    """(table, the command that made its numbers) by name."""
    run = "python -m benchmarks.learning.run"
    made = {f"learning_{name}": (learning_costs(name), f"{run} {how}") for name, how in LEARNING.items()}
    commands = [command for _, command in made.values()]
    made["headline"] = (headline(), "")
    made["learning"] = (learning(), "`\n\n`".join(commands))
    arms = " ".join(f'"{arm}"' for arm in dict.fromkeys(arm for _, arm in plot.load("imagenette-longer")))
    longer = [f"{command}-longer --longer 4 --seeds 0 --arms {arms}" for command in commands]
    made["learning_longer"] = (learning("-longer"), "`\n\n`".join(longer))
    made["frontier"] = (table(frontier_plot.HEADER, frontier_plot.rows()), "`\n\n`".join(FRONTIER_RUNS))
    for stored_px, folders in {192: ".frontier RUNS", 320: ".frontier320 RUNS320"}.items():
        header = ("accuracy, %", *(f"{8 * size} px" for size in frontier_plot.SIZES[stored_px]))
        scored = f"python -m benchmarks.learning.frontier_sizes PICTURES {folders} --work SCRATCH"
        made[f"frontier_sizes_{stored_px}"] = (table(header, frontier_plot.by_size_rows(stored_px)), scored)
    made |= adapted()
    for name, (file, make) in TABLES.items():
        value = json.loads((RESULTS / f"{file}.json").read_text())
        made[name] = (make(value["results"]), value["command"])
    skipped = json.loads((RESULTS / "folded_imagenette160_skipped.json").read_text())["command"]
    made["folded"] = (made["folded"][0], f"{made['folded'][1]}`\n\n`{skipped}")
    return made


def fill(text: str, made: dict[str, tuple[str, str]]) -> str:
    """A text with every table that it has a place for made anew."""
    for name, (body, command) in made.items():
        under = f"\n\n`{command}`" if command else ""
        whole = f"<!-- {name} -->\n{body}{under}\n<!-- end {name} -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- end {name} -->", lambda _, whole=whole: whole, text, flags=re.DOTALL)
    return text


def main() -> None:
    """Fill, or with --check exit 1 where a page is behind its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something would change")
    check = parser.parse_args().check
    made = bodies()
    before = {page: page.read_text() for page in PAGES}
    if homeless := [name for name in made if not any(f"<!-- {name} -->" in text for text in before.values())]:
        raise SystemExit(f"no page has a place for {homeless}")
    after = {page: fill(text, made) for page, text in before.items()}
    if check:
        behind = [page.name for page in PAGES if before[page] != after[page]]
        sys.exit(f"{behind} are behind benchmarks/results: python -m benchmarks.readme" if behind else 0)
    for page, text in after.items():
        page.write_text(text)


if __name__ == "__main__":
    main()
