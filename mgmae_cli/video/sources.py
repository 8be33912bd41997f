"""The clip sources that read files: one video, a folder of videos, a list file.

Raw-frame folders are read through lists. Videos that can't be read are skipped by the loader, so a list with some
missing files still trains; one whose files are all missing is refused at once, since its paths are wrong.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field, model_validator

from mgmae_cli.errors import DataError, did_you_mean
from mgmae_cli.interfaces import Clip, ClipRequest, ClipSource, DataLocation, PluginOptions
from mgmae_cli.video.decode import DecoderName, read_clip
from mgmae_cli.video.frame_cache import FrameCache
from mgmae_cli.video.list_file import VIDEO_EXTENSIONS, Columns, Entry, Form, number_labels, read_list
from mgmae_cli.video.raw_frames import holds_images, read_frames
from mgmae_cli.video.sampling import frame_indices

_CACHE_GB = 20.0
LIST_EXTENSIONS = frozenset({".txt", ".csv", ".tsv", ".lst", ".list"})


class FileOptions(PluginOptions):
    decoder: DecoderName = Field("auto", description="opencv, decord, or auto: opencv where it was built with FFmpeg")
    threads: int = Field(1, ge=1, description="decoder threads per loader process")
    cache: Path | None = Field(None, description="folder where decoded frames of videos are kept; null: nowhere")
    cache_gb: float = Field(_CACHE_GB, gt=0, description="size up to which `cache` is filled; the rest is decoded")

    @model_validator(mode="after")
    def _limits_something(self) -> FileOptions:
        if self.cache is None and self.cache_gb != _CACHE_GB:
            raise ValueError(f"cache_gb = {self.cache_gb:g} needs data.options.cache: the folder that it limits")
        return self


class FileSource(ClipSource):
    """Base of the sources whose videos are files."""

    class Options(FileOptions):
        """Options of all sources that read files."""

    options: FileOptions

    def __init__(self, options: FileOptions, location: DataLocation) -> None:
        super().__init__(options, location)
        self._read = read_clip
        if options.cache is not None:
            self._read = FrameCache(options.cache, int(options.cache_gb * 1e9)).read

    @abstractmethod
    def entry(self, index: int) -> Entry:
        """Return where video `index` is; its path is absolute or relative to the working directory."""

    def clip_name(self, index: int) -> str:
        return self.entry(index).path

    def load(self, index: int, request: ClipRequest) -> Clip:
        entry = self.entry(index)
        path, name = Path(entry.path), entry.path
        if path.is_dir():
            frames = read_frames(
                path,
                lambda total: frame_indices(request, total, name),
                start=entry.start,
                total=entry.total,
                min_side=request.min_side,
            )
        else:
            first = entry.start or 0

            def choose(total: int) -> list[int]:
                available = max(total - first, 0)
                listed = available if entry.total is None else min(entry.total, available)
                return [first + index for index in frame_indices(request, listed, name)]

            frames = self._read(
                path, choose, decoder=self.options.decoder, threads=self.options.threads, min_side=request.min_side
            )
        return Clip(frames, name, self.label(index))


class VideoSource(FileSource):
    """One video file."""

    name = "video"

    def __init__(self, options: FileOptions, location: DataLocation) -> None:
        super().__init__(options, location)
        self._entry = Entry(0, str(_existing(location, "a video file")))

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.is_file() and path.suffix.lower() in VIDEO_EXTENSIONS

    def __len__(self) -> int:
        return 1

    def entry(self, index: int) -> Entry:
        return self._entry


class FolderSource(FileSource):
    """All videos below a folder, in the order of their paths; hidden files and folders are left out.

    Where every video lies in a folder directly below, as in `jumping/a.mp4`, and there are at least two such folders,
    these are the classes. Otherwise there are no labels.
    """

    name = "folder"

    def __init__(self, options: FileOptions, location: DataLocation) -> None:
        super().__init__(options, location)
        folder = _existing(location, "a folder of videos")
        if not folder.is_dir():
            raise DataError(f"data.path = {folder}: source 'folder' needs a folder, and this is a file")
        self._paths = _videos_below(folder)
        if not self._paths:
            raise DataError(_nothing_in(folder))
        parents = [Path(path).parent for path in self._paths]
        names = sorted({parent.name for parent in parents})
        labelled = len(names) > 1 and all(parent.parent == folder for parent in parents)
        self._classes = names if labelled else None
        self._labels = [names.index(parent.name) for parent in parents] if labelled else None

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.is_dir()

    def __len__(self) -> int:
        return len(self._paths)

    def entry(self, index: int) -> Entry:
        return Entry(0, self._paths[index])

    @property
    def classes(self) -> Sequence[str] | None:
        return self._classes

    def label(self, index: int) -> int | None:
        return self._labels[index] if self._labels else None


class ListSource(FileSource):
    """The videos and raw-frame folders that a list file names; see `mgmae_cli.video.list_file` for its forms.

    Relative paths start from `data.root`, or else from the list's folder.
    """

    name = "list"

    class Options(FileOptions):
        columns: Form | None = Field(None, description="fields of a list without a header, where not what they seem")
        path_column: str | None = Field(
            None, description="a header's name for the path; default: path, video, file, ..."
        )
        label_column: str = Field("label", description="a header's name for the label")
        split_column: str = Field("split", description="a header's name for the split")
        group_column: str = Field("group", description="a header's name for what must not straddle splits: a session")
        split: str | None = Field(None, description="use only the lines with this value in the split column")
        classes: tuple[str, ...] = Field((), description="class names in the order of their numbers; default: A to Z")

    options: Options

    def __init__(self, options: Options, location: DataLocation) -> None:
        super().__init__(options, location)
        self._file = _existing(location, "a list file")
        self._base = location.root or self._file.parent
        columns = Columns(options.path_column, options.label_column, options.split_column, options.group_column)
        entries, header = read_list(self._file, options.columns, columns)
        self._check_columns(header)
        self._classes, numbers = number_labels(self._file, entries, options.classes)
        keep = self._in_split(entries)
        self._entries = [entries[index] for index in keep]
        self._labels = [numbers[index] for index in keep]
        self._check_files()

    def _check_columns(self, header: Sequence[str] | None) -> None:
        """Refuse options that name a column which is not there."""
        known = [name.casefold() for name in header or ()]
        options = self.options
        named = {
            "split_column": options.split_column if options.split is not None else None,
            "label_column": options.label_column if options.label_column != "label" else None,
            "group_column": options.group_column if options.group_column != "group" else None,
        }
        for key, column in named.items():
            if column is not None and column.casefold() not in known:
                what = (
                    f"its columns are {', '.join(header)}" if header else "it has no header that names the path column"
                )
                near = did_you_mean(column, header or ())
                raise DataError(f"{self._file}: no column {column!r} (data.options.{key}): {what}{near}")

    def _in_split(self, entries: Sequence[Entry]) -> list[int]:
        split = self.options.split
        if split is None:
            return list(range(len(entries)))
        keep = [index for index, entry in enumerate(entries) if entry.split == split]
        if not keep:
            known = sorted({entry.split or "" for entry in entries})
            listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            near = did_you_mean(split, known)
            raise DataError(
                f"{self._file}: no line has split {split!r}{near}; column {self.options.split_column!r} has {listed}"
            )
        return keep

    def _check_files(self) -> None:
        """Refuse a list of which no file exists; stops looking at the first that does."""
        if any(Path(self.clip_name(index)).exists() for index in range(len(self))):
            return
        first = ", ".join(self.clip_name(index) for index in range(min(3, len(self))))
        raise DataError(
            f"{self._file}: none of its {len(self)} videos exists; the first: {first}; "
            f"relative paths start from {self._base}: set data.root to the folder they start from"
        )

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.is_file() and (path.suffix.lower() in LIST_EXTENSIONS or not path.suffix)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, index: int) -> Entry:
        listed = self._entries[index]
        return replace(listed, path=str(self._base / listed.path))

    @property
    def classes(self) -> Sequence[str] | None:
        return self._classes

    def label(self, index: int) -> int | None:
        return self._labels[index] if self._labels[index] >= 0 else None

    def group(self, index: int) -> str | None:
        return self._entries[index].group


def _existing(location: DataLocation, what: str) -> Path:
    if location.path is None:
        raise DataError(f"data.path is not set; give {what}, as in --data PATH")
    if not location.path.exists():
        raise DataError(f"data.path = {location.path}: no such file or folder; expected {what}")
    return location.path


def _videos_below(folder: Path) -> list[str]:
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        videos = [name for name in files if not name.startswith(".")]
        found += [os.path.join(place, name) for name in videos if Path(name).suffix.lower() in VIDEO_EXTENSIONS]  # noqa: PTH118
    return sorted(found)


def _nothing_in(folder: Path) -> str:
    looked = " ".join(sorted(VIDEO_EXTENSIONS))
    images = any(holds_images(Path(place)) for place, _, _ in os.walk(folder))
    hint = "; it holds images: name raw-frame folders in a list file" if images else ""
    return f"data.path = {folder}: no videos in it or below{hint}; looked for {looked}"
