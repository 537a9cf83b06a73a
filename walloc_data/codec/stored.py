"""The codec that a data set carries, brought to this machine."""

from pathlib import Path

from walloc_data.codec.checkpoints import MAX_CONFIG_BYTES, decoder_files
from walloc_data.codec.tensor_files import MAX_WEIGHTS_BYTES
from walloc_data.errors import CodecError, FormatError
from walloc_data.format import load_json
from walloc_data.storage import Store

__all__ = ["fetch_codec"]


def fetch_codec(store: Store, *, scratch: Path, prefix: str = "codec/", decoders: bool = True) -> Path:
    """A local folder with a data set's codec, for `load_codec`: its own folder, or a copy in `scratch`.

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
    names = ["codec.json", "model.safetensors"]
    for name in names:
        limit = MAX_CONFIG_BYTES if name == "codec.json" else MAX_WEIGHTS_BYTES
        store.download(prefix + name, folder / name, max_bytes=limit)
        if name == "codec.json" and decoders:
            where = store.where(prefix + name)
            try:
                config = load_json((folder / name).read_bytes(), where=where)
            except FormatError as error:
                raise CodecError(str(error)) from error
            names += decoder_files(config, where=where).values()  # names only: no path leads out of the folder
    return folder
