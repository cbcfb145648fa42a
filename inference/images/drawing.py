"""Generate images from prompts with a base model and its attached artifacts.

Preview grids and the drawing command both use `draw`: the same list on the same
machine gives the same pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from inference.artifacts import NetworkLibrary, UsedArtifact
from inference.config import ImageConfig
from inference.images.img2img import (
    CODEFORMER_WEIGHT,
    HiresSize,
    InitImage,
    Start,
    circular_padding,
    encode,
    encode_start,
    face_restorer,
    floor_to_images,
    image_upscaler,
    is_latent_upscaler,
    open_init,
    scale_to,
    upscale_latents,
)
from inference.images.infotext import describe_drawing
from inference.images.passes import Pass, all_texts, hires_prompts, sample
from inference.images.requests import all_calls, expand, group, networks_called, second_size
from inference.models import DiffusionModel, ImageModel
from inference.runtime import Progress
from inference.sampling import Callback, img2img_steps


@dataclass(frozen=True)
class Drawing:
    """An image and its settings."""

    image: Image.Image
    request: ImageConfig
    """The request: one image, with its own seed and its size."""
    infotext: str


def draw(
    base: ImageModel,
    images: Sequence[ImageConfig],
    batch_size: int = 8,
    progress: Progress | None = None,
    artifacts: Sequence[UsedArtifact] = (),
) -> list[Drawing]:
    """Generate every image of every entry, in the entries' order.

    Args:
        base: the base model, with its attached artifacts. Its parts are put into
            evaluation mode, and back.
        images: the entries; an entry with `count` n gives n images.
        batch_size: images generated at once. Other sizes change images by rounding only.
        progress: called at every step.
        artifacts: the attached ones, for the infotext.

    Raises:
        InputError: a size, a prompt or an init image cannot be used.
        FloatingPointError: an image is not finite.
    """
    drawer = Drawer.of(base, images, batch_size)
    drawer.progress, drawer.artifacts = progress, artifacts
    return drawer.in_order(map(drawer, drawer.batches))


@dataclass
class Drawer:
    """Generates batches of requests, and counts the steps."""

    base: ImageModel
    requests: Sequence[ImageConfig]
    """Single images, from `inference.images.requests.expand`."""
    library: NetworkLibrary
    """The library of artifacts that prompts can call."""
    batches: Sequence[Sequence[int]]
    """All batches, as indices of the requests."""
    progress: Progress | None = None
    artifacts: Sequence[UsedArtifact] = ()
    """Other attached artifacts."""
    done: int = 0
    """Completed steps."""

    @classmethod
    def of(cls, base: ImageModel, images: Sequence[ImageConfig], batch_size: int) -> Drawer:
        """Return a drawer of every image of every entry; see `draw`.

        Raises:
            InputError: a size or a prompt cannot be used.
        """
        requests = expand(base, images)
        library = NetworkLibrary(base)
        library.check(all_calls(requests))
        return cls(base, requests, library, group(requests, batch_size))

    def in_order(self, drawn: Iterable[Sequence[tuple[int, Drawing]]]) -> list[Drawing]:
        """Return the images of all batches in the order of the requests."""
        found = {index: drawing for batch in drawn for index, drawing in batch}
        return [found[index] for index in range(len(self.requests))]

    @cached_property
    def total(self) -> int:
        """Return the steps of all batches."""
        return sum(steps_of(self.requests[index]) for batch in self.batches for index in batch)

    def __call__(self, batch: Sequence[int]) -> list[tuple[int, Drawing]]:
        """Return each image of a batch with its index.

        Raises:
            InputError: a prompt or an init image cannot be used.
            FloatingPointError: an image is not finite.
        """
        chosen = [self.requests[index] for index in batch]

        def report(step: int, denoised: Tensor) -> None:
            self.report(self.done + step * len(denoised))

        with evaluation(self.base):
            drawn = draw_batch(self.base, chosen, self.library, report, self.artifacts)
        self.done += sum(map(steps_of, chosen))
        self.report(self.done)
        return list(zip(batch, drawn, strict=True))

    def report(self, done: int) -> None:
        """Report the progress."""
        if self.progress:
            self.progress(min(done, self.total), self.total)


def draw_batch(
    base: ImageModel,
    requests: Sequence[ImageConfig],
    library: NetworkLibrary,
    callback: Callback | None = None,
    artifacts: Sequence[UsedArtifact] = (),
    inits: Sequence[InitImage] | None = None,
    mixes_embeddings: bool = False,
) -> list[Drawing]:
    """Generate the images of requests with equal batch settings.

    `inits` are their init images, from `prepare_init`; without them the files of the
    requests are used. With `mixes_embeddings` prompts joined by AND become one, with the
    weighted mean of their embeddings.
    """
    first = requests[0]
    calls = networks_called(first)
    texts = [text for one in requests for text in all_texts(one)]
    later = [library.used(call) for call in calls[-1] if call not in calls[0]]
    if inits is None:
        inits = [open_init(request) for request in requests] if first.img2img else []
    with library.at_work(calls[0], texts) as used, tiled(base, first.tiling):
        start = encode_start(base, requests, inits) if inits else None
        way = dataclasses.replace(Pass.first(requests), mixes_embeddings=mixes_embeddings)
        latents = sample(base, requests, way, start, callback)
        digests = [{"Init image hash": init.digest} for init in inits] or [{}] * len(requests)
        infotexts = [
            describe_drawing(one, base, [*artifacts, *used, *later], extra)
            for one, extra in zip(requests, digests, strict=True)
        ]
    if first.hires is not None:
        texts = [text for one in requests for text in hires_prompts(one)]
        with library.at_work(calls[1], texts), tiled(base, first.tiling):
            latents = draw_larger(base, requests, latents, callback)
    with tiled(base, first.tiling):
        images = to_images(base, latents)
    return [
        Drawing(finish(image, request, init), request, infotext)
        for image, request, init, infotext in zip(
            images, requests, inits or [None] * len(images), infotexts, strict=True
        )
    ]


def draw_larger(
    base: ImageModel,
    requests: Sequence[ImageConfig],
    latents: Tensor,
    callback: Callback | None = None,
) -> Tensor:
    """Run the second pass of Hires. fix: upscale latents (b, c, h, w), and denoise them again."""
    first = requests[0]
    assert first.hires
    size = second_size(base, first)
    enlarged = enlarge(base, latents, size, first.hires.upscaler)
    if first.hires.denoising_strength == 0:
        return enlarged
    way = Pass.second(requests, size.width, size.height)
    start = Start(enlarged, first.hires.denoising_strength, exact_steps=True)

    def report(step: int, denoised: Tensor) -> None:
        if callback:
            callback(first.steps + step, denoised)

    return sample(base, requests, way, start, report)


def enlarge(base: ImageModel, latents: Tensor, size: HiresSize, upscaler: str) -> Tensor:
    """Upscale latents to the second pass, as images unless the upscaler is latent."""
    factor = base.vae_scale_factor
    width, height = size.upscale_width // factor, size.upscale_height // factor
    if is_latent_upscaler(upscaler):
        larger = upscale_latents(latents, width, height, upscaler)
    else:
        function = image_upscaler(upscaler, "hires.upscaler")
        small = [floor_to_images(decode(base, one)[None])[0] for one in latents]
        sides = size.upscale_width, size.upscale_height
        pictures = [scale_to(image, *sides, function) for image in small]
        larger = torch.cat([encode(base, [one], width, height) for one in pictures])
    return size.crop_latents(larger, factor)


def finish(image: Image.Image, request: ImageConfig, init: InitImage | None) -> Image.Image:
    """Post-process a decoded image: faces, colours, the surroundings of the mask."""
    if request.restore_faces is not None:
        restore = face_restorer(request.restore_faces, "restore_faces")
        image = restore(image, CODEFORMER_WEIGHT)
    if init is None or request.img2img is None:
        return image
    return init.finish(image, request.img2img.color_correction)


def steps_of(request: ImageConfig) -> int:
    """Return the steps of all passes of an image, for the progress bar."""
    if (start := request.img2img) is not None:
        _, last = img2img_steps(request.steps, start.denoising_strength, start.exact_steps)
        return last + 1
    second = request.hires
    if second is None or second.denoising_strength == 0:
        return request.steps
    return request.steps + (second.steps or request.steps)


def tiled(base: ImageModel, tiling: bool) -> AbstractContextManager[None]:
    """Generate images without borders inside the context if `tiling` is set."""
    return circular_padding([base.denoiser, base.vae]) if tiling else nullcontext()


@contextmanager
def evaluation(base: ImageModel) -> Iterator[None]:
    """Disable gradients, autocast and dropout inside the context."""
    training = [m for part in base.parts.values() for m in part.modules() if m.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode(), torch.autocast(base.device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def to_images(base: ImageModel, latents: Tensor) -> list[Image.Image]:
    """Return images of 8 bits a channel, rounded; decoded one by one, to save memory.

    Raises:
        FloatingPointError: a latent or a pixel is not finite.
    """
    pictures = []
    for latent in latents:
        array = ((decode(base, latent) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        pictures.append(Image.fromarray(array.cpu().numpy()))
    return pictures


def decode(base: ImageModel, latent: Tensor) -> Tensor:
    """Return the pixels (3, h, w) of a latent (c, h, w).

    Raises:
        FloatingPointError: a latent or a pixel is not finite.
    """
    check_finite(latent, "latent", base)
    pixels = base.decode_latents(latent[None])[0]
    check_finite(pixels, "picture", base)
    return pixels


def check_finite(values: Tensor, what: str, base: DiffusionModel) -> None:
    """Raise FloatingPointError if a value is infinite or NaN."""
    if not values.isfinite().all():
        is_full = base.dtype == torch.float32
        remedy = "the model's weights are at fault" if is_full else "a precision of fp32 may help"
        raise FloatingPointError(f"the {what} is not finite (NaN or infinite); {remedy}")
