"""From prompts to conditions with tiny base models."""

import dataclasses

import numpy as np
import pytest
import torch

from inference.artifacts.embedding import Embedding
from inference.config.images import ImageConfig
from inference.images.drawing import draw
from inference.models.drawing_prompts import PromptSettings, needs_negatives
from inference.models.stable_diffusion.prompts import emphasise, encode_drawing_prompts
from inference.prompts.attention import parse_attention
from inference.prompts.chunks import PromptChunker, assemble
from inference.runtime.errors import InputError

SETTINGS = PromptSettings(steps_total=4)


def encode(base, prompt, **settings):
    """The conditions of one prompt's only part."""
    settings = dataclasses.replace(SETTINGS, **settings)
    [[part]] = encode_drawing_prompts(base, [prompt], [], settings).positives
    return part.timeline.conditions


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# ----------------------------------------------------------------------------------------- chunks


def chunks(base, text, backtrack=20):
    chunker = PromptChunker(base.tokenizer, base.embeddings, backtrack)
    return chunker.pieces(parse_attention(text))


def letters(*counts):
    """So many letters, with commas between."""
    return ", ".join(" ".join("a" * count) for count in counts)


@pytest.mark.parametrize(
    ("text", "backtrack", "lengths"),
    [
        ("", 20, [0]),
        (letters(75), 20, [75]),
        (letters(76), 20, [75, 1]),
        (letters(60, 14), 20, [75]),
        (letters(60, 15), 20, [61, 15]),
        (letters(60, 15), 0, [75, 1]),
        (letters(55, 20), 20, [56, 20]),
        (letters(54, 21), 20, [75, 1]),
        (letters(54, 21), 21, [55, 21]),
        (letters(10, 63, 5), 20, [75, 5]),
        (letters(75, 3), 20, [75, 4]),
        (letters(74, 3), 20, [75, 3]),
        (letters(60, 90), 20, [61, 75, 15]),
        ("a BREAK b", 20, [1, 1]),
        ("BREAK a", 20, [0, 1]),
        ("a BREAK BREAK b BREAK", 20, [1, 0, 1]),
        (letters(60, 5) + " BREAK " + letters(70, 10), 20, [66, 71, 10]),
    ],
)
def test_chunks_end_at_commas_and_breaks(tiny_base, text, backtrack, lengths):
    assert [len(chunk.ids) for chunk in chunks(tiny_base, text, backtrack)] == lengths


def test_every_token_has_its_weight(tiny_base):
    found = chunks(tiny_base, "a (b c:1.5), [d] BREAK (e:0)")
    assert [chunk.weights for chunk in found] == [[1, 1.5, 1.5, 1, 1 / 1.1], [0]]
    weights = assemble(tiny_base.tokenizer, [found, chunks(tiny_base, "b")]).weights
    assert weights is not None
    assert weights.shape == (2, 2, 77)
    assert weights[0, 0, :8].tolist() == pytest.approx([1, 1, 1.5, 1.5, 1, 1 / 1.1, 1, 1])
    assert weights[0, 1, :3].tolist() == [1, 0, 1]
    assert bool((weights[1] == 1).all())
    assert tiny_base.tokenize(["a (b:2)"]).weights is None


def test_embeddings_have_weights_and_move_on_with_what_follows_a_comma(tiny_base):
    Embedding(torch.randn(3, 16), "xyz").attach(tiny_base)
    [only] = chunks(tiny_base, "a (xyz b:2)")
    assert only.found == [(1, "xyz")]
    assert only.weights == [1, 2, 2, 2, 2]
    first, second = chunks(tiny_base, letters(60) + ", (xyz:2) " + letters(12))
    assert (len(first.ids), first.found) == (61, [])
    assert (len(second.ids), second.found) == (15, [(0, "xyz")])
    assert second.weights == [2, 2, 2, *[1] * 12]
    first, second = chunks(tiny_base, letters(74) + " xyz")
    assert (len(first.ids), second.found) == (74, [(0, "xyz")])


def test_embeddings_are_put_in_behind_a_break(tiny_base):
    vectors = torch.randn(2, 16)
    Embedding(vectors, "xyz").attach(tiny_base)
    states = encode(tiny_base, "a BREAK b xyz").states
    assert torch.equal(states[:, 77:], tiny_base.encode_prompts(["a", "b xyz"]).states[1:])


# --------------------------------------------------------------------------------------- emphasis


def test_emphasis_brings_back_the_mean_of_all_texts():
    """By hand: means 2 and 6 over two texts, the second of which counts three times."""
    states = torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])
    weights = torch.tensor([[2.0], [1.0]])
    counts = torch.tensor([1.0, 3.0])
    weighted = torch.tensor([[[2.0, 6.0]], [[5.0, 7.0]]])
    assert torch.equal(emphasise(states, weights, counts, "No norm"), weighted)
    expected = weighted * ((2 + 3 * 6) / (4 + 3 * 6))
    torch.testing.assert_close(emphasise(states, weights, counts, "Original"), expected)
    assert emphasise(states, weights, counts, "Ignore") is states
    half = emphasise(states.half(), weights, counts, "Original")
    assert half.dtype == torch.float16


def test_emphasis_of_a_prompt_is_each_chunks_own(tiny_base):
    plain = tiny_base.encode_prompts(["a b", "c"]).states
    weights = torch.ones(77, 1)
    weights[2] = 1.5
    no_norm = encode(tiny_base, "a (b:1.5) BREAK c", emphasis="No norm").states
    torch.testing.assert_close(no_norm[0, :77], plain[0] * weights)
    torch.testing.assert_close(no_norm[0, 77:], plain[1])
    original = encode(tiny_base, "a (b:1.5) BREAK c").states
    norm = plain[0].mean() / (plain[0] * weights).mean()
    assert abs(norm - 1) > 1e-4
    torch.testing.assert_close(original[0, :77], plain[0] * weights * norm)
    torch.testing.assert_close(original[0, 77:], plain[1])
    ignored = encode(tiny_base, "a (b:1.5) BREAK c", emphasis="Ignore").states
    torch.testing.assert_close(ignored, plain.flatten(0, 1)[None])
    literal = encode(tiny_base, "a <b", emphasis="None").states
    assert torch.equal(literal, tiny_base.encode_prompts(["a <b"]).states)


def test_the_mean_goes_over_the_whole_timeline(tiny_base):
    """[(a:2)|b] in 3 steps: a counts twice, b once."""
    a, b = tiny_base.encode_prompts(["a", "b"]).states
    weights = torch.ones(77, 1)
    weights[1] = 2
    norm = (2 * a.mean() + b.mean()) / (2 * (a * weights).mean() + b.mean())
    states = encode(tiny_base, "[(a:2)|b]", steps_total=3).states
    assert len(states) == 2
    torch.testing.assert_close(states, torch.stack([a * weights, b]) * norm)


def test_emphasis_in_sdxl_is_each_encoders_own(tiny_sdxl):
    plain = tiny_sdxl.encode_prompts(["a b"])
    weighted = encode(tiny_sdxl, "a (b:1.5)")
    weights = torch.ones(77, 1)
    weights[2] = 1.5
    expected = []
    for states in plain.states[0].split([16, 24], dim=-1):
        expected.append(states * weights * (states.mean() / (states * weights).mean()))
    torch.testing.assert_close(weighted.states[0], torch.cat(expected, dim=-1))
    assert weighted.pooled is not None and plain.pooled is not None
    assert torch.equal(weighted.pooled, plain.pooled)


# ---------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("base", ["tiny_base", "tiny_sdxl"])
def test_plain_prompts_are_what_they_were(base, request):
    base = request.getfixturevalue(base)
    expected = base.encode_prompts(["a cat", "dog", "blue, x"])
    encoded = encode_drawing_prompts(base, ["a cat", "dog"], ["blue, x", "blue, x"], SETTINGS)
    rows = [parts[0].timeline.conditions for parts in encoded.positives]
    rows.append(encoded.negatives[0].conditions)
    for number, row in enumerate(rows):
        assert torch.equal(row.states, expected[[number]].states)
        if row.pooled is not None:
            assert torch.equal(row.pooled, expected[[number]].pooled)
    assert encoded.negatives[0] is encoded.negatives[1]
    assert [len(parts) for parts in encoded.positives] == [1, 1]


def test_each_text_is_encoded_once(tiny_base):
    seen = []
    tiny_base.text_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    prompts = ["[a|b] AND c", "[a|b] AND c :2", "b"]
    encoded = encode_drawing_prompts(tiny_base, prompts, ["c", "c", "AND"], SETTINGS)
    assert seen == [5]  # "a", "b", " c", "c", and the word "AND"
    assert [[part.weight for part in parts] for parts in encoded.positives] == [[1, 1], [1, 2], [1]]
    assert encoded.positives[0][0].timeline is encoded.positives[1][0].timeline
    seen.clear()
    many = [f"[a|{' '.join(str(n))}]" for n in range(100)]
    encode_drawing_prompts(tiny_base, many, [], SETTINGS)
    assert seen == [64, 37]


def test_texts_of_one_timeline_have_equally_many_chunks(tiny_base):
    long = " ".join("abcdefghij" * 8)
    states = encode(tiny_base, f"[a:{long}:2]").states
    assert states.shape == (2, 154, 16)
    empty = tiny_base.encode_prompts([""]).states[0]
    torch.testing.assert_close(states[0, 77:], empty)
    torch.testing.assert_close(states[1:], tiny_base.encode_prompts([long]).states)
    encoded = encode_drawing_prompts(tiny_base, ["a", long], [], SETTINGS)
    assert [p[0].timeline.conditions.states.shape[1] for p in encoded.positives] == [77, 154]
    assert encoded.filler is None
    padded = dataclasses.replace(SETTINGS, pad_conds=True)
    filler = encode_drawing_prompts(tiny_base, ["a", long], [], padded).filler
    assert filler is not None
    torch.testing.assert_close(filler.states[0], empty)


def test_empty_negative_prompts_of_sdxl_are_zeros(tiny_sdxl):
    encoded = encode_drawing_prompts(tiny_sdxl, [""] * 3, ["", "[a::0]", "[a::1]"], SETTINGS)
    sums = [timeline.conditions.states.abs().sum().item() for timeline in encoded.negatives]
    assert sums[:2] == [0, 0]
    assert sums[2] > 0
    pooled = encoded.negatives[0].conditions.pooled
    assert pooled is not None and pooled.abs().sum() == 0
    assert encoded.positives[0][0].timeline.conditions.states.abs().sum() > 0


@pytest.mark.parametrize(
    ("prompts", "cfg_scale", "needed"),
    [
        (["a"], 7, True),
        (["a"], 0, True),
        (["a", "b"], 1, False),
        (["a", "b :2"], 1, True),
        (["a", "b AND c"], 1, True),
    ],
)
def test_negative_prompts_are_left_out_where_they_have_no_effect(prompts, cfg_scale, needed):
    assert needs_negatives(prompts, cfg_scale) is needed


# ---------------------------------------------------------------------------------------- drawing

CAT = ImageConfig(prompt="a cat", seed=1, steps=4, cfg_scale=3)


def pixels(base, requests, batch_size=8):
    drawings = draw(base, requests, batch_size)
    return np.stack([np.asarray(drawing.image, dtype=int) for drawing in drawings])


def test_prompts_of_every_kind_share_a_batch(tiny_base):
    """Up to rounding. Emphasis keeps the mean of the text encoder's states, and a fresh layer norm
    makes it zero: without a bias the factor would be a quotient of two rounding errors."""
    with torch.no_grad():
        tiny_base.text_encoder.get_parameter("final_layer_norm.bias").fill_(0.5)
    long = letters(60, 30)
    requests = [
        dataclasses.replace(CAT, prompt=prompt, negative_prompt=negative)
        for prompt, negative in (
            ("a (cat:1.3)", ""), ("[a|b] AND c :0.7", "x"), (long, "d"), ("a", long),
            (f"a AND {long}", "[b:c:2]"),
        )
    ]  # fmt: skip
    together, alone = pixels(tiny_base, requests), pixels(tiny_base, requests, 1)
    assert abs(together - alone).max() <= 1
    assert len(np.unique(together, axis=0)) == len(requests)


@pytest.mark.parametrize(("sampler", "seen"), [("Euler", "bbbd"), ("Heun", "bbbbbdd")])
def test_samplers_of_second_order_count_evaluations(tiny_base, sampler, seen):
    """[b:d:0.5] in 4 steps: 3 of Euler's 4 evaluations; 5 of Heun's 7."""
    encoded = []
    words = {letter: tiny_base.encode_prompts([letter]).states for letter in "bd"}

    def note(_, __, named):
        states = named["encoder_hidden_states"]
        encoded.extend(
            letter for letter, own in words.items() if torch.allclose(states, own, atol=1e-4)
        )

    tiny_base.unet.register_forward_pre_hook(note, with_kwargs=True)
    request = dataclasses.replace(CAT, prompt="[b:d:0.5]", sampler=sampler, cfg_scale=1)
    draw(tiny_base, [request])
    assert "".join(encoded) == seen


def test_a_prompt_that_cannot_be_read_says_where(tiny_base):
    with pytest.raises(
        InputError, match=r"character 8, at “a \(cat:1.2.3\)”: 1.2.3 is not a number"
    ):
        draw(tiny_base, [dataclasses.replace(CAT, prompt="a (cat:1.2.3)")])
