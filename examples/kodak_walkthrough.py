"""WaLLoC's founding page as a script: one photograph through every step of the codec, its numbers, and its plots.

    python examples/kodak_walkthrough.py                       a photograph that scikit-image bundles
    python examples/kodak_walkthrough.py kodim23.png --plots .  a picture of yours; the plots into this folder
    python examples/kodak_walkthrough.py --codec hf://danjacobellis/walloc/RGB_16x.pth   the published weights

The page (danjacobellis.net/compressors/WaLLoC.html) imports these names from its own module; here they come from
walloc_data.codec, and the rest is as there. Needs the extra `demo`: pip install 'walloc_data[demo]'.
"""

import argparse
import io
from pathlib import Path

import matplotlib as mpl
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from walloc_data.codec import (
    WallocCodec,
    decode_from_blob,
    encode_to_latent,
    from_model_output,
    latent_to_webp_bytes,
    load_codec,
    to_model_input,
)

device = "cpu"
torch_dtype = torch.float32


def load_picture(path: str | None) -> PIL.Image.Image:
    """The picture at `path`, cut to sides that are multiples of 8; without one, a photograph from scikit-image."""
    if path is None:
        from skimage import data

        img = PIL.Image.fromarray(data.astronaut())
    else:
        img = PIL.Image.open(path).convert("RGB")
    return img.crop((0, 0, img.width // 8 * 8, img.height // 8 * 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", help="any RGB picture")
    parser.add_argument("--codec", help="codec: a bundled name, a folder, X.pth or hf://owner/repo/X.pth")
    parser.add_argument("--plots", type=Path, help="folder for the plots (PNG)")
    options = parser.parse_args()

    # Load the codec
    codec, info = load_codec(options.codec, device=device, torch_dtype=torch_dtype)
    print(f"channels                 = {info.channels}")
    print(f"J (wavelet depth)        = {info.J}")
    print(f"latent_dim               = {info.latent_dim}")
    print(f"latent_bits              = {info.latent_bits}")
    print(f"dimensionality_reduction = {info.dimensionality_reduction:.2f}x")
    print(f"input_range              = {info.input_range}  # [-0.5, 0.5]")

    # Load a picture
    img = load_picture(options.picture)
    x = to_model_input(pil_to_tensor(img).to(torch_dtype).unsqueeze(0) / 255.0).to(device)
    print(f"x         {tuple(x.shape)} in [{x.min():.2f}, {x.max():.2f}]")

    # Step by step: wavelet packets, projection and companding, rounding
    with torch.no_grad():
        X = codec.wavelet_analysis(x, J=codec.J)
        z = codec.encoder[0:2](X)
        z_hat = codec.encoder[2](z)
    print(f"X         {tuple(X.shape)}")
    print(f"z         {tuple(z.shape)} in [{z.min():.2f}, {z.max():.2f}]")
    print(f"z_hat     {tuple(z_hat.shape)} in [{z_hat.min():.0f}, {z_hat.max():.0f}]")

    # In one call; values on a rounding boundary may differ from the steps by 1
    latent = encode_to_latent(codec, x)
    print(f"encode_to_latent differs from the steps in {(latent != z_hat).sum()} of {latent.numel()} values")

    # To bytes
    blob = latent_to_webp_bytes(latent, info.latent_bits)
    packed = PIL.Image.open(io.BytesIO(blob))
    bits_per_pixel = 8 * len(blob) / (img.width * img.height)
    ratio = img.width * img.height * info.channels / len(blob)
    print(f"packed    {packed.size} {packed.mode}")
    print(f"bytes     {len(blob)} = {bits_per_pixel:.4f} bpp = {ratio:.2f}x")

    # And back
    x_hat = decode_from_blob(codec, blob, info.latent_dim, info.latent_bits, device, torch_dtype)
    reconstruction = to_pil_image(from_model_output(x_hat)[0].clamp(0, 1).cpu())
    psnr_db = -10 * torch.log10((x - x_hat).square().mean())
    print(f"PSNR      {psnr_db:.2f} dB")

    # The same by hand, and by codec.forward
    with torch.no_grad():
        by_hand = codec.clamp(codec.wavelet_synthesis(codec.decoder(z_hat), J=codec.J))
        by_forward, mse_loss, tf_loss = codec(x)
    print(f"max |codec.forward - manual decode| = {(by_forward - by_hand).abs().max():.1e}")
    print(f"mse_loss  {mse_loss:.2e}   tf_loss {tf_loss:.2e}")

    if options.plots is not None:
        plot(codec, img, X, z, latent, packed, reconstruction, folder=options.plots)


def plot(
    codec: WallocCodec,
    img: PIL.Image.Image,
    X: Tensor,
    z: Tensor,
    latent: Tensor,
    packed: PIL.Image.Image,
    reconstruction: PIL.Image.Image,
    *,
    folder: Path,
) -> None:
    """The page's figures: the pictures, the wavelet packets, the latent's channels, and what companding does."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    fig, axes = plt.subplots(1, 3, figsize=(15, 4), constrained_layout=True)
    for axis, picture, title in zip(
        axes, (img, packed, reconstruction), ("original", "packed latent", "reconstruction"), strict=True
    ):
        axis.imshow(picture)
        axis.set_title(f"{title}, {picture.width} x {picture.height}")
        axis.axis("off")
    fig.savefig(folder / "pictures.png", dpi=100)

    side = 2**codec.J
    fig, axes = plt.subplots(side, side, figsize=(10, 10 * X.shape[2] / X.shape[3]), constrained_layout=True)
    for band, axis in enumerate(axes.flat):
        axis.imshow(X[0, band].cpu(), cmap="gray", vmin=-0.5, vmax=0.5)
        axis.axis("off")
    fig.suptitle("wavelet packets of the first colour, in the order of the coefficients")
    fig.savefig(folder / "wavelet_packets.png", dpi=100)

    columns = 4
    rows = -(-codec.latent_dim // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(12, 3 * rows), squeeze=False, constrained_layout=True)
    for channel, axis in enumerate(axes.flat):
        axis.axis("off")
        if channel < codec.latent_dim:
            axis.imshow(latent[0, channel].cpu(), cmap="gray")
            axis.set_title(f"channel {channel}, std {latent[0, channel].std():.1f}", fontsize=9)
    fig.suptitle("latent")
    fig.savefig(folder / "latent.png", dpi=100)

    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4), constrained_layout=True)
    v = torch.linspace(-200, 200, 401)
    left.plot(v, codec.encoder[1](v))
    left.set(title="companding", xlabel="projected value", ylabel="companded value")
    right.hist(z.flatten().cpu().numpy(), bins=101, log=True)
    right.set(title="companded values, all channels", xlabel="value", ylabel="count")
    fig.savefig(folder / "companding.png", dpi=100)
    plt.close("all")
    print(f"plots     {', '.join(sorted(path.name for path in folder.glob('*.png')))}")


if __name__ == "__main__":
    main()
