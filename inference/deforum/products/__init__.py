"""What an animation leaves: run folder, videos, subtitles, contact sheets."""
