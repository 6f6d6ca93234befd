import json

from tokenprune import read_video
from tokenprune.eval import video_memory


def test_the_file_is_as_long_as_it_says_and_reading_it_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(video_memory, "SIZE", (256, 144))
    monkeypatch.setattr(video_memory, "PIECE", 1)
    monkeypatch.setattr(video_memory, "KEY", 15)
    path = tmp_path / "a.mp4"
    video_memory.write(path, 3)
    found = read_video(path, frames=90)
    assert (found.total, found.duration, found.rate) == (90, 3.0, 30.0)
    assert (found.frames[0].astype(int) - found.frames[60]).max() < 20  # it starts over every second
    assert set(video_memory.measured(str(path), "pyav", 8, 128)) == {"extra_mib", "answer_mib", "seconds"}


def test_the_committed_numbers_are_below_a_gibibyte():
    rows = json.loads(video_memory.OUT.read_text())["rows"]
    assert {row["minutes"] for row in rows} == {10, 120}
    assert len(rows) == 2 * len(video_memory.WAYS)
    assert max(row["extra_mib"] for row in rows) < 1024
