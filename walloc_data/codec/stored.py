"""The codec that a data set carries, brought to this machine."""

from pathlib import Path

from walloc_data.errors import CodecError
from walloc_data.storage import Store

__all__ = ["fetch_codec"]

MAX_CODEC_BYTES = 2**31


def fetch_codec(store: Store, *, scratch: Path, prefix: str = "codec/") -> Path:
    """A local folder with a data set's codec, for `load_codec`: its own folder, or a copy in `scratch`.

    Only the two files that a codec consists of are copied, and only if each is at most 2 GiB.

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
    for name in ("codec.json", "model.safetensors"):
        if (num_bytes := store.num_bytes(prefix + name)) > MAX_CODEC_BYTES:
            raise CodecError(f"{store.where(prefix + name)}: {num_bytes} bytes; refused")
        store.download(prefix + name, folder / name)
    return folder
