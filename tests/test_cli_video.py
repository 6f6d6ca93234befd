"""`tokenprune run --video`, and what the processors of each family make of a video."""

import pytest
import torch
import transformers
from PIL import Image
from transformers.models.smolvlm import processing_smolvlm
from typer.testing import CliRunner

from tests import clips, processors
from tests.families import BY_NAME
from tests.families.base import IMAGE
from tokenprune import cli, read_video, wrap
from tokenprune.encoding import encode, frames_are_images
from tokenprune.errors import InputError, UnsupportedModelError

QUESTION = "what moves ?"


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return clips.write(tmp_path_factory.mktemp("cli") / "clip.mp4", size=(96, 72))


@pytest.fixture(scope="session")
def video_checkpoint(tmp_path_factory):
    return processors.save("llava_onevision", tmp_path_factory.mktemp("cli-model"))


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (40, 40), "navy").save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def run(video_checkpoint):
    def invoke(*options):
        given = {"--model": video_checkpoint, "--prompt": QUESTION, "--policy": "uniform", "--max-new-tokens": 2}
        left = [one for name, value in given.items() if name not in options for one in (name, value)]
        return CliRunner().invoke(cli.app, ["run", *map(str, (*left, *options))], env={"COLUMNS": "200"})

    return invoke


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--frames", "6"), ["video 0  kept 6/24 (25.0 %)  grid 6x2x2"]),
        (("--fps", "0.5", "--keep", "0.5"), ["video 0  kept 6/12"]),
        (("--fps", "2", "--start", "1", "--end", "3", "--reader", "pyav"), ["kept 4/16"]),
        (("--keep", "13"), ["kept 13/128", "grid 32x2x2"]),
        (("--frames", "3", "--per", "frame"), ["frame 2  kept 1/4"]),
        (("--frames", "6", "--prompt", "<video> what ?"), ["kept 6/24"]),
        (("--frames", "2", "--size", "32", "--timing"), ["kept 2/8", "selection"]),
    ],
)
def test_run_answers_about_a_video(run, clip, options, words):
    result = run("--video", clip, *options)
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.stdout


def test_run_takes_images_and_several_videos_together(run, clip, picture):
    result = run("--video", clip, "--video", clip, "--image", picture, "--frames", 2)
    assert result.exit_code == 0, result.output
    for words in ("image 0  kept", "video 1  kept 2/8", "video 2  kept 2/8"):
        assert words in result.stdout


def test_run_takes_the_frames_that_a_model_reads_as_images_for_a_video(run, clip, picture, tmp_path):
    model = processors.save("internvl", tmp_path / "model")
    result = run("--video", clip, "--frames", 3, "--model", model)
    assert result.exit_code == 0, result.output
    assert "video 0  kept 12/48 (25.0 %)  grid 3x4x4" in result.stdout
    result = run("--video", clip, "--image", picture, "--model", model)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "which writes frames as images: give one video, or images" in result.stderr


def test_run_answers_bad_videos_with_one_sentence(run, clip, picture, tiny_checkpoint, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for options, words in (
        ((), "image and video are both missing"),
        (("--video", tmp_path / "none.mp4"), "is no file"),
        (("--video", tmp_path / "text.mp4"), "give an intact video"),
        (("--video", picture), "is a still picture"),
        (("--video", clip, "--frames", "2", "--fps", "1"), "are two ways to choose frames"),
        (("--video", clip, "--frames", "0"), "frames=0"),
        (("--video", clip, "--start", "60"), "is behind the end"),
        (("--video", clip, "--reader", "ffmpeg"), "reader='ffmpeg' is not one of decord, pyav"),
        (("--video", clip, "--size", "0"), "size=0"),
        (("--video", clip, "--prompt", "<image> what ?"), "1 times '<image>' for 0 images"),
        (("--video", clip, "--model", tiny_checkpoint), "LlavaProcessor takes no videos"),
    ):
        result = run(*options)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
        assert words in result.stderr


def test_run_names_a_package_that_the_model_needs(run, clip, monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("requires the torchvision library\nand more")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", missing)
    result = run("--video", clip)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "requires the torchvision library" in result.stderr
    assert "pip install tokenprune-vlm[video]" in result.stderr


@pytest.fixture(params=processors.PROCESSORS)
def family(request, monkeypatch):
    """(model type, model, processor)"""
    if request.param == "smolvlm" and processing_smolvlm.num2words is None:
        monkeypatch.setattr(processing_smolvlm, "num2words", str)
    return request.param, BY_NAME[request.param].model(), processors.PROCESSORS[request.param]()


def test_every_family_reads_a_video(family, clip):
    name, model, processor = family
    video = read_video(clip, frames=6, size=32)
    inputs, placed = encode(processor, model, QUESTION, videos=[video])
    assert placed
    apart = frames_are_images(inputs, [], [video])
    assert apart == (name in ("internvl", "smolvlm"))
    with wrap(model, "uniform", keep=0.5, images_are_frames=apart) as handle:
        with torch.no_grad():
            model(**inputs)
        (unit,) = handle.report().units
    assert (unit.kind, unit.grid[0]) == ("video", 3 if "qwen" in name else 6)
    assert unit.kept == round(unit.total / 2)
    words = processor.tokenizer.decode(inputs["input_ids"][0])
    assert words.endswith(QUESTION)
    if name == "qwen3_vl":  # the mean of the times of the two frames of a step
        assert "< 0 . 6 seconds >" in words
        assert "< 5 . 3 seconds >" in words
    if name == "smolvlm":
        assert all(f"0 0 : 0 {second} :" in words for second in range(6))


def test_qwen_positions_are_made_of_exact_seconds(clip):
    model = BY_NAME["qwen2_5_vl"].model(dtype=torch.bfloat16)
    inputs, _ = encode(
        processors.PROCESSORS["qwen2_5_vl"](), model, QUESTION, videos=[read_video(clip, fps=0.7, size=32)]
    )
    assert inputs["pixel_values_videos"].dtype == torch.bfloat16
    assert [float(seconds) for seconds in inputs["second_per_grid_ts"]] == pytest.approx([2 / (5 / 6)], rel=1e-6)


def test_what_processors_refuse_gets_a_sentence(clip, picture):
    model, processor = BY_NAME["qwen3_vl"].model(), processors.PROCESSORS["qwen3_vl"]()
    with pytest.raises(InputError, match="gives 1 frame, and Qwen3VLProcessor joins 2 into one: read more"):
        encode(processor, model, QUESTION, videos=[read_video(clip, frames=1)])
    model, processor = BY_NAME["llava_onevision"].model(), processors.PROCESSORS["llava_onevision"]()
    unlike = [read_video(clip, frames=count) for count in (2, 3)]
    with pytest.raises(InputError, match="LlavaOnevisionProcessor cannot encode these together"):
        encode(processor, model, QUESTION, videos=unlike)
    with pytest.raises(UnsupportedModelError, match="takes no videos"):
        encode(object(), model, QUESTION, videos=unlike)


def test_frames_that_would_be_mixed_up_with_images_get_a_sentence(clip):
    video, inputs = read_video(clip, frames=2), {"pixel_values": None}
    assert frames_are_images(inputs, [], [video])
    assert not frames_are_images(inputs, [None], [])
    assert not frames_are_images({"pixel_values_videos": None}, [None], [video])
    for pictures, videos in (([None], [video]), ([], [video, video])):
        with pytest.raises(InputError, match="which writes frames as images"):
            frames_are_images(inputs, pictures, videos)


def test_a_chat_template_places_the_video(clip):
    processor = processors.PROCESSORS["llava_onevision"]()
    processor.chat_template = (
        "{% for part in messages[0]['content'] %}{% if part['type'] == 'video' %}<video>{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %} ?"
    )
    inputs, placed = encode(
        processor, BY_NAME["llava_onevision"].model(), "what", videos=[read_video(clip, frames=2, size=32)]
    )
    assert placed
    assert processor.tokenizer.decode(inputs["input_ids"][0]).endswith("<video> what ?")
    assert IMAGE not in inputs["input_ids"]
