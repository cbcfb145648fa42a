from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.models.cogvideox.arithmetic import video_tokens
from inference.models.cogvideox.transformer import rotary_positions
from inference.runtime.errors import InputError
from tests.inference.models.cogvideox.tiny import tiny_transformer
from train.families.cogvideox.packed import check_packing, pack

FRAMES = {None: (3, 1, 5, 1), 2: (4, 2, 6, 2)}


def clips(frames: tuple[int, ...], channels: int = 4, rows: int = 4) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(count, channels, rows, 6, generator=source) for count in frames]


def prompts(lengths: tuple[int, ...]) -> list[Tensor]:
    source = torch.Generator().manual_seed(1)
    return [torch.randn(length, 32, generator=source) for length in lengths]


def separate(transformer: Any, latents: list[Tensor], states: list[Tensor], timestep: Tensor):
    for clip, prompt in zip(latents, states, strict=True):
        rotary = rotary_positions(transformer.config, clip.shape[-2], clip.shape[-1], len(clip))
        arguments = clip[None], prompt[None], timestep
        yield transformer(*arguments, image_rotary_emb=rotary).sample[0]


@pytest.mark.parametrize("patch_size_t", [None, 2], ids=["1.0", "1.5"])
@pytest.mark.parametrize("prompt_tokens", [(16,) * 4, (16, 3, 7, 1)], ids=["equal", "unequal"])
def test_a_row_is_predicted_as_its_clips_are(
    patch_size_t: int | None, prompt_tokens: tuple[int, ...]
) -> None:
    transformer = tiny_transformer(patch_size_t=patch_size_t)
    latents, states = clips(FRAMES[patch_size_t]), prompts(prompt_tokens)
    timestep = torch.tensor([321])
    row = pack(latents, states, transformer.config)
    with torch.no_grad():
        expected = list(separate(transformer, latents, states, timestep))
        packed = row.unpack(transformer(**row.arguments(), timestep=timestep).sample)
        blurred = row.unpack(
            transformer(**row.arguments() | {"attention_kwargs": None}, timestep=timestep).sample
        )
    for ours, alone, unmasked in zip(packed, expected, blurred, strict=True):
        assert ours.shape == alone.shape
        assert (ours - alone).abs().max() < 1e-5
        assert (unmasked - alone).abs().max() > 1e-2


def total(errors: list[Tensor]) -> Tensor:
    return torch.stack(errors).sum()


def test_gradients_are_those_of_the_clips():
    transformer = tiny_transformer()
    latents, states, timestep = clips((3, 1)), prompts((4, 4)), torch.tensor([100])
    row = pack(latents, states, transformer.config)
    weight = transformer.transformer_blocks[0].attn1.to_q.weight
    prediction = row.unpack(transformer(**row.arguments(), timestep=timestep).sample)
    (packed,) = torch.autograd.grad(total([p.square().mean() for p in prediction]), weight)
    alone = separate(transformer, latents, states, timestep)
    (expected,) = torch.autograd.grad(total([p.square().mean() for p in alone]), weight)
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-7)


def test_image_to_video_rows_give_the_clips_own_channels():
    transformer = tiny_transformer(in_channels=8)
    row = pack(clips((3, 1), channels=8), prompts((2, 2)), transformer.config)
    with torch.no_grad():
        prediction = transformer(**row.arguments(), timestep=torch.tensor([5])).sample
    assert [clip.shape for clip in row.unpack(prediction)] == [(3, 4, 4, 6), (1, 4, 4, 6)]


def test_what_a_row_is_made_of():
    transformer = tiny_transformer()
    row = pack(clips((2, 1)), prompts((1, 2)), transformer.config)
    assert row.latent_frames == (2, 1)
    assert row.hidden_states.shape == (1, 3, 4, 4, 6)
    assert row.encoder_hidden_states.shape == (1, 3, 32)
    assert row.image_rotary_emb[0].shape == (3 * 6, 16)
    assert torch.equal(row.image_rotary_emb[0][:6], row.image_rotary_emb[0][12:])  # time anew
    owners = [0, 1, 1, *[0] * 12, *[1] * 6]
    for query, mine in enumerate(owners):
        seen = [key for key, score in enumerate(row.attention_mask[0, query]) if score == 0]
        assert seen == [key for key, other in enumerate(owners) if other == mine]
    half = [clip.half() for clip in clips((2, 1))]
    assert pack(half, prompts((1, 2)), transformer.config).attention_mask.dtype == torch.float16


def test_rows_that_cannot_be():
    config = tiny_transformer(num_layers=1).config
    with pytest.raises(ValueError, match="of one size go into a row"):
        pack([*clips((1,)), *clips((1,), rows=6)], prompts((2, 2)), config)
    with pytest.raises(ValueError, match="zip"):
        pack(clips((1, 1)), prompts((2,)), config)
    of_1_5 = tiny_transformer(num_layers=1, patch_size_t=2).config
    with pytest.raises(ValueError, match=r"\(2, 3\) latent frames: no whole patches"):
        pack(clips((2, 3)), prompts((2, 2)), of_1_5)


@pytest.mark.parametrize(
    ("rotary", "learned", "remedy"),
    [(False, False, "use buckets"), (True, True, "drop_learned_positions: true")],
)
def test_models_that_add_positions_are_refused(rotary: bool, learned: bool, remedy: str) -> None:
    config = SimpleNamespace(
        use_rotary_positional_embeddings=rotary, use_learned_positional_embeddings=learned
    )
    with pytest.raises(InputError, match=remedy):
        check_packing(config)


def test_lengths_are_the_transformers():
    transformer = tiny_transformer(patch_size_t=2)
    row = pack(clips((4, 2)), prompts((5, 7)), transformer.config)
    lengths = [video_tokens(count, 4, 6, transformer.config) for count in (4, 2)]
    assert sum(lengths) + 5 + 7 == row.attention_mask.shape[-1]
