"""Read list files: one video or raw-frame folder a line, with or without a header.

Without a header, a line is one of the official forms (VideoMAE, VideoMAE V2, MGMAE); all lines of a file have the same:

    path                     pre-training or testing without labels
    path label               fine-tuning on videos; the label is a number or a name
    path start total         pre-training; `video 0 -1`, or `folder 1 117` for raw frames img_00001 to img_00117
    path total label         fine-tuning on raw frames
    path start total label   the four items that VideoMAE V2's documentation names

Three fields mean `path start total` where every start is 0 or 1 or a total is -1, otherwise `path total label`; the
`columns` argument settles it where that is wrong. With a header (a first line that names a path column) columns are
taken by name and others are kept for filtering. Fields are separated by tabs, commas or spaces, and may be quoted.
With spaces, a path may itself hold spaces: it ends with the last video extension, or before the trailing numbers.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mgmae_cli.errors import DataError, did_you_mean

VIDEO_EXTENSIONS = frozenset(
    f".{ending}"
    for ending in re.findall(
        r"\w+",
        "mp4 m4v mov mkv webm avi divx flv f4v wmv asf mpg mpeg m2v vob ts mts m2ts 3gp 3g2 ogv gif mxf y4m",
    )
)
Form = Literal["path", "path label", "path start total", "path total label", "path start total label"]
FORMS: tuple[Form, ...] = get_args(Form)
PATH_NAMES = ("path", "video", "video_path", "file", "filename", "file_path", "filepath")
_NAMES_VIDEO = re.compile(
    r"\.(?:" + "|".join(sorted(ext[1:] for ext in VIDEO_EXTENSIONS)) + r")(?=$|\s)", re.IGNORECASE
)
_MOST_CLASSES = 1_000_000  # labels above are something else: a time, an id
_INTEGER = re.compile(r"[+-]?\d+")
_EXPECTED = "expected " + ", ".join(f"`{form}`" for form in FORMS[:-1]) + f" or `{FORMS[-1]}`"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list. `start`, `total` and `label` are None where the line doesn't say."""

    line: int
    path: str
    start: int | None = None
    total: int | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Columns:
    """How a header may name the columns."""

    path: str | None = None  # None: any of PATH_NAMES
    label: str = "label"
    split: str = "split"
    group: str = "group"
    start: str = "start"
    total: str = "total"


def read_list(
    file: Path, form: str | None = None, columns: Columns = Columns()
) -> tuple[list[Entry], list[str] | None]:
    """Return a list file's entries, and the column names of its header (None without one).

    Args:
        form: what the lines of a list without a header hold; None: found out from the lines.

    Raises:
        DataError: the file can't be read, is empty, or has a line that does not fit, named with what was expected.
    """
    lines = _lines(file)
    first = lines[0]
    for delimiter in ("\t", ",", " "):
        header = _fields(first[1], delimiter)
        if _is_header(header, columns):
            return _with_header(file, lines, delimiter, header, columns), header
    if columns.path is not None:
        near = did_you_mean(columns.path, re.split(r"[\t,]\s*|\s+", first[1]))
        raise DataError(f"{file}, line {first[0]}: {first[1]!r}: names no column {columns.path!r}{near}")
    delimiter = _delimiter(first[1])
    rows = [(number, text, _row(text, delimiter, form)) for number, text in lines]
    form = form or _infer_form([row for _, _, row in rows])
    entries = []
    for number, text, row in rows:
        entry = None if row is None or form is None else _entry(number, row, form.split())
        if entry is None:
            wanted = f"`{form}` as in line {first[0]}" if form and number != first[0] else _EXPECTED.partition(" ")[2]
            separated = {"\t": "tabs", ",": "commas", " ": "spaces"}[delimiter]
            raise DataError(f"{file}, line {number}: {text!r}: expected {wanted}, separated by {separated}")
        entries.append(entry)
    return entries, None


def number_labels(
    file: Path, entries: Sequence[Entry], names: Sequence[str] = ()
) -> tuple[list[str] | None, list[int]]:
    """Return class names in the order of their numbers (None without labels), and each entry's number, -1 for none.

    Labels that are all whole numbers are the class numbers (negative: none). Otherwise they are names, numbered in the
    order of `names`, or of the alphabet.

    Raises:
        DataError: a label is not among `names`.
    """
    labels = {entry.label for entry in entries if entry.label is not None}
    if not labels:
        return None, [-1] * len(entries)
    if all(_INTEGER.fullmatch(label) for label in labels):
        numbers = [-1 if entry.label is None else max(int(entry.label), -1) for entry in entries]
        if max(numbers) >= _MOST_CLASSES:
            line = entries[numbers.index(max(numbers))].line
            raise DataError(f"{file}, line {line}: label {max(numbers)}: expected a class number, counted from 0")
        classes = list(names) or [str(number) for number in range(max(numbers) + 1)]
        for entry, number in zip(entries, numbers):
            if number >= len(classes):
                raise DataError(f"{file}, line {entry.line}: label {number}: data.options.classes names {len(classes)}")
        return classes or None, numbers
    classes = list(names) or sorted(labels)
    by_name = {name: number for number, name in enumerate(classes)}
    for entry in entries:
        if entry.label is not None and entry.label not in by_name:
            near = did_you_mean(entry.label, classes)
            raise DataError(f"{file}, line {entry.line}: label {entry.label!r} is not in data.options.classes{near}")
    return classes, [-1 if entry.label is None else by_name[entry.label] for entry in entries]


def _lines(file: Path) -> list[tuple[int, str]]:
    """Return (line number, text) of the lines that are neither blank nor comments."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or type(error).__name__}") from None
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file}: is not a text file in UTF-8, so not a list of videos") from None
    if "\0" in text:
        raise DataError(f"{file}: is not a text file, so not a list of videos")
    numbered = [(number, line.strip(" \r\f\v")) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in numbered if line.strip() and not line.startswith("#")]
    if not lines:
        raise DataError(f"{file}: holds no videos; {_EXPECTED} in each line")
    return lines


def _fields(text: str, delimiter: str) -> list[str]:
    """Split a line, honouring quotes; fields lose the space around them."""
    row = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [])
    return [field.strip() for field in row]


def _is_header(fields: Sequence[str], columns: Columns) -> bool:
    wanted = (columns.path.casefold(),) if columns.path else PATH_NAMES
    return any(field.casefold() in wanted for field in fields) and not any(map(_INTEGER.fullmatch, fields))


def _with_header(
    file: Path, lines: Sequence[tuple[int, str]], delimiter: str, header: Sequence[str], columns: Columns
) -> list[Entry]:
    at = {name.casefold(): position for position, name in enumerate(header)}
    if len(at) < len(header):
        raise DataError(f"{file}, line {lines[0][0]}: {lines[0][1]!r}: two columns have one name")
    path_at = next(at[name] for name in ((columns.path or "").casefold(), *PATH_NAMES) if name in at)
    entries = []
    for number, text in lines[1:]:
        fields = _fields(text, delimiter)
        if len(fields) != len(header):
            raise DataError(
                f"{file}, line {number}: {text!r}: expected {len(header)} fields as in the header, got {len(fields)}"
            )

        def value(name: str, fields: Sequence[str] = fields) -> str | None:
            return fields[at[name.casefold()]] or None if name.casefold() in at else None

        numbers: Mapping[str, str | None] = {name: value(name) for name in (columns.start, columns.total)}
        for name, said in numbers.items():
            if said is not None and not _INTEGER.fullmatch(said):
                raise DataError(f"{file}, line {number}: {text!r}: expected a whole number in column {name!r}")
        start, total = (None if said is None else int(said) for said in numbers.values())
        if not fields[path_at]:
            raise DataError(f"{file}, line {number}: {text!r}: expected a path in column {header[path_at]!r}")
        whole = None if total is None or total < 0 else total
        label, split, group = value(columns.label), value(columns.split), value(columns.group)
        entries.append(Entry(number, fields[path_at], start, whole, label, split, group))
    if not entries:
        raise DataError(f"{file}: holds a header and no videos")
    return entries


def _delimiter(text: str) -> str:
    """Return the separator of a line without header: the first that leaves no video's name behind the path."""
    for delimiter in ("\t", ","):
        if delimiter in text and not any(_NAMES_VIDEO.search(field) for field in _fields(text, delimiter)[1:]):
            return delimiter
    return " "


def _row(text: str, delimiter: str, form: str | None) -> list[str] | None:
    """Split a line without header into the path and one to three fields after it; None where it can't be."""
    if delimiter != " " or text.startswith(('"', "'")):
        quoted = text if delimiter != " " or text.startswith('"') else text.replace("'", '"', 2)
        return [field for position, field in enumerate(_fields(quoted, delimiter)) if field or position == 0]
    if form is not None:
        return text.rsplit(None, len(form.split()) - 1)
    video = list(_NAMES_VIDEO.finditer(text))
    if video:
        path, rest = text[: video[-1].end()], text[video[-1].end() :].split()
        return [path, *rest] if all(map(_INTEGER.fullmatch, rest)) else [path, " ".join(rest)]
    words = text.split()
    numbers = 0
    while numbers < min(3, len(words) - 1) and _INTEGER.fullmatch(words[-1 - numbers]):
        numbers += 1
    if numbers == 0 and len(words) == 2:  # a raw-frame folder and the name of its class
        return words
    return text.rsplit(None, numbers) if numbers else [text]


def _infer_form(rows: Sequence[list[str] | None]) -> Form | None:
    first = rows[0]
    if first is None or len(first) > 4:
        return None
    if len(first) != 3:
        by_length: dict[int, Form] = {1: "path", 2: "path label", 4: "path start total label"}
        return by_length[len(first)]
    pairs = [row[1:] for row in rows if row is not None and len(row) == 3]
    starts = all(pair[0] in ("0", "1") for pair in pairs) and all(_INTEGER.fullmatch(pair[1]) for pair in pairs)
    return "path start total" if starts or any(pair[1] == "-1" for pair in pairs) else "path total label"


def _entry(line: int, row: Sequence[str], names: Sequence[str]) -> Entry | None:
    """Return the entry of a row, or None where it does not have the form `names`."""
    if len(row) != len(names) or not row[0]:
        return None
    said = dict(zip(names, row))
    if any(name in said and not _INTEGER.fullmatch(said[name]) for name in ("start", "total")):
        return None
    start, total = int(said.get("start", 0)), int(said.get("total", -1))
    if start < 0:
        return None
    return Entry(line, row[0], start if "start" in said else None, total if total >= 0 else None, said.get("label"))
