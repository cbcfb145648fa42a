"""What has been learned: attached to a base model, saved, and loaded."""

from inference.artifacts.base import Artifact, ArtifactError, load_artifact

__all__ = ["Artifact", "ArtifactError", "load_artifact"]
