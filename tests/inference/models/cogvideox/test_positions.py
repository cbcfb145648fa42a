from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference.models.cogvideox.transformer import drop_learned_positions, rotary_positions
from tests.inference.models.cogvideox.tiny import tiny_transformer, tiny_vae

SIZES = [  # height and width in pixels, latent frames
    (480, 720, 13),
    (720, 480, 5),
    (256, 384, 3),
    (512, 512, 1),
    (768, 1360, 4),
    (176, 208, 7),
]
HUB = {"sample_height": 60, "sample_width": 90, "sample_frames": 49, "num_layers": 1}
HUB_1_5 = {"sample_height": 300, "sample_width": 300, "patch_size_t": 2, "num_layers": 1}


def pipeline_of(transformer: Any) -> Any:
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    return CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(),
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(),
    )


@pytest.mark.parametrize("shape", [HUB, HUB_1_5], ids=["1.0", "1.5"])
def test_positions_are_the_pipelines(shape: dict[str, Any]) -> None:
    pipeline = pipeline_of(tiny_transformer(**shape))
    for height, width, frames in SIZES:
        theirs = pipeline._prepare_rotary_positional_embeddings(
            height, width, frames, torch.device("cpu")
        )
        ours = rotary_positions(pipeline.transformer.config, height // 8, width // 8, frames)
        assert ours is not None
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
        assert ours[0].dtype == torch.float32


def test_the_trainers_cut_positions_are_others_but_at_the_trained_size():
    config = tiny_transformer(**HUB).config
    for rows, columns, at_least in ((60, 90, 0.0), (32, 48, 1.8), (90, 60, 1.9)):
        stretched = rotary_positions(config, rows, columns, 13)
        cut = rotary_positions(config, rows, columns, 13, kind="slice")
        assert stretched is not None and cut is not None
        apart = (stretched[0] - cut[0]).abs().max().item()
        assert apart > at_least if at_least else apart == 0


def test_1_5_counts_on_where_the_config_says_less():
    """A portrait on a config that was edited to 96x170 latents, where the pipeline fails."""
    narrow = tiny_transformer(**HUB_1_5 | {"sample_height": 96, "sample_width": 170}).config
    wide = tiny_transformer(**HUB_1_5).config
    ours = rotary_positions(narrow, 170, 96, 4)
    expected = rotary_positions(wide, 170, 96, 4)
    assert ours is not None and expected is not None
    assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])


def test_models_with_other_positions_get_none():
    config = SimpleNamespace(use_rotary_positional_embeddings=False)
    assert rotary_positions(config, 4, 4, 1) is None


def test_positions_first_used_in_inference_mode_serve_training():
    config = tiny_transformer(num_layers=1).config
    with torch.inference_mode():
        rotary = rotary_positions(config, 6, 10, 3)
    assert rotary is not None and not rotary[0].is_inference()
    assert rotary_positions(config, 6, 10, 3)[0] is rotary[0]  # type: ignore[index]


def test_learned_positions_can_be_dropped():
    image_to_video = {"in_channels": 8, "sample_width": 4, "sample_height": 4, "num_layers": 1}
    transformer = tiny_transformer(use_learned_positional_embeddings=True, **image_to_video)
    states, timestep = torch.randn(1, 16, 32), torch.tensor([500])

    def predict(latents: torch.Tensor) -> torch.Tensor:
        rows, columns = latents.shape[-2:]
        rotary = rotary_positions(transformer.config, rows, columns, 3)
        return transformer(latents, states, timestep, image_rotary_emb=rotary).sample

    trained_size, other_size = torch.randn(1, 3, 8, 4, 4), torch.randn(1, 3, 8, 6, 4)
    with torch.no_grad():
        with pytest.raises(ValueError, match="different resolution"):
            predict(other_size)
        transformer.patch_embed.pos_embedding.zero_()
        as_authors_say = predict(trained_size)
        assert drop_learned_positions(transformer)
        assert torch.equal(predict(trained_size), as_authors_say)
        assert predict(other_size).shape == (1, 3, 4, 6, 4)
    assert not drop_learned_positions(transformer)
    saved = type(transformer).from_config(transformer.config)
    saved.load_state_dict(transformer.state_dict())
