"""The typed recipe of colours that are changed a little, anew for every example."""

from dataclasses import dataclass

from train.faults import Faults, at_least


@dataclass
class ColorJitterConfig:
    """How much colours are changed; drawn for each example and epoch. Zeros change nothing."""

    brightness: float = 0.0
    """Values are multiplied by a number within 1 - brightness … 1 + brightness."""
    contrast: float = 0.0
    """The distance from the picture's mean grey is, by a number drawn likewise."""
    saturation: float = 0.0
    """The distance from each pixel's own grey is, by a number drawn likewise."""
    hue: float = 0.0
    """Hues are turned by up to this share of the colour circle, either way; at most 0.5."""

    def faults(self) -> Faults:
        yield from at_least(
            0,
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
        )
        for name in ("brightness", "contrast", "saturation"):
            if vars(self)[name] > 1:
                yield name, f"must be at most 1, got {vars(self)[name]}"
        if self.hue > 0.5:
            yield "hue", f"must be at most 0.5, half of the colour circle, got {self.hue}"

    @property
    def is_random(self) -> bool:
        """Whether anything is changed."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue)
