"""The words of the embedded model, its tokenizer, image processor and processor: standard Hugging Face objects."""

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from .questions import NUMBERS, plural
from .scenes import COLORS, PATCH, SHAPES, SIZE

PAD, BOS, UNK, EOS, IMAGE = SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>", "<image>")
SCENE_WORDS = (
    "what color shape is the how many there a an are of left above objects object "
    "leftmost rightmost highest lowest yes no ?"
)
EASY_VQA_WORDS = (
    "in image not present does contain circle rectangle triangle gray teal brown black red green blue yellow"
)
LISTED = (*SCENE_WORDS.split(), *COLORS, *SHAPES, *map(plural, SHAPES), *NUMBERS, *EASY_VQA_WORDS.split())
WORDS = (*SPECIAL, *dict.fromkeys(LISTED))  # the position is the id
PROMPT = IMAGE + " {question}"  # the tokenizer puts <bos> in front

VIDEO = "<video>"
CLIP_WORDS = "which way move moves right up down still appear appears vanish vanishes before first last that"
VIDEO_WORDS = (*WORDS, VIDEO, *CLIP_WORDS.split())  # the video model's; ids of the image model's words are kept
VIDEO_PROMPT = VIDEO + " {question}"


def tokenizer(
    template: str = f"{BOS} $A",
    padding_side: str = "left",
    vocabulary: tuple[str, ...] = WORDS,
    placeholders: dict[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """One id per word; lower-cases and splits punctuation off. `template` places the special tokens around a text.

    `placeholders`: name of the attribute -> special token that stands for visual tokens; default the image token.
    """
    ids = {word: i for i, word in enumerate(vocabulary)}
    words = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    special = [(word, ids[word]) for word in (BOS, EOS) if word in template]
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        unk_token=UNK,
        eos_token=EOS,
        extra_special_tokens=placeholders or {"image_token": IMAGE},
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
    )


def image_processor():
    """Resize any image to the model's square, values to [-1, 1]. The PIL backend, since torchvision is not required."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def processor() -> LlavaProcessor:
    """Text with an `<image>` placeholder and images -> `input_ids` (one id per visual token) and `pixel_values`."""
    return LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
    )
