"""What has been learned: attached to a base model, saved, and loaded."""

from inference.artifacts.base import Artifact, load_artifact
from inference.runtime.errors import ArtifactError

__all__ = ["Artifact", "ArtifactError", "load_artifact"]
