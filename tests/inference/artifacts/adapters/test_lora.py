"""LoRA on a tiny base model: what it adds, how it stacks, and that it leaves no trace."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.adapters.low_rank import LowRank
from inference.runtime.errors import ArtifactError
from tests.inference.artifacts.adapters.low_rank_layers import low_rank, low_ranks

EVERYTHING = ["attention", "feed_forward", "projection"]


def create(base, rank=4, alpha=2.0, dropout=0.0, seed=0, targets=EVERYTHING, text=True):
    return Lora.create(base, LoraSpec(rank, alpha, dropout, targets, text), seed)


@pytest.fixture
def trained(base, randomize):
    lora = create(base)
    randomize(list(lora.layers.values()))
    return lora


def test_a_new_lora_changes_nothing(base, predict):
    before = predict(base)
    create(base).attach(base)
    assert torch.equal(predict(base), before)


def test_it_begins_as_kohyas_and_peft_do(base):
    lora = create(base, rank=4)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    layer = low_rank(lora, name)
    assert layer.lora_A.weight.shape == (4, 24)
    assert layer.lora_B.weight.shape == (16, 4)
    assert not layer.lora_B.weight.any()
    bound = 24**-0.5
    values = torch.cat([one.lora_A.weight.flatten() * one.lora_A.weight[0].numel() ** 0.5
                        for one in low_ranks(lora).values()])  # fmt: skip
    assert layer.lora_A.weight.abs().max() <= bound
    assert values.std().item() == pytest.approx(3**-0.5, rel=0.03)  # uniform in -1 … 1


def test_each_layer_begins_from_its_own_seed(base):
    one, same = create(base, seed=7), create(base, seed=7)
    torch.rand(3)  # the global generator plays no part
    other, fewer = create(base, seed=8), create(base, seed=7, targets=["attention"], text=False)
    for name, layer in low_ranks(fewer).items():
        assert torch.equal(layer.lora_A.weight, low_rank(one, name).lora_A.weight)
        assert torch.equal(layer.lora_A.weight, low_rank(same, name).lora_A.weight)
        assert not torch.equal(layer.lora_A.weight, low_rank(other, name).lora_A.weight)
    weights = [low_rank(one, name).lora_A.weight for name in one.layers if name.endswith("to_q")]
    assert not torch.equal(weights[0], weights[1])


def test_creating_and_attaching_leaves_the_global_generator_alone(base):
    state = torch.get_rng_state()
    create(base, dropout=0.1).attach(base)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("part", "path", "example"),
    [
        ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0", (3, 5, 32)),
        ("unet", "mid_block.attentions.0.proj_in", (2, 32, 4, 4)),
        ("text_encoder", "encoder.layers.1.mlp.fc2", (2, 7, 48)),
    ],
)
def test_the_change_is_strength_alpha_by_rank_times_b_a(base, trained, part, path, example):
    before = base.parts[part].get_submodule(path)
    x = torch.randn(example, generator=torch.Generator().manual_seed(2))
    expected = before(x)
    name = next(name for name in trained.layers if name.endswith(path.replace(".", "_")))
    layer = low_rank(trained, name)
    delta = layer.lora_B.weight.flatten(1) @ layer.lora_A.weight.flatten(1)
    delta = delta * (0.7 * 2.0 / 4)
    if isinstance(before, nn.Conv2d):
        expected = expected + torch.einsum("oi,bihw->bohw", delta, x)
    else:
        expected = expected + x @ delta.T

    trained.attach(base, strength=0.7)
    torch.testing.assert_close(base.parts[part].get_submodule(path)(x), expected)


def test_strength_0_is_bit_for_bit_the_base_model(base, predict, trained):
    before = predict(base)
    trained.attach(base, strength=0.0)
    assert torch.equal(predict(base), before)
    trained.set_strength(1.0)
    full = predict(base)
    assert not torch.allclose(full, before, atol=1e-3)
    trained.set_strength(0.0)
    assert torch.equal(predict(base), before)
    trained.set_strength(1.0)
    assert torch.equal(predict(base), full)


def test_detaching_leaves_the_very_same_modules_and_bits(base, predict, snapshot, trained):
    before, picture = snapshot(base), predict(base)
    shown = []
    for _ in range(3):
        trained.attach(base)
        shown.append(predict(base))
        trained.detach()
        assert snapshot(base) == before
        assert torch.equal(predict(base), picture)
    assert torch.equal(shown[0], shown[2])


def test_two_loras_stack_as_the_sum_of_their_changes(base, predict, snapshot, randomize):
    before = snapshot(base)
    one, two = create(base, rank=2), create(base, rank=6, alpha=3.0, targets=["attention"])
    randomize(list(one.layers.values()), seed=1)
    randomize(list(two.layers.values()), seed=2)
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    plain = base.unet.get_submodule(path)(x)

    def change(*loras_and_strengths):
        for lora, strength in loras_and_strengths:
            lora.attach(base, strength)
        difference = base.unet.get_submodule(path)(x) - plain
        for lora, _ in loras_and_strengths:
            lora.detach()
        return difference

    both = change((one, 0.5), (two, 2.0))
    torch.testing.assert_close(both, 0.5 * change((one, 1.0)) + 2 * change((two, 1.0)))
    assert snapshot(base) == before

    one.attach(base)
    alone = predict(base)
    two.attach(base)
    assert not torch.equal(predict(base), alone)
    two.set_strength(0)
    assert torch.equal(predict(base), alone)
    one.detach()  # in the order of attaching, so not the last first
    two.detach()
    assert snapshot(base) == before


def test_attaching_one_lora_does_not_change_what_another_trains(base, trained, tmp_path):
    frozen = Lora({name: LowRank(layer.lora_A.weight.detach(), layer.lora_B.weight.detach(), 1.0)
                   for name, layer in trained.layers.items()}, {})  # fmt: skip
    trained.attach(base)
    frozen.attach(base, 0.5)
    assert all(p.requires_grad for layer in trained.layers.values() for p in layer.parameters())
    loras = [p for name, p in base.unet.named_parameters() if ".lora_" in name]
    assert loras and all(p.requires_grad for p in loras)  # those of `frozen` are no parameters


def test_it_cannot_be_attached_twice(base, trained):
    trained.attach(base)
    with pytest.raises(ArtifactError, match="already attached"):
        trained.attach(base)


def test_the_parts_hold_exactly_what_is_trained(base):
    lora = create(base, dropout=0.25)
    lora.attach(base)
    parts = lora.modules_by_part()
    assert list(parts) == ["unet", "text_encoder"]
    for part, modules in parts.items():
        in_base = {id(p) for p in base.parts[part].parameters() if p.requires_grad}
        assert {id(p) for p in modules.parameters()} == in_base
        dropouts = [m for m in modules.modules() if isinstance(m, nn.Dropout)]
        assert len(dropouts) == len(modules)
        assert {m.p for m in dropouts} == {0.25}


def test_dropout_works_in_training_only(base, predict, randomize):
    lora = create(base, dropout=0.5)
    randomize(list(lora.layers.values()))
    lora.attach(base)
    parts = list(lora.modules_by_part().values())
    for part in parts:
        part.train()
    torch.manual_seed(0)
    first = predict(base)
    assert not torch.equal(predict(base), first)
    torch.manual_seed(0)
    assert torch.equal(predict(base), first)
    for part in parts:
        part.eval()
    assert torch.equal(predict(base), predict(base))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp32_layers_train_on_a_half_precision_base(new_base, dtype):
    base = new_base(dtype)
    lora = create(base)
    lora.attach(base)
    with torch.autocast("cpu", dtype):
        states = base.encode_prompts(["ab"])
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        loss = base.predict(latents.to(dtype), torch.tensor([5]), states).float().square().mean()
    loss.backward()
    for modules in lora.modules_by_part().values():
        for name, parameter in modules.named_parameters():
            assert parameter.dtype == torch.float32
            if "lora_B" in name and not name.startswith("lora_te_text_model_encoder_layers_1"):
                assert parameter.grad is not None
                assert parameter.grad.isfinite().all()


def test_layers_cast_to_the_bases_format_draw_as_the_loaded_file(
    new_base, predict, randomize, tmp_path
):
    base = new_base(torch.bfloat16)
    lora = create(base)
    randomize(list(lora.layers.values()))
    lora.attach(base)
    lora.save(tmp_path / "lora.safetensors", torch.float16, {})
    for layer in lora.layers.values():
        layer.half().bfloat16()
    shown = predict(base)

    fresh = new_base(torch.bfloat16)
    Lora.load(tmp_path / "lora.safetensors").attach(fresh)
    assert shown.dtype == torch.bfloat16
    assert torch.equal(predict(fresh), shown)


def test_gradient_checkpointing_gives_the_same_gradients(base, randomize):
    lora = create(base)
    randomize(list(lora.layers.values()))
    lora.attach(base)

    def gradients() -> list[torch.Tensor]:
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        base.predict(latents, torch.tensor([5]), base.encode_prompts(["ab"])).sum().backward()
        found = [p.grad for layer in lora.layers.values() for p in layer.parameters()]
        for layer in lora.layers.values():
            layer.zero_grad()
        return [grad for grad in found if grad is not None]

    plain = gradients()
    base.unet.enable_gradient_checkpointing()
    base.unet.train()
    assert len(plain) == 2 * len(lora.layers)
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_base_without_such_layers_is_refused(base):
    base.unet = nn.Module()
    with pytest.raises(ArtifactError, match="no layers of the kind attention"):
        create(base, targets=["attention"], text=False)


@pytest.mark.parametrize("drops_ranks", [False, True])
def test_dropout_acts_on_inputs_as_in_peft_or_on_ranks_as_in_kohya(base, drops_ranks):
    """Of ranks, each is dropped or doubled as a whole; of inputs, parts of their sum are."""
    spec = LoraSpec(4, 4.0, 0.5, EVERYTHING, False, drops_ranks=drops_ranks)
    lora = Lora.create(base, spec, 0)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    layer = low_rank(lora, name)
    with torch.no_grad():
        layer.lora_B.weight.zero_()
        layer.lora_B.weight[:4] = torch.eye(4)
    lora.attach(base)
    (found,) = [
        module
        for module in base.unet.modules()
        if layer.lora_A in list(getattr(module, "lora_A", nn.ModuleDict()).values())
    ]
    x = torch.randn(64, 24)
    layer.eval()
    plain = (found(x) - found.base_layer(x))[:, :4]
    assert torch.allclose(plain, x @ layer.lora_A.weight.T, atol=1e-5)
    layer.train()
    ratio = (found(x) - found.base_layer(x))[:, :4] / plain
    is_whole = ratio.isclose(torch.zeros(()), atol=1e-2) | ratio.isclose(2 * torch.ones(()), 1e-2)
    assert bool(is_whole.all()) == drops_ranks
    if drops_ranks:
        assert 0.3 < ratio.count_nonzero() / ratio.numel() < 0.7
    assert {*lora.layers[name].tensors()} == {*LowRank.suffixes}


class Products(TorchDispatchMode):
    """Counts the products that are computed."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.mul.Tensor
        return func(*args, **(kwargs or {}))


def test_a_scale_of_one_is_not_computed(base, trained):
    """The product would change nothing and cost a pass over each layer's output."""
    trained.attach(base, strength=2.0)  # alpha 2 of rank 4
    layer = base.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    x = torch.randn(1, 5, layer.in_features)
    outputs, counts = [], []
    for strength in (2.0, 1.0, 0.0):
        trained.set_strength(strength)
        with Products() as products:
            outputs.append(layer(x))
        counts.append(products.count)
    assert counts == [0, 1, 0]
    full, half, none = outputs
    torch.testing.assert_close(full - none, 2 * (half - none))
