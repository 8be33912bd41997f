"""The sources that read files: which files they take, their labels, their clips, and their errors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mgmae_cli.errors import DataError, UnreadableClip
from mgmae_cli.interfaces import ClipRequest, ClipSource, DataLocation
from mgmae_cli.seeds import derive_generator
from mgmae_cli.video import plugin
from mgmae_cli.video.sources import FileSource, FolderSource, ListSource, VideoSource


def write_video(path: Path, frames: int = 12) -> Path:
    """Write a video whose grey value is 10 times the frame's number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (32, 24))
    for number in range(frames):
        writer.write(np.full((24, 32, 3), 10 * number, np.uint8))
    writer.release()
    return path


def write_frames(folder: Path, frames: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(1, frames + 1):
        cv2.imwrite(str(folder / f"img_{number:05d}.jpg"), np.full((24, 32, 3), 10 * (number - 1), np.uint8))
    return folder


def request(frames: int = 4, stride: int = 2, **fields: Any) -> ClipRequest:
    return ClipRequest(frames, stride, 16, 16, derive_generator(0), **{"place": 0.0, **fields})


def numbers(source: ClipSource, index: int = 0, **fields: Any) -> list[int]:
    return [round(frame.float().mean().item() / 10) for frame in source.load(index, request(**fields)).frames]


def open_source(kind: type[FileSource], path: Path | None, root: Path | None = None, **options: Any) -> Any:
    return kind(kind.Options(**options), DataLocation(path, root))


def open_list(tmp_path: Path, text: str, root: Path | None = None, **options: Any) -> Any:
    (tmp_path / "list.csv").write_text(text)
    return open_source(ListSource, tmp_path / "list.csv", root, **options)


# --- one video --------------------------------------------------------------------------------------------------------


def test_a_video_is_one_clip_without_a_label(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi")
    source = open_source(VideoSource, path)
    assert len(source) == 1
    assert source.classes is None
    clip = source.load(0, request())
    assert clip.frames.shape == (4, 3, 24, 32)
    assert (clip.name, clip.label) == (str(path), None) == (source.clip_name(0), source.label(0))
    assert numbers(source) == [0, 2, 4, 6]
    assert numbers(source, place=1.0) == [5, 7, 9, 11]
    assert source.load(0, request(min_side=12)).frames.shape == (4, 3, 12, 16)


@pytest.mark.parametrize("kind", [VideoSource, FolderSource, ListSource])
def test_a_path_that_is_missing_or_not_given_is_an_error(kind: type[FileSource], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path = .*gone: no such file or folder; expected a"):
        open_source(kind, tmp_path / "gone")
    with pytest.raises(DataError, match=r"data\.path is not set; give a"):
        open_source(kind, None)


def test_each_path_is_taken_by_one_source(tmp_path: Path) -> None:
    kinds = (VideoSource, FolderSource, ListSource)

    def takers(path: Path) -> list[str]:
        return [kind.name for kind in kinds if kind.accepts(path)]

    for name, expected in (
        ("a.MP4", "video"),
        ("b.webm", "video"),
        ("c.csv", "list"),
        ("d.TXT", "list"),
        ("e", "list"),
    ):
        (tmp_path / name).touch()
        assert takers(tmp_path / name) == [expected]
    assert takers(tmp_path) == ["folder"]
    (tmp_path / "f.mp3").touch()
    assert takers(tmp_path / "f.mp3") == takers(tmp_path / "gone.mp4") == []


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_a_folder_holds_all_videos_below_it_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/deep/er/c.MKV", "a/d.webm", ".hidden.mp4", ".cache/e.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = open_source(FolderSource, tmp_path)
    names = [source.clip_name(index) for index in range(len(source))]
    assert names == [str(tmp_path / name) for name in ("a/d.webm", "a/deep/er/c.MKV", "b.mp4")]
    assert source.classes is None
    assert source.label(0) is None


def test_sub_folders_that_hold_all_videos_are_the_classes(tmp_path: Path) -> None:
    for name in ("run/a.avi", "jump/b.avi", "run/c.avi"):
        write_video(tmp_path / name)
    source = open_source(FolderSource, tmp_path)
    assert source.classes == ["jump", "run"]
    assert [source.label(index) for index in range(3)] == [0, 1, 1]
    assert source.load(2, request()).label == 1
    write_video(tmp_path / "loose.avi")
    assert open_source(FolderSource, tmp_path).classes is None


def test_one_sub_folder_is_not_a_class(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "a.avi")
    assert open_source(FolderSource, tmp_path).classes is None


def test_a_folder_without_videos_is_named_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"data\.path = {tmp_path}: no videos in it or below; looked for .*\.mkv .*\.mp4"
    ):
        open_source(FolderSource, tmp_path)
    write_frames(tmp_path / "frames", 2)
    with pytest.raises(DataError, match="it holds images: name raw-frame folders in a list file"):
        open_source(FolderSource, tmp_path)
    with pytest.raises(DataError, match="source 'folder' needs a folder"):
        open_source(FolderSource, tmp_path / "frames" / "img_00001.jpg")


# --- a list -----------------------------------------------------------------------------------------------------------


def test_a_list_gives_labels_and_clips_of_videos_and_raw_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi")
    write_frames(tmp_path / "b", 9)
    source = open_list(tmp_path, "a.avi 0 -1\nb 1 9\nb 3 7\n")
    assert len(source) == 3
    assert source.classes is None
    assert [numbers(source, index) for index in range(3)] == [[0, 2, 4, 6], [0, 2, 4, 6], [2, 4, 6, 8]]
    assert source.clip_name(1) == str(tmp_path / "b")
    source = open_list(tmp_path, "a.avi 12 1\nb 5 0\n")
    assert [source.label(index) for index in range(2)] == [1, 0]
    assert source.classes == ["0", "1"]
    assert numbers(source, 1) == [0, 1, 2, 3]  # five frames: the stride shrinks
    assert source.load(1, request()).label == 0


def test_start_and_total_hold_for_videos_as_for_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", 20)
    source = open_list(tmp_path, "path,start,total\na.avi,5,7\na.avi,18,-1\na.avi,30,5\n")
    assert numbers(source, 0) == [5, 7, 9, 11]
    assert numbers(source, 0, place=1.0) == [5, 7, 9, 11]
    assert numbers(source, 1) == [18, 19, 19, 19]
    with pytest.raises(UnreadableClip, match="has 0 frames"):
        source.load(2, request())


def test_relative_paths_start_from_the_root_or_the_list(tmp_path: Path) -> None:
    write_video(tmp_path / "data" / "a.avi")
    absolute = write_video(tmp_path / "elsewhere" / "b.avi")
    source = open_list(tmp_path, f"a.avi 0\n{absolute} 1\n", root=tmp_path / "data")
    assert [source.clip_name(index) for index in range(2)] == [str(tmp_path / "data" / "a.avi"), str(absolute)]
    assert open_list(tmp_path, "data/a.avi 0\n").clip_name(0) == str(tmp_path / "data" / "a.avi")


def test_a_list_of_which_no_file_exists_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_list(tmp_path, "".join(f"{number}.mp4 0\n" for number in range(5)))
    message = str(caught.value)
    assert "none of its 5 videos exists; the first: " in message
    assert str(tmp_path / "2.mp4") in message
    assert "3.mp4" not in message
    assert f"start from {tmp_path}: set data.root" in message


def test_single_missing_files_are_left_to_be_skipped(tmp_path: Path) -> None:
    write_video(tmp_path / "b.avi")
    source = open_list(tmp_path, "a.avi 0\nb.avi 1\n")
    with pytest.raises(UnreadableClip, match=r"a\.avi: no such file"):
        source.load(0, request())
    assert numbers(source, 1) == [0, 2, 4, 6]


def test_a_split_keeps_its_lines_and_the_class_numbers_of_the_whole_list(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi")
    text = "path,label,session,split\na.avi,run,1,train\na.avi,jump,2,val\na.avi,,3,pretrain\na.avi,run,2,val\n"
    assert len(open_list(tmp_path, text)) == 4
    val = open_list(tmp_path, text, split="val")
    assert val.classes == ["jump", "run"]
    assert [val.label(index) for index in range(len(val))] == [0, 1]
    train = open_list(tmp_path, text, split="train")
    assert (train.classes, train.label(0)) == (["jump", "run"], 1)
    assert open_list(tmp_path, text, split="pretrain").label(0) is None
    assert len(open_list(tmp_path, text, split="2", split_column="session")) == 2
    named = open_list(tmp_path, text, classes=("run", "sit", "jump"))
    assert [named.label(index) for index in range(4)] == [0, 2, None, 0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"split": "vall"}, r"no line has split 'vall' \(did you mean 'val'\?\); column 'split' has train, val"),
        (
            {"split": "x", "split_column": "fold"},
            r"no column 'fold' \(data\.options\.split_column\): its columns are path",
        ),
        ({"label_column": "lable"}, r"no column 'lable' .*label_column.*did you mean 'label'"),
        ({"path_column": "paht"}, r"line 1: 'path,label,split': names no column 'paht' \(did you mean 'path'"),
    ],
)
def test_options_that_name_nothing_in_the_list_are_errors(tmp_path: Path, options: Any, expected: str) -> None:
    write_video(tmp_path / "a.avi")
    with pytest.raises(DataError, match=expected):
        open_list(tmp_path, "path,label,split\na.avi,run,train\na.avi,jump,val\n", **options)


def test_a_split_of_a_list_without_header_is_an_error(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi")
    with pytest.raises(DataError, match=r"no column 'split'.*it has no header"):
        open_list(tmp_path, "a.avi 1\n", split="train")


def test_sources_travel_to_workers_and_give_equal_clips(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi")
    sources = [
        open_source(VideoSource, tmp_path / "a.avi"),
        open_source(FolderSource, tmp_path),
        open_list(tmp_path, "a.avi 0\n"),
    ]
    for source in sources:
        assert numbers(pickle.loads(pickle.dumps(source))) == numbers(source) == [0, 2, 4, 6]


def test_the_plugin_registers_the_sources() -> None:
    names = [source.name for source in plugin.mgmae_register_clip_sources()]
    assert names == ["shapes", "video", "folder", "list"]


def test_the_gesture_list_is_read_with_its_splits(shared_data: Path) -> None:
    path = shared_data / "gestures" / "labels.csv"
    sizes = {split: len(open_source(ListSource, path, split=split)) for split in ("train", "val", "pretrain")}
    assert sizes == {"train": 110, "val": 57, "pretrain": 16}
    source = open_source(ListSource, path, split="val")
    assert len(source.classes) == 10
    clip = source.load(0, request(16, 4))
    assert clip.frames.shape == (16, 3, 168, 224)
    assert source.classes[clip.label] in clip.name
    pretrain = open_source(ListSource, path, split="pretrain")
    assert {pretrain.label(index) for index in range(16)} == {None}


def test_the_clips_folder_has_classes_and_a_folder_above_has_none(shared_data: Path) -> None:
    clips = open_source(FolderSource, shared_data / "clips")
    assert (len(clips), len(clips.classes)) == (50, 10)
    assert open_source(FolderSource, shared_data).classes is None
