"""Tars in an object store. Each is a fragment, which a worker downloads to a temporary file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from walloc_data.errors import SourceError, StorageError
from walloc_data.sources.base import Sample, Source, fingerprint
from walloc_data.sources.reading import unreadable
from walloc_data.sources.tar_folders import folder_of
from walloc_data.sources.tar_members import DamagedTarError, Group, TarScan, groups, groups_in
from walloc_data.sources.tar_samples import (
    CLASS_NAME_FILES,
    FOLDER,
    MAX_META_BYTES,
    Layout,
    Reader,
    image_extension,
    layout_of,
    left_out_members,
    lines_of,
    misplaced_labels,
    no_picture,
    parse_meta,
    picture_of,
)
from walloc_data.storage import Store

__all__ = ["RemoteTars"]

HEAD_SAMPLES = 16  # samples read from a tar when the source is opened
HEAD_TARS = 4  # tars that are tried until one has a picture
RANGE_BYTES = 2**16
DOWNLOADS = 3  # of a tar that arrives with another length than its listing said


class RemoteTars(Source):
    """Source of remote tars, each of which is a fragment.

    Opening it reads only the beginnings of the first and the last tar, by ranges. The first sample with a picture
    determines the columns. Folders are classes under the conditions of `TarSource`, if a file of class names next to
    the tars lists them, because the beginnings of tars do not.
    """

    kind = "wds-remote"
    num_items = None

    def __init__(
        self,
        urls: list[str],
        *,
        location: str,
        image_column: str | None = None,
        label_column: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.location = location
        self.num_fragments = len(urls)
        self._urls = urls
        self._stores = {
            folder: Store(folder, storage_options=storage_options)
            for folder in dict.fromkeys(url.rpartition("/")[0] for url in urls)
        }
        try:
            self._list()
            names = self._class_names()
            layout, others = self._find_layout(names, image=image_extension(image_column), label=label_column)
        except StorageError as error:
            raise SourceError(f"{location}: {error}") from error
        bare = label_column is None and layout.label_from is None and not (layout.reads_json or layout.reads_text)
        folders = sorted({"/".join(folder_of(group.key)) for group in others} - {""})
        if layout.label_from == FOLDER or (bare and (len(folders) > 1 or _are_named(folders, names))):
            layout = replace(layout, label_from=FOLDER)
            if not _are_named(folders, names):
                raise SourceError(
                    f"{location}: its pictures are in folders, e.g. {others[0].key!r}, and the folders of remote tars "
                    "are not known in advance: put a file classnames.txt with their names, one per line, next to the "
                    "tars; or encode without labels with label_column='none' (--label-column none)"
                )
        elif bare and folders:
            self.notes += (
                f"without labels: in the first and the last tar, all pictures are in one folder, {folders[0]!r}; with "
                "a file classnames.txt next to the tars, folders are classes",
            )
        self._layout, self._refuses_labels = layout, label_column is None and layout.label_from != "cls"
        self._numbers = {name: index for index, name in enumerate(names or ())}
        self.labelled = layout.label_from is not None
        self.class_names = names if self.labelled else None
        self.columns = layout.columns
        sizes: Sequence[int | None] = self.fragment_bytes or [None] * len(urls)
        self.identity = fingerprint(
            [
                image_column,
                layout.label_from,
                *((url.rpartition("/")[2], n) for url, n in zip(urls, sizes, strict=True)),
            ]
        )

    def _place(self, fragment: int) -> tuple[Store, str]:
        folder, _, name = self._urls[fragment].rpartition("/")
        return self._stores[folder], name

    def _list(self) -> None:
        """Get lengths and ETags from listings, if the store has listings, so that missing tars are found early."""
        listings = {
            folder: None if folder.startswith(("http://", "https://")) else store.entries()
            for folder, store in self._stores.items()
        }
        sizes: list[int] = []
        self._etags: dict[int, str] = {}
        for fragment, url in enumerate(self._urls):
            folder, _, name = url.rpartition("/")
            listing = listings[folder]
            if listing is None:
                continue
            if name not in listing:
                raise SourceError(f"{self.location}: no such file: {url}")
            num_bytes, etag = listing[name]
            sizes += [] if num_bytes is None else [num_bytes]
            if etag is not None:
                self._etags[fragment] = etag
        if len(sizes) == len(self._urls):
            self.fragment_bytes = sizes

    def _class_names(self) -> tuple[str, ...] | None:
        store, _ = self._place(0)
        for name in CLASS_NAME_FILES:
            if store.exists(name):
                return lines_of(store.read_bytes(name, max_bytes=MAX_META_BYTES))
        return None

    def _find_layout(
        self, names: tuple[str, ...] | None, *, image: str | None, label: str | None
    ) -> tuple[Layout, list[Group]]:
        """Return the layout, and samples with pictures from the beginnings of the first and the last tar."""
        first: tuple[str, Group] | None = None
        for fragment in range(min(HEAD_TARS, len(self._urls))):
            url = self._urls[fragment]
            found, ranges = self._head(fragment)
            pictures = [group for group in found if picture_of(group, image) is not None and group.problem is None]
            first = first or next(((url, group) for group in found), None)
            if not pictures:
                continue
            meta: dict[str, Any] = {}
            if span := pictures[0].members.get("json"):
                try:
                    if span[1] > MAX_META_BYTES:
                        raise ValueError(f"its JSON has {span[1]} bytes; at most {MAX_META_BYTES} are read")
                    meta = parse_meta(ranges.read(*span))
                except (ValueError, RecursionError) as error:
                    raise SourceError(f"{url}: the first sample, {pictures[0].key!r}: {error}") from error
            layout = layout_of(pictures[0], meta, context=url, names=names, image=image, label=label)
            number = sum("cls" in group.members for group in found)
            if number and layout.label_from != "cls" and label is None:
                raise misplaced_labels(url, number)
            last = self._head(len(self._urls) - 1)[0] if fragment < len(self._urls) - 1 else []
            return layout, pictures + [group for group in last if picture_of(group, image) is not None]
        if first is None:
            raise SourceError(f"{self._urls[0]}: no samples, or damaged")
        raise no_picture(*first, image)

    def _head(self, fragment: int) -> tuple[list[Group], "_Ranges"]:
        """Return the first samples of a tar (none if it is damaged there), and a reader for the rest of it."""
        store, name = self._place(fragment)
        try:
            num_bytes = self.fragment_bytes[fragment] if self.fragment_bytes else store.num_bytes(name)
        except StorageError:
            if store.local_path is not None or not store.exists(name):
                raise
            num_bytes = 2**62  # the server does not report lengths
        ranges = _Ranges(store, name)
        found: list[Group] = []
        try:
            # The last of them may be truncated by the end of the range.
            for group in islice(groups_in(ranges.read, num_bytes=num_bytes, context=name), HEAD_SAMPLES):
                found.append(group)
        except DamagedTarError as error:
            if not found and fragment == 0 and len(self._urls) == 1:
                raise SourceError(str(error)) from error
        return found, ranges

    def fragment_name(self, fragment: int) -> str:
        return self._urls[fragment].rpartition("/")[2]

    def fragment_version(self, fragment: int) -> str | None:
        etag = self._etags.get(fragment)
        return _version(etag) if etag is not None else self._version_now(fragment)

    def _version_now(self, fragment: int) -> str | None:
        store, name = self._place(fragment)
        try:
            etag = store.etag(name)
        except StorageError as error:
            raise unreadable(self._urls[fragment], error) from error
        return _version(etag) if etag is not None else None

    def read_fragment(self, fragment: int, *, scratch: Path) -> Iterator[Sample]:
        url, (_, name) = self._urls[fragment], self._place(fragment)
        path = scratch / "source.tar"
        reader, scan = Reader(self._layout), TarScan()
        try:
            self._download(fragment, path)
            version = self._version_now(fragment) or "a tar without an ETag"
            for group in groups(path, context=url, scan=scan):
                if self._refuses_labels and "cls" in group.members:
                    raise misplaced_labels(f"{url}: sample {group.key!r}", 1)
                label = next(
                    (self._numbers[part] for part in folder_of(group.key)[::-1] if part in self._numbers), None
                )
                sample = reader.sample(
                    str(path), group, name=f"{name}/{group.key}", folder_label=label, version=version
                )
                yield replace(sample, left_out=sample.left_out + self._left_out(group, scan))
        except DamagedTarError as error:
            yield Sample(name, b"", problem=str(error).removeprefix(f"{url}: "), columns=dict.fromkeys(self.columns))
        finally:
            reader.tars.close()
            path.unlink(missing_ok=True)

    def _download(self, fragment: int, path: Path) -> None:
        """Fetch a tar whole, again if less or more arrives than its listing said: it would look like a damaged tar.

        Raises:
            UnreadableError: the store failed, or all tries had another length.
        """
        url, (store, name) = self._urls[fragment], self._place(fragment)
        expected = self.fragment_bytes[fragment] if self.fragment_bytes else None
        for _ in range(DOWNLOADS):
            try:
                store.download(name, path)
            except StorageError as error:
                raise unreadable(url, error) from error
            if expected in (None, num_bytes := path.stat().st_size):
                return
        raise unreadable(url, f"{num_bytes} of {expected} bytes arrived")

    def _left_out(self, group: Group, scan: TarScan) -> tuple[str, ...]:
        """Return a group's unused members, and other members of the tar since the previous group."""
        members = left_out_members(group, self._layout) if picture_of(group, self._layout.image_column) else []
        passed = [*scan.strays.elements(), *scan.special.elements()]
        scan.strays.clear()
        scan.special.clear()
        return (*(f"member {name}" for name in members), *(f"member {name}, not a sample's" for name in passed))


class _Ranges:
    """Remote file that is read in parts, the last of which is kept."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name, self._start, self._data = store, name, 0, b""

    def read(self, start: int, num_bytes: int) -> bytes:
        end = start + num_bytes
        if not self._start <= start <= end <= self._start + len(self._data):
            self._data = self._store.read_range(self._name, start=start, num_bytes=max(num_bytes, RANGE_BYTES))
            self._start = start
        return self._data[start - self._start : end - self._start]


def _are_named(folders: list[str], names: tuple[str, ...] | None) -> bool:
    """Return whether class names hold the name of some folder."""
    return names is not None and any(set(folder.split("/")) & set(names) for folder in folders)


def _version(etag: str) -> str:
    return f"a tar with the ETag {etag}"
