"""How a byte-level BPE vocabulary cuts text into words before it merges: one entry a name.

The names are the values of ``tokenizer.ggml.pre`` in GGUF files, as llama.cpp writes them. The
patterns, in Oniguruma's syntax, are those of each model's own ``tokenizer.json``; several patterns
apply one after the other, each to the pieces that the earlier ones left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenizers import Regex, pre_tokenizers

from jaxinfer.errors import TokenizerError


@dataclass(frozen=True, kw_only=True)
class Split:
    """The patterns of one pre-tokenizer, and what else its name says about the tokenizer.

    Attributes:
        patterns: applied in order; matches and the text between them become pieces of their own.
        ignore_merges: a word that is a token is taken whole, even where no merge leads to it.
        add_bos: a prompt starts with the begin-of-sequence token unless the file says otherwise.
        is_nfc: the text is normalised to NFC first.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    is_nfc: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Cuts by the patterns, then spells bytes in GPT-2's alphabet."""
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*cuts, spell])


def split_named(name: str) -> Split:
    """The entry of that name.

    Raises:
        TokenizerError: no such name; the message lists the known ones.
    """
    try:
        return _SPLITS[name]
    except KeyError:
        known = ", ".join(sorted(_SPLITS))
        raise TokenizerError(f"unknown pre-tokenizer {name!r}; known: {known}") from None


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_THREE_DIGITS = r"[0-9][0-9][0-9]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_MARKS_OR_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_WORD_TO_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_WORD_FROM_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"

_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_MARKS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = rf"{_WORD_TO_LOWER}|{_WORD_FROM_UPPER}|\p{{N}}|{_MARKS_OR_SLASHES}|{_SPACES}"
_GPT4O = (
    rf"{_WORD_TO_LOWER}{_CONTRACTION}?|{_WORD_FROM_UPPER}{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}|{_MARKS_OR_SLASHES}|{_SPACES}"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_BLOOM = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"
_CJK = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
# The letters with upper and lower case, as the tokenizer's own file lists them.
_CASED = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}"
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}"
    r"\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}"
    r"\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}"
    r"\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}"
    r"\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}"
    r"\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}"
    r"\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}"
    r"\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}"
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}"
    r"\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}"
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}"
    r"\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}"
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}"
    r"\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}"
    r"\x{1E900}-\x{1E943}"
)
# The lookbehind changes no match of `\s+$`; without it a long run of spaces takes quadratic time.
_SPACES_AT_END = r"(?<!\s)\s+$"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
    _SPACES_AT_END,
    _CJK,
    r"\p{N}+",
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_CHAMELEON = (
    r"<sentinel:[0-9]+>",
    r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    _DIGIT,
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)

_BY_DIGIT = Split(patterns=(_DIGIT, _GPT2))
_WHOLE_WORDS = Split(patterns=(_GPT2,))
_LLAMA3_SPLIT = Split(patterns=(_LLAMA3,))
_QWEN2_SPLIT = Split(patterns=(_QWEN2,))

_KINDS: dict[Split, str] = {
    Split(
        patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", _THREE_DIGITS),
    ): "default",
    replace(_LLAMA3_SPLIT, ignore_merges=True, add_bos=True): (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"
    ),
    _LLAMA3_SPLIT: "dbrx smaug-bpe glm4 chatglm-bpe",
    replace(_QWEN2_SPLIT, is_nfc=True): "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez",
    Split(patterns=(_QWEN35,), is_nfc=True): "qwen35",
    _QWEN2_SPLIT: "stablelm2 hunyuan solar-open grok-2",
    _BY_DIGIT: "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
    _WHOLE_WORDS: (
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert"
        " jais trillion granite-docling exaone4"
    ),
    replace(_WHOLE_WORDS, is_nfc=True): "mpt olmo",
    Split(patterns=(_TEKKEN,), ignore_merges=True, add_bos=True): "tekken",
    Split(patterns=(_GPT4O,)): "gpt-4o llama4 kanana2 talkie minimax-m2",
    Split(patterns=_DEEPSEEK_LLM): "deepseek-llm",
    Split(patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT)): "deepseek-coder",
    Split(patterns=_DEEPSEEK_V3): "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    Split(patterns=(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, _THREE_DIGITS)): "falcon",
    Split(patterns=(_BLOOM,)): "poro-chat bloom gpt3-finnish",
    Split(patterns=(_BLOOM, _DIGIT)): "viking",
    Split(patterns=(_BAILING,)): "bailingmoe bailingmoe2 llada-moe",
    Split(patterns=(_SEED,)): "seed-coder",
    Split(patterns=_CHAMELEON, add_bos=True): "chameleon",
}
_SPLITS = {name: split for split, names in _KINDS.items() for name in names.split()}

NAMES = frozenset(_SPLITS)
"""Every name that ``split_named`` knows."""
