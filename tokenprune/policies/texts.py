"""The policies of stage `encoder`, which are about texts."""

from .adtp import ADTP
from .encoder import EncoderPolicy, TextTokens
from .text_baselines import TextFirst, TextNorm, TextRandom

__all__ = ["ADTP", "EncoderPolicy", "TextFirst", "TextNorm", "TextRandom", "TextTokens"]
