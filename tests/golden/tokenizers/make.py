"""Token ids by the original tokenizers: transformers and sentencepiece.

    python make.py DIRECTORY

writes the JSON files beside this script. DIRECTORY holds the two GGUF files named in ``_FILES``;
their tokenizers are taken from there by transformers. The SentencePiece models are trained here on
the texts themselves; their files hold the vocabulary as GGUF metadata, so that the tests need
nothing else.
"""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

HERE = Path(__file__).parent

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "  two leading spaces, two trailing  ",
    "tabs\tand\t\ttabs\nnew lines\n\nmore\n\n\nand\r\nwindows\r\n\r\n",
    "   \n  \n \n\n\t \n",
    "I'm you're he'll we've they'd it's DON'T CAN'T I'LL rock'n'roll",
    "3.14159 1,234,567 1234567890 0x1F 12:34:56 2024-02-29 1e-5 ½ ² Ⅷ ٣٤٥ 四",
    "a1b22c333d4444 v1.2.3-rc4",
    "The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX. tHe QuIcK",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Portez ce vieux whisky au juge blond qui fume; déjà vu, naïve, œuvre, l'été.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia; ¿qué? ¡no!",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "我能吞下玻璃而不伤身体。你好，世界！",
    "いろはにほへと ちりぬるを。カタカナ、ひらがな、漢字。",
    "키스의 고유조건은 입술끼리 만나야 하고",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "emoji 😀😃 👨‍👩‍👧‍👦 🇩🇪🇯🇵 👍🏽 ❤️ ☃︎ 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "e\u0301 \u00e9 A\u030a \u00c5 \ufb01 \uff21\uff22 \u1e9b\u0323",
    "zero\u200bwidth\u200djoiner \ufeffbom non\u00a0breaking\u2009thin\u3000wide \u2028line",
    "nul\x00 bell\x07 escape\x1b[31m delete\x7f next\x85",
    "def f(x: int) -> int:\n    if x > 0:\n        return x ** 2  # square\n\treturn -1\n",
    "for (int i = 0; i < n; ++i) { s += a[i] * b[i]; } // \"dot\" 'product'\n",
    "SELECT * FROM t WHERE a >= 10 AND b <> 'x''y' ORDER BY 1;",
    '<div class="a b"><p>text &amp; more</p></div> <table><tr><td>1</td></tr></table>',
    "https://example.com/path?q=a%20b&c=d#frag user@example.org C:\\dir\\file.txt ~/.rc",
    "$\\frac{a}{b} = \\sum_{i=0}^{n} x_i$ ∀x∈ℝ: ⌈x⌉ ≤ x+1 ± √2",
    "snake_case camelCase PascalCase kebab-case SCREAMING_CASE __dunder__ a.b.c",
    "!!! ??? ... --- *** ### ((())) [[[]]] {{{}}} <<>> ;;; :: ,, '' \"\" `` ~~ ^^ ||",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n<eos><unk><pad>",
    "almost <|im_end| > <|im_en <end_of_turn <s> </s> <unk> <0x0A> [INST]",
    *(f"x{' ' * count}y{' ' * count}" for count in (2, 3, 4, 5, 7, 8, 15, 16, 17, 31)),
    *(f"x{newline * count}y" for newline in "\n\t" for count in (2, 3, 5, 8, 13)),
    "".join(map(chr, range(0x20, 0x250))),
    " ".join(map(chr, range(0x1F600, 0x1F640))),
]
PLAIN_TEXTS = [text for text in TEXTS if "<" not in text]

_FILES = {
    "smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma3": "gemma-3-270m-q4_k_m.gguf",
}


def smollm2(directory: Path) -> dict:
    """SmolLM2-135M-Instruct.

    transformers reads the vocabulary from the GGUF file but not how it cuts digits; that is set
    here as the model's tokenizer.json has it.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=_FILES["smollm2"])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return {"texts": TEXTS, "ids": [_encode(tokenizer, text) for text in TEXTS]}


def gemma3(directory: Path) -> dict:
    """Gemma 3 270M."""
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=_FILES["gemma3"])
    return {"texts": TEXTS, "ids": [_encode(tokenizer, text) for text in TEXTS]}


def _encode(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def sentencepiece_model(algorithm: str, symbols: Sequence[str] = (), **options) -> dict:
    """A vocabulary trained here, as GGUF metadata, and the ids it gives.

    It is trained on the texts in Latin letters; the other characters are bytes or unknown.
    """
    file = io.BytesIO()
    lines = [
        line
        for text in PLAIN_TEXTS
        for line in text.splitlines()
        if max(line, default="") < "\u0180"
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=file,
        model_type=algorithm,
        user_defined_symbols=list(symbols),
        minloglevel=2,
        num_threads=1,
        **options,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    ids = range(model.get_piece_size())
    pieces = [model.id_to_piece(token_id) for token_id in ids]
    metadata = {
        # llama.cpp's converter writes symbols as they stand in a text, other pieces as they are.
        "tokenizer.ggml.tokens": [p.replace("\u2581", " ") if p in symbols else p for p in pieces],
        "tokenizer.ggml.scores": [model.get_score(token_id) for token_id in ids],
        "tokenizer.ggml.token_type": [
            _USER_DEFINED if piece in symbols else _token_type(model, token_id)
            for token_id, piece in enumerate(pieces)
        ],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }
    # A text ends at NUL there; how a run of tabs is cut is a tie between equal probabilities.
    texts = [text for text in PLAIN_TEXTS if "\0" not in text and "\t\t\t" not in text]
    return {"metadata": metadata, "texts": texts, "ids": [model.encode(text) for text in texts]}


_USER_DEFINED = 4


def _token_type(model: sentencepiece.SentencePieceProcessor, token_id: int) -> int:
    """The value that llama.cpp's converter writes."""
    kinds = [model.is_unknown, model.is_control, None, model.is_unused, model.is_byte]
    found = [kind for kind, test in enumerate(kinds, start=2) if test and test(token_id)]
    return found[0] if found else 1


def _write(name: str, golden: dict) -> None:
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def main(directory: Path) -> None:
    _write("smollm2", smollm2(directory))
    _write("gemma3", gemma3(directory))
    exact = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    bytes_too = {"vocab_size": 700, "byte_fallback": True, "character_coverage": 0.98}
    _write("sentencepiece_bpe", sentencepiece_model("bpe", **exact, **bytes_too))
    symbols = [*(space * count for space in "\u2581\n" for count in (2, 3, 4, 5)), "<tr>", "$"]
    _write(
        "sentencepiece_bpe_symbols",
        sentencepiece_model("bpe", symbols, add_dummy_prefix=False, **exact, **bytes_too),
    )
    _write(
        "sentencepiece_unigram",
        sentencepiece_model("unigram", vocab_size=400, hard_vocab_limit=False, **exact),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
