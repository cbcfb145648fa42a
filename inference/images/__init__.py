"""Draw pictures: requests become pictures with infotext."""
