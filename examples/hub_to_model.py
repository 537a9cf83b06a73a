"""From the name of a data set on the Hugging Face Hub to a trained classifier of latents, cell by cell.

    python examples/hub_to_model.py [SOURCE [VALIDATION_SOURCE]] [--train-split NAME] [--val-split NAME] [--epochs N]

Open it in an editor that knows `# %%` cells, or run it whole. Any source of `walloc-data encode` will do.
"""

# %% [markdown]
# ## 1. The pictures
# A name on the Hub, a folder of class folders, tars: one string. CIFAR-10 is small enough to try in minutes.

# %%
import argparse
import sys
import tempfile
from pathlib import Path

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

import walloc_data
from walloc_data.adapters import save_latent_model, summarize
from walloc_data.serving import attach_codec

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("source", nargs="?", default="hf:uoft-cs/cifar10", metavar="SOURCE", help="pictures to train on")
parser.add_argument(
    "val_source", nargs="?", metavar="VALIDATION_SOURCE", help="source of the validation pictures (default: SOURCE)"
)
parser.add_argument("--train-split", default="train", help="training split of a Hugging Face data set (default: train)")
parser.add_argument(
    "--val-split", help="validation split of a Hugging Face data set (default: validation, val or test)"
)
parser.add_argument("--epochs", type=int, default=10, help="training epochs (default: 10)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook's arguments are not ours
work = Path(tempfile.mkdtemp(prefix="latents-"))
latents = work / "latents"

# %% [markdown]
# ## 2. Encode once
# 64-pixel squares become 8 x 8 cells of 12 integers: sixteen times fewer values, losslessly packed as WebP. Run this
# again after an interruption and only the rest is done.

# %%
from walloc_data.errors import SourceError  # noqa: E402
from walloc_data.sources import Source, open_source  # noqa: E402


def open_held_out(source: str) -> Source:
    """The named split or, of the usual names, the first that there is. Sources without splits are opened whole."""
    names = [args.val_split] if args.val_split else ["validation", "val", "test"]
    for name in names:
        try:
            return open_source(source, split=name)
        except SourceError:
            if name == names[-1]:
                raise
    raise AssertionError("the last name returned or raised")


train_pictures = open_source(args.source, split=args.train_split)
for split, pictures in (("train", train_pictures), ("val", open_held_out(args.val_source or args.source))):
    print(walloc_data.encode_dataset(pictures, latents, split=split, size_px=64, progress=False))

# %% [markdown]
# ## 3. Look at what is there
# Samples travel as int8. Order, resume and ranks are the loader's business; nothing here knows the codec.

# %%
train = walloc_data.LatentDataset(latents, split="train", shuffle=True, cache="array", cache_folder=work / "cache")
val = walloc_data.LatentDataset(latents, split="val", cache="array", cache_folder=work / "cache")
print(train)
print("mean of channel 0:", round(train.statistics.mean[0], 2), "classes:", train.class_names[:3])

# %% [markdown]
# ## 4. A timm model over latents
# The early stage is skipped: a latent stands where stride-8 features would. Normalisation is inside.

# %%
torch.manual_seed(0)
model = walloc_data.create_latent_model("resnet18", dataset=train)
print(summarize(model))

# %% [markdown]
# ## 5. Train with timm's own tools

# %%
batches = train.loader(batch_size=min(128, len(train)), drop_last=True)
mixup = Mixup(mixup_alpha=0.2, label_smoothing=0.1, num_classes=model.num_classes)
criterion = SoftTargetCrossEntropy()
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
scheduler, _ = create_scheduler_v2(optimizer, num_epochs=args.epochs, warmup_epochs=1, warmup_lr=1e-5)
for epoch in range(args.epochs):
    model.train()
    scheduler.step(epoch)
    for z, labels in batches:
        mixed, targets = mixup(z.float(), labels) if len(z) % 2 == 0 else mixup(z[1:].float(), labels[1:])
        loss = criterion(model(mixed), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        correct = sum(int((model(z).argmax(1) == labels).sum()) for z, labels in val.loader(batch_size=256))
    print(f"epoch {epoch}: validation {correct / len(val):.1%}")

# %% [markdown]
# ## 6. Keep it, and serve pictures
# The folder holds weights, config and the encoder: `walloc-data predict FOLDER picture.jpg` needs nothing else.

# %%
save_latent_model(model, work / "model")
attach_codec(work / "model", dataset=latents)
print("saved to", work / "model")
