"""List files: the official forms, headers, separators, and what is said about lines that don't fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgmae_cli.errors import DataError
from mgmae_cli.video.list_file import FORMS, Columns, Entry, number_labels, read_list

Fields = tuple[str, int | None, int | None, str | None]  # path, start, total, label


def write(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    file = tmp_path / "list.txt"
    file.write_bytes(text.encode(encoding))
    return file


def fields(entries: list[Entry]) -> list[Fields]:
    return [(entry.path, entry.start, entry.total, entry.label) for entry in entries]


def parsed(tmp_path: Path, text: str, **options: object) -> list[Fields]:
    return fields(read_list(write(tmp_path, text), **options)[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("separator", [" ", "  ", ",", ", ", "\t"])
def test_the_official_forms_are_understood_whatever_separates_them(tmp_path: Path, separator: str) -> None:
    def text(*lines: tuple[str, ...]) -> str:
        return "\n".join(separator.join(line) for line in lines)

    assert parsed(tmp_path, text(("k/a.mp4",), ("k/b.mp4",))) == [
        ("k/a.mp4", None, None, None),
        ("k/b.mp4", None, None, None),
    ]
    assert parsed(tmp_path, text(("k/a.mp4", "325"), ("k/b.webm", "0"))) == [
        ("k/a.mp4", None, None, "325"),
        ("k/b.webm", None, None, "0"),
    ]
    assert parsed(tmp_path, text(("k/a.mp4", "0", "-1"), ("ssv2/78687", "1", "117"))) == [
        ("k/a.mp4", 0, None, None),
        ("ssv2/78687", 1, 117, None),
    ]
    assert parsed(tmp_path, text(("ssv2/78687", "117", "5"), ("ssv2/42326", "1", "0"))) == [
        ("ssv2/78687", None, 117, "5"),
        ("ssv2/42326", None, 1, "0"),
    ]
    assert parsed(
        tmp_path,
        text(
            ("ava/x", "1", "60", "7"),
        ),
    ) == [("ava/x", 1, 60, "7")]


def test_three_fields_can_be_told_what_they_are(tmp_path: Path) -> None:
    text = "ava/x 900 60\nava/y 1 80\n"
    assert parsed(tmp_path, text) == [("ava/x", None, 900, "60"), ("ava/y", None, 1, "80")]
    assert parsed(tmp_path, text, form="path start total") == [("ava/x", 900, 60, None), ("ava/y", 1, 80, None)]


def test_paths_may_hold_spaces_and_commas_and_be_quoted(tmp_path: Path) -> None:
    assert parsed(tmp_path, "my videos/a b.mp4 3\nc.mp4 4\n") == [
        ("my videos/a b.mp4", None, None, "3"),
        ("c.mp4", None, None, "4"),
    ]
    assert parsed(tmp_path, "raw frames/a b 12 3\n") == [("raw frames/a b", None, 12, "3")]
    assert parsed(tmp_path, "a, or b.mp4 3\n") == [("a, or b.mp4", None, None, "3")]
    assert parsed(tmp_path, '"a, or b.mp4",3\n') == [("a, or b.mp4", None, None, "3")]
    assert parsed(tmp_path, "\"a b\" 3\n'c d' 4\n") == [("a b", None, None, "3"), ("c d", None, None, "4")]
    assert parsed(tmp_path, "a b\tjumping high\n") == [("a b", None, None, "jumping high")]
    assert parsed(tmp_path, "a b.mp4\n", form="path") == [("a b.mp4", None, None, None)]


def test_labels_may_be_names(tmp_path: Path) -> None:
    assert parsed(tmp_path, "a.mp4 high jump\nb.mp4 run\n") == [
        ("a.mp4", None, None, "high jump"),
        ("b.mp4", None, None, "run"),
    ]
    assert parsed(tmp_path, "frames/a run\n") == [("frames/a", None, None, "run")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_windows_line_ends_byte_order_marks_blank_lines_and_comments_do_no_harm(tmp_path: Path, encoding: str) -> None:
    file = write(tmp_path, "# my list\r\n\r\nä.mp4 1\r\nb.mp4 2  \r\n   \r\n", encoding)
    entries, header = read_list(file)
    assert header is None
    assert fields(entries) == [("ä.mp4", None, None, "1"), ("b.mp4", None, None, "2")]
    assert [entry.line for entry in entries] == [3, 4]


def test_columns_with_a_header_are_taken_by_name(tmp_path: Path) -> None:
    text = "id,Label,video_path,split,note\n1,run,a.mp4,train,x\n2,,b c.mp4,val,y\n"
    entries, header = read_list(write(tmp_path, text))
    assert header == ["id", "Label", "video_path", "split", "note"]
    assert fields(entries) == [("a.mp4", None, None, "run"), ("b c.mp4", None, None, None)]
    assert [entry.split for entry in entries] == ["train", "val"]
    text = "where\tclass\tfold\tstart\ttotal\na\trun\t1\t1\t30\nb\tjump\t2\t\t-1\n"
    entries, _ = read_list(write(tmp_path, text), columns=Columns("where", "class", "fold"))
    assert fields(entries) == [("a", 1, 30, "run"), ("b", None, None, "jump")]
    assert [entry.split for entry in entries] == ["1", "2"]
    assert parsed(tmp_path, "path label\na.mp4 3\n") == [("a.mp4", None, None, "3")]


def test_a_folder_that_is_called_like_a_column_is_no_header(tmp_path: Path) -> None:
    assert parsed(tmp_path, "video 1 117\nfile 1 90\n") == [("video", 1, 117, None), ("file", 1, 90, None)]


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("a.mp4 1\nb.mp4\n", 2, "expected `path label` as in line 1, separated by spaces"),
        ("a.mp4 1\nb.mp4 1 2\n", 2, "expected `path label` as in line 1"),
        ("a.mp4,1\nb.mp4 2\n", 2, "expected `path label` as in line 1, separated by commas"),
        ("a.mp4\t1\n\nb.mp4,2\n", 3, "expected `path label` as in line 1, separated by tabs"),
        ("a,1,2,3,4\n", 1, "expected `path`, `path label`, `path start total`, `path total label` or `path start"),
        ("a.mp4 0 -1\nb.mp4 x -1\n", 2, "expected `path start total` as in line 1"),
        ("a.mp4,-2,30\nb.mp4,0,-1\n", 1, "expected `path`, `path label`"),
        (",3\n", 1, "expected `path`"),
        ("path,label\na.mp4,1\nb.mp4\n", 3, "expected 2 fields as in the header, got 1"),
        ("path,total\na.mp4,many\n", 2, "expected a whole number in column 'total'"),
        ("path,label\n,1\n", 2, "expected a path in column 'path'"),
        ("path,Path\na,b\n", 1, "two columns have one name"),
    ],
)
def test_a_line_that_does_not_fit_is_shown_with_what_was_expected(
    tmp_path: Path, text: str, line: int, expected: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_list(file)
    assert str(caught.value).startswith(f"{file}, line {line}: ")
    assert expected in str(caught.value)
    assert repr(text.splitlines()[line - 1]) in str(caught.value)


def test_files_that_are_no_lists_are_refused(tmp_path: Path) -> None:
    for content, expected in (
        (b"", r"holds no videos; expected `path`, "),
        (b"\n# nothing\n", "holds no videos"),
        (b"path,label\n", "holds a header and no videos"),
        (b"\xff\x00\x80\x81", "is not a text file in UTF-8"),
        (b"a\0b\n", "is not a text file"),
    ):
        file = tmp_path / "list.csv"
        file.write_bytes(content)
        with pytest.raises(DataError, match=expected):
            read_list(file)
    with pytest.raises(DataError, match="No such file"):
        read_list(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="Is a directory"):
        read_list(tmp_path)


def test_every_form_can_be_asked_for(tmp_path: Path) -> None:
    for form in FORMS:
        names = form.split()
        text = " ".join({"path": "a/b", "label": "3", "start": "1", "total": "9"}[name] for name in names)
        expected = ("a/b", 1 if "start" in names else None, 9 if "total" in names else None)
        assert parsed(tmp_path, text, form=form) == [(*expected, "3" if "label" in names else None)]


def labelled(*labels: str | None) -> list[Entry]:
    return [Entry(line, f"{line}.mp4", label=label) for line, label in enumerate(labels, 1)]


def test_whole_numbers_are_the_class_numbers() -> None:
    file = Path("l.csv")
    assert number_labels(file, labelled("2", "0", "-1", None)) == (["0", "1", "2"], [2, 0, -1, -1])
    assert number_labels(file, labelled("1"), ["a", "b", "c"]) == (["a", "b", "c"], [1])
    assert number_labels(file, labelled("-1")) == (None, [-1])
    with pytest.raises(DataError, match=r"l\.csv, line 2: label 3: data\.options\.classes names 2"):
        number_labels(file, labelled("1", "3"), ["a", "b"])
    with pytest.raises(DataError, match=r"l\.csv, line 1: label 1690000000: expected a class number"):
        number_labels(file, labelled("1690000000"))


def test_names_are_numbered_by_the_alphabet_or_as_given() -> None:
    file = Path("l.csv")
    assert number_labels(file, labelled("run", "jump", None)) == (["jump", "run"], [1, 0, -1])
    assert number_labels(file, labelled("run", "jump"), ["run", "sit", "jump"]) == (["run", "sit", "jump"], [0, 2])
    assert number_labels(file, labelled("10", "run")) == (["10", "run"], [0, 1])
    with pytest.raises(DataError, match=r"line 2: label 'jmp' is not in data\.options\.classes \(did you mean 'jump'"):
        number_labels(file, labelled("run", "jmp"), ["run", "jump"])


def test_no_labels_give_no_classes() -> None:
    assert number_labels(Path("l.csv"), labelled(None, None)) == (None, [-1, -1])
