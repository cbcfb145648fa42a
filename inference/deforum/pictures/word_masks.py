"""Word masks, `<cat>`, by a user's CLIPSeg (Lüddecke and Ecker 2022, arXiv 2112.10003)."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from inference.deforum.geometry import Bytes, Pixels, opencv, to_bytes
from inference.models import load_auto
from inference.runtime import InputError


class WordMasks:
    """Finds what words name (Deforum 3.0 `deforum_helpers/word_masking.py`)."""

    def __init__(self, source: str, device: str = "cpu") -> None:
        """Load the model from this machine.

        Args:
            source: a folder, or an id on the Hugging Face Hub that was downloaded before, of a
                CLIPSeg of transformers, such as `CIDAS/clipseg-rd64-refined`.
            device: device of the model.

        Raises:
            InputError: it cannot be loaded.
        """
        from transformers import (
            AutoImageProcessor,
            AutoTokenizer,
            CLIPSegForImageSegmentation,
        )

        here = {"local_files_only": True}
        try:
            self.processor: Any = load_auto(AutoImageProcessor, source, backend="pil", **here)
            self.tokenizer: Any = load_auto(AutoTokenizer, source, **here)
            self.model: Any = CLIPSegForImageSegmentation.from_pretrained(source, **here)
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"word_mask_model: {source!r} cannot be loaded ({reason}); expected the folder "
                "of a CLIPSeg of transformers, with its tokenizer and preprocessor_config.json"
            ) from error
        self.device = device
        self.model.to(device).eval()

    def likelihood(self, image: Pixels, words: str) -> np.ndarray:
        """Return how likely each pixel shows what the words name: (h, w), float32, 0 … 1."""
        import torch
        from torch.nn import functional as F

        inputs = self.processor(images=Image.fromarray(to_bytes(image)), return_tensors="pt")
        tokens = self.tokenizer([words], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(
                input_ids=tokens["input_ids"].to(self.device),
                attention_mask=tokens["attention_mask"].to(self.device),
                pixel_values=inputs["pixel_values"].to(self.device),
            ).logits
        likely = torch.sigmoid(logits.float()).reshape(1, 1, *logits.shape[-2:])
        likely = F.interpolate(likely, size=image.shape[:2], mode="bicubic", align_corners=False)
        return likely[0, 0].clamp(0, 1).cpu().numpy()

    def mask(self, image: Pixels, words: str) -> Bytes:
        """Return (h, w), 255 on what the words name, else 0; split by Otsu's threshold (1979)."""
        cv2 = opencv()
        levels = to_bytes(self.likelihood(image, words) * 255)
        return cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1]
