"""From the name of a data set on the Hugging Face Hub to a trained classifier of latents, cell by cell.

    python examples/hub_to_model.py [SOURCE [VALIDATION_SOURCE]]

Open it in an editor that knows `# %%` cells, or run it whole. Any source of `walloc-data encode` will do.
"""

# %% [markdown]
# ## 1. The pictures
# A name on the Hub, a folder of class folders, tars: one string. CIFAR-10 is small enough to try in minutes.

# %%
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

source = sys.argv[1] if len(sys.argv) > 1 else "hf:uoft-cs/cifar10"
val_source = sys.argv[2] if len(sys.argv) > 2 else source
epochs = int(sys.argv[3]) if len(sys.argv) > 3 else 10
work = Path(tempfile.mkdtemp(prefix="latents-"))
latents = work / "latents"

# %% [markdown]
# ## 2. Encode once
# 64-pixel squares become 8 x 8 cells of 12 integers: sixteen times fewer values, losslessly packed as WebP. Run this
# again after an interruption and only the rest is done.

# %%
from walloc_data.sources import open_source  # noqa: E402

for split, where, name in (("train", source, "train"), ("val", val_source, "test")):
    pictures = open_source(where, split=name) if where.startswith("hf:") else where
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
scheduler, _ = create_scheduler_v2(optimizer, num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-5)
for epoch in range(epochs):
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
