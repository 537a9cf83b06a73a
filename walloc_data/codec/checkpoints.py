"""Codecs on disk: folders of safetensors and JSON, and the lookup of a codec by name, path or URL.

    codec.json                 shape, wavelet, decoders, hash of the encoder, statistics of its latents
    model.safetensors          encoder.weight (12,192), encoder.bias (12,) float32; linear_decoder.*; decoder.* if it
                               has one: version "1" of the codec's decoder
    decoder-2.safetensors      a later version, trained for the same encoder (`walloc_data.codec.decoder_files`)
    README.md, decoder-2.md    the cards of the codec, and of the later decoder

Published WaLLoC checkpoints (.pth, a pickle) are read by `walloc_data.codec.published`.
"""

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from walloc_data.codec.info import MAX_CONFIG_BYTES, CodecInfo, read_capped
from walloc_data.codec.model import NoDecoder, WallocCodec
from walloc_data.codec.tensor_files import MAX_WEIGHTS_BYTES, fill, read_tensors
from walloc_data.devices import usable_device
from walloc_data.errors import CodecError, FormatError, WallocDataError
from walloc_data.files import atomic_file
from walloc_data.format import CodecSpec, dump_json, load_json
from walloc_data.storage import Store

__all__ = ["DEFAULT_CODEC", "bundled_codecs", "codec_folder", "fetch_codec", "load_codec", "save_codec"]

DEFAULT_CODEC = "rgb-16x-v1"
BUNDLED = Path(__file__).parent / "bundled"
_MAX_ENCODER_VALUES = 2**23  # its hash alone takes 50 bytes for each
_MAX_DECODERS = 64
_CODEC_JSON, _WEIGHTS, _CARD = "codec.json", "model.safetensors", "README.md"
_OPERATORS = "operators.safetensors"
_DECODER_FILE = re.compile(r"decoder-[a-z0-9_-]{1,100}\.safetensors")
_FIELDS = {"name", "channels", "J", "latent_dim", "latent_bits", "wavelet", "encoder_sha256"}


def bundled_codecs() -> list[str]:
    """Return the names of the bundled codecs.

    Example:
        >>> from walloc_data.codec import bundled_codecs
        >>> bundled_codecs()
        ['klt-16x', 'rgb-16x-v1']
    """
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{_CODEC_JSON}"))


def codec_folder(source: str | Path | None = None) -> Path | None:
    """Return the folder that `load_codec` reads for this source; None for a published checkpoint, which has none.

    Example:
        >>> from walloc_data.codec import codec_folder
        >>> sorted(path.name for path in codec_folder("rgb-16x-v1").glob("*.safetensors"))
        ['decoder-2.safetensors', 'model.safetensors', 'operators.safetensors']
    """
    source = DEFAULT_CODEC if source is None else source
    path = Path(source)
    if _is_file(path / _CODEC_JSON):
        return path
    return BUNDLED / source if isinstance(source, str) and source in bundled_codecs() else None


def _is_file(path: str | Path) -> bool:
    """Return whether a path is that of a file; unlike `Path.is_file`, also where the system refuses the name."""
    try:
        return Path(path).is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise CodecError(f"{path}: cannot be read ({error.strerror or error})") from error


def codec_files(folder: Path) -> list[str]:
    """Return the names of the files that a codec folder consists of, as far as they are there; codec.json last.

    Example:
        >>> from walloc_data.codec import codec_folder
        >>> from walloc_data.codec.checkpoints import codec_files
        >>> codec_files(codec_folder("klt-16x"))
        ['README.md', 'model.safetensors', 'codec.json']
    """
    context = folder / _CODEC_JSON
    config = load_json(read_capped(context, limit=MAX_CONFIG_BYTES), context=str(context))
    later = decoder_files(config, context=str(context)).values()
    names = [_CARD, _WEIGHTS, _OPERATORS, *later, *(name.replace(".safetensors", ".md") for name in later)]
    return [*(name for name in names if (folder / name).is_file()), _CODEC_JSON]


def fetch_codec(store: Store, *, scratch: Path, prefix: str = "codec/", decoders: bool = True) -> Path:
    """Return a local folder with a data set's codec, for `load_codec`: its own folder, or a copy in `scratch`.

    Only the files that its codec.json names are copied, and only if each is at most 256 MiB.

    Args:
        store: the data set.
        scratch: a folder for the copy.
        prefix: where in the store the codec's files are.
        decoders: False leaves out decoders beside model.safetensors: enough to encode.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.codec import fetch_codec, load_codec
        >>> from walloc_data.storage import Store
        >>> folder = fetch_codec(Store("my-latents"), scratch=Path("scratch"))
        >>> folder, load_codec(folder)[1].name
        (PosixPath('my-latents/codec'), 'rgb-16x-v1')
    """
    if store.local_path is not None:
        return store.local_path / prefix
    folder = scratch / "codec"
    folder.mkdir(parents=True, exist_ok=True)
    names = [_CODEC_JSON, _WEIGHTS]
    for name in names:
        limit = MAX_CONFIG_BYTES if name == _CODEC_JSON else MAX_WEIGHTS_BYTES
        store.download(prefix + name, folder / name, max_bytes=limit)
        if name == _CODEC_JSON and decoders:
            context = store.location(prefix + name)
            try:
                config = load_json((folder / name).read_bytes(), context=context)
            except FormatError as error:
                raise CodecError(str(error)) from error
            names += decoder_files(config, context=context).values()  # names only: no path leads out of the folder
    return folder


def load_codec(
    source: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    torch_dtype: torch.dtype = torch.float32,
    decoder: bool | str | Path = True,
) -> tuple[WallocCodec, CodecInfo]:
    """Load a codec in evaluation mode, and its `CodecInfo`.

    Args:
        source: None for the bundled default; the name of a bundled codec; a codec folder; a published checkpoint
            ``X.pth`` with ``X.json`` beside it; or ``hf://owner/repo[@revision]/X.pth``, one on the
            Hugging Face Hub.
        device, torch_dtype: of the module. Latents do not depend on them.
        decoder: True for the codec's latest decoder; the version of another one of a codec folder ("1"); the path of a
            decoder file that `save_decoder` or `train_decoder` wrote for the same encoder. False leaves the decoder
            out: enough to encode, and nothing but torch is needed.

    Returns:
        The codec in evaluation mode, and its `CodecInfo`.

    Raises:
        CodecError: the source is no codec, is damaged, or is of a kind that this package does not run.
        DeviceError: the device cannot be used here.

    Example:
        >>> import torch
        >>> from walloc_data import load_codec
        >>> codec, info = load_codec()
        >>> latents = codec.encode(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
        >>> latents.shape, latents.dtype
        (torch.Size([1, 12, 8, 12]), torch.int8)
        >>> codec.decode(latents).shape
        torch.Size([1, 3, 64, 96])
    """
    if not torch_dtype.is_floating_point:
        raise CodecError(f"torch_dtype must be a float type, not {torch_dtype}")
    codec, info = _load(DEFAULT_CODEC if source is None else source, decoder=decoder)
    if not isinstance(decoder, bool) and _is_file(decoder):
        codec, info = _with_decoder(codec, info, Path(decoder))
    device = usable_device(device)
    if torch_dtype != torch.float32 or device.type != "cpu":
        codec.linear_encoder()  # from the float32 weights, before a cast rounds them
    return codec.to(device=device, dtype=torch_dtype).eval(), info


def _load(source: str | Path, *, decoder: bool | str | Path) -> tuple[WallocCodec, CodecInfo]:
    from_file = not isinstance(decoder, bool) and _is_file(decoder)
    version = None if isinstance(decoder, bool) or from_file else str(decoder)
    if (folder := codec_folder(source)) is not None:
        # A decoder file replaces the folder's decoder, so the latest one there is not read.
        return _load_folder(folder, decoder=decoder is not False, version="1" if from_file else version)
    if version is not None:
        raise CodecError(f"decoder {version!r}: no such file, and {str(source)!r} is no codec folder with versions")
    if isinstance(source, str) and source.startswith("hf://"):
        from walloc_data.codec.published import load_from_hub

        return load_from_hub(source, decoder=decoder is True)
    path = Path(source)
    if path.suffix == ".pth":
        from walloc_data.codec.published import load_published

        return load_published(path, decoder=decoder is True)
    raise CodecError(
        f"no codec at {str(source)!r}: expected a bundled name ({', '.join(bundled_codecs())}), a folder with "
        f"{_CODEC_JSON}, a .pth file, or hf://owner/repo/file.pth"
    )


def _with_decoder(codec: WallocCodec, info: CodecInfo, path: Path) -> tuple[WallocCodec, CodecInfo]:
    """Return the codec with the decoder network of a file."""
    from walloc_data.codec.decoder_files import load_decoder

    linear = codec.linear_decoder
    network, version = load_decoder(path, codec=codec)
    codec.decoder[1], codec._linear_decoder = network, linear
    return codec, replace(info, decoder=network.config["kind"], decoder_version=version)


def decoder_files(config: Mapping[str, Any], *, context: str) -> dict[str, str]:
    """Return the decoders beside model.safetensors that a codec.json names: version to file name, oldest first."""
    files = config.get("decoder_files", {})
    if not isinstance(files, Mapping) or not all(
        isinstance(name, str) and _DECODER_FILE.fullmatch(name) for name in files.values()
    ):
        raise CodecError(f"{context}: decoder_files must map versions to names like decoder-2.safetensors")
    if len(files) > _MAX_DECODERS:  # each may have 256 MiB, and all are copied with a data set
        raise CodecError(f"{context}: {len(files)} decoder_files; at most {_MAX_DECODERS} are read")
    return {str(version): str(name) for version, name in files.items()}


def _load_folder(folder: Path, *, decoder: bool, version: str | None = None) -> tuple[WallocCodec, CodecInfo]:
    context = str(folder / _CODEC_JSON)
    try:
        config = load_json(read_capped(folder / _CODEC_JSON, limit=MAX_CONFIG_BYTES), context=context)
        if config.get("format") != "walloc_data-codec" or config.get("format_version") != 1:
            raise CodecError(
                f"{context}: format {config.get('format')!r} version {config.get('format_version')!r}; "
                "this walloc_data reads 'walloc_data-codec' version 1"
            )
        spec = CodecSpec.from_dict({name: config[name] for name in _FIELDS & set(config)}, context=context)
        description = config.get("decoder")
        kind = description.get("kind") if isinstance(description, Mapping) else None
        if kind not in ("linear", "conv", "unet", "none"):
            raise CodecError(f"{context}: decoder kind must be 'linear', 'conv', 'unet' or 'none', not {kind!r}")
        later = decoder_files(config, context=context)
        if version is not None and version not in {"1", *later}:
            raise CodecError(f"{context}: no decoder of version {version!r}; there are {', '.join(['1', *later])}")
        statistics = _read_statistics(config.get("statistics"), spec=spec, context=context)
    except FormatError as error:
        raise CodecError(str(error)) from error
    weights, _ = read_tensors(folder / _WEIGHTS)
    bands = spec.channels * 4**spec.J
    # Nothing is built on the word of codec.json: what the weights do not bear out would take gigabytes.
    found = tuple(weights["encoder.weight"].shape) if "encoder.weight" in weights else None
    if found not in ((spec.latent_dim, bands), (spec.latent_dim, bands, 1, 1)):
        raise CodecError(
            f"{folder / _WEIGHTS}: encoder.weight has shape {found}, codec.json says {(spec.latent_dim, bands)}"
        )
    if spec.latent_dim * bands > _MAX_ENCODER_VALUES:
        raise CodecError(f"{context}: an encoder of {spec.latent_dim} x {bands} values; at most {_MAX_ENCODER_VALUES}")
    convolution = nn.Conv2d(spec.latent_dim, bands, 1) if decoder and "linear_decoder.weight" in weights else None
    network: nn.Module | None = None
    if kind == "none" or not decoder:
        network = NoDecoder()
    elif kind in ("conv", "unet"):
        from walloc_data.codec.decoders import build_decoder

        with torch.device("meta"):
            network = build_decoder(dict(description or {}), latent_dim=spec.latent_dim, out_channels=bands)
        fill(network, weights, prefix="decoder.", context=folder / _WEIGHTS)
        network.to(memory_format=torch.channels_last)
    elif convolution is None:
        raise CodecError(f"{folder / _WEIGHTS}: decoder kind is 'linear' but linear_decoder.weight is absent")
    codec = WallocCodec(
        channels=spec.channels, J=spec.J, latent_dim=spec.latent_dim, latent_bits=spec.latent_bits,
        decoder=convolution if network is None else network,
        linear_decoder=None if network is None else convolution,
    )  # fmt: skip
    parts: dict[str, nn.Module] = {"encoder.": codec.encoder[0]}
    if decoder:
        parts |= {"linear_decoder.": convolution} if convolution is not None else {}
    for prefix, module in parts.items():
        fill(module, weights, prefix=prefix, context=folder / _WEIGHTS)
    codec.name, codec.statistics = spec.name, statistics
    if (folder / _CARD).is_file():
        codec.card = read_capped(folder / _CARD, limit=MAX_CONFIG_BYTES).decode(errors="replace")
    if (digest := codec.encoder_sha256) != spec.encoder_sha256:
        raise CodecError(f"{folder}: the encoder's weights hash to {digest}, codec.json says {spec.encoder_sha256}")
    info = CodecInfo(
        spec=spec, decoder=kind if decoder else "none", statistics=statistics, decoder_version="1" if decoder else None
    )
    latest = next(reversed(later), None)
    if decoder and (wanted := version or latest) in later:
        return _with_decoder(codec, info, folder / later[wanted])
    return codec, info


def _read_statistics(
    value: Any, *, spec: CodecSpec, context: str
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if value is None:
        return None
    mean, std = (value.get(key) if isinstance(value, Mapping) else None for key in ("mean", "std"))
    for row in (mean, std):
        if not isinstance(row, list) or len(row) != spec.latent_dim or not all(type(v) in (int, float) for v in row):
            raise CodecError(f"{context}: statistics must be two lists, mean and std, of {spec.latent_dim} numbers")
    return tuple(float(v) for v in mean), tuple(float(v) for v in std)  # type: ignore[union-attr]


def save_codec(
    codec: WallocCodec,
    folder: str | Path,
    *,
    name: str | None = None,
    statistics: Mapping[str, Sequence[float]] | None = None,
    card: str | None = None,
    decoder_dtype: torch.dtype = torch.float32,
) -> CodecInfo:
    """Write a codec as a folder that `load_codec` reads.

    A decoder that such a folder cannot describe (a published checkpoint's) is left out: the folder then encodes, and
    decodes where the codec has a linear decoder.

    Args:
        codec: in any float type; the encoder's float32 weights are written.
        folder: created if absent; files of a codec in it are replaced, one after the other.
        name, statistics, card: the codec's own unless given. `name` is lower case; `statistics` is {"mean": [...],
            "std": [...]} of the latents' integers, one number a channel; `card` is the README's text.
        decoder_dtype: of a decoder network's tensors on disk; the linear maps stay float32.

    Returns:
        What `load_codec` says of the folder.

    Raises:
        CodecError: `statistics` do not fit the codec; nothing is written.
        WallocDataError: the folder cannot be written.

    Example:
        >>> from walloc_data.codec import load_codec, save_codec
        >>> codec, info = load_codec("klt-16x")
        >>> saved = save_codec(codec, "my-codec", name="mine")
        >>> saved.name, saved.decoder, saved.encoder_sha256 == info.encoder_sha256
        ('mine', 'linear', True)
    """
    folder = Path(folder)
    encoder, network = codec.linear_encoder(), codec.decoder[1]
    spec = codec.spec if name is None else replace(codec.spec, name=name)
    tensors = {"encoder.weight": encoder.weight, "encoder.bias": encoder.bias}
    linear = codec.linear_decoder
    if linear is not None:
        bias = linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias
        tensors |= {"linear_decoder.weight": linear.weight.flatten(1), "linear_decoder.bias": bias}
    description: dict[str, Any] = {"kind": "linear" if network is linear else "none"}
    described = getattr(network, "config", None)
    if isinstance(described, Mapping) and described.get("kind") in ("conv", "unet"):
        description = dict(described)
        tensors |= {f"decoder.{key}": tensor.to(decoder_dtype) for key, tensor in network.state_dict().items()}
    value: dict[str, Any] = {
        "format": "walloc_data-codec",
        "format_version": 1,
        "decoder": description,
        **spec.to_dict(),
    }
    if statistics is None and codec.statistics is not None:
        statistics = dict(zip(("mean", "std"), codec.statistics, strict=True))
    if statistics is not None:
        value["statistics"] = {key: [float(v) for v in statistics.get(key, ())] for key in ("mean", "std")}
    # What cannot be written is refused before files of the folder are replaced.
    _read_statistics(value.get("statistics"), spec=spec, context=name or codec.name)
    text = dump_json(value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / _WEIGHTS) as unfinished:
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, unfinished)
        with atomic_file(folder / _CARD) as unfinished:
            unfinished.write_text(codec.card if card is None else card)
        with atomic_file(folder / _CODEC_JSON) as unfinished:
            unfinished.write_text(text)
    except OSError as error:
        raise WallocDataError(f"{folder}: the codec could not be written ({error})") from error
    return replace(_load_folder(folder, decoder=False)[1], decoder=description["kind"], decoder_version="1")
